"""Confidence intervals and tests: the bootstrap, McNemar's test, Student's t.

Our own because scipy is not a dependency, and torch has no quantile of Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.floats import Float64
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.long_work import long_work
from rescale_cli.measures.calibration import PerSample, check_labels
from rescale_cli.measures.metrics import Labels, Shares, Tallies, table_of


def drawn_again(labels: Labels, replicates: int, seed: int) -> Iterator[Float64]:
    """Resample within classes: for each replicate, how many times each sample is drawn, (N,).

    Each class keeps its size, so the intervals are for data of these class sizes. Otherwise a class
    of few samples would be missing from many replicates. If it is still predicted, its F1 and its
    factor of a G-mean are 0 there, and most replicates would lie below the metric itself.

    Args:
        labels: (N,), at least 0.
        replicates: number of bootstrap replicates.
        seed: the same seed, labels and numpy give the same draws.

    Example:
        >>> labels = np.array([0, 1, 0, 1, 1])
        >>> [np.bincount(labels, times).tolist() for times in drawn_again(labels, 2, seed=0)]
        [[2.0, 3.0], [2.0, 3.0]]
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(labels, kind="stable")
    support = np.bincount(labels)
    first = np.repeat(np.cumsum(support) - support, support)
    size = np.repeat(support, support)
    with long_work("resampling for the confidence intervals", "replicates", replicates) as work:
        for number in range(replicates):
            drawn = order[first + generator.integers(0, size)]
            yield np.bincount(drawn, minlength=len(labels)).astype(np.float64)
            work.tick(number + 1)


#: Bootstrap replicates by default.
REPLICATES = 1000
#: Most discordant pairs for which McNemar's test is exact.
MOST_EXACT = 25

#: Replicates that are computed at once, times N or C: 8 MiB per array.
_HELD = 1 << 20


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95 % percentile interval."""

    value: float
    """On the samples themselves."""
    low: float
    """The 2.5th percentile of the replicates."""
    high: float
    """The 97.5th percentile."""

    @property
    def holds_zero(self) -> bool:
        """Whether the interval contains 0, so that the sign of the value is uncertain."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's test of two classifiers on the same samples."""

    only_first: int
    """Samples that only the first predicts correctly."""
    only_second: int
    """Samples that only the second predicts correctly."""
    p: float
    """Two-sided p-value."""
    test: Literal["exact", "chi-square"]
    """The distribution that p is computed from."""


