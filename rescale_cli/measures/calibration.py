"""Quality of scores and probabilities: ranking metrics, NLL, Brier score, calibration errors.

Logits are read in blocks of rows and worked on in float64, so that N x C may lie in a mapped file.
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


#: Elements of a block of logits: 2 MiB, so that a block stays in the cache.
_BLOCK = 1 << 18
#: Probabilities that class-wise ECE holds at once: 512 MiB.
_HELD = 1 << 26

#: Logits (n, C) to those of the adjusted head, (n, C): `RowUpdate.on_logits`, for one.
Adjust = Callable[[Float64], Float64]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What one pass over the logits of N samples says."""

    predicted: Labels
    """The class of the largest logit, (N,); the first of those that tie."""
    top_5: float | None
    """The share of samples with fewer than 5 logits above the true class's; None where C <= 5."""
    nll: float
    """Mean of -log p_y, nats; inf where a true class has probability 0."""
    ece: float
    """Of the largest probability: sum over bins of |rightness - confidence| / N."""
    classwise_ece: float
    """The same of p_c against y = c for each class c, averaged over all C (Kull et al. 2019)."""
    brier: float
    """Mean of sum_c (p_c - [y = c])^2, 0 to 2."""
    roc_auc: float | None
    """Of the second logit less the first; None where C > 2, or one class has no samples."""
    average_precision: float | None
    """Of the same score, class 1 being the positive one; None as for `roc_auc`."""
    samples: PerSample
    """The parts of them all, for the bootstrap."""


def measure_logits(logits: NDArray[Any], labels: Labels, adjust: Adjust | None = None) -> Measured:
    """Predicted classes, NLL, Brier score and calibration errors from logits.

    One pass over the rows serves all; where N x C is above 2^26, class-wise ECE reads them again
    for each further block of classes, so it never holds more than 512 MiB of probabilities. Bins
    are 15 of equal mass (as `np.array_split` of the sorted values; Nixon et al. 2019); samples of
    one confidence share their rightness evenly among the bins they fall in, so that the order of
    the samples changes nothing. Of fewer than 15 samples each is a bin.

    Logits may be infinite: classes at +inf share all probability, and a row of -inf is uniform.

    Args:
        logits: (N, C), of any float type; an array or a mapped file.
        labels: (N,), 0 to C - 1.
        adjust: what is done to each block (n, C) before it counts.

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
    """Classes (N,), each from 0 to C - 1, of at least one sample.

    Raises:
        BadInput: they are not.
    """
    fix = f"give one label from 0 to {c - 1} per sample"
    if len(labels) != n or n == 0:
        what = (
            "there are no samples"
            if n == 0
            else "the number of labels is not the number of samples"
        )
        raise BadInput(what, saw=f"{len(labels)} labels, {n} samples", fix=fix)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= c:
        saw = f"label {low if low < 0 else high}, {c} classes"
        raise BadInput("a label is not a row of the head", saw=saw, fix=fix)


def adjusted_blocks(logits: NDArray[Any], adjust: Adjust | None) -> Iterator[tuple[slice, Float64]]:
    """Rows of the logits, adjusted, in float64, free to be written on."""
    n, c = logits.shape
    rows = max(1, _BLOCK // c)
    for start in range(0, n, rows):
        at = slice(start, min(start + rows, n))
        block: Float64 = np.array(logits[at], dtype=np.float64)
        yield at, block if adjust is None else adjust(block)


def peaks(z: Float64) -> Float64:
    """The largest logit of each row, (n,)."""
    peak: Float64 = z.max(axis=1)
    if bad := np.count_nonzero(np.isnan(peak)):
        saw = f"{bad} of the {len(z)} rows that were read together"
        raise BadInput("the logits contain NaN", saw=saw, fix="compute them again, in float32")
    return peak


def centre(z: Float64, peak: Float64) -> Float64:
    """Z less the largest of its row, in place: 0 there, and at most 0; never inf - inf."""
    with np.errstate(invalid="ignore"):
        np.subtract(z, peak[:, None], out=z)
    odd = np.isinf(peak)
    if odd.any():
        z[odd] = np.where(np.isnan(z[odd]), 0.0, -np.inf)
    return z


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Of each sample, (N,): p_c = exp(z_c - peak) / total."""

    predicted: Labels
    above: NDArray[np.int64]
    """Logits above the true class's."""
    peak: Float64
    """The largest logit."""
    total: Float64
    own: Float64
    """The true class's logit less the peak."""
    squares: Float64
    """The sum of p_c^2."""
    margin: Float64
    """Where there are two classes, the second logit less the first; else 0."""

    def parts(self, c: int) -> dict[str, Float64]:
        """What each sample adds to the metrics that are means, (N,) each."""
        parts = {
            "nll": np.log(self.total) - self.own,
            "brier": self.squares - 2 * np.exp(self.own) / self.total + 1,
        }
        return parts | ({"top_5": (self.above < 5).astype(np.float64)} if c > 5 else {})


def _read_rows(logits: NDArray[Any], labels: Labels, adjust: Adjust | None, held: Float64) -> _Rows:
    """The pass over all rows; fills `held` (width, N) with the first classes' probabilities."""
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
            rows.margin[at] = np.where(np.isnan(margin), 0.0, margin)  # both infinite, and alike
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
    """The probabilities of some classes, (classes, N), in the space of `held`."""
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
    """The sum of the classes' calibration errors.

    Args:
        held: the probabilities of some classes, (classes, N).
        samples: those of each class.
        shares: (N,), to which each sample's part of the errors is added; their mean is the error.
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
        hits: those whose event came true, a part of them.
    """
    n = len(ordered)
    edges = bin_edges(n)
    # Equal values lie at [low, high): which of them are the hits is nobody's to say.
    low, high = (np.searchsorted(ordered, hits, side)[:, None] for side in ("left", "right"))
    below = np.clip((edges - low) / (high - low), 0, 1).sum(axis=0)
    gaps = np.add.reduceat(ordered, edges[:-1]) - np.diff(below)
    return float(np.abs(gaps).sum() / n), np.sign(gaps)


def _sign_of(values: Float64, ordered: Float64, signs: Float64) -> Float64:
    """The sign of the bin of each value, (N,); the mean of several where equal values fill them.

    With these signs held fixed the error is a mean over samples, so that a bootstrap costs no sort
    of N x C probabilities. This is the infinitesimal jackknife of the error (Efron 1982, ch. 6).

    Args:
        values: (N,), in any order.
        ordered: the same, ascending.
        signs: of each bin.
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
