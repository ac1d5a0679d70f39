"""What each sample adds to the metrics of probabilities, so that a bootstrap can weigh it anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.head import Float64
from rescale_cli.measures.ranking import Ranking

#: Equal-mass bins of a calibration error.
BINS = 15


@dataclass(frozen=True, slots=True, eq=False)
class PerSample:
    """Of N samples: what each metric of probabilities is made of."""

    means: Mapping[str, Float64]
    """(N,) each: nll, brier, classwise_ece and, of more than 5 classes, top_5 are the means."""
    gap: Float64
    """(N,), the largest probability less rightness."""
    segment: NDArray[np.intp]
    """(N,), which of S runs of confidences it is in: those of a bin, or all of one value."""
    shares: Float64
    """(S, bins), how much of each run falls into each bin: one of one confidence into several."""
    ranking: Ranking | None = None
    """By the difference of the two logits, where there are two classes."""

    @classmethod
    def of(
        cls,
        means: Mapping[str, Float64],
        confidence: Float64,
        right: NDArray[np.bool_],
        ranking: Ranking | None = None,
    ) -> PerSample:
        """From the confidence of each sample, (N,), and whether it is right, (N,)."""
        order = np.argsort(confidence, kind="stable")
        changes = np.flatnonzero(np.diff(confidence[order], prepend=-1.0, append=2.0))
        edges = bin_edges(len(order))
        before = changes[np.searchsorted(changes, edges, side="right") - 1]
        cuts = np.union1d(before, changes[np.searchsorted(changes, edges)])
        segment = np.empty(len(order), np.intp)
        segment[order] = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))
        within = np.clip(edges, cuts[:-1, None], cuts[1:, None])
        shares = np.diff(within, axis=1) / np.diff(cuts)[:, None]
        return cls(means, confidence - right, segment, shares, ranking)

    def metrics(self, times: Float64) -> dict[str, Float64]:
        """Each metric, (R,), where the samples count so often, (R, N).

        The bins of ece are those of the samples themselves: cut anew for each replicate they would
        cost a sort each. As |gap| only grows with chance, replicates of ece lie above it; its
        interval may leave out a small one. A mean is NaN where a sample's part is infinite.
        """
        total = times.sum(axis=1)
        table = {
            name: np.einsum("rn,n->r", times, part) / total  # BLAS splits so thin a product badly
            if np.isfinite(part).all()
            else np.full(len(times), np.nan)
            for name, part in self.means.items()
        }
        gaps = [np.bincount(self.segment, row * self.gap, len(self.shares)) for row in times]
        table["ece"] = np.abs(np.stack(gaps) @ self.shares).sum(axis=1) / total
        return table if self.ranking is None else table | self.ranking.metrics(times)


def bin_edges(n: int) -> NDArray[np.intp]:
    """Where equal-mass bins of n sorted values begin and end, as `np.array_split` cuts them."""
    bins = min(BINS, n)
    at = np.arange(bins + 1)
    return at * (n // bins) + np.minimum(at, n % bins)
