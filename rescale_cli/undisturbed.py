"""Moments that a signal must not tear: it is held back, then delivered."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

#: Ctrl-C, the polite kill, and the terminal that was closed; not every system has all of them.
STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back the signals that stop a program until the block is left; none is lost."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread only
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in STOPPING}
    # None: a handler that Python did not set and could not put back.
    changed = {number: handler for number, handler in before.items() if handler is not None}
    try:
        for number, handler in changed.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: held.append(number))
        yield
    finally:
        for number, handler in changed.items():
            signal.signal(number, handler)
        for number in held:
            signal.raise_signal(number)
