"""Metrics of a classifier's predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.head import Float64

Labels = NDArray[np.integer[Any]]


def recalls(predicted: Labels, labels: Labels, num_classes: int) -> Float64:
    """The share of each class that was found, (C,); NaN for a class without samples.

    Args:
        predicted: (N,), 0 to C - 1.
        labels: (N,), 0 to C - 1.
        num_classes: C.

    Example:
        >>> recalls(np.array([0, 1, 1]), np.array([0, 0, 1]), 3).tolist()
        [0.5, 1.0, nan]
    """
    support = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[predicted == labels], minlength=num_classes)
    return np.where(support > 0, hits / np.maximum(support, 1), np.nan)


def balanced_accuracy(predicted: Labels, labels: Labels, num_classes: int) -> float:
    """The mean recall of the classes that have samples."""
    return float(np.nanmean(recalls(predicted, labels, num_classes)))
