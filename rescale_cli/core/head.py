"""The head of a classifier, the update of its rows, and heads of one row.

A binary head has one row and a sigmoid; it predicts class 1 if its logit z is above 0. The two
logits [0, z] have the same probabilities, so everything for C classes also works on them. Only
this file converts between the two forms: heads and logits as they come in, updates as they go out.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.floats import Float64
from rescale_cli.errors import BadHead


@dataclass(frozen=True, slots=True)
class Head:
    """What a post-hoc method needs of the head: logits = features @ weight.T + bias.

    The weight itself, (C, D), stays in its file; row norms and bias are enough for every method.
    """

    norms: Float64
    """Length of each row of the weight, (C,)."""
    bias: Float64 | None = None
    """(C,), or None."""
    gauge: float = 0.0
    """|sum_i w_i| / sum_i |w_i|: 0 if the rows cancel, 1 if all have the same direction."""
    binary: bool = False
    """Whether only row 1 is stored and row 0 is all zeros; see `two_rows`."""

    @classmethod
    def of(cls, weight: Float64, bias: Float64 | None = None) -> Head:
        """The head with this weight (C, D) and bias (C,).

        Example:
            >>> Head.of(np.array([[3.0, 4.0], [0.0, 1.0]])).norms.tolist()
            [5.0, 1.0]
        """
        weight = np.asarray(weight, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # the reader of the weights checks them
            norms = np.sqrt((weight**2).sum(axis=1))
            total = norms.sum()
            gauge = float(np.sqrt((weight.sum(axis=0) ** 2).sum()) / total) if total else 0.0
        return cls(norms, None if bias is None else np.asarray(bias, np.float64), gauge)

    @classmethod
    def of_logits(cls, num_classes: int, *, binary: bool = False) -> Head:
        """A head of which only the logits are known, which is enough for logit-adjust."""
        return cls(np.ones(num_classes), np.zeros(num_classes), binary=binary)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.norms)

    @property
    def relative_norms(self) -> Float64:
        """Row norms over the largest one, (C,): Kim & Kim 2020, Eq. 4."""
        longest = self.norms.max()
        return self.norms / longest if longest else self.norms


@dataclass(frozen=True, slots=True)
class RowUpdate:
    """One change of every row: w_i <- scale_i w_i and b_i <- bias_scale_i b_i + shift_i.

    The same vectors adjust logits that were computed before: z <- s (z - b) + k b + t. So weights
    and cached logits change alike, and one pass over the data is enough for every adjustment.
    """

    scale: Float64
    """s, (C,)."""
    bias_scale: Float64
    """k, (C,)."""
    shift: Float64
    """t, (C,)."""

    @classmethod
    def identity(cls, num_classes: int) -> RowUpdate:
        """The update that changes nothing."""
        ones = np.ones(num_classes)
        return cls(ones, ones, np.zeros(num_classes))

    def then(self, other: RowUpdate) -> RowUpdate:
        """This update followed by another; entries that overflow are not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            return RowUpdate(
                self.scale * other.scale,
                self.bias_scale * other.bias_scale,
                other.bias_scale * self.shift + other.shift,
            )

    def over(self, temperature: float) -> RowUpdate:
        """This update, after which all logits are divided by T."""
        cooler = np.full_like(self.scale, 1 / temperature)
        return self.then(RowUpdate(cooler, cooler, np.zeros_like(cooler)))

    def on_bias(self, bias: Float64) -> Float64:
        """The bias after the update, (C,). A bias that is kept keeps every bit, -0.0 too."""
        scaled = np.where(self.bias_scale == 0, 0.0, self.bias_scale * bias)
        return np.where(self.shift == 0, scaled, scaled + self.shift)

    def on_logits(self, logits: Float64, bias: Float64 | None = None) -> Float64:
        """The logits (N, C) of the updated head, from those of the old one and its bias (C,)."""
        if bias is None:
            return self.scale * logits + self.shift
        return self.scale * (logits - bias) + self.on_bias(bias)


#: The warning about a head with a single row.
ASSUMED = (
    "binary head: its one row is taken as the logit of class 1 of two classes (a sigmoid). A "
    "regression looks the same in the file; counts of two classes confirm a classifier: "
    "--counts [NEGATIVES, POSITIVES]"
)


def two_rows(head: Head) -> Head:
    """The equivalent head of two rows, of which the first is all zeros.

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
    """The part of an update of two rows for the stored one; the shift of row 0 is always 0."""
    return RowUpdate(update.scale[1:], update.bias_scale[1:], update.shift[1:])


def log_ratio(effective: Float64) -> Float64:
    """[0, log(n_neg / n_pos)], (2,): the logit adjustment of a binary head at tau = 1."""
    return np.array([0.0, np.log(effective[0] / effective[1])])


#: The fix for a binary head without a bias.
NO_BIAS = "predict class 1 if z > -tau * log(n_neg / n_pos), in your own code"


def refuse_rescaling(method: str, line: str) -> NoReturn:
    """Refuse a method that scales the row of a binary head.

    Args:
        method: the method that was asked for.
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
    """What to type instead, to move the threshold of a binary head: a command, or two options.

    Args:
        command: `apply` or `sweep-gamma`; empty for the options alone.
        model: the path of the checkpoint.
        counts: the counts, as typed.
        data: `--data` or `--logits`, and its value.
    """
    start = ["rescale-cli", command, model, "--counts", counts, *data] if command else []
    strength = [] if command == "sweep-gamma" else ["--tau", "1"]
    return shlex.join(map(str, [*start, "--method", "logit-adjust", *strength]))
