"""`sweep-gamma`: every strength, exactly; one of them, honestly chosen; and a verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.data_options import DataOptions, refuse_without_model
from rescale_cli.commands.help_page import method_option, output_option
from rescale_cli.commands.options import spread
from rescale_cli.commands.sweep_options import (
    BiasPolicies,
    ChoiceOptions,
    HeadOptions,
    Normalize,
    adjustments,
)
from rescale_cli.signals import last_step


@spread
def sweep_gamma(
    counts: options.Counts,
    on: DataOptions,
    how: ChoiceOptions,
    of: HeadOptions,
    model: options.OptionalModel = None,
    method: Annotated[
        options.MethodName, method_option("--method", help=options.METHOD)
    ] = options.MethodName.RESCALE,
    normalize: Annotated[
        Normalize,
        method_option(
            "--normalize",
            help="Bring all rows to the same length first: off, on, or try both.",
        ),
    ] = Normalize.OFF,
    bias: Annotated[
        BiasPolicies | None,
        method_option(
            "--bias",
            help="Keep the bias, scale it like the rows, drop it (set it to 0), or try all three.",
            show_default="keep; drop where rows are normalized",
        ),
    ] = None,
    fit_temperature: Annotated[
        bool,
        method_option(
            "--fit-temperature",
            help="Also fit a temperature that calibrates the confidences, for apply --temperature.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        output_option(
            "-o",
            "--output",
            metavar="FILE",
            help="JSON file to write, for apply --gamma @FILE; - for stdout.",
            show_default="not written",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        output_option(
            "--csv",
            metavar="FILE",
            help="Write the metrics at each strength to this CSV file; - for stdout.",
            show_default="not written",
        ),
    ] = None,
    apply: Annotated[
        Path | None,
        output_option(
            "--apply",
            metavar="OUT",
            help="Also write the checkpoint: re-scaled with the chosen strength if the verdict is "
            "helps, otherwise unchanged (strength 0).",
            show_default="not written",
        ),
    ] = None,
    require_gain: Annotated[
        bool,
        output_option("--require-gain", help="Exit with code 6 unless the verdict is helps."),
    ] = False,
    force: options.Force = False,
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
    from rescale_cli.commands import sweep_report
    from rescale_cli.commands.github import unwritten
    from rescale_cli.commands.progress import Notes, progress_bar
    from rescale_cli.commands.sweep_outputs import Outputs, as_json, tell_github, written_result
    from rescale_cli.commands.sweep_report import show_sweep
    from rescale_cli.commands.verdict_text import no_gain
    from rescale_cli.core.methods import Adjustment
    from rescale_cli.evaluating.checks import check_strength
    from rescale_cli.sweeping.comparison import input_of_logits, sweep_input
    from rescale_cli.sweeping.sweep import sweep

    if model is None:
        refuse_without_model(on, method, apply)
    outputs = Outputs(output, csv, apply, force)
    outputs.check(model, counts, on, of)
    selection, data, notes = how.selection(), on.choice(force=force), Notes(json)
    choice, tried = of.choice(counts), adjustments(method, normalize, bias)
    with progress_bar("" if model is None else model.name) as progress:
        given = input_of_logits(choice, data, labelled=not selection.unlabeled, notes=notes) if (
            model is None
        ) else sweep_input(
            model, choice, data, heads=of.named(),
            accept=frozenset(of.accept_global or ()), labelled=not selection.unlabeled,
            adjustment=None if apply is None else tried[0], tried=tried,
            write=apply is not None, progress=progress, notes=notes,
        )  # fmt: skip
    if given is None:
        return
    found = sweep(
        given.predictions, given.head, given.counts, tried, selection, fit=fit_temperature
    )
    check_strength(
        found.best.interval, selection.limit, given.predictions, notes,
        accept=on.accept_poor_accuracy,
    )  # fmt: skip
    swept = found.best.method
    best = replace(swept.adjustment, strength=found.best.choice.gamma)
    best = replace(best, temperature=found.temperature or 1.0)
    helps, line = found.verdict.helps, None
    if swept.writable and helps:
        line = sweep_report.apply_line(
            model or "MODEL", best, {**of.of_apply(counts), **given.compose}, apply
        )
    if model is None and line is not None:
        notes(f"no checkpoint was named; to write the strength into one, put it for MODEL: {line}")
        line = None
    result = sweep_report.sweep_result(given, found, line, of.counted_with())
    to_write = best if helps else Adjustment()
    texts = {output: as_json("sweep-gamma", result), csv: sweep_report.curve_csv(found)}
    with last_step():
        patched = outputs.write(given.checkpoint, texts, to_write, choice, of)
    if patched is not None:
        result["written"] = written_result(patched)
    tell_github(given, found, patched)
    failed = no_gain(result) if require_gain else None
    why = "" if helps else f"the verdict is {found.verdict.kind}"
    instead = f"the chosen strength all the same, use `apply` with the number {best.strength:.12g}"
    Screen("sweep-gamma", json).result(
        result,
        [
            *notes.kept,
            *given.warnings,
            *sweep_report.not_writable(swept),
            *sweep_report.left_alone(apply, why, instead),
            *unwritten(),
        ],
        lambda: show_sweep(given, found, line, patched),
        failed,
    )
    if failed is not None:
        raise typer.Exit(failed.exit_code)
