"""Code of the user's, which runs because the user names it: `python:module:callable`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from rescale_cli.errors import BadInput
from rescale_cli.foreign_code import announce
from rescale_cli.json_text import clip


def user_function(name: str, source: str) -> Callable[..., Any]:
    """The callable of that name; modules of the current directory can be imported.

    Args:
        name: `module:callable`, the latter with dots where it lies in a class.
        source: what stands in front of it on the command line, for messages.

    Raises:
        BadInput: no such module, no such name in it, or nothing that can be called.
    """
    module, _, path = name.partition(":")
    fix = f"name what can be imported here: {source}:MODULE:FUNCTION"
    if not module or not path:
        saw = f"{source}:{clip(name, 80)}"
        raise BadInput("expected MODULE:FUNCTION", saw=saw, fix=fix)
    announce(f"{source}:{clip(name, 80)} runs the Python code of that module")
    here = os.getcwd()  # noqa: PTH109 - a string is what sys.path takes
    if here not in sys.path:
        # It stays: what the function imports later, and worker processes, need it, too.
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:
        saw = clip(f"{type(error).__name__}: {error}", 200)
        raise BadInput(f"{clip(name, 80)} cannot be imported", saw=saw, fix=fix) from error
    if not callable(found):
        saw = f"a value of the type {type(found).__name__}"
        raise BadInput(f"{clip(name, 80)} is not a function", saw=saw, fix=fix)
    called: Callable[..., Any] = found
    return called
