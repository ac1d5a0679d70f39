"""The predicted class at every strength where scores are curves: exponentials and a common term.

With a kept bias the score of class k is u_k * exp(gamma * r_k) + b_k, and no logarithm makes that
a straight line. Tau-norm also has a factor c(gamma) common to all rows that take part; divided by
it, every score has the form

    g_k(gamma) = u_k * exp(gamma * r_k) + b_k * q(gamma),    q a sum of exponentials, 1 at gamma = 0

with u_k of the sample and r_k, b_k, q of the head. Each exponential is convex, so on a cell [a, b]
its chord lies above it and its tangents below. The winners at a and b bound the largest score from
below by two tangents; a class whose chord stays below their intersection wins nowhere inside. Cells
with more candidates than the two winners are split, those with two are solved. Everything is
float64, and nothing depends on a step width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from rescale_cli.core.cores import in_blocks
from rescale_cli.core.curves import Basis, Curves, basis_of
from rescale_cli.strength_path import PredictedPath

if TYPE_CHECKING:
    from torch import Tensor

#: Elements of a block whose passes stay in the cache of a CPU, and of one on another device.
_BLOCK, _LARGE_BLOCK = 1 << 17, 1 << 22
#: Rows of a chunk, times C: its undecided cells are settled together.
_CHUNK = 1 << 21
#: Undecided candidates that are held at once.
_HELD = 1 << 21
#: A cell of the first pass is so wide that the steepest exponential changes by exp of this.
_STEEP, _MOST_CELLS = 0.6, 64
#: Cells narrower than this share of the limit are not split again.
_NARROW = 2.0**-46
#: What rounding may make of a score, relative to its terms: less is a tie.
_EPSILON = 2.0**-50
#: Stands for a score of minus infinity, which has no exponential.
_LOWEST = -1e150


def curved_path(scores: Tensor, curves: Curves, limit: float = 4.0) -> PredictedPath:
    """The predicted class at every gamma from 0 to `limit`, as `predicted_path` gives it.

    Memory beyond the answer does not depend on N, and the steps of batches can be concatenated.

    Args:
        scores: u, (N, C), any float type, any device, no NaN.
        curves: of the head.
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
    nodes = _nodes(basis, curves, limit)
    on_cpu = scores.device.type == "cpu"
    step = max(1, (_CHUNK if on_cpu else _LARGE_BLOCK) // scores.shape[1])
    found: dict[int, PredictedPath] = {}

    def follow(rows: slice) -> None:
        u = scores[rows].to(torch.float64)
        found[rows.start] = _chunk(u, basis, nodes, limit, rows.start)

    in_blocks(len(scores), step, lambda: follow, on_cpu=on_cpu)
    columns = zip(*(found[first] for first in sorted(found)), strict=True)
    return PredictedPath(*(torch.cat(column) for column in columns))


class _Cells(NamedTuple):
    """Cells (P,) of some rows, and the classes that may win in each: (M,), cell by cell."""

    row: Tensor
    low: Tensor
    high: Tensor
    first: Tensor
    """Who wins at the low end."""
    last: Tensor
    """Who wins at the high end."""
    cell: Tensor
    """(M,), ascending."""
    label: Tensor
    """(M,), ascending within a cell."""

    def take(self, cells: Tensor, keep: Tensor) -> _Cells:
        """Some cells, a mask (P,), with some of their candidates, a mask (M,)."""
        place = cells.cumsum(0) - 1
        keep = keep & cells[self.cell]
        row, low, high, first, last = (column[cells] for column in self[:5])
        return _Cells(row, low, high, first, last, place[self.cell[keep]], self.label[keep])


class _Nodes(NamedTuple):
    """The first cells, alike for all samples: K of them between K + 1 strengths."""

    at: Tensor
    """(K + 1,)."""
    factor: tuple[Tensor, Tensor]
    """The factors of u, (K + 1, C), and their derivatives."""
    offset: tuple[Tensor, Tensor]
    """What is added, (K + 1, C), and its derivatives."""
    bend: Tensor
    """A bound of the second derivatives of the factors, (K, C)."""
    dent: Tensor
    """A bound of how far the added terms are from being convex, (K, C)."""


def _nodes(basis: Basis, curves: Curves, limit: float) -> _Nodes:
    import torch

    steepest = float(max(abs(curves.rates).max(), abs(curves.exponents).max()))
    cells = min(max(2, math.ceil(limit * steepest / _STEEP)), _MOST_CELLS)
    at = torch.linspace(0, limit, cells + 1, dtype=torch.float64, device=basis.rates.device)
    every = torch.arange(len(basis.rates), device=at.device)
    factor = [basis.factor(every, at[:, None], order) for order in (0, 1, 2)]
    offset = [basis.offsets * basis.common(at, order)[:, None] for order in (0, 1, 2)]
    bend = torch.maximum(factor[2][1:], factor[2][:-1])
    dent = torch.maximum(-offset[2][1:], -offset[2][:-1]).clamp_min_(0)
    return _Nodes(at, (factor[0], factor[1]), (offset[0], offset[1]), bend, dent)


def _first_pass(u: Tensor, nodes: _Nodes, offset: int, held: list[_Cells]) -> Tensor:
    """The winners at gamma = 0 of a block of rows, u (n, C); its undecided cells go to `held`."""
    import torch

    low, tested, negative = torch.empty_like(u), torch.empty_like(u), u.clamp_max(0)
    high = torch.addcmul(nodes.offset[0][0], u, nodes.factor[0][0])
    start = last = high.argmax(1)
    moving = bool(nodes.offset[1].any())
    most = high.gather(1, last[:, None])[:, 0]
    for i in range(len(nodes.at) - 1):
        width = float(nodes.at[i + 1] - nodes.at[i])
        low, high, first, least = high, low, last, most
        torch.addcmul(nodes.offset[0][i + 1], u, nodes.factor[0][i + 1], out=high)
        # Few winners change from one strength to the next, and a maximum is a fifth of the work of
        # its place.
        last, most = first.clone(), high.amax(1)
        beaten = (most > high.gather(1, last[:, None])[:, 0]).nonzero()[:, 0]
        last[beaten] = high[beaten].argmax(1)
        lines = []
        for label, end, sign in ((first, i, -0.5), (last, i + 1, 0.5)):
            score = u.gather(1, label[:, None])[:, 0]
            dent = score.clamp_max(0).neg_().mul_(nodes.bend[i][label])
            slope = score * nodes.factor[1][end][label]
            if moving:  # else what is added does not change with gamma
                dent, slope = dent + nodes.dent[i][label], slope + nodes.offset[1][end][label]
            lines.append(slope.add_(dent, alpha=sign * width))
        share, floor = _floor(least, lines[0], most, lines[1], width)
        torch.lerp(low, high, share[:, None], out=tested)
        tested.addcmul_(negative, nodes.bend[i], value=-(width**2) / 2)
        if moving:
            tested.add_(nodes.dent[i], alpha=width**2 / 2)
        ends = torch.stack([first, last], 1)
        tested.scatter_(1, ends, -torch.inf)
        some = ((tested.amax(1) >= floor) | (first != last)).nonzero()[:, 0]
        found = (tested[some] >= floor[some, None]).scatter_(1, ends[some], True).nonzero()
        begin, finish = nodes.at[i : i + 2, None].expand(-1, len(some))
        cell, label = found.unbind(1)
        held.append(_Cells(some + offset, begin, finish, first[some], last[some], cell, label))
    return start


def _floor(
    least: Tensor, rise: Tensor, most: Tensor, fall: Tensor, width: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Where the winners' tangents meet, as a share of the cell, and the lower one there.

    Whatever stays below it at that place, on a line from the low end and on one from the high end,
    stays below one of the winners all along.
    """
    import torch

    meet = (most - fall * width - least) / (rise - fall)
    share = (meet / width).nan_to_num_(0.5).clamp_(0, 1)
    floor = torch.minimum(least + rise * share * width, most - fall * (1 - share) * width)
    return share, floor


def _joined(held: list[_Cells]) -> _Cells:
    """The cells of several blocks as one table."""
    import torch

    before, moved = 0, []
    for cells in held:
        moved.append(cells.cell + before)
        before += len(cells.row)
    columns = [torch.cat(column) for column in zip(*held, strict=True)]
    columns[5] = torch.cat(moved)
    return _Cells(*columns)


def _settle(u: Tensor, basis: Basis, cells: _Cells, limit: float) -> list[_Events]:
    """Split cells until each has one winner, or two that cross once, u (n, C)."""
    import torch

    events = [(cells.row[:0], cells.low[:0], cells.low[:0], cells.row[:0])]
    while len(cells.row):
        ends = [u[cells.row, label] for label in (cells.first, cells.last)]
        width = cells.high - cells.low
        values, slopes = [], []
        for label, score, at, sign in (
            (cells.first, ends[0], cells.low, -0.5), (cells.last, ends[1], cells.high, 0.5)
        ):  # fmt: skip
            dent = basis.dent(score, label, cells.low, cells.high)
            values.append(basis.value(score, label, at))
            slopes.append(basis.value(score, label, at, 1) + sign * width * dent)
        share, floor = _floor(values[0], slopes[0], values[1], slopes[1], width)
        keep = _may_win(u, basis, cells, ends, share, floor)
        rivals = torch.zeros_like(cells.row)
        rivals.index_add_(0, cells.cell, keep.long())
        crossing = cells.first != cells.last
        once = (rivals == 0) & crossing & _cross_once(basis, cells, ends)
        narrow = width <= limit * _NARROW
        events.append(_crossings(basis, cells, ends, once & ~narrow))
        jump = narrow & crossing
        events.append((cells.row[jump], cells.low[jump], cells.high[jump], cells.last[jump]))
        going = ~narrow & ~once & (crossing | (rivals > 0))
        keep |= (cells.label == cells.first[cells.cell]) | (cells.label == cells.last[cells.cell])
        split = (cells.low + share.clamp(0.2, 0.8) * width)[going]
        cells = _halves(u, basis, cells.take(going, keep), split)
    return events


def _may_win(
    u: Tensor, basis: Basis, cells: _Cells, ends: list[Tensor], share: Tensor, floor: Tensor
) -> Tensor:
    """Which candidates (M,), besides the winners at the ends, may win inside their cell."""
    import torch

    cell, label = cells.cell, cells.label
    score, low, high = u[cells.row[cell], label], cells.low[cell], cells.high[cell]
    values = [basis.value(score, label, at) for at in (low, high)]
    line = torch.lerp(values[0], values[1], share[cell])
    line += basis.dent(score, label, low, high) * (high - low) ** 2 / 2
    rounding = (line.abs() + floor[cell].abs() + basis.offsets[label].abs()) * _EPSILON
    keep = line > floor[cell] + rounding
    for winner, best in zip((cells.first, cells.last), ends, strict=True):
        # A curve of the same kind never crosses it, and zero times any factor is of every kind.
        other, zero = winner[cell], (score == 0) & (best[cell] == 0)
        same = (basis.kinds[label] == basis.kinds[other]) | (
            zero & (basis.offsets[label] == basis.offsets[other])
        )
        keep &= ~same
    return keep


def _cross_once(basis: Basis, cells: _Cells, ends: list[Tensor]) -> Tensor:
    """Where the winners at the ends, (P,), cross just once between them.

    With q = 1 the difference of two curves has three exponentials and so at most two zeros, and its
    signs at the ends differ. Else its derivative must not reach 0.
    """
    import torch

    if basis.table is None:
        return torch.ones_like(cells.row, dtype=torch.bool)
    low, high, slopes, bends = cells.low, cells.high, [], []
    for label, score in zip((cells.first, cells.last), ends, strict=True):
        slopes.append([basis.value(score, label, at, 1) for at in (low, high)])
        bends.append(basis.bend(score.abs(), basis.offsets[label].abs(), label, low, high))
    rise = slopes[1][0] - slopes[0][0] + slopes[1][1] - slopes[0][1]
    alike = basis.kinds[cells.first] == basis.kinds[cells.last]
    return (rise > (bends[0] + bends[1]) * (high - low)) | alike


def _crossings(basis: Basis, cells: _Cells, ends: list[Tensor], which: Tensor) -> _Events:
    """Where the two winners of some cells cross, a mask (P,): Newton's method within brackets."""
    import torch

    first, last, low, high = (x[which] for x in (cells.first, cells.last, cells.low, cells.high))
    one, other = (score[which] for score in ends)
    gamma = (low + high) / 2
    going = torch.arange(len(low), device=low.device)

    def lead(at: Tensor, order: int = 0) -> Tensor:
        ahead = basis.value(other[going], last[going], at, order)
        return ahead - basis.value(one[going], first[going], at, order)

    below, above = low.clone(), high.clone()
    for turn in range(200):
        at = gamma[going]
        ahead = lead(at)
        below[going] = torch.where(ahead > 0, below[going], at)
        above[going] = torch.where(ahead > 0, at, above[going])
        newton, middle = at - ahead / lead(at, 1), (below[going] + above[going]) / 2
        inside = (newton >= below[going]) & (newton <= above[going])
        gamma[going] = torch.where(inside & (turn % 8 != 7), newton, middle)
        going = going[(gamma[going] - at).abs() > at * 2.0**-52]
        if not len(going):
            break
    going = torch.arange(len(low), device=low.device)
    after = torch.full_like(low, torch.inf)
    tied = lead(low) >= 0  # at the low end, where the first of equals wins
    gamma = torch.where(tied, torch.nextafter(low, after), gamma)
    return cells.row[which], low, gamma, last


def _halves(u: Tensor, basis: Basis, cells: _Cells, split: Tensor) -> _Cells:
    """Each cell as two, divided at `split` (P,), with the winners there."""
    import torch

    count, cell, label = len(split), cells.cell, cells.label
    score = basis.value(u[cells.row[cell], label], label, split[cell])
    most = torch.full_like(split, -torch.inf).scatter_reduce_(0, cell, score, "amax")
    best = (score == most[cell]).nonzero()[:, 0]
    winner = torch.full_like(cells.row, u.shape[1])
    winner.scatter_reduce_(0, cell[best], label[best], "amin")  # the first of equals
    return _Cells(
        torch.cat([cells.row, cells.row]),
        torch.cat([cells.low, split]), torch.cat([split, cells.high]),
        torch.cat([cells.first, winner]), torch.cat([winner, cells.last]),
        torch.cat([cell, cell + count]), torch.cat([label, label]),
    )  # fmt: skip


_Events = tuple["Tensor", "Tensor", "Tensor", "Tensor"]


def _chunk(u: Tensor, basis: Basis, nodes: _Nodes, limit: float, offset: int) -> PredictedPath:
    """The steps of some rows, u (n, C)."""
    import torch

    infinite = u.isinf().any(1)
    constant = infinite & ((u.amax(1) == torch.inf) | (u.amax(1) == -torch.inf))
    always = u[constant].argmax(1)
    u = u.masked_fill(constant[:, None], 0.0).clamp_min_(_LOWEST) if bool(infinite.any()) else u
    step = max(1, (_BLOCK if u.device.type == "cpu" else _LARGE_BLOCK) // u.shape[1])
    start, events = torch.empty(len(u), dtype=torch.long, device=u.device), []
    held: list[_Cells] = []
    for first in range(0, len(u), step):
        rows = slice(first, min(first + step, len(u)))
        start[rows] = _first_pass(u[rows], nodes, first, held)
        if sum(len(cells.label) for cells in held) > _HELD:
            events += _settle(u, basis, _joined(held), limit)
            held.clear()
    if held or not events:
        events += _settle(u, basis, _joined(held), limit)
    row, low, gamma, label = (torch.cat(column) for column in zip(*events, strict=True))
    order = low.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    every = torch.arange(len(u), device=u.device)
    row, gamma, label = row[order], gamma[order], label[order]
    going = (gamma <= limit) & ~constant[row]
    start[constant] = always
    row = torch.cat([every, row[going]])
    row, order = row.sort(stable=True)
    gamma = torch.cat([torch.zeros_like(start, dtype=gamma.dtype), gamma[going]])
    label = torch.cat([start, label[going]])
    return PredictedPath(row + offset, gamma[order], label[order])
