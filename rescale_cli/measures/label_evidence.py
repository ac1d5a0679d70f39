"""Detect from the predictions that labels and head rows are in different class orders.

A trained model predicts most samples of a class as that class. If the labels are numbered in
another order than the head's rows, the large cells of the confusion matrix lie on a permutation
instead of the diagonal. Therefore the diagonal is compared with the best permutation. It is found
on one half of the samples and measured on the other, since it overfits: for random predictions and
100 classes of two samples each, the best permutation fits half of the samples it is found on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import ranks
from rescale_cli.core.floats import Float64
from rescale_cli.core.predictions import Labels

#: The order is wrong if the permutation raises mean recall by the first number, and if the 95 %
#: interval of this gain lies above the second.
GAIN, AT_LEAST = 0.20, 0.10
#: A class is swapped if less than the first fraction of its samples is correct and more than the
#: second is predicted as one other class. It must have the third number of samples.
_RIGHT, _ELSEWHERE, _FEWEST = 0.05, 0.80, 3
#: A known order is reported if its mean recall is at most this far below the permutation's.
_AS_GOOD = 0.05
#: Most classes that the assignment problem is solved for.
_MOST = 2048
#: Added to the diagonal so that it wins ties.
_NUDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Moved:
    """A class whose samples are predicted as another class."""

    label: int
    """The row in the labels."""
    row: int
    """The row that the model predicts."""
    rate: float
    """The fraction of the class's samples that are predicted as `row`."""


@dataclass(frozen=True, slots=True)
class LabelEvidence:
    """How well the predictions fit the labels, and how well a permutation of the labels."""

    diagonal: float
    """The mean recall on the second half of the samples, 0 to 1."""
    permuted: float
    """The same after the best permutation of the first half."""
    interval: tuple[float, float]
    """95 % interval of the gain on the second half or on all samples, whichever is lower."""
    moved: tuple[Moved, ...]
    """The classes that the permutation moves, the clearest first."""
    order: str | None
    """The presumed order of the labels in words, if it is a known one."""

    @property
    def wrong(self) -> bool:
        """Whether the labels are in another order than the rows."""
        return self.permuted - self.diagonal >= GAIN and self.interval[0] > AT_LEAST


def label_evidence(
    predicted: Labels,
    labels: Labels,
    num_classes: int,
    *,
    names: Sequence[str] | None = None,
    head_names: Sequence[str] | None = None,
    seed: int = 0,
) -> LabelEvidence | None:
    """Compare the diagonal of the confusion matrix with its best permutation.

    Args:
        predicted: (N,), rows of the head.
        labels: (N,), rows of the head, as the data and the head were joined.
        num_classes: C.
        names: (C,), the data's class names in the order of the labels, to recognize known orders.
        head_names: (C,), in the order of the rows.
        seed: seed for the two halves.

    Returns:
        None if no class has two samples, if no permutation gains enough, or if only one class
        gains: a model that predicts the same class for every sample has recall 1 on some class.

    Example:
        >>> labels = np.repeat(np.arange(4), 10)
        >>> found = label_evidence((labels + 1) % 4, labels, 4)
        >>> found.wrong, found.diagonal, found.permuted, found.order
        (True, 0.0, 1.0, None)
    """
    first, number = _first_half(labels, seed), np.arange(num_classes)
    both = np.intersect1d(labels[first], labels[~first])
    if not both.size:
        return None
    usable = np.isin(labels, both)
    chosen, measured = first & usable, ~first & usable
    rates = _rates(predicted[chosen], labels[chosen], num_classes)
    held_out = _rates(predicted[measured], labels[measured], num_classes)
    if _share(held_out, _most_frequent(rates, num_classes)) - _share(held_out, number) < GAIN:
        return None
    rows, order = best_permutation(rates, num_classes), None
    moved = int((rows != number).argmax())
    as_good = _share(rates, rows) - _AS_GOOD
    for candidate, words in known_orders(num_classes, names, head_names, moved):
        apart = len(np.unique(candidate[both])) == len(both)
        if apart and (share := _share(rates, candidate)) > as_good:
            rows, order, as_good = candidate, words, share
    if _gaining(held_out, rows) < 2:
        return None
    # A few samples of one half may fit by chance, but then those of both halves do not.
    interval = min(_gain(predicted[s], labels[s], rows) for s in (measured, usable))
    return LabelEvidence(
        _share(held_out, number),
        _share(held_out, rows),
        interval,
        _moved(rows, predicted, labels, num_classes),
        order,
    )


def _gain(predicted: Labels, labels: Labels, rows: Labels) -> tuple[float, float]:
    """The 95 % interval of the gain in mean recall by a permutation."""
    support = np.bincount(labels)
    weight = 1 / support[labels] / np.count_nonzero(support)
    gain = (predicted == rows[labels]).astype(np.float64) - (predicted == labels)
    mean = float((weight * gain).sum())
    error = 1.96 * float(np.sqrt(np.square(weight * (gain - mean)).sum()))
    return mean - error, mean + error


