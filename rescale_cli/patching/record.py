"""The record of a re-scaling: what was done to which file, its history, and how to undo it.

Each entry of the history is the complete record of an earlier state. `revert` restores the state
before the last re-scaling together with its record, so that it can be reverted in turn.

A safetensors file that has metadata contains its record in `__metadata__["rescale_cli"]`; the
record of any other file is `FILE.rescale.json` beside it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.checkpoints.formats import safetensors_file
from rescale_cli.checkpoints.read_tensors import blocks, overlaps_itself
from rescale_cli.core.floats import HEAD_DTYPES, Float64
from rescale_cli.errors import BadInput, NotProven
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.hashing import PLAIN, TREE
from rescale_cli.files.reading import opened
from rescale_cli.json_text import clip, parse_json
from rescale_cli.patching.rewrite import RowScaling

#: The number of earlier re-scalings in a record: `revert` can be repeated as often.
KEPT = 8
#: Keys that describe other states of the file; older records nested them as "previous".
_OTHERS = ("history", "previous", "replaced")

Fields = dict[str, Any]


def states(fields: Mapping[str, Any]) -> Iterator[Fields]:
    """The record, then those of the states before it, each as a record of its own.

    An entry that is not a JSON object ends the list; whoever uses a record checks its fields.
    """
    state: Fields | None = dict(fields)
    while state is not None:
        state.pop("replaced", None)
        yield state
        state = before(state)


def before(fields: Mapping[str, Any]) -> Fields | None:
    """The record of the state before a re-scaling; None if no earlier one is known.

    Example:
        >>> before({"gamma": 3, "history": [{"gamma": 2}, {"gamma": 1}]})
        {'gamma': 2, 'history': [{'gamma': 1}]}
        >>> before({"gamma": 1})
    """
    match fields:
        case {"history": [dict(last), *rest]}:
            return {**last, "history": rest} if rest else dict(last)
        case {"previous": dict(nested)}:
            return dict(nested)
    return None


def flat(fields: Mapping[str, Any]) -> list[Fields]:
    """The record and those before it, at most `KEPT`, none of which contains another.

    A nested record gets a new seal if its own was right.
    """
    found = []
    for state, _ in zip(states(fields), range(KEPT), strict=False):
        bare = {k: v for k, v in state.items() if k not in (*_OTHERS, "record_sha256")}
        sealed = state.get("record_sha256")
        found.append(bare | {"record_sha256": seal(bare) if sealed == seal(state) else sealed})
    return found


def replaced(fields: Mapping[str, Any]) -> list[Fields]:
    """The records of files that an unfinished run was about to replace."""
    entry = fields.get("replaced")
    return [e for e in (entry if isinstance(entry, list) else [entry]) if isinstance(e, dict)]


def seal(fields: Mapping[str, Any]) -> str:
    """The SHA-256 of a record, without this hash and without the records of other states."""
    free = ("record_sha256", "replaced", "history")
    return hashlib.sha256(
        json.dumps({key: value for key, value in fields.items() if key not in free}).encode()
    ).hexdigest()


#: Up to this size the undo part is inside the record; a larger one is a file beside the output.
MAX_INSIDE = 1 << 20
MAX_SIDECAR = 256 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """A parsed record; `fields` is its JSON object, unchanged."""

    file: Path
    """The patched file that it describes."""
    fields: Mapping[str, Any]
    sidecar: Path | None = None
    """The file that contains it, if not the patched file itself."""
    stray: bool = False
    """Whether it is named after another file, and was found by the hash of the head."""

    @property
    def inside(self) -> bool:
        """Whether it is in the header of its file; then it also says how it was inserted."""
        return "header" in self.fields

    @property
    def source_digest(self) -> str:
        """The digest of the source: "sha256:" or "sha256-tree-16MiB:", and 64 hex digits.

        Raises:
            NotProven: the record has no such digest.
        """
        new = "source_digest" in self.fields
        text = self._text("source_digest") if new else PLAIN + self._text("source_sha256")
        if not re.fullmatch(f"({TREE}|{PLAIN})[0-9a-f]{{64}}", text):
            raise damaged(f"the digest of the source is {clip(text)}")
        return text

    def edits(self, checkpoint: Checkpoint) -> list[RowScaling]:
        """The recorded changes of the tensors of its file.

        Args:
            checkpoint: the original or the patched one; the edits have its offsets.

        Raises:
            NotProven: the record names tensors that are not there, or its numbers are damaged.
        """
        known = {info.name: info for info in checkpoint.contents.tensors}
        found = []
        for entry in self._entries("edits"):
            info = known.get(str(entry.get("tensor")))
            axis = entry.get("axis")
            if info is None or not isinstance(axis, int) or axis not in range(len(info.shape)):
                raise damaged(
                    f"there is no tensor {clip(str(entry.get('tensor')))} with such an axis"
                )
            if not may_be_edited(info):
                raise damaged(
                    f"{clip(info.name)} is {info.dtype} {info.shape}, so not part of a head"
                )
            size = info.shape[axis]
            factor, shift = unpack_vectors(entry.get("vectors"), size)
            found.append(RowScaling(info, axis, factor, shift))
        return found

    def changes(self, checkpoint: Checkpoint) -> bool:
        """Whether it records that any row was scaled or shifted; see `edits` for the errors."""
        edits = self.edits(checkpoint)
        return any((edit.factor != 1).any() or edit.shift.any() for edit in edits)

    def past(self) -> Iterator[Fields]:
        """The records of all re-scalings that led to the file, the last one first."""
        last: Fields = {}
        for last in states(self.fields):
            yield last
        header = last.get("header")
        for _ in range(KEPT):  # a record in a header contains the one that it replaced
            try:
                text = unpack(header["replaced"], safetensors_file.MAX_HEADER) if header else b""
                inner = parse_json(parse_json(text, "a record", NotProven).encode(), "a record")
                header = inner["header"]
            except (BadInput, LookupError, TypeError, AttributeError):
                return
            yield inner

    def _entries(self, key: str) -> list[dict[str, Any]]:
        entries = self.fields.get(key)
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise damaged(f"it has no list of {key}")
        return entries

    def _text(self, key: str) -> str:
        """A field that must be a text."""
        value = self.fields.get(key)
        if not isinstance(value, str):
            raise damaged(f"it has no text {key}")
        return value


def damaged(saw: str) -> NotProven:
    """The error for a record that cannot be used."""
    fix = "patch the original again: rescale-cli apply ORIGINAL"
    return NotProven("the record is damaged", saw=saw, fix=fix)


def sidecar_of(file: Path) -> Path:
    """The path of the record of a file that does not contain it."""
    return file.with_name(file.name + ".rescale.json")


def undo_file_of(file: Path) -> Path:
    """The path of the undo part if it is too large for the record."""
    return file.with_name(file.name + ".rescale.undo")


def may_be_edited(info: TensorInfo) -> bool:
    """Whether a re-scaling can have changed the tensor; a foreign record may name any."""
    return info.dtype in HEAD_DTYPES and not overlaps_itself(info)


def digest(tensors: Sequence[TensorInfo]) -> str:
    """The SHA-256 of the tensors' bytes, one after another, in the order of the file."""
    state = hashlib.sha256()
    for info in tensors:
        with opened(info.file) as fd:
            for block in blocks(info):
                state.update(block.flat(block.read(fd)).tobytes())
    return state.hexdigest()


