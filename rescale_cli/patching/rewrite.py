"""How the bytes of a head change, row by row, and the proof that no other byte does."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

import numpy as np

from rescale_cli.checkpoints.read_tensors import Block, blocks
from rescale_cli.core.floats import Bits, Float64, to_bits, to_float64
from rescale_cli.errors import BadHead, NotProven
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.reading import page_buffer, read_at
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
    """The class names, for errors; may be empty."""

    def rewrite(self, bits: Bits, block: Block) -> Bits:
        """The scaled block. Factor 1 and shift 0 keep every bit; factor 0 gives 0 for any value.

        Raises:
            BadHead: a result is not finite in the dtype of the tensor; the error names the class.
        """
        factor, shift = self._spread(self.factor, block), self._spread(self.shift, block)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.where(factor == 0, 0.0, factor * to_float64(bits, self.info.dtype))
            values = np.where(shift == 0, scaled, scaled + shift)
        after = to_bits(values, self.info.dtype)
        self._refuse_overflow(values, after, block)
        return after

    def guess_before(self, bits: Bits, block: Block) -> Bits:
        """Approximately what a scaled block was before, up to the rounding."""
        factor, shift = self._spread(self.factor, block), self._spread(self.shift, block)
        with np.errstate(over="ignore", invalid="ignore"):
            values = (to_float64(bits, self.info.dtype) - shift) / np.where(
                factor == 0, 1.0, factor
            )
            known = (factor != 0) & np.isfinite(values)
        return to_bits(np.where(known, values, 0.0), self.info.dtype)

    def _spread(self, vector: Float64, block: Block) -> Float64:
        shape = [1] * len(self.info.shape)
        shape[self.axis] = -1
        return vector[block.along(self.axis)].reshape(shape)

    def _refuse_overflow(self, values: Float64, rounded: Bits, block: Block) -> None:
        finite = np.isfinite(to_float64(rounded, self.info.dtype))
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
    """A part of a file that is rewritten: its blocks, and the bytes that they span."""

    start: int
    stop: int
    parts: tuple[tuple[Edit, Block], ...]

    def rewritten(self, source: int) -> bytearray:
        """The new bytes of the region, from those of the source (a file descriptor)."""
        span = bytearray(read_at(source, self.start, self.stop - self.start))
        for edit, block in self.parts:
            bits = block.of(memoryview(span)[block.start - self.start :])
            bits[...] = edit.rewrite(np.array(bits), block)
        return span


def regions(edits: Iterable[Edit]) -> list[Region]:
    """The regions of one file that the edits change, in order and without overlaps.

    Blocks whose spans overlap (a bias stored as a column of its weight) share a region.
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


#: Size of the two buffers of each pair; all pairs together fit into the cache of the processor.
_CHUNK = 1 << 20
#: How many pairs the two hashes may be apart.
_AHEAD = 6


class Hash(Protocol):
    """A hash object of hashlib."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far."""


#: The hashes of the source and of the target.
Hashes = tuple[Hash | None, Hash | None]


def prove(
    source: int,
    target: int,
    starts: tuple[int, int],
    stretches: Sequence[Region],
    mended: Mapping[int, bytes],
    hashes: Hashes = (None, None),
) -> int:
    """Compare every byte after the headers of two files with what it should be.

    Outside the regions and the updated checksums the target equals the source; in a region it
    equals the bytes of the source, changed by the edits and rounded once.

    Args:
        source: a descriptor.
        target: a descriptor.
        starts: where the headers end, in the source and in the target.
        stretches: the regions, by offsets in the source.
        mended: offset in the target -> the bytes of an updated checksum.
        hashes: see `compare_bytes`.

    Returns:
        The number of bytes that were compared.

    Raises:
        NotProven: the offset of the first difference.
    """
    size, shift = os.fstat(source).st_size, starts[1] - starts[0]
    _same_size(target, size + shift)
    compare_bytes(
        source, target, starts, changed_parts(stretches, [at - shift for at in mended]), hashes
    )
    prove_changed(source, target, shift, stretches, mended)
    return size - starts[0]


def changed_parts(stretches: Sequence[Region], places: Iterable[int]) -> list[tuple[int, int]]:
    """The parts [start, stop) of the source that may differ, sorted.

    Args:
        stretches: the regions of the source.
        places: offsets of updated checksums in the source, 4 bytes each.
    """
    parts = [(region.start, region.stop) for region in stretches]
    return sorted([*parts, *((at, at + 4) for at in places)])


