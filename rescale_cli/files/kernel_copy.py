"""Copying bytes between files without taking them into memory."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

#: What a system call says when it cannot do it here, and another way may.
_UNABLE = {
    errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ENOTTY,
    errno.ETXTBSY, errno.EBADF,
}  # fmt: skip
_STEP = 32 << 20
_FICLONE = 0x40049409


def copy_bytes(
    source: int,
    target: int,
    size: int,
    start: int = 0,
    to: int = 0,
    copied: Callable[[int], None] = lambda _: None,
) -> str:
    """Copy `size` bytes from offset `start` of one descriptor to offset `to` of another.

    A reflink shares the blocks where the file system can; else the kernel copies; only where it
    cannot do that either do the bytes pass through a buffer of ours.

    `copied` is told after each step how many bytes are there.

    Returns:
        How it was done: reflink, copy_file_range, sendfile or buffer.
    """
    if start == to == 0 and os.fstat(source).st_size == size and _reflink(source, target):
        copied(size)
        return "reflink"
    ways: list[tuple[str, Callable[[int, int, int, int, int], int]]] = [("buffer", _buffer)]
    if hasattr(os, "sendfile"):
        ways.insert(0, ("sendfile", _sendfile))
    if hasattr(os, "copy_file_range"):
        ways.insert(0, ("copy_file_range", _copy_file_range))
    done = 0
    for name, step in ways:
        try:
            while done < size:
                count = step(source, target, min(_STEP, size - done), start + done, to + done)
                if not count:
                    break
                done += count
                copied(done)
        except OSError as error:
            if error.errno not in _UNABLE or name == "buffer":
                raise
        if done == size:
            return name
    raise OSError(errno.EIO, "the source became shorter while it was copied")


def _reflink(source: int, target: int) -> bool:
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, source)
    except (ImportError, OSError):
        return False
    return True


def _copy_file_range(source: int, target: int, size: int, start: int, to: int) -> int:
    while True:  # Python repeats other calls that a signal cut short, but not this one
        with contextlib.suppress(InterruptedError):
            return os.copy_file_range(source, target, size, start, to)


def _sendfile(source: int, target: int, size: int, start: int, to: int) -> int:
    os.lseek(target, to, os.SEEK_SET)
    return os.sendfile(target, source, start, size)


def _buffer(source: int, target: int, size: int, start: int, to: int) -> int:
    return os.pwrite(target, os.pread(source, min(size, 1 << 20), start), to)
