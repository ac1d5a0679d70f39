"""Write one patched file: the kernel copies it, the head is overwritten, all of it is proven."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.contents import Checksum
from rescale_cli.files.folders import copy_bytes
from rescale_cli.files.hashing import NO_DIGEST, PLAIN, TREE, Hashing, hashing_of
from rescale_cli.files.reading import opened, read_at
from rescale_cli.json_text import clip
from rescale_cli.patching.rewrite import (
    Edit,
    Region,
    changed_parts,
    compare_bytes,
    crc32_of,
    differs,
    prove_changed,
    regions,
)

T = TypeVar("T")

#: Takes the digest of the source; gives the header of the source and that of the target.
HeaderChange = Callable[[str], tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Written:
    """The SHA-256 of the written file, and of its source; empty if it was not asked for."""

    sha256: str
    source_sha256: str = ""

    @property
    def source_digest(self) -> str:
        """The digest by which a record identifies the source."""
        return PLAIN + self.source_sha256


def write_changed(
    source: Path,
    target: Path,
    edits: Sequence[Edit],
    checksums: Sequence[Checksum] = (),
    header: HeaderChange | None = None,
    *,
    hash_source: bool = True,
) -> Written:
    """Copy `source` to the new file `target`, change the edits' tensors, and prove the result.

    One thread computes the SHA-256 of the source while the kernel copies. The header, which
    contains that hash, is written next. Then both files are read, as far as the copy has come, and
    compared, while the target is hashed. When this returns, the target is on the disk, every byte
    of it has been read back, and it has the mode of the source. Memory use does not depend on the
    size of the file.

    Args:
        source: opened read-only.
        target: must not exist.
        edits: what changes; offsets are those of the source.
        checksums: of the source; those that cover changed bytes are updated.
        header: for formats whose header contains the record.
        hash_source: whether the SHA-256 of the source is wanted.

    Raises:
        NotProven: the bytes read back are not those that should have been written.
        OSError: the operating system refused something.
    """
    with opened(source) as src, _created(target) as dst, _Background() as background:
        digest = background.hash(src) if hash_source else None
        starts = _lengths(header)
        stretches, size = regions(edits), os.fstat(src).st_size
        shift, front = starts[1] - starts[0], background.front
        stale = affected(checksums, stretches)
        places = [at for check in stale for at in check.at]
        sha256 = hashlib.sha256()
        headed = background.run(lambda: _write_header(dst, header, digest))

        def compare_both() -> None:
            headed.result()  # until then the header may be zeros
            compare_bytes(
                src, dst, starts, changed_parts(stretches, places), (None, sha256), front.wait
            )

        compared = background.run(compare_both)
        _copy(src, dst, starts, stretches, min([size, *places]), front)
        mended = mend(dst, stale, shift)
        os.fchmod(dst, stat.S_IMODE(os.fstat(src).st_mode) & 0o777)
        front.advance(size + shift)
        flushed, written = background.run(lambda: os.fsync(dst)), headed.result()
        compared.result()
        prove_changed(src, dst, shift, stretches, mended)
        flushed.result()
        if read_at(dst, 0, starts[1]) != written:
            raise differs(0)
        os.fsync(dst)
        of_source = digest.result().removeprefix(PLAIN) if digest else ""
        return Written(sha256.hexdigest(), of_source)


def _lengths(header: HeaderChange | None) -> tuple[int, int]:
    """The length of the header in the source and in the target."""
    before, after = header(NO_DIGEST) if header else (b"", b"")
    return len(before), len(after)


def _copy(
    src: int,
    dst: int,
    starts: tuple[int, int],
    stretches: Sequence[Region],
    hold: int,
    front: _Front,
) -> None:
    """Copy all after the header, rewrite each region once it is copied, and advance the front.

    The front stops at offset `hold` of the source, because the bytes there change later.
    """
    shift, pending = starts[1] - starts[0], deque(stretches)

    def copied(count: int) -> None:
        end = starts[0] + count
        while pending and pending[0].stop <= end:
            region = pending.popleft()
            _write_at(dst, region.rewritten(src), region.start + shift)
        front.advance(min([end, hold, *(region.start for region in pending)]) + shift)

    size = os.fstat(src).st_size - starts[0]
    copy_bytes(src, dst, size, *starts, copied)


def _write_header(fd: int, header: HeaderChange | None, digest: Hashing | None) -> bytes:
    if header is None:
        return b""
    new = header(digest.result() if digest else NO_DIGEST)[1]
    _write_at(fd, new, 0)
    return new


def refuse_wrong_crc(checksums: Sequence[Checksum], files: Sequence[Path]) -> None:
    """Compare every checksum of some files with their bytes.

    Raises:
        BadCheckpoint: a part of a file was damaged after it was written.
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
                        saw=f"stored {wanted[::-1].hex()} for bytes {check.start} to {check.stop}",
                        fix="download or copy the file again",
                    )


def affected(checksums: Sequence[Checksum], stretches: Sequence[Region]) -> list[Checksum]:
    """The checksums that cover changed bytes."""
    return [
        check
        for check in checksums
        if any(check.start < r.stop and r.start < check.stop for r in stretches)
    ]


def mend(fd: int, checksums: Sequence[Checksum], shift: int = 0) -> dict[int, bytes]:
    """Update checksums in the file; the bytes that were written, by offset."""
    written: dict[int, bytes] = {}
    for check in checksums:
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


class _Front:
    """How far a file that is being written is final, for a reader that follows the writer."""

    def __init__(self) -> None:
        self._at, self._changed, self._given_up = 0, threading.Condition(), False

    def advance(self, to: int) -> None:
        """Note that everything before offset `to` is final."""
        with self._changed:
            self._at = max(self._at, to)
            self._changed.notify_all()

    def give_up(self) -> None:
        """Note that the file will not be finished, so that no reader waits."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def wait(self, to: int) -> None:
        """Wait until everything before offset `to` is final.

        Raises:
            RuntimeError: the writing was given up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._at >= to or self._given_up)
            if self._given_up:
                raise RuntimeError("the writing was given up")


class _Background:
    """Threads for hashing and syncing, which stop when the block is left by an error."""

    def __init__(self) -> None:
        self.front = _Front()
        self._hashing: Hashing | None = None
        self._pool = ThreadPoolExecutor(3)

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


def digest_like(wanted: str, path: Path, sha256: str) -> str:
    """The digest of a file, of the same kind as `wanted`.

    Args:
        wanted: a recorded digest.
        path: the file.
        sha256: its SHA-256, which is already known.
    """
    if not wanted.startswith(TREE):
        return PLAIN + sha256
    with opened(path) as fd:
        return Hashing(fd, TREE).result()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
