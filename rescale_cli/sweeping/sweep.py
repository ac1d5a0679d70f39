"""Every strength of a method at once on one set of predictions, and an honest choice among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Float64, Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import Labels, Predictions
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.evaluating.checks import refuse_or_note
from rescale_cli.files.arrays import row_blocks
from rescale_cli.long_work import long_work
from rescale_cli.measures.model_evidence import model_evidence
from rescale_cli.measures.significance import drawn_again
from rescale_cli.sweeping.choose import (
    OF_PREDICTIONS,
    Choice,
    Objective,
    Selection,
    distance_to,
    first_within,
    halves,
    widest_plateau,
)
from rescale_cli.sweeping.curves import SweptMethod
from rescale_cli.sweeping.metric_path import DecisionPath, by_curves, by_envelope, by_intervals

_ERROR_REPLICATES = 100


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One method at its own strength."""

    method: SweptMethod
    choice: Choice
    """On the samples to choose on."""
    path: DecisionPath
    """Of all samples."""
    interval: tuple[float, float] | None
    """Of the strength: 95 % of the bootstrap's choices."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The samples to choose on, and those to report on."""

    chosen: NDArray[np.int64]
    reported: NDArray[np.int64]
    apart: bool
    """Whether they are different samples."""


def swept_methods(
    head: Head, counts: ClassCounts, methods: Sequence[Adjustment]
) -> list[SweptMethod]:
    """Each method with what it reads; those that do the same to this head only once."""
    kept: dict[tuple[str, bool, str], SweptMethod] = {}
    for adjustment in methods:
        policy = adjustment.bias_policy if head.bias is not None else "none"
        key = (adjustment.method, adjustment.normalize, policy)
        kept.setdefault(key, SweptMethod(adjustment, head, counts))
    return list(kept.values())


def parts_of(labels: Labels | None, samples: int, selection: Selection) -> Parts:
    """Divide the samples as `--holdout` says."""
    everything = np.arange(samples)
    if selection.holdout == 0 or labels is None:
        return Parts(everything, everything, False)
    chosen, reported = halves(labels, selection.holdout, selection.seed)
    if not len(chosen) or not len(reported):
        raise BadInput(
            "there are too few samples to choose on some and report on others",
            saw=f"{samples} samples", fix="give more data, or choose on all of them: --holdout 0",
        )  # fmt: skip
    return Parts(chosen, reported, True)


