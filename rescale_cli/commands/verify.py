"""`verify`: prove that only the head changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen, say
from rescale_cli.commands.help_page import input_option
from rescale_cli.commands.options import RecordFile
from rescale_cli.commands.tables import Grid, ends, listed
from rescale_cli.long_work import long_work

if TYPE_CHECKING:
    from rescale_cli.patching.proof import Proof
    from rescale_cli.patching.record import Record


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
    from rescale_cli.patching import proof

    with long_work(f"comparing {patched.name} with {against.name}"):
        found = proof.verify(
            patched, against, record=record, heads=head or (), accept_global=accept_global or ()
        )
    result = verify_result(patched, against, found)
    warnings = about_records(found.records, found.notes)
    Screen("verify", json).result(result, warnings, lambda: show_verify(result, found))


def verify_result(patched: Path, original: Path, proof: Proof) -> dict[str, Any]:
    """The JSON of `verify`."""
    fields = proof.records[0].fields if proof.records else {}
    return {
        "proven": True,
        "patched": str(patched),
        "original": str(original),
        "bytes_compared": proof.bytes_compared,
        "sha256": dict(proof.sha256),
        "source_sha256": proof.source_sha256,
        "head": list(proof.heads),
        "record": place_of(proof.records),
        "factors": proof.factors.tolist(),
        "shifts": proof.shifts.tolist(),
        "left_behind": [str(entry) for entry in proof.left_behind],
        "method": fields.get("method"),
        "gamma": fields.get("gamma"),
        "normalize": fields.get("normalize"),
        "bias_policy": fields.get("bias_policy"),
    }


def about_records(records: Sequence[Record], notes: Sequence[str]) -> list[tuple[str, str]]:
    """Warnings about where a record was found, or that there is none."""
    found = [("record", text) for text in notes]
    if not records:
        text = "no record was found, so the intended counts and strength are unknown"
        found.append(("no-record", text))
    return found


def place_of(records: Sequence[Record]) -> str | None:
    """The file that holds the record of the first patched file."""
    return str(records[0].sidecar or records[0].file) if records else None


def show_verify(result: Mapping[str, Any], proof: Proof) -> None:
    """`verify` for a person."""
    heads = ", ".join(entry["weight"] for entry in result["head"])
    pair = f"proven: {result['patched']} is {result['original']}"
    if result["record"] is not None:
        how = f"with {heads} changed by {result['method']}, strength {result['gamma']},"
        say(f"{pair} {how} and nothing else")
    else:
        say(f"{pair} with the head {heads} changed as follows, and nothing else")
        say(_read_off_table(proof))
    if proof.left_behind:
        say(f"not copied, because it belongs to the original model: {listed(proof.left_behind)}")
    say(f"{result['bytes_compared']:,} bytes compared")


def _read_off_table(proof: Proof) -> Grid:
    moved = bool(proof.shifts.any())
    grid = Grid(["row>", "factor>", *(["bias shift>"] if moved else [])])
    for row in ends(len(proof.factors)):
        if row is None:
            grid.add("…")
            continue
        shift = [f"{proof.shifts[row]:+.6g}"] if moved else []
        grid.add(str(row), f"{proof.factors[row]:.6g}", *shift)
    return grid
