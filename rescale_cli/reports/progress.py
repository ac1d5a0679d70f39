"""How a long pass goes: a bar on stderr where a person watches, and notes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rescale_cli.reports.screen import Warning_, plain, quiet, talk

Progress = Callable[[int, int, float], None]


@contextmanager
def progress_bar(title: str) -> Iterator[Progress | None]:
    """A bar with images per second and time left, to be called with (done, all, per second).

    None where stderr is no terminal, or with -q.
    """
    if quiet.get() or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]} images/s", markup=False),
        Left(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(plain(title), total=None, speed="-")

        def show(done: int, total: int, per_second: float) -> None:
            bar.update(task, completed=done, total=total, speed=f"{per_second:,.0f}")

        yield show


class Notes:
    """What is said while a command is at work: at once, or with --json among the warnings."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._said: dict[str, None] = {}

    @property
    def kept(self) -> list[Warning_]:
        """What is yet to be said, by the document."""
        return [("note", text) for text in self._said] if self._as_json else []

    def __call__(self, text: str) -> None:
        """Say it, once, unless asked to be quiet."""
        if text not in self._said and not self._as_json and not quiet.get():
            talk("note", text)
        self._said[text] = None
