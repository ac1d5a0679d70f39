"""Samples that are likely the ones a model was trained on, as their class counts show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.counts import ClassCounts

#: The code of the warning.
CODE = "training-set"


def trained_on(
    support: NDArray[np.int64], counts: ClassCounts | None, source: str, split: str | None
) -> str:
    """Why samples are likely the training set of the model, in words; empty if nothing shows it.

    Args:
        support: samples of each class, (C,).
        counts: of the training set, (C,); None: not known.
        source: the data, for the text.
        split: of the data; None: not known.

    Returns:
        A reason if the split is the training split, or if the class counts are exactly those of the
        training set: in the same order, or in another order, which also says that classes were
        joined wrongly. Equal counts of balanced data count, too.

    Example:
        >>> counts = ClassCounts.of([50, 20, 5])
        >>> trained_on(np.array([50, 20, 5]), counts, "a.csv", None)
        'a.csv has exactly the class counts of --counts'
        >>> trained_on(np.array([50, 20, 6]), counts, "a.csv", None)
        ''
    """
    if split == "train":
        return f"{source} is the training split"
    if counts is None or len(support) != len(counts.values):
        return ""
    if np.array_equal(support, counts.values):
        return f"{source} has exactly the class counts of --counts"
    if np.array_equal(np.sort(support), np.sort(counts.values)):
        return (
            f"{source} has the class counts of --counts in another order, so the classes of one of "
            "them are probably in the wrong order, too"
        )
    return ""