def swapped(predicted: Labels, labels: Labels, num_classes: int) -> tuple[Moved, ...]:
    """Classes that are predicted as one another in a cycle of two or more.

    They may be too few for `label_evidence`, but are too clear to be errors of the model. If a
    class is predicted as one that is itself recognized, this is no swap: models often ignore rare
    classes.

    Args:
        predicted: (N,), rows of the head.
        labels: (N,).
        num_classes: C.

    Example:
        >>> labels = np.repeat(np.arange(5), 10)
        >>> swapped(np.array([0, 2, 1, 3, 4])[labels], labels, 5)
        (Moved(label=1, row=2, rate=1.0), Moved(label=2, row=1, rate=1.0))
    """
    support = np.bincount(labels, minlength=num_classes)
    actual, row, rate = _rates(predicted, labels, num_classes)
    right = np.zeros(num_classes)
    same = actual == row
    right[actual[same]] = rate[same]
    fits = (rate > _ELSEWHERE) & (right[actual] < _RIGHT) & (support[actual] >= _FEWEST)
    to = {int(a): (int(b), float(r)) for a, b, r in zip(actual[fits], row[fits], rate[fits],
                                                      strict=True)}  # fmt: skip
    return tuple(Moved(a, *to[a]) for a in sorted(to) if _returns(a, to))


def _returns(start: int, to: dict[int, tuple[int, float]]) -> bool:
    """Whether the moves from a class lead back to it."""
    at, steps = to[start][0], 0
    while at != start and at in to and steps <= len(to):
        at, steps = to[at][0], steps + 1
    return at == start


def _first_half(labels: Labels, seed: int) -> NDArray[np.bool_]:
    """A mask (N,) with half of the samples of each class, rounded up."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    support = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(support) - support, support)
    first = np.zeros(len(labels), np.bool_)
    first[order] = place % 2 == 0
    return first


Rates = tuple[Labels, Labels, Float64]


def _rates(predicted: Labels, labels: Labels, num_classes: int) -> Rates:
    """The K cells of the confusion matrix above 0: label, row, fraction of the label's samples."""
    cells, count = np.unique(labels * num_classes + predicted, return_counts=True)
    actual, row = cells // num_classes, cells % num_classes
    return actual, row, count / np.bincount(labels, minlength=num_classes)[actual]


def _share(rates: Rates, rows: Labels) -> float:
    """The mean recall if label i belongs to row `rows[i]`."""
    actual, row, rate = rates
    return float(rate[rows[actual] == row].sum() / len(np.unique(actual)))


def _gaining(rates: Rates, rows: Labels) -> int:
    """The number of labels i that are predicted more often as `rows[i]` than as row i."""
    actual, row, rate = rates
    gain = np.zeros(len(rows))
    np.add.at(gain, actual, np.where(row == rows[actual], rate, 0.0))
    np.add.at(gain, actual, np.where(row == actual, -rate, 0.0))
    return int(np.count_nonzero(gain > 0))


def _most_frequent(rates: Rates, num_classes: int) -> Labels:
    """The row that each label is predicted as most often, (C,); its own if it has no samples.

    On the same samples, no permutation has a larger mean recall, so this is a cheap first check.
    """
    actual, row, rate = rates
    order = np.lexsort((row == actual, rate))
    rows = np.arange(num_classes)
    rows[actual[order]] = row[order]
    return rows


def best_permutation(rates: Rates, num_classes: int) -> Labels:
    """The permutation with the largest sum of rates: the row of each label, (C,).

    If more than 2,048 labels are not obvious, only those with the largest rates are optimized; the
    others keep their own row if it is free.
    """
    rows = _undisputed(rates, num_classes)
    free = np.ones(num_classes, np.bool_)
    free[rows[rows >= 0]] = False
    open_ = (rows[rates[0]] < 0) & free[rates[1]]
    actual, row, rate = rates[0][open_], rates[1][open_], rates[2][open_]
    elsewhere = actual != row
    doubt = np.zeros(num_classes, np.bool_)
    doubt[np.append(actual[elsewhere], row[elsewhere])] = True
    kept = (rows < 0) & free & ~doubt
    rows[kept] = np.flatnonzero(kept)
    free[kept] = False
    most = np.zeros((2, num_classes))
    np.maximum.at(most[0], actual, rate)
    np.maximum.at(most[1], row, rate)
    left, places = np.flatnonzero(rows < 0), np.flatnonzero(free)
    left = left[np.argsort(-most[0][left], kind="stable")][:_MOST]
    places = places[np.argsort(-most[1][places], kind="stable")][:_MOST]
    if left.size:
        value = _dense(rates, left, places, num_classes)
        rows[left] = places[assignment(value)]
    return _completed(rows)


def _undisputed(rates: Rates, num_classes: int) -> Labels:
    """The row of each label if no exchange can gain, else -1; (C,).

    Let label i have the rate r in row j, and any other label at most s. Giving j to another label
    gains at most s + (1 - r) and loses r.
    """
    actual, row, rate = rates
    order = np.lexsort((actual == row, rate, row))
    last = np.append(row[order][1:] != row[order][:-1], True)
    best = order[last]
    second = np.where(np.roll(last, 1), 0.0, np.roll(rate[order], 1))[last]
    sure = best[(2 * rate[best] - 1 > second) | (rate[best] == 1)]
    rows = np.full(num_classes, -1)
    rows[actual[sure]] = row[sure]
    return rows


