"""Metrics of scores and probabilities: ranking metrics, NLL, Brier score, calibration errors.

Logits are read in blocks of rows, so that they may be in a memory-mapped file. All arithmetic is
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.floats import Float64
from rescale_cli.core.predictions import Labels
from rescale_cli.errors import BadInput


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """N samples of two classes, ranked by score; a bootstrap can weight them."""

    step: NDArray[np.intp]
    """The rank of each sample's score among the S different scores, (N,)."""
    positive: NDArray[np.bool_]
    """Whether each sample is of class 1, (N,)."""

    @classmethod
    def of(cls, score: Float64, positive: NDArray[np.bool_]) -> Ranking:
        """From the score of each sample, (N,): the logit of class 1 minus that of class 0."""
        _, step = np.unique(score, return_inverse=True)
        return cls(step.astype(np.intp), positive)

    def metrics(self, times: Float64) -> dict[str, Float64]:
        """`roc_auc` and `average_precision`, (R,) each, for R bootstrap replicates.

        Ties are treated as in scikit-learn: a pair of equal scores counts one half (Mann-Whitney),
        and precision is taken where the score changes, without interpolation. NaN if one of the two
        classes has no samples.

        Args:
            times: how many times each sample counts, (R, N).

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


#: Number of equal-mass bins of a calibration error.
BINS = 15


@dataclass(frozen=True, slots=True, eq=False)
class PerSample:
    """The contribution of each of N samples to the metrics of probabilities."""

    means: Mapping[str, Float64]
    """(N,) each; their means are nll, brier, classwise_ece and, with more than 5 classes, top_5."""
    gap: Float64
    """The largest probability, minus 1 if the sample is correct, (N,)."""
    segment: NDArray[np.intp]
    """The segment of each sample, (N,): S runs of confidences within a bin, or of equal value."""
    shares: Float64
    """The fraction of each segment in each bin, (S, bins); equal confidences may span bins."""
    ranking: Ranking | None = None
    """With two classes, by the difference of the logits."""

    @classmethod
    def of(
        cls,
        means: Mapping[str, Float64],
        confidence: Float64,
        right: NDArray[np.bool_],
        ranking: Ranking | None = None,
    ) -> PerSample:
        """From the confidence of each sample, (N,), and whether it is correct, (N,)."""
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
        """Each metric, (R,), for R bootstrap replicates with counts (R, N) of the samples.

        ece keeps the bins of the samples themselves, because new bins would need a sort for each
        replicate. Chance only increases |gap|, so replicates of ece are biased upward, and the
        interval of a small ece may lie above it. A mean is NaN if a sample contributes infinity.
        """
        total = times.sum(axis=1)
        table = {
            name: np.einsum("rn,n->r", times, part) / total  # faster here than a BLAS product
            if np.isfinite(part).all()
            else np.full(len(times), np.nan)
            for name, part in self.means.items()
        }
        gaps = [np.bincount(self.segment, row * self.gap, len(self.shares)) for row in times]
        table["ece"] = np.abs(np.stack(gaps) @ self.shares).sum(axis=1) / total
        return table if self.ranking is None else table | self.ranking.metrics(times)


def bin_edges(n: int) -> NDArray[np.intp]:
    """The edges of equal-mass bins of n sorted values, as in `np.array_split`."""
    bins = min(BINS, n)
    at = np.arange(bins + 1)
    return at * (n // bins) + np.minimum(at, n % bins)


#: Logits per block: 2 MiB, so that a block stays in the cache.
_BLOCK = 1 << 18
#: Probabilities that class-wise ECE keeps in memory: 512 MiB.
_HELD = 1 << 26

#: From logits (n, C) to those of the adjusted head, (n, C), such as `RowUpdate.on_logits`.
Adjust = Callable[[Float64], Float64]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Predictions and metrics of N samples, from their logits."""

    predicted: Labels
    """The class of the largest logit, (N,); the first one of a tie."""
    top_5: float | None
    """Fraction of samples with fewer than 5 logits above the true class's; None if C <= 5."""
    nll: float
    """Mean of -log p_y, nats; inf if a true class has probability 0."""
    ece: float
    """Of the largest probability: sum over bins of |correct - sum of confidences| / N."""
    classwise_ece: float
    """The same for p_c and the event y = c, averaged over the classes c (Kull et al. 2019)."""
    brier: float
    """Mean of sum_c (p_c - [y = c])^2, 0 to 2."""
    roc_auc: float | None
    """Of the second logit minus the first; None if C > 2 or one class has no samples."""
    average_precision: float | None
    """Of the same score, with class 1 as the positive class; None as for `roc_auc`."""
    samples: PerSample
    """The contribution of each sample, for the bootstrap."""


