"""`compare`: the post-hoc methods beside one another, each at its own strength."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rescale_cli import options
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import UsageError
from rescale_cli.options.data_options import DataOptions
from rescale_cli.options.option_groups import spread
from rescale_cli.options.sweep_options import ChoiceOptions, HeadOptions
from rescale_cli.reports.screen import Screen


@spread
def compare(
    model: options.Model,
    counts: options.Counts,
    on: DataOptions,
    how: ChoiceOptions,
    of: HeadOptions,
    bias: Annotated[
        options.BiasPolicy | None,
        typer.Option("--bias", help="For the re-scalings. Default: as for apply."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The result as JSON.", readable=False),
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Rank the post-hoc methods on held-out data, and say which cannot be told apart."""
    from rescale_cli.reports.comparison_report import comparison_result, show_comparison
    from rescale_cli.reports.progress import Notes, progress_bar
    from rescale_cli.reports.sweep_outputs import Outputs, write_json
    from rescale_cli.reports.sweep_report import apply_line, not_writable
    from rescale_cli.sweeping.comparison import compare_methods
    from rescale_cli.sweeping.trial import try_on
    from rescale_cli.sweeping.undetermined import refuse_undetermined

    if how.unlabeled:
        raise UsageError("methods are compared by labels", fix="leave out --unlabeled")
    Outputs(output, None, None, force).check(model, counts, on, of)
    wanted, data, notes = how.wanted(), on.choice(force=force), Notes(json)
    choice = of.choice(counts)
    with progress_bar(model.name) as progress:
        trial = try_on(
            model, choice, data, heads=of.named(),
            tried=[Adjustment(bias=bias.value if bias else "")], leave_out=True,
            accept=frozenset(of.accept_global or ()), progress=progress, notes=notes,
        )  # fmt: skip
    if trial is None:
        return
    found = compare_methods(trial, wanted, bias.value if bias else "")
    for entry in found.entries:
        if entry.name == "rescale" and entry.outcome is not None:
            refuse_undetermined(
                entry.outcome, trial.predictions, wanted, notes, accept=on.accept_poor_accuracy
            )
    lines = {
        entry.name: apply_line(
            model,
            replace(entry.adjustment, strength=entry.outcome.choice.gamma),
            of.of_apply(counts),
            None,
        )
        for entry in found.entries
        if entry.outcome is not None and entry.outcome.family.writable and entry.verdict.helps
    }
    warnings = [
        warning
        for entry in found.entries
        if entry.outcome is not None
        for warning in not_writable(entry.outcome.family)
    ]
    result = comparison_result(trial, found, lines)
    if output is not None:
        write_json(output, "compare", result, force=force)
    Screen("compare", json).result(
        result,
        [*notes.kept, *trial.warnings, *warnings],
        lambda: show_comparison(trial, found, lines),
    )
