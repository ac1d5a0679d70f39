"""The command line that runs, so that an error can give the one to type instead."""

from __future__ import annotations

import shlex
from contextvars import ContextVar

#: What was typed behind the program's name; empty where a program calls this package.
typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def again(*more: str) -> str:
    """The same command with more options, ready to paste; the options alone if there is none.

    Example:
        >>> again("--size", "32")
        '--size 32'
    """
    words = typed.get()
    return shlex.join(["rescale-cli", *words, *more] if words else more)