def bootstrap(
    predicted: Labels,
    labels: Labels,
    num_classes: int,
    groups: Shares | None = None,
    samples: PerSample | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """95 % intervals of every metric: of the confusion matrix, the groups, and probabilities.

    The N samples are resampled within their classes (see `drawn_again`); the model is fixed. A
    metric that is n/a is None. The percentile interval is not corrected for bias: for the smallest
    recall, a G-mean with a recall near 0, or the F1 of classes of few samples, most replicates may
    lie on one side of the metric, and the interval may not contain it.

    Args:
        predicted: (N,), 0 to C - 1.
        labels: (N,), 0 to C - 1.
        num_classes: C.
        groups: masks or weights (C,), see `metrics.table_of`.
        samples: for the metrics of probabilities; without them, these are left out.
        replicates: number of bootstrap replicates.
        seed: the same seed, samples and numpy give the same intervals.

    Raises:
        BadInput: no samples, or classes that are not from 0 to C - 1.
        UsageError: replicates below 1.

    Example:
        >>> right_9_in_10 = np.arange(100) % 10 > 0
        >>> found = bootstrap(right_9_in_10 * 1, np.ones(100, int), 2)["accuracy"]
        >>> found.value, 0.8 < found.low < 0.88, 0.92 < found.high < 1
        (0.9, True, True)
    """
    cells = _Cells.of(labels, [predicted], [samples], num_classes)
    (whole,) = cells.tables(np.ones((1, len(labels))), groups)
    tables = [table for (table,) in cells.drawn(replicates, seed, groups)]
    return {name: _interval(whole[name], [table[name] for table in tables]) for name in whole}


def bootstrap_difference(
    first: Labels,
    second: Labels,
    labels: Labels,
    num_classes: int,
    groups: Shares | None = None,
    samples: tuple[PerSample, PerSample] | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """Paired 95 % intervals of second - first, for every metric, from the same replicates.

    Arguments, conventions and errors are those of `bootstrap`. first and second are the predictions
    (N,) of two models on the same N samples.

    Example:
        >>> labels = np.arange(100) % 2
        >>> found = bootstrap_difference(np.zeros(100, int), labels, labels, 2)["accuracy"]
        >>> found.value, found.holds_zero
        (0.5, False)
    """
    cells = _Cells.of(labels, [first, second], samples or [None, None], num_classes)
    one, two = cells.tables(np.ones((1, len(labels))), groups)
    tables = list(cells.drawn(replicates, seed, groups))
    return {
        name: _interval(two[name] - one[name], [b[name] - a[name] for a, b in tables])
        for name in one
    }


def mcnemar(first: Labels, second: Labels, labels: Labels) -> McNemar:
    """McNemar's test of whether the error rates of two classifiers differ.

    b and c are the numbers of samples that only the first or only the second predicts correctly.
    If b + c <= 25, p is exact: twice the tail of the binomial with 1/2, at most 1. Otherwise it is
    the chi-square tail with 1 degree of freedom of (|b - c| - 1)^2 / (b + c) (McNemar 1947, with
    the continuity correction of Edwards 1948; 0 if b = c).

    Args:
        first: predictions (N,).
        second: predictions (N,) on the same samples.
        labels: (N,).

    Raises:
        BadInput: unequal lengths.

    Example:
        >>> truth = np.zeros(10, int)
        >>> mcnemar(np.array([1] * 5 + [0] * 5), truth, truth).p
        0.0625
    """
    if not len(first) == len(second) == len(labels):
        raise BadInput(
            "the two models were not run on the same samples",
            saw=f"{len(first)} and {len(second)} predictions, {len(labels)} labels",
            fix="evaluate both on the same data: --data DATA",
        )
    right, wrong = first == labels, second != labels
    b = int(np.count_nonzero(right & wrong))
    c = int(np.count_nonzero(~right & ~wrong))
    n = b + c
    if n <= MOST_EXACT:
        tail = sum(math.comb(n, i) for i in range(min(b, c) + 1))
        return McNemar(b, c, min(1.0, 2 * tail / 2**n), "exact")
    statistic = max(0, abs(b - c) - 1) ** 2 / n
    return McNemar(b, c, math.erfc(math.sqrt(statistic / 2)), "chi-square")


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """The N samples, grouped into K kinds with the same label and the same predictions."""

    actual: NDArray[np.int64]
    """The label of each kind, (K,)."""
    guesses: tuple[NDArray[np.int64], ...]
    """The predictions of each model, (K,)."""
    samples: tuple[PerSample | None, ...]
    """For each model, the contributions to the metrics of probabilities."""
    kind: NDArray[np.intp]
    """The kind of each sample, (N,)."""
    num_classes: int

    @classmethod
    def of(
        cls,
        labels: Labels,
        guesses: list[Labels],
        samples: Sequence[PerSample | None],
        num_classes: int,
    ) -> _Cells:
        key = np.zeros(len(labels), np.int64)
        for column in (labels, *guesses):
            check_labels(column, len(labels), num_classes)
            key = key * num_classes + column
        _, at, kind = np.unique(key, return_index=True, return_inverse=True)
        picked = tuple(guess[at].astype(np.int64) for guess in guesses)
        return cls(labels[at].astype(np.int64), picked, tuple(samples), kind, num_classes)

    def drawn(
        self, replicates: int, seed: int, groups: Shares | None
    ) -> Iterator[tuple[dict[str, Float64], ...]]:
        """The metrics of each model, for blocks of replicates."""
        if replicates < 1:
            raise UsageError(
                "the bootstrap needs at least 1 replicate",
                saw=f"{replicates}",
                fix="--bootstrap 200",
            )
        draws = drawn_again(self.actual[self.kind], replicates, seed)
        most = max(1, _HELD // max(self.num_classes, len(self.kind)))
        while some := list(islice(draws, most)):
            yield self.tables(np.stack(some), groups)

    def tables(self, times: Float64, groups: Shares | None) -> tuple[dict[str, Float64], ...]:
        """The metrics (R,) of each model, for counts (R, N) of the samples."""
        weight, c = _sums(times, self.kind, len(self.actual)), self.num_classes
        support = _sums(weight, self.actual, c)
        made = []
        for guess, samples in zip(self.guesses, self.samples, strict=True):
            hit = guess == self.actual
            hits = _sums(weight[:, hit], guess[hit], c)
            tallies = Tallies(hits, support, _sums(weight, guess, c))
            more = {} if samples is None else samples.metrics(times)
            made.append(table_of(tallies, groups) | more)
        return tuple(made)


def _sums(weight: Float64, column: NDArray[np.integer[Any]], size: int) -> Float64:
    """Sum the weights (R, n) by the groups of a column (n,): (R, size)."""
    return np.stack([np.bincount(column, row, minlength=size) for row in weight], dtype=np.float64)


def _interval(value: Float64, replicates: list[Float64]) -> Interval | None:
    drawn = np.concatenate(replicates)
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(value).any() or not len(drawn):
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(np.squeeze(value)), float(low), float(high))


#: Bisection steps for t; more would not change a float64.
_HALVINGS = 200


def mean_and_interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The mean of n values and its 95 % t-interval, mean -+ t(0.975, n - 1) s / sqrt(n).

    s is the sample standard deviation (n - 1 in the denominator). The values are assumed to be
    independent and roughly normal, such as the results of runs with different seeds.

    Args:
        values: at least 1, finite.

    Returns:
        The mean, and the interval (low, high); None instead of the interval for a single value.

    Example:
        >>> mean, interval = mean_and_interval([0.70, 0.72, 0.74])
        >>> round(mean, 4), [round(end, 4) for end in interval]
        (0.72, [0.6703, 0.7697])
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return mean, (mean - half, mean + half)


def t_quantile(freedom: int, inside: float = 0.95) -> float:
    """The t for which P(|T| < t) = `inside` in Student's t-distribution.

    Args:
        freedom: degrees of freedom, at least 1.
        inside: the probability, 0 to 1, exclusive.

    Example:
        >>> round(t_quantile(2), 4), round(t_quantile(1000), 4)
        (4.3027, 1.9623)
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < inside:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < inside else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t) for a whole number of degrees of freedom (Abramowitz and Stegun, 26.7.3-4)."""
    angle = math.atan(t / math.sqrt(freedom))
    square, odd = math.cos(angle) ** 2, freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= square * k / (k + 1)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
