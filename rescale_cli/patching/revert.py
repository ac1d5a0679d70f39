"""Undo a re-scaling: restore the original, bit for bit, from the record."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from os import PathLike
from pathlib import Path
from typing import Any

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.checkpoints.formats.safetensors_file import read_header
from rescale_cli.data.labels import Names, names_of
from rescale_cli.errors import BadInput, NotProven
from rescale_cli.files.folders import copy_file, copy_folder, refuse_other_tree
from rescale_cli.files.reading import read_whole
from rescale_cli.files.staging import (
    Staging,
    refuse_existing,
    refuse_input,
    system_errors,
    write_new,
)
from rescale_cli.patching.find_records import find_records
from rescale_cli.patching.patch import files_beside, refuse_source
from rescale_cli.patching.patched_file import (
    Written,
    digest_like,
    sha256_of,
    write_changed,
)
from rescale_cli.patching.proof import header_edit, partners, refuse_leftover, verify_open
from rescale_cli.patching.record import (
    Record,
    before,
    damaged,
    sidecar_of,
    sidecar_text,
    undo_file_of,
)
from rescale_cli.patching.record_writer import Restoring, restorings

_MAX_UNDO = 8 << 30


@dataclass(frozen=True, slots=True)
class Reverted:
    """What was written."""

    output: Path
    sha256: dict[Path, str]
    """Final path of each restored file -> its SHA-256, which is that of the original."""
    records: tuple[Record, ...]
    """Empty if no record says what was undone."""
    notes: tuple[str, ...] = ()
    """Warnings about the records."""


def revert(
    patched: str | PathLike[str],
    output: str | PathLike[str],
    *,
    against: str | PathLike[str] | None = None,
    record: str | PathLike[str] | None = None,
    heads: Names = (),
    force: bool = False,
    accept_global: Names = (),
) -> Reverted:
    """Write the checkpoint as it was before the last re-scaling.

    Args:
        patched: a file or folder that `apply` wrote.
        output: where to write the original.
        against: the original itself, if the record is missing or has no undo part. It is copied
            only after a proof that nothing but the head differs.
        record: the record, if it is not beside the patched file.
        heads: names of the heads; see `proof.verify`.
        force: whether an existing output may be replaced.
        accept_global: full names of pickle globals to accept; they are never run.

    Raises:
        NotProven: the record is damaged, or the restored file is not the original.
        BadInput: the record or its undo part is missing, and `against` is not given.
        OutputExists: the output exists, or is the patched file itself.
    """
    patched, output, accept = Path(patched), Path(output), frozenset(names_of(accept_global))
    given = None if record is None else Path(record)
    checkpoint = open_checkpoint(patched, accept)
    original: Checkpoint | None = None
    if against is not None:
        original = open_checkpoint(Path(against), accept)
        proof = verify_open(checkpoint, original, given, names_of(heads))
        records, odd = proof.records, proof.notes
    else:
        found, notes = find_records(checkpoint, given)
        records, odd = tuple(found), tuple(notes)
    if original is None and not records:
        refuse_leftover(checkpoint)
        raise NotProven(
            f"{patched.name} has no record, so it cannot be reverted without the original",
            saw=f"no {sidecar_of(patched).name} beside it, and no record in its metadata",
            fix="give the original (--against ORIGINAL), or the record (--record FILE)",
        )
    backs = _backs(checkpoint, records, original)
    with system_errors(f"writing {output}"):
        _refuse_inputs(checkpoint, records, original, output)
        refuse_existing(output, replace=force, folder=checkpoint.path.is_dir())
        hashes = _write(checkpoint, backs, original, output, force)
    return Reverted(output, hashes, records, odd)


def _refuse_inputs(
    checkpoint: Checkpoint, records: Sequence[Record], original: Checkpoint | None, output: Path
) -> None:
    """Stop if the output, or a file beside it, is an input under any name."""
    refuse_source(checkpoint.path, checkpoint.contents.files, output)
    if original is not None:
        refuse_source(original.path, original.contents.files, output)
    read = [name for file in checkpoint.contents.files for name in files_beside(file)]
    read += [record.sidecar for record in records if record.sidecar is not None]
    for written in (output, *files_beside(output)):
        refuse_input(written, read)


def _write(
    checkpoint: Checkpoint, backs: list[_Back], original: Checkpoint | None, output: Path,
    force: bool,
) -> dict[Path, str]:  # fmt: skip
    """Write every file as it was, all or none; their final paths and SHA-256."""

    def refuse_changed() -> None:
        for read in (checkpoint, original):
            if read is not None:
                read.refuse_changed()

    with Staging(output.parent, replace=force) as staging:
        if checkpoint.path.is_dir():
            refuse_other_tree(checkpoint.path, output)
            aside = staging.aside(output)
            skip = [name for back in backs for name in (back.file, *files_beside(back.file))]
            copy_folder(checkpoint.path, aside, skip)
            places = [aside / back.file.name for back in backs]
            sidecars = [sidecar_of(place) for place in places]
            finals = [output / back.file.name for back in backs]
        else:
            beside = sidecar_of(output)
            sidecars = [staging.aside(beside) if backs[0].earlier else beside]
            staging.outdate(beside, undo_file_of(output))
            places, finals = [staging.aside(output)], [output]
        hashes = map(_restore, repeat(checkpoint), backs, places, sidecars)
        written = dict(zip(finals, hashes, strict=True))
        staging.commit(refuse_changed)
    return written


@dataclass(frozen=True, slots=True)
class _Back:
    """One file to restore."""

    file: Path
    record: Record | None
    original: Path | None
    """The original file, if it is given."""
    earlier: dict[str, Any] | None
    """The record that belongs beside the restored file."""


def _backs(
    checkpoint: Checkpoint, records: Sequence[Record], original: Checkpoint | None
) -> list[_Back]:
    """The files to restore: those with a record; without any record, all of them."""
    twins = {} if original is None else partners(checkpoint, original)
    if records or original is None:
        return [_Back(r.file, r, twins.get(r.file.name), _earlier(r)) for r in records]
    beside = {r.file: dict(r.fields) for r in find_records(original)[0] if not r.inside}
    files = checkpoint.contents.files
    return [_Back(f, None, twins[f.name], beside.get(twins[f.name])) for f in files]


def _earlier(record: Record) -> dict[str, Any] | None:
    """The previous record; one inside a header is restored with the header."""
    return None if record.inside else before(record.fields)


def _restore(checkpoint: Checkpoint, back: _Back, aside: Path, sidecar: Path) -> str:
    """Write one file as it was, and the record that was beside it; its SHA-256."""
    wanted = "" if back.record is None else back.record.source_digest
    if back.record is not None and back.original is None:
        sha256 = _undone(checkpoint, back.record, aside).sha256
    else:
        copy_file(back.original or back.file, aside)
        sha256 = sha256_of(aside)
    if wanted and (found := digest_like(wanted, aside, sha256)) != wanted:
        raise NotProven(
            f"the file restored from {back.file.name} is not the original",
            saw=f"its digest is {found}, not {wanted}",
            fix="the patched file was changed since; give the original: --against ORIGINAL",
        )
    if back.earlier is not None:
        write_new(sidecar, sidecar_text(back.earlier), like=back.file)
    return sha256


def _undone(checkpoint: Checkpoint, record: Record, aside: Path) -> Written:
    edits = [edit for edit in record.edits(checkpoint) if edit.info.file == record.file]
    undo: Sequence[Restoring] = restorings(_undo_part(record), edits)
    checks = [check for check in checkpoint.contents.checksums if check.file == record.file]
    if not record.inside:
        return write_changed(record.file, aside, undo, checks, hash_source=False)
    new, _ = read_header(record.file)
    old = header_edit(record).remove(new)
    framed = tuple(len(text).to_bytes(8, "little") + text for text in (new, old))
    header = framed[0], framed[1]
    return write_changed(record.file, aside, undo, checks, lambda _: header, hash_source=False)


def _undo_part(record: Record) -> bytes:
    """What `UndoWriter` packed, from the record or from the file beside it.

    Raises:
        BadInput: it was left out, or the file beside it is missing or has changed.
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
            "the record was written with --no-undo, so it alone cannot restore the head",
            saw=f"the record of {record.file.name} has no undo part",
            fix=needs,
        )
    saw = ""
    for path in dict.fromkeys([undo_file_of(record.file), _undo_file_beside(record)]):
        data = read_whole(path, _MAX_UNDO, NotProven) if path.exists() else b""
        if hashlib.sha256(data).hexdigest() == beside:
            return data
        word = "has changed since it was written" if data else "is missing"
        saw = saw or (f"{len(data):,} bytes in {path}" if data else f"nothing in {path}")
    raise BadInput(f"{path.name}, which restores the head, {word}", saw=saw, fix=needs)


def _undo_file_beside(record: Record) -> Path:
    """The path of the undo part of a record that is not named after its file."""
    name = record.sidecar.name if record.sidecar is not None else ""
    if record.sidecar is None or not name.endswith(".json"):
        return undo_file_of(record.file)
    return record.sidecar.with_name(name.removesuffix(".json") + ".undo")
