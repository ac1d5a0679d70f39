"""`evaluate`: metrics of one or more models, and quality gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rescale_cli.commands import options
from rescale_cli.commands.choice_options import GroupSizes, RowOptions, group_sizes
from rescale_cli.commands.console import Screen
from rescale_cli.commands.data_options import DataOptions
from rescale_cli.commands.help_page import (
    gate_option,
    input_argument,
    input_option,
    method_option,
    output_option,
)
from rescale_cli.commands.options import spread
from rescale_cli.core.methods import METHODS, Adjustment
from rescale_cli.data.spec import paths_of
from rescale_cli.errors import UsageError
from rescale_cli.evaluating.strength import Strength
from rescale_cli.measures.gates import Gate, read_gates, refuse_unjudgeable
from rescale_cli.signals import last_step

if TYPE_CHECKING:
    from rescale_cli.commands.evaluate_report import EvaluationReport
    from rescale_cli.evaluating.evaluate_models import ModelAndData, Terms


@dataclass(frozen=True)
class AdjustOptions:
    """An adjustment of the heads, measured without writing a file."""

    gamma: Annotated[
        str | None,
        method_option(
            "-g",
            "--gamma",
            "--tau",
            metavar="FLOAT|@FILE",
            help="Measure the models as if apply had been run with this strength, from 0 to 4; or "
            "@sweep.json for the strength that sweep-gamma chose.",
            show_default="the models as they are",
        ),
    ] = None
    method: options.MethodOption = None
    normalize: options.NormalizeOption = None
    bias: options.BiasOption = None
    temperature: Annotated[
        float | None,
        method_option(
            "--temperature",
            metavar="T",
            help="Divide the logits by this temperature, above 0.",
            show_default="the temperature of --gamma @FILE, else 1",
        ),
    ] = None
    zero_count: Annotated[
        options.ZeroPolicy, method_option("--zero-count", help=options.ZERO_COUNT)
    ] = options.ZeroPolicy.ERROR

    @property
    def sweep(self) -> Path | None:
        """The file of `--gamma @FILE`."""
        return Path(self.gamma[1:]) if self.gamma and self.gamma.startswith("@") else None

    def adjustment(self, strength: Strength) -> Adjustment | None:
        """The adjustment with the strength of `--gamma`; None if no option asks for one.

        Raises:
            UsageError: a method without its strength, or an invalid strength.
        """
        name = "rescale" if self.method is None else self.method.value
        if self.gamma is None and name != "rescale":
            knob = METHODS.entry(name).facts["knob"]
            raise UsageError(f"--method {name} needs its strength", fix=f"--{knob} 0.5")
        said = (self.gamma, self.bias, self.normalize, self.temperature)
        if said == (None,) * len(said):
            return None
        return strength.adjustment(self.method, self.normalize, self.bias, None, self.temperature)

    def terms(self, counts: str | None, rows: RowOptions, groups: tuple[int, int]) -> Terms:
        """How the models are measured.

        Raises:
            UsageError: the adjustment needs counts, and there are none.
        """
        from rescale_cli.evaluating.evaluate_models import Terms
        from rescale_cli.patching.plan import CountsChoice

        strength = Strength.read(self.gamma or "0")
        adjustment = self.adjustment(strength)
        if adjustment is not None and adjustment.needs_counts and counts is None:
            raise UsageError(
                "the adjustment needs the number of training samples of each class",
                saw="no --counts",
                fix="--counts FILE",
            )
        # Without an adjustment, a class without training samples only belongs to the few.
        zero = self.zero_count if adjustment is not None else options.ZeroPolicy.ONE
        choice, hints = None, rows.hints
        if counts is not None:
            choice = CountsChoice.read(counts, hints, zero=zero.value, checked=True)
        return Terms(
            choice, hints, groups, adjustment, rows.heads, rows.accept, strength.chosen_for
        )


@dataclass(frozen=True)
class GateOptions:
    """A model to compare with, and bounds that the metrics must keep."""

    against: Annotated[
        Path | None,
        input_option(
            "--against",
            metavar="BASE",
            help="Model to compare with: shows the differences, their 95 % intervals and McNemar's "
            "test.",
            show_default="none",
        ),
    ] = None
    against_logits: Annotated[
        Path | None,
        input_option(
            "--against-logits",
            metavar="FILE",
            help="Logits of BASE, if the models are given as files of --logits.",
            show_default="none",
        ),
    ] = None
    fail_under: Annotated[
        list[str] | None,
        gate_option(
            "--fail-under",
            metavar="NAME=VALUE",
            help="Exit with code 6 if this metric is lower than VALUE, such as 0.85 or 85%. "
            "Repeatable.",
            show_default="none",
        ),
    ] = None
    fail_over: Annotated[
        list[str] | None,
        gate_option(
            "--fail-over",
            metavar="NAME=VALUE",
            help="Exit with code 6 if nll, ece, classwise_ece or brier is higher than VALUE. "
            "Repeatable.",
            show_default="none",
        ),
    ] = None
    fail_drop: Annotated[
        list[str] | None,
        gate_option(
            "--fail-drop",
            metavar="NAME=VALUE",
            help="Exit with code 6 if this metric is worse than that of BASE by more than VALUE. "
            "Repeatable.",
            show_default="none",
        ),
    ] = None

    def gates(self, *, grouped: bool) -> list[Gate]:
        """The gates, checked before any model is run."""
        found = [
            *read_gates("fail-under", self.fail_under or ()),
            *read_gates("fail-over", self.fail_over or ()),
            *read_gates("fail-drop", self.fail_drop or ()),
        ]
        based = self.against is not None or self.against_logits is not None
        refuse_unjudgeable(found, grouped=grouped, based=based)
        return found

    def base(self, trials: Sequence[ModelAndData]) -> ModelAndData | None:
        """The base and its data: one of the models, or another model on the same data.

        Raises:
            UsageError: logits of a base without a base, or logits for only one side.
        """
        unsaved = replace(
            trials[0][1], save_logits=None, save_preprocessing=None, save_features=None
        )
        if self.against is None:
            if self.against_logits is not None and unsaved.alone:
                return self.against_logits, replace(unsaved, logits=self.against_logits)
            if self.against_logits is not None:
                what = "--against-logits needs the model that the logits are from"
                raise UsageError(what, fix="--against BASE")
            return None
        same = next((trial for trial in trials if trial[0] == self.against), None)
        if same is not None and self.against_logits is None:
            return same
        given = self.against_logits
        choice = replace(unsaved, logits=given, alone=False)
        if choice.data is None and choice.logits is None:
            raise UsageError(
                "the models are given by logits, but the base is not",
                saw=f"--against {self.against}",
                fix="--against-logits FILE",
            )
        if choice.data is not None and choice.logits is not None:
            raise UsageError(
                "the base is run on --data like the models, so it takes no logits",
                saw=f"--against-logits {choice.logits}",
                fix="leave out --against-logits",
            )
        return self.against, choice


@dataclass(frozen=True)
class OutputOptions:
    """The files to write."""

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
            force: whether existing files may be replaced.
            inputs: the files that the command reads.
            other: the other files that it writes, by option.
        """
        from rescale_cli.commands.metric_files import FORMATS
        from rescale_cli.files.staging import NOWHERE, STDOUT, refuse_outputs

        named = {f"--{f.name.replace('_', '-')}": getattr(self, f.name) for f in fields(self)}
        refuse_outputs({**named, **(other or {})}, force=force, inputs=inputs)
        streams = (None, STDOUT, NOWHERE)  # without a suffix: JSON, or CSV for the predictions
        if self.metrics_out not in streams and self.metrics_out.suffix not in (".json", ".prom"):
            raise UsageError(
                "the suffix of --metrics-out must be .json or .prom",
                saw=str(self.metrics_out),
                fix=f"--metrics-out {self.metrics_out.with_suffix('.json')}",
            )
        if self.predictions_out not in streams and self.predictions_out.suffix not in FORMATS:
            raise UsageError(
                f"the suffix of --predictions-out must be one of {', '.join(FORMATS)}",
                saw=str(self.predictions_out),
                fix=f"--predictions-out {self.predictions_out.with_suffix('.csv')}",
            )
        if self.predictions_out is not None and models > 1:
            raise UsageError(
                "--predictions-out holds the predictions of one model",
                saw=f"{models} models",
                fix="evaluate them one by one",
            )

    def write(self, report: EvaluationReport, *, force: bool) -> None:
        """Write every file that was asked for."""
        from rescale_cli.files.staging import write_texts

        texts = {}
        if self.metrics_out is not None:
            texts[self.metrics_out] = report.metrics(self.metrics_out.suffix)
        if self.predictions_out is not None:
            texts[self.predictions_out] = report.predictions(self.predictions_out.suffix)
        if self.csv is not None:
            texts[self.csv] = report.csv()
        if self.junit is not None:
            texts[self.junit] = report.junit()
        write_texts(texts, force=force)


