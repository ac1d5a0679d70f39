"""The records of a checkpoint: in its files, beside them, or under another name in their folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.errors import NotProven, RescaleError, UsageError
from rescale_cli.files.regular_file import read_whole
from rescale_cli.formats import safetensors_file
from rescale_cli.json_text import clip, parse_json
from rescale_cli.patching.history import Fields, replaced, states
from rescale_cli.patching.record import (
    MAX_SIDECAR,
    Record,
    damaged,
    digest,
    may_be_edited,
    sidecar_of,
)

#: Records under other names in a folder of which so many are looked at.
_MOST_STRAYS = 256


def find_records(
    checkpoint: Checkpoint, given: Path | None = None
) -> tuple[list[Record], list[str]]:
    """The records of a checkpoint's files, at most one for each file, and what is odd about them.

    A record beside a file counts only if the head is, bit for bit, the one that it describes. A
    file without such a record may have been renamed: then the records of other files in its folder
    are compared with its head.

    Args:
        checkpoint: opened.
        given: a record that lies elsewhere.

    Raises:
        NotProven: a damaged record, or a given one that describes another head.
        UsageError: a record is given for a file that carries its own.
    """
    found, odd = [], []
    for file in checkpoint.contents.files:
        own = _own_text(file)
        if own is not None:
            if given is not None:
                saw = f"--record {given}"
                raise UsageError(f"{file.name} carries its record", saw=saw, fix="omit --record")
            fields = _parsed(own.encode("utf-8", "surrogatepass"), file.name)
            found.append(Record(file, fields))
            if _described(fields, file, checkpoint) is None:
                odd.append(f"the head of {file.name} was changed after it was re-scaled")
            continue
        record, note = _outside(file, checkpoint, given)
        found += [record] if record is not None else []
        odd += [note] if note else []
    if given is not None and not found:
        raise NotProven(
            f"{given.name} is not the record of {checkpoint.path.name}",
            saw="it describes another head",
            fix="give the OUT.rescale.json that apply wrote with this file: --record FILE",
        )
    return found, odd


def _outside(file: Path, checkpoint: Checkpoint, given: Path | None) -> tuple[Record | None, str]:
    """The record of a file that does not carry one, and what is odd about it."""
    sidecar, note = sidecar_of(file), ""
    if given is not None:
        fields = _described(_parsed(_read(given), given.name), file, checkpoint)
        return (Record(file, fields, given) if fields else None), note
    if sidecar.is_file():
        fields = _described(_parsed(_read(sidecar), sidecar.name), file, checkpoint)
        if fields is not None:
            return Record(file, fields, sidecar), note
        note = f"{sidecar.name} describes another head than that of {file.name}"
    for stray, fields in _strays(file, checkpoint):
        return Record(file, fields, stray, stray=True), note or (
            f"{file.name} has the head that {stray.name} describes, so that is its record"
        )
    return None, note


def _strays(file: Path, checkpoint: Checkpoint) -> Iterator[tuple[Path, Fields]]:
    """Records under other names in the folder of a file that describe its head.

    A record that changed nothing describes the head of the original, too, and does not count.
    """
    own = sidecar_of(file)
    for stray in islice(sorted(file.parent.glob("*.rescale.json")), _MOST_STRAYS):
        if stray == own or not stray.is_file():
            continue
        try:
            fields = _described(_parsed(_read(stray), stray.name), file, checkpoint)
            if fields is not None and Record(file, fields).changes(checkpoint):
                yield stray, fields
        except (RescaleError, OSError):  # it belongs to another file, and is not asked for
            continue


def _own_text(file: Path) -> str | None:
    """The record in the metadata of a file."""
    if not safetensors_file.matches(file):
        return None
    return safetensors_file.list_tensors(file).metadata.get(safetensors_file.RECORD_KEY)


def _read(sidecar: Path) -> bytes:
    return read_whole(sidecar, MAX_SIDECAR, NotProven).decode("utf-8", "replace").encode()


def _parsed(data: bytes, name: str) -> Fields:
    fields = parse_json(data, f"the record {name}", NotProven)
    if not isinstance(fields, dict):
        raise damaged(clip(repr(fields)))
    return fields


def _described(fields: Fields, file: Path, checkpoint: Checkpoint) -> Fields | None:
    """The state of a record, this or an earlier one, that describes the head in the file."""
    for record in (fields, *replaced(fields)):
        for state in states(record):
            if _describes(state, file, checkpoint):
                return state
    return None


def _describes(fields: Mapping[str, Any], file: Path, checkpoint: Checkpoint) -> bool:
    """Whether the head in the file is, bit for bit, the one after the recorded re-scaling."""
    known = {info.name: info for info in checkpoint.contents.tensors if info.file == file}
    entries = fields.get("edits")
    entries = entries if isinstance(entries, list) else []
    names = [str(entry.get("tensor")) for entry in entries if isinstance(entry, dict)]
    if not names or len(set(names)) != len(names):
        return False
    if not all(name in known and may_be_edited(known[name]) for name in names):
        return False
    return digest([known[name] for name in names]) == fields.get("head_sha256")
