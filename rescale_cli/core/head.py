"""The head of a classifier, and what a post-hoc method does to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Head:
    """What a post-hoc method may know of the head: logits = features @ weight.T + bias.

    The weight itself, (C, D), stays in its file; row norms and bias are enough for every method.
    """

    norms: Float64
    """Length of each row of the weight, (C,)."""
    bias: Float64 | None = None
    """(C,), or None."""
    gauge: float = 0.0
    """|sum_i w_i| / sum_i |w_i|: 0 where the rows sum to nothing, 1 where all point one way."""
    binary: bool = False
    """Whether only row 1 is stored, and row 0 is all zeros: see `core.binary`."""

    @classmethod
    def of(cls, weight: Float64, bias: Float64 | None = None) -> Head:
        """The head with this weight (C, D) and bias (C,).

        Example:
            >>> Head.of(np.array([[3.0, 4.0], [0.0, 1.0]])).norms.tolist()
            [5.0, 1.0]
        """
        weight = np.asarray(weight, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever reads weights checks them
            norms = np.sqrt((weight**2).sum(axis=1))
            total = norms.sum()
            gauge = float(np.sqrt((weight.sum(axis=0) ** 2).sum()) / total) if total else 0.0
        return cls(norms, None if bias is None else np.asarray(bias, np.float64), gauge)

    @classmethod
    def of_logits(cls, num_classes: int, *, binary: bool = False) -> Head:
        """A head of which only the logits are known; logit-adjust reads no more of it."""
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
    and cached logits are adjusted alike, and one pass over the data serves every adjustment.
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
        """This update, and the other one after it; entries that overflow are not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            return RowUpdate(
                self.scale * other.scale,
                self.bias_scale * other.bias_scale,
                other.bias_scale * self.shift + other.shift,
            )

    def over(self, temperature: float) -> RowUpdate:
        """This update, and all logits divided by T after it."""
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
