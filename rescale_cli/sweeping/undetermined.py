"""Stop where the samples say nothing about the strength: any of the range could be the best."""

from __future__ import annotations

from collections.abc import Callable

from rescale_cli.core.predictions import Predictions
from rescale_cli.evaluating.accuracy_check import refuse_or_note
from rescale_cli.measures.model_evidence import model_evidence
from rescale_cli.sweeping.sweep import Outcome
from rescale_cli.sweeping.wanted import Wanted

#: The interval covers the whole range if at most this share of it is left over at either end.
_LEFT = 0.1
#: Predictions with this share of the attainable accuracy above chance are those of a sound model,
#: for which no strength is better than another.
_SOUND = 0.5


def refuse_undetermined(
    outcome: Outcome,
    predictions: Predictions,
    wanted: Wanted,
    notes: Callable[[str], None],
    *,
    accept: bool = False,
) -> None:
    """Stop if the interval of the strength is the whole range, and the model hardly works.

    Args:
        outcome: of the method.
        predictions: what it was chosen on.
        wanted: how, with the limit of the range.
        notes: told of what was accepted.
        accept: go on all the same.

    Raises:
        PoorAccuracy: as a model does that is not run the way it was trained.
    """
    if outcome.interval is None or predictions.labels is None:
        return
    low, high = outcome.interval
    if low > _LEFT * wanted.limit or high < (1 - _LEFT) * wanted.limit:
        return
    if model_evidence(predictions.logits, predictions.labels).known < _SOUND:
        why = f"any strength from {low:.3g} to {high:.3g} may be the best, which is the whole range"
        refuse_or_note(why, predictions, notes, accept=accept)