def measure_logits(logits: NDArray[Any], labels: Labels, adjust: Adjust | None = None) -> Measured:
    """Predicted classes, NLL, Brier score and calibration errors from logits.

    The logits are read once. If N x C is above 2^26, class-wise ECE reads them again for each block
    of classes, so that it never needs more than 512 MiB for probabilities. There are 15 bins of
    equal mass (as `np.array_split` of the sorted values; Nixon et al. 2019); with fewer than 15
    samples, each is a bin. Correct samples of equal confidence are divided evenly among the bins
    that this confidence spans, so that the order of the samples does not matter.

    Logits may be infinite: classes at +inf share all probability, and a row of -inf is uniform.

    Args:
        logits: (N, C), of any float type; an array or a memory-mapped file.
        labels: (N,), 0 to C - 1.
        adjust: applied to each block (n, C) of logits first.

    Raises:
        BadInput: no samples, labels that do not fit, or NaN among the logits.

    Example:
        >>> found = measure_logits(np.log([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]))
        >>> found.predicted.tolist(), round(found.nll, 4), round(found.brier, 4)
        ([0, 0], 0.5108, 0.37)
    """
    check_labels(labels, *logits.shape)
    n, c = logits.shape
    width = min(c, max(1, _HELD // n))
    held = np.empty((width, n))
    rows = _read_rows(logits, labels, adjust, held)
    samples, shares = _by_class(labels, c), np.zeros(n)
    errors = _class_errors(held, samples[:width], shares)
    for first in range(width, c, width):
        columns = slice(first, min(first + width, c))
        part = _read_columns(logits, adjust, rows, columns, held)
        errors += _class_errors(part, samples[columns], shares)
    confidence, right = 1 / rows.total, rows.predicted == labels
    parts = {**rows.parts(c), "classwise_ece": shares / c}
    ranked = c == 2 and len(np.unique(labels)) == 2
    ranking = Ranking.of(rows.margin, labels == 1) if ranked else None
    ranks = {} if ranking is None else ranking.metrics(np.ones((1, n)))
    return Measured(
        predicted=rows.predicted,
        top_5=float(parts["top_5"].mean()) if c > 5 else None,
        nll=float(parts["nll"].mean()),
        ece=_binned_error(np.sort(confidence), confidence[right])[0],
        classwise_ece=errors / c,
        brier=float(parts["brier"].mean()),
        roc_auc=float(ranks["roc_auc"][0]) if ranks else None,
        average_precision=float(ranks["average_precision"][0]) if ranks else None,
        samples=PerSample.of(parts, confidence, right, ranking),
    )


def check_labels(labels: NDArray[Any], n: int, c: int) -> None:
    """Check that there are N labels from 0 to C - 1, and at least one.

    Raises:
        BadInput: otherwise.
    """
    fix = f"give one label from 0 to {c - 1} per sample"
    if len(labels) != n or n == 0:
        what = "there are no samples" if n == 0 else "labels and samples differ in number"
        raise BadInput(what, saw=f"{len(labels)} labels, {n} samples", fix=fix)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= c:
        saw = f"label {low if low < 0 else high}, {c} classes"
        raise BadInput("a label is not a row of the head", saw=saw, fix=fix)


def adjusted_blocks(logits: NDArray[Any], adjust: Adjust | None) -> Iterator[tuple[slice, Float64]]:
    """Blocks of adjusted logits as new float64 arrays, each with its rows."""
    n, c = logits.shape
    rows = max(1, _BLOCK // c)
    for start in range(0, n, rows):
        at = slice(start, min(start + rows, n))
        block: Float64 = np.array(logits[at], dtype=np.float64)
        yield at, block if adjust is None else adjust(block)


def peaks(z: Float64) -> Float64:
    """The largest logit of each row, (n,).

    Raises:
        BadInput: a logit is NaN.
    """
    peak: Float64 = z.max(axis=1)
    if bad := np.count_nonzero(np.isnan(peak)):
        saw = f"NaN in {bad} of the {len(z)} rows of one block"
        raise BadInput("the logits contain NaN", saw=saw, fix="compute them again, in float32")
    return peak


def centre(z: Float64, peak: Float64) -> Float64:
    """Subtract the largest logit of each row, in place; an infinite peak becomes 0, not NaN."""
    with np.errstate(invalid="ignore"):
        np.subtract(z, peak[:, None], out=z)
    odd = np.isinf(peak)
    if odd.any():
        z[odd] = np.where(np.isnan(z[odd]), 0.0, -np.inf)
    return z


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Sums over the classes of each sample, (N,) each, with p_c = exp(z_c - peak) / total."""

    predicted: Labels
    above: NDArray[np.int64]
    """Number of logits above the true class's."""
    peak: Float64
    """The largest logit."""
    total: Float64
    own: Float64
    """The true class's logit minus the peak."""
    squares: Float64
    """The sum of p_c^2."""
    margin: Float64
    """With two classes, the second logit minus the first; else 0."""

    def parts(self, c: int) -> dict[str, Float64]:
        """The contribution of each sample to the metrics that are means, (N,) each."""
        parts = {
            "nll": np.log(self.total) - self.own,
            "brier": self.squares - 2 * np.exp(self.own) / self.total + 1,
        }
        return parts | ({"top_5": (self.above < 5).astype(np.float64)} if c > 5 else {})


def _read_rows(logits: NDArray[Any], labels: Labels, adjust: Adjust | None, held: Float64) -> _Rows:
    """Read all rows once, and store the probabilities of the first classes in `held` (width, N)."""
    n = len(labels)
    rows = _Rows(*np.empty((2, n), np.int64), *np.zeros((5, n)))
    for at, z in adjusted_blocks(logits, adjust):
        row, own = np.arange(len(z)), labels[at]
        rows.peak[at] = peaks(z)
        rows.predicted[at] = z.argmax(axis=1)
        rows.above[at] = np.count_nonzero(z > z[row, own][:, None], axis=1)
        if logits.shape[1] == 2:
            with np.errstate(invalid="ignore"):
                margin = z[:, 1] - z[:, 0]
            rows.margin[at] = np.where(np.isnan(margin), 0.0, margin)  # NaN: equal infinities
        centre(z, rows.peak[at])
        rows.own[at] = z[row, own]
        np.exp(z, out=z)
        rows.total[at] = z.sum(axis=1)
        rows.squares[at] = np.einsum("nc,nc->n", z, z) / rows.total[at] ** 2
        held[:, at] = (z[:, : len(held)] / rows.total[at][:, None]).T
    return rows


def _read_columns(
    logits: NDArray[Any], adjust: Adjust | None, rows: _Rows, columns: slice, held: Float64
) -> Float64:
    """The probabilities of some classes, (classes, N), stored in `held`."""
    part = held[: columns.stop - columns.start]
    for at, z in adjusted_blocks(logits, adjust):
        picked = centre(z[:, columns].copy(), rows.peak[at])
        part[:, at] = (np.exp(picked, out=picked) / rows.total[at][:, None]).T
    return part


def _by_class(labels: Labels, c: int) -> list[NDArray[np.intp]]:
    """The samples of each class."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=c))[:-1])


def _class_errors(held: Float64, samples: list[NDArray[np.intp]], shares: Float64) -> float:
    """The sum of the calibration errors of some classes.

    Args:
        held: their probabilities, (classes, N).
        samples: the samples of each class.
        shares: (N,), to which the contribution of each sample is added; the mean is the error.
    """
    total = 0.0
    for row, own in zip(held, samples, strict=True):
        ordered = np.sort(row)
        error, sign = _binned_error(ordered, row[own])
        total += error
        share = _sign_of(row, ordered, sign)
        own_share = share[own]
        shares += np.multiply(share, row, out=share)
        shares[own] -= own_share
    return total


def _binned_error(ordered: Float64, hits: Float64) -> tuple[float, Float64]:
    """Sum over equal-mass bins of |sum of probabilities - number of hits| / N, and each sign.

    Args:
        ordered: all probabilities, ascending, (N,).
        hits: the probabilities of the events that occurred, a subset.
    """
    n = len(ordered)
    edges = bin_edges(n)
    # Equal values are at [low, high); hits among them are spread evenly over that range.
    low, high = (np.searchsorted(ordered, hits, side)[:, None] for side in ("left", "right"))
    below = np.clip((edges - low) / (high - low), 0, 1).sum(axis=0)
    gaps = np.add.reduceat(ordered, edges[:-1]) - np.diff(below)
    return float(np.abs(gaps).sum() / n), np.sign(gaps)


def _sign_of(values: Float64, ordered: Float64, signs: Float64) -> Float64:
    """The sign of each value's bin, (N,); a mean of signs if equal values span several bins.

    With fixed signs the error is a mean over samples, so that a bootstrap need not sort N x C
    probabilities again. This is the infinitesimal jackknife of the error (Efron 1982, ch. 6).

    Args:
        values: (N,), in any order.
        ordered: the same values, ascending.
        signs: the sign of each bin.
    """
    edges = bin_edges(len(ordered))
    ends = np.unique(ordered[edges[1:-1]])
    low, high = (np.searchsorted(ordered, ends, side)[:, None] for side in ("left", "right"))
    within = np.clip(edges, low, high)
    table = np.empty(2 * len(ends) + 1)
    table[1::2] = (np.diff(within, axis=1) / (high - low)) @ signs
    starts = np.minimum(np.append(0, high), len(ordered) - 1)
    table[::2] = signs[np.searchsorted(edges, starts, side="right") - 1]
    place = np.searchsorted(ends, values)
    place = 2 * place + (np.append(ends, np.inf)[place] == values)
    found: Float64 = table[place]
    return found
