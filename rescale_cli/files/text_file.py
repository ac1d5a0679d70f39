"""A small text file, written aside and renamed: there whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from errno import ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from pathlib import Path

from rescale_cli.errors import OutputExists, RescaleError, UsageError
from rescale_cli.files.staging import Staging, refuse_existing, system_errors, write_new

#: Where a text may go that is not a file: what users call stdout, and what keeps nothing.
STDOUT, NOWHERE = Path("-"), Path(os.devnull)


def refuse_outputs(
    named: Mapping[str, Path | None], *, force: bool, inputs: Iterable[Path] = ()
) -> None:
    """Stop before the work if two outputs have one name, or one could not be written.

    Args:
        named: option -> where it will go; None where it was not given. `STDOUT` and `NOWHERE`
            are always free.
        force: whether files that are there may be replaced.
        inputs: what the command reads, which none of them may be.

    Raises:
        UsageError: two have one name.
        BadInput, OutputExists: see `refuse_output`.
    """
    given = {option: path for option, path in named.items() if path not in (None, STDOUT, NOWHERE)}
    refuse_one_name(given)
    for option, path in given.items():
        refuse_output(path, option, force=force, inputs=inputs)


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


def refuse_output(
    path: Path, option: str, *, force: bool, folder: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Stop before the work if its result could not be written: `write_text` would refuse, too.

    Args:
        path: where it will go.
        option: which option says so, for the error.
        force: whether a file that is there may be replaced.
        folder: whether it will be a folder.
        inputs: what the command reads, which never is.

    Raises:
        BadInput: there is no such folder.
        OutputExists: something has that name, and may not be replaced.
    """
    try:
        with system_errors(f"writing {path} ({option})"):
            refuse_input(path, inputs)
            refuse_existing(path, replace=force, folder=folder)
            with Staging(path.parent, replace=force) as staging:
                write_new(staging.aside(path), b"")  # permissions tell less than a try
    except RescaleError as error:
        error.fix = error.fix.replace("--output", option)
        raise


def refuse_input(output: Path, inputs: Iterable[Path]) -> None:
    """Stop if writing `output` would replace a file that the command reads, by any name of it.

    Args:
        output: a file, or a folder that will be replaced whole.
        inputs: files or folders; those that are not there are let pass.

    Raises:
        OutputExists: one of them is the output, by this or another name, or lies in it.
        OSError: the system cannot tell.
    """
    # realpath, as Path.resolve fails where a link leads to itself.
    place, taken = Path(os.path.realpath(output.parent), output.name), identities([output])
    for path in inputs:
        if identities([path]) & taken or Path(os.path.realpath(path)).is_relative_to(place):
            raise OutputExists(
                "the output is what the command reads",
                saw=f"{output} is {path}, by this or another name, or holds it",
                fix="name another output: --output FILE",
            )


def identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """Device and number of each file that is there."""
    found = set()
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:  # unlike exists(), a failing disk is not taken for "not there"
            if error.errno not in (ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP):
                raise
        else:
            found.add((status.st_dev, status.st_ino))
    return found


def write_text(path: Path, text: str, *, force: bool) -> None:
    """`write_texts` of one."""
    write_texts({path: text}, force=force)


def write_texts(texts: Mapping[Path, str], *, force: bool) -> None:
    """Write texts as UTF-8, with the permissions that the umask leaves.

    All of them are on the disk before the first one has its name, and that for `STDOUT` is written
    last. A character that UTF-8 does not
    have (half of one, in a file's name) is written as its escape.

    Raises:
        OutputExists: one is there, and may not be replaced.
        EnvironmentProblem: the system refused something.
    """
    encoded = {path: text.encode("utf-8", "backslashreplace") for path, text in texts.items()}
    with ExitStack() as held:
        made = []
        for path, data in encoded.items():
            if path in (STDOUT, NOWHERE):
                continue
            with system_errors(f"writing {path}"):
                refuse_existing(path, replace=force)
                staging = held.enter_context(Staging(path.parent, replace=force))
                write_new(staging.aside(path), data)
            made.append((path, staging))
        for path, staging in made:
            with system_errors(f"writing {path}"):
                staging.commit()
    if STDOUT in encoded:
        sys.stdout.flush()
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(encoded[STDOUT])
        else:  # a notebook
            sys.stdout.write(texts[STDOUT])
        sys.stdout.flush()
