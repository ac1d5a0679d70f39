"""Do the predictions have to do with the labels, and are the samples those of training?

Three ways of looking, because a low accuracy alone is no sign of that: a model that was trained on
long-tailed data and ignores its rare classes, an overconfident one and one of 1,000 classes are
what this tool is for.

- The share of the attainable accuracy above chance, (a - e) / (m - e): a is the accuracy, p and q
  are the shares of the classes among labels and predictions, e = sum p q is the accuracy if the two
  were independent, and m = sum min(p, q) the largest that these shares allow (Cohen's kappa over
  its maximum). A model that predicts only frequent classes, and rightly, is near 1.
- The same after each column of the logits is brought to mean 0 and standard deviation 1. No
  re-scaling of the head changes that, nor does any bias: it shows what the logits know, whatever
  class they prefer.
- The mean of the largest probability: the accuracy that the model claims.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.floats import Float64
from rescale_cli.core.predictions import Labels

#: Normal quantile of the bounds: 95 %, two-sided.
_Z = 1.96
#: Accuracy is at chance if it is above it by less than so many standard errors, or by less than
#: both this part of chance and this much.
_ERRORS, _PART, _MUCH = 3, 0.5, 0.05
#: Fewer samples prove nothing; and so much of what is above chance must be ruled out.
_LEAST, _POWER = 30, 0.15
#: Below this, the standardised logits know nothing; from the second on, they know a good deal.
_NOTHING, _MUCH_KNOWN = 0.2, 0.3
#: What the confidence claims above chance is not kept if less than this part of it is reached.
_KEPT = 0.25
#: How far the confidence must be above the accuracy; how near it confirms it.
_GAP, _CONFIRMED = 0.3, 0.2
#: An accuracy of more than so many times 1 / K is that of a model that works, however confident.
_LIFT = 10
#: A class may be predicted so much more often than it occurs, as the largest logit exaggerates;
#: and the share of predictions that may still be unexplained.
_EXAGGERATED, _UNEXPLAINED = 1.5, 0.1
#: Up to so many classes a model may well predict one alone, where nobody gave the counts.
_FEW_CLASSES = 5
#: Logits that are worked on at a time.
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the predictions of N samples say about the model that made them."""

    accuracy: float
    upper: float
    """The upper end of its 95 % interval (Wilson)."""
    chance: float
    """The accuracy if predictions and labels were independent."""
    confidence: float
    """The mean of the largest probability."""
    known: float
    """The larger share of the attainable accuracy above chance, as predicted or standardised."""
    constant: bool
    """Whether all samples are predicted as one class."""
    poor: str
    """Why the model does not seem to be run as it was trained: chance or confidence; empty where
    nothing speaks for that."""


def model_evidence(
    logits: NDArray[Any],
    labels: Labels,
    counts: ClassCounts | None = None,
    *,
    rescaled: bool = False,
) -> Evidence:
    """Look at the logits of a model on labelled samples.

    Args:
        logits: (N, C).
        labels: (N,), rows of the head.
        counts: of the training set, which explain what a model prefers to predict.
        rescaled: whether the head was re-scaled before, so that its preferences and confidences
            are no longer those of the training.

    Example:
        >>> labels = np.repeat(np.arange(4), 100)
        >>> random = np.random.default_rng(0).normal(size=(400, 4))
        >>> model_evidence(random, labels).poor
        'chance'
        >>> model_evidence(random + 2 * np.eye(4)[labels], labels).poor
        ''
    """
    n, c = logits.shape
    predicted = np.concatenate([logits[rows].argmax(axis=1) for rows in _blocks(logits)])
    raw = _Agreement.of(predicted, labels, c)
    upper, k = _wilson_upper(raw.accuracy, n), int(np.count_nonzero(raw.labelled))
    constant = bool((raw.predicted > 0).sum() == 1)
    chance = max(raw.chance, 1 / k)
    at_chance = raw.at_chance(n) and upper <= raw.chance + _POWER * (1 - raw.chance)
    # Of a subset of the classes, confidence and chance say little.
    doubtful = 2 * k >= c and not rescaled and raw.accuracy < min(_LIFT / k, 1 - _GAP)
    if k < 2 or n < _LEAST or not (at_chance or doubtful):
        return Evidence(raw.accuracy, upper, chance, np.nan, raw.share, constant, "")
    confidence, standard = _confidence(logits), _standardised(logits, labels)
    known = float(np.nanmax([raw.share, standard.share, 0.0]))
    confirmed = raw.accuracy > 1 / k + _Z * np.sqrt((1 - 1 / k) / k / n) and (
        confidence - raw.accuracy <= _CONFIRMED
    )
    poor = ""
    if at_chance and not standard.share >= _NOTHING and not confirmed:  # NaN: one class
        poor = "chance"
    elif doubtful and confidence - upper >= _GAP:
        kept = (upper - chance) / (confidence - chance) < _KEPT
        explained = standard.share >= _MUCH_KNOWN and _explained(raw, counts, k)
        poor = "confidence" if kept and not explained else ""
    return Evidence(raw.accuracy, upper, chance, confidence, known, constant, poor)


