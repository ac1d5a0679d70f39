"""Student's t: the mean of a few independent values, and a 95 % interval around it.

Written here because scipy is not among the dependencies, and torch has no quantile of Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Halvings of the range of t; more change nothing in float64.
_HALVINGS = 200


def mean_and_interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The mean of n values and its 95 % t-interval, mean -+ t(0.975, n - 1) s / sqrt(n).

    s is the sample standard deviation (n - 1 in the denominator). The interval supposes values that
    are independent and roughly normal, such as the results of runs with different seeds.

    Args:
        values: n of them, at least 1, finite.

    Returns:
        The mean, and (low, high); None for a single value, which shows no spread.

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
    """The t that `inside` of Student's distribution lies below in absolute value.

    Args:
        freedom: degrees of freedom, at least 1.
        inside: 0 to 1, exclusive.

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
