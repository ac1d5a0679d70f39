"""Judge a chosen strength on held-out samples: helps, harms, no-gain or undecided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.floats import Float64
from rescale_cli.core.predictions import Labels
from rescale_cli.measures.metrics import Confusion, Shares, table_of
from rescale_cli.measures.significance import Interval, bootstrap_difference, mcnemar
from rescale_cli.sweeping.selection import Objective

#: Bootstrap replicates of a mean of recalls, regardless of `--bootstrap`.
VERDICT_REPLICATES = 10_000
#: Decimals of a difference, so that rounding errors do not distinguish equal sums.
DIGITS = 12


@dataclass(frozen=True, slots=True, eq=False)
class RecallChanges:
    """Changes of recall, after minus before, on the same samples."""

    means: Mapping[str, Interval | None]
    """accuracy, balanced_accuracy and each group, with paired 95 % intervals; None if n/a."""
    difference: Float64
    """The change of each class, (C,); NaN for a class without samples."""
    low: Float64
    """The lower end of its 95 % interval, (C,)."""
    high: Float64
    """The upper end, (C,)."""

    def of_class(self, row: int) -> tuple[float, float] | None:
        """The interval of one class; None if it has no samples."""
        low, high = float(self.low[row]), float(self.high[row])
        return None if np.isnan(low) else (low, high)


def recall_changes(
    before: Labels, after: Labels, labels: Labels, shares: Shares, num_classes: int, seed: int = 0
) -> RecallChanges:
    """Paired bootstrap of every recall, and of every mean of recalls, from the same replicates.

    Samples are resampled within their classes, 10,000 times; an interval goes from the 2.5th to the
    97.5th percentile. A sample adds +1 (becomes correct), -1 (becomes wrong) or 0 to its class, so
    a replicate is one multinomial draw per class.

    Resampling a class of one sample would show no variation. In a mean, such classes are therefore
    resampled together ("collapsed strata", Cochran 1977, section 5A.12). Alone, the interval of
    such a class is -1 to 1.

    Args:
        before: predictions (N,), 0 to C - 1.
        after: predictions (N,) on the same samples.
        labels: (N,), 0 to C - 1.
        shares: masks or weights (C,) by which recalls are averaged, such as the groups.
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
    sums = np.zeros((len(weights), VERDICT_REPLICATES))
    with np.errstate(invalid="ignore"):
        difference = (gained - lost) / np.where(support > 0, support, np.nan)
    low, high = difference.copy(), difference.copy()
    low[support == 1], high[support == 1] = -1.0, 1.0
    generator = np.random.default_rng(seed)
    _draw_together(sums, weights, (support == 1)[labels], labels, change, generator)
    for row in np.flatnonzero((gained + lost > 0) & (support > 1)):
        n = int(support[row])
        kinds = np.array([gained[row], lost[row], n - gained[row] - lost[row]]) / n
        drawn = generator.multinomial(n, kinds, VERDICT_REPLICATES)
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
    """(N,): 1 if a sample becomes correct, -1 if it becomes wrong, else 0."""
    change: NDArray[np.int64] = (after == labels).astype(np.int64) - (before == labels)
    return change


def _weights(shares: Shares, support: NDArray[np.int64]) -> Float64:
    """(K, C): what one sample of each class adds to each of K means; a row of 0 if it is n/a."""
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
    """Add the classes of one sample to the sums (K, R), resampled as if they were one class."""
    if not (change[alone] != 0).any():
        return
    added = weights[:, labels[alone]] * change[alone]
    kinds, times = np.unique(added, axis=1, return_counts=True)
    sums += kinds @ generator.multinomial(int(times.sum()), times / times.sum(), len(sums.T)).T


def _ends(drawn: Float64) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return round(float(low), DIGITS), round(float(high), DIGITS)


VerdictKind = Literal["helps", "no-gain", "undecided", "harms"]
Reason = Literal[
    "interval", "same-decisions", "negligible", "same-samples", "one-class", "few-changes",
    "no-value", "no-labels",
]  # fmt: skip

