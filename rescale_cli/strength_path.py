"""Every strength at once: where along the exponent a sample is right, and what is predicted.

With re-scaling the score of class k is u_k * exp(gamma * s_k), s_k = log(n_1 / n_k). Its logarithm
is a straight line in gamma, so "class y wins" holds in one interval of gamma, and the predicted
class follows the upper envelope of C lines. One pass over the logits gives both exactly, for every
gamma; see Kim & Kim 2020, Eq. 7, for the scores. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


BlockWork = Callable[[slice], None]


def in_blocks(rows: int, step: int, begin: Callable[[], BlockWork], *, on_cpu: bool = True) -> None:
    """Do the same work on blocks of rows until all are done; no rows are one empty block.

    Torch by itself divides each operation among the threads, which then wait for one another after
    each; where another program has one of them, that wait is most of the time. Here each core has
    operations, and a cache, to itself.

    Args:
        rows: N.
        step: rows of a block.
        begin: gives a thread what it calls with the rows of each of its blocks; what `begin` makes,
            buffers say, belongs to one thread.
        on_cpu: else there is nothing to divide, and this thread does it all.
    """
    import torch

    todo = iter(range(0, max(rows, 1), step))

    def until_none_is_left() -> None:
        work = begin()
        for first in todo:
            work(slice(first, min(first + step, rows)))

    threads = torch.get_num_threads()
    blocks = -(-rows // step)
    if not on_cpu or min(threads, blocks) < 2:
        until_none_is_left()
        return

    def alone() -> None:
        torch.set_num_threads(1)  # of this thread's operations
        until_none_is_left()

    try:
        with ThreadPoolExecutor(min(threads, blocks)) as pool:
            for thread in [pool.submit(alone) for _ in range(min(threads, blocks))]:
                thread.result()
    finally:
        torch.set_num_threads(threads)  # later threads begin with what was set last


Ties = Literal["win", "first"]
_Steps = list[tuple["Tensor", "Tensor", "Tensor"]]

#: Elements of a block, on the CPU (its cache holds three of them) and elsewhere.
_BLOCK, _LARGE_BLOCK = 1 << 18, 1 << 23
#: Stand for infinity where infinity times zero must not arise: a penalty, a line that never wins;
#: what no crossing of real lines reaches; and for the difference of equal slopes.
_HUGE, _FAR, _LIMIT, _LEVEL = 1e300, 1e30, 1e20, 1e-100
#: The smallest normal number, and a little more than its logarithm.
_TINY, _DARK = 2.2250738585072014e-308, -708.3964
#: The smallest number above 0.
_LEAST = 5e-324


def correct_intervals(
    logits: Tensor, labels: Tensor, slopes: Tensor, log: bool = True, *, ties: Ties = "win"
) -> tuple[Tensor, Tensor]:
    """Where each sample is right: at gamma if and only if lo <= gamma <= hi.

    For classes k with s_k < s_y the true class y wins from a strength on, for those with s_k > s_y
    up to one, for s_k = s_y always or never. Memory beyond the answer does not depend on N, and the
    intervals of batches or shards are concatenated.

    Args:
        logits: (N, C), any float type, any device, no NaN. With `log` these are the scores u at
            gamma = 0; else the intercepts of scores z + gamma * s.
        labels: (N,), 0 to C - 1.
        slopes: s, (C,), finite: log(n_1 / n_k) for re-scaling, -log |w_k| for tau-norm,
            -log(n_k / N), with log=False, for logit adjustment.
        log: the scores are u * exp(gamma * s). A class with u <= 0 never beats one with u > 0;
            where no class has u > 0 the smallest |u| * exp(gamma * s) wins.
        ties: whether the true class wins where it shares the largest score, or only where it comes
            first, as `argmax` has it (at 0, and where lines are one; a crossing is a point).

    Returns:
        lo, hi: (N,) each, float64, on the device of the logits; (inf, -inf) for a sample that is
        right nowhere. Numbers below the smallest normal one count as that one.

    Example:
        >>> import torch
        >>> logits, slopes = torch.tensor([[2.0, 1.0]]), torch.tensor([1.0, 4.0]).log()
        >>> correct_intervals(logits, torch.tensor([1]), slopes)
        (tensor([0.5000], dtype=torch.float64), tensor([inf], dtype=torch.float64))
    """
    import torch

    logits = logits.detach()
    labels, slopes = labels.to(logits.device), slopes.to(logits.device, torch.float64)
    lo, hi = torch.empty(2, len(logits), dtype=torch.float64, device=logits.device)
    step = _rows_of_a_block(logits)

    def begin() -> BlockWork:
        buffers = torch.empty(3, step, logits.shape[1], dtype=torch.float64, device=logits.device)

        def cross(rows: slice) -> None:
            both = _crossings(logits[rows], labels[rows], slopes, log, ties, buffers)
            lo[rows], hi[rows] = both

        return cross

    in_blocks(len(logits), step, begin, on_cpu=logits.device.type == "cpu")
    # Infinities and ties are taken by themselves; a row without a positive score is all ties.
    care = (lo == 0) | (hi == 0) | ~(lo + hi).isfinite()
    never = (lo > _LIMIT) | (hi < -_LIMIT)
    lo = torch.where(lo < -_LIMIT, -torch.inf, lo).masked_fill_(never, torch.inf)
    hi = torch.where(hi > _LIMIT, torch.inf, hi).masked_fill_(never, -torch.inf)
    for some in care.nonzero()[:, 0].split(step):
        lines, s = lines_of(logits[some], slopes, log)
        lo[some], hi[some] = _careful(lines, labels[some], s, ties)
    return lo, hi


def _rows_of_a_block(logits: Tensor) -> int:
    block = _BLOCK if logits.device.type == "cpu" else _LARGE_BLOCK
    return min(max(1, block // logits.shape[1]), max(1, len(logits)))


def _crossings(
    logits: Tensor, labels: Tensor, slopes: Tensor, log: bool, ties: Ties, buffers: Tensor
) -> tuple[Tensor, Tensor]:
    """The last crossing with a flatter line and the first with a steeper one; 0 asks for care.

    Masks and `where` would cost ten times the arithmetic, so what must not count is pushed far away
    instead: a class that cannot win to -1e30, a crossing of the other kind by 1e300.
    """
    import torch

    line, ahead, pushed = (buffer[: len(logits)] for buffer in buffers)
    own = labels[:, None]
    line.copy_(logits)
    if log:
        torch.threshold_(line.clamp_min_(_TINY).log_(), _DARK, -_FAR)
    line.sub_(line.gather(1, own)).scatter_(1, own, -_FAR)
    equal = torch.abs(line, out=pushed).amin(1) == 0 if ties == "first" else None
    torch.sub(slopes[own], slopes, out=ahead).add_(_LEVEL)
    crossing = line.div_(ahead)
    torch.clamp_max(ahead, 0, out=pushed)
    lo = torch.add(crossing, pushed, alpha=_HUGE, out=pushed).amax(1)
    hi = torch.add(crossing, ahead.clamp_min_(0), alpha=_HUGE, out=pushed).amin(1)
    return (lo if equal is None else lo.masked_fill_(equal, 0.0)), hi


def lines_of(scores: Tensor, slopes: Tensor, log: bool) -> tuple[Tensor, Tensor]:
    """The straight lines whose largest is the prediction: intercepts (n, C), slopes (n, C).

    With `log` the logarithms of positive scores; in rows without any, those of the others turned
    round, so that the smallest |u| is the largest line.
    """
    import torch

    scores, slopes = scores.to(torch.float64), slopes.expand(scores.shape)
    if not log:
        return scores, slopes
    dark = scores.amax(1, keepdim=True) <= 0
    lines = torch.where(dark, -(-scores).clamp_min(0).log(), scores.clamp_min(0).log())
    return lines, torch.where(dark, -slopes, slopes)


def _careful(lines: Tensor, labels: Tensor, slopes: Tensor, ties: Ties) -> tuple[Tensor, Tensor]:
    """`correct_intervals` of any rows, by the definition."""
    import torch

    own = labels[:, None]
    rise = torch.where(lines == lines.gather(1, own), 0.0, lines - lines.gather(1, own))
    ahead = slopes.gather(1, own) - slopes
    tied = (rise == 0) & ((ahead == 0) | lines.isinf())  # at every strength
    lower = torch.where((ahead > 0) & ~tied, rise / ahead, -torch.inf)
    upper = torch.where((ahead < 0) & ~tied, rise / ahead, torch.inf)
    lo, hi = lower.amax(1), upper.amin(1)
    never = ((ahead == 0) & (rise > 0)).any(1)
    if ties == "first":
        before = torch.arange(lines.shape[1], device=lines.device) < own
        never |= (tied & before).any(1)
        infinity = torch.full_like(lo, torch.inf)
        lo_open = ((lower == lo[:, None]) & before & lower.isfinite()).any(1)
        hi_open = ((upper == hi[:, None]) & before & upper.isfinite()).any(1)
        lo = torch.where(lo_open, lo.nextafter(infinity), lo)
        hi = torch.where(hi_open, hi.nextafter(-infinity), hi)
    never |= (lo == torch.inf) | (hi == -torch.inf)
    return torch.where(never, torch.inf, lo), torch.where(never, -torch.inf, hi)


class PredictedPath(NamedTuple):
    """What is predicted from gamma = 0 up to a limit: M steps of N samples."""

    sample: Tensor
    """(M,), the row of each step; every row has a step at gamma = 0."""
    gamma: Tensor
    """(M,), where the step begins, 0 to the limit."""
    label: Tensor
    """(M,), the class predicted from there on."""


def predicted_path(
    logits: Tensor, slopes: Tensor, log: bool = True, limit: float = 4.0
) -> PredictedPath:
    """The predicted class at every gamma from 0 to `limit`: the upper envelope of C lines.

    From the arg max at gamma = 0 (the first of equals) each sample goes to the next steeper line
    that crosses, until none crosses before the limit. Arguments as for `correct_intervals`.

    Returns:
        The steps, sample by sample, ascending in gamma.

    Example:
        >>> import torch
        >>> logits, slopes = torch.tensor([[2.0, 1.0]]), torch.tensor([1.0, 4.0]).double().log()
        >>> path = predicted_path(logits, slopes)
        >>> path.gamma.tolist(), path.label.tolist()
        ([0.0, 0.5], [0, 1])
    """
    import torch

    logits, slopes = logits.detach(), slopes.to(logits.device, torch.float64)
    step = _rows_of_a_block(logits)
    found: dict[int, _Steps] = {}

    def follow(block: slice) -> None:
        scores = logits[block]
        rows = torch.arange(block.start, block.stop, device=slopes.device)
        lines, _ = lines_of(scores, slopes, log)
        dark = (scores.amax(1) <= 0) & log  # their lines are turned round
        found[block.start] = [
            *_envelope(lines[~dark], slopes, rows[~dark], limit),
            *_envelope(lines[dark], -slopes, rows[dark], limit),
        ]

    in_blocks(len(logits), step, lambda: follow, on_cpu=logits.device.type == "cpu")
    steps = [step for first in sorted(found) for step in found[first]]
    sample, gamma, label = (torch.cat(column) for column in zip(*steps, strict=True))
    sample, order = sample.sort(stable=True)
    return PredictedPath(sample, gamma[order], label[order])


def _envelope(lines: Tensor, slopes: Tensor, rows: Tensor, limit: float) -> _Steps:
    """The steps of some rows: lines (n, C), slopes (C,)."""
    import torch

    endless = lines.isinf().any()
    lines = lines.clamp(-_FAR, _FAR)
    now, at = lines.argmax(1), torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    found = [(rows[:0], at[:0], now[:0])]
    while len(rows):
        found.append((rows, at, now))
        own = now[:, None]
        ahead = slopes - slopes[own]
        meet = (lines.gather(1, own) - lines).div_(ahead)
        # Flatter lines are out of the race, and so are those as steep.
        meet.sub_(ahead.clamp_max(0), alpha=_HUGE).masked_fill_(ahead == 0, torch.inf)
        if endless:  # two infinite lines are level at every strength
            meet.masked_fill_((lines == lines.gather(1, own)) & (lines.abs() == _FAR), torch.inf)
        first, now = meet.min(1)
        # A tie at 0 is the first of equals there, and the steepest from there on.
        at = torch.maximum(first, at).clamp_min_(_LEAST)
        going = (first <= limit).nonzero()[:, 0]
        rows, at, now, lines = rows[going], at[going], now[going], lines[going]
    return found
