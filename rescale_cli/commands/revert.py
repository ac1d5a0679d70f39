"""`revert`: the original back, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.options import RecordFile
from rescale_cli.long_work import long_work
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
    from rescale_cli.commands import patch_report
    from rescale_cli.patching import revert

    with last_step(), long_work(f"restoring {output.name}"):
        done = revert.revert(
            patched, output, against=against, record=record, heads=head or (), force=force,
            accept_global=accept_global or (),
        )  # fmt: skip
    result = patch_report.revert_result(done)
    warnings = patch_report.about_records(done.records, done.notes)
    Screen("revert", json).result(result, warnings, lambda: patch_report.show_revert(result))
