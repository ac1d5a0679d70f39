"""`revert`: undo a re-scaling, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen, Whole, say
from rescale_cli.commands.help_page import input_option, output_option
from rescale_cli.commands.options import RecordFile
from rescale_cli.commands.verify import about_records, place_of
from rescale_cli.long_work import long_work
from rescale_cli.signals import last_step

if TYPE_CHECKING:
    from rescale_cli.patching.revert import Reverted


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
    from rescale_cli.patching import revert

    with last_step(), long_work(f"restoring {output.name}"):
        done = revert.revert(
            patched, output, against=against, record=record, heads=head or (), force=force,
            accept_global=accept_global or (),
        )  # fmt: skip
    result = revert_result(done)
    warnings = about_records(done.records, done.notes)
    Screen("revert", json).result(result, warnings, lambda: show_revert(result))


def revert_result(reverted: Reverted) -> dict[str, Any]:
    """The JSON of `revert`."""
    first = reverted.records[0].fields if reverted.records else {}
    return {
        "output": str(reverted.output),
        "sha256": next(iter(reverted.sha256.values())),
        "files": {str(file): sha for file, sha in reverted.sha256.items()},
        "method": first.get("method"),
        "gamma": first.get("gamma"),
        "source": first.get("source"),
        "record": place_of(reverted.records),
    }


def show_revert(result: Mapping[str, Any]) -> None:
    """`revert` for a person."""
    done = f"{result['method']}, strength {result['gamma']}, taken back"
    say(f"{'taken back' if result['record'] is None else done}, bit for bit")
    for file, sha256 in result["files"].items():
        say(Whole(f"wrote {file}"), f"sha256 {sha256}")
