"""`sweep-gamma`: try every strength, choose one, and judge it on samples that did not choose it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from rescale_cli.commands import options
from rescale_cli.commands.choice_options import ChoiceOptions, HeadOptions, Outputs
from rescale_cli.commands.console import Screen
from rescale_cli.commands.data_options import DataOptions, refuse_without_model
from rescale_cli.commands.help_page import method_option, output_option
from rescale_cli.commands.options import spread
from rescale_cli.core.methods import BIAS_POLICIES, Adjustment
from rescale_cli.signals import last_step


class Normalize(StrEnum):
    """Whether rows are brought to equal length first."""

    OFF = "off"
    ON = "on"
    BOTH = "both"


class BiasPolicies(StrEnum):
    """What becomes of the bias; all tries each."""

    KEEP = "keep"
    SCALE = "scale"
    DROP = "drop"
    ALL = "all"


@dataclass(frozen=True)
class MethodOptions:
    """What is tried: one method, with every policy that was asked for."""

    method: Annotated[options.MethodName, method_option("--method", help=options.METHOD)] = (
        options.MethodName.RESCALE
    )
    normalize: Annotated[
        Normalize,
        method_option(
            "--normalize",
            help="Scale all rows to the same length first: off, on, or try both.",
        ),
    ] = Normalize.OFF
    bias: Annotated[
        BiasPolicies | None,
        method_option(
            "--bias",
            help="Keep the bias, scale it like the rows, drop it (set it to 0), or try all three.",
            show_default="keep; drop where rows are normalized",
        ),
    ] = None

    def adjustments(self) -> list[Adjustment]:
        """Each combination of the policies, at strength 0."""
        normalize = {Normalize.OFF: (False,), Normalize.ON: (True,), Normalize.BOTH: (False, True)}
        bias = "" if self.bias is None else self.bias.value
        return [
            Adjustment(self.method.value, 0.0, normalized, policy)
            for normalized in normalize[self.normalize]
            for policy in (BIAS_POLICIES if bias == "all" else (bias,))
        ]


@dataclass(frozen=True)
class SweepOutputs(Outputs):
    """The options of the outputs."""

    output: Annotated[
        Path | None,
        output_option(
            "-o",
            "--output",
            metavar="FILE",
            help="JSON file to write, for apply --gamma @FILE; - for stdout.",
            show_default="not written",
        ),
    ] = None
    csv: Annotated[
        Path | None,
        output_option(
            "--csv",
            metavar="FILE",
            help="Write the metrics at each strength to this CSV file; - for stdout.",
            show_default="not written",
        ),
    ] = None
    apply: Annotated[
        Path | None,
        output_option(
            "--apply",
            metavar="OUT",
            help="Also write the checkpoint: re-scaled with the chosen strength if the verdict is "
            "helps, otherwise unchanged (strength 0).",
            show_default="not written",
        ),
    ] = None
    require_gain: Annotated[
        bool,
        output_option("--require-gain", help="Exit with code 6 unless the verdict is helps."),
    ] = False


@spread
def sweep_gamma(
    counts: options.Counts,
    on: DataOptions,
    how: ChoiceOptions,
    of: HeadOptions,
    methods: MethodOptions,
    outputs: SweepOutputs,
    model: options.OptionalModel = None,
    fit_temperature: Annotated[
        bool,
        method_option(
            "--fit-temperature",
            help="Also fit a temperature that calibrates the confidences, for apply --temperature.",
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Choose the strength for a model on labelled data, and judge whether it helps.

    Every strength is tried exactly, in one pass over the data. One half of the samples chooses, the
    other half gives the verdict: helps, no-gain, undecided or harms.

    Examples:
        # Choose on the validation images, and keep the result for apply.
        rescale-cli sweep-gamma model.safetensors --counts counts.json --data npz:val.npz
            -o choice.json
        # The same from saved logits; the model is not run.
        rescale-cli sweep-gamma model.safetensors --counts counts.json --logits val_logits.npz
    """
    from rescale_cli.commands.github import unwritten
    from rescale_cli.commands.progress import Notes, progress_bar
    from rescale_cli.commands.sweep_report import SweepReport
    from rescale_cli.evaluating.checks import check_strength
    from rescale_cli.sweeping.sweep import sweep
    from rescale_cli.sweeping.sweep_input import input_of_logits, sweep_input

    if model is None:
        refuse_without_model(on, methods.method, outputs.apply)
    outputs.check(model, counts, on, of)
    selection, data, notes = how.selection(), on.choice(force=outputs.force), Notes(json)
    tried, choice, labelled = methods.adjustments(), of.choice(counts), not how.unlabeled
    with progress_bar("" if model is None else model.name) as progress:
        if model is None:
            given = input_of_logits(choice, data, labelled=labelled, notes=notes)
        else:
            write = outputs.apply is not None
            given = sweep_input(
                model, choice, data, heads=of.heads, accept=of.accept, labelled=labelled,
                adjustment=tried[0] if write else None, tried=tried, write=write,
                progress=progress, notes=notes,
            )  # fmt: skip
    if given is None:
        return
    fit = fit_temperature
    found = sweep(given.predictions, given.head, given.counts, tried, selection, fit=fit)
    accept, interval = on.accept_poor_accuracy, found.best.interval
    check_strength(interval, selection.limit, given.predictions, notes, accept=accept)
    report = SweepReport.of(given, found, of, counts, outputs.apply)
    if model is None and report.line is not None:
        notes(f"no checkpoint was given; to apply the strength, replace MODEL: {report.line}")
    with last_step():
        report = replace(report, patched=outputs.write(given.checkpoint, choice, of, report))
    report.tell_github()
    Screen("sweep-gamma", json).result(
        report.result(),
        [*notes.kept, *report.warnings, *unwritten()],
        report.show,
        report.no_gain if outputs.require_gain else None,
    )
