"""`verify`: proof that only the head changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.help_page import input_option
from rescale_cli.commands.options import RecordFile
from rescale_cli.long_work import long_work


def verify(
    patched: options.Patched,
    against: Annotated[
        Path,
        input_option(
            "--against", metavar="ORIGINAL", help="Checkpoint that PATCHED was made from."
        ),
    ],
    record: RecordFile = None,
    head: options.Heads = None,
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Prove that only the head changed, and that it changed as the record says.

    Without a record, the factor of each row is computed from the two files and shown.

    Examples:
        # Compare a re-scaled model with its original, byte by byte.
        rescale-cli verify model.rescaled.safetensors --against model.safetensors
        # Print the result as JSON, with the factor of each row.
        rescale-cli verify model.rescaled.safetensors --against model.safetensors --json
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
