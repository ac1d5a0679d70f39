"""What changes in a file: a few tensors, each index of one axis by its own factor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rescale_cli.checkpoints.tensor_bytes import Block, blocks
from rescale_cli.core.floats import Bits, Float64, decode, encode
from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.errors import BadHead
from rescale_cli.files.regular_file import read_at
from rescale_cli.json_text import clip


class Edit(Protocol):
    """One tensor that changes, block by block."""

    @property
    def info(self) -> TensorInfo:
        """The tensor."""

    def rewrite(self, bits: Bits, block: Block) -> Bits:
        """The new bit patterns of a block, from the old ones."""


@dataclass(frozen=True, slots=True)
class RowScaling:
    """x <- factor * x + shift along one axis, in float64, rounded once to the tensor's dtype."""

    info: TensorInfo
    axis: int
    """The axis of the classes."""
    factor: Float64
    """(C,)"""
    shift: Float64
    """(C,)"""
    labels: tuple[str, ...] = ()
    """What to call class i in an error; may be empty."""

    def rewrite(self, bits: Bits, block: Block) -> Bits:
        """The scaled block. Factor 1 and shift 0 keep every bit; factor 0 forgets the value.

        Raises:
            BadHead: a result that is not finite in the tensor's dtype, naming the class.
        """
        factor, shift = self._spread(self.factor, block), self._spread(self.shift, block)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.where(factor == 0, 0.0, factor * decode(bits, self.info.dtype))
            values = np.where(shift == 0, scaled, scaled + shift)
        after = encode(values, self.info.dtype)
        self._refuse_overflow(values, after, block)
        return after

    def guess_before(self, bits: Bits, block: Block) -> Bits:
        """About what a scaled block was before; the rest is what rounding took."""
        factor, shift = self._spread(self.factor, block), self._spread(self.shift, block)
        with np.errstate(over="ignore", invalid="ignore"):
            values = (decode(bits, self.info.dtype) - shift) / np.where(factor == 0, 1.0, factor)
            known = (factor != 0) & np.isfinite(values)
        return encode(np.where(known, values, 0.0), self.info.dtype)

    def _spread(self, vector: Float64, block: Block) -> Float64:
        shape = [1] * len(self.info.shape)
        shape[self.axis] = -1
        return vector[block.along(self.axis)].reshape(shape)

    def _refuse_overflow(self, values: Float64, rounded: Bits, block: Block) -> None:
        finite = np.isfinite(decode(rounded, self.info.dtype))
        if finite.all():
            return
        spot = tuple(np.argwhere(~finite)[0])
        row = int(spot[self.axis]) + (block.lo if block.axis == self.axis else 0)
        label = f" ({clip(self.labels[row], 60)})" if row < len(self.labels) else ""
        raise BadHead(
            f"class {row}{label} of {self.info.name} does not fit into {self.info.dtype}",
            saw=f"{values[spot]:.6g} after a factor of {self.factor[row]:.6g}",
            fix="use a smaller --gamma, or --max-factor, or a checkpoint in a wider dtype",
        )


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of a file that is rewritten: the blocks in it, and the bytes they span."""

    start: int
    stop: int
    parts: tuple[tuple[Edit, Block], ...]

    def rewritten(self, source: int) -> bytearray:
        """The bytes that the stretch is to hold, from those of the source (a descriptor)."""
        span = bytearray(read_at(source, self.start, self.stop - self.start))
        for edit, block in self.parts:
            bits = block.of(memoryview(span)[block.start - self.start :])
            bits[...] = edit.rewrite(np.array(bits), block)
        return span


def regions(edits: Iterable[Edit]) -> list[Region]:
    """The stretches of one file that the edits touch, in order, none overlapping another.

    Blocks whose spans run into one another (a bias stored as a column of its weight) share one.
    """
    parts = sorted(
        ((edit, block) for edit in edits for block in blocks(edit.info)),
        key=lambda part: (part[1].start, part[1].stop),
    )
    merged: list[Region] = []
    for edit, block in parts:
        if merged and block.start < merged[-1].stop:
            last = merged.pop()
            stop = max(last.stop, block.stop)
            merged.append(Region(last.start, stop, (*last.parts, (edit, block))))
        else:
            merged.append(Region(block.start, block.stop, ((edit, block),)))
    return merged
