"""Open regular files read-only, keep them open while needed, and read them at offsets."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from rescale_cli.errors import BadCheckpoint, BadInput, EnvironmentProblem

#: Device, inode, size and modification time of a file.
Stamp = tuple[int, int, int, int]

#: Errors that mean the name is not a regular file, rather than a file that cannot be read.
_NO_FILE = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV)

LFS_MAGIC = b"version https://git-lfs.github.com/spec/"


def open_regular(path: Path, kind: type[BadInput] = BadCheckpoint) -> int:
    """Open a regular file read-only and return its descriptor.

    Pipes and devices are refused: a pipe could block forever, and a device could be endless.

    Raises:
        BadInput: (as `kind`) there is no such file, or it is not a regular file.
        EnvironmentProblem: the file cannot be read.
    """
    try:
        # O_NONBLOCK: opening a pipe returns at once, and fstat then recognizes it.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        saw = (error.strerror or "").lower()
        raise kind(f"there is no file {path}", saw=saw, fix="check the path") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FILE:
            raise EnvironmentProblem(
                f"{path} cannot be read", saw=str(error), fix="check its permissions and the disk"
            ) from None
        raise kind(f"{path} cannot be opened", saw=str(error), fix="name a regular file") from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise kind(
                f"{path} is not a regular file", saw=kind_of(mode), fix="name a regular file"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def kind_of(mode: int) -> str:
    """Name the kind of a file by its mode: `a folder`, `a named pipe` ..."""
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a character device",
        stat.S_ISBLK: "a block device",
        stat.S_ISREG: "a regular file",
        stat.S_ISLNK: "a link",
    }
    return next((word for test, word in kinds.items() if test(mode)), "a special file")


def stamp_of(path: Path) -> Stamp:
    """Return a stamp that changes when a file is replaced or written to."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


#: The descriptors that `kept_open` keeps, and the stack that closes them.
_kept: ContextVar[tuple[dict[Path, int], ExitStack] | None] = ContextVar("kept", default=None)
_MOST_KEPT = 64


@contextmanager
def opened(path: Path, kind: type[BadInput] = BadCheckpoint) -> Iterator[int]:
    """Open a regular file for the block; a file that is kept open is not opened again."""
    if (kept := _kept_descriptor(path)) is not None:
        yield kept
        return
    fd = open_regular(path, kind)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def kept_open() -> Iterator[None]:
    """Keep the files of checkpoints open in the block, so that each of them is opened once.

    They are read only at offsets, so several readers can share one descriptor.
    """
    if _kept.get() is not None:
        yield
        return
    with ExitStack() as files:
        token = _kept.set(({}, files))
        try:
            yield
        finally:
            _kept.reset(token)


@contextmanager
def opened_once(path: Path) -> Iterator[int]:
    """Open a file of a checkpoint; it stays open until the outermost `kept_open` ends."""
    with kept_open(), opened(path) as fd:
        kept = _kept.get()
        if kept is not None and len(kept[0]) < _MOST_KEPT and _kept_descriptor(path) is None:
            kept[0][path] = os.dup(fd)
            kept[1].callback(os.close, kept[0][path])
        yield fd


def _kept_descriptor(path: Path) -> int | None:
    """Return the descriptor that is kept open, if it is still the file of this name."""
    fd = kept[0].get(path) if (kept := _kept.get()) else None
    with contextlib.suppress(OSError):
        if fd is not None and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    return None


def read_at(fd: int, start: int, size: int) -> bytes:
    """Read exactly `size` bytes from offset `start`.

    Raises:
        BadCheckpoint: the file is too short.
    """
    parts = []
    while size:
        part = os.pread(fd, min(size, 1 << 30), start)
        if not part:
            raise BadCheckpoint(
                "the file ends in the middle of its data",
                saw=f"{size} bytes missing at offset {start}",
                fix="fetch or copy the file again",
            )
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return b"".join(parts)


def page_buffer(size: int) -> memoryview:
    """Return a buffer for large reads that starts at a page.

    A bytearray starts 16 bytes into a page, where AMD processors copy at a sixth of the speed.
    """
    return memoryview(mmap.mmap(-1, size))


def read_whole(path: Path, limit: int, kind: type[BadInput] = BadCheckpoint) -> bytes:
    """Read a small regular file of at most `limit` bytes.

    Raises:
        BadInput: (as `kind`) larger than the limit, or a git-lfs pointer.
    """
    with opened(path, kind) as fd:
        size = os.fstat(fd).st_size
        if size > limit:
            raise kind(
                f"{path.name} is too large for a file of this kind",
                saw=f"{size:,} bytes; at most {limit:,} are read",
                fix="check that this is the right file",
            )
        data = read_at(fd, 0, size)
    refuse_lfs_pointer(path, data[:64], kind)
    return data


def refuse_lfs_pointer(path: Path, head: bytes, kind: type[BadInput] = BadCheckpoint) -> None:
    """Raise an error if a file is a git-lfs pointer instead of the file itself."""
    if head.startswith(LFS_MAGIC):
        raise kind(
            f"{path.name} is a git-lfs pointer, not the file itself",
            saw="a text that begins with 'version https://git-lfs'",
            fix="git lfs pull",
        )