def pack(data: bytes) -> str:
    """Bytes as compressed base64 text."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def unpack(text: object, limit: int) -> bytes:
    """What `pack` packed, at most `limit` bytes.

    Raises:
        NotProven: not such a text, or longer.
    """
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(str(text), validate=True), limit + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise damaged(str(error)) from None
    if len(data) > limit or not stream.eof:
        raise damaged("a compressed part of it is too long")
    return data


def pack_vectors(factor: Float64, shift: Float64) -> str:
    """Two vectors (C,) of float64, exactly, as text."""
    return pack(np.concatenate([factor, shift]).astype("<f8").tobytes())


def unpack_vectors(text: object, size: int) -> tuple[Float64, Float64]:
    """The two vectors (size,) that `pack_vectors` packed."""
    data = unpack(text, 16 * size)
    if len(data) != 16 * size:
        raise damaged("it has factors for another number of classes")
    both = np.frombuffer(data, "<f8").astype(np.float64)
    if not np.isfinite(both).all():
        raise damaged("it has a factor that is not finite")
    return both[:size], both[size:]


def dump(fields: Mapping[str, Any]) -> str:
    """The record as compact JSON."""
    return json.dumps(fields, separators=(",", ":"), allow_nan=False)


def sidecar_text(fields: Mapping[str, Any]) -> bytes:
    """The record as a file of its own."""
    return (json.dumps(fields, indent=2) + "\n").encode()
