"""`compare`: rank the post-hoc methods, each at its own chosen strength."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rescale_cli.commands import options
from rescale_cli.commands.choice_options import ChoiceOptions, HeadOptions, Outputs
from rescale_cli.commands.console import Screen
from rescale_cli.commands.data_options import DataOptions
from rescale_cli.commands.help_page import method_option, output_option
from rescale_cli.commands.options import spread
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import UsageError
from rescale_cli.signals import last_step


@dataclass(frozen=True)
class CompareOutputs(Outputs):
    """The options of the outputs."""

    output: Annotated[
        Path | None,
        output_option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the result to this JSON file; - for stdout.",
            show_default="not written",
        ),
    ] = None
    csv: Annotated[
        Path | None,
        output_option(
            "--csv",
            metavar="FILE",
            help="Write one row per method to this CSV file; - for stdout.",
            show_default="not written",
        ),
    ] = None
    apply: Annotated[
        Path | None,
        output_option(
            "--apply",
            metavar="OUT",
            help="Also write the checkpoint: adjusted by the best method that helps and can be "
            "written, or unchanged (strength 0) if there is none.",
            show_default="not written",
        ),
    ] = None
    require_gain: Annotated[
        bool,
        output_option(
            "--require-gain",
            help="Exit with code 6 unless a method that can be written has the verdict helps.",
        ),
    ] = False


@spread
def compare(
    model: options.Model,
    counts: options.Counts,
    on: DataOptions,
    how: ChoiceOptions,
    of: HeadOptions,
    outputs: CompareOutputs,
    bias: Annotated[
        options.BiasPolicy | None,
        method_option(
            "--bias",
            help="For the methods that re-scale rows: keep the bias, scale it like the rows, or "
            "drop it (set it to 0).",
            show_default="keep; drop where rows are normalized",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Rank the post-hoc methods on labelled data, each at its own best strength.

    Methods whose difference is within chance are marked as tied.

    Examples:
        # Compare all methods on saved logits.
        rescale-cli compare model.safetensors --counts counts.json --logits val_logits.npz
        # Run the model on images, and write the table as CSV.
        rescale-cli compare model.safetensors --counts counts.json --data npz:val.npz
            --csv methods.csv
    """
    from rescale_cli.commands.compare_report import ComparisonReport
    from rescale_cli.commands.github import unwritten
    from rescale_cli.commands.progress import Notes, progress_bar
    from rescale_cli.evaluating.checks import check_strength
    from rescale_cli.sweeping.comparison import compare_methods
    from rescale_cli.sweeping.sweep_input import sweep_input

    if how.unlabeled:
        raise UsageError("compare needs labels", saw="--unlabeled", fix="leave out --unlabeled")
    outputs.check(model, counts, on, of)
    selection, data, notes = how.selection(), on.choice(force=outputs.force), Notes(json)
    choice = of.choice(counts)
    tried = Adjustment(bias="" if bias is None else bias.value)
    with progress_bar(model.name) as progress:
        given = sweep_input(
            model, choice, data, heads=of.heads, accept=of.accept,
            tried=[tried], leave_out=True, write=outputs.apply is not None,
            progress=progress, notes=notes,
        )  # fmt: skip
    if given is None:
        return
    found = compare_methods(given, selection, tried.bias)
    for entry in found.entries:
        if entry.name == "rescale" and entry.outcome is not None:
            accept, interval = on.accept_poor_accuracy, entry.outcome.interval
            check_strength(interval, selection.limit, given.predictions, notes, accept=accept)
    report = ComparisonReport.of(given, found, choice, of, outputs.apply)
    with last_step():
        report = replace(report, patched=outputs.write(given.checkpoint, choice, of, report))
    report.tell_github()
    Screen("compare", json).result(
        report.result(),
        [*notes.kept, *report.warnings, *unwritten()],
        report.show,
        report.no_gain if outputs.require_gain else None,
    )
