"""`apply`: the patched checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from rescale_cli.checkpoints.checkpoint import Checkpoint


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
    from rescale_cli import api
    from rescale_cli.checkpoints.checkpoint import open_checkpoint
    from rescale_cli.checkpoints.read_tensors import HeadChoice
    from rescale_cli.commands import patch_report
    from rescale_cli.commands.github import append_outputs, unwritten

    if in_place and output is not None:
        both = "--in-place and --output exclude each other"
        raise UsageError(both, saw=f"--output {output}", fix="leave one of them out")
    if gamma.startswith("@") and output is not None:
        refuse_input(output, [Path(gamma[1:])])
    what = read_adjustment(gamma, method, normalize, bias, max_factor, temperature)
    unproven, swept = verdict_warnings(gamma), chosen_for(gamma)
    counted = read_counted(gamma, exclude_class or (), target_prior, zero_count)
    source: Path | Checkpoint = model
    if swept is not None:
        source = open_checkpoint(model, frozenset(accept_global or ()))
        named = HeadChoice(tuple(head or ()), only, plain_head)
        swept.refuse_other_model(source, named, num_classes, frozenset(accept_global or ()))
    with last_step(), long_work(f"patching {model.name}"):
        applied = api.apply(
            source,
            counts,
            what.strength,
            output=output,
            method=what.method,
            normalize=what.normalize,
            bias=what.bias,
            heads=head or (),
            only=only,
            plain_head=plain_head,
            num_classes=num_classes,
            classes=classes,
            label_order=label_order,
            order=order or counted.order,
            zero_count=counted.zero_count.value,
            max_factor=what.max_factor,
            exclude_class=counted.exclude_class,
            target_prior=counted.target_prior,
            temperature=what.temperature,
            compose=compose,
            in_place=in_place,
            force=force,
            dry_run=dry_run,
            undo=not no_undo,
            record=record,
            accept_global=accept_global or (),
            command=recorded_command(record_command),
            chosen_for=swept,
        )
    result = patch_report.apply_result(applied)
    if applied.patched is not None:
        append_outputs({name: result[name] for name in ("output", "sha256", "gamma")})
    beside = patch_report.stale_beside(applied)
    warnings = [*applied.plan.warnings, *unproven, *beside, *unwritten()]
    Screen("apply", json).result(result, warnings, lambda: patch_report.show_apply(applied))
