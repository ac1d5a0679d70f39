"""`--help` that breaks no word: Typer would also break at hyphens, as in --label-order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

#: Looks like a hyphen, and no line is broken at it.
_HYPHEN = "\u2011"


#: The class of Typer's formatter, which has no public name of its own.
_Formatter: Any = typer.Context.formatter_class


class _Whole(_Formatter):  # type: ignore[misc]  # its type is only known to Typer
    """Typer's formatter, with hyphens that hold together until the text is finished."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _HYPHEN))

    def write_dl(self, rows: Sequence[tuple[str, str]], *more: Any, **words: Any) -> None:
        rows = [(first, second.replace("-", _HYPHEN)) for first, second in rows]
        super().write_dl(rows, *more, **words)

    def getvalue(self) -> str:
        return str(super().getvalue()).replace(_HYPHEN, "-")


class Command(TyperCommand):
    """A command whose help breaks no word."""

    def get_help(self, ctx: Any) -> str:
        """The text of --help."""
        ctx.formatter_class = _Whole
        return super().get_help(ctx)


class Group(TyperGroup):
    """The same for the list of commands."""

    def get_help(self, ctx: Any) -> str:
        """The text of --help."""
        ctx.formatter_class = _Whole
        return super().get_help(ctx)
