"""Optional libraries, the device to run on, and the announcement before foreign code runs.

Foreign code is a TorchScript model that is run, or the function that a `python:` source names.
Both call `announce` first.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import EnvironmentProblem, UsageError
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    import torch


def library(name: str, extra: str) -> Any:
    """Import a library that an extra of this package installs.

    Raises:
        EnvironmentProblem: the library is not installed or cannot be imported.
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
    """Return the error for a required library that cannot be imported."""
    name = name.partition(".")[0]
    fix = {"torch": "torch torchvision", "torchvision": "torch torchvision"}.get(name, name)
    what = f"this command needs {name}, which cannot be imported"
    return EnvironmentProblem(what, saw=clip(saw), fix=f"pip install {fix}")


def need_torch() -> None:
    """Stop before anything is written if torch or torchvision cannot be imported.

    Raises:
        EnvironmentProblem: one of them is missing, or they are incompatible.
    """
    try:
        import_module("torch")
    except (ImportError, OSError) as error:
        raise missing("torch", str(error)) from None
    torchvision()


def refuse_stripped(name: str, error: Exception) -> None:
    """Explain the error of a library that fails because `python -OO` removed its docstrings.

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
    """Import torchvision.

    Raises:
        EnvironmentProblem: it is missing, or was built for another torch and does not load.
    """
    try:
        return import_module("torchvision")
    except ModuleNotFoundError as error:
        raise missing(error.name or "torchvision", str(error)) from None
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise EnvironmentProblem(
            "torchvision is incompatible with the installed torch",
            saw=clip(str(error)),
            fix="install both from one index: pip install --force-reinstall torch torchvision",
        ) from None


class Detail(str):
    """A note that is printed only with -v."""

    __slots__ = ()


def pick_device(name: str, notes: Callable[[str], None] = lambda note: None) -> torch.device:
    """Return the device of that name; under torchrun, `cuda` is the device of the local rank.

    Args:
        name: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.
        notes: receives a `Detail` if `auto` finds no CUDA device.

    Raises:
        UsageError: any other name.
        EnvironmentProblem: the CUDA device is not available.
    """
    import torch

    asked = re.fullmatch(r"cuda(?::(\d{1,4}))?", name)
    if name not in ("auto", "cpu") and asked is None:
        what = f"unknown device {clip(name, 80)!r}"
        raise UsageError(what, fix="use one of: --device auto, cpu, cuda, cuda:0")
    if name == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count and asked is None:
        notes(Detail("no CUDA device is available: the model runs on the CPU"))
        return torch.device("cpu")
    number = int((asked[1] if asked else None) or os.environ.get("LOCAL_RANK", "0"))
    if number >= count:
        why = "; ".join(str(warning.message) for warning in caught)
        built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda or '(none)'}"
        raise EnvironmentProblem(
            f"there is no CUDA device {number}" if count else "no CUDA device is available",
            saw=clip(why, 300) or (f"{count} devices" if count else built),
            fix="--device cpu, or --device auto"
            if not count
            else f"start fewer processes, or use one of cuda:0 to cuda:{count - 1}",
        )
    return torch.device("cuda", number)


#: Receives the announcements; without a command line, the log of the package.
listener: ContextVar[Callable[[str], None]] = ContextVar(
    "listener", default=logging.getLogger("rescale_cli").warning
)


def announce(text: str) -> None:
    """Report which foreign code is about to run, and where it comes from."""
    listener.get()(text)
