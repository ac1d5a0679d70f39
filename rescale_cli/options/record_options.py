"""Options about the record of a re-scaling."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

RecordFile = Annotated[
    Path | None,
    typer.Option(
        "--record",
        metavar="FILE",
        help="The record of an earlier re-scaling (OUT.rescale.json), if not beside the file.",
        readable=False,
    ),
]
RecordCommand = Annotated[
    bool,
    typer.Option(
        "--record-command",
        help="Keep this command line, with its paths, in the record. Default: the record says "
        "nothing of who, where and when.",
    ),
]


def recorded_command(keep: bool) -> str:
    """The command line for the record; empty if it is not to be kept."""
    return shlex.join(["rescale-cli", *sys.argv[1:]]) if keep else ""
