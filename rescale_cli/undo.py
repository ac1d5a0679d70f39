"""What rounding took: the way back from a re-scaled head, bit for bit, smaller than a copy.

Dividing a re-scaled row by its factor gives the old row but for a unit in the last place here and
there. Only these differences are kept, one small number an element, compressed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescale_cli.errors import NotProven
from rescale_cli.floats import Bits, bits_dtype, ordered, unordered
from rescale_cli.rewrite import RowScaling
from rescale_cli.tensor_bytes import Block
from rescale_cli.tensor_info import TensorInfo

#: In place of a difference that does not fit into a byte; the difference is in a list of its own.
_ESCAPE = -128


class UndoWriter:
    """Takes every block of every edit, in order, and packs what `Restoring` needs."""

    def __init__(self) -> None:
        self._steps = zlib.compressobj(9)
        self._parts: list[bytes] = []
        self._far: list[bytes] = []

    def add(self, edit: RowScaling, block: Block, old: Bits, new: Bits) -> None:
        """Note how far the guess for one block is from the truth, in units of the last place."""
        with np.errstate(over="ignore"):
            step = ordered(old) - ordered(edit.guess_before(new, block))
        step = block.flat(step)
        small = (step > _ESCAPE) & (step < 128)
        self._far.append(step[~small].astype("<i8").tobytes())
        self._parts.append(self._steps.compress(np.where(small, step, _ESCAPE).astype("i1").tobytes()))

    def packed(self) -> bytes:
        """The whole, to be kept in or beside the record."""
        near = b"".join([*self._parts, self._steps.flush()])
        return struct.pack("<Q", len(near)) + near + zlib.compress(b"".join(self._far), 9)


@dataclass(frozen=True, slots=True)
class Restoring:
    """The edit that takes a `RowScaling` back."""

    edit: RowScaling
    steps: NDArray[np.int64]
    """One difference an element, in the order of the file."""

    @property
    def info(self) -> TensorInfo:
        """The tensor, where it lies in the patched file."""
        return self.edit.info

    def rewrite(self, bits: Bits, block: Block) -> Bits:
        """The bit patterns that stood there before the re-scaling."""
        guess = self.edit.guess_before(bits, block)
        others = block.info.numel // block.info.shape[block.axis]
        part = self.steps[block.lo * others : block.hi * others]
        with np.errstate(over="ignore"):
            truth = block.flat(ordered(guess)) + part
        kind = bits_dtype(block.info.dtype)
        out = np.empty(guess.shape, kind)
        order = out.transpose(np.argsort(-np.array(block.info.strides), kind="stable"))
        order[...] = unordered(truth, block.info.dtype).reshape(order.shape)
        return out


def restorings(packed: bytes, edits: Sequence[RowScaling]) -> list[Restoring]:
    """Unpack what `UndoWriter` packed for the same edits.

    Raises:
        NotProven: the bytes are damaged, or of another head.
    """
    total = sum(edit.info.numel for edit in edits)
    try:
        (size,) = struct.unpack_from("<Q", packed)
        near = np.frombuffer(_inflate(packed[8 : 8 + size], total), "i1").astype(np.int64)
        far = np.frombuffer(_inflate(packed[8 + size :], 8 * total), "<i8")
        if len(near) != total or (near == _ESCAPE).sum() != len(far):
            raise ValueError("too few differences")
    except (struct.error, zlib.error, ValueError) as error:
        raise NotProven(
            "what the record keeps for revert is damaged",
            saw=str(error),
            fix="give the original: --against ORIGINAL",
        ) from None
    near[near == _ESCAPE] = far
    ends = np.cumsum([edit.info.numel for edit in edits])[:-1]
    return [Restoring(e, s) for e, s in zip(edits, np.split(near, ends), strict=True)]


def _inflate(data: bytes, limit: int) -> bytes:
    """Decompress to at most `limit` bytes."""
    stream = zlib.decompressobj()
    out = stream.decompress(data, limit + 1)
    if len(out) > limit or not stream.eof:
        raise ValueError("more differences than elements, or too few")
    return out