@spread
def evaluate(
    on: DataOptions,
    rows: RowOptions,
    adjust: AdjustOptions,
    bounds: GateOptions,
    outputs: OutputOptions,
    models: Annotated[
        list[Path] | None,
        input_argument(
            metavar="MODEL",
            help="Checkpoints: files or folders. May be left out with --logits FILE.",
            show_default=False,
        ),
    ] = None,
    counts: options.OptionalCounts = None,
    groups: GroupSizes = "100,20",
    bootstrap: Annotated[
        int,
        method_option(
            "--bootstrap",
            metavar="N",
            min=1,
            help="Number of bootstrap resamples for the 95 % intervals of the metrics.",
        ),
    ] = 1000,
    seed: Annotated[
        int, method_option("--seed", metavar="N", min=0, help="Seed for the bootstrap.")
    ] = 0,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure one or more models on labelled data, and fail if a quality gate is not met.

    Examples:
        # Measure a re-scaled model and show what changed.
        rescale-cli evaluate model.rescaled.safetensors --counts counts.json --data npz:test.npz
            --against model.safetensors
        # Measure from saved logits, and fail in CI if balanced accuracy is below 80 %.
        rescale-cli evaluate --logits val_logits.npz --fail-under balanced-accuracy=0.8
    """
    from rescale_cli.commands.evaluate_report import EvaluationReport
    from rescale_cli.commands.github import unwritten
    from rescale_cli.commands.progress import Notes, progress_bar
    from rescale_cli.evaluating.evaluate_models import Feedback, evaluate_models

    gates = bounds.gates(grouped=counts is not None)
    read = paths_of(
        *(models or ()), bounds.against, bounds.against_logits, counts, rows.classes,
        rows.label_order, on.data, *(on.logits or ()), on.preprocessing, adjust.sweep,
    )  # fmt: skip
    choices = on.choices(len(models) if models else None, force=force, sweep=adjust.sweep)
    outputs.check(len(choices), force=force, inputs=read, other=on.saved)
    trials = list(zip(models or on.logits or (), choices, strict=True))
    terms = adjust.terms(counts, rows, group_sizes(groups))
    notes = Notes(json)
    found = evaluate_models(
        trials, terms, bounds.base(trials), replicates=bootstrap, seed=seed,
        watch=Feedback(progress_bar, notes),
    )  # fmt: skip
    if found is None:
        return
    report = EvaluationReport.of(found, terms, gates)
    with last_step():
        outputs.write(report, force=force)
    report.tell_github()
    Screen("evaluate", json).result(
        report.result(), [*notes.kept, *found.warnings, *unwritten()], report.show, report.failure
    )
