"""Samples drawn again with replacement, class by class: the replicates of every bootstrap."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rescale_cli.core.head import Float64
from rescale_cli.core.predictions import Labels
from rescale_cli.long_work import long_work


def drawn_again(labels: Labels, replicates: int, seed: int) -> Iterator[Float64]:
    """How often each of N samples is drawn, (N,), in each replicate; each class keeps its size.

    Drawn from all samples, a class of few would often be missing. Where it is predicted all the
    same, its F1 and its part of a G-mean are then 0, and most replicates would lie below the metric
    that they are to surround. So what is drawn again is which samples of a class there are, not
    how many: the intervals are for data of these class sizes.

    Args:
        labels: (N,), from 0 on.
        replicates: how often.
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
    with long_work("drawing samples for the intervals", "replicates", replicates) as work:
        for number in range(replicates):
            drawn = order[first + generator.integers(0, size)]
            yield np.bincount(drawn, minlength=len(labels)).astype(np.float64)
            work.tick(number + 1)
