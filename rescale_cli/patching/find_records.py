"""Find the records of a checkpoint: inside its files, beside them, or under another name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.checkpoints.formats import safetensors_file
from rescale_cli.errors import NotProven, RescaleError, UsageError
from rescale_cli.files.reading import read_whole
from rescale_cli.json_text import clip, parse_json
from rescale_cli.patching.record import (
    KEPT,
    MAX_SIDECAR,
    Fields,
    Record,
    damaged,
    digest,
    may_be_edited,
    replaced,
    sidecar_of,
    states,
)

#: The most records under other names that are read in a folder.
_MOST_STRAYS = 256


def find_records(
    checkpoint: Checkpoint, given: Path | None = None
) -> tuple[list[Record], list[str]]:
    """The records of the files of a checkpoint, at most one per file, and warnings about them.

    A record beside a file counts only if it describes the head bit for bit. A file without such a
    record may have been renamed, so its head is compared with the other records in its folder.

    Args:
        checkpoint: opened.
        given: a record that is elsewhere.

    Raises:
        NotProven: a record is damaged, or the given one describes another head.
        UsageError: a record is given for a file that contains its own.
    """
    found, odd = [], []
    for file in checkpoint.contents.files:
        own = _own_text(file)
        if own is not None:
            if given is not None:
                saw = f"--record {given}"
                raise UsageError(
                    f"{file.name} contains its record", saw=saw, fix="leave out --record"
                )
            fields = _parsed(own.encode("utf-8", "surrogatepass"), file.name)
            found.append(Record(file, fields))
            if _Head(file, checkpoint).described_by(fields) is None:
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
    """The record of a file that does not contain one, and a warning about it."""
    sidecar, note, head = sidecar_of(file), "", _Head(file, checkpoint)
    if given is not None:
        fields = head.described_by(_parsed(_read(given), given.name))
        return (Record(file, fields, given) if fields else None), note
    if sidecar.is_file():
        fields = head.described_by(_parsed(_read(sidecar), sidecar.name))
        if fields is not None:
            return Record(file, fields, sidecar), note
        note = f"{sidecar.name} describes another head than that of {file.name}"
    for stray, fields in _strays(head):
        return Record(file, fields, stray, stray=True), note or (
            f"{stray.name} describes the head of {file.name}, so it is taken as its record"
        )
    return None, note


def _strays(head: _Head) -> Iterator[tuple[Path, Fields]]:
    """Records under other names, in the folder of a file, that describe its head.

    A record that changed nothing also describes the head of the original, and does not count.
    """
    own = sidecar_of(head.file)
    for stray in islice(sorted(own.parent.glob("*.rescale.json")), _MOST_STRAYS):
        if stray == own or not stray.is_file():
            continue
        try:
            fields = head.described_by(_parsed(_read(stray), stray.name))
            if fields is not None and head.is_changed_by(fields):
                yield stray, fields
        except (RescaleError, OSError):  # it belongs to another file, and nobody asked for it
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


class _Head:
    """The tensors of one file, to compare records with; each hash is computed once."""

    def __init__(self, file: Path, checkpoint: Checkpoint) -> None:
        self.file, self._checkpoint = file, checkpoint
        self._known = {t.name: t for t in checkpoint.contents.tensors if t.file == file}
        self._hashes: dict[tuple[str, ...], str] = {}

    def described_by(self, fields: Fields) -> Fields | None:
        """The state in a record, the last or an earlier one, whose head equals this one."""
        for record in (fields, *replaced(fields)):
            for state in islice(states(record), KEPT + 1):
                if self._is_of(state):
                    return state
        return None

    def _is_of(self, fields: Mapping[str, Any]) -> bool:
        entries = fields.get("edits")
        entries = entries if isinstance(entries, list) else []
        names = tuple(str(entry.get("tensor")) for entry in entries if isinstance(entry, dict))
        if not names or len(set(names)) != len(names):
            return False
        known = self._known
        if not all(name in known and may_be_edited(known[name]) for name in names):
            return False
        if names not in self._hashes:
            self._hashes[names] = digest([known[name] for name in names])
        return self._hashes[names] == fields.get("head_sha256")

    def is_changed_by(self, fields: Fields) -> bool:
        """Whether the record says that any row was scaled or shifted."""
        return Record(self.file, fields).changes(self._checkpoint)


def was_rescaled(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has the record of a re-scaling, even a damaged one."""
    try:
        return bool(find_records(checkpoint)[0])
    except NotProven:
        return True
