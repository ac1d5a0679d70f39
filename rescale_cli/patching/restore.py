"""Take a re-scaling back: the original, bit for bit, from the record."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.errors import BadInput, NotProven
from rescale_cli.files.output_folder import copy_file, copy_folder, refuse_other_tree
from rescale_cli.files.regular_file import read_whole
from rescale_cli.files.staging import Staging, refuse_existing, system_errors, write_new
from rescale_cli.files.text_file import refuse_input
from rescale_cli.formats.safetensors_file import read_header
from rescale_cli.patching.patch import files_beside, refuse_source
from rescale_cli.patching.patched_file import Written, write_changed
from rescale_cli.patching.proof import header_edit, verify
from rescale_cli.patching.record import Record, damaged, find_records, sidecar_of, undo_file_of
from rescale_cli.patching.source_digest import (
    found_digest,
    hash_file,
    is_tree,
    recorded_digest,
)
from rescale_cli.patching.undo import Restoring, restorings

_MAX_UNDO = 8 << 30


@dataclass(frozen=True, slots=True)
class Reverted:
    """What was written."""

    output: Path
    sha256: dict[Path, str]
    """Restored file, at its final place -> its SHA-256, which is the original's."""
    records: tuple[Record, ...]


def revert(
    patched: str | PathLike[str],
    output: str | PathLike[str],
    *,
    against: str | PathLike[str] | None = None,
    force: bool = False,
    accept_global: Sequence[str] = (),
) -> Reverted:
    """Write the checkpoint as it was before the last re-scaling.

    Args:
        patched: a file or folder that `apply` wrote.
        output: where the original goes.
        against: the original itself, where the record was written without its undo part.
        force: whether something of the output's name may be replaced.
        accept_global: full names of pickle globals that are let pass.

    Raises:
        NotProven: no record; a damaged one; or what comes out is not the original.
        BadInput: the record has no undo part, and `against` is not given.
        OutputExists: the output is there, or is the patched file itself.
    """
    patched, output = Path(patched), Path(output)
    original = None if against is None else Path(against)
    checkpoint = open_checkpoint(patched, frozenset(accept_global))
    records, _ = find_records(checkpoint)
    if not records:
        raise NotProven(
            f"{patched.name} carries no record of a re-scaling, so there is nothing to take back",
            saw=f"no {sidecar_of(patched).name} beside it, none in its metadata",
            fix="name a file that rescale-cli apply wrote, with the record beside it",
        )
    if original is not None:
        verify(patched, original, accept_global=accept_global)
    with system_errors(f"writing {output}"):
        refuse_source(checkpoint.path, checkpoint.contents.files, output)
        if original is not None:
            refuse_source(original, (), output)
        refuse_input(
            output, [name for file in checkpoint.contents.files for name in files_beside(file)]
        )
        refuse_existing(output, replace=force, folder=checkpoint.path.is_dir())
        with Staging(output.parent, replace=force) as staging:
            if checkpoint.path.is_dir():
                refuse_other_tree(checkpoint.path, output)
                aside = staging.aside(output)
                ours = [r.file for r in records]
                skip = [name for file in ours for name in (file, *files_beside(file))]
                copy_folder(checkpoint.path, aside, skip)
                pairs = [(r, aside / r.file.name, sidecar_of(aside / r.file.name)) for r in records]
            else:
                earlier = isinstance(records[0].fields.get("previous"), dict)
                beside_aside = staging.aside(sidecar_of(output)) if earlier else sidecar_of(output)
                staging.outdate(sidecar_of(output), undo_file_of(output))
                pairs = [(records[0], staging.aside(output), beside_aside)]
            hashes = [_restore(checkpoint, *pair, original).sha256 for pair in pairs]
            staging.commit(checkpoint.refuse_changed)
    root = output if checkpoint.path.is_dir() else None
    finals = [root / record.file.name if root else output for record in records]
    return Reverted(output, dict(zip(finals, hashes, strict=True)), tuple(records))


def _restore(
    checkpoint: Checkpoint, record: Record, aside: Path, sidecar: Path, against: Path | None
) -> Written:
    """Write one file as it was, and the record that was beside it before."""
    wanted = recorded_digest(record)
    if against is not None:
        original = against / record.file.name if against.is_dir() else against
        copy_file(original, aside)
        written = hash_file(aside, wanted)
    else:
        written = _undone(checkpoint, record, aside, "target" if is_tree(wanted) else "neither")
    if found_digest(written) != wanted:
        raise NotProven(
            f"what comes out of {record.file.name} is not the original",
            saw=f"its digest is {found_digest(written)}, not {wanted}",
            fix="the patched file was changed since; use the original: --against ORIGINAL",
        )
    previous = record.fields.get("previous")
    if isinstance(previous, dict):
        write_new(sidecar, (json.dumps(previous, indent=2) + "\n").encode(), like=record.file)
    return written


def _undone(
    checkpoint: Checkpoint, record: Record, aside: Path, digest_of: Literal["target", "neither"]
) -> Written:
    edits = [edit for edit in record.edits(checkpoint) if edit.info.file == record.file]
    undo: Sequence[Restoring] = restorings(_undo_part(record), edits)
    checks = [check for check in checkpoint.contents.checksums if check.file == record.file]
    if not record.inside:
        return write_changed(record.file, aside, undo, checks, digest_of=digest_of)
    new, _ = read_header(record.file)
    old = header_edit(record).remove(new)
    framed = tuple(len(text).to_bytes(8, "little") + text for text in (new, old))
    header = framed[0], framed[1]
    return write_changed(record.file, aside, undo, checks, lambda _: header, digest_of)


def _undo_part(record: Record) -> bytes:
    """What `UndoWriter` packed, from the record or from the file beside it.

    Raises:
        BadInput: it was left out, or the file beside is missing or another.
    """
    text, beside = record.fields.get("undo"), record.fields.get("undo_file")
    needs = "give the original: --against ORIGINAL"
    if isinstance(text, str):
        try:
            return base64.b64decode(text, validate=True)
        except ValueError as error:
            raise damaged(str(error)) from None
    if not isinstance(beside, str):
        raise BadInput(
            "the record was written with --no-undo, so it cannot restore the head alone",
            saw=f"the record of {record.file.name} has no undo part",
            fix=needs,
        )
    path = undo_file_of(record.file)
    data = read_whole(path, _MAX_UNDO, NotProven) if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != beside:
        word = "is not the one that was written" if data else "is missing"
        saw = f"{len(data):,} bytes in {path}" if data else f"nothing in {path}"
        raise BadInput(f"{path.name}, which restores the head, {word}", saw=saw, fix=needs)
    return data