#: Bootstrap replicates of any other metric, regardless of `--bootstrap`: each costs a whole table.
TABLE_REPLICATES = 2000
#: A smaller change of a metric does not matter: 0.1 points.
NEGLIGIBLE = 0.001
#: A difference that rests on this many samples proves nothing: by the sign test, all five change in
#: the same direction by chance in 2 / 2^5 = 6 % of cases, and six in 3 %.
FEW = 5
#: A class loses much if its recall falls by at least 10 points, and by at least 5 times the gain.
MUCH, TIMES_THE_GAIN = 0.10, 5.0
#: The square of 1.645: a larger net loss of a class is unlikely to be chance (one-sided 5 %).
_NOT_CHANCE = 2.7
#: A test at the 5 % level has 80 % power if the difference is 2.8 standard errors, and 50 % power
#: if it is 1.96.
_POWER = 2.8 / 1.96


@dataclass(frozen=True, slots=True)
class Gain:
    """The metric before and after the change, on the same samples."""

    metric: str
    before: float | None
    """Of the unchanged head; None if the metric has no value on these samples."""
    after: float | None
    """At the chosen strength."""
    interval: tuple[float, float] | None
    """95 % interval of the difference."""
    p: float
    """The p-value of McNemar's test, which compares accuracies, for every metric."""

    @property
    def difference(self) -> float | None:
        """After minus before."""
        if self.before is None or self.after is None:
            return None
        return round(self.after - self.before, DIGITS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict and the reason for it. See `reach_verdict`."""

    kind: VerdictKind
    why: Reason
    gain: Gain | None
    """None without labels."""
    samples: int
    """Number of samples it was measured on; 0 without labels."""
    needed: int | None = None
    """If undecided: the number of held-out samples that would decide with 80 % power, provided that
    the difference stays the same."""
    losers: tuple[int, ...] = ()
    """Classes that lose much while the metric gains little, the largest loss first."""
    changes: RecallChanges | None = field(default=None, compare=False)
    """Changes of each class and group; None without labels."""

    @property
    def helps(self) -> bool:
        """Whether the strength should be applied."""
        return self.kind == "helps"


def without_labels(*, changes: bool) -> Verdict:
    """The verdict without labels: undecided, or no-gain if no decision changes."""
    if changes:
        return Verdict("undecided", "no-labels", None, 0)
    return Verdict("no-gain", "same-decisions", None, 0)


def reach_verdict(
    before: Labels,
    after: Labels,
    labels: Labels,
    objective: Objective,
    *,
    independent: bool,
    seed: int = 0,
) -> Verdict:
    """Compare the predictions at the chosen strength with those of the unchanged head.

    The interval is the 95 % bootstrap interval of the paired difference of the metric; samples are
    resampled within their classes, and classes of one sample together. A mean of recalls has 10,000
    replicates, any other metric 2,000.

    - `helps`: the whole interval is above 0.
    - `harms`: the whole interval is below 0.
    - `no-gain`: no decision changes, or the interval contains 0 and stays within 0.1 points of it.
    - `undecided`: the interval contains 0 and is wider, or the metric has no value.

    These cases are undecided even if the interval excludes 0:

    - It would be `helps`, but the strength was chosen on the labels of the same samples
      (`--holdout 0`). The gain is then optimistic, which the interval does not account for.
    - All samples are of one class, so losses of other classes cannot be seen.
    - Reverting at most five of the changed samples removes the difference. A bootstrap interval
      that rests on so few samples is too narrow.

    Args:
        before: predictions (N,) of the unchanged head.
        after: predictions (N,) at the chosen strength.
        labels: (N,).
        objective: the metric.
        independent: whether the strength was chosen without the labels of these samples.
        seed: seed of the bootstrap. The same seed, samples and numpy give the same verdict.
    """
    classes = len(objective.groups["few"])
    changes = recall_changes(before, after, labels, objective.shares, classes, seed)
    gain = _gain(before, after, labels, objective, changes, seed)
    difference = gain.difference
    losers = _losers(before, after, labels, difference or 0.0)
    kind, why, needed = _verdict(gain, len(labels))
    if np.array_equal(before, after):
        kind, why, needed = "no-gain", "same-decisions", None
    elif len(np.unique(labels)) == 1 and kind in ("helps", "harms"):
        kind, why, needed = "undecided", "one-class", None
    elif kind in ("helps", "harms"):
        assert difference is not None
        carriers = _carriers(before, after, labels, objective, math.copysign(1, difference))
        if carriers <= FEW:
            needed = math.ceil(len(labels) * (FEW + 1) / carriers)
            kind, why = "undecided", "few-changes"
    if kind in ("helps", "undecided") and not independent and why != "one-class":
        kind, why, needed = "undecided", "same-samples", None
    return Verdict(kind, why, gain, len(labels), needed, losers, changes)


def _verdict(gain: Gain, samples: int) -> tuple[VerdictKind, Reason, int | None]:
    """The verdict by the interval alone, and the number of samples needed if it is undecided."""
    difference, interval = gain.difference, gain.interval
    if difference is None or interval is None:
        return "undecided", "no-value", None
    low, high = interval
    if low > 0 or high < 0:
        return ("helps" if low > 0 else "harms"), "interval", None
    if max(-low, high) <= NEGLIGIBLE:
        return "no-gain", "negligible", None
    # The width is inversely proportional to the square root of the number of samples.
    side = difference - low if difference > 0 else high - difference
    ratio = _POWER * side / max(abs(difference), NEGLIGIBLE)
    return "undecided", "interval", math.ceil(samples * max(ratio, _POWER) ** 2)


def _gain(
    before: Labels,
    after: Labels,
    labels: Labels,
    objective: Objective,
    changes: RecallChanges,
    seed: int,
) -> Gain:
    """The metric before and after, the interval of the difference, and McNemar's p-value."""
    name = objective.metric
    first, second = (_value(predicted, labels, objective) for predicted in (before, after))
    interval = changes.means.get(name)
    if name not in changes.means and first is not None and second is not None:
        interval = _interval(before, after, labels, objective, seed)
    ends = None if interval is None else (interval.low, interval.high)
    return Gain(name, first, second, ends, mcnemar(before, after, labels).p)


def _value(predicted: Labels, labels: Labels, objective: Objective) -> float | None:
    confusion = Confusion.of(predicted, labels, len(objective.groups["few"]))
    value = float(table_of(confusion.tallies, objective.shares)[objective.metric])
    return None if math.isnan(value) else value


def _interval(
    before: Labels, after: Labels, labels: Labels, objective: Objective, seed: int
) -> Interval | None:
    """95 % interval of the difference of a metric that is not a mean of recalls."""
    classes, shares = len(objective.groups["few"]), objective.shares
    found = bootstrap_difference(
        before, after, labels, classes, shares, replicates=TABLE_REPLICATES, seed=seed
    )[objective.metric]
    if found is None:
        return None
    return Interval(found.value, round(found.low, DIGITS), round(found.high, DIGITS))


def _carriers(
    before: Labels, after: Labels, labels: Labels, objective: Objective, sign: float
) -> int:
    """How many changed samples must be reverted to remove the difference; FEW + 1 if more than FEW.

    Args:
        before: predictions (N,).
        after: predictions (N,).
        labels: (N,).
        objective: the metric.
        sign: sign of the difference.
    """
    start = _value(before, labels, objective)
    weights = objective.weights(labels, np.ones(len(labels)))
    weights = 1 / np.bincount(labels)[labels] if weights is None else weights
    changed = np.flatnonzero(before != after)
    effect = sign * (weights * rightness(before, after, labels))[changed]
    heaviest = changed[np.argsort(-effect, kind="stable")]
    kept = after.copy()
    for number, sample in enumerate(heaviest[:FEW], 1):
        kept[sample] = before[sample]
        now = _value(kept, labels, objective)
        if start is None or now is None or round(sign * (now - start), DIGITS) <= 0:
            return number
    return FEW + 1


def _losers(before: Labels, after: Labels, labels: Labels, difference: float) -> tuple[int, ...]:
    """Classes whose recall falls much more than the metric gains, and by more than chance."""
    change, support = rightness(before, after, labels), np.bincount(labels)
    gained, lost = (np.bincount(labels, change == sign, len(support)) for sign in (1, -1))
    net = lost - gained
    fall = net / np.maximum(support, 1)
    much = fall >= max(MUCH, TIMES_THE_GAIN * difference) - 10.0**-DIGITS
    much &= (net > 0) & (net**2 >= _NOT_CHANCE * (lost + gained))
    rows = np.flatnonzero(much)
    return tuple(int(row) for row in rows[np.argsort(-fall[rows], kind="stable")])
