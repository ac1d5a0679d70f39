"""`verify`: proof that only the head changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale_cli import options
from rescale_cli.long_work import long_work
from rescale_cli.reports.screen import Screen


def verify(
    patched: Annotated[
        Path,
        typer.Argument(
            metavar="PATCHED", help="What apply wrote, its record beside it.", readable=False
        ),
    ],
    against: Annotated[
        Path,
        typer.Option(
            "--against", metavar="ORIGINAL", help="What it was made from.", readable=False
        ),
    ],
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Prove that only the head changed, and that it changed as the record says."""
    from rescale_cli.patching import proof
    from rescale_cli.reports import report, tables

    with long_work(f"comparing {patched.name} with {against.name}"):
        found = proof.verify(patched, against, accept_global=accept_global or ())
    result = report.verify_result(patched, against, found)
    Screen("verify", json).result(result, [], lambda: tables.show_verify(result))
