"""`schema`: the JSON Schema of a command's output."""

from __future__ import annotations

import json as json_module
import sys
from importlib import resources
from typing import Annotated

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.help_page import input_argument
from rescale_cli.errors import UsageError


def schema(
    command: Annotated[
        str, input_argument(metavar="COMMAND", help="Name of a command, such as apply.")
    ],
    json: options.Json = False,
) -> None:
    """Print the JSON Schema of what a command prints with --json.

    Examples:
        # Print the schema of the output of apply.
        rescale-cli schema apply
        # The same, inside the JSON document that every command prints with --json.
        rescale-cli schema sweep-gamma --json
    """
    text = schema_text(command)
    Screen("schema", json).result(json_module.loads(text), [], lambda: sys.stdout.write(text))


def schema_text(command: str) -> str:
    """The schema of one command, as it ships in the package.

    Raises:
        UsageError: there is no such command.
    """
    folder = resources.files("rescale_cli") / "schemas"
    known = sorted(
        f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith("json")
    )
    if command not in known:
        raise UsageError(
            "there is no schema of that name", saw=command, fix=f"name one of {', '.join(known)}"
        )
    return (folder / f"{command}.json").read_text(encoding="utf-8")
