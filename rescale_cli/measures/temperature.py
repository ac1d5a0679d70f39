"""Fit the temperature of a softmax by Newton's method."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.predictions import Labels
from rescale_cli.errors import BadInput
from rescale_cli.measures.calibration import Adjust, adjusted_blocks, centre, check_labels, peaks


def fit_temperature(logits: NDArray[Any], labels: Labels, adjust: Adjust | None = None) -> float:
    """T > 0 that minimises the NLL of softmax(z / T); Guo et al. 2017.

    The NLL is convex in b = 1 / T, with the derivative mean(E_p[z] - z_y). Bracketed Newton's
    method finds its zero; each step reads the logits once. T has a relative error of at most 1e-6,
    and is the same on every run.

    Args:
        logits: (N, C). A logit of -inf excludes the class for its sample.
        labels: (N,), 0 to C - 1.
        adjust: applied to each block (n, C) of logits first.

    Raises:
        BadInput: there is no such T, because every sample is correct (the NLL falls as T -> 0),
            because the true class's logit is no larger than the average one (it falls as
            T -> infinity), or because a true class has probability 0; or as `measure_logits`.

    Example:
        >>> logits = np.log([[0.9, 0.1]] * 4)  # predicts 9 in 10; 3 in 4 are correct
        >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 6)
        2.0
    """
    check_labels(labels, *logits.shape)
    flat, _, steepest = _slope(logits, labels, adjust, 0.0)
    if steepest == np.inf:
        raise _no_temperature("a true class has probability 0", "a logit of -inf for its own class")
    if steepest == 0:
        found = f"{len(labels)} of {len(labels)}, so T -> 0"
        raise _no_temperature("every sample is predicted correctly", found)
    if flat >= 0:
        why = "the logits of the true classes are no larger than the average"
        raise _no_temperature(why, f"{-flat:.4g} above it, so T -> infinity")
    low, high, beta = 0.0, np.inf, 1.0
    while 1e-12 < beta < 1e12:
        rise, bend, _ = _slope(logits, labels, adjust, beta)
        low, high = (low, beta) if rise > 0 else (beta, high)
        step = beta - rise / bend if bend > 0 else np.inf
        if abs(step - beta) <= 1e-7 * beta or high - low <= 1e-9 * beta:
            return float(1 / np.clip(step, low, high))
        # A step out of the bracket, or too long: take the geometric mean, or a factor of 4.
        if not low < step < high or step > 4 * beta:
            ends = (low or high / 16, high if np.isfinite(high) else 16 * low)
            step = float(np.sqrt(ends[0] * ends[1]))
        beta = step
    raise _no_temperature("T lies outside 1e-12 to 1e12", f"1 / T = {beta:.3g}")


def _slope(
    logits: NDArray[Any], labels: Labels, adjust: Adjust | None, beta: float
) -> tuple[float, float, float]:
    """The first and second derivatives of the mean NLL by beta, and N times the first one's limit.

    The limit is that for beta -> infinity. Samples with infinite logits at the top add nothing,
    because their NLL is the same at every beta.
    """
    rise = bend = steepest = 0.0
    for at, z in adjusted_blocks(logits, adjust):
        centre(z, peaks(z))
        own = z[np.arange(len(z)), labels[at]]
        weight = np.exp(beta * z) if beta else np.ones_like(z)
        if np.isinf(z).any():
            weight[np.isinf(z)] = z[np.isinf(z)] = 0.0
        weight /= weight.sum(axis=1)[:, None]
        mean = np.einsum("nc,nc->n", weight, z)
        z *= z
        rise += float((mean - own).sum())
        bend += float((np.einsum("nc,nc->n", weight, z) - mean**2).sum())
        steepest += float(-own.sum())
    n = len(labels)
    return rise / n, bend / n, steepest


def _no_temperature(why: str, saw: str) -> BadInput:
    fix = "leave out --fit-temperature, or use more samples"
    return BadInput(f"no temperature minimises the NLL: {why}", saw=saw, fix=fix)
