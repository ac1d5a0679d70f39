"""Signals that stop the program: interrupt it once, and never in the middle of a critical step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any

#: Ctrl-C, `kill`, and a closed terminal; not every system has all of them.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

#: Whether the last step of a command is running, and whether the command has finished its work.
_last: ContextVar[bool] = ContextVar("last", default=False)
_done: ContextVar[bool] = ContextVar("done", default=False)

_Handler = Callable[[int, FrameType | None], Any] | int | None


def hold_back() -> None:
    """Block signals from now until `interruptible`: an import cannot clean up after itself."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def ignore() -> None:
    """Ignore all further signals."""
    _replace(signal.SIG_IGN)


@contextlib.contextmanager
def last_step() -> Iterator[None]:
    """Mark the step that completes a command: after `committed` in it, signals are ignored."""
    token = _last.set(True)
    try:
        yield
    finally:
        _last.reset(token)


def committed() -> None:
    """Note that an output has its final name; in the `last_step`, this ends the command's work.

    A signal after that would report a failure although the output is complete.
    """
    if _last.get():
        finish()


def finish() -> None:
    """Ignore signals from now on inside `interruptible`: only the report is left to print."""
    _done.set(True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on the first signal, and ignore the next ones during the clean-up.

    A signal that was ignored at the start, as under nohup, stays ignored. Afterwards the former
    handlers are restored; after `hold_back`, signals are ignored instead, since they would report
    a failure although the work is complete.
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
    """Delay signals until the end of the block, then deliver each of them."""
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
    """Install a handler for each signal that is not ignored, and return the former handlers."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    # None: a handler that was not installed from Python, so Python could not restore it.
    before = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    return before


def _restore(handlers: dict[int, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
