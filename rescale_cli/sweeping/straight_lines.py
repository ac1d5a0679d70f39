"""A method as straight lines in its strength, where it is one: what the exact path needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.curves import Curves
from rescale_cli.core.head import Float64, Head, RowUpdate
from rescale_cli.core.methods import METHODS, Adjustment


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One method with its policies, at every strength."""

    adjustment: Adjustment
    """The strength in it is of no account."""
    head: Head
    counts: ClassCounts

    def at(self, strength: float) -> RowUpdate:
        """What the method does at that strength, to logits: a bias that is not there is 0."""
        head = self.head
        if not self.writable:
            head = replace(head, bias=np.zeros(head.num_classes))
        return replace(self.adjustment, strength=strength).update(head, self.counts)

    @property
    def writable(self) -> bool:
        """Whether the head can hold it: without a bias it cannot hold what changes the bias."""
        needs_bias = METHODS.entry(self.adjustment.method).facts["needs_bias"]
        return self.head.bias is not None or not needs_bias

    def scores(self, logits: NDArray[np.generic], strength: float = 0.0) -> Float64:
        """The logits (N, C) of the head after the method, float64."""
        update = self.at(strength)
        return update.on_logits(np.asarray(logits, np.float64), self.head.bias)

    def curves(self) -> tuple[Curves, Callable[[NDArray[np.generic]], Float64]]:
        """The scores as curves, which they are for every policy of `rescale` and `tau-norm`.

        Returns:
            What head and counts say of them, and what gives the scores u (N, C) from logits.
        """
        update, kept, bias = self.at(0.0), self.counts.kept, self.head.bias
        classes = self.head.num_classes
        whole = np.zeros(classes) if bias is None else update.on_bias(bias)
        factors = np.log(self.counts.factors(1.0))
        shares, exponents, follows = np.ones(1), np.zeros(1), ~kept
        if self.adjustment.method == "tau-norm":
            norms = self.head.norms[kept]
            exponents, shares = -np.log(norms), norms / norms.sum()
            middle = (exponents.max() + exponents.min()) / 2  # a factor that all have in common
            exponents = exponents - middle
            factors = np.zeros(classes)
            factors[kept] = exponents
        # Where factor and q are one, u takes the offset in, so that equal scores are equal curves.
        apart = kept & (exponents.any() | (factors != 0))
        offsets = np.where(apart & (self.adjustment.bias_policy == "keep"), whole, 0.0)

        def scores(logits: NDArray[np.generic]) -> Float64:
            own = np.asarray(logits, np.float64) - (0.0 if bias is None else bias)
            own *= update.scale
            own += whole - offsets
            return own

        return Curves(factors, offsets, shares, exponents, follows), scores

    def slopes(self) -> tuple[Float64, bool] | None:
        """The slopes (C,), and whether they are those of the logarithms of the scores.

        The score of class k is u_k exp(gamma s_k) for re-scaling, s_k = log(n_1 / n_k), and for
        tau-norm, s_k = -log |w_k|, whose common factor changes no decision; it is z_k + tau s_k for
        logit adjustment, s_k = -log prior_k.

        Returns:
            None where the scores are no such lines: a bias that is kept is added after the factor,
            and rows that tau-norm leaves alone do not take part in its common factor.
        """
        bias, policy = self.head.bias, self.adjustment.bias_policy
        if self.adjustment.method == "logit-adjust":
            return self.at(1.0).shift, False
        if bias is not None and policy == "keep" and bias.any():
            return None
        if self.adjustment.method == "tau-norm":
            return (-np.log(self.head.norms), True) if self.counts.kept.all() else None
        return np.log(self.counts.factors(1.0)), True
