"""Reading and changing a tensor where it lies in its file, a block at a time, strides honoured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.floats import Bits, bits_dtype
from rescale_cli.core.tensor_info import ITEM_SIZES, TensorInfo
from rescale_cli.files.regular_file import read_at

T = TypeVar("T", bound=np.generic)

#: Bytes of file that one block spans, at most (more only if one slice alone spans more).
BLOCK_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """A slice of a tensor along the axis with the longest stride, and the bytes it spans."""

    info: TensorInfo
    axis: int
    lo: int
    hi: int
    start: int
    stop: int

    def of(self, span: bytearray | memoryview) -> Bits:
        """The elements as bit patterns: a view into the span's bytes, in the tensor's axes."""
        info, size = self.info, ITEM_SIZES[self.info.dtype]
        shape = [self.hi - self.lo if a == self.axis else n for a, n in enumerate(info.shape)]
        kind = bits_dtype(info.dtype, info.byteorder)
        strides = [stride * size for stride in info.strides]
        return np.ndarray(shape, kind, buffer=span, strides=strides)

    def along(self, axis: int) -> slice:
        """Which indices of `axis` the block holds."""
        return slice(self.lo, self.hi) if axis == self.axis else slice(None)

    def read(self, fd: int, shift: int = 0) -> Bits:
        """The elements, from a file in which the tensor lies `shift` bytes further on."""
        span = read_at(fd, self.start + shift, self.stop - self.start)
        return np.array(self.of(bytearray(span)))

    def flat(self, bits: NDArray[T]) -> NDArray[T]:
        """The elements in one row, in the order of their bytes in the file."""
        return bits.transpose(memory_order(self.info)).ravel()


def memory_order(info: TensorInfo) -> list[int]:
    """The axes from the longest stride to the shortest: the order of the bytes in the file."""
    return sorted(range(len(info.shape)), key=lambda axis: -info.strides[axis])


def blocks(info: TensorInfo) -> Iterator[Block]:
    """The whole tensor as blocks that follow one another in the file."""
    if not info.numel:
        return
    size = ITEM_SIZES[info.dtype]
    wide = [axis for axis in memory_order(info) if info.shape[axis] > 1] or [0]
    axis = wide[0]
    inner = sum((info.shape[a] - 1) * info.strides[a] for a in wide[1:])
    stride = max(info.strides[axis], 1)
    step = max(1, BLOCK_BYTES // (stride * size))
    for lo in range(0, info.shape[axis], step):
        hi = min(lo + step, info.shape[axis])
        start = info.start + lo * info.strides[axis] * size
        stop = start + ((hi - lo - 1) * info.strides[axis] + inner + 1) * size
        yield Block(info, axis, lo, hi, start, stop)


def overlaps_itself(info: TensorInfo) -> bool:
    """Whether two indices may be one element: a broadcast view, which cannot take rows apart."""
    reach = 1
    for axis in reversed(memory_order(info)):
        if info.shape[axis] > 1:
            if info.strides[axis] < reach:
                return True
            reach = info.strides[axis] * (info.shape[axis] - 1) + reach
    return False


def share_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors have at least one byte of one file in common."""
    if not one.numel or not other.numel:
        return False
    if one.file != other.file or one.stop <= other.start or other.stop <= one.start:
        return False
    if one.is_contiguous and other.is_contiguous:
        return True
    taken = np.zeros(one.stop - one.start, bool)
    _touch(taken, one, one.start)
    before = int(taken.sum())
    _touch(taken, other, one.start, clear=True)
    return int(taken.sum()) < before


def _touch(mask: NDArray[np.bool_], info: TensorInfo, base: int, *, clear: bool = False) -> None:
    """Mark (or clear) the bytes of a tensor in a mask that begins at byte `base` of the file."""
    if info.is_contiguous:
        mask[max(info.start - base, 0) : max(info.stop - base, 0)] = not clear
        return
    # Along a stride of 0 all elements are one, of which a small file may declare any number.
    axes = [axis for axis, stride in enumerate(info.strides) if stride]
    shape, strides = (tuple(of[axis] for axis in axes) for of in (info.shape, info.strides))
    distinct = replace(info, shape=shape or (1,), strides=strides or (1,))
    size = ITEM_SIZES[info.dtype]
    for block in blocks(distinct):
        spots = np.zeros(block.stop - block.start, bool)
        spots[:size] = True
        for axis, stride in enumerate(distinct.strides):
            count = block.hi - block.lo if axis == block.axis else distinct.shape[axis]
            _repeat(spots, count, stride * size)
        lo, hi = max(block.start, base), min(block.stop, base + len(mask))
        if lo < hi:
            part = mask[lo - base : hi - base]
            spots = spots[lo - block.start : hi - block.start]
            part[...] = part & ~spots if clear else part | spots


def _repeat(spots: NDArray[np.bool_], count: int, step: int) -> None:
    """Mark what is marked `count` times in all, each time `step` further on.

    By doubling, so that overlapping strides take no longer than the bytes that they span.
    """
    done = 1
    while done < count:
        more = min(done, count - done)
        spots[more * step :] |= spots[: -more * step].copy()
        done += more
