"""`revert`: the original back, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.help_page import input_option, output_option
from rescale_cli.commands.options import RecordFile
from rescale_cli.long_work import long_work
from rescale_cli.signals import last_step


def revert(
    patched: options.Patched,
    output: Annotated[
        Path,
        output_option(
            "-o", "--output", metavar="OUT", help="File or folder to write the original to."
        ),
    ],
    against: Annotated[
        Path | None,
        input_option(
            "--against",
            metavar="ORIGINAL",
            help="Original checkpoint, needed if the record is missing or was written with "
            "--no-undo.",
            show_default="not needed",
        ),
    ] = None,
    record: RecordFile = None,
    head: options.Heads = None,
    force: options.Force = False,
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Undo the last re-scaling: write the checkpoint as it was before, bit for bit.

    The result is checked against the SHA-256 of the original before it is put in place.

    Examples:
        # Restore the original model.
        rescale-cli revert model.rescaled.safetensors -o original.safetensors
        # The same, with the files and hashes as JSON.
        rescale-cli revert model.rescaled.safetensors -o restored.safetensors --json
    """
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
