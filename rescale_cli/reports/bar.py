"""The bar on a terminal, and how it makes room for what is printed meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from rescale_cli.reports import screen


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int, float], None]]:
    """A bar on stderr, to be called with (done, all, per second); it leaves nothing behind.

    `screen.talk` takes it away while it prints a line.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]} images/s", markup=False),
        TimeRemainingColumn(),
    )
    # What goes to stdout must stay there; only on a terminal could it tear the bar.
    shown = Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()
    )
    task = shown.add_task(title, total=None, speed="-")
    with shown, screen.above(shown.stop, shown.start):
        yield lambda done, total, per_second: shown.update(
            task, completed=done, total=total, speed=f"{per_second:,.0f}"
        )
