"""Where a model runs: `--device` to a torch device that is there."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from rescale_cli.errors import EnvironmentProblem, UsageError
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    import torch


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
