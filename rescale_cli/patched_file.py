"""Writing one file anew: the kernel copies it, the head is overwritten, and all of it is proven."""

from __future__ import annotations

import os
import stat
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from rescale_cli.errors import BadCheckpoint, NotProven
from rescale_cli.formats._interface import Checksum
from rescale_cli.hashing import Hashing, hashing_of, sha256_mapped
from rescale_cli.json_text import clip
from rescale_cli.kernel_copy import copy_bytes
from rescale_cli.regular_file import opened, read_at
from rescale_cli.rewrite import Edit, Region, regions

T = TypeVar("T")
_CHUNK = 1 << 20

#: Gives the header of the source and that of the target, for the sha256 of the source.
HeaderChange = Callable[[str], tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Written:
    """What came of it."""

    sha256: str
    source_sha256: str


def write_changed(
    source: Path,
    target: Path,
    edits: Sequence[Edit],
    checksums: Sequence[Checksum] = (),
    header: HeaderChange | None = None,
) -> Written:
    """Copy `source` to the new file `target`, change the edits' tensors, and prove the result.

    Hashing and syncing run beside the copying. When this returns, the target is on the disk, every
    byte of it has been read back, and it has the mode of the source. Memory use does not depend on
    the size of the file.

    Args:
        source: opened read-only.
        target: must not exist.
        edits: what changes; offsets are those of the source.
        checksums: of the source; those over changed bytes are mended.
        header: for formats whose header carries the record.

    Raises:
        NotProven: what was read back is not what was to be written.
        OSError: the system refused something.
    """
    with opened(source) as src, _created(target) as dst, _Background() as background:
        source_hash = background.hash(src)
        before, after = (len(text) for text in header("0" * 64)) if header else (0, 0)
        size = os.fstat(src).st_size
        copy_bytes(src, dst, size - before, before, after)
        stretches, shift = regions(edits), after - before
        for region in stretches:
            _write_at(dst, region.rewritten(src), region.start + shift)
        mended = mend(dst, checksums, stretches, shift)
        os.fchmod(dst, stat.S_IMODE(os.fstat(src).st_mode) & 0o777)
        # The disk writes and the target is compared and hashed, all at once; only the header, which
        # holds the source's sha256, has to wait for that.
        flushed = background.run(lambda: os.fsync(dst))
        headed = background.run(lambda: _write_header(dst, header, source_hash.result()))
        target_hash = background.run(lambda: sha256_mapped(dst, background.stop, headed))
        prove(src, dst, (before, after), stretches, mended)
        flushed.result()
        written = headed.result()  # before it is read back: until then, zeros may stand there
        if read_at(dst, 0, after) != written:
            raise _differs(0)
        os.fsync(dst)
        return Written(target_hash.result(), source_hash.result())


def _write_header(fd: int, header: HeaderChange | None, source_sha256: str) -> bytes:
    new = header(source_sha256)[1] if header else b""
    _write_at(fd, new, 0)
    return new


def refuse_wrong_crc(checksums: Sequence[Checksum], files: Sequence[Path]) -> None:
    """Hold every checksum of some files against their bytes.

    Raises:
        BadCheckpoint: a part of the file is not what it was when it was written.
    """
    for file in files:
        with opened(file) as fd:
            for check in checksums:
                if check.file != file or not check.at:
                    continue
                wanted = read_at(fd, check.at[0], 4)
                if crc32_of(fd, check.start, check.stop).to_bytes(4, "little") != wanted:
                    raise BadCheckpoint(
                        f"{file.name} is damaged: the checksum of {clip(check.name)} is wrong",
                        fix="fetch or copy the file again",
                    )


def mend(
    fd: int, checksums: Sequence[Checksum], stretches: Sequence[Region], shift: int = 0
) -> dict[int, bytes]:
    """Bring the checksums over changed stretches up to date; what was written where."""
    written: dict[int, bytes] = {}
    for check in checksums:
        if any(check.start < r.stop and r.start < check.stop for r in stretches):
            crc = crc32_of(fd, check.start + shift, check.stop + shift).to_bytes(4, "little")
            written |= {at + shift: crc for at in check.at}
    for at, crc in written.items():
        _write_at(fd, crc, at)
    return written


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
    if os.fstat(target).st_size != size + shift:
        raise NotProven(
            "the two files differ in size",
            saw=f"{os.fstat(target).st_size:,} bytes where {size + shift:,} are due",
            fix="patch the original again",
        )
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
            raise _differs(region.start + shift)
    for at, crc in mended.items():
        if read_at(target, at, len(crc)) != crc:
            raise _differs(at)
    return size - starts[0]


def _same(source: int, target: int, start: int, stop: int, shift: int) -> None:
    """Compare [start, stop) of the source with the target, `shift` bytes further on."""
    mine, theirs = bytearray(_CHUNK), bytearray(_CHUNK)
    while start < stop:
        size = min(_CHUNK, stop - start)
        for fd, buffer, at in ((source, mine, start), (target, theirs, start + shift)):
            if os.preadv(fd, [memoryview(buffer)[:size]], at) != size:
                raise _differs(at)
        left, right = (np.frombuffer(buffer, np.uint8, size) for buffer in (mine, theirs))
        if not np.array_equal(left, right):
            raise _differs(start + shift + int(np.argmax(left != right)))
        start += size


def _differs(offset: int) -> NotProven:
    return NotProven(
        f"byte {offset:,} is not what it must be",
        saw="a difference outside the head, or a head that is not as recorded",
        fix="patch the original again; if it happens twice, check the disk",
    )


def crc32_of(fd: int, start: int, stop: int) -> int:
    """The CRC-32 of the bytes [start, stop) of a file."""
    crc, buffer = 0, bytearray(_CHUNK)
    while start < stop:
        count = os.preadv(fd, [memoryview(buffer)[: min(_CHUNK, stop - start)]], start)
        if not count:
            raise _differs(start)
        crc = zlib.crc32(memoryview(buffer)[:count], crc)
        start += count
    return crc


def _write_at(fd: int, data: bytes | bytearray, at: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(fd, left, at)
        left, at = left[count:], at + count


@contextmanager
def _created(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


class _Background:
    """Threads for hashing and syncing, told to stop when the block is left by an error."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._hashing: Hashing | None = None
        self._pool = ThreadPoolExecutor(4)

    def __enter__(self) -> _Background:
        return self

    def hash(self, fd: int) -> Hashing:
        self._hashing = hashing_of(fd)
        return self._hashing

    def run(self, work: Callable[[], T]) -> Future[T]:
        return self._pool.submit(work)

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        if self._hashing is not None:
            self._hashing.stop()
        self._pool.shutdown(cancel_futures=True)
