"""How well a score ranks the samples of two classes: ROC-AUC and average precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.head import Float64


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """N samples of two classes by their score, so that a bootstrap can weigh them anew."""

    step: NDArray[np.intp]
    """(N,), which of the S different scores each sample has, ascending."""
    positive: NDArray[np.bool_]
    """(N,), whether it is of class 1."""

    @classmethod
    def of(cls, score: Float64, positive: NDArray[np.bool_]) -> Ranking:
        """From the score of each sample, (N,): the logit of class 1 less that of class 0."""
        _, step = np.unique(score, return_inverse=True)
        return cls(step.astype(np.intp), positive)

    def metrics(self, times: Float64) -> dict[str, Float64]:
        """`roc_auc` and `average_precision`, (R,) each, where each sample counts so often, (R, N).

        Ties are exact: a pair of equal scores counts one half (Mann-Whitney), and precision is
        taken where the score changes (no interpolation), as in scikit-learn. NaN where one of the
        two classes has no samples.

        Example:
            >>> found = Ranking.of(np.array([0.1, 0.4, 0.4, 0.8]), np.array([0, 0, 1, 1]) == 1)
            >>> both = found.metrics(np.ones((1, 4)))
            >>> both["roc_auc"].tolist(), both["average_precision"].round(4).tolist()
            ([0.875], [0.8333])
        """
        size = int(self.step.max()) + 1
        right, wrong = (
            np.stack([np.bincount(self.step, row * mask, size) for row in times])
            for mask in (self.positive, ~self.positive)
        )
        below = wrong.cumsum(axis=1) - wrong / 2
        pairs = right.sum(axis=1) * wrong.sum(axis=1)
        hits, all_ = (part[:, ::-1].cumsum(axis=1)[:, ::-1] for part in (right, right + wrong))
        precision = hits / np.where(all_ > 0, all_, 1.0)
        found = {
            "roc_auc": (right * below).sum(axis=1) / np.where(pairs > 0, pairs, 1.0),
            "average_precision": (right * precision).sum(axis=1)
            / np.maximum(right.sum(axis=1), 1e-300),
        }
        return {name: np.where(pairs > 0, value, np.nan) for name, value in found.items()}