def _dense(rates: Rates, left: Labels, places: Labels, num_classes: int) -> Float64:
    """The rates of n labels in n rows, (n, n); the diagonal is slightly raised to win ties."""
    actual, row, rate = rates
    at, column = np.full((2, num_classes), -1)
    at[left], column[places] = np.arange(len(left)), np.arange(len(places))
    inside = (at[actual] >= 0) & (column[row] >= 0)
    value = np.zeros((len(left), len(places)))
    value[at[actual[inside]], column[row[inside]]] = rate[inside]
    both = np.intersect1d(left, places)
    value[at[both], column[both]] += _NUDGE
    return value


def _completed(rows: Labels) -> Labels:
    """Give each label without a row (-1) its own row if that is free, else any free one."""
    free = np.ones(len(rows), np.bool_)
    free[rows[rows >= 0]] = False
    own = (rows < 0) & free
    rows[own] = np.flatnonzero(own)
    free[own] = False
    rows[rows < 0] = np.flatnonzero(free)
    return rows


def assignment(value: Float64) -> NDArray[np.int64]:
    """The column of each row, all different, with the largest sum of values.

    The Hungarian method with shortest augmenting paths (Jonker & Volgenant 1987), O(n^3). Our own
    because scipy is not a dependency.

    Args:
        value: (n, n), finite.

    Example:
        >>> assignment(np.array([[5.0, 9.0], [1.0, 9.0]])).tolist()
        [0, 1]
    """
    n = len(value)
    cost = value.max() - value
    # Each column takes its cheapest row if that is free. The remaining rows need augmenting paths.
    price, bonus, owner = cost.min(axis=0), np.zeros(n), np.full(n, -1)
    cheapest, columns = np.unique(cost.argmin(axis=0), return_index=True)
    owner[columns] = cheapest
    for row in np.setdiff1d(np.arange(n), cheapest).tolist():
        _augment(row, cost, price, bonus, owner)
    found = np.empty(n, np.int64)
    found[owner] = np.arange(n)
    return found


def _augment(row: int, cost: Float64, price: Float64, bonus: Float64, owner: Labels) -> None:
    """Assign a column to one more row, along the shortest augmenting path; in place."""
    n = len(cost)
    slack, came = np.full(n, np.inf), np.full(n, -1)
    closed = np.zeros(n, np.bool_)
    at, behind, far = row, -1, 0.0
    visited: list[int] = []
    while True:
        reach = (far - bonus[at]) + cost[at] - price
        nearer = ~closed & (reach < slack)
        slack[nearer], came[nearer] = reach[nearer], behind
        column = int(np.where(closed, np.inf, slack).argmin())
        far, closed[column] = float(slack[column]), True
        if owner[column] < 0:
            break
        visited.append(column)
        at, behind = int(owner[column]), column
    bonus[row] += far
    bonus[owner[visited]] += far - slack[visited]
    price[visited] -= far - slack[visited]
    while column >= 0:
        back = int(came[column])
        owner[column] = owner[back] if back >= 0 else row
        column = back


def known_orders(
    num_classes: int, names: Sequence[str] | None, head_names: Sequence[str] | None, moved: int
) -> Iterator[tuple[Labels, str]]:
    """Class orders that result from common mistakes: the row of each label, (C,), and a sentence.

    Args:
        num_classes: C.
        names: (C,), in the order of the labels. Without them, the labels are taken to be numbers,
            or positions of numbers that were sorted as text.
        head_names: (C,), in the order of the rows.
        moved: the first label that is predicted as another one.
    """
    number = np.arange(num_classes)
    numbers = [str(i) for i in range(num_classes)]
    known = {name: row for row, name in enumerate(head_names or ())}
    if names is not None and {*names} == {*known}:
        yield np.array([known[name] for name in names]), "the rows are in the order of their names"
    for labelled in [numbers, sorted(numbers)] if names is None else [names]:
        for order, example in (("text", "(1, 10, 2)"), ("natural", "(1, 2, 10)")):
            places = ranks(labelled, "imagefolder" if order == "text" else order)
            if places is not None and places != tuple(range(num_classes)):
                words = f"the rows are in {order} order {example}, and the labels are not"
                yield np.array(places, np.int64), words
    yield np.maximum(number - 1, 0), "the labels start at 1"
    shifted = np.minimum(number + (number >= moved), num_classes - 1)
    yield shifted, f"the labels skip class {moved}, so that all later labels are 1 too small"


def _moved(rows: Labels, predicted: Labels, labels: Labels, num_classes: int) -> tuple[Moved, ...]:
    """The classes that a permutation moves, those with the largest rates first."""
    rates = {(a, b): r for a, b, r in zip(*_rates(predicted, labels, num_classes), strict=True)}
    found = (
        Moved(i, int(rows[i]), float(rates.get((i, rows[i]), 0.0)))
        for i in np.unique(labels).tolist()
        if rows[i] != i
    )
    return tuple(sorted(found, key=lambda one: -one.rate))
