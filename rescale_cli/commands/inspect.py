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
    """Say what a checkpoint is, which layer is its head and why, and how long its rows are."""
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