def decide(
    swept: SweptMethod,
    predictions: Predictions,
    parts: Parts,
    selection: Selection,
    objective: Objective,
    target: Float64,
    device: str = "cpu",
) -> Outcome:
    """Choose the strength of one method on the samples to choose on.

    Args:
        swept: the method.
        predictions: of all samples.
        parts: which of them to choose on.
        selection: how.
        objective: what is to be large.
        target: shares (C,) that predictions without labels should have.
        device: where the arithmetic is done.
    """
    swept.at(1.0)  # refuses what this head cannot take
    logits, labels = predictions.logits, predictions.labels
    right = right_as_it_is(predictions, parts.chosen) if selection.head_drop is not None else None
    with long_work(f"trying every strength of {swept.adjustment.method}"):
        if swept.slopes() is None:
            path = by_curves(swept, logits, labels, selection.limit, device)
        elif labels is None or selection.unlabeled or objective.metric in OF_PREDICTIONS:
            path = by_envelope(swept, logits, labels, selection.limit, device)
        else:
            path = by_intervals(swept, logits, labels, selection.limit, device)
    part = path.of(parts.chosen)
    error = 0.0
    if selection.rule == "one-se" and not selection.unlabeled:
        error = _standard_error(part, objective)
    choice = choose_strength(part, selection, objective, target, right, error=error)
    if selection.unlabeled or not selection.replicates or predictions.labels is None:
        return Outcome(swept, choice, path, None)
    found = [
        choose_strength(part, selection, objective, target, right, times, error).gamma
        for times in drawn_again(part.labels, selection.replicates, selection.seed)
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return Outcome(swept, choice, path, (float(low), float(high)))


def choose_strength(
    path: DecisionPath,
    selection: Selection,
    objective: Objective,
    target: Float64,
    right: NDArray[np.bool_] | None = None,
    times: Float64 | None = None,
    error: float = 0.0,
) -> Choice:
    """The strength by the rule of the user.

    Args:
        path: of N samples.
        selection: the rule.
        objective: what is to be large.
        target: shares (C,) that predictions without labels should have.
        right: (N,), whether the head as it is has each right: what max-head-drop is measured from.
        times: (N,), how often each counts, in a replicate of the bootstrap.
        error: the standard error for one-se.

    Raises:
        UsageError: no strength costs the frequent classes as little as that.
    """
    if selection.unlabeled:
        gammas, divergence = distance_to(path, target)
        return widest_plateau(gammas, -divergence, path.limit)
    gammas, values = objective.along(path, times)
    if selection.rule == "one-se":
        return first_within(gammas, values, path.limit, error)
    drop = selection.head_drop
    if drop is None or right is None:
        return widest_plateau(gammas, values, path.limit)
    left = _head_left(path, objective, right, times, gammas)
    allowed = left >= -drop - 1e-12
    if not allowed.any() and times is None:
        raise UsageError(
            f"no strength costs the frequent classes {drop:g} or less of their recall",
            saw=f"{-left.max():.4f} at the least, rows and bias treated as asked",
            fix="--choose max-head-drop=F with a larger F, or another --bias",
        )
    return widest_plateau(
        gammas, values if allowed.any() else left, path.limit, allowed | ~allowed.any()
    )


def _head_left(
    path: DecisionPath,
    objective: Objective,
    right: NDArray[np.bool_],
    times: Float64 | None,
    gammas: Float64,
) -> Float64:
    """The recall of the frequent classes at each strength (B,), less that of the head as it is."""
    many = replace(objective, metric="many")
    if not objective.groups["many"].any():
        raise UsageError(
            "no class counts as frequent, so there is no head whose loss could be bounded",
            fix="set the sizes of the groups: --groups 100,20, or --choose best",
        )
    weights = many.weights(path.labels, np.ones(len(right)) if times is None else times)
    assert weights is not None
    at, recall = many.along(path, times)
    left: Float64 = recall[np.searchsorted(at, gammas, side="right") - 1] - weights[right].sum()
    return left


def right_as_it_is(predictions: Predictions, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the head as it is has each of these samples right, (n,)."""
    assert predictions.labels is not None
    blocks = (predictions.logits[block] for block in row_blocks(predictions.logits))
    predicted = np.concatenate([block.argmax(axis=1) for block in blocks])
    right: NDArray[np.bool_] = predicted[rows] == predictions.labels[rows]
    return right


def _standard_error(path: DecisionPath, objective: Objective) -> float:
    """Of the metric at its best strength, over samples drawn again."""
    best = widest_plateau(*objective.along(path), path.limit).gamma
    values = []
    for times in drawn_again(path.labels, _ERROR_REPLICATES, 1):
        gammas, along = objective.along(path, times)
        values.append(along[np.searchsorted(gammas, best, side="right") - 1])
    return float(np.std(values))


#: The interval covers the whole range if at most this share of it is left over at either end.
_LEFT = 0.1
#: Predictions with this share of the attainable accuracy above chance are those of a sound model,
#: for which no strength is better than another.
_SOUND = 0.5


def refuse_undetermined(
    outcome: Outcome,
    predictions: Predictions,
    selection: Selection,
    notes: Callable[[str], None],
    *,
    accept: bool = False,
) -> None:
    """Stop if the interval of the strength is the whole range, and the model hardly works.

    Args:
        outcome: of the method.
        predictions: what it was chosen on.
        selection: how, with the limit of the range.
        notes: told of what was accepted.
        accept: go on all the same.

    Raises:
        PoorAccuracy: as a model does that is not run the way it was trained.
    """
    if outcome.interval is None or predictions.labels is None:
        return
    low, high = outcome.interval
    if low > _LEFT * selection.limit or high < (1 - _LEFT) * selection.limit:
        return
    if model_evidence(predictions.logits, predictions.labels).known < _SOUND:
        why = f"any strength from {low:.3g} to {high:.3g} may be the best, which is the whole range"
        refuse_or_note(why, predictions, notes, accept=accept)
