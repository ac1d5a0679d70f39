"""The tasks in progress and how far each one is, for progress lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

#: In seconds; tests replace it.
clock: Callable[[], float] = time.monotonic
_works: list[Work] = []


@dataclass(slots=True, eq=False)
class Work:
    """One task in progress; `tick` updates it."""

    title: str
    """What is being done: `evaluating model.pth`."""
    unit: str = ""
    """What is counted, such as `images`; empty if nothing is counted."""
    total: int | None = None
    done: int = 0
    began: float = field(default_factory=lambda: clock())

    def tick(self, done: int, total: int | None = None) -> None:
        """Set how much is done; a smaller number than before restarts the clock (a new epoch)."""
        if done < self.done:
            self.began = clock()
        self.done, self.total = done, self.total if total is None else total


@contextmanager
def long_work(title: str, unit: str = "", total: int | None = None) -> Iterator[Work]:
    """Register a task for the duration of the block.

    Example:
        >>> with long_work("counting", "images", total=10) as work:
        ...     work.tick(5)
        ...     current().done
        5
        >>> current()
    """
    work = Work(title, unit, total)
    _works.append(work)
    try:
        yield work
    finally:
        _works.remove(work)


def found(unit: str, number: int) -> None:
    """Add `number` to the current task if it counts this unit."""
    work = current()
    if work is not None and work.unit == unit:
        work.done += number


def current() -> Work | None:
    """Return the unfinished task that started last."""
    return _works[-1] if _works else None
