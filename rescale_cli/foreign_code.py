"""Code that is not the tool's own and is about to run: announced before it does.

Two things can run such code: a TorchScript file whose model is run, and a `python:` source that
the user names. Each calls `announce` first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar

#: Who is told. Without a command line, the log of the package.
listener: ContextVar[Callable[[str], None]] = ContextVar(
    "listener", default=logging.getLogger("rescale_cli").warning
)


def announce(text: str) -> None:
    """Say what code is about to run, and where it comes from."""
    listener.get()(text)
