"""What the row norms say beside the class counts: what `inspect` reports and `apply` warns of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head

#: How many standard errors of a rank correlation (1 / sqrt(C - 1)) are taken for more than chance.
CLEAR = 1.645
#: Norms that differ by less, relatively, are one length, as WVN leaves them, and rounding.
ONE_LENGTH = 1e-3


def spearman(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Rank correlation of two vectors (C,), ties given their mean rank; None if one is constant.

    Example:
        >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 15.0]))
        0.5
    """
    ranks = [_ranks(np.asarray(vector, np.float64)) for vector in (one, other)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum() / scale) if scale else None


def _ranks(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(vector, return_inverse=True, return_counts=True)
    mean_rank: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return mean_rank[inverse]


def correlation(head: Head, counts: ClassCounts) -> float | None:
    """Rank correlation of the row norms with the counts, over the rows that are not skipped.

    None where the rows have one length, whose rounding says nothing.
    """
    if head.binary or head.num_classes == 1:
        return None
    norms = head.norms[counts.kept]
    if np.ptp(norms) <= ONE_LENGTH * norms.max():
        return None
    return spearman(norms, counts.values[counts.kept])


def warnings_of(
    head: Head, counts: ClassCounts | None, *, named: bool = False
) -> list[tuple[str, str]]:
    """What a user should know before the rows of this head are scaled: (code, message) each.

    Norms alone do not show a wrong order of the counts: AdamW and other training may lengthen the
    rows of rare classes.

    Args:
        head: as it is now.
        counts: training samples of each row.
        named: whether names show which count belongs to which row.
    """
    found = []
    if head.gauge > 0.5 and not head.binary and head.num_classes > 1:
        found.append((
            "gauge",
            f"the rows of the head share a common part (gauge ratio {head.gauge:.2f}): softmax "
            "does not see it, but re-scaling does; evaluate before you trust the result",
        ))  # fmt: skip
    if counts is None or (rho := correlation(head, counts)) is None:
        return found
    clear = CLEAR / math.sqrt(max(counts.num_classes - len(counts.skipped) - 1, 1))
    if rho < -max(clear, 0.2):
        found.append((
            "norms-run-against-counts",
            f"rare classes have the longer rows (rank correlation {rho:+.2f}): "
            f"{_why_against(named)}",
        ))  # fmt: skip
    elif rho < clear:
        found.append((
            "norms-do-not-follow-counts",
            f"the row norms do not follow the counts (rank correlation {rho:+.2f}): the head may "
            "be corrected already, or trained with Adam; evaluate before you trust the result",
        ))  # fmt: skip
    return found


def _why_against(named: bool) -> str:
    training = "training may have done that (AdamW, or a loss that corrects for the counts)"
    if named:
        return (
            f"{training}, as the names show that the counts belong to these rows; evaluate before "
            "you trust the result"
        )
    return (
        f"either {training}, or the counts are in another order than the rows. Check which count "
        "each class gets (`apply --dry-run`), give names with the counts or --classes FILE, and "
        "evaluate before you trust the result"
    )
