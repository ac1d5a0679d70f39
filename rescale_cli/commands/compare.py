"""`compare`: the post-hoc methods beside one another, each at its own strength."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.data_options import DataOptions
from rescale_cli.commands.help_page import method_option, output_option
from rescale_cli.commands.options import spread
from rescale_cli.commands.sweep_options import ChoiceOptions, HeadOptions
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import UsageError
from rescale_cli.signals import last_step


@spread
def compare(
    model: options.Model,
    counts: options.Counts,
    on: DataOptions,
    how: ChoiceOptions,
    of: HeadOptions,
    bias: Annotated[
        options.BiasPolicy | None,
        method_option(
            "--bias",
            help="For the methods that re-scale rows: keep the bias, scale it like the rows, or "
            "drop it (set it to 0).",
            show_default="keep; drop where rows are normalized",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the result to this JSON file; - for stdout.",
            show_default="not written",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        output_option(
            "--csv",
            metavar="FILE",
            help="Write one row per method to this CSV file; - for stdout.",
            show_default="not written",
        ),
    ] = None,
    apply: Annotated[
        Path | None,
        output_option(
            "--apply",
            metavar="OUT",
            help="Also write the checkpoint: adjusted by the best method that helps and can be "
            "written, or unchanged (strength 0) if there is none.",
            show_default="not written",
        ),
    ] = None,
    require_gain: Annotated[
        bool,
        output_option(
            "--require-gain",
            help="Exit with code 6 unless a method that can be written has the verdict helps.",
        ),
    ] = False,
    force: options.Force = False,
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
    from rescale_cli.commands.compare_report import (
        comparison_csv,
        comparison_result,
        nothing_to_write,
        show_comparison,
    )
    from rescale_cli.commands.github import unwritten
    from rescale_cli.commands.progress import Notes, progress_bar
    from rescale_cli.commands.sweep_outputs import (
        Outputs,
        as_json,
        tell_github_compared,
        written_as,
        written_result,
    )
    from rescale_cli.commands.sweep_report import left_alone
    from rescale_cli.commands.verdict_text import gain_required
    from rescale_cli.evaluating.checks import check_strength
    from rescale_cli.sweeping.comparison import compare_methods, sweep_input

    if how.unlabeled:
        raise UsageError("methods are compared by labels", fix="leave out --unlabeled")
    outputs = Outputs(output, csv, apply, force)
    outputs.check(model, counts, on, of)
    selection, data, notes = how.selection(), on.choice(force=force), Notes(json)
    choice = of.choice(counts)
    with progress_bar(model.name) as progress:
        given = sweep_input(
            model, choice, data, heads=of.named(),
            tried=[Adjustment(bias=bias.value if bias else "")], leave_out=True,
            write=apply is not None,
            accept=frozenset(of.accept_global or ()), progress=progress, notes=notes,
        )  # fmt: skip
    if given is None:
        return
    found = compare_methods(given, selection, bias.value if bias else "")
    for entry in found.entries:
        if entry.name == "rescale" and entry.outcome is not None:
            check_strength(
                entry.outcome.interval, selection.limit, given.predictions, notes,
                accept=on.accept_poor_accuracy,
            )  # fmt: skip
    obstacles, lines = written_as(given, found, choice, of, apply)
    result = comparison_result(given, found, lines, obstacles)
    best = found.to_write(obstacles)
    why = "" if best is not None else nothing_to_write(found)
    to_write = Adjustment() if best is None else best.decided
    with last_step():
        patched = outputs.write(
            given.checkpoint,
            {output: as_json("compare", result), csv: comparison_csv(found, obstacles)},
            to_write,
            choice,
            of,
        )
    if patched is not None:
        result["written"] = written_result(patched)
    tell_github_compared(found, obstacles, patched)
    failed = None
    if require_gain and best is None:
        failed = gain_required("a gain is required, and there is no method to write", why)
    cannot = [
        ("not-writable", f"{name} cannot be written to {model.name}: {what}")
        for name, what in obstacles.items()
    ]
    instead = "a method all the same, use `apply` with its number"
    Screen("compare", json).result(
        result,
        [*notes.kept, *given.warnings, *cannot, *left_alone(apply, why, instead), *unwritten()],
        lambda: show_comparison(given, found, lines, obstacles, patched),
        failed,
    )
    if failed is not None:
        raise typer.Exit(failed.exit_code)
