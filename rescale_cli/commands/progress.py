"""Progress: a bar on a terminal, otherwise a plain line every half minute; and notes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rescale_cli import long_work
from rescale_cli.commands import console
from rescale_cli.commands.console import Warning_, plain, quiet, talk, verbosity
from rescale_cli.foreign_code import Detail
from rescale_cli.long_work import Work


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int, float], None]]:
    """A bar on stderr, called with (done, total, per second). It is removed at the end.

    `console.talk` hides it while it prints a line.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Rich,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]} images/s", markup=False),
        TimeRemainingColumn(),
    )
    # What goes to stdout must stay there; only on a terminal could it tear the bar.
    shown = Rich(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()
    )
    task = shown.add_task(title, total=None, speed="-")
    with shown, console.above(shown.stop, shown.start):
        yield lambda done, total, per_second: shown.update(
            task, completed=done, total=total, speed=f"{per_second:,.0f}"
        )


Progress = Callable[[int, int, float], None]

#: Seconds between two lines: a little less than 30, so that no silence lasts longer.
EVERY = 29.0


@contextmanager
def progress_bar(title: str, doing: str = "evaluating") -> Iterator[Progress | None]:
    """A bar with images per second and time left, called with (done, total, per second).

    If stderr is not a terminal, `heartbeat` prints the progress instead. With -q there is no
    progress, and this yields None.
    """
    if quiet.get():
        yield None
        return
    with long_work.long_work(f"{doing} {title}".strip(), "images") as work:
        if not console.animates():
            yield lambda done, total, _: work.tick(done, total)
            return

        with bar(plain(title)) as show:
            yield show


@contextmanager
def heartbeat(
    command: str, stopped: Callable[[threading.Event, float], bool] = threading.Event.wait
) -> Iterator[None]:
    """Print what the program is doing every `EVERY` seconds while the block runs.

    It prints nothing with -q, while a bar is shown, and on other ranks than 0 of torchrun.

    Args:
        command: the name that is shown while no work has a title.
        stopped: waits for this many seconds, and returns whether the block has ended.
    """
    if quiet.get() or os.environ.get("RANK", "0") != "0":
        yield
        return
    whole, end = Work(command), threading.Event()

    def beat() -> None:
        while not stopped(end, EVERY):
            if not console.live:
                talk("", progress_line(long_work.current() or whole, long_work.clock()))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(1)  # it may be stuck in a stderr that nobody reads


def progress_line(work: Work, now: float) -> str:
    """How much of the work is done, and the time it has taken or will take.

    Example:
        >>> half = Work("evaluating a.pth", "images", total=50_000, done=12_800, began=0.0)
        >>> progress_line(half, now=27.5)
        'evaluating a.pth: 12,800 of 50,000 images, 25 %, 1 min 20 s left'
        >>> progress_line(Work("counting data", "images", done=1200, began=0.0), now=90.0)
        'counting data: 1,200 images, 1 min 30 s so far'
        >>> progress_line(Work("apply", began=0.0), now=29.0)
        'apply: 29 s so far'
    """
    spent = max(0.0, now - work.began)
    if not work.unit or not work.done:
        return f"{work.title}: {duration(spent)} so far"
    if work.total is None:
        return f"{work.title}: {work.done:,} {work.unit}, {duration(spent)} so far"
    share = work.done / max(work.total, 1)
    part = f"{work.done:,} of {work.total:,} {work.unit}, {int(100 * share)} %"
    left = f", {duration(spent * (1 - share) / share)} left" if share <= 1 else ""
    return f"{work.title}: {part}{left}"


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> [duration(s) for s in (0.4, 59, 80, 3600, 9000)]
        ['0 s', '59 s', '1 min 20 s', '1 h 0 min', '2 h 30 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Notes:
    """Notes of a running command: printed at once, or with --json listed among the warnings."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._said: dict[str, None] = {}

    @property
    def kept(self) -> list[Warning_]:
        """The notes for the JSON document."""
        return [("note", text) for text in self._said] if self._as_json else []

    def __call__(self, text: str) -> None:
        """Print a note once, unless -q is given. A detail is printed only with -v."""
        if isinstance(text, Detail) and not verbosity.get():
            return
        if text not in self._said and not self._as_json and not quiet.get():
            talk("note", text)
        self._said[text] = None
