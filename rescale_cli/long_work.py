"""What the program is busy with, for whoever shows it: each work, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

#: Seconds; a test puts a clock of its own here.
clock: Callable[[], float] = time.monotonic
_works: list[Work] = []


@dataclass(slots=True, eq=False)
class Work:
    """One piece of work; it changes as it goes on."""

    title: str
    """What is being done: `evaluating model.pth`."""
    unit: str = ""
    """What is counted: `images`; empty if nothing is."""
    total: int | None = None
    done: int = 0
    began: float = field(default_factory=lambda: clock())

    def tick(self, done: int, total: int | None = None) -> None:
        """So much is done. If it is less than before, the work began anew, as an epoch does."""
        if done < self.done:
            self.began = clock()
        self.done, self.total = done, self.total if total is None else total


@contextmanager
def long_work(title: str, unit: str = "", total: int | None = None) -> Iterator[Work]:
    """Inside, this is what the program is doing.

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
    """So many more are found, if such things are being counted now."""
    work = current()
    if work is not None and work.unit == unit:
        work.done += number


def current() -> Work | None:
    """The work that began last, of those that have not ended."""
    return _works[-1] if _works else None
