"""`apply`: the patched checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.options import (
    RecordCommand,
    RecordFile,
    chosen_for,
    read_adjustment,
    read_counted,
    recorded_command,
    verdict_warnings,
)
from rescale_cli.errors import UsageError
from rescale_cli.files.staging import refuse_input
from rescale_cli.long_work import long_work
from rescale_cli.signals import last_step


def apply(
    model: options.Model,
    counts: options.Counts,
    gamma: Annotated[
        str,
        typer.Option(
            "-g",
            "--gamma",
            "--tau",
            metavar="FLOAT|@FILE",
            help="Strength, 0 to 4; 0 changes nothing. @sweep.json: what the sweep chose.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="Default: <stem>.rescaled<suffix>.",
            readable=False,
        ),
    ] = None,
    method: Annotated[
        options.MethodName | None,
        typer.Option("--method", help="Which post-hoc method. Default: rescale, or the sweep's."),
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("-n", "--normalize", help="Rows to equal length first.")
    ] = None,
    bias: Annotated[
        options.BiasPolicy | None,
        typer.Option("--bias", help="What becomes of the bias. Default: keep; drop with -n."),
    ] = None,
    head: options.Heads = None,
    only: options.Only = False,
    plain_head: options.PlainHead = False,
    num_classes: options.NumClasses = None,
    classes: options.Classes = None,
    label_order: options.LabelOrder = None,
    order: options.Order = None,
    zero_count: Annotated[
        options.ZeroPolicy | None,
        typer.Option(
            "--zero-count",
            help="How to count a class without samples: as an error, as one sample, or leave its "
            "row alone. Default: error, or the sweep's.",
        ),
    ] = None,
    max_factor: Annotated[
        float | None, typer.Option("--max-factor", metavar="F", help="No row grows by more.")
    ] = None,
    exclude_class: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude-class", metavar="NAME", help="Leave this row alone; never n_1. Repeatable."
        ),
    ] = None,
    target_prior: Annotated[
        str | None,
        typer.Option(
            "--target-prior", metavar="FILE", help="Shares of the classes where the model is used."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", metavar="T", help="Divide weight and bias by T."),
    ] = None,
    compose: Annotated[
        bool, typer.Option("--compose", help="Re-scale what was re-scaled before.")
    ] = False,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the file; the old one becomes <file>.bak.")
    ] = False,
    force: options.Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the factors and write nothing.")
    ] = False,
    no_undo: Annotated[
        bool, typer.Option("--no-undo", help="Leave out what revert needs.")
    ] = False,
    record: RecordFile = None,
    record_command: RecordCommand = False,
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Write the checkpoint with its head adjusted; every other byte is proven equal."""
    from rescale_cli.checkpoints.checkpoint import open_checkpoint
    from rescale_cli.checkpoints.read_tensors import HeadChoice
    from rescale_cli.commands import patch_report
    from rescale_cli.commands.github import append_outputs, unwritten
    from rescale_cli.data.labels import row_hints
    from rescale_cli.data.spec import paths_of
    from rescale_cli.patching.patch import Applied, Target, apply_plan, default_output
    from rescale_cli.patching.plan import CountsChoice, make_plan

    if in_place and output is not None:
        both = "--in-place and --output exclude each other"
        raise UsageError(both, saw=f"--output {output}", fix="leave one of them out")
    if gamma.startswith("@") and output is not None:
        refuse_input(output, [Path(gamma[1:])])
    adjustment = read_adjustment(gamma, method, normalize, bias, max_factor, temperature)
    unproven, swept = verdict_warnings(gamma), chosen_for(gamma)
    counted = read_counted(gamma, exclude_class or (), target_prior, zero_count)
    heads, accept = HeadChoice(tuple(head or ()), only, plain_head), frozenset(accept_global or ())
    with last_step(), long_work(f"patching {model.name}"):
        hints = row_hints(classes, label_order, order or counted.order)
        choice = CountsChoice.read(
            counts, hints, zero=counted.zero_count.value, exclude=counted.exclude_class,
            target_prior=counted.target_prior,
        )  # fmt: skip
        checkpoint = open_checkpoint(model, accept)
        if swept is not None:
            swept.refuse_other_model(checkpoint, heads, num_classes, accept)
        plan = make_plan(
            checkpoint, choice, adjustment, heads=heads, num_classes=num_classes, compose=compose,
            record=record,
        )  # fmt: skip
        if swept is not None:
            swept.refuse_other_counts(plan.counts)
        read = paths_of(counts, classes, label_order, counted.target_prior, record)
        target = Target(
            output or default_output(checkpoint.path), force, in_place, not no_undo,
            recorded_command(record_command), read,
        )  # fmt: skip
        applied = Applied(plan, None if dry_run else apply_plan(plan, target))
    result = patch_report.apply_result(applied)
    if applied.patched is not None:
        append_outputs({name: result[name] for name in ("output", "sha256", "gamma")})
    beside = patch_report.stale_beside(applied)
    warnings = [*applied.plan.warnings, *unproven, *beside, *unwritten()]
    Screen("apply", json).result(result, warnings, lambda: patch_report.show_apply(applied))
