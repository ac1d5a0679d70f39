"""Metrics of a classifier's predictions, all computed from one confusion matrix.

Classes without samples follow scikit-learn and imbalanced-learn. Recalls and their means (balanced
accuracy, worst recall, many/medium/few) are over the classes that have samples. Macro precision,
macro F1 and the G-means are over the classes that occur, as a label or as a prediction; for these,
0 / 0 is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.floats import Float64
from rescale_cli.measures.calibration import Measured, check_labels

Labels = NDArray[np.integer[Any]]
Groups = Mapping[str, NDArray[np.bool_]]
Shares = Mapping[str, NDArray[np.bool_] | Float64]

GROUPS = ("many", "medium", "few")
PROBABILITY_METRICS = (
    "top_5", "roc_auc", "average_precision", "nll", "ece", "classwise_ece", "brier"
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Tallies:
    """The diagonal and the margins of a confusion matrix, which all metrics are computed from.

    Each is (..., C). Leading axes, such as bootstrap replicates or strengths, are kept by every
    property and metric.
    """

    hits: NDArray[Any]
    """Samples of the class that were predicted as it."""
    support: NDArray[Any]
    """Samples of the class."""
    predicted: NDArray[Any]
    """Samples predicted as the class."""

    @property
    def recall(self) -> Float64:
        """Hits / support; NaN for a class without samples."""
        return _ratio(self.hits, self.support, self.support > 0)

    @property
    def precision(self) -> Float64:
        """Hits / predicted; 0 for a class never predicted, NaN for one that does not occur."""
        return _ratio(self.hits, self.predicted, self.occurs)

    @property
    def f1(self) -> Float64:
        """2 hits / (support + predicted); NaN for a class that does not occur."""
        return _ratio(2 * self.hits, self.support + self.predicted, self.occurs)

    @property
    def sensitivity(self) -> Float64:
        """Recall; 0 for a class without samples that is predicted, NaN if it does not occur."""
        return _ratio(self.hits, self.support, self.occurs)

    @property
    def specificity(self) -> Float64:
        """The fraction of the other classes' samples that are not predicted as the class.

        0 if there are no others, NaN for a class that does not occur.
        """
        others = self.support.sum(axis=-1, keepdims=True) - self.support
        return _ratio(others - (self.predicted - self.hits), others, self.occurs)

    @property
    def occurs(self) -> NDArray[np.bool_]:
        """Whether a class is the label or the prediction of any sample."""
        occurs: NDArray[np.bool_] = (self.support + self.predicted) > 0
        return occurs


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """A sparse confusion matrix (C, C), with its K <= N cells above 0.

    Example:
        >>> found = Confusion.of(np.array([0, 1, 1]), np.array([0, 0, 1]), 2)
        >>> found.dense().tolist(), found.tallies.recall.tolist()
        ([[1, 1], [0, 1]], [0.5, 1.0])
    """

    actual: NDArray[np.int64]
    """The true class of each cell, (K,), ascending."""
    predicted: NDArray[np.int64]
    """The predicted class of each cell, (K,), ascending within a true class."""
    count: NDArray[np.int64]
    """Samples in each cell, (K,), at least 1."""
    num_classes: int
    """C."""

    @classmethod
    def of(cls, predicted: Labels, labels: Labels, num_classes: int) -> Confusion:
        """Count the samples of each pair of classes.

        Args:
            predicted: (N,), 0 to C - 1.
            labels: (N,), 0 to C - 1.
            num_classes: C.

        Raises:
            BadInput: no samples, unequal lengths, or a class that is not from 0 to C - 1.
        """
        check_labels(labels, len(predicted), num_classes)
        check_labels(predicted, len(labels), num_classes)
        cells = labels.astype(np.int64) * num_classes + predicted
        cells, count = np.unique(cells, return_counts=True)
        return cls(cells // num_classes, cells % num_classes, count, num_classes)

    @property
    def tallies(self) -> Tallies:
        """Hits, support and predictions of each class, (C,)."""
        hit = self.actual == self.predicted
        hits = np.zeros(self.num_classes, np.int64)
        hits[self.actual[hit]] = self.count[hit]
        support, predicted = np.zeros((2, self.num_classes), np.int64)
        np.add.at(support, self.actual, self.count)
        np.add.at(predicted, self.predicted, self.count)
        return Tallies(hits, support, predicted)

    def dense(self) -> NDArray[np.int64]:
        """The matrix with actual classes as rows and predicted ones as columns: 8 C^2 bytes."""
        matrix = np.zeros((self.num_classes, self.num_classes), np.int64)
        matrix[self.actual, self.predicted] = self.count
        return matrix


def accuracy(tallies: Tallies) -> Float64:
    """The fraction of samples that are predicted correctly."""
    share: Float64 = tallies.hits.sum(axis=-1) / tallies.support.sum(axis=-1)
    return share


def gmean_multiclass(tallies: Tallies) -> Float64:
    """C-th root of the product of the recalls of the C classes that occur.

    It equals imbalanced-learn's `geometric_mean_score(average="multiclass")`: a class that is
    predicted but has no samples has recall 0, which makes the whole product 0.
    """
    with np.errstate(divide="ignore"):
        root: Float64 = np.exp(_mean(np.log(tallies.sensitivity)))
    return root


def gmean_ovr(tallies: Tallies) -> Float64:
    """Square root of mean sensitivity times mean specificity, each class against the rest.

    It equals imbalanced-learn's `geometric_mean_score(average="macro")`: the means over the classes
    that occur are taken before the root.
    """
    root: Float64 = np.sqrt(_mean(tallies.sensitivity) * _mean(tallies.specificity))
    return root


def iba_ovr(tallies: Tallies) -> Float64:
    """(1 + 0.1 (mean sensitivity - mean specificity)) * gmean_ovr^2: index balanced accuracy.

    It equals imbalanced-learn's `make_index_balanced_accuracy(alpha=0.1, squared=True)` of
    `geometric_mean_score` with `average="macro"`; Garcia et al. 2012.
    """
    sensitivity, specificity = _mean(tallies.sensitivity), _mean(tallies.specificity)
    index: Float64 = (1 + 0.1 * (sensitivity - specificity)) * sensitivity * specificity
    return index


#: Metrics of the confusion matrix, from Tallies (..., C) to (...).
METRICS: Mapping[str, Callable[[Tallies], Float64]] = MappingProxyType(
    {
        "accuracy": accuracy,
        "balanced_accuracy": lambda tallies: _mean(tallies.recall),
        "macro_precision": lambda tallies: _mean(tallies.precision),
        "macro_f1": lambda tallies: _mean(tallies.f1),
        "gmean_multiclass": gmean_multiclass,
        "gmean_ovr": gmean_ovr,
        "iba_ovr": iba_ovr,
        "worst_recall": lambda tallies: np.fmin.reduce(tallies.recall, axis=-1),
    }
)


def table_of(tallies: Tallies, groups: Shares | None = None) -> dict[str, Float64]:
    """Every metric of METRICS, and the mean recall of each group: (...) each.

    Args:
        tallies: (..., C).
        groups: masks (C,) from `ClassCounts.groups`, or weights (C,) of the recalls. Only classes
            with samples count; a group without any is NaN.
    """
    table = {name: metric(tallies) for name, metric in METRICS.items()}
    recall = tallies.recall
    return table | {name: _mean(recall, shares) for name, shares in (groups or {}).items()}


def metrics_of(
    confusion: Confusion, groups: Shares | None = None, measured: Measured | None = None
) -> dict[str, float | None]:
    """All metrics by their JSON name; None is n/a.

    Args:
        confusion: of the predicted classes, (C, C).
        groups: many, medium and few, and others, (C,) each. An empty group is None, never 0;
            without groups, all three are None.
        measured: the metrics of probabilities; without it, they are None.

    Example:
        >>> table = metrics_of(Confusion.of(np.array([0, 1, 1]), np.array([0, 0, 1]), 2))
        >>> table["balanced_accuracy"], table["few"], table["nll"]
        (0.75, None, None)
    """
    flat = {name: float(value) for name, value in table_of(confusion.tallies, groups).items()}
    named: dict[str, float | None] = dict.fromkeys(("accuracy", "top_5", *METRICS, *GROUPS))
    named |= {name: None if np.isnan(value) else value for name, value in flat.items()}
    return named | {name: getattr(measured, name, None) for name in PROBABILITY_METRICS}


def recalls(predicted: Labels, labels: Labels, num_classes: int) -> Float64:
    """The recall of each class, (C,); NaN for a class without samples.

    Example:
        >>> recalls(np.array([0, 1, 1]), np.array([0, 0, 1]), 3).tolist()
        [0.5, 1.0, nan]
    """
    return Confusion.of(predicted, labels, num_classes).tallies.recall


def balanced_accuracy(predicted: Labels, labels: Labels, num_classes: int) -> float:
    """The mean recall of the classes that have samples."""
    return float(_mean(recalls(predicted, labels, num_classes)))


def _ratio(part: NDArray[Any], whole: NDArray[Any], counts: NDArray[np.bool_]) -> Float64:
    """Part / whole; 0 where the whole is 0, NaN where the class is not counted."""
    return np.where(counts, part / np.maximum(whole, 1), np.nan)


def _mean(values: Float64, shares: NDArray[Any] | float = 1.0) -> Float64:
    """The mean of the values that are not NaN over the last axis, weighted; NaN if none counts."""
    shares = np.where(np.isnan(values), 0.0, shares)
    whole = shares.sum(axis=-1)
    total = (shares * np.where(shares > 0, values, 0.0)).sum(axis=-1)
    return np.where(whole > 0, total / np.where(whole > 0, whole, 1.0), np.nan)
