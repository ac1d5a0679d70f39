"""One logit for two classes: a head [w] with bias [b] is the head [0; w] with bias [0; b].

A binary head has one row and a sigmoid; its logit z decides for class 1 where z > 0. The two
logits [0, z] have the same probabilities, so everything that works on C classes works on them. Only
this file turns one form into the other: heads and logits on their way in, updates on their way out.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.head import Float64, Head, RowUpdate
from rescale_cli.errors import BadHead

#: What is assumed of a single row, and what confirms it.
ASSUMED = (
    "binary head: its one row is taken for the logit of class 1 of two classes (a sigmoid); the "
    "file cannot tell it from a regression, and counts of two classes confirm it: "
    "--counts [NEGATIVES, POSITIVES]"
)


def two_rows(head: Head) -> Head:
    """The head of two rows, the first all zeros, that a head of one row stands for.

    Example:
        >>> found = two_rows(Head.of(np.array([[3.0, 4.0]]), np.array([0.5])))
        >>> found.norms.tolist(), found.bias.tolist()
        ([0.0, 5.0], [0.0, 0.5])
    """
    bias = None if head.bias is None else np.append(0.0, head.bias)
    return replace(head, norms=np.append(0.0, head.norms), bias=bias, binary=True)


def two_columns(logits: NDArray[Any]) -> NDArray[Any]:
    """The logits (N, 2) of both classes, from those of class 1, (N,) or (N, 1), in their dtype.

    Example:
        >>> two_columns(np.array([1.5, -2.0])).tolist()
        [[0.0, 1.5], [0.0, -2.0]]
    """
    both = np.zeros((len(logits), 2), logits.dtype)
    both[:, 1] = logits.reshape(len(logits))
    return both


def one_row(update: RowUpdate) -> RowUpdate:
    """What an update of the two rows does to the one that is stored; its shift of row 0 is 0."""
    return RowUpdate(update.scale[1:], update.bias_scale[1:], update.shift[1:])


def log_ratio(effective: Float64) -> Float64:
    """[0, log(n_neg / n_pos)], (2,): the logit adjustment of a binary head at tau = 1."""
    return np.array([0.0, np.log(effective[0] / effective[1])])


#: What is left to do for a binary head that has no bias.
NO_BIAS = "decide for class 1 where z > -tau * log(n_neg / n_pos), in your own code"


def refuse_rescaling(method: str, line: str) -> NoReturn:
    """Refuse a method that scales the row of a binary head.

    Args:
        method: what was asked for.
        line: what to type instead.

    Raises:
        BadHead: always.
    """
    raise BadHead(
        "a single row cannot be re-scaled: the sign of its logit decides between the two classes, "
        "and a positive factor changes no sign",
        saw=f"a binary head (one row for two classes), --method {method}",
        fix=line,
    )


def adjusting_line(command: str = "", model: object = "", counts: str = "", *data: object) -> str:
    """What to type to move the threshold of a binary head instead: a whole line, or two options.

    Args:
        command: `apply` or `sweep-gamma`; empty for the options alone.
        model: the path of the checkpoint.
        counts: as they were typed.
        data: `--data` or `--logits`, and what it is given.
    """
    start = ["rescale-cli", command, model, "--counts", counts, *data] if command else []
    strength = [] if command == "sweep-gamma" else ["--tau", "1"]
    return shlex.join(map(str, [*start, "--method", "logit-adjust", *strength]))