@dataclass(frozen=True, slots=True, eq=False)
class _Agreement:
    """How often labels and predictions agree, and how often they would by chance."""

    accuracy: float
    labelled: Float64
    """Shares of the classes among the labels, (C,)."""
    predicted: Float64
    """Among the predictions, (C,)."""

    @classmethod
    def of(cls, predicted: Labels, labels: Labels, classes: int) -> _Agreement:
        shares = (np.bincount(x, minlength=classes) / len(labels) for x in (labels, predicted))
        return cls(float((predicted == labels).mean()), *shares)

    @property
    def chance(self) -> float:
        return float(self.labelled @ self.predicted)

    @property
    def share(self) -> float:
        """Of the attainable accuracy above chance; NaN where only one class is predicted."""
        room = float(np.minimum(self.labelled, self.predicted).sum()) - self.chance
        return (self.accuracy - self.chance) / room if room > 1e-9 else np.nan

    def at_chance(self, samples: int) -> bool:
        """Whether the accuracy is that of chance, or so little above it that it does not matter."""
        e = self.chance
        error = _ERRORS * np.sqrt(e * (1 - e) / samples)
        return bool(self.accuracy - e <= max(error, min(_PART * e, _MUCH)))


def _blocks(logits: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _AT_ONCE // logits.shape[1])
    return (slice(first, first + step) for first in range(0, len(logits), step))


def _wilson_upper(share: float, samples: int) -> float:
    z = _Z * _Z / samples
    middle = share + z / 2
    return float((middle + np.sqrt(z * (share * (1 - share) + z / 4))) / (1 + z))


def _confidence(logits: NDArray[Any]) -> float:
    """The mean over samples of the largest softmax probability."""
    total = 0.0
    for rows in _blocks(logits):
        block = np.asarray(logits[rows], np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            below = np.exp(block - block.max(axis=1, keepdims=True))
        total += float((1 / np.nansum(below, axis=1)).sum())
    return total / len(logits)


def _standardised(logits: NDArray[Any], labels: Labels) -> _Agreement:
    """The agreement after each column has mean 0 and standard deviation 1."""
    n, c = logits.shape
    total, squares = np.zeros(c), np.zeros(c)
    shift = np.asarray(logits[0], np.float64)
    shift = np.where(np.isfinite(shift), shift, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in _blocks(logits):
            block = logits[rows] - shift
            total += block.sum(axis=0)
            squares += (block**2).sum(axis=0)
        mean = total / n
        std = np.sqrt(np.maximum(squares / n - mean**2, 0))
        std = np.where(std > 1e-12, std, np.inf)  # a column that never changes knows nothing
        predicted = [
            np.nan_to_num((logits[rows] - shift - mean) / std, nan=0.0).argmax(axis=1)
            for rows in _blocks(logits)
        ]
    return _Agreement.of(np.concatenate(predicted), labels, c)


def _explained(raw: _Agreement, counts: ClassCounts | None, classes: int) -> bool:
    """Whether no class is predicted more often than the training, or the data, account for."""
    if counts is None:
        return classes <= _FEW_CLASSES
    usual = _EXAGGERATED * counts.values / counts.values.sum()
    beyond = np.maximum(raw.predicted - np.maximum(usual, raw.labelled), 0).sum()
    return bool(beyond <= _UNEXPLAINED)


#: The code of the warning.
CODE = "training-set"


def trained_on(
    support: NDArray[np.int64], counts: ClassCounts | None, source: str, split: str | None
) -> str:
    """Why the model was probably trained on these samples; empty if there is no sign of that.

    Args:
        support: samples of each class, (C,).
        counts: of the training set, (C,); None: not known.
        source: the data, for the text.
        split: of the data; None: not known.

    Returns:
        A reason if the split is the training split, or if the class counts are exactly those of the
        training set: in the same order, or in another order, which also means that classes were
        matched wrongly. Equal counts of balanced data are a reason, too.

    Example:
        >>> counts = ClassCounts.of([50, 20, 5])
        >>> trained_on(np.array([50, 20, 5]), counts, "a.csv", None).partition(":")[0]
        '--counts are exactly those of a.csv'
        >>> trained_on(np.array([50, 20, 6]), counts, "a.csv", None)
        ''
    """
    if split == "train":
        return f"{source} is the training split, on which the model was probably trained"
    if counts is None or len(support) != len(counts.values):
        return ""
    if np.array_equal(support, counts.values):
        return (
            f"--counts are exactly those of {source}: either the model was trained on it, or the "
            "counts are not those of the training set"
        )
    if np.array_equal(np.sort(support), np.sort(counts.values)):
        return (
            f"--counts are those of {source} in another order: the classes of one of them are "
            "probably in the wrong order, and the model was probably trained on this data"
        )
    return ""
