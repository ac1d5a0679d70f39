"""Scores that are curves in the strength: their values, derivatives and crossings.

See `curved_path` for the form of the curves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.floats import Float64

if TYPE_CHECKING:
    import torch
    from torch import Tensor


#: Order of the Taylor series of q. Each term is at most 1/16 of the one before it.
_ORDER = 11
#: Newton's method stops at a relative step this small; the error that remains is its square.
_CLOSE = 2.0**-28


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """The part of the curves g_k that a head and its counts determine; u (N, C) is the data's."""

    rates: Float64
    """r, (C,)."""
    offsets: Float64
    """b, (C,)."""
    shares: Float64
    """The weights of the exponentials in q, (J,), with sum 1."""
    exponents: Float64
    """The exponents of the exponentials in q, (J,)."""
    follows: NDArray[np.bool_]
    """(C,), classes whose factor is q instead of exp(gamma * r_k): tau-norm excludes them."""


def picked(column: Tensor, place: Tensor) -> Tensor:
    """`column[place]` for an index of any shape, several times as fast."""
    return column.index_select(0, place.reshape(-1)).view(place.shape)


class Basis(NamedTuple):
    """The functions of gamma that every curve is composed of."""

    rates: Tensor
    offsets: Tensor
    follows: Tensor | None
    table: Tensor | None
    """(K, order), the Taylor series of q around K strengths; None if q = 1."""
    step: float
    """The distance between those strengths."""

    def common(self, gamma: Tensor, order: int = 0) -> Tensor:
        """The function q at gamma, or its first or second derivative."""
        import torch

        if self.table is None:
            return torch.zeros_like(gamma) if order else torch.ones_like(gamma)
        near = (gamma / self.step).round().clamp_(0, len(self.table) - 1)
        # In float64: a whole number times a Python float would be float32.
        away, total = gamma - near * self.step, torch.zeros_like(gamma)
        near = near.long()
        for power in reversed(range(order, self.table.shape[1])):
            total = total * away + self.table[near, power] * math.perm(power, order)
        return total

    def factor(self, row: Tensor, gamma: Tensor, order: int = 0) -> Tensor:
        """The factor f of some classes, or its first or second derivative."""
        import torch

        rate = picked(self.rates, row)
        own = (rate * gamma).exp()
        for _ in range(order):
            own *= rate
        if self.follows is None:
            return own
        return torch.where(self.follows[row], self.common(gamma, order), own)

    def value(self, u: Tensor, row: Tensor, gamma: Tensor, order: int = 0) -> Tensor:
        """The score g of some classes at gamma, or its first or second derivative."""
        if self.table is None:
            own = u * self.factor(row, gamma, order)
            return own if order else own + picked(self.offsets, row)
        common = self.common(gamma, order)
        return u * self.factor(row, gamma, order) + picked(self.offsets, row) * common

    def pull(self, row: Tensor, gamma: Tensor) -> Tensor:
        """The exponent's pull, p = f'/f - q'/q: the derivative of g / q is u * p * f / q."""
        if self.table is None:
            return picked(self.rates, row)
        pull = picked(self.rates, row) - self.common(gamma, 1) / self.common(gamma)
        return pull if self.follows is None else pull.masked_fill(self.follows[row], 0.0)

    def bend(self, u: Tensor, b: Tensor, row: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """An upper bound of u * f'' + b * q'' from `low` to `high`, for u, b >= 0."""
        import torch

        bound = u * torch.maximum(self.factor(row, low, 2), self.factor(row, high, 2))
        if self.table is None:
            return bound
        return bound + b * torch.maximum(self.common(low, 2), self.common(high, 2))


def basis_of(curves: Curves, limit: float, device: torch.device) -> Basis:
    """The basis of these curves from gamma = 0 to `limit`, on a device."""
    import torch

    def tensor(values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(device)

    rates, offsets, follows = map(tensor, (curves.rates, curves.offsets, curves.follows))
    table, step = None, limit
    if curves.exponents.any():
        steepest = float(abs(curves.exponents).max())
        nodes = max(8, math.ceil(limit * steepest * 8))  # half a step times the exponent: 1/16
        step = limit / nodes
        exponents, shares = tensor(curves.exponents), tensor(curves.shares)
        at = torch.arange(nodes + 1, dtype=torch.float64, device=device)[:, None] * step
        terms, columns = shares * (exponents * at).exp(), []
        for power in range(_ORDER):
            columns.append(terms.sum(1) / math.factorial(power))
            terms = terms * exponents
        table = torch.stack(columns, 1)
    some = follows if bool(follows.any()) and table is not None else None
    return Basis(rates, offsets, some, table, step)


def crossings(basis: Basis, u: Tensor, label: Tensor, ends: Tensor) -> Tensor:
    """The gamma where the winners at the two ends of each cell cross, (P,).

    Bracketed Newton's method. It solves log(positive terms) = log(negative terms) of the difference
    of the two curves, because these logarithms are nearly straight lines.

    Args:
        basis: of the curves.
        u: of the winner at the low end and of the one at the high end, (2, P).
        label: their classes, (2, P).
        ends: the low end and the high end, (2, P).
    """
    import torch

    offsets = picked(basis.offsets, label)
    weight = torch.stack([u[1], -u[0], offsets[1] - offsets[0]])
    weight = torch.stack([weight.clamp_min(0), weight.clamp_max(0).neg_()])
    low, high = ends
    (start, less), (stop, least) = (_sums(basis, weight, label, end) for end in ends)
    share = (start / less).log_()
    share /= share - (stop / least).log_()
    gamma = torch.lerp(low, high, share.nan_to_num_(0.5).clamp_(0, 1))
    # Of equal scores at the low end the first class wins, but a steeper one overtakes it at once.
    rise, fall = _sums(basis, weight, label, low, 1)
    over = (start > less) | (start == less) & (rise >= fall)
    gamma, going = gamma.where(~over, low), (~over).nonzero()[:, 0]
    below, above = ends.index_select(1, going)
    while len(going):
        part = weight.index_select(2, going), label.index_select(1, going)
        at = picked(gamma, going)
        for _ in range(3):
            more, less = _sums(basis, *part, at)
            rise, fall = _sums(basis, *part, at, 1)
            ahead = more > less
            below, above = below.where(ahead, at), above.where(~ahead, at)
            steep = rise / more - fall / less
            newton = at - (more / less).log_() / steep
            done = (steep > 0) & ((newton - at).abs() <= at * _CLOSE + _CLOSE**2)
            inside = (newton >= below) & (newton <= above)
            at = newton.where(inside | done, (below + above) / 2).clamp(below, above)
        gamma[going] = at
        left = (~done & (above - below > above * 2.0**-50 + _CLOSE**2)).nonzero()[:, 0]
        below, above, going = (picked(column, left) for column in (below, above, going))
        gamma[going] = (below + above) / 2
    after, before = low.nextafter(high), high.nextafter(low)
    return torch.minimum(torch.maximum(gamma, after), torch.maximum(before, after))


def _sums(basis: Basis, weight: Tensor, label: Tensor, at: Tensor, order: int = 0) -> Tensor:
    """The sums of the positive and of the negative terms, (2, P), or a derivative of both.

    Args:
        basis: of the curves.
        weight: factors of f of the later winner, f of the earlier one, and q, in both sums,
            (2, 3, P), all >= 0.
        label: the earlier and the later winner, (2, P).
        at: gamma, (P,).
        order: order of the derivative.
    """
    import torch

    one, other = basis.factor(label, at, order)
    return (weight * torch.stack([other, one, basis.common(at, order)])).sum(1)
