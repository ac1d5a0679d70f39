"""What was done to a head without a record, inferred from the original and the patched file.

A re-scaled row is the original row times one number, rounded once. So every element of a row bounds
that number from both sides, and one number within all bounds must give every bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.checkpoints.locate_head import HeadChoice, locate, one_size
from rescale_cli.checkpoints.read_tensors import Block, blocks, class_axis
from rescale_cli.core.floats import (
    HEAD_DTYPES,
    Bits,
    Float64,
    ordered,
    to_bits,
    to_float64,
    unordered,
)
from rescale_cli.errors import NotProven
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.reading import opened
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.json_text import clip
from rescale_cli.patching.rewrite import Edit, RowScaling

T = TypeVar("T", bound=np.generic)

#: Candidates for the number, in units in the last place from the middle of its bounds.
_NEAR = (0, 1, -1, 2, -2, 3, -3, 4, -4)


@dataclass(frozen=True, slots=True)
class ReadOff:
    """One head, and how its rows changed."""

    keys: HeadKeys
    dtype: str
    factors: Float64
    """(C,): each row is that of the original times this."""
    shifts: Float64
    """(C,): the number added to each entry of the bias; 0 without a bias."""
    edits: tuple[Edit, ...]
    """The same, as edits of the tensors of the original."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A tensor of the original and the same tensor of the patched file."""

    old: TensorInfo
    new: TensorInfo

    def blocks(self) -> Iterator[tuple[Block, Bits, Bits]]:
        """Every block, with its bits before and after."""
        shift = self.new.start - self.old.start
        with opened(self.old.file) as src, opened(self.new.file) as dst:
            for block in blocks(self.old):
                yield block, block.read(src), block.read(dst, shift)

    @property
    def differs(self) -> bool:
        """Whether any bit of the tensor differs."""
        return any((old != new).any() for _, old, new in self.blocks())


@dataclass(frozen=True, slots=True)
class _AsPatched:
    """The edit that copies the patched tensor: for a bias, whose entries may change freely."""

    pair: _Pair

    @property
    def info(self) -> TensorInfo:
        """The tensor of the original."""
        return self.pair.old

    def rewrite(self, bits: Bits, block: Block) -> Bits:
        """The bits of the patched file."""
        with opened(self.pair.new.file) as fd:
            return block.read(fd, self.pair.new.start - self.pair.old.start)


def read_off(
    after: Checkpoint, before: Checkpoint, partners: Mapping[str, Path], choice: HeadChoice
) -> list[ReadOff]:
    """What was done to each head of the original.

    Args:
        after: the patched checkpoint.
        before: the original.
        partners: name of each patched file -> the file of the original.
        choice: the user's choice of heads.

    Raises:
        AmbiguousHead, NoClassifier: it is unclear which tensor of the original is its head.
        NotProven: a row is not that of the original times one number of at least 0.
    """
    found = locate(before, choice, None, None)
    twins = {(partners[t.file.name], t.name): t for t in after.contents.tensors}
    names = before.names_of(one_size(found).classes) or ()
    return [_read_off(before, keys, twins, names) for keys in found.heads]


def _read_off(
    before: Checkpoint,
    keys: HeadKeys,
    twins: Mapping[tuple[Path, str], TensorInfo],
    names: Sequence[str],
) -> ReadOff:
    weight, none = _pair(before.tensor(keys.weight), twins), np.zeros(keys.num_classes)
    factors, shifts, edits = np.ones(keys.num_classes), none, list[Edit]()
    axis = class_axis(keys)
    if weight.differs:
        factors = _factors(weight, axis, names)
        edits.append(RowScaling(weight.old, axis, factors, none))
    bias = None if keys.bias is None else _pair(before.tensor(keys.bias), twins)
    if bias is not None and bias.differs:
        shifts = _shifts(bias)
        edits.append(_AsPatched(bias))
    return ReadOff(keys, weight.old.dtype, factors, shifts, tuple(edits))