def compare_bytes(
    source: int,
    target: int,
    starts: tuple[int, int],
    special: Sequence[tuple[int, int]],
    hashes: Hashes = (None, None),
    wait: Callable[[int], None] = lambda to: None,
) -> None:
    """Compare two files after their headers, except for the special parts, and hash both.

    Each byte is read once: two threads hash it while this one compares the next bytes.

    Args:
        source: a descriptor.
        target: a descriptor.
        starts: where the headers end, in the source and in the target.
        special: sorted parts [start, stop) of the source that are hashed but not compared.
        hashes: updated with every byte of the source and of the target; None for no hash.
        wait: called with the end of each part of the target before the part is read.

    Raises:
        NotProven: the offset of the first difference.
    """
    size, shift = os.fstat(source).st_size, starts[1] - starts[0]
    wait(starts[1])
    for fd, start, digest in zip((source, target), starts, hashes, strict=True):
        if digest is not None:
            digest.update(read_at(fd, 0, start))
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        ring = cycle([_Pair() for _ in range(_AHEAD)])
        for start, stop, same in _parts(starts[0], size, special):
            pair = next(ring)
            pair.wait()
            wait(stop + shift)
            pair.read((source, start), (target, start + shift), stop - start)
            if same:
                pair.refuse_difference(start + shift)
            pair.hash((one, other), hashes)
        # Leaving the block waits for the last updates.
    _same_size(target, size + shift)


class _Pair:
    """Buffers for the same part of two files, and the hashing that may still read them."""

    def __init__(self) -> None:
        self._buffers = page_buffer(_CHUNK), page_buffer(_CHUNK)
        self._parts = self._buffers
        self._hashing: list[Future[None]] = []

    def wait(self) -> None:
        for update in self._hashing:
            update.result()

    def read(self, mine: tuple[int, int], theirs: tuple[int, int], size: int) -> None:
        """Fill both from a descriptor and an offset each."""
        self._parts = self._buffers[0][:size], self._buffers[1][:size]
        for (fd, at), part in zip((mine, theirs), self._parts, strict=True):
            if os.preadv(fd, [part], at) != size:
                raise differs(at)

    def refuse_difference(self, offset: int) -> None:
        words = len(self._parts[0]) & ~7  # compared eight bytes at a time, then the rest
        for dtype, piece in ((np.uint64, slice(words)), (np.uint8, slice(words, None))):
            mine, theirs = (np.frombuffer(part[piece], dtype) for part in self._parts)
            if not np.array_equal(mine, theirs):
                mine, theirs = (np.frombuffer(part, np.uint8) for part in self._parts)
                raise differs(offset + int(np.argmax(mine != theirs)))

    def hash(self, pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor], hashes: Hashes) -> None:
        self._hashing = [
            pool.submit(digest.update, part)
            for pool, digest, part in zip(pools, hashes, self._parts, strict=True)
            if digest is not None
        ]


def _parts(
    start: int, size: int, special: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, bool]]:
    """Divide [start, size) into parts of at most one buffer: start, stop, whether to compare."""
    for begin, end in [*special, (size, size)]:
        for low, high, same in ((start, begin, True), (max(start, begin), end, False)):
            for at in range(low, high, _CHUNK):
                yield at, min(at + _CHUNK, high), same
        start = max(start, end)


def prove_changed(
    source: int,
    target: int,
    shift: int,
    stretches: Sequence[Region],
    mended: Mapping[int, bytes],
) -> None:
    """Compare the changed parts of the target with what they should contain; see `prove`.

    Raises:
        NotProven: the offset of a difference.
    """
    for region in stretches:
        if read_at(target, region.start + shift, region.stop - region.start) != region.rewritten(
            source
        ):
            raise differs(region.start + shift)
    for at, crc in mended.items():
        if read_at(target, at, len(crc)) != crc:
            raise differs(at)


def _same_size(fd: int, size: int) -> None:
    if os.fstat(fd).st_size != size:
        raise NotProven(
            "the two files differ in size",
            saw=f"{os.fstat(fd).st_size:,} bytes, expected {size:,}",
            fix="patch the original again",
        )


def differs(offset: int) -> NotProven:
    """The error for a byte that is not what it should be."""
    return NotProven(
        f"byte {offset:,} is not what it should be",
        saw="a difference outside the head, or a head that is not as recorded",
        fix="patch the original again; if it happens twice, check the disk",
    )


def crc32_of(fd: int, start: int, stop: int) -> int:
    """The CRC-32 of the bytes [start, stop) of a file."""
    crc, buffer = 0, page_buffer(_CHUNK)
    while start < stop:
        count = os.preadv(fd, [buffer[: min(_CHUNK, stop - start)]], start)
        if not count:
            raise differs(start)
        crc = zlib.crc32(buffer[:count], crc)
        start += count
    return crc
