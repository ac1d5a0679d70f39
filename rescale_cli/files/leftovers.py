"""Name and lock temporary files, and remove those that killed processes left behind.

A writer holds a lock (flock) on a `.lock` file while its temporary files exist, and the system
releases the lock when the process ends for any reason. If the lock can be taken, the writer is
gone, even if its process ID is in use again or it ran in another container.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from rescale_cli.signals import undisturbed

#: The names of all temporary files start with this.
MARK = ".rescale-cli-"
_NAME = re.compile(re.escape(MARK) + r"((\d+)-([0-9a-f]+))(?:-\d+)?\.(tmp|old|lock)")
#: Seconds after which a file of another machine counts as abandoned: its locks may be invisible.
_DAY = 86_400

#: Receives notes about removed files; without a command line, the log of the package.
listener: ContextVar[Callable[[str], None]] = ContextVar(
    "listener", default=logging.getLogger("rescale_cli").info
)


#: Errors of file systems that have no locks or cannot sync folders.
_UNABLE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Open a folder and lock it against other runs of this tool, if the system supports locks."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(ImportError), where_able():
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        with contextlib.suppress(OSError):  # opened read-only, so no data can be lost
            os.close(fd)


def sync_names(folder_fd: int) -> None:
    """Sync the names in an open folder to the disk, if the file system supports it."""
    with where_able():
        os.fsync(folder_fd)


@contextlib.contextmanager
def where_able() -> Iterator[None]:
    """Ignore the error of a file system that lacks the feature; raise any other error."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNABLE:
            raise


class Claim:
    """The temporary names of one writer in a folder, marked as in use until `release`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._names = folder, 0
        self._owner = f"{os.getpid()}-{_machine()}{secrets.token_hex(6)}"
        self._lock: int | None = None

    def name(self, suffix: str) -> Path:
        """Return a new name; the first call removes what killed processes left in the folder.

        Args:
            suffix: "tmp" for a file that may always be removed; "old" for a possible only copy.

        Raises:
            OSError: the lock file cannot be created.
        """
        if self._lock is None:
            remove_leftovers(self._folder)
            with undisturbed():
                self._lock = _lock_new(self._lock_file())
        self._names += 1
        return self._folder / f"{MARK}{self._owner}-{self._names}.{suffix}"

    def release(self) -> None:
        """Remove the lock file; the temporary files must already be gone."""
        if self._lock is not None:
            remove(self._lock_file())
            with contextlib.suppress(OSError):
                os.close(self._lock)

    def _lock_file(self) -> Path:
        return self._folder / f"{MARK}{self._owner}.lock"


@contextlib.contextmanager
def held(path: Path, note: str) -> Iterator[str | None]:
    """Hold a lock file while the block runs, then remove it; never wait for it.

    The system frees the lock when a process ends in whatever way, so what a killed process left
    is taken over.

    Args:
        path: the lock file.
        note: what the file says of its holder.

    Yields:
        None; or the note of the other process that holds the lock, "" if it cannot be read.
    """
    lock, other = None, None
    try:
        lock = _lock_new(path, wait=False)
    except BlockingIOError:
        other = ""
        with contextlib.suppress(OSError):
            other = path.read_text("utf-8", "replace")
    try:
        if lock is not None:
            os.ftruncate(lock, 0)
            os.write(lock, note.encode())
        yield other
    finally:
        if lock is not None:
            remove(path)
            with contextlib.suppress(OSError):
                os.close(lock)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes in a folder, and report to `listener`.

    A file is kept if its process is running, if the file system has no locks, if this user may not
    remove it, or if another machine (or this one before a restart) wrote it less than a day ago. A
    replaced file (`.old`) is removed only if it also has another name: otherwise it may be the
    only copy of an output that was about to be replaced.
    """
    owners: dict[tuple[str, str, str], list[Path]] = defaultdict(list)
    with contextlib.suppress(OSError):
        for file in sorted(folder.iterdir()):
            if found := _NAME.fullmatch(file.name):
                owners[found[1], found[2], found[3]].append(file)
    removed, kept = list[str](), list[str]()
    for (owner, pid, token), files in owners.items():
        lock = folder / f"{MARK}{owner}.lock"
        with _abandoned(lock, int(pid), token.startswith(_machine()), files) as abandoned:
            for file in files if abandoned else []:
                if file.suffix == ".old" and not _has_another_name(file):
                    kept.append(str(file))
                elif file != lock and (size := _remove_measured(file)) is not None:
                    removed.append(f"{file} ({size:,} bytes)")
            if abandoned:
                remove(lock)
    if removed:
        listener.get()(f"removed temporary files of a killed process: {', '.join(removed)}")
    if kept:
        what = "a killed process left the file that it was replacing; rename or remove it yourself"
        listener.get()(f"{what}: {', '.join(kept)}")


def remove(path: Path) -> None:
    """Remove a temporary file or folder, with up to three attempts."""
    for _ in range(3):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError:
            continue
        return


def _lock_new(path: Path, *, wait: bool = True) -> int:
    """Create a lock file and lock it, if the file system supports locks; return its descriptor.

    Raises:
        BlockingIOError: without `wait`, another process holds the lock.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(ImportError), where_able():
                import fcntl

                fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two calls, another run may have removed the file as abandoned.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
        except BaseException as error:
            os.close(fd)
            if not isinstance(error, BlockingIOError):
                remove(path)
            raise
        os.close(fd)


@contextlib.contextmanager
def _abandoned(lock: Path, pid: int, here: bool, files: list[Path]) -> Iterator[bool]:
    """Yield whether the process that wrote `files` is gone, and hold its lock in the block.

    Args:
        lock: its lock file.
        pid: its process ID, for files without a lock file.
        here: whether it ran on this machine after the last restart.
        files: its files, whose age is checked.
    """
    try:
        import fcntl

        fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:  # a writer creates the lock first and removes it last
        yield not _is_process(pid)
        return
    except (ImportError, OSError):
        yield False
        return
    try:
        free = True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            free = False
        yield free and (here or _are_old(files))
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


@functools.cache
def _machine() -> str:
    """Return eight digits that identify this machine since its start, the same in containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        import hashlib

        return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _are_old(files: list[Path]) -> bool:
    try:
        return all(time.time() - file.lstat().st_mtime > _DAY for file in files)
    except OSError:
        return False


def _has_another_name(file: Path) -> bool:
    try:
        found = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink > 1


def _remove_measured(path: Path) -> int | None:
    """Remove a file or folder and return its size in bytes, or None if it could not be removed."""
    try:
        folder = path.is_dir() and not path.is_symlink()
        parts = [path, *path.rglob("*")] if folder else [path]
        size = sum(at.st_size for part in parts if not stat.S_ISDIR((at := part.lstat()).st_mode))
    except OSError:
        size = 0
    remove(path)
    return None if os.path.lexists(path) else size
