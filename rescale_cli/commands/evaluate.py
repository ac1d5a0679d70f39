"""`evaluate`: metrics of models side by side, and gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescale_cli import options
from rescale_cli.errors import UsageError
from rescale_cli.options.adjust_options import AdjustOptions
from rescale_cli.options.data_options import DataOptions
from rescale_cli.options.gate_options import GateOptions, failure, judge
from rescale_cli.options.option_groups import spread
from rescale_cli.options.strength_option import chosen_for
from rescale_cli.options.sweep_options import group_sizes
from rescale_cli.reports.evaluate_outputs import OutputOptions, tell_github
from rescale_cli.reports.screen import Screen
from rescale_cli.signals import last_step
from rescale_cli.sources.data_spec import paths_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rescale_cli.core.row_names import Said
    from rescale_cli.evaluating.scoring import Terms
    from rescale_cli.patching.locate_head import HeadChoice


@spread
def evaluate(
    on: DataOptions,
    adjust: AdjustOptions,
    bounds: GateOptions,
    outputs: OutputOptions,
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Checkpoint files or folders. May be left out with --logits FILE.",
            readable=False,
            show_default=False,
        ),
    ] = None,
    counts: options.OptionalCounts = None,
    groups: Annotated[
        str,
        typer.Option(
            "--groups",
            metavar="M,F",
            help="Many is more than M training samples, few is less than F.",
        ),
    ] = "100,20",
    head: options.Heads = None,
    only: options.Only = False,
    plain_head: options.PlainHead = False,
    classes: options.Classes = None,
    label_order: options.LabelOrder = None,
    order: options.Order = None,
    bootstrap: Annotated[
        int,
        typer.Option("--bootstrap", metavar="N", min=1, help="Resamplings for the intervals."),
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of them.")] = 0,
    accept_global: options.AcceptGlobal = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure models on labelled data, side by side; fail where a quality gate is not met."""
    from rescale_cli.evaluating.side_by_side import Watch, side_by_side
    from rescale_cli.files.github_actions import unwritten
    from rescale_cli.patching.locate_head import HeadChoice
    from rescale_cli.reports.evaluate_report import evaluate_result
    from rescale_cli.reports.evaluate_tables import show_evaluate
    from rescale_cli.reports.progress import Notes, progress_bar
    from rescale_cli.sources.class_names import said_about_rows

    gates = bounds.gates(grouped=counts is not None)
    bases = (bounds.against, bounds.against_logits)
    read = paths_of(
        *(models or ()), *bases, counts, classes, label_order, on.data, *(on.logits or ()),
        on.preprocessing, adjust.sweep,
    )  # fmt: skip
    choices = on.choices(len(models) if models else None, force=force, sweep=adjust.sweep)
    outputs.check(len(choices), force=force, inputs=read, other=on.saved)
    trials = list(zip(models or on.logits or (), choices, strict=True))
    heads = HeadChoice(tuple(head or ()), only, plain_head)
    said = said_about_rows(classes, label_order, order)
    terms = _terms(counts, said, groups, adjust, heads, accept_global or ())
    screen, notes = Screen("evaluate", json), Notes(json)
    found = side_by_side(
        trials,
        terms,
        bounds.base(trials),
        replicates=bootstrap,
        seed=seed,
        watch=Watch(progress_bar, notes),
    )
    if found is None:
        return
    verdicts = judge(gates, found)
    with last_step():
        outputs.write(found, verdicts, force=force)
    tell_github(found, verdicts)
    failed = failure(verdicts)
    screen.result(
        evaluate_result(found, verdicts, terms),
        [*notes.kept, *found.warnings, *unwritten()],
        lambda: show_evaluate(found, verdicts, terms),
        failed,
    )
    if failed is not None:
        raise typer.Exit(failed.exit_code)


def _terms(
    counts: str | None,
    said: Said,
    groups: str,
    adjust: AdjustOptions,
    heads: HeadChoice,
    accept: Sequence[str],
) -> Terms:
    """How the models are measured, from what was typed."""
    from rescale_cli.api import as_raw_counts
    from rescale_cli.evaluating.scoring import Terms
    from rescale_cli.patching.plan import CountsChoice

    adjustment = adjust.adjustment()
    if adjustment is not None and adjustment.needs_counts and counts is None:
        raise UsageError(
            "an adjustment needs the samples of each class in training", fix="--counts FILE"
        )
    # Only a factor cannot be had from no sample; a class without any is one of the few.
    zero = adjust.zero_count if adjustment is not None else options.ZeroPolicy.ONE
    raw = None
    if counts is not None:
        raw = CountsChoice(as_raw_counts(counts), said, zero.value, checked=True)
    return Terms(
        raw, said, group_sizes(groups), adjustment, heads, frozenset(accept),
        chosen_for(adjust.gamma or ""),
    )  # fmt: skip
