"""Writing one file anew: the kernel copies it, the head is overwritten, and all of it is proven."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.hashing import Front, Hashing, hashing_of, sha256_behind
from rescale_cli.files.kernel_copy import copy_bytes
from rescale_cli.files.regular_file import opened, read_at
from rescale_cli.formats._interface import Checksum
from rescale_cli.json_text import clip
from rescale_cli.patching.byte_proof import crc32_of, differs, prove
from rescale_cli.patching.rewrite import Edit, Region, regions

T = TypeVar("T")

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

    The target is hashed behind the front of the copying, once its header is there, which holds the
    sha256 of the source. When this returns, the target is on the disk,
    every byte of it has been read back, and it has the mode of the source. Memory use does not
    depend on the size of the file.

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
        source_hash, front = background.hash(src), background.front
        before, after = (len(text) for text in header("0" * 64)) if header else (0, 0)
        stretches, size = regions(edits), os.fstat(src).st_size
        shift = after - before
        headed = background.run(lambda: _write_header(dst, header, source_hash.result()))
        hashed = background.run(lambda: sha256_behind(dst, size + shift, front, headed))
        _copy(src, dst, (before, after), stretches, None if checksums else front)
        mended = mend(dst, checksums, stretches, shift)
        os.fchmod(dst, stat.S_IMODE(os.fstat(src).st_mode) & 0o777)
        front.advance(size + shift)
        flushed = background.run(lambda: os.fsync(dst))
        written = headed.result()  # before it is read back: until then, zeros may stand there
        prove(src, dst, (before, after), stretches, mended)
        flushed.result()
        if read_at(dst, 0, after) != written:
            raise differs(0)
        os.fsync(dst)
        return Written(hashed.result(), source_hash.result())


def _copy(
    src: int, dst: int, starts: tuple[int, int], stretches: Sequence[Region], front: Front | None
) -> None:
    """Copy what is behind the header, rewrite each stretch once it is there, tell the front."""
    shift, pending = starts[1] - starts[0], deque(stretches)

    def copied(count: int) -> None:
        end = starts[0] + count
        while pending and pending[0].stop <= end:
            region = pending.popleft()
            _write_at(dst, region.rewritten(src), region.start + shift)
        if front is not None:
            front.advance(min([end, *(region.start for region in pending)]) + shift)

    size = os.fstat(src).st_size - starts[0]
    copy_bytes(src, dst, size, *starts, copied)


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
                        saw=f"{wanted[::-1].hex()} kept for bytes {check.start} to {check.stop}",
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
        self.front = Front()
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
        self.front.give_up()
        if self._hashing is not None:
            self._hashing.stop()
        self._pool.shutdown(cancel_futures=True)
