"""One run at a time in a folder, and its entries made to last."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

#: What a file system says that has no locks, or whose folders cannot be synced.
_UNABLE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """The folder's descriptor, locked against other runs of this tool where the system can."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(ImportError), where_able():
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        with contextlib.suppress(OSError):  # it was opened for reading: nothing can be lost
            os.close(fd)


def sync_names(folder_fd: int) -> None:
    """Make the names in an open folder last, where the file system can."""
    with where_able():
        os.fsync(folder_fd)


@contextlib.contextmanager
def where_able() -> Iterator[None]:
    """Go on where a file system lacks the very thing; any other error counts."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
