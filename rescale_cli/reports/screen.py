"""What a person or a program reads: text or one JSON document on stdout, talk on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rescale_cli.errors import AmbiguousHead, NotImages, RescaleError
from rescale_cli.json_text import clip, printable
from rescale_cli.signals import finish

Warning_ = tuple[str, str]

#: The marks by which CI systems take a line for a command.
_COMMAND = re.compile(r"::|##(?=\[|vso)")
#: Characters of an error's line: names in a file may be as long as they like.
_LONGEST = 4000


def plain(text: object) -> str:
    r"""A text from outside as one harmless line.

    Example:
        >>> plain("fc\n::error::no")
        'fc\\n\\x3a:error\\x3a:no'
    """
    return _COMMAND.sub(lambda m: f"\\x{ord(m[0][0]):02x}{m[0][1:]}", printable(str(text)))


#: What `-q`, `-v` and `--json` said, for the command that is running.
quiet: ContextVar[bool] = ContextVar("quiet", default=False)
verbosity: ContextVar[int] = ContextVar("verbosity", default=0)
as_json: ContextVar[bool] = ContextVar("as_json", default=False)
#: How to hide the bar that is shown on stderr, and how to show it again; empty if there is none.
live: list[tuple[Callable[[], None], Callable[[], None]]] = []
#: What code the command that is running has announced.
announced: ContextVar[tuple[str, ...]] = ContextVar("announced", default=())


@dataclass(frozen=True, slots=True)
class Screen:
    """Where one command speaks."""

    command: str
    as_json: bool

    def result(
        self,
        result: dict[str, Any],
        warnings: Sequence[Warning_],
        show: Callable[[], object],
        failed: RescaleError | None = None,
    ) -> None:
        """Print what came out: as JSON, or by `show`, with the warnings on stderr.

        With `failed`, all was done and what came out is not good enough: both are told. A signal
        comes too late now: there is one document, never two.
        """
        finish()
        if not self.as_json:
            self.warn(warnings)
            show()
            if failed is not None:
                self.error(failed)
            return
        every = [*(("runs-code", text) for text in announced.get()), *warnings]
        listed = [{"code": code, "message": message} for code, message in every]
        said = {} if failed is None else {"error": _fields(failed)}
        self._document({"ok": failed is None, **said, "result": result, "warnings": listed})

    def warn(self, warnings: Sequence[Warning_]) -> None:
        """Print the warnings; `-q` hides notes and progress, and no warning."""
        for _, message in warnings:
            talk("warning", message, style="yellow")

    def error(self, error: RescaleError) -> None:
        """Say what went wrong, what was seen, and what to do."""
        said = _fields(error)
        if self.as_json:
            self._document({"ok": False, "error": said})
            return
        talk("error", said["what"], style="bold red")
        if said["saw"]:
            talk("  saw", said["saw"])
        talk("  fix", error.fix if isinstance(error, NotImages) else said["fix"], style="green")
        for line in error.lines if isinstance(error, NotImages) else ():
            talk("", line)  # at the margin, where it can be copied from

    def _document(self, content: dict[str, Any]) -> None:
        document = {"schema": f"rescale-cli/{self.command}@1", **content}
        sys.stdout.write(json.dumps(finite(document), indent=2) + "\n")
        sys.stdout.flush()


def _fields(error: RescaleError) -> dict[str, Any]:
    """An error as JSON."""
    said: dict[str, Any] = {"code": error.code}
    for name in ("what", "saw", "fix"):
        said[name] = clip(getattr(error, name), _LONGEST)
    if isinstance(error, NotImages):
        said["fix"] = "\n".join([said["fix"], *error.lines])
    if isinstance(error, AmbiguousHead):
        said["candidates"] = list(error.candidates)
    return said


def tell_announced(text: str) -> None:
    """Say at once, on stderr, what code is about to run; the JSON document repeats it."""
    if text not in announced.get():
        announced.set((*announced.get(), text))
        if not quiet.get():
            talk("note", text)


def talk(kind: str, text: str, style: str = "") -> None:
    """One line on stderr, above a bar if there is one, in colour where a person reads it."""
    from rich.console import Console
    from rich.text import Text

    with _no_bar():
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        start = Text.assemble((f"{kind}:", style), " ") if kind else Text()
        console.print(start.append(plain(text)))


def animates() -> bool:
    """Whether stderr is a terminal on which a bar can move."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextmanager
def above(hide: Callable[[], None], show: Callable[[], None]) -> Iterator[None]:
    """Inside, a bar is shown, which is hidden while a line is printed."""
    live.append((hide, show))
    try:
        yield
    finally:
        live.pop()


@contextmanager
def _no_bar() -> Iterator[None]:
    for hide, _ in live[-1:]:
        hide()
    try:
        yield
    finally:
        for _, show in live[-1:]:
            show()


def say(*lines: object) -> None:
    """Lines (or rich renderables) on stdout."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    for line in lines:
        console.print(
            plain(line) if isinstance(line, str) else line, soft_wrap=isinstance(line, str)
        )


def finite(value: Any) -> Any:
    """A value as JSON can hold it, which knows no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
