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

from rescale_cli.checkpoints.tensor_bytes import Block, memory_order
from rescale_cli.core.floats import Bits, ordered, unordered
from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.errors import NotProven
from rescale_cli.patching.rewrite import RowScaling

#: The difference of each two-bit code; the fourth code stands for a number in a list of its own.
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
        """Note how far the guess for one block is from the truth, in units of the last place."""
        with np.errstate(over="ignore"):
            step = block.flat(ordered(old) - ordered(edit.guess_before(new, block)))
        code = np.where(step == 0, 0, np.where(step == 1, 1, np.where(step == -1, 2, _FAR)))
        self._far.append(step[code == _FAR].astype("<i8").tobytes())
        codes = np.concatenate([self._left, code.astype(np.uint8)])
        whole = len(codes) // 4 * 4
        self._left = codes[whole:]
        self._parts.append(self._near.compress(_four_a_byte(codes[:whole])))

    def packed(self) -> bytes:
        """The whole, to be kept in or beside the record."""
        rest = np.pad(self._left, (0, -len(self._left) % 4))
        near = b"".join([*self._parts, self._near.compress(_four_a_byte(rest)), self._near.flush()])
        return struct.pack("<Q", len(near)) + near + zlib.compress(b"".join(self._far), 6)


def _four_a_byte(codes: NDArray[np.uint8]) -> bytes:
    four = codes.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)
    return bytes(np.bitwise_or.reduce(four, axis=1).astype(np.uint8).tobytes())


@dataclass(frozen=True, slots=True)
class Restoring:
    """The edit that takes a `RowScaling` back."""

    edit: RowScaling
    codes: NDArray[np.uint8]
    """One an element, in the order of the file."""
    far: NDArray[np.int64]
    """The differences that have no code, in the same order."""

    @property
    def info(self) -> TensorInfo:
        """The tensor, where it lies in the patched file."""
        return self.edit.info

    def rewrite(self, bits: Bits, block: Block) -> Bits:
        """The bit patterns that stood there before the re-scaling."""
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
        NotProven: the bytes are damaged, or of another head.
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
            "what the record keeps for revert is damaged",
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
