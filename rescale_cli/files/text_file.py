"""A small text file, written aside and renamed: there whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from rescale_cli.errors import UsageError
from rescale_cli.files.staging import Staging, refuse_existing, system_errors, write_new


def refuse_outputs(named: Mapping[str, Path | None], *, force: bool) -> None:
    """Stop before the work if two outputs have one name, or one could not be written.

    Args:
        named: option -> where it will go; None where it was not given.
        force: whether files that are there may be replaced.

    Raises:
        UsageError: two have one name.
        BadInput, OutputExists: see `refuse_output`.
    """
    given = {option: path for option, path in named.items() if path is not None}
    refuse_one_name(given)
    for option, path in given.items():
        refuse_output(path, option, force=force)


def refuse_one_name(given: Mapping[str, Path]) -> None:
    """Stop if two options name one output.

    Raises:
        UsageError: they do.
    """
    seen: set[Path] = set()
    for option, path in given.items():
        if path in seen:
            raise UsageError("two outputs have one name", saw=str(path), fix=f"{option} FILE")
        seen.add(path)


def refuse_output(path: Path, option: str, *, force: bool, folder: bool = False) -> None:
    """Stop before the work if its result could not be written: `write_text` would refuse, too.

    Args:
        path: where it will go.
        option: which option says so, for the error.
        force: whether a file that is there may be replaced.
        folder: whether it will be a folder.

    Raises:
        BadInput: there is no such folder.
        OutputExists: something has that name, and may not be replaced.
    """
    with system_errors(f"writing {path} ({option})"):
        refuse_existing(path, replace=force, folder=folder)
        with Staging(path.parent, replace=force):
            pass


def write_text(path: Path, text: str, *, force: bool) -> None:
    """`write_texts` of one."""
    write_texts({path: text}, force=force)


def write_texts(texts: Mapping[Path, str], *, force: bool) -> None:
    """Write texts as UTF-8, readable by whoever may read their folder.

    All of them are on the disk before the first one has its name. A character that UTF-8 does not
    have (half of one, in a file's name) is written as its escape.

    Raises:
        OutputExists: one is there, and may not be replaced.
        EnvironmentProblem: the system refused something.
    """
    with ExitStack() as held:
        made = []
        for path, text in texts.items():
            with system_errors(f"writing {path}"):
                refuse_existing(path, replace=force)
                staging = held.enter_context(Staging(path.parent, replace=force))
                data = text.encode("utf-8", "backslashreplace")
                write_new(staging.aside(path), data, path.parent)
            made.append((path, staging))
        for path, staging in made:
            with system_errors(f"writing {path}"):
                staging.commit()
