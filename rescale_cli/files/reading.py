"""Opening what may be opened: regular files, read-only, at offsets; and their SHA-256.

It begins as soon as the file is known, even before the rest of the tool is loaded: the record of a
re-scaling stands in the header of the output and names its source, so the SHA-256 of the output can
only begin once that of the source is known.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from rescale_cli.errors import BadCheckpoint, BadInput, EnvironmentProblem

#: Device, number, size and time of the last change.
Stamp = tuple[int, int, int, int]

#: What the system says of names that are no file's, rather than of a file that it cannot open.
_NO_FILE = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV)

LFS_MAGIC = b"version https://git-lfs.github.com/spec/"


def open_regular(path: Path, kind: type[BadInput] = BadCheckpoint) -> int:
    """Open a regular file read-only and return its descriptor.

    A FIFO would block for ever, a device could answer anything; neither is opened for reading.

    Raises:
        BadInput: (as `kind`) there is no such file, or it is no regular file.
        EnvironmentProblem: the file may not be read.
    """
    try:
        # O_NONBLOCK: opening a FIFO returns at once, and fstat then tells what it is.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        saw = (error.strerror or "").lower()
        raise kind(f"there is no file {path}", saw=saw, fix="check the path") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FILE:
            raise EnvironmentProblem(
                f"{path} may not be read", saw=str(error), fix="check its permissions and the disk"
            ) from None
        raise kind(f"{path} cannot be opened", saw=str(error), fix="name a regular file") from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise kind(
                f"{path} is no regular file", saw=kind_of(mode), fix="name a file that holds data"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def kind_of(mode: int) -> str:
    """The kind of a file, in words, by its mode."""
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
    """What tells whether a file is still the one it was."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


#: The descriptors that stay open in `kept_open`, and what closes them.
_kept: ContextVar[tuple[dict[Path, int], ExitStack] | None] = ContextVar("kept", default=None)
_MOST_KEPT = 64


@contextmanager
def opened(path: Path, kind: type[BadInput] = BadCheckpoint) -> Iterator[int]:
    """`open_regular` for a with statement; a file that is kept open is not opened again."""
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
    """Inside, the files of checkpoints stay open, so that each of them is opened once.

    They are read at offsets only, so several readers can use one descriptor.
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
    """`opened` for a file of a checkpoint: it stays open until the outermost `kept_open` ends."""
    with kept_open(), opened(path) as fd:
        kept = _kept.get()
        if kept is not None and len(kept[0]) < _MOST_KEPT and _kept_descriptor(path) is None:
            kept[0][path] = os.dup(fd)
            kept[1].callback(os.close, kept[0][path])
        yield fd


def _kept_descriptor(path: Path) -> int | None:
    """The descriptor that is kept open, if the file still has this name."""
    fd = kept[0].get(path) if (kept := _kept.get()) else None
    with contextlib.suppress(OSError):
        if fd is not None and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    return None


def read_at(fd: int, start: int, size: int) -> bytes:
    """Exactly `size` bytes from offset `start`; fewer there is an error.

    Raises:
        BadCheckpoint: the file ends before.
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
    """A buffer for reading in bulk, at the start of a page.

    A bytearray begins 16 bytes into one, where AMD's processors copy at a sixth of their speed.
    """
    return memoryview(mmap.mmap(-1, size))


def read_whole(path: Path, limit: int, kind: type[BadInput] = BadCheckpoint) -> bytes:
    """All bytes of a small regular file, at most `limit` of them.

    Raises:
        BadInput: (as `kind`) larger than the limit, or a git-lfs pointer.
    """
    with opened(path, kind) as fd:
        size = os.fstat(fd).st_size
        if size > limit:
            raise kind(
                f"{path.name} is larger than such a file can be",
                saw=f"{size:,} bytes, at most {limit:,}",
                fix="check that this is the right file",
            )
        data = read_at(fd, 0, size)
    refuse_lfs_pointer(path, data[:64], kind)
    return data


def refuse_lfs_pointer(path: Path, head: bytes, kind: type[BadInput] = BadCheckpoint) -> None:
    """Say so when a file is git-lfs' note about a file, not the file."""
    if head.startswith(LFS_MAGIC):
        raise kind(
            f"{path.name} is a git-lfs pointer, not the file itself",
            saw="a text that begins with 'version https://git-lfs'",
            fix="git lfs pull",
        )


#: How a digest is written: this and 64 hexadecimal digits.
PLAIN = "sha256:"
#: A tree of SHA-256, which earlier versions wrote; many cores can compute it.
TREE = "sha256-tree-16MiB:"
BLOCK = 16 << 20
#: A digest of the same length as any other.
NO_DIGEST = PLAIN + "0" * 64

