"""The user's own network, built by the user's own code."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import BadInput
from rescale_cli.json_text import clip
from rescale_cli.sources.user_code import user_function

if TYPE_CHECKING:
    from torch import nn

_FIX = "name a function that returns a torch.nn.Module: --arch python:MODULE:FUNCTION"


def build(name: str, num_classes: int) -> nn.Module:
    """The module that `module:callable` returns; `num_classes` is passed if it takes that.

    Raises:
        BadInput: there is no such callable, it raises, or it returns no torch.nn.Module.
    """
    from torch import nn

    run = user_function(name, "--arch python")
    arguments = {"num_classes": num_classes} if _takes(run, "num_classes") else {}
    said = ", ".join(f"{key}={value}" for key, value in arguments.items())
    try:
        made = run(**arguments)
    except Exception as error:
        saw = clip(f"{type(error).__name__}: {error}", 200)
        raise BadInput(f"{clip(name, 80)}({said}) failed", saw=saw, fix=_FIX) from error
    if not isinstance(made, nn.Module):
        saw = f"a value of the type {type(made).__name__}"
        raise BadInput(f"{clip(name, 80)}({said}) gives no model", saw=saw, fix=_FIX)
    return made


def _takes(run: Any, argument: str) -> bool:
    try:
        parameters = inspect.signature(run).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)
