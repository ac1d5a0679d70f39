"""Whole or nothing: files are written aside, in the target's folder, and renamed all together."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from rescale_cli.errors import BadInput, EnvironmentProblem, OutputExists, RescaleError

#: Leftovers of a killed run carry this in their name; they never block the next run.
MARK = ".rescale-cli-"


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold off Ctrl-C, SIGTERM and SIGHUP for a moment that must not be torn."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    watched = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Staging:
    """New files beside their targets under unique names; `commit` gives them their own.

    Used in a with statement: whatever was not committed is removed, however the block is left.

    Args:
        folder: where the targets will be; it must exist.
        replace: whether something that has a target's name may be replaced.
    """

    def __init__(self, folder: Path, *, replace: bool) -> None:
        self.folder, self.replace = folder, replace
        self._moves: list[tuple[Path, Path]] = []
        self._placed: list[tuple[Path, Path | None]] = []

    def __enter__(self) -> Staging:
        if not self.folder.is_dir():
            raise BadInput(
                f"there is no folder {self.folder}",
                fix=f"mkdir -p {self.folder}, or another --output",
            )
        return self

    def aside(self, target: Path) -> Path:
        """A name to write the future `target` under. The last one asked for is the main one."""
        temporary = self.folder / f"{MARK}{os.getpid()}-{secrets.token_hex(6)}.tmp"
        # Listed before it is made: there is no moment in which an interrupt could lose it.
        self._moves.append((temporary, target))
        return temporary

    def commit(self) -> None:
        """Give every file its name, in order, then make the folder's entries last.

        One run at a time does this in a folder, so that of two runs on one target one wins whole,
        with the files beside it.

        Raises:
            OutputExists: a target has come into being meanwhile, and may not be replaced.
        """
        with undisturbed(), _locked(self.folder) as folder_fd:
            for _, target in self._moves:
                refuse_existing(target, replace=self.replace)
            for temporary, target in self._moves:
                old = None
                if os.path.lexists(target):
                    old = self.folder / f"{MARK}{os.getpid()}-{secrets.token_hex(6)}.old"
                    self._set_aside(target, old)
                self._placed.append((target, old))
                temporary.rename(target)
            # From here on the new files are there to stay, even if the folder cannot be synced.
            self._moves.clear()
            placed, self._placed = self._placed, []
            try:
                os.fsync(folder_fd)
            finally:
                for _, old in placed:
                    if old is not None:
                        _remove(old)

    def _set_aside(self, target: Path, old: Path) -> None:
        """Keep what is to be replaced until all is done: by a second name, or by moving it."""
        if target.is_dir() and not target.is_symlink():
            target.rename(old)
            return
        try:
            os.link(target, old, follow_symlinks=False)
        except OSError:
            target.rename(old)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with undisturbed():
            for target, old in reversed(self._placed):
                if old is not None and os.path.lexists(old):
                    if target.is_dir() and not target.is_symlink():
                        _remove(target)
                    old.replace(target)
                    _remove(old)  # rename leaves both names where they are one file
                elif old is None and not self._still_aside(target):
                    _remove(target)
            for temporary, _ in self._moves:
                _remove(temporary)

    def _still_aside(self, target: Path) -> bool:
        return any(os.path.lexists(tmp) for tmp, final in self._moves if final == target)


def write_new(path: Path, data: bytes, like: Path | None = None) -> None:
    """Write a small new file and sync it; readable like `like`, or by its owner only."""
    mode = stat.S_IMODE(like.stat().st_mode) & 0o666 if like is not None else 0o600
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        os.fchmod(fd, mode)
        os.fsync(fd)
    finally:
        os.close(fd)


def refuse_existing(target: Path, *, replace: bool) -> None:
    """Stop before a name that is taken; a pipe, device or socket is never replaced.

    Raises:
        OutputExists: something has that name, and either may not or cannot be replaced.
    """
    if not os.path.lexists(target):
        return
    if not (target.is_file() or target.is_dir() or target.is_symlink()):
        raise OutputExists(
            f"{target} is no regular file", fix="name another output: --output FILE"
        )
    if not replace:
        raise OutputExists(
            f"{target} exists already", fix="--force to replace it, or another --output"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """The folder's descriptor, locked against other runs of this tool where the system can."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                    raise
        yield fd
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    """Remove a file or folder of ours, trying again where the system failed once."""
    for _ in range(3):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError:
            continue
        return


@contextlib.contextmanager
def system_errors(doing: str) -> Iterator[None]:
    """Say what the system refused while `doing` something: a full disk, a missing permission.

    Raises:
        EnvironmentProblem: in place of any OSError.
    """
    fixes = {
        errno.ENOSPC: "free some space, or write elsewhere: --output",
        errno.EDQUOT: "free some of your quota, or write elsewhere: --output",
        errno.EFBIG: "raise the limit on file sizes, or write elsewhere: --output",
        errno.EACCES: "check the permissions of the folder, or write elsewhere: --output",
        errno.EPERM: "check the permissions of the folder, or write elsewhere: --output",
        errno.EROFS: "write elsewhere: --output",
        errno.ENAMETOOLONG: "give a shorter name: --output",
    }
    try:
        yield
    except RescaleError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise EnvironmentProblem(
            f"{doing} failed: {reason.lower()}",
            saw=str(error.filename or error),
            fix=fixes.get(error.errno or 0, "check the disk, then run the command again"),
        ) from error
