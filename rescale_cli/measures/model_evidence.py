"""Detect that a model is not run as it was trained, or that it was trained on these samples.

Low accuracy alone does not show that a model is run wrongly: it is normal for models that ignore
rare classes, are overconfident or have 1,000 classes, and this tool is for such models. Therefore
three quantities are computed:

- Accuracy above chance as a fraction of what is attainable, (a - e) / (m - e). a is the accuracy;
  p and q are the class frequencies of labels and predictions; e = sum p q is the accuracy if the
  two were independent; m = sum min(p, q) is the largest accuracy with these frequencies (so this is
  Cohen's kappa over its maximum). It is near 1 for a model that predicts only frequent classes, and
  predicts them correctly.
- The same after standardizing each column of the logits to mean 0 and standard deviation 1. Neither
  a re-scaling of the head nor a bias changes it, so it does not depend on which classes the logits
  favour.
- The mean confidence, which is the accuracy that the model claims.
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
#: Accuracy is at chance if it exceeds chance by less than this many standard errors, or by less
#: than both this fraction of chance and this amount.
_ERRORS, _PART, _MUCH = 3, 0.5, 0.05
#: The fewest samples that are judged; and the fraction of the range above chance that the upper
#: bound of the accuracy may reach at chance.
_LEAST, _POWER = 30, 0.15
#: The standardized logits are uninformative below the first, and informative from the second on.
_NOTHING, _MUCH_KNOWN = 0.2, 0.3
#: The accuracy must reach this fraction of what the confidence claims above chance.
_KEPT = 0.25
#: A confidence this far above the accuracy is suspicious; one this near confirms the accuracy.
_GAP, _CONFIRMED = 0.3, 0.2
#: A model whose accuracy is more than this many times 1 / K works, however confident it is.
_LIFT = 10
#: A model may predict a class this many times as often as it occurs, since the argmax exaggerates
#: preferences; and this fraction of the predictions may exceed that.
_EXAGGERATED, _UNEXPLAINED = 1.5, 0.1
#: Without counts, a model of at most this many classes may well predict only one of them.
_FEW_CLASSES = 5
#: Logits per block.
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence from N labelled samples on whether the model is run as it was trained."""

    accuracy: float
    upper: float
    """The upper end of its 95 % interval (Wilson)."""
    chance: float
    """The accuracy if predictions and labels were independent."""
    confidence: float
    """The mean of the largest probability."""
    known: float
    """Accuracy above chance as a fraction of the attainable, of the logits as they are or
    standardized, whichever is larger."""
    constant: bool
    """Whether all samples are predicted as the same class."""
    poor: str
    """Why the model does not seem to be run as it was trained, `chance` or `confidence`; else
    empty."""


def model_evidence(
    logits: NDArray[Any],
    labels: Labels,
    counts: ClassCounts | None = None,
    *,
    rescaled: bool = False,
) -> Evidence:
    """Judge a model by its logits on labelled samples.

    Args:
        logits: (N, C).
        labels: (N,), rows of the head.
        counts: of the training set. They explain which classes a model favours.
        rescaled: whether the head was re-scaled before, which changes confidences and favoured
            classes.

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
    # On data with less than half of the classes, the confidence is no evidence.
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
    """The frequency of each class among the labels, (C,)."""
    predicted: Float64
    """The same among the predictions, (C,)."""

    @classmethod
    def of(cls, predicted: Labels, labels: Labels, classes: int) -> _Agreement:
        shares = (np.bincount(x, minlength=classes) / len(labels) for x in (labels, predicted))
        return cls(float((predicted == labels).mean()), *shares)

    @property
    def chance(self) -> float:
        return float(self.labelled @ self.predicted)

    @property
    def share(self) -> float:
        """Accuracy above chance as a fraction of the attainable; NaN if one class is predicted."""
        room = float(np.minimum(self.labelled, self.predicted).sum()) - self.chance
        return (self.accuracy - self.chance) / room if room > 1e-9 else np.nan

    def at_chance(self, samples: int) -> bool:
        """Whether the accuracy is not, or only negligibly, above chance."""
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
    """The mean of the largest softmax probability."""
    total = 0.0
    for rows in _blocks(logits):
        block = np.asarray(logits[rows], np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            below = np.exp(block - block.max(axis=1, keepdims=True))
        total += float((1 / np.nansum(below, axis=1)).sum())
    return total / len(logits)


def _standardised(logits: NDArray[Any], labels: Labels) -> _Agreement:
    """The agreement after standardizing each column of the logits."""
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
        std = np.where(std > 1e-12, std, np.inf)  # a constant column becomes 0
        predicted = [
            np.nan_to_num((logits[rows] - shift - mean) / std, nan=0.0).argmax(axis=1)
            for rows in _blocks(logits)
        ]
    return _Agreement.of(np.concatenate(predicted), labels, c)


def _explained(raw: _Agreement, counts: ClassCounts | None, classes: int) -> bool:
    """Whether the training counts, or the data, explain how often each class is predicted.

    Without training counts, any model of a few classes is explained.
    """
    if counts is None:
        return classes <= _FEW_CLASSES
    usual = _EXAGGERATED * counts.values / counts.values.sum()
    beyond = np.maximum(raw.predicted - np.maximum(usual, raw.labelled), 0).sum()
    return bool(beyond <= _UNEXPLAINED)


#: The code of the warning that the data are those of training.
CODE = "training-set"


def trained_on(
    support: NDArray[np.int64], counts: ClassCounts | None, source: str, split: str | None
) -> str:
    """Why the model was probably trained on these samples; empty if nothing suggests it.

    Args:
        support: samples of each class, (C,).
        counts: of the training set, (C,); None if unknown.
        source: the data, for the message.
        split: of the data; None if unknown.

    Returns:
        A reason if the split is the training split, or if the class counts equal those of the
        training set, in the same order or in another one. Equal counts in another order also mean
        that classes were matched wrongly. The counts of balanced data are compared, too.

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
            f"--counts are exactly those of {source}: either the model was trained on this data, "
            "or the counts are not those of the training set"
        )
    if np.array_equal(np.sort(support), np.sort(counts.values)):
        return (
            f"--counts are those of {source} in another order: the classes of one of them are "
            "probably in the wrong order, and the model was probably trained on this data"
        )
    return ""
