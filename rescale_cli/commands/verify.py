"""`verify`: proof that only the head changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.options import RecordFile
from rescale_cli.long_work import long_work


def verify(
    patched: Annotated[
        Path,
        typer.Argument(
            metavar="PATCHED", help="The file or folder that apply wrote.", readable=False
        ),
    ],
    against: Annotated[
        Path,
        typer.Option(
            "--against", metavar="ORIGINAL", help="What it was made from.", readable=False
        ),
    ],
    record: RecordFile = None,
    head: options.Heads = None,
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Prove that only the head changed, and that it changed as the record says.

    Without a record, the factor of each row is read off and shown.
    """
    from rescale_cli.commands import patch_report
    from rescale_cli.patching import proof

    with long_work(f"comparing {patched.name} with {against.name}"):
        found = proof.verify(
            patched, against, record=record, heads=head or (), accept_global=accept_global or ()
        )
    result = patch_report.verify_result(patched, against, found)
    warnings = patch_report.about_records(found.records, found.notes)
    Screen("verify", json).result(result, warnings, lambda: patch_report.show_verify(result, found))
