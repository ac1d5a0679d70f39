"""Libraries that are imported late: those of an extra, and torchvision, which may not fit torch."""

from __future__ import annotations

import sys
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
    except Exception as error:
        refuse_stripped(name, error)
        raise


def missing(name: str, saw: str) -> EnvironmentProblem:
    """The error for a library that this package requires and that cannot be imported."""
    name = name.partition(".")[0]
    fix = {"torch": "torch torchvision", "torchvision": "torch torchvision"}.get(name, name)
    what = f"this command needs {name}, which cannot be imported"
    return EnvironmentProblem(what, saw=clip(saw), fix=f"pip install {fix}")


def need_torch() -> None:
    """Stop before anything is written if torch is missing or torchvision does not fit it.

    Raises:
        EnvironmentProblem: one of them cannot be imported.
    """
    try:
        import_module("torch")
    except (ImportError, OSError) as error:
        raise missing("torch", str(error)) from None
    torchvision()


def refuse_stripped(name: str, error: Exception) -> None:
    """Name the cause if a library fails because `python -OO` removed its docstrings.

    Raises:
        EnvironmentProblem: Python runs with -OO.
    """
    if sys.flags.optimize > 1:
        raise EnvironmentProblem(
            f"the library {name.partition('.')[0]} does not work under python -OO",
            saw=clip(f"{type(error).__name__}: {error}", 300),
            fix="run the command again with PYTHONOPTIMIZE=1, or without PYTHONOPTIMIZE and -OO",
        ) from None


def torchvision() -> Any:
    """The module torchvision.

    Raises:
        EnvironmentProblem: it was built for another torch, so that its operators do not load.
    """
    try:
        return import_module("torchvision")
    except ModuleNotFoundError as error:
        raise missing(error.name or "torchvision", str(error)) from None
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise EnvironmentProblem(
            "torchvision does not fit the torch that is installed",
            saw=clip(str(error)),
            fix="install both from one index: pip install --force-reinstall torch torchvision",
        ) from None
