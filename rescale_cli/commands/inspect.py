"""`inspect`: what a checkpoint is, which head it has, and why."""

from __future__ import annotations

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.options import RecordFile


def inspect(
    model: options.Model,
    counts: options.OptionalCounts = None,
    num_classes: options.NumClasses = None,
    head: options.Heads = None,
    only: options.Only = False,
    plain_head: options.PlainHead = False,
    classes: options.Classes = None,
    label_order: options.LabelOrder = None,
    order: options.Order = None,
    record: RecordFile = None,
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Show the format of a checkpoint, its head and why, and the norms of the head's rows.

    With --counts, it also shows how the norms follow the class counts. No code in the checkpoint is
    run.

    Examples:
        # Find the head, and compare its norms with the class counts.
        rescale-cli inspect model.safetensors --counts counts.json
        # Print all norms and the class names as JSON.
        rescale-cli inspect model.safetensors --json
    """
    from rescale_cli import api
    from rescale_cli.commands import patch_report

    found = api.inspect(
        model,
        counts,
        num_classes=num_classes,
        heads=head or (),
        only=only,
        plain_head=plain_head,
        classes=classes,
        label_order=label_order,
        order=order,
        record=record,
        accept_global=accept_global or (),
    )
    result = patch_report.inspect_result(found)
    Screen("inspect", json).result(result, found.warnings, lambda: patch_report.show_inspect(found))
