"""What `evaluate` leaves for other programs: files, and words for GitHub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescale_cli.errors import UsageError
from rescale_cli.measures.metric_names import ABOUT
from rescale_cli.reports.screen import finite, to_stderr

if TYPE_CHECKING:
    from rescale_cli.evaluating.side_by_side import Evaluation
    from rescale_cli.measures.gates import Verdict

Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class OutputOptions:
    """See `option_groups.spread`: each field is an option."""

    metrics_out: Annotated[
        Path | None,
        typer.Option(
            "--metrics-out",
            metavar="FILE",
            help="Metrics as .json, or as .prom (OpenMetrics); - is stdout, as JSON.",
            readable=False,
        ),
    ] = None
    predictions_out: Annotated[
        Path | None,
        typer.Option(
            "--predictions-out",
            metavar="FILE",
            help="Each sample's true and predicted class, as rows of the head and as names, the "
            "probability of the predicted class, and the sample's name: .csv, .json or .jsonl; - "
            "is stdout, as CSV.",
            readable=False,
        ),
    ] = None
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="One row a model with its metrics (column `class` empty), then one row a model "
            "and class, as CSV.",
            readable=False,
        ),
    ] = None
    junit: Annotated[
        Path | None,
        typer.Option(
            "--junit", metavar="FILE", help="The gates as a JUnit report.", readable=False
        ),
    ] = None

    def check(
        self,
        models: int,
        *,
        force: bool,
        inputs: Sequence[Path],
        other: Mapping[str, Path | None] | None = None,
    ) -> None:
        """Stop before the work if a file could not be written after it.

        Args:
            models: how many are evaluated.
            force: whether files that are there may be replaced.
            inputs: what the command reads.
            other: what else will be written, by option.
        """
        from rescale_cli.files.predictions_file import FORMATS
        from rescale_cli.files.text_file import NOWHERE, STDOUT, refuse_outputs

        named = {f"--{f.name.replace('_', '-')}": getattr(self, f.name) for f in fields(self)}
        refuse_outputs({**named, **(other or {})}, force=force, inputs=inputs)
        streams = (None, STDOUT, NOWHERE)  # without a suffix: JSON, or CSV for the predictions
        if self.metrics_out not in streams and self.metrics_out.suffix not in (".json", ".prom"):
            raise UsageError(
                "--metrics-out tells the format by its suffix, .json or .prom",
                saw=str(self.metrics_out),
                fix=f"--metrics-out {self.metrics_out.with_suffix('.json')}",
            )
        if self.predictions_out not in streams and self.predictions_out.suffix not in FORMATS:
            raise UsageError(
                f"the suffix of --predictions-out is one of {', '.join(FORMATS)}",
                saw=str(self.predictions_out),
                fix=f"--predictions-out {self.predictions_out.with_suffix('.csv')}",
            )
        if self.predictions_out is not None and models > 1:
            raise UsageError(
                "--predictions-out holds the predictions of one model",
                saw=f"{models} models",
                fix="evaluate them one by one",
            )

    def write(self, found: Evaluation, verdicts: Sequence[Verdict], *, force: bool) -> None:
        """Write every file that was asked for."""
        from rescale_cli.files.text_file import write_texts

        write_texts(dict(self._texts(found, verdicts)), force=force)

    def _texts(self, found: Evaluation, verdicts: Sequence[Verdict]) -> Iterator[tuple[Path, str]]:
        from rescale_cli.files.predictions_file import FORMATS, prediction_rows
        from rescale_cli.measures.junit import junit
        from rescale_cli.measures.openmetrics import openmetrics
        from rescale_cli.reports.evaluate_csv import evaluate_csv

        models: dict[str, Metrics] = {model.name: model.metrics for model in found.scored}
        if self.metrics_out is not None and self.metrics_out.suffix == ".prom":
            yield self.metrics_out, openmetrics(models, ABOUT)
        elif self.metrics_out is not None:
            flat = found.scored[0].metrics if len(models) == 1 else models
            yield self.metrics_out, json.dumps(finite(flat), indent=1) + "\n"
        if self.predictions_out is not None:
            one = found.scored[0]
            rows = prediction_rows(
                one.labels, one.predicted, one.confidence, one.classes, one.names
            )
            yield self.predictions_out, FORMATS[self.predictions_out.suffix or ".csv"](rows)
        if self.csv is not None:
            yield self.csv, evaluate_csv(found)
        if self.junit is not None:
            yield self.junit, junit(verdicts, "rescale-cli evaluate")


def _columns(found: Evaluation) -> dict[str, Mapping[str, float | str | None]]:
    """The metrics of each model, of the base, and what lies between the two."""
    if found.base is None:
        return {model.name: model.metrics for model in found.scored}
    columns: dict[str, Mapping[str, float | str | None]] = {
        f"base {found.base.name}": found.base.metrics
    }
    several = len(found.scored) > 1
    for model, difference in zip(found.scored, found.differences, strict=True):
        of = f" of {model.name}" if several else ""
        columns[model.name] = model.metrics
        columns[f"difference{of}"] = {
            name: None if value is None else f"{value:+.4f}"
            for name, value in difference.differences.items()
        }
        columns[f"95 % interval{of}"] = {
            name: f"{interval.low:+.4f} to {interval.high:+.4f}" if interval else None
            for name, interval in difference.intervals.items()
        }
    return columns


def tell_github(found: Evaluation, verdicts: Sequence[Verdict]) -> None:
    """The summary page, the outputs and the annotations of a step, where one runs."""
    from rescale_cli.files.github_actions import annotation, append_outputs, append_summary
    from rescale_cli.measures.markdown import markdown

    models: dict[str, Metrics] = {model.name: model.metrics for model in found.scored}
    append_summary(markdown("rescale-cli evaluate", _columns(found), verdicts))
    # The first model's under their own names, those of the next ones numbered.
    append_outputs({
        name if number == 1 else f"{name}_{number}": value
        for number, metrics in enumerate(models.values(), 1)
        for name, value in metrics.items()
        if value is not None
    })  # fmt: skip
    for verdict in verdicts:
        line = annotation(f"gate {verdict.gate}", f"{verdict.model}: {verdict.message}")
        if line is not None and not verdict.passed:
            to_stderr(line + "\n")
