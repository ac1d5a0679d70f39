"""The console: a text or one JSON document on stdout, and messages on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import typer

from rescale_cli.errors import AmbiguousHead, NotImages, NotPrinted, RescaleError
from rescale_cli.files.staging import written
from rescale_cli.json_text import clip, finite, printable
from rescale_cli.signals import finish

if TYPE_CHECKING:
    from rich.text import Text


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


#: A space at which no line is broken.
_KEPT = "\u00a0"
#: What stands for characters that a terminal cannot show.
_PLAINER = str.maketrans({
    **dict.fromkeys("▁▂", "."), **dict.fromkeys("▃▄▅", ":"), **dict.fromkeys("▆▇█", "#"),
    "▲": "^", "…": "...", "γ": "gamma", "τ": "tau", "→": "->", "±": "+-", "≤": "<=", "≥": ">=",
})  # fmt: skip

#: The options `-q`, `-v` and `--json` of the command that is running.
quiet: ContextVar[bool] = ContextVar("quiet", default=False)
verbosity: ContextVar[int] = ContextVar("verbosity", default=0)
as_json: ContextVar[bool] = ContextVar("as_json", default=False)
#: Whether an output of the command goes to stdout, so that nothing else may be printed there.
stdout_taken: ContextVar[bool] = ContextVar("stdout_taken", default=False)
#: How to hide the progress bar on stderr and how to show it again; empty without a bar.
live: list[tuple[Callable[[], None], Callable[[], None]]] = []
#: The announcements of code that the running command is about to run.
announced: ContextVar[tuple[str, ...]] = ContextVar("announced", default=())


@dataclass(frozen=True, slots=True)
class Screen:
    """The output of one command."""

    command: str
    as_json: bool

    def result(
        self,
        result: dict[str, Any],
        warnings: Sequence[Warning_],
        show: Callable[[], object],
        failed: RescaleError | None = None,
    ) -> None:
        """Print the result: as JSON, or by `show` with the warnings on stderr.

        With `failed`, the work is complete but its result is not good enough, and both are printed.
        Signals are ignored from here on, so there is one document, never two. If the reader of
        stdout has gone, the exit code is still that of the result.

        Raises:
            NotPrinted: stdout could not be written; if `failed`, that is only printed.
            typer.Exit: with the exit code of `failed`.
        """
        finish()
        try:
            with printing():
                self._show(result, warnings, show, failed)
        except NotPrinted as lost:
            if failed is None:
                raise
            replace(self, as_json=False).error(lost)
            if self.as_json:
                replace(self, as_json=False).error(failed)
        if failed is not None:
            if not self.as_json:
                self.error(failed)
            raise typer.Exit(failed.exit_code)

    def _show(
        self,
        result: dict[str, Any],
        warnings: Sequence[Warning_],
        show: Callable[[], object],
        failed: RescaleError | None,
    ) -> None:
        if not self.as_json:
            self.warn(warnings)
            if not stdout_taken.get():
                show()
            elif not quiet.get():
                with redirect_stdout(sys.stderr):
                    show()
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
        """Print what is wrong, what was found, and how to fix it."""
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


@contextmanager
def printing() -> Iterator[None]:
    """A block in which stdout is written. It is flushed at the end.

    If its reader has gone, as with `| head -1`, the block ends early and nothing else happens.

    Raises:
        NotPrinted: stdout could not be written. The files that the command wrote are named.
    """
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich makes the first the second
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        files = ", ".join(map(str, written.get()))
        done = f"; these files are complete: {files}" if files else ""
        raise NotPrinted(
            "the command did its work, but its result could not be printed",
            saw=f"writing stdout failed: {(error.strerror or str(error)).lower()}{done}",
            fix="send stdout somewhere that can be written, such as a disk with free space",
        ) from error


def discard(stream: TextIO) -> None:
    """Send everything that is still to be written to a stream to the null device."""
    with suppress(OSError, ValueError):  # a stream without a descriptor has nothing to replace
        number, null = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


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
    """Print at once, on stderr, what code is about to run. The JSON document repeats it."""
    if text not in announced.get():
        announced.set((*announced.get(), text))
        tell_note(text)


def tell_note(text: str) -> None:
    """Print a note on stderr at once, unless `-q` is given."""
    if not quiet.get():
        talk("note", text)


def talk(kind: str, text: str, style: str = "") -> None:
    """Print one line on stderr, above the progress bar if any, in colour on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    start = Text.assemble((f"{kind}:", style), " ") if kind else Text()
    with console.capture() as line:
        console.print(start.append(drawable(plain(text), sys.stderr)))
    to_stderr(line.get())


def to_stderr(text: str) -> None:
    """Write to stderr. If that fails, nobody reads stderr, and the work goes on."""
    try:
        with _no_bar():
            sys.stderr.write(text)
            sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def animates() -> bool:
    """Whether stderr is a terminal that can show a moving progress bar."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextmanager
def above(hide: Callable[[], None], show: Callable[[], None]) -> Iterator[None]:
    """A block in which a progress bar is shown. It is hidden while a line is printed."""
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


class Whole(str):
    """A line that people copy, such as a command: it is never wrapped."""

    __slots__ = ()


class Fitting(Protocol):
    """Something that fits any width, such as `tables.Grid`."""

    def lines(self, room: int) -> Sequence[Any]:
        """Its lines, at most `room` wide if no word is longer."""


def say(*lines: str | Text | Fitting) -> None:
    """Print lines and tables on stdout. On a terminal, sentences are wrapped at spaces."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    read = sys.stdout.isatty() or _columns() is not None
    for line in lines:
        if isinstance(line, str):
            text = drawable(plain(line)).replace(_KEPT, " ")
            whole = isinstance(line, Whole) or not read
            shown: Sequence[Any] = [text] if whole else fold(text, width())
        else:
            shown = [line] if isinstance(line, Text) else line.lines(width())
        for one in shown:
            console.print(one)


def width() -> int:
    """Columns for a table: COLUMNS, those of the terminal, or 80; at most 200."""
    columns = _columns()
    if columns is None and sys.stdout.isatty():
        with suppress(OSError, ValueError):
            columns = os.get_terminal_size(sys.stdout.fileno()).columns
    return min(columns or 80, 200)


def _columns() -> int | None:
    text = os.environ.get("COLUMNS", "")
    return (int(text) or None) if text.isascii() and text.isdecimal() else None


def fold(text: str, room: int) -> list[str]:
    """A text in lines of at most `room` columns, broken at spaces alone; a longer word stays whole.

    Lines after the first are indented as it is. A no-break space is shown as a space.

    Example:
        >>> fold("  a long sentence", 10)
        ['  a long', '  sentence']
    """
    from rich.cells import cell_len

    indent = text[: len(text) - len(text.lstrip(" "))]
    lines, line = [], text if cell_len(text) <= room else ""
    for word in filter(None, () if line else text.split(" ")):
        longer = f"{line} {word}" if line else indent + word
        if line and cell_len(longer) > room:
            lines.append(line)
            longer = indent + word
        line = longer
    return [one.replace(_KEPT, " ") for one in (*lines, line)]


def drawable(text: str, stream: TextIO | None = None) -> str:
    """A text with ASCII in place of blocks, arrows and Greek, if the stream cannot show them."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate(_PLAINER)
    return text
