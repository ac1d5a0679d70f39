"""Whether a chosen strength is an improvement: the gain, its interval, and one of four verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.head import Float64
from rescale_cli.core.predictions import Labels
from rescale_cli.measures.metrics import Confusion, table_of
from rescale_cli.measures.significance import Interval, bootstrap_difference, mcnemar
from rescale_cli.sweeping.choose import Objective

Kind = Literal["helps", "no-gain", "undecided", "harms"]
Why = Literal[
    "interval", "same-decisions", "negligible", "same-samples", "one-class", "few-changes",
    "no-value", "no-labels",
]  # fmt: skip

#: Replicates of the bootstrap behind a verdict, whatever `--bootstrap` says: of a metric that is a
#: sum over samples, and of any other, where each replicate costs a whole table.
REPLICATES, REPLICATES_OF_TABLES = 10_000, 2000
#: A change of a metric that is smaller than this does not matter: 0.1 points.
NEGLIGIBLE = 0.001
#: So many samples prove nothing: even if all of them change in one direction, chance does that in
#: 2 / 2^5 = 6 % of all cases (sign test); six would be 3 %.
FEW = 5
#: A class loses much if its recall falls by at least 10 points, and by at least 5 times the gain.
MUCH, TIMES_THE_GAIN = 0.10, 5.0
#: The square of 1.645: the net loss of a class is then unlikely to be chance (one-sided 5 %).
_NOT_CHANCE = 2.7
#: An interval that just reaches 0 would exclude it in half of all repetitions; in 80 % of them with
#: 2.8 standard errors between 0 and the difference instead of 1.96.
_POWER = 2.8 / 1.96
#: Sums of shares that differ by less are equal.
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Gain:
    """The metric at the chosen strength less that of the head as it is, on the same samples."""

    metric: str
    before: float | None
    """None where the metric has no value on these samples."""
    after: float | None
    interval: tuple[float, float] | None
    """95 %, of the difference."""
    p: float
    """Of McNemar's test of the two accuracies, whatever the metric is."""

    @property
    def difference(self) -> float | None:
        """After - before."""
        if self.before is None or self.after is None:
            return None
        return round(self.after - self.before, _DIGITS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a sweep recommends, and why. See `judge`."""

    kind: Kind
    why: Why
    gain: Gain | None
    """None without labels."""
    samples: int
    """Samples that it was measured on; 0 without labels."""
    needed: int | None = None
    """Samples to report on that would settle an undecided question with a probability of 80 %, if
    the difference stays as it is."""
    losers: tuple[int, ...] = ()
    """Classes that lose much while the metric gains little, the largest loss first."""

    @property
    def helps(self) -> bool:
        """Whether the strength should be applied."""
        return self.kind == "helps"


def without_labels(*, changes: bool) -> Verdict:
    """The verdict where nothing can be measured: undecided, or no-gain if nothing changes."""
    if changes:
        return Verdict("undecided", "no-labels", None, 0)
    return Verdict("no-gain", "same-decisions", None, 0)


def judge(
    before: Labels,
    after: Labels,
    labels: Labels,
    objective: Objective,
    *,
    independent: bool,
    seed: int = 0,
) -> Verdict:
    """Compare the decisions at the chosen strength with those of the head as it is.

    The interval is that of the paired difference of the metric: 10,000 replicates, samples drawn
    again within their classes (classes of a single sample together), 2.5th to 97.5th percentile.

    - `helps`: the whole interval is above 0.
    - `harms`: the whole interval is below 0.
    - `no-gain`: no decision changes, or the interval contains 0 and stays within 0.1 points of it.
    - `undecided`: the interval contains 0 and is wider, or the metric has no value.

    These cases are undecided, too, although the interval lies on one side of 0:

    - `helps` where the strength was chosen with the labels of the same samples (`--holdout 0`): the
      gain is optimistic, and the interval does not include that.
    - All samples are of one class: what other classes lose cannot be seen.
    - The difference disappears if five of the changed samples are left unchanged: the bootstrap of
      so few samples, or of a class with so few, is too narrow.

    Args:
        before: predictions (N,) of the head as it is.
        after: predictions (N,) at the chosen strength.
        labels: (N,).
        objective: the metric.
        independent: whether the labels of these samples had no part in the choice.
        seed: of the bootstrap. The same seed, samples and numpy give the same verdict.
    """
    gain = gain_of(before, after, labels, objective, seed)
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
    return Verdict(kind, why, gain, len(labels), needed, losers)


def _verdict(gain: Gain, samples: int) -> tuple[Kind, Why, int | None]:
    """From the interval alone, with the samples needed where it does not decide."""
    difference, interval = gain.difference, gain.interval
    if difference is None or interval is None:
        return "undecided", "no-value", None
    low, high = interval
    if low > 0 or high < 0:
        return ("helps" if low > 0 else "harms"), "interval", None
    if max(-low, high) <= NEGLIGIBLE:
        return "no-gain", "negligible", None
    # The width shrinks with the square root of the samples.
    side = difference - low if difference > 0 else high - difference
    ratio = _POWER * side / max(abs(difference), NEGLIGIBLE)
    return "undecided", "interval", math.ceil(samples * max(ratio, _POWER) ** 2)


def gain_of(
    before: Labels, after: Labels, labels: Labels, objective: Objective, seed: int = 0
) -> Gain:
    """The metric before and after, the interval of the difference, and McNemar's p."""
    first, second = (_value(predicted, labels, objective) for predicted in (before, after))
    interval = None
    if first is not None and second is not None:
        interval = _interval(before, after, labels, objective, seed)
    return Gain(objective.metric, first, second, interval, mcnemar(before, after, labels).p)


def _value(predicted: Labels, labels: Labels, objective: Objective) -> float | None:
    confusion = Confusion.of(predicted, labels, len(objective.groups["few"]))
    value = float(table_of(confusion.tallies, objective.shares)[objective.metric])
    return None if math.isnan(value) else value


def _interval(
    before: Labels, after: Labels, labels: Labels, objective: Objective, seed: int
) -> tuple[float, float] | None:
    """95 % of the difference; a metric that is a sum over samples needs only who changes."""
    weights = objective.weights(labels, np.ones(len(labels)))
    if weights is not None:
        change = _rightness(before, after, labels)
        drawn = _redrawn(weights, change, labels, seed)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return round(float(low), _DIGITS), round(float(high), _DIGITS)
    classes, shares = len(objective.groups["few"]), objective.shares
    found: Interval | None = bootstrap_difference(
        before, after, labels, classes, shares, replicates=REPLICATES_OF_TABLES, seed=seed
    )[objective.metric]
    return None if found is None else (round(found.low, _DIGITS), round(found.high, _DIGITS))


def _redrawn(weights: Float64, change: NDArray[np.int64], labels: Labels, seed: int) -> Float64:
    """Sums (R,) of weights times changes over samples drawn again within their classes.

    A class of one sample has no variation of its own, as if it were certain: such classes are drawn
    together ("collapsed strata", Cochran 1977, section 5A.12).

    Args:
        weights: (N,), equal within a class.
        change: (N,): 1 for a sample that becomes right, -1 for one that becomes wrong, else 0.
        labels: (N,).
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    support = np.bincount(labels)
    sums = np.zeros(REPLICATES)
    alone = (weights * change)[support[labels] == 1]
    if alone.any():
        values, times = np.unique(alone, return_counts=True)
        sums += generator.multinomial(len(alone), times / len(alone), REPLICATES) @ values
    gained, lost = (np.bincount(labels, change == sign, len(support)) for sign in (1, -1))
    weight = np.bincount(labels, weights, len(support)) / np.maximum(support, 1)
    for row in np.flatnonzero((gained + lost > 0) & (support > 1) & (weight > 0)):
        n = int(support[row])
        shares = np.array([gained[row], lost[row], n - gained[row] - lost[row]]) / n
        drawn = generator.multinomial(n, shares, REPLICATES)
        sums += weight[row] * (drawn[:, 0] - drawn[:, 1])
    return sums


def _rightness(before: Labels, after: Labels, labels: Labels) -> NDArray[np.int64]:
    """(N,): 1 where a sample becomes right, -1 where it becomes wrong, else 0."""
    change: NDArray[np.int64] = (after == labels).astype(np.int64) - (before == labels)
    return change


def _carriers(
    before: Labels, after: Labels, labels: Labels, objective: Objective, sign: float
) -> int:
    """How many samples, left unchanged, are enough to undo the difference; FEW + 1 for any more.

    Args:
        before: (N,).
        after: (N,).
        labels: (N,).
        objective: the metric.
        sign: of the difference.
    """
    start = _value(before, labels, objective)
    weights = objective.weights(labels, np.ones(len(labels)))
    weights = 1 / np.bincount(labels)[labels] if weights is None else weights
    changed = np.flatnonzero(before != after)
    effect = sign * (weights * _rightness(before, after, labels))[changed]
    heaviest = changed[np.argsort(-effect, kind="stable")]
    kept = after.copy()
    for number, sample in enumerate(heaviest[:FEW], 1):
        kept[sample] = before[sample]
        now = _value(kept, labels, objective)
        if start is None or now is None or round(sign * (now - start), _DIGITS) <= 0:
            return number
    return FEW + 1


def _losers(before: Labels, after: Labels, labels: Labels, difference: float) -> tuple[int, ...]:
    """Classes whose recall falls far, and by more than chance, beside what the metric gains."""
    change, support = _rightness(before, after, labels), np.bincount(labels)
    gained, lost = (np.bincount(labels, change == sign, len(support)) for sign in (1, -1))
    net = lost - gained
    fall = net / np.maximum(support, 1)
    much = fall >= max(MUCH, TIMES_THE_GAIN * difference) - 10.0**-_DIGITS
    much &= (net > 0) & (net**2 >= _NOT_CHANCE * (lost + gained))
    rows = np.flatnonzero(much)
    return tuple(int(row) for row in rows[np.argsort(-fall[rows], kind="stable")])
