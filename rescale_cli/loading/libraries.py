"""Libraries that are imported late: those of an extra, and torchvision, which may not fit torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rescale_cli.errors import EnvironmentProblem
from rescale_cli.json_text import clip


def library(name: str, extra: str) -> Any:
    """The module of that name, which an extra of this package brings.

    Raises:
        EnvironmentProblem: it is not installed, or it does not start.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise EnvironmentProblem(
            f"this needs the library {name.partition('.')[0]}",
            saw=clip(str(error)),
            fix=f"pip install 'rescale-cli[{extra}]'",
        ) from None


def torchvision() -> Any:
    """The module torchvision.

    Raises:
        EnvironmentProblem: it was built for another torch, so that its operators do not load.
    """
    try:
        return import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise EnvironmentProblem(
            "torchvision does not fit the torch that is installed",
            saw=clip(str(error)),
            fix="install both from one index: pip install --force-reinstall torch torchvision",
        ) from None
