"""The decisions of a method on N samples at every strength, computed exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.floats import Float64
from rescale_cli.core.head import Head, RowUpdate
from rescale_cli.core.methods import METHODS, Adjustment
from rescale_cli.core.predictions import Labels, Predictions
from rescale_cli.measures.metrics import Tallies
from rescale_cli.strength_path import BlockWork, in_blocks
from rescale_cli.sweeping.curves import Curves

if TYPE_CHECKING:
    from rescale_cli.strength_path import PredictedPath


#: Logits per block, in float64; and for scores that are curves, whose cells are divided together.
_BLOCK, _CURVED_BLOCK = 1 << 19, 1 << 21


@dataclass(frozen=True, slots=True, eq=False)
class SweptMethod:
    """A method on one head, at any strength."""

    adjustment: Adjustment
    """Its strength is ignored."""
    head: Head
    counts: ClassCounts

    def at(self, strength: float) -> RowUpdate:
        """The update of the logits at this strength; a missing bias counts as 0."""
        head = self.head
        if not self.writable:
            head = replace(head, bias=np.zeros(head.num_classes))
        return replace(self.adjustment, strength=strength).update(head, self.counts)

    @property
    def writable(self) -> bool:
        """Whether the head can store the result: a method that changes the bias needs one."""
        needs_bias = METHODS.entry(self.adjustment.method).facts["needs_bias"]
        return self.head.bias is not None or not needs_bias

    def scores(self, logits: NDArray[np.generic], strength: float = 0.0) -> Float64:
        """The logits (N, C) of the adjusted head, float64."""
        update = self.at(strength)
        return update.on_logits(np.asarray(logits, np.float64), self.head.bias)

    def curves(self) -> tuple[Curves, Callable[[NDArray[np.generic]], Float64]]:
        """The scores of `rescale` or `tau-norm` as curves, for any policy; see `curved_path`.

        Returns:
            The part that head and counts determine, and a function from logits to u, (N, C).
        """
        update, kept, bias = self.at(0.0), self.counts.kept, self.head.bias
        classes = self.head.num_classes
        whole = np.zeros(classes) if bias is None else update.on_bias(bias)
        factors = np.log(self.counts.factors(1.0))
        shares, exponents, follows = np.ones(1), np.zeros(1), ~kept
        if self.adjustment.method == "tau-norm":
            norms = self.head.norms[kept]
            exponents, shares = -np.log(norms), norms / norms.sum()
            middle = (exponents.max() + exponents.min()) / 2  # a common factor changes no decision
            exponents = exponents - middle
            factors = np.zeros(classes)
            factors[kept] = exponents
        # If the factor equals q, u includes the offset, so that equal scores are equal curves.
        apart = kept & (exponents.any() | (factors != 0))
        offsets = np.where(apart & (self.adjustment.bias_policy == "keep"), whole, 0.0)

        def scores(logits: NDArray[np.generic]) -> Float64:
            own = np.asarray(logits, np.float64) - (0.0 if bias is None else bias)
            own *= update.scale
            own += whole - offsets
            return own

        return Curves(factors, offsets, shares, exponents, follows), scores

    @property
    def straight(self) -> bool:
        """Whether the scores, or their logarithms, are straight lines in the strength.

        They are not if a kept bias is added after the factor, nor for tau-norm if some rows are
        excluded, because its common factor does not apply to these.
        """
        bias, policy = self.head.bias, self.adjustment.bias_policy
        if self.adjustment.method == "logit-adjust":
            return True
        if bias is not None and policy == "keep" and bias.any():
            return False
        return self.adjustment.method != "tau-norm" or bool(self.counts.kept.all())

    def lines(self) -> tuple[Float64, bool]:
        """The slopes s (C,) of straight scores, and whether their logarithms are straight instead.

        The score of class k is u_k exp(gamma s_k) for re-scaling, with s_k = log(n_1 / n_k), and
        for tau-norm, with s_k = -log |w_k| (its common factor changes no decision). For logit
        adjustment it is z_k + tau s_k, with s_k = -log prior_k. Call it only if `straight` is true.
        """
        if self.adjustment.method == "logit-adjust":
            return self.at(1.0).shift, False
        if self.adjustment.method == "tau-norm":
            return -np.log(self.head.norms), True
        return np.log(self.counts.factors(1.0)), True


@dataclass(frozen=True, slots=True, eq=False)
class DecisionPath:
    """The decisions on N samples for gamma from 0 to a limit: those at 0, and E changes.

    A class of -1 means some wrong class.
    """

    num_classes: int
    """C."""
    labels: Labels
    """(N,)."""
    limit: float
    """The largest gamma."""
    start: NDArray[np.int64]
    """The class predicted at gamma = 0, (N,)."""
    gamma: Float64
    """The strength of each change, (E,), ascending, above 0."""
    sample: NDArray[np.int64]
    """The sample whose decision changes, (E,)."""
    before: NDArray[np.int64]
    """The class predicted before, (E,)."""
    after: NDArray[np.int64]
    """The class predicted from there on, (E,)."""

    def of(self, samples: NDArray[np.int64]) -> DecisionPath:
        """The path of some samples (n,), in ascending order."""
        place = np.full(len(self.labels), -1)
        place[samples] = np.arange(len(samples))
        stays = place[self.sample] >= 0
        return DecisionPath(
            self.num_classes, self.labels[samples], self.limit, self.start[samples],
            self.gamma[stays], place[self.sample[stays]], self.before[stays], self.after[stays],
        )  # fmt: skip

    @property
    def change(self) -> NDArray[np.int64]:
        """(E,): 1 if the sample becomes correct, -1 if it becomes wrong, else 0."""
        truth = self.labels[self.sample]
        change: NDArray[np.int64] = (self.after == truth).astype(np.int64) - (self.before == truth)
        return change

    @property
    def never_right(self) -> float:
        """The fraction of samples that are correct at no gamma up to the limit."""
        right = (self.start == self.labels).astype(np.float64)
        right[self.sample[self.change > 0]] = 1
        return float(1 - right.mean())

    @property
    def knows_predictions(self) -> bool:
        """Whether every predicted class is known, not only which samples are correct."""
        return bool((self.start >= 0).all() and (self.after >= 0).all())

    def predicted(self, gamma: float) -> NDArray[np.int64]:
        """The predicted class of each sample at this strength, (N,)."""
        now = self.start.copy()
        upto = int(np.searchsorted(self.gamma, gamma, side="right"))
        now[self.sample[:upto]] = self.after[:upto]  # the last change of a sample counts
        return now

    def tallies(self, gammas: Float64, weights: Float64 | None = None) -> Tallies:
        """Hits, support and predictions (G, C) at ascending strengths (G,), as floats.

        If only the correct samples are known, the hits stand in for the predictions.

        Args:
            gammas: (G,), ascending, from 0 to the limit.
            weights: (N,), how many times each sample counts; once if None.
        """
        weights = np.ones(len(self.labels)) if weights is None else weights
        weight, truth = weights[self.sample], self.labels[self.sample]
        slots = np.searchsorted(gammas, self.gamma, side="left")  # the first after the change
        support = np.bincount(self.labels, weights, self.num_classes)
        hits = np.zeros((len(gammas) + 1, self.num_classes))
        np.add.at(hits, (slots, truth), self.change * weight)
        right = self.start == self.labels
        hits[0] += np.bincount(self.labels[right], weights[right], self.num_classes)
        support = np.broadcast_to(support, (len(gammas), self.num_classes))
        hits = hits.cumsum(axis=0)[:-1]
        found = self.histogram(gammas, weights) if self.knows_predictions else hits
        return Tallies(hits, support, found)

    def histogram(self, gammas: Float64, weights: Float64 | None = None) -> Float64:
        """The number of samples predicted as each class, (G, C), at ascending strengths (G,)."""
        weights = np.ones(len(self.start)) if weights is None else weights
        slots = np.searchsorted(gammas, self.gamma, side="left")
        found = np.zeros((len(gammas) + 1, self.num_classes))
        np.add.at(found, (slots, self.after), weights[self.sample])
        np.add.at(found, (slots, self.before), -weights[self.sample])
        found[0] += np.bincount(self.start, weights, self.num_classes)
        counted: Float64 = found.cumsum(axis=0)[:-1]
        return counted

    def breakpoints(self) -> Float64:
        """0, and every strength at which a decision changes, (B,), ascending."""
        return np.unique(np.concatenate([[0.0], self.gamma]))


def decisions_of(
    swept: SweptMethod, predictions: Predictions, limit: float, *, classes: bool
) -> DecisionPath:
    """The decisions of a method on N samples at every strength up to the limit, exactly.

    Args:
        swept: the method.
        predictions: of the unchanged head.
        limit: the largest strength.
        classes: whether the predicted classes are needed; finding the correct samples is cheaper.
    """
    logits, labels = predictions.logits, predictions.labels
    if not swept.straight:
        return by_curves(swept, logits, labels, limit)
    if classes or labels is None:
        return by_envelope(swept, logits, labels, limit)
    return by_intervals(swept, logits, labels, limit)


def by_intervals(
    swept: SweptMethod, logits: NDArray[Any], labels: Labels, limit: float
) -> DecisionPath:
    """Which of N samples are correct at every strength, from one pass over the logits (N, C)."""
    import torch

    from rescale_cli.strength_path import correct_intervals

    slopes, log = swept.lines()
    lo, hi = np.empty((2, len(logits)))

    def find(rows: slice) -> None:
        scores = torch.from_numpy(swept.scores(logits[rows]))
        truth = torch.from_numpy(labels[rows])
        both = correct_intervals(scores, truth, torch.from_numpy(slopes), log, ties="first")
        lo[rows], hi[rows] = torch.stack(both).numpy()

    _in_blocks(logits, find, _BLOCK)
    rises = np.flatnonzero((lo > 0) & (lo <= np.minimum(limit, hi)))
    falls = np.flatnonzero((hi >= np.maximum(lo, 0)) & (hi < limit))
    sample = np.concatenate([rises, falls])
    gamma = np.concatenate([lo[rises], np.nextafter(hi[falls], np.inf)])
    wrong = np.full(len(sample), -1)
    before, after = wrong.copy(), wrong.copy()
    after[: len(rises)], before[len(rises) :] = labels[rises], labels[falls]
    order = np.argsort(gamma, kind="stable")
    start = np.where((lo <= 0) & (hi >= 0), labels, -1)
    return DecisionPath(
        logits.shape[1], labels, limit, start,
        gamma[order], sample[order], before[order], after[order],
    )  # fmt: skip


def by_envelope(
    swept: SweptMethod,
    logits: NDArray[Any],
    labels: Labels | None,
    limit: float,
) -> DecisionPath:
    """The predicted classes of N samples at every strength; without labels, none is correct."""
    import torch

    from rescale_cli.strength_path import predicted_path

    slopes, log = swept.lines()

    def follow(rows: slice) -> PredictedPath:
        scores = torch.from_numpy(swept.scores(logits[rows]))
        return predicted_path(scores, torch.from_numpy(slopes), log, limit)

    steps = _steps(logits, follow, _BLOCK)
    return _of_steps(steps, labels, logits.shape[1], limit)


def by_curves(
    swept: SweptMethod,
    logits: NDArray[Any],
    labels: Labels | None,
    limit: float,
) -> DecisionPath:
    """The same for scores that are curves, such as those of a head that keeps its bias."""
    import torch

    from rescale_cli.sweeping.curved_path import curved_path

    curves, scores = swept.curves()

    def follow(rows: slice) -> PredictedPath:
        return curved_path(torch.from_numpy(scores(logits[rows])), curves, limit)

    steps = _steps(logits, follow, _CURVED_BLOCK)
    return _of_steps(steps, labels, logits.shape[1], limit)


def _steps(
    logits: NDArray[Any], follow: Callable[[slice], PredictedPath], block: int
) -> tuple[NDArray[Any], Float64, NDArray[Any]]:
    """Sample, gamma and label of all steps, found in blocks of rows."""
    import torch

    paths: dict[int, PredictedPath] = {}

    def find(rows: slice) -> None:
        path = follow(rows)
        paths[rows.start] = path._replace(sample=path.sample + rows.start)

    _in_blocks(logits, find, block)
    columns = zip(*(paths[first] for first in sorted(paths)), strict=True)
    sample, gamma, label = (torch.cat(column).numpy() for column in columns)
    return sample, gamma, label


def _of_steps(
    steps: tuple[NDArray[Any], Float64, NDArray[Any]],
    labels: Labels | None,
    num_classes: int,
    limit: float,
) -> DecisionPath:
    """The path from M steps, sample by sample: where each begins, and the class from there on."""
    sample, gamma, label = steps[0], steps[1], steps[2].astype(np.int64)
    first = np.concatenate([[True], sample[1:] != sample[:-1]])
    before = np.concatenate([[-1], label[:-1]])
    later = np.flatnonzero(~first)
    later = later[np.argsort(gamma[later], kind="stable")]
    truth = np.full(int(first.sum()), -2) if labels is None else labels
    return DecisionPath(
        num_classes, truth, limit, label[first],
        gamma[later], sample[later], before[later], label[later],
    )  # fmt: skip


def _in_blocks(logits: NDArray[Any], work: BlockWork, size: int) -> None:
    """Work on blocks of rows with `size` logits, so that memory does not grow with N."""
    in_blocks(len(logits), max(1, size // logits.shape[1]), lambda: work)
