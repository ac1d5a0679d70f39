"""`revert`: the original back, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale_cli import options
from rescale_cli.long_work import long_work
from rescale_cli.options.record_options import RecordFile
from rescale_cli.reports.screen import Screen
from rescale_cli.signals import last_step


def revert(
    patched: Annotated[
        Path,
        typer.Argument(
            metavar="PATCHED", help="The file or folder that apply wrote.", readable=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="OUT", help="Where the original goes.", readable=False
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="ORIGINAL",
            help="The original, if the record is missing or was written with --no-undo.",
            readable=False,
        ),
    ] = None,
    record: RecordFile = None,
    head: options.Heads = None,
    force: options.Force = False,
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Take the last re-scaling back: the file as it was before, bit for bit."""
    from rescale_cli.patching import restore
    from rescale_cli.reports import report, tables

    with last_step(), long_work(f"restoring {output.name}"):
        done = restore.revert(
            patched, output, against=against, record=record, heads=head or (), force=force,
            accept_global=accept_global or (),
        )  # fmt: skip
    result = report.revert_result(done)
    warnings = report.about_records(done.records, done.notes)
    Screen("revert", json).result(result, warnings, lambda: tables.show_revert(result))
