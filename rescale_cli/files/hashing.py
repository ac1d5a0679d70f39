"""The SHA-256 of large files, beside other work.

The record of a re-scaling holds the hash of the source, and the hash of the output covers the
record: one has to follow the other, and together they take longer than all the rest. So the first
one begins as soon as the source is known, even before the rest of the tool is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import TypeVar

from rescale_cli.files.regular_file import page_buffer

T = TypeVar("T")

_LARGE = 64 << 20
#: Small enough to stay in a cache between being read and being hashed.
_CHUNK = 4 << 20
_begun: dict[tuple[int, ...], Hashing] = {}


class Hashing:
    """The SHA-256 of an open file, in hexadecimal.

    Args:
        fd: a descriptor; it is duplicated, so the file may be closed meanwhile.
    """

    def __init__(self, fd: int) -> None:
        self._fd, self._stop = os.dup(fd), threading.Event()
        self._result: Future[str] = Future()
        # Daemons: a command that ends in an error does not wait for them.
        threading.Thread(target=self._run, daemon=True).start()

    def result(self) -> str:
        """Wait for it.

        Raises:
            OSError: the file could not be read.
        """
        return self._result.result()

    def stop(self) -> None:
        """Give up; what `result` returns then is of no use."""
        self._stop.set()

    def _run(self) -> None:
        try:
            self._result.set_result(sha256_of(self._fd, self._stop))
        except BaseException as error:
            self._result.set_exception(error)
        finally:
            with contextlib.suppress(OSError):  # it was opened for reading: nothing can be lost
                os.close(self._fd)


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
    """The hashing of an open file: the one that was begun, if the file is still the same."""
    return _begun.pop(_identity(fd), None) or Hashing(fd)


def _identity(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def sha256_of(fd: int, stop: threading.Event | None = None) -> str:
    """The SHA-256 of a whole file, in hexadecimal; cut short if `stop` is set."""
    digest = hashlib.sha256()
    for block in _one_ahead(_blocks(fd)):
        if stop is not None and stop.is_set():
            break
        digest.update(block)
    return digest.hexdigest()


def _blocks(fd: int, wait: Callable[[int], None] = lambda to: None) -> Iterator[memoryview]:
    """The bytes of a file, in order; a block is good until the next but one.

    Args:
        fd: the file.
        wait: called with the end of each block before it is read.
    """
    buffers, at = cycle([page_buffer(_CHUNK), page_buffer(_CHUNK)]), 0
    while True:
        buffer = next(buffers)
        wait(at + _CHUNK)
        count = os.preadv(fd, [buffer], at)
        if not count:
            return
        at += count
        yield buffer[:count]


def _one_ahead(blocks: Iterator[T]) -> Iterator[T]:
    """Make the next block in a thread of its own while one is used: reading takes no time then."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = reader.submit(next, blocks, None)
            yield block


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


def sha256_behind(fd: int, size: int, front: Front, headed: Future[bytes]) -> str:
    """The SHA-256 of a file of our own making, computed behind the front of its writing."""
    headed.result()
    digest = hashlib.sha256()
    for block in _one_ahead(_blocks(fd, lambda to: front.wait(min(to, size)))):
        digest.update(block)
    return digest.hexdigest()
