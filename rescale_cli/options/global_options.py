"""`-q`, `-v` and `--json`: the options that stand before or after the name of a command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Annotated, Any, get_type_hints

import typer

from rescale_cli.options.stdout_option import stdout_options
from rescale_cli.reports import screen
from rescale_cli.reports.progress import heartbeat

Verbose = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        show_default=False,
        help="Print more details; -vv also prints the traceback of an error.",
    ),
]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print no notes and no progress on stderr.")
]


def begin() -> None:
    """Forget what an earlier command line of this process said."""
    screen.verbosity.set(0)
    screen.quiet.set(False)
    screen.as_json.set(False)
    screen.stdout_taken.set(False)


def remember(verbose: int, *, quiet: bool, as_json: bool) -> None:
    """Add these words of the command line to those before: `-v` counts wherever it stands."""
    screen.verbosity.set(screen.verbosity.get() + verbose)
    screen.quiet.set(screen.quiet.get() or quiet)
    screen.as_json.set(screen.as_json.get() or as_json)


def everywhere(name: str, command: Callable[..., None]) -> Callable[..., None]:
    """Let a command that takes `json` also take `-v` and `-q` after its name.

    The command runs with `json` true if `--json` stands before or after its name. Progress is
    printed while it runs. An output `-` is stdout, see `stdout_option`.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters = [
        p.replace(annotation=hints[p.name], kind=Parameter.KEYWORD_ONLY)
        for p in inspect.signature(command).parameters.values()
    ]
    for word, default, kind in (("verbose", 0, Verbose), ("quiet", False, Quiet)):
        parameters.append(Parameter(word, Parameter.KEYWORD_ONLY, default=default, annotation=kind))

    @functools.wraps(command)
    def run(*, json: bool, verbose: int, quiet: bool, **words: Any) -> None:
        remember(verbose, quiet=quiet, as_json=json)
        taken = stdout_options(name, words, as_json=screen.as_json.get())
        screen.stdout_taken.set(bool(taken))
        with heartbeat(name):
            command(**{**words, **taken}, json=screen.as_json.get())

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
