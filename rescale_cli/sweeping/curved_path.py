"""The predicted class at every strength, for methods whose scores are curves.

With a kept bias the score of class k is u_k * exp(gamma * r_k) + b_k, which no logarithm turns into
a straight line. Tau-norm also multiplies all rows that take part by a common factor c(gamma).
Divided by it, every score has the form

    g_k(gamma) = u_k * f_k(gamma) + b_k * q(gamma),    f_k = exp(gamma * r_k), or q itself,

where u_k depends on the sample, and r_k, b_k and q depend on the head; q is a sum of exponentials
with q(0) = 1. The class with the largest g / q is predicted. The derivative of g / q has the sign
of u_k * f_k * p_k with p_k = r_k - q'/q, and q'/q never decreases. Therefore the difference of two
curves has at most one stationary point, except in two cases that `_doubtful` handles. So if a class
is behind another at both ends of a cell, it can be ahead inside only if it rises faster at the low
end and slower at the high end.

A cell is an interval of gamma for one sample; the first one goes from 0 to the limit. All classes
are compared with the winners at its two ends. Only a few can be ahead of both somewhere inside, and
cells are divided among these few until each has one winner. All arithmetic is float64, and no
result depends on a step width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rescale_cli.strength_path import PredictedPath, in_blocks
from rescale_cli.sweeping.curves import Basis, Curves, basis_of, crossings, picked

if TYPE_CHECKING:
    from torch import Tensor


#: Elements per block: on a CPU, so that a block stays in the cache; and on other devices.
_BLOCK, _LARGE_BLOCK = 1 << 17, 1 << 22
#: Elements per chunk of rows whose cells are divided together.
_CHUNK = 1 << 21
#: Candidates kept in memory at once.
_HELD = 1 << 21
#: Cells narrower than this fraction of the limit are not divided.
_NARROW = 2.0**-46
#: Relative rounding error of a score. A smaller difference is a tie.
_EPSILON = 2.0**-50
#: Replaces a score of minus infinity, so that products with it stay finite.
_LOWEST = -1e150


def curved_path(scores: Tensor, curves: Curves, limit: float = 4.0) -> PredictedPath:
    """The predicted class at every gamma from 0 to `limit`, in the form of `predicted_path`.

    Apart from the result, memory does not depend on N. Results of batches can be concatenated.

    Args:
        scores: u, (N, C), any float type, any device, no NaN.
        curves: r, b and q, from the head.
        limit: the largest gamma, above 0.

    Example:
        >>> import numpy as np, torch
        >>> none = np.zeros(2, bool)
        >>> curves = Curves(np.log([1.0, 4.0]), np.array([1.0, 0.0]), np.ones(1), np.zeros(1), none)
        >>> path = curved_path(torch.tensor([[1.0, 1.0]]), curves)
        >>> path.gamma.round(decimals=12).tolist(), path.label.tolist()
        ([0.0, 0.5], [0, 1])
    """
    import torch

    scores = scores.detach()
    basis = basis_of(curves, limit, scores.device)
    on_cpu = scores.device.type == "cpu"
    step = max(1, (_CHUNK if on_cpu else _LARGE_BLOCK) // scores.shape[1])
    found: dict[int, PredictedPath] = {}

    def follow(rows: slice) -> None:
        found[rows.start] = _chunk(scores[rows].to(torch.float64), basis, limit, rows.start)

    in_blocks(len(scores), step, lambda: follow, on_cpu=on_cpu)
    columns = zip(*(found[first] for first in sorted(found)), strict=True)
    return PredictedPath(*(torch.cat(column) for column in columns))


class _Cells(NamedTuple):
    """P cells and M candidates: classes, other than the winners at the ends, that may win inside.

    The first five columns are (P,), the last two (M,).
    """

    row: Tensor
    low: Tensor
    high: Tensor
    first: Tensor
    """The winner at the low end."""
    last: Tensor
    """The winner at the high end."""
    cell: Tensor
    """The cell of each candidate, ascending."""
    label: Tensor
    """The class of each candidate."""

    def take(self, cells: Tensor, keep: Tensor) -> _Cells:
        """The cells of a mask (P,), with the candidates of a mask (M,)."""
        place, kept, stay = cells.cumsum(0) - 1, cells.nonzero()[:, 0], keep.nonzero()[:, 0]
        columns = (picked(column, kept) for column in self[:5])
        rivals = picked(place, picked(self.cell, stay)), picked(self.label, stay)
        return _Cells(*[*columns, *rivals])


_Events = tuple["Tensor", "Tensor", "Tensor"]


def _chunk(u: Tensor, basis: Basis, limit: float, offset: int) -> PredictedPath:
    """The path of some rows, u (n, C)."""
    import torch

    constant = u.amax(1).isinf()
    always = u[constant].argmax(1)
    if bool((constant | u.amin(1).isinf()).any()):
        u = u.masked_fill(constant[:, None], 0.0).clamp_min_(_LOWEST)
    start, events = _follow(u, basis, limit)
    row, gamma, label = (torch.cat(column) for column in zip(*events, strict=True))
    going = (gamma <= limit) & ~constant[row]
    start[constant] = always
    row = torch.cat([torch.arange(len(u), device=u.device), row[going]])
    gamma = torch.cat([torch.zeros_like(start, dtype=gamma.dtype), gamma[going]])
    label = torch.cat([start, label[going]])
    order = gamma.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    return PredictedPath(row[order] + offset, gamma[order], label[order])


def _follow(u: Tensor, basis: Basis, limit: float) -> tuple[Tensor, list[_Events]]:
    """The winners at gamma = 0, and all changes of the winner; u (n, C) is finite."""
    import torch

    size = max(1, (_BLOCK if u.device.type == "cpu" else _LARGE_BLOCK) // u.shape[1])
    blocks = [slice(at, at + size) for at in range(0, max(1, len(u)), size)]
    every = torch.arange(u.shape[1], device=u.device)
    ends = torch.tensor([[0.0], [limit]], dtype=u.dtype, device=u.device)
    first, last = (
        torch.cat([_largest(basis.value(u[rows], every, end)) for rows in blocks]) for end in ends
    )
    low, high = ends.expand(2, len(u))
    none = first[:0]
    whole = _Cells(torch.arange(len(u), device=u.device), low, high, first, last, none, none)
    at = _points(u, basis, whole)
    events, held, begin, count = [], [], 0, 0
    for rows in blocks:
        rivals = _rivals(u[rows], first[rows], last[rows], at[rows], basis, ends)
        cell, label = rivals.nonzero().unbind(1)
        held.append((cell + (rows.start - begin), label))
        count += len(cell)
        if count > _HELD or rows is blocks[-1]:
            part = slice(begin, rows.stop)
            cell, label = (torch.cat(column) for column in zip(*held, strict=True))
            cells = _Cells(*[*(column[part] for column in whole[:5]), cell, label])
            events += _settle(u, basis, cells, at[part], limit)
            held, begin, count = [], rows.stop, 0
    return first, events


def _largest(scores: Tensor) -> Tensor:
    """The column of the largest value in each row, the first of equals."""
    import torch

    if scores.device.type == "cpu":  # six times as fast
        return torch.from_numpy(scores.numpy().argmax(1))
    return scores.argmax(1)


def _rivals(
    u: Tensor, first: Tensor, last: Tensor, at: Tensor, basis: Basis, ends: Tensor
) -> Tensor:
    """Which classes may be ahead of both winners somewhere inside the cell, a mask (n, C).

    It is enough to compare with the first winner below `at`, (n,), and with the last one above it.
    For speed, the three conditions are differences, of which the largest is compared with 0.
    """
    import torch

    every, gamma = torch.arange(u.shape[1], device=u.device), at[:, None]
    one, other = first[:, None], last[:, None]
    middle = basis.factor(every, gamma).mul_(u)
    ahead = torch.addcmul(middle, basis.offsets, basis.common(gamma))
    ahead -= torch.maximum(ahead.gather(1, one), ahead.gather(1, other))
    middle *= basis.pull(every, gamma)
    pulls = [basis.pull(every, end) for end in ends]
    begin, finish = u * pulls[0], u * (pulls[1] * basis.factor(every, ends[1]))
    sides = (
        (one, begin - begin.gather(1, one), middle.gather(1, one) - middle),
        (other, middle - middle.gather(1, other), finish.gather(1, other) - finish),
    )
    for _, leaves, arrives in sides:
        torch.maximum(ahead, torch.minimum(leaves, arrives), out=ahead)
    rivals = ahead > 0
    if basis.table is not None:
        turns = (pulls[0] > 0) & (pulls[1] < 0)
        least = (basis.factor(every, ends[1]) / basis.common(ends[1])).clamp_max(1.0)
        for winner, leaves, arrives in sides:
            best = u.gather(1, winner)
            floor = torch.where(best > 0, basis.offsets[winner] + best * least[winner], -torch.inf)
            mixed = (best * u < 0) & (basis.offsets > floor)
            steeper = (basis.rates[winner] - basis.rates) * best.sign()
            rivals |= _doubtful(leaves, arrives, steeper, turns & turns[winner], mixed)
    return rivals


def _doubtful(
    leaves: Tensor, arrives: Tensor, steeper: Tensor, turns: Tensor, mixed: Tensor
) -> Tensor:
    """Where a class that is behind a winner at both ends of a cell may be ahead inside.

    Args:
        leaves: slope of the class minus that of the winner, at the low end.
        arrives: slope of the winner minus that of the class, at the high end.
        steeper: r of the winner minus r of the class; negated if u of the winner is negative.
        turns: whether p of both changes its sign inside. Then the difference may have two
            stationary points, whose order `steeper` tells.
        mixed: whether u has different signs. Then nothing is known about stationary points.
    """
    twice = ((steeper > 0) & (leaves > 0)) | ((steeper < 0) & (arrives > 0))
    return ((leaves > 0) & (arrives > 0)) | (turns & twice) | mixed


def _settle(u: Tensor, basis: Basis, cells: _Cells, at: Tensor, limit: float) -> list[_Events]:
    """Divide cells, first at the strengths `at` (P,), until each has one winner; u is (n, C)."""
    events = [(cells.row[:0], at[:0], cells.last[:0])]
    while len(cells.row):
        winner = _winners(u, basis, cells, at)
        new = winner >= 0
        change = (cells.first != cells.last) & ~new
        events.append((cells.row[change], at[change], cells.last[change]))
        cells = _undecided(u, basis, _halves(basis, cells, at, winner), limit)
        at = _points(u, basis, cells)
    return events


def _winners(u: Tensor, basis: Basis, cells: _Cells, at: Tensor) -> Tensor:
    """The best candidate of each cell at `at` if it is ahead of both winners, else -1; (P,)."""
    import torch

    cell, label = cells.cell, cells.label
    ends = (basis.value(_scores(u, cells.row, k), k, at) for k in (cells.first, cells.last))
    floor = torch.maximum(*ends)
    score = basis.value(_scores(u, picked(cells.row, cell), label), label, picked(at, cell))
    behind = picked(floor, cell)
    score -= _rounding(score, behind, picked(basis.offsets, label))
    most = floor.scatter_reduce(0, cell, score, "amax")
    best = ((score == picked(most, cell)) & (score > behind)).nonzero()[:, 0]
    none = torch.full_like(cells.row, u.shape[1])
    winner = none.scatter_reduce_(0, cell[best], label[best], "amin")  # the first of equals
    return winner.masked_fill_(winner == u.shape[1], -1)


def _scores(u: Tensor, row: Tensor, label: Tensor) -> Tensor:
    """The values u of some rows and classes."""
    return picked(u.view(-1), row * u.shape[1] + label)


def _rounding(score: Tensor, other: Tensor, offset: Tensor) -> Tensor:
    """A bound of the rounding error in the difference of two scores."""
    return (score.abs() + other.abs() + offset.abs()) * _EPSILON


def _halves(basis: Basis, cells: _Cells, at: Tensor, winner: Tensor) -> _Cells:
    """Divide each cell in two at `at`.

    There `winner` wins; if that is -1, the winners at the two ends cross there.
    """
    import torch

    new, count = winner >= 0, len(at)
    cell, label = cells.cell, cells.label
    if basis.table is not None:  # two curves may then cross more than once
        cross = (cells.first != cells.last).nonzero()[:, 0]
        cell = torch.cat([cell, cross, cross])
        label = torch.cat([label, cells.first[cross], cells.last[cross]])
    return _Cells(
        torch.cat([cells.row, cells.row]),
        torch.cat([cells.low, at]), torch.cat([at, cells.high]),
        torch.cat([cells.first, torch.where(new, winner, cells.last)]),
        torch.cat([torch.where(new, winner, cells.first), cells.last]),
        torch.cat([cell, cell + count]), torch.cat([label, label]),
    )  # fmt: skip


class _Ends(NamedTuple):
    """M curves at the two ends of their cells."""

    label: Tensor
    """(M,)."""
    u: Tensor
    """(M,)."""
    value: Tensor
    """g, (2, M)."""
    slope: Tensor
    """u * f * p, (2, M), proportional to the derivative of g / q."""
    pull: Tensor
    """p, (2, M); (M,) if q = 1."""

    @classmethod
    def of(cls, basis: Basis, u: Tensor, label: Tensor, ends: Tensor) -> _Ends:
        own, pull = u * basis.factor(label, ends), basis.pull(label, ends)
        value = own + picked(basis.offsets, label) * basis.common(ends)
        return cls(label, u, value, own * pull, pull)

    def of_cells(self, cell: Tensor) -> _Ends:
        return _Ends(*(column.index_select(-1, cell) for column in self))


def _undecided(u: Tensor, basis: Basis, cells: _Cells, limit: float) -> _Cells:
    """The cells whose winners differ or have rivals, with the candidates that may still win."""
    import torch

    cell, ends = cells.cell, torch.stack([cells.low, cells.high])
    around = ends.index_select(1, cell)
    own = _Ends.of(basis, _scores(u, picked(cells.row, cell), cells.label), cells.label, around)
    keep = around[1] - around[0] > limit * _NARROW
    for winner in (cells.first, cells.last):
        best = _Ends.of(basis, _scores(u, cells.row, winner), winner, ends)
        keep &= _may_lead(basis, own, best.of_cells(cell), around)
    some = cells.first != cells.last
    some[cell[keep]] = True
    return cells.take(some, keep)


def _may_lead(basis: Basis, own: _Ends, best: _Ends, ends: Tensor) -> Tensor:
    """Which candidates may be ahead of a winner somewhere in their cells; `ends` is (2, M)."""
    import torch

    lead = own.value - best.value
    slack = _rounding(own.value, best.value, picked(basis.offsets, own.label))
    behind = (lead <= slack).all(0)
    leaves, arrives = own.slope[0] - best.slope[0], best.slope[1] - own.slope[1]
    doubt = (leaves > 0) & (arrives > 0)
    if basis.table is not None:
        steeper = (basis.rates[best.label] - basis.rates[own.label]) * best.u.sign()
        turns = torch.stack([x.pull[0].gt(0) & x.pull[1].lt(0) for x in (own, best)]).all(0)
        doubt = _doubtful(leaves, arrives, steeper, turns, own.u * best.u < 0)
    some = (behind & doubt).nonzero()[:, 0]
    k, w, ends = own.of_cells(some), best.of_cells(some), ends[:, some]
    apart = (basis.offsets[k.label] - basis.offsets[w.label]).abs()
    bend = basis.bend(k.u.abs(), apart, k.label, *ends)
    bend += basis.bend(w.u.abs(), torch.zeros_like(apart), w.label, *ends)
    width = ends[1] - ends[0]
    # The difference cannot rise far enough above its chord, or it is monotonic: it stays behind.
    below = lead[:, some].amax(0) + bend * width**2 / 8 <= slack[:, some].amax(0)
    rise = (basis.value(k.u, k.label, ends, 1) - basis.value(w.u, w.label, ends, 1)).sum(0)
    doubt[some[below | (rise.abs() > bend * width)]] = False
    return ~behind | doubt


def _points(u: Tensor, basis: Basis, cells: _Cells) -> Tensor:
    """Where to divide the cells, (P,): where the winners cross, or near a rival's largest lead."""
    import torch

    ends = torch.stack([cells.low, cells.high])
    same = (cells.first == cells.last)[cells.cell]
    cell, label = cells.cell[same], cells.label[same]
    row, winner, around = cells.row[cell], cells.first[cell], ends[:, cell]
    own, best = (_Ends.of(basis, _scores(u, row, k), k, around) for k in (label, winner))
    # If q = 1, the logarithm of this quotient is linear in gamma.
    logs = (own.slope / best.slope).log()
    share = (logs[0] / (logs[0] - logs[1])).nan_to_num_(0.5).clamp_(1 / 16, 15 / 16)
    at = torch.zeros_like(cells.low).scatter_reduce_(0, cell, share, "amax")
    at = torch.lerp(cells.low, cells.high, torch.where(at > 0, at, 0.5))
    cross = (cells.first != cells.last).nonzero()[:, 0]
    label = torch.stack([cells.first, cells.last]).index_select(1, cross)
    score = _scores(u, picked(cells.row, cross), label)
    at[cross] = crossings(basis, score, label, ends.index_select(1, cross))
    return at
