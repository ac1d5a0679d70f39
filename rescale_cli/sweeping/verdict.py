"""Whether a chosen strength is an improvement: the gain, its interval, and one of four verdicts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rescale_cli.core.predictions import Labels
from rescale_cli.measures.metrics import Confusion, table_of
from rescale_cli.measures.significance import Interval, bootstrap_difference, mcnemar
from rescale_cli.sweeping.choose import Objective
from rescale_cli.sweeping.recall_changes import DIGITS, RecallChanges, recall_changes, rightness

Kind = Literal["helps", "no-gain", "undecided", "harms"]
Why = Literal[
    "interval", "same-decisions", "negligible", "same-samples", "one-class", "few-changes",
    "no-value", "no-labels",
]  # fmt: skip

#: Replicates of the bootstrap behind a verdict, whatever `--bootstrap` says, of a metric that is no
#: mean of recalls: each of them costs a whole table.
REPLICATES_OF_TABLES = 2000
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
        return round(self.after - self.before, DIGITS)


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
    changes: RecallChanges | None = field(default=None, compare=False)
    """Of each class and group; None without labels."""

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


def _gain(
    before: Labels,
    after: Labels,
    labels: Labels,
    objective: Objective,
    changes: RecallChanges,
    seed: int,
) -> Gain:
    """The metric before and after, the interval of the difference, and McNemar's p."""
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
    """95 % of the difference of a metric that is no mean of recalls."""
    classes, shares = len(objective.groups["few"]), objective.shares
    found = bootstrap_difference(
        before, after, labels, classes, shares, replicates=REPLICATES_OF_TABLES, seed=seed
    )[objective.metric]
    if found is None:
        return None
    return Interval(found.value, round(found.low, DIGITS), round(found.high, DIGITS))


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
    """Classes whose recall falls far, and by more than chance, beside what the metric gains."""
    change, support = rightness(before, after, labels), np.bincount(labels)
    gained, lost = (np.bincount(labels, change == sign, len(support)) for sign in (1, -1))
    net = lost - gained
    fall = net / np.maximum(support, 1)
    much = fall >= max(MUCH, TIMES_THE_GAIN * difference) - 10.0**-DIGITS
    much &= (net > 0) & (net**2 >= _NOT_CHANCE * (lost + gained))
    rows = np.flatnonzero(much)
    return tuple(int(row) for row in rows[np.argsort(-fall[rows], kind="stable")])
