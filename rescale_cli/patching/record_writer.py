"""Make the record of one patched file, with what undoes the rounding, before the file is written.

A re-scaled row divided by its factor is the old row, except for a unit in the last place here and
there. Only these differences are stored: one small number per element, compressed.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rescale_cli
from rescale_cli.checkpoints.formats import safetensors_file
from rescale_cli.checkpoints.formats.safetensors_file import HeaderEdit, plan_edit, read_header
from rescale_cli.checkpoints.read_tensors import Block, blocks, memory_order
from rescale_cli.core.floats import Bits, ordered, unordered
from rescale_cli.errors import BadHead, BadInput, NotProven
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.hashing import NO_DIGEST
from rescale_cli.files.reading import opened, read_whole
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.json_text import parse_json
from rescale_cli.patching.plan import Plan, PlannedHead
from rescale_cli.patching.record import (
    MAX_INSIDE,
    MAX_SIDECAR,
    dump,
    flat,
    pack,
    pack_vectors,
    replaced,
    seal,
    sidecar_of,
    sidecar_text,
    states,
)
from rescale_cli.patching.rewrite import RowScaling

#: The difference of each two-bit code; the fourth code means that it is in a separate list.
_STEPS = np.array([0, 1, -1, 0], np.int8)
_FAR = 3


class UndoWriter:
    """Takes every block of every edit, in order, and packs what `Restoring` needs."""

    def __init__(self) -> None:
        # The codes are nearly random: looking for repetitions beyond runs costs and gains nothing.
        self._near = zlib.compressobj(6, zlib.DEFLATED, strategy=zlib.Z_RLE)
        self._parts: list[bytes] = []
        self._far: list[bytes] = []
        self._left = np.empty(0, np.uint8)

    def add(self, edit: RowScaling, block: Block, old: Bits, new: Bits) -> None:
        """Store how far the guess for one block is from the truth, in units in the last place."""
        with np.errstate(over="ignore"):
            step = block.flat(ordered(old) - ordered(edit.guess_before(new, block)))
        code = np.where(step == 0, 0, np.where(step == 1, 1, np.where(step == -1, 2, _FAR)))
        self._far.append(step[code == _FAR].astype("<i8").tobytes())
        codes = np.concatenate([self._left, code.astype(np.uint8)])
        whole = len(codes) // 4 * 4
        self._left = codes[whole:]
        self._parts.append(self._near.compress(_four_a_byte(codes[:whole])))

    def packed(self) -> bytes:
        """All of it, for the record or the file beside it."""
        rest = np.pad(self._left, (0, -len(self._left) % 4))
        near = b"".join([*self._parts, self._near.compress(_four_a_byte(rest)), self._near.flush()])
        return struct.pack("<Q", len(near)) + near + zlib.compress(b"".join(self._far), 6)


def _four_a_byte(codes: NDArray[np.uint8]) -> bytes:
    four = codes.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)
    return bytes(np.bitwise_or.reduce(four, axis=1).astype(np.uint8).tobytes())


@dataclass(frozen=True, slots=True)
class Restoring:
    """The edit that undoes a `RowScaling`."""

    edit: RowScaling
    codes: NDArray[np.uint8]
    """One per element, in the order of the file."""
    far: NDArray[np.int64]
    """The differences that have no code, in the same order."""

    @property
    def info(self) -> TensorInfo:
        """The tensor in the patched file."""
        return self.edit.info

    def rewrite(self, bits: Bits, block: Block) -> Bits:
        """The bit patterns before the re-scaling."""
        guess = ordered(self.edit.guess_before(bits, block))
        others = self.info.numel // self.info.shape[block.axis]
        part = slice(block.lo * others, block.hi * others)
        step = _STEPS[self.codes[part]].astype(np.int64)
        first = int((self.codes[: part.start] == _FAR).sum())
        far = self.codes[part] == _FAR
        step[far] = self.far[first : first + int(far.sum())]
        order = memory_order(self.info)
        with np.errstate(over="ignore"):
            guess.transpose(order)[...] += step.reshape([guess.shape[axis] for axis in order])
        return unordered(guess, self.info.dtype)


def restorings(packed: bytes, edits: Sequence[RowScaling]) -> list[Restoring]:
    """Unpack what `UndoWriter` packed for the same edits.

    Raises:
        NotProven: the bytes are damaged, or belong to another head.
    """
    total = sum(edit.info.numel for edit in edits)
    try:
        (size,) = struct.unpack_from("<Q", packed)
        near = np.frombuffer(_inflate(packed[8 : 8 + size], -(-total // 4)), np.uint8)
        far = np.frombuffer(_inflate(packed[8 + size :], 8 * total), "<i8")
        codes = ((near[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3).ravel()[:total]
        if len(codes) != total or int((codes == _FAR).sum()) != len(far):
            raise ValueError("too few differences")
    except (struct.error, zlib.error, ValueError) as error:
        raise NotProven(
            "the undo part of the record is damaged",
            saw=str(error),
            fix="give the original: --against ORIGINAL",
        ) from None
    found = []
    for edit in edits:
        mine, codes = np.split(codes, [edit.info.numel])
        here, far = np.split(far, [int((mine == _FAR).sum())])
        found.append(Restoring(edit, mine, here))
    return found


def _inflate(data: bytes, limit: int) -> bytes:
    """Decompress to at most `limit` bytes."""
    stream = zlib.decompressobj()
    out = stream.decompress(data, limit + 1)
    if len(out) > limit or not stream.eof:
        raise ValueError("more differences than elements, or too few")
    return out


#: Where the counts came from, for the record, without the name of a file.
_KINDS = {"stdin": "stdin", "the counts given": "a program"}


@dataclass(frozen=True, slots=True)
class RecordWriter:
    """A complete record, except for the digest of the source, which is known last."""

    base: Mapping[str, Any]
    bytes_changed: int
    undo_beside: bytes | None
    """The undo part, if it is too large for the record."""
    history: Sequence[Mapping[str, Any]] = ()
    """The records of earlier re-scalings, which `revert` restores."""
    old_header: bytes = b""
    edit: HeaderEdit | None = None
    """How to insert the record into a safetensors header; None if it goes beside the file."""

    @classmethod
    def of(cls, plan: Plan, source: Path, undo: bool, command: str = "") -> RecordWriter:
        """Compute what the plan does to `source`.

        Raises:
            BadHead: a value too large for the dtype of the head.
        """
        edits = plan.edits_of(source)
        packed, head_sha256, changed = _survey(edits, undo)
        base = _facts(plan, source, edits, command) | {"head_sha256": head_sha256}
        text = base64.b64encode(packed).decode() if packed is not None else None
        beside = packed if text is not None and len(text) > MAX_INSIDE else None
        if beside is not None:
            base["undo_file"] = hashlib.sha256(beside).hexdigest()
        else:
            base["undo"] = text
        header = read_header(source)[0] if safetensors_file.matches(source) else b""
        edit = plan_edit(header) if header else None
        if edit is None:
            earlier = [state for r in plan.records if r.file == source for state in flat(r.fields)]
            return cls(base, changed, beside, earlier)
        place = {"at": edit.at, "size": edit.size, "spaces": edit.spaces}
        base["header"] = {**place, "replaced": pack(edit.replaced)}
        return cls(base, changed, beside, (), header, edit)

    @property
    def inside(self) -> bool:
        """Whether the record goes into the file itself."""
        return self.edit is not None

    def fields(self, source_digest: str) -> dict[str, Any]:
        """The record as a JSON object."""
        fields = {**self.base, "source_digest": source_digest}
        fields["record_sha256"] = seal(fields)
        return fields | ({"history": list(self.history)} if self.history else {})

    def sidecar(self, source_digest: str, replaced: Sequence[Mapping[str, Any]] = ()) -> bytes:
        """The record as a separate file.

        Args:
            source_digest: the digest of the source.
            replaced: the records of a file that is about to be replaced.
        """
        more = {"replaced": list(replaced)} if replaced else {}
        return sidecar_text(self.fields(source_digest) | more)

    def header(self, source_digest: str) -> tuple[bytes, bytes]:
        """The first bytes of the file, up to the data: without the record, and with it.

        The length does not depend on the digest.

        Raises:
            BadHead: the header would be larger than the format allows.
        """
        assert self.edit is not None
        new = self.edit.insert(self.old_header, dump(self.fields(source_digest)))
        if len(new) > safetensors_file.MAX_HEADER:
            raise BadHead(
                "the header has no room for the record",
                saw=f"{len(new):,} bytes, at most {safetensors_file.MAX_HEADER:,}",
                fix="leave out what revert needs: --no-undo",
            )
        return _framed(self.old_header), _framed(new)


def _framed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def _survey(edits: Sequence[RowScaling], undo: bool) -> tuple[bytes | None, str, int]:
    """Compute every block: the undo part, the SHA-256 of the new head, the bytes that differ."""
    writer, state, changed = UndoWriter(), hashlib.sha256(), 0
    for edit in edits:
        with opened(edit.info.file) as fd:
            for block in blocks(edit.info):
                old = block.read(fd)
                new = edit.rewrite(old, block)
                was, is_ = block.flat(old), block.flat(new.astype(old.dtype))
                changed += int((was.view(np.uint8) != is_.view(np.uint8)).sum())
                state.update(is_.tobytes())
                if undo:
                    writer.add(edit, block, old, new)
    return writer.packed() if undo else None, state.hexdigest(), changed


def _facts(plan: Plan, source: Path, edits: Sequence[RowScaling], command: str) -> dict[str, Any]:
    """What was decided, for a reader and for `verify`.

    Two equal edits have equal facts, whoever makes them, wherever and whenever.
    """
    adjustment, counts = plan.adjustment, plan.counts
    return {
        "tool": "rescale-cli",
        "version": rescale_cli.__version__,
        **({"command": command} if command else {}),
        "method": adjustment.method,
        "gamma": adjustment.strength,
        "normalize": adjustment.normalize,
        "bias_policy": adjustment.bias_policy,
        "max_factor": adjustment.max_factor,
        "temperature": adjustment.temperature,
        "counts": counts.values.tolist(),
        "counts_source": _KINDS.get(counts.source, "a file or data set"),
        "skipped": list(counts.skipped),
        "target_prior": None if counts.target is None else counts.target.tolist(),
        "head": [describe(head) for head in plan.heads],
        "edits": [
            {
                "tensor": edit.info.name,
                "axis": edit.axis,
                "vectors": pack_vectors(edit.factor, edit.shift),
            }
            for edit in edits
        ],
        "source_digest": NO_DIGEST,
    }


def describe(head: PlannedHead) -> dict[str, Any]:
    """The head as in the JSON result."""
    return describe_keys(head.keys, head.edits[0].info.dtype)


def describe_keys(keys: HeadKeys, dtype: str) -> dict[str, Any]:
    """The same for a head without a plan."""
    return {
        "weight": keys.weight,
        "bias": keys.bias,
        "num_classes": keys.num_classes,
        "feature_dim": keys.feature_dim,
        "dtype": dtype,
        "layout": keys.layout,
    }


def records_beside(file: Path) -> list[dict[str, Any]]:
    """The records of a file that is about to be replaced.

    Until the new file is renamed, the record beside it must describe the old one, too.
    """
    beside = sidecar_of(file)
    if not beside.is_file():
        return []
    try:
        old = parse_json(read_whole(beside, MAX_SIDECAR), beside.name)
    except BadInput:  # not a record of this tool
        return []
    return [next(states(old)), *replaced(old)] if isinstance(old, dict) else []
