"""How recalls change from one set of predictions to another, each change with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.head import Float64
from rescale_cli.core.predictions import Labels
from rescale_cli.measures.metrics import Shares
from rescale_cli.measures.significance import Interval

#: Replicates of the bootstrap, whatever `--bootstrap` says.
REPLICATES = 10_000
#: Differences are rounded to this many digits, so that sums of shares that are equal look equal.
DIGITS = 12


@dataclass(frozen=True, slots=True, eq=False)
class RecallChanges:
    """After less before, on the same samples: of each class, and of each mean of recalls."""

    means: Mapping[str, Interval | None]
    """accuracy, balanced_accuracy and each group, paired 95 % intervals; None where it is n/a."""
    difference: Float64
    """(C,), NaN for a class without samples."""
    low: Float64
    """(C,), the lower end of the 95 % interval of the difference."""
    high: Float64
    """(C,), the upper end."""

    def of_class(self, row: int) -> tuple[float, float] | None:
        """The interval of one class; None where it has no samples."""
        low, high = float(self.low[row]), float(self.high[row])
        return None if np.isnan(low) else (low, high)


def recall_changes(
    before: Labels, after: Labels, labels: Labels, shares: Shares, num_classes: int, seed: int = 0
) -> RecallChanges:
    """Paired bootstrap of every recall, and of every mean of recalls, from one set of draws.

    A sample adds +1 (it becomes right), -1 (it becomes wrong) or 0 to its class, so a replicate is
    one multinomial draw for each class: 10,000 of them, samples drawn again within their classes,
    2.5th to 97.5th percentile.

    A class of one sample has no variation of its own, as if it were certain. In a mean, such
    classes are drawn together ("collapsed strata", Cochran 1977, section 5A.12); the interval of
    such a class alone is -1 to 1, since one sample says nothing.

    Args:
        before: predictions (N,), 0 to C - 1.
        after: predictions (N,) on the same samples.
        labels: (N,), 0 to C - 1.
        shares: masks or shares (C,) that recalls are averaged by: the groups, and others.
        num_classes: C.
        seed: the same seed, samples and numpy give the same intervals.

    Example:
        >>> labels = np.array([0] * 50 + [1] * 50)
        >>> found = recall_changes(np.zeros(100, int), labels, labels, {}, 2)
        >>> found.difference.tolist(), found.means["accuracy"]
        ([0.0, 1.0], Interval(value=0.5, low=0.5, high=0.5))
    """
    support = np.bincount(labels, minlength=num_classes)
    change = rightness(before, after, labels)
    gained, lost = (np.bincount(labels, change == sign, num_classes) for sign in (1, -1))
    weights = _weights(shares, support)
    sums = np.zeros((len(weights), REPLICATES))
    with np.errstate(invalid="ignore"):
        difference = (gained - lost) / np.where(support > 0, support, np.nan)
    low, high = difference.copy(), difference.copy()
    low[support == 1], high[support == 1] = -1.0, 1.0
    generator = np.random.default_rng(seed)
    _draw_together(sums, weights, (support == 1)[labels], labels, change, generator)
    for row in np.flatnonzero((gained + lost > 0) & (support > 1)):
        n = int(support[row])
        kinds = np.array([gained[row], lost[row], n - gained[row] - lost[row]]) / n
        drawn = generator.multinomial(n, kinds, REPLICATES)
        net = drawn[:, 0] - drawn[:, 1]
        sums += weights[:, row, None] * net
        low[row], high[row] = _ends(net / n)
    values = weights @ (gained - lost)
    means = {
        name: Interval(round(float(value), DIGITS), *_ends(drawn)) if weight.any() else None
        for name, weight, value, drawn in zip(
            ("accuracy", "balanced_accuracy", *shares), weights, values, sums, strict=True
        )
    }
    return RecallChanges(means, difference, low, high)


def rightness(before: Labels, after: Labels, labels: Labels) -> NDArray[np.int64]:
    """(N,): 1 where a sample becomes right, -1 where it becomes wrong, else 0."""
    change: NDArray[np.int64] = (after == labels).astype(np.int64) - (before == labels)
    return change


def _weights(shares: Shares, support: NDArray[np.int64]) -> Float64:
    """(K, C): what one sample of each class adds to each mean; 0 throughout where it is n/a."""
    every = [support.astype(np.float64), np.ones(len(support)), *shares.values()]
    rows = np.array([np.where(support > 0, share, 0.0) for share in every])
    total = rows.sum(axis=1, keepdims=True)
    rows = np.divide(rows, total, where=total > 0, out=np.zeros_like(rows))
    weights: Float64 = rows / np.maximum(support, 1)
    return weights


def _draw_together(
    sums: Float64,
    weights: Float64,
    alone: NDArray[np.bool_],
    labels: Labels,
    change: NDArray[np.int64],
    generator: np.random.Generator,
) -> None:
    """Add the classes of one sample to the sums (K, R), drawn as if they were one class."""
    if not (change[alone] != 0).any():
        return
    added = weights[:, labels[alone]] * change[alone]
    kinds, times = np.unique(added, axis=1, return_counts=True)
    sums += kinds @ generator.multinomial(int(times.sum()), times / times.sum(), len(sums.T)).T


def _ends(drawn: Float64) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return round(float(low), DIGITS), round(float(high), DIGITS)
