"""Signals that stop a program: raised once, and held back where they must not tear anything."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any

#: Ctrl-C, the polite kill, and the terminal that was closed; not every system has all of them.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

#: Whether what is being done is the last step of a command, and whether all is done.
_last: ContextVar[bool] = ContextVar("last", default=False)
_done: ContextVar[bool] = ContextVar("done", default=False)

_Handler = Callable[[int, FrameType | None], Any] | int | None


def hold_back() -> None:
    """Let signals wait, from now until `interruptible`: an import has no way to clean up."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def ignore() -> None:
    """Take no more notice of signals."""
    _replace(signal.SIG_IGN)


@contextlib.contextmanager
def last_step() -> Iterator[None]:
    """Inside, a command does what it is for; once that is done, signals come too late."""
    token = _last.set(True)
    try:
        yield
    finally:
        _last.reset(token)


def committed() -> None:
    """An output has its name. If that was the last step, signals would make it look undone."""
    if _last.get():
        finish()


def finish() -> None:
    """All is done but for telling it: inside `interruptible`, signals come too late from now on."""
    _done.set(True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the first signal raises KeyboardInterrupt; the next do not disturb the cleaning up.

    A signal that was ignored at the start, as under nohup, stays ignored. Afterwards all is as it
    was; but after `hold_back`, signals are ignored: they would make what is done look undone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread handle signals
        return
    masked = hasattr(signal, "pthread_sigmask")
    _done.set(False)
    before = _replace(_stop)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING) if masked else set()
    try:
        yield
    finally:
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if mask.issuperset(STOPPING):
            ignore()
        else:
            _restore(before)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep signals until the block is left, then deliver them; none is lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = _replace(lambda number, _: held.append(number))
    try:
        yield
    finally:
        _restore(before)
        for number in held:
            signal.raise_signal(number)


def _stop(number: int, frame: FrameType | None) -> None:
    if _done.get():
        return
    ignore()
    raise KeyboardInterrupt


def _replace(handler: _Handler) -> dict[int, _Handler]:
    """Install a handler for each signal that is not ignored; the handlers before."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    # None: set by another language, and Python could not put it back.
    before = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    return before


def _restore(handlers: dict[int, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
