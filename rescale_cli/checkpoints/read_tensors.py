"""Read tensors from their file block by block, and check and measure the head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.checkpoints.partial_models import refuse_adapted_head
from rescale_cli.core.floats import HEAD_DTYPES, ITEM_SIZES, Bits, Float64, bits_dtype, to_float64
from rescale_cli.core.head import Head
from rescale_cli.errors import BadHead
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.reading import opened, opened_once, read_at
from rescale_cli.finding.find_head import HeadKeys

T = TypeVar("T", bound=np.generic)

#: The maximum size of a block in the file, in bytes, unless a single slice is larger.
BLOCK_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """A slice of a tensor along the axis with the longest stride, and its bytes in the file."""

    info: TensorInfo
    axis: int
    lo: int
    hi: int
    start: int
    stop: int

    def of(self, span: bytearray | memoryview) -> Bits:
        """Return the elements as bit patterns: a view of the bytes, with the tensor's axes."""
        info, size = self.info, ITEM_SIZES[self.info.dtype]
        shape = [self.hi - self.lo if a == self.axis else n for a, n in enumerate(info.shape)]
        kind = bits_dtype(info.dtype, info.byteorder)
        strides = [stride * size for stride in info.strides]
        return np.ndarray(shape, kind, buffer=span, strides=strides)

    def along(self, axis: int) -> slice:
        """Return the indices of the block along `axis`."""
        return slice(self.lo, self.hi) if axis == self.axis else slice(None)

    def read(self, fd: int, shift: int = 0) -> Bits:
        """Read the elements from a file in which the tensor starts `shift` bytes later."""
        span = read_at(fd, self.start + shift, self.stop - self.start)
        return np.array(self.of(bytearray(span)))

    def flat(self, bits: NDArray[T]) -> NDArray[T]:
        """Flatten the elements in the order of their bytes in the file."""
        return bits.transpose(memory_order(self.info)).ravel()


def memory_order(info: TensorInfo) -> list[int]:
    """Return the axes from the longest stride to the shortest, their order in the file."""
    return sorted(range(len(info.shape)), key=lambda axis: -info.strides[axis])


def blocks(info: TensorInfo) -> Iterator[Block]:
    """Split a tensor into blocks, in the order of the file."""
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
    """Whether two indices may be the same element, as in a broadcast view."""
    reach = 1
    for axis in reversed(memory_order(info)):
        if info.shape[axis] > 1:
            if info.strides[axis] < reach:
                return True
            reach = info.strides[axis] * (info.shape[axis] - 1) + reach
    return False


def share_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors share at least one byte of a file."""
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
    """Set or clear the bytes of a tensor in a mask that begins at byte `base` of the file."""
    if info.is_contiguous:
        mask[max(info.start - base, 0) : max(info.stop - base, 0)] = not clear
        return
    # With a stride of 0, a small file may declare any number of elements that are all the same.
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
    """Repeat the marks `count` times in total, each time `step` bytes later.

    Doubling makes the time depend on the size of the mask, however much the strides overlap.
    """
    done = 1
    while done < count:
        more = min(done, count - done)
        spots[more * step :] |= spots[: -more * step].copy()
        done += more


def class_axis(keys: HeadKeys) -> int:
    """Return the axis of the weight along which the classes lie."""
    return 1 if keys.layout == "transposed" else 0


def read_head(checkpoint: Checkpoint, keys: HeadKeys) -> Head:
    """Read the row norms, bias and gauge of a head, with the memory of one block.

    Raises:
        BadHead: the dtype is not a float of 16 bits or more, a value is NaN or infinite, or two
            elements share bytes.
    """
    weight = checkpoint.tensor(keys.weight)
    refuse_adapted_head(keys.weight, checkpoint.contents.tensors)
    # Checked first, because a broadcast view may declare more rows than fit in memory.
    _refuse_broadcast(weight)
    _refuse_dtype(weight)
    lengths_only = keys.layout == "weight_norm"
    squares = np.zeros(keys.num_classes)
    total = np.zeros(0 if lengths_only else keys.feature_dim)
    axis = class_axis(keys)
    with opened_once(weight.file) as fd:
        for block in blocks(weight):
            values = to_float64(block.read(fd), weight.dtype)
            _refuse_nan(weight, values, axis, block.lo if block.axis == axis else 0)
            rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
            with np.errstate(over="ignore"):
                squares[block.along(axis)] += (rows**2).sum(axis=1)
            if lengths_only:
                continue
            sums = rows.sum(axis=0)
            total[slice(None) if len(sums) == len(total) else block.along(1 - axis)] += sums
        bias = _read_bias(checkpoint, keys)
    norms = np.sqrt(squares)
    if not np.isfinite(norms).all():
        raise BadHead(
            f"row {int(np.argmin(np.isfinite(norms)))} of {keys.weight} is too long to measure",
            saw="the sum of its squares is above the largest float64",
            fix="use a checkpoint from before the training diverged",
        )
    length = norms.sum()
    gauge = float(np.sqrt((total**2).sum()) / length) if length else 0.0
    return Head(norms, bias, gauge)


def refuse_shared(checkpoint: Checkpoint, edited: list[TensorInfo]) -> None:
    """Refuse a head whose bytes cannot be changed alone.

    Raises:
        BadHead: two of its elements share bytes, or it shares bytes with another tensor.
    """
    for info in edited:
        _refuse_broadcast(info)
        for other in checkpoint.contents.tensors:
            same = (other.start, other.shape, other.strides) == (
                info.start,
                info.shape,
                info.strides,
            )
            if (other in edited and same) or other == info:
                continue
            if share_bytes(info, other):
                raise BadHead(
                    f"{info.name} shares bytes with {other.name}, which would also change",
                    saw=f"both lie in bytes {max(info.start, other.start):,} to "
                    f"{min(info.stop, other.stop):,} of {info.file.name}",
                    fix="save the checkpoint with a .clone() of the head, then run apply again",
                )


def _read_bias(checkpoint: Checkpoint, keys: HeadKeys) -> Float64 | None:
    if keys.bias is None:
        return None
    info = checkpoint.tensor(keys.bias)
    _refuse_dtype(info)
    bias = np.empty(keys.num_classes)
    with opened(info.file) as fd:
        for block in blocks(info):
            bias[block.along(0)] = to_float64(block.read(fd), info.dtype).reshape(-1)
    _refuse_nan(info, bias, 0, 0)
    return bias


def _refuse_broadcast(info: TensorInfo) -> None:
    if overlaps_itself(info):
        raise BadHead(
            f"{info.name} is a broadcast view: several of its elements share bytes",
            saw=f"shape {info.shape}, strides {info.strides}",
            fix="call .contiguous() on this tensor and save the checkpoint again",
        )


def _refuse_dtype(info: TensorInfo) -> None:
    if info.dtype not in HEAD_DTYPES:
        raise BadHead(
            f"{info.name} is stored as {info.dtype}, which cannot be re-scaled without loss",
            saw=f"{info.name} {info.shape}",
            fix=f"re-scale the original checkpoint in one of {', '.join(HEAD_DTYPES)}",
        )


def _refuse_nan(info: TensorInfo, values: Float64, axis: int, first: int) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        spot = tuple(np.argwhere(~finite)[0])
        raise BadHead(
            f"class {int(spot[axis]) + first} of {info.name} contains {values[spot]}",
            saw=f"{int((~finite).sum())} values that are not finite",
            fix="use a checkpoint from before the training diverged",
        )
