"""`apply`: the patched checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.help_page import method_option, output_option
from rescale_cli.commands.options import RecordCommand, RecordFile, recorded_command
from rescale_cli.commands.strength import (
    chosen_for,
    read_adjustment,
    read_counted,
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
        method_option(
            "-g",
            "--gamma",
            "--tau",
            metavar="FLOAT|@FILE",
            help="Strength, from 0 (changes nothing) to 4, without a unit; or @sweep.json for the "
            "strength that sweep-gamma chose.",
        ),
    ],
    output: Annotated[
        Path | None,
        output_option(
            "-o",
            "--output",
            metavar="OUT",
            help="File or folder to write.",
            show_default="NAME.rescaled.SUFFIX, beside MODEL",
        ),
    ] = None,
    method: options.MethodOption = None,
    normalize: options.NormalizeOption = None,
    bias: options.BiasOption = None,
    head: options.Heads = None,
    only: options.Only = False,
    plain_head: options.PlainHead = False,
    num_classes: options.NumClasses = None,
    classes: options.Classes = None,
    label_order: options.LabelOrder = None,
    order: options.Order = None,
    zero_count: Annotated[
        options.ZeroPolicy | None,
        method_option(
            "--zero-count",
            help=options.ZERO_COUNT,
            show_default="the choice of --gamma @FILE, else error",
        ),
    ] = None,
    max_factor: Annotated[
        float | None,
        method_option(
            "--max-factor",
            metavar="F",
            help="Largest factor by which a row may grow; at least 1.",
            show_default="no limit",
        ),
    ] = None,
    exclude_class: options.ExcludeClass = None,
    target_prior: options.TargetPrior = None,
    temperature: Annotated[
        float | None,
        method_option(
            "--temperature",
            metavar="T",
            help="Divide weight and bias by this temperature, above 0.",
            show_default="the temperature of --gamma @FILE, else 1",
        ),
    ] = None,
    compose: Annotated[
        bool,
        method_option("--compose", help="Re-scale a checkpoint that was re-scaled before."),
    ] = False,
    in_place: Annotated[
        bool,
        output_option("--in-place", help="Replace MODEL, and keep the original as MODEL.bak."),
    ] = False,
    force: options.Force = False,
    dry_run: Annotated[
        bool, output_option("--dry-run", help="Show the factors and write nothing.")
    ] = False,
    no_undo: Annotated[
        bool,
        output_option(
            "--no-undo",
            help="Leave out the data that revert needs. It then needs --against ORIGINAL.",
        ),
    ] = False,
    record: RecordFile = None,
    record_command: RecordCommand = False,
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Write a copy of a checkpoint with its head re-scaled.

    Row i of the head is multiplied by (n_1 / n_i)^gamma, where n_i is the number of training
    samples of class i and n_1 that of the largest class. All other bytes are proven to be equal.

    Examples:
        # Show the factors of gamma 0.2 without writing a file.
        rescale-cli apply model.safetensors --counts counts.json --gamma 0.2 --dry-run
        # Apply the strength that sweep-gamma chose.
        rescale-cli apply model.safetensors --counts counts.json --gamma @sweep.json
            -o patched.safetensors
    """
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
