"""Two files held against one another, byte by byte."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

import numpy as np

from rescale_cli.errors import NotProven
from rescale_cli.files.regular_file import page_buffer, read_at
from rescale_cli.patching.rewrite import Region

_CHUNK = 256 << 10  # two of them stay in the processor's cache


def prove(
    source: int,
    target: int,
    starts: tuple[int, int],
    stretches: Sequence[Region],
    mended: dict[int, bytes],
) -> int:
    """Hold every byte behind the headers of two files against what it must be.

    Outside the stretches and the mended checksums the target equals the source; in a stretch it
    equals the source's bytes, changed by the edits and rounded once.

    Args:
        source: a descriptor.
        target: a descriptor.
        starts: where the headers end, in the source and in the target.
        stretches: by offsets in the source.
        mended: offset in the target -> bytes there.

    Returns:
        How many bytes were compared.

    Raises:
        NotProven: the offset of the first difference.
    """
    size, shift = os.fstat(source).st_size, starts[1] - starts[0]
    _same_size(target, size + shift)
    fixed = [(at - shift, crc) for at, crc in mended.items()]
    special = sorted([(r.start, r.stop) for r in stretches] + [(a, a + len(c)) for a, c in fixed])
    position = starts[0]
    for start, stop in special:
        _same(source, target, position, start, shift)
        position = max(position, stop)
    _same(source, target, position, size, shift)
    for region in stretches:
        if read_at(target, region.start + shift, region.stop - region.start) != region.rewritten(
            source
        ):
            raise differs(region.start + shift)
    for at, crc in mended.items():
        if read_at(target, at, len(crc)) != crc:
            raise differs(at)
    return size - starts[0]


def _same_size(fd: int, size: int) -> None:
    if os.fstat(fd).st_size != size:
        raise NotProven(
            "the two files differ in size",
            saw=f"{os.fstat(fd).st_size:,} bytes where {size:,} are due",
            fix="patch the original again",
        )


def _same(source: int, target: int, start: int, stop: int, shift: int) -> None:
    """Compare [start, stop) of the source with the target, `shift` bytes further on."""
    mine, theirs = page_buffer(_CHUNK), page_buffer(_CHUNK)
    while start < stop:
        size = min(_CHUNK, stop - start)
        for fd, buffer, at in ((source, mine, start), (target, theirs, start + shift)):
            if os.preadv(fd, [buffer[:size]], at) != size:
                raise differs(at)
        unequal = np.frombuffer(mine[:size], np.uint8) != np.frombuffer(theirs[:size], np.uint8)
        if unequal.any():
            raise differs(start + shift + int(np.argmax(unequal)))
        start += size


def differs(offset: int) -> NotProven:
    """The error for a byte that is not what it must be."""
    return NotProven(
        f"byte {offset:,} is not what it must be",
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