def _pair(old: TensorInfo, twins: Mapping[tuple[Path, str], TensorInfo]) -> _Pair:
    new = twins.get((old.file, old.name))
    if new is None or replace(new, file=old.file, start=old.start, stop=old.stop) != old:
        raise NotProven(
            f"the patched file has no {clip(old.name)} of the same shape and dtype as the original",
            saw=f"{new.dtype} {new.shape}" if new else "no tensor of that name",
            fix="give the file that was patched: --against ORIGINAL",
        )
    if old.dtype not in HEAD_DTYPES:
        raise NotProven(
            f"{clip(old.name)} is {old.dtype}, which apply does not re-scale",
            saw=f"{old.dtype} {old.shape}",
            fix="name the head: --head NAME",
        )
    return _Pair(old, new)


def _shifts(bias: _Pair) -> Float64:
    """The number added to each entry of a bias; one that is not finite is an error."""
    parts = [
        to_float64(new, bias.old.dtype).ravel() - to_float64(old, bias.old.dtype).ravel()
        for _, old, new in bias.blocks()
    ]
    shifts = np.concatenate(parts)
    if not np.isfinite(shifts).all():
        raise _not_scaled(bias, int(np.argmin(np.isfinite(shifts))), ())
    return shifts


def _factors(weight: _Pair, axis: int, names: Sequence[str]) -> Float64:
    """The factor of each row, (C,), that gives every bit of the patched tensor."""
    size = weight.old.shape[axis]
    lo, hi, same = np.zeros(size), np.full(size, np.inf), np.ones(size, bool)
    for block, old, new in weight.blocks():
        rows = block.along(axis)
        low, high = _bounds(old, new, weight.old.dtype)
        lo[rows] = np.maximum(lo[rows], _by_row(low, axis).max(axis=1))
        hi[rows] = np.minimum(hi[rows], _by_row(high, axis).min(axis=1))
        same[rows] &= _by_row(old == new, axis).all(axis=1)
    middle = np.where(same, 1.0, np.where(lo == 0, 0.0, lo + (hi - lo) / 2))
    found, left = middle.copy(), ~same
    for steps in _NEAR:
        if not left.any():
            return found
        tried = np.where(left, middle + steps * np.spacing(middle), found)
        right = _gives(weight, axis, tried)
        found[left & right] = tried[left & right]
        left &= ~right
    if left.any():
        raise _not_scaled(weight, int(np.argmax(left)), names)
    return found


def _bounds(old: Bits, new: Bits, dtype: str) -> tuple[Float64, Float64]:
    """The bounds of the factor from each element; (0, inf) if the element allows any."""
    was, now = np.abs(to_float64(old, dtype)), np.abs(to_float64(new, dtype))
    steps = ordered(to_bits(now, dtype))
    below = np.where(now == 0, 0.0, to_float64(unordered(steps - 1, dtype), dtype))
    above = to_float64(unordered(steps + 1, dtype), dtype)
    above = np.where(np.isfinite(above), above, now + (now - below))
    with np.errstate(all="ignore"):
        low, high = (below + (now - below) / 2) / was, (now + (above - now) / 2) / was
    free = was == 0
    return np.where(free, 0.0, low), np.where(free, np.inf, high)


def _gives(weight: _Pair, axis: int, factors: Float64) -> NDArray[np.bool_]:
    """The rows for which the factors give every bit of the patched tensor."""
    right = np.isfinite(factors)
    edit = np.where(right, factors, 1.0)
    for block, old, new in weight.blocks():
        shape = [1] * old.ndim
        shape[axis] = -1
        rows = block.along(axis)
        factor = edit[rows].reshape(shape)
        made = np.where(factor == 0, 0.0, factor * to_float64(old, weight.old.dtype))
        bits = to_bits(made, weight.old.dtype)
        right[rows] &= _by_row(bits == new.astype(bits.dtype), axis).all(axis=1)
    return right


def _by_row(values: NDArray[T], axis: int) -> NDArray[T]:
    """The values as (rows, elements of each)."""
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _not_scaled(pair: _Pair, row: int, names: Sequence[str]) -> NotProven:
    called = f" ({clip(names[row], 60)})" if row < len(names) else ""
    return NotProven(
        f"row {row}{called} of {clip(pair.old.name)} is not that of the original times one number",
        saw="no record of a re-scaling, and a head that was changed in another way",
        fix="give the file that was patched (--against ORIGINAL), or its record (--record FILE)",
    )
