"""Compute the SHA-256 of a large file in the background.

Hashing begins as soon as the file is known, even before the rest of the tool is loaded: the header
of the output contains the digest of the source, so the output can only be hashed after the source.
hashlib.file_digest is not used, because it cannot be stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from rescale_cli.files.reading import page_buffer

#: A digest is written as this prefix and 64 hexadecimal digits.
PLAIN = "sha256:"
#: A tree of SHA-256, which earlier versions wrote and many cores can compute.
TREE = "sha256-tree-16MiB:"
BLOCK = 16 << 20
#: A placeholder with the length of a digest.
NO_DIGEST = PLAIN + "0" * 64

_LARGE = 64 << 20
#: Bytes per read, into one buffer per thread. After each step, a thread waits for the interpreter
#: lock, so the steps are large.
_STEP = 4 << 20
_MOST_THREADS = 16
_begun: dict[tuple[int, ...], Hashing] = {}


class Hashing:
    """The digest of an open file, computed by background threads.

    "sha256:" is the SHA-256 of the file, by one thread. "sha256-tree-16MiB:" is computed on all
    cores: the file is divided into blocks of 16 MiB, of which the last may be shorter, and the
    digest is the SHA-256 of the SHA-256 values of all blocks (32 bytes each, in order). An empty
    file has no blocks.

    Args:
        fd: a descriptor; it is duplicated, so the caller may close it.
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
        """Stop early; `result` is then meaningless."""
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
        with contextlib.suppress(OSError):  # opened read-only, so no data can be lost
            os.close(self._fd)
        if self._error is not None:
            self._result.set_exception(self._error)
        else:
            joined = b"".join(self._digests)
            whole = hashlib.sha256(joined).digest() if self._form == TREE else joined
            self._result.set_result(self._form + whole.hex())

    def _block_digest(self, start: int, buffer: memoryview) -> bytes:
        """Return the SHA-256 of the block that begins at `start`."""
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


def begin_hashing(words: Sequence[str]) -> None:
    """Start hashing the large file that `apply` will patch, before typer is loaded.

    Args:
        words: the command line; other commands are ignored.
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
    """Return the plain hashing of an open file: the one in progress if the file is unchanged."""
    return _begun.pop(_identity(fd), None) or Hashing(fd)


def _identity(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
