"""Code that is not the tool's own: libraries imported late, torch's devices, a user's code.

Two things can run such code: a TorchScript file whose model is run, and a `python:` source that
the user names. Each calls `announce` first.
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


class Detail(str):
    """A note that is printed only with -v."""

    __slots__ = ()


def pick_device(name: str, notes: Callable[[str], None] = lambda note: None) -> torch.device:
    """The device of that name; a process that torchrun started has the one of its local rank.

    Args:
        name: `auto` (CUDA where there is any), `cpu`, `cuda` or `cuda:N`.
        notes: given a `Detail` if `auto` found no CUDA.

    Raises:
        UsageError: another name.
        EnvironmentProblem: CUDA was asked for, and is not there, or not that many devices.
    """
    import torch

    asked = re.fullmatch(r"cuda(?::(\d{1,4}))?", name)
    if name not in ("auto", "cpu") and asked is None:
        what = f"there is no device {clip(name, 80)!r}"
        raise UsageError(what, fix="use one of: --device auto, cpu, cuda, cuda:0")
    if name == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there and asked is None:
        notes(Detail("no CUDA device here: the model runs on the CPU"))
        return torch.device("cpu")
    number = int((asked[1] if asked else None) or os.environ.get("LOCAL_RANK", "0"))
    if number >= there:
        why = "; ".join(str(warning.message) for warning in said)
        built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda or '(none)'}"
        raise EnvironmentProblem(
            f"there is no CUDA device {number}" if there else "there is no CUDA device here",
            saw=clip(why, 300) or (f"{there} devices" if there else built),
            fix="--device cpu, or --device auto"
            if not there
            else f"start fewer processes, or name one of cuda:0 to cuda:{there - 1}",
        )
    return torch.device("cuda", number)


#: Who is told. Without a command line, the log of the package.
listener: ContextVar[Callable[[str], None]] = ContextVar(
    "listener", default=logging.getLogger("rescale_cli").warning
)


def announce(text: str) -> None:
    """Say what code is about to run, and where it comes from."""
    listener.get()(text)