_LARGE = 64 << 20
#: Bytes read at once, into one buffer a thread. After each step a thread must wait until the other
#: threads let go of the interpreter, so the steps are large.
_STEP = 4 << 20
_MOST_THREADS = 16
_begun: dict[tuple[int, ...], Hashing] = {}


class Hashing:
    """The digest of an open file, computed by threads of its own.

    "sha256:" is the SHA-256 of the file, by one thread. "sha256-tree-16MiB:" is computed on all
    cores: the file is divided into blocks of 16 MiB, of which the last may be shorter, and the
    digest is the SHA-256 of the SHA-256 values of all blocks (32 bytes each, in order). An empty
    file has no blocks.

    Args:
        fd: a descriptor; it is duplicated, so the file may be closed meanwhile.
        form: `PLAIN` or `TREE`.
    """

    def __init__(self, fd: int, form: str = PLAIN) -> None:
        self._fd, self._stop, self._lock = os.dup(fd), threading.Event(), threading.Lock()
        self._form, size = form, os.fstat(fd).st_size
        self._block = BLOCK if form == TREE else size
        self._digests = [b""] * (-(-size // BLOCK) if form == TREE else 1)
        self._todo = iter(range(len(self._digests)))
        self._error: BaseException | None = None
        self._result: Future[str] = Future()
        self._working = max(1, min(len(self._digests), _cores(), _MOST_THREADS))
        for _ in range(self._working):
            # Daemons: a command that ends in an error does not wait for them.
            threading.Thread(target=self._run, daemon=True).start()

    def result(self) -> str:
        """Wait for the digest.

        Raises:
            OSError: the file could not be read.
        """
        return self._result.result()

    def stop(self) -> None:
        """Give up; what `result` returns then is of no use."""
        self._stop.set()

    def _run(self) -> None:
        try:
            buffer = page_buffer(_STEP)
            while not self._stop.is_set() and (number := self._next()) is not None:
                self._digests[number] = self._block_digest(number * self._block, buffer)
        except BaseException as error:
            self._error = error
        with self._lock:
            self._working -= 1
            if not self._working:
                self._finish()

    def _next(self) -> int | None:
        with self._lock:
            return None if self._error else next(self._todo, None)

    def _finish(self) -> None:
        with contextlib.suppress(OSError):  # it was opened for reading: nothing can be lost
            os.close(self._fd)
        if self._error is not None:
            self._result.set_exception(self._error)
        else:
            joined = b"".join(self._digests)
            whole = hashlib.sha256(joined).digest() if self._form == TREE else joined
            self._result.set_result(self._form + whole.hex())

    def _block_digest(self, start: int, buffer: memoryview) -> bytes:
        """The SHA-256 of the block that begins at `start`."""
        digest, stop = hashlib.sha256(), start + self._block
        while start < stop and not self._stop.is_set():
            count = os.preadv(self._fd, [buffer[: stop - start]], start)
            if not count:
                break
            digest.update(buffer[:count])
            start += count
        return digest.digest()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def begin(words: Sequence[str]) -> None:
    """Begin to hash the large file that is about to be patched, before typer is even loaded.

    Args:
        words: of the command line; all but `apply MODEL` is left to others.
    """
    if "apply" not in words or "--dry-run" in words:
        return
    for word in words:
        with contextlib.suppress(OSError, ValueError):
            if Path(word).is_file() and Path(word).stat().st_size >= _LARGE:
                with Path(word).open("rb") as file:
                    _begun[_identity(file.fileno())] = Hashing(file.fileno())
                return


def hashing_of(fd: int) -> Hashing:
    """The plain hashing of an open file: the one that was begun, if the file is still the same."""
    return _begun.pop(_identity(fd), None) or Hashing(fd)


def _identity(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Front:
    """How far a file that is being written is final; who reads it waits for the part."""

    def __init__(self) -> None:
        self._at, self._changed, self._given_up = 0, threading.Condition(), False

    def advance(self, to: int) -> None:
        """Everything before offset `to` is final now."""
        with self._changed:
            self._at = max(self._at, to)
            self._changed.notify_all()

    def give_up(self) -> None:
        """The file will not be finished: nobody need wait, or go on reading."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def wait(self, to: int) -> None:
        """Wait until everything before offset `to` is final.

        Raises:
            RuntimeError: it will never be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._at >= to or self._given_up)
            if self._given_up:
                raise RuntimeError("the writing was given up")
