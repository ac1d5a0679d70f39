"""What a head says of its scores as curves, and the functions that they are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rescale_cli.core.head import Float64

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

#: Order of the Taylor series of q, whose terms fall by 1/16 and faster.
_ORDER = 11


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """What a head and its counts say of the curves g_k; the scores u (N, C) come from the data."""

    rates: Float64
    """r, (C,)."""
    offsets: Float64
    """b, (C,)."""
    shares: Float64
    """Of the exponentials in q, (J,), sum 1."""
    exponents: Float64
    """Of the exponentials in q, (J,)."""
    follows: NDArray[np.bool_]
    """(C,), classes whose factor is q instead of exp(gamma * r_k): tau-norm leaves them alone."""


def picked(column: Tensor, place: Tensor) -> Tensor:
    """`column[place]` for a place of any shape, several times as fast."""
    return column.index_select(0, place.reshape(-1)).view(place.shape)


class Basis(NamedTuple):
    """The functions that every curve is made of, at any gamma."""

    rates: Tensor
    offsets: Tensor
    follows: Tensor | None
    table: Tensor | None
    """(K, order), the Taylor series of q around K strengths; None if q = 1."""
    step: float
    """Between those strengths."""

    def common(self, gamma: Tensor, order: int = 0) -> Tensor:
        """Q(gamma), or its first or second derivative."""
        import torch

        if self.table is None:
            return torch.zeros_like(gamma) if order else torch.ones_like(gamma)
        near = (gamma / self.step).round().clamp_(0, len(self.table) - 1).long()
        away, total = gamma - near * self.step, torch.zeros_like(gamma)
        for power in reversed(range(order, self.table.shape[1])):
            total = total * away + self.table[near, power] * math.perm(power, order)
        return total

    def factor(self, row: Tensor, gamma: Tensor, order: int = 0) -> Tensor:
        """f, the factor of u of some classes, or its first or second derivative."""
        import torch

        rate = picked(self.rates, row)
        own = (rate * gamma).exp()
        for _ in range(order):
            own *= rate
        if self.follows is None:
            return own
        return torch.where(self.follows[row], self.common(gamma, order), own)

    def value(self, u: Tensor, row: Tensor, gamma: Tensor, order: int = 0) -> Tensor:
        """g_k(gamma) of some classes, or its first or second derivative."""
        if self.table is None:
            own = u * self.factor(row, gamma, order)
            return own if order else own + picked(self.offsets, row)
        common = self.common(gamma, order)
        return u * self.factor(row, gamma, order) + picked(self.offsets, row) * common

    def pull(self, row: Tensor, gamma: Tensor) -> Tensor:
        """f'/f - q'/q of some classes: the derivative of g_k / q is u times f / q times this."""
        if self.table is None:
            return picked(self.rates, row)
        pull = picked(self.rates, row) - self.common(gamma, 1) / self.common(gamma)
        return pull if self.follows is None else pull.masked_fill(self.follows[row], 0.0)

    def bend(self, u: Tensor, b: Tensor, row: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """A bound of u * f'' + b * q'' from `low` to `high`, for u, b of at least 0."""
        import torch

        bound = u * torch.maximum(self.factor(row, low, 2), self.factor(row, high, 2))
        if self.table is None:
            return bound
        return bound + b * torch.maximum(self.common(low, 2), self.common(high, 2))


def basis_of(curves: Curves, limit: float, device: torch.device) -> Basis:
    """The functions of these curves from gamma = 0 to `limit`, on a device."""
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
