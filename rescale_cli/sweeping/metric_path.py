"""Which samples are right at every strength, as events; and every metric along the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.head import Float64
from rescale_cli.core.predictions import Labels
from rescale_cli.measures.metrics import Tallies
from rescale_cli.strength_path import BlockWork, in_blocks
from rescale_cli.sweeping.curves import SweptMethod

if TYPE_CHECKING:
    from rescale_cli.strength_path import PredictedPath


#: Logits held at once in float64, by a thread on the CPU, and for another device.
_BLOCK, _LARGE_BLOCK = 1 << 19, 1 << 22
#: The same for curves, whose undecided cells are settled together.
_CURVED_BLOCK = 1 << 21


@dataclass(frozen=True, slots=True, eq=False)
class DecisionPath:
    """The decisions on N samples for gamma from 0 to a limit: those at 0, and E changes."""

    num_classes: int
    """C."""
    labels: Labels
    """(N,)."""
    limit: float
    """The largest gamma."""
    start: NDArray[np.int64]
    """(N,), predicted at gamma = 0; -1 stands for some wrong class."""
    gamma: Float64
    """(E,), ascending, above 0."""
    sample: NDArray[np.int64]
    """(E,), whose decision changes there."""
    before: NDArray[np.int64]
    """(E,), the class that it was; -1 stands for some wrong class."""
    after: NDArray[np.int64]
    """(E,), the class that it becomes."""

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
        """(E,): 1 where the sample becomes right, -1 where it becomes wrong, else 0."""
        truth = self.labels[self.sample]
        change: NDArray[np.int64] = (self.after == truth).astype(np.int64) - (self.before == truth)
        return change

    @property
    def never_right(self) -> float:
        """The share of the samples that no gamma makes right, up to the limit."""
        right = (self.start == self.labels).astype(np.float64)
        right[self.sample[self.change > 0]] = 1
        return float(1 - right.mean())

    @property
    def knows_predictions(self) -> bool:
        """Whether the wrong classes are known, too, and not only who is right."""
        return bool((self.start >= 0).all() and (self.after >= 0).all())

    def predicted(self, gamma: float) -> NDArray[np.int64]:
        """The predicted class of each sample, (N,), at that strength."""
        now = self.start.copy()
        upto = int(np.searchsorted(self.gamma, gamma, side="right"))
        now[self.sample[:upto]] = self.after[:upto]  # the last of several wins
        return now

    def tallies(self, gammas: Float64, weights: Float64 | None = None) -> Tallies:
        """Hits, support and predictions (G, C) at ascending strengths (G,), as floats.

        Where only who is right is known, the hits stand for the predictions.

        Args:
            gammas: (G,), ascending, from 0 to the limit.
            weights: (N,), how often each sample counts: once if None.
        """
        weights = np.ones(len(self.labels)) if weights is None else weights
        weight, truth = weights[self.sample], self.labels[self.sample]
        slots = np.searchsorted(gammas, self.gamma, side="left")  # the first that feels the change
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
        """Samples predicted as each class, (G, C), at ascending strengths (G,)."""
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


def by_intervals(
    swept: SweptMethod, logits: NDArray[Any], labels: Labels, limit: float, device: str = "cpu"
) -> DecisionPath:
    """The path of rightness of N samples, exact, from one pass over the logits (N, C)."""
    import torch

    from rescale_cli.strength_path import correct_intervals

    slopes, log = _lines(swept)
    lo, hi = np.empty((2, len(logits)))

    def find(rows: slice) -> None:
        scores = torch.from_numpy(swept.scores(logits[rows])).to(device)
        truth = torch.from_numpy(labels[rows])
        both = correct_intervals(scores, truth, torch.from_numpy(slopes), log, ties="first")
        lo[rows], hi[rows] = torch.stack(both).cpu().numpy()

    _in_blocks(logits, find, device)
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
    device: str = "cpu",
) -> DecisionPath:
    """The path of the predicted classes of N samples, exact. Without labels none is right."""
    import torch

    from rescale_cli.strength_path import predicted_path

    slopes, log = _lines(swept)

    def follow(rows: slice) -> PredictedPath:
        scores = torch.from_numpy(swept.scores(logits[rows])).to(device)
        return predicted_path(scores, torch.from_numpy(slopes), log, limit)

    steps = _steps(logits, follow, device, _BLOCK)
    return _of_steps(steps, labels, logits.shape[1], limit)


def by_curves(
    swept: SweptMethod,
    logits: NDArray[Any],
    labels: Labels | None,
    limit: float,
    device: str = "cpu",
) -> DecisionPath:
    """The same for a swept of curves, such as one that keeps a bias."""
    import torch

    from rescale_cli.sweeping.curved_path import curved_path

    curves, scores = swept.curves()

    def follow(rows: slice) -> PredictedPath:
        return curved_path(torch.from_numpy(scores(logits[rows])).to(device), curves, limit)

    steps = _steps(logits, follow, device, _CURVED_BLOCK)
    return _of_steps(steps, labels, logits.shape[1], limit)


def _steps(
    logits: NDArray[Any], follow: Callable[[slice], PredictedPath], device: str, block: int
) -> tuple[NDArray[Any], Float64, NDArray[Any]]:
    """Sample, gamma and label of all steps, found some rows at a time."""
    import torch

    paths: dict[int, PredictedPath] = {}

    def find(rows: slice) -> None:
        path = follow(rows)
        paths[rows.start] = path._replace(sample=path.sample + rows.start)

    _in_blocks(logits, find, device, block)
    columns = zip(*(paths[first] for first in sorted(paths)), strict=True)
    sample, gamma, label = (torch.cat(column).cpu().numpy() for column in columns)
    return sample, gamma, label


def _of_steps(
    steps: tuple[NDArray[Any], Float64, NDArray[Any]],
    labels: Labels | None,
    num_classes: int,
    limit: float,
) -> DecisionPath:
    """The path from steps (M,), sample by sample: where each begins, and what is predicted then."""
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


def _lines(swept: SweptMethod) -> tuple[Float64, bool]:
    lines = swept.slopes()
    if lines is None:
        raise ValueError("the scores are no straight lines")
    return lines


def _in_blocks(logits: NDArray[Any], work: BlockWork, device: str, block: int = _BLOCK) -> None:
    """Some rows at a time, so that memory does not grow with N."""
    on_cpu = device == "cpu"
    step = max(1, (block if on_cpu else _LARGE_BLOCK) // logits.shape[1])
    in_blocks(len(logits), step, lambda: work, on_cpu=on_cpu)
