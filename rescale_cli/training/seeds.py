"""One seed for each thing that is drawn, so that a run can go on at any step without a memory."""

from __future__ import annotations

import numpy as np


def seed_of(*words: int) -> int:
    """A seed, below 2^63, that follows from whole numbers such as (seed, epoch, step, rank).

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    drawn = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))
