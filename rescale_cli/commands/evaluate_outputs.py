"""What `evaluate` leaves for other programs: files, JUnit, OpenMetrics, words for GitHub."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Annotated
from xml.etree import ElementTree

from rescale_cli.commands.console import finite, to_stderr
from rescale_cli.commands.help_page import output_option
from rescale_cli.core.floats import Float64
from rescale_cli.core.predictions import Labels
from rescale_cli.errors import UsageError
from rescale_cli.json_text import printable
from rescale_cli.measures.gates import GateResult
from rescale_cli.measures.metric_names import ABOUT

if TYPE_CHECKING:
    from rescale_cli.evaluating.evaluate_models import Evaluation


def junit(verdicts: Sequence[GateResult], suite: str) -> str:
    """A JUnit XML document with one test suite.

    Args:
        verdicts: one test case each; a gate that failed is a failure with its message.
        suite: the name of the suite.
    """
    failures = str(sum(not verdict.passed for verdict in verdicts))
    tests = {"tests": str(len(verdicts)), "failures": failures, "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", tests)
    group = ElementTree.SubElement(root, "testsuite", {"name": _valid(suite), **tests})
    for verdict in verdicts:
        case = ElementTree.SubElement(
            group,
            "testcase",
            {"classname": _valid(verdict.model), "name": str(verdict.gate), "time": "0"},
        )
        message = _valid(verdict.message)
        if verdict.passed:
            ElementTree.SubElement(case, "system-out").text = message
        else:
            failure = {"message": message, "type": "gate-failed"}
            ElementTree.SubElement(case, "failure", failure).text = message
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def _valid(text: str) -> str:
    """A text that XML 1.0 can hold: two more than the control characters are none."""
    shown = printable(text)
    return shown.replace("\ufffe", r"\ufffe").replace("\uffff", r"\uffff")


PREFIX = "rescale_"


def openmetrics(models: Mapping[str, Mapping[str, float | None]], about: Mapping[str, str]) -> str:
    """One gauge a metric, one sample a model; a metric without a value has no sample.

    Args:
        models: name of the model to its metrics, each a name of letters, digits and _.
        about: the help text of each metric, where there is one.

    Example:
        >>> print(openmetrics({"a.pth": {"accuracy": 0.5}}, {"accuracy": "share"}), end="")
        # TYPE rescale_accuracy gauge
        # HELP rescale_accuracy share
        rescale_accuracy{model="a.pth"} 0.5
        # EOF
    """
    lines = []
    for name in dict.fromkeys(name for metrics in models.values() for name in metrics):
        values = {model: metrics.get(name) for model, metrics in models.items()}
        known = {model: value for model, value in values.items() if value is not None}
        if not known:
            continue
        lines.append(f"# TYPE {PREFIX}{name} gauge")
        if name in about:
            lines.append(f"# HELP {PREFIX}{name} {_escaped(about[name])}")
        for model, value in known.items():
            lines.append(f'{PREFIX}{name}{{model="{_escaped(model)}"}} {_number(value)}')
    return "\n".join([*lines, "# EOF", ""])


def _escaped(text: str) -> str:
    whole = text.encode("utf-8", "backslashreplace").decode()
    return whole.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


COLUMNS = ("actual", "predicted", "actual_name", "predicted_name", "score", "name")

Rows = Iterable[tuple[int, int, str | None, str | None, float, str | None]]


def prediction_rows(
    actual: Labels,
    predicted: Labels,
    scores: Float64,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Rows:
    """The values of COLUMNS for each sample; None where they are not known.

    Args:
        actual: (N,), rows of the head.
        predicted: (N,), rows of the head.
        scores: (N,), the probability of the predicted class.
        classes: (C,), the name of each row.
        names: (N,), the file or key of each sample.
    """
    for at, (row, guess, score) in enumerate(
        zip(actual.tolist(), predicted.tolist(), scores.tolist(), strict=True)
    ):
        called = (None, None) if classes is None else (classes[row], classes[guess])
        yield row, guess, *called, score, None if names is None else names[at]


def as_csv(rows: Rows) -> str:
    r"""CSV with a header; an empty cell is not known.

    Example:
        >>> as_csv([(0, 1, "cat", "a,b", 0.75, None)])
        'actual,predicted,actual_name,predicted_name,score,name\n0,1,cat,"a,b",0.75,\n'
    """
    lines: list[str] = []
    # Python quotes what its own line ends are made of, and a name may hold "\r".
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return "".join(f"{line.removesuffix(chr(13) + chr(10))}\n" for line in lines)


def as_json(rows: Rows) -> str:
    """A list of objects, one line a sample."""
    return "[\n" + ",\n".join(_objects(rows)) + "\n]\n"


def as_json_lines(rows: Rows) -> str:
    r"""One object a line.

    Example:
        >>> as_json_lines([(0, 1, None, None, 0.75, "a.png")])[-17:]
        '"name": "a.png"}\n'
    """
    return "".join(f"{line}\n" for line in _objects(rows))


def _objects(rows: Rows) -> Iterable[str]:
    for row in rows:
        # Half of a character, in a file's name, is no Unicode text: it is written as its escape.
        clean = (v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v
                 for v in row)  # fmt: skip
        yield json.dumps(dict(zip(COLUMNS, clean, strict=True)), ensure_ascii=False)


#: The format of `--predictions-out`, by the suffix of its file.
FORMATS: Mapping[str, Callable[[Rows], str]] = MappingProxyType(
    {".csv": as_csv, ".json": as_json, ".jsonl": as_json_lines}
)


Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class OutputOptions:
    """See `options.spread`: each field is an option."""

    metrics_out: Annotated[
        Path | None,
        output_option(
            "--metrics-out",
            metavar="FILE",
            help="Write the metrics to this file: .json, or .prom (OpenMetrics); - for JSON on "
            "stdout.",
            show_default="not written",
        ),
    ] = None
    predictions_out: Annotated[
        Path | None,
        output_option(
            "--predictions-out",
            metavar="FILE",
            help="Write the true class, the predicted class, its probability and the name of each "
            "sample to this file: .csv, .json or .jsonl; - for CSV on stdout.",
            show_default="not written",
        ),
    ] = None
    csv: Annotated[
        Path | None,
        output_option(
            "--csv",
            metavar="FILE",
            help="Write one row per model (its column class is empty) and one row per model and "
            "class to this CSV file; - for stdout.",
            show_default="not written",
        ),
    ] = None
    junit: Annotated[
        Path | None,
        output_option(
            "--junit",
            metavar="FILE",
            help="Write the gates to this file as a JUnit XML report; - for stdout.",
            show_default="not written",
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
        from rescale_cli.files.staging import NOWHERE, STDOUT, refuse_outputs

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

    def write(self, found: Evaluation, verdicts: Sequence[GateResult], *, force: bool) -> None:
        """Write every file that was asked for."""
        from rescale_cli.files.staging import write_texts

        write_texts(dict(self._texts(found, verdicts)), force=force)

    def _texts(
        self, found: Evaluation, verdicts: Sequence[GateResult]
    ) -> Iterator[tuple[Path, str]]:
        from rescale_cli.commands.evaluate_report import evaluate_csv

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


def tell_github(found: Evaluation, verdicts: Sequence[GateResult]) -> None:
    """The summary page, the outputs and the annotations of a step, where one runs."""
    from rescale_cli.commands.github import annotation, append_outputs, append_summary, markdown

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
