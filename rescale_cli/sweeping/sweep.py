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
from rescale_cli.measures.resampling import drawn_again
from rescale_cli.sweeping.choose import (
    Choice,
    Objective,
    choose,
    distance_to,
    first_within,
    halves,
)
from rescale_cli.sweeping.decision_path import (
    DecisionPath,
    by_envelope,
    by_grid,
    by_intervals,
    grid_predictions,
)
from rescale_cli.sweeping.straight_lines import Family

#: Points of the grid where a method is no straight line, and of a finer one around its best.
GRID, FINE = 81, 41
_ERROR_REPLICATES = 100


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to choose."""

    metric: str = "balanced-accuracy"
    rule: str = "best"
    """best, one-se, or max-head-drop=F."""
    holdout: float = 0.5
    """The share of the samples to report on; 0 chooses and reports on all of them."""
    replicates: int = 200
    """Of the bootstrap; 0 gives no intervals."""
    unlabeled: bool = False
    """By the histogram of predicted classes, without labels."""
    limit: float = 2.0
    """The largest strength."""
    seed: int = 0
    sizes: tuple[int, int] = (100, 20)
    """Many are the classes with more training samples than the first, few those with fewer than the
    second."""

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise UsageError(
                "--holdout is a share of the samples, at least 0 and below 1",
                saw=f"{self.holdout}", fix="--holdout 0.5",
            )  # fmt: skip
        if not 0 < self.limit <= 4:
            raise UsageError(
                "--gamma-max lies above 0, and is at most 4",
                saw=f"{self.limit}", fix="--gamma-max 2",
            )  # fmt: skip
        self.head_drop  # noqa: B018  (says what is wrong with the rule)

    @property
    def head_drop(self) -> float | None:
        """F of max-head-drop=F, else None."""
        name, _, text = self.rule.partition("=")
        try:
            drop = float(text) if name == "max-head-drop" else None
        except ValueError:
            drop = -1.0
        if (drop is None and self.rule not in ("best", "one-se")) or not 0 <= (drop or 0) <= 1:
            raise UsageError(
                "--choose is best, one-se or max-head-drop=F, F a share from 0 to 1",
                saw=self.rule, fix="--choose max-head-drop=0.02",
            )  # fmt: skip
        return drop


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One method at its own strength."""

    family: Family
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


def families(head: Head, counts: ClassCounts, methods: Sequence[Adjustment]) -> list[Family]:
    """Each method with what it reads; those that do the same to this head only once."""
    kept: dict[tuple[str, bool, str], Family] = {}
    for adjustment in methods:
        policy = adjustment.bias_policy if head.bias is not None else "none"
        key = (adjustment.method, adjustment.normalize, policy)
        kept.setdefault(key, Family(adjustment, head, counts))
    return list(kept.values())


def parts_of(labels: Labels | None, samples: int, wanted: Wanted) -> Parts:
    """Divide the samples as `--holdout` says."""
    everything = np.arange(samples)
    if wanted.holdout == 0 or labels is None:
        return Parts(everything, everything, False)
    chosen, reported = halves(labels, wanted.holdout, wanted.seed)
    if not len(chosen) or not len(reported):
        raise BadInput(
            "there are too few samples to choose on some and report on others",
            saw=f"{samples} samples", fix="give more data, or choose on all of them: --holdout 0",
        )  # fmt: skip
    return Parts(chosen, reported, True)


def decide(
    family: Family,
    predictions: Predictions,
    parts: Parts,
    wanted: Wanted,
    objective: Objective,
    target: Float64,
    device: str = "cpu",
) -> Outcome:
    """Choose the strength of one method on the samples to choose on.

    Args:
        family: the method.
        predictions: of all samples.
        parts: which of them to choose on.
        wanted: how.
        objective: what is to be large.
        target: shares (C,) that predictions without labels should have.
        device: where the arithmetic is done.
    """
    logits, labels = predictions.logits, predictions.labels
    if family.slopes() is None:
        path = _on_grid(
            family, predictions, wanted,
            lambda coarse: pick(coarse.of(parts.chosen), wanted, objective, target).gamma,
        )  # fmt: skip
    elif labels is None or wanted.unlabeled or objective.metric == "macro_f1":
        path = by_envelope(family, logits, labels, wanted.limit, device)
    else:
        path = by_intervals(family, logits, labels, wanted.limit, device)
    part = path.of(parts.chosen)
    error = 0.0
    if wanted.rule == "one-se" and not wanted.unlabeled:
        error = _standard_error(part, objective)
    choice = pick(part, wanted, objective, target, error=error)
    if wanted.unlabeled or not wanted.replicates or predictions.labels is None:
        return Outcome(family, choice, path, None)
    found = [
        pick(part, wanted, objective, target, times, error).gamma
        for times in drawn_again(part.labels, wanted.replicates, wanted.seed)
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return Outcome(family, choice, path, (float(low), float(high)))


def _on_grid(
    family: Family,
    predictions: Predictions,
    wanted: Wanted,
    best: Callable[[DecisionPath], float],
) -> DecisionPath:
    """The path of a method that is no straight line: on a grid, finer around its best strength."""
    logits, labels = predictions.logits, predictions.labels
    classes = predictions.num_classes
    coarse = np.linspace(0, wanted.limit, GRID)
    found = grid_predictions(family, logits, coarse)
    gamma = best(by_grid(found, labels, coarse, classes))
    step = wanted.limit / (GRID - 1)
    fine = np.linspace(max(0.0, gamma - step), min(wanted.limit, gamma + step), FINE)
    found = np.concatenate([found, grid_predictions(family, logits, fine)])
    gammas, first = np.unique(np.concatenate([coarse, fine]), return_index=True)
    return by_grid(found[first], labels, gammas, classes)


def pick(
    path: DecisionPath,
    wanted: Wanted,
    objective: Objective,
    target: Float64,
    times: Float64 | None = None,
    error: float = 0.0,
) -> Choice:
    """The strength by the rule of the user; `error` is the standard error for one-se."""
    if wanted.unlabeled:
        gammas, divergence = distance_to(path, target)
        return choose(gammas, -divergence, path.limit)
    gammas, values = objective.along(path, times)
    if wanted.rule == "one-se":
        return first_within(gammas, values, path.limit, error)
    drop = wanted.head_drop
    if drop is None:
        return choose(gammas, values, path.limit)
    _refuse_no_head(objective)
    at, recall = replace(objective, metric="many").along(path, times)
    reached = recall[np.searchsorted(at, gammas, side="right") - 1]
    return choose(gammas, values, path.limit, reached >= recall[0] - drop - 1e-12)


def _refuse_no_head(objective: Objective) -> None:
    if not objective.groups["many"].any():
        raise UsageError(
            "no class counts as frequent, so there is no head whose loss could be bounded",
            fix="set the sizes of the groups: --groups 100,20, or --choose best",
        )


def _standard_error(path: DecisionPath, objective: Objective) -> float:
    """Of the metric at its best strength, over samples drawn again."""
    best = choose(*objective.along(path), path.limit).gamma
    values = []
    for times in drawn_again(path.labels, _ERROR_REPLICATES, 1):
        gammas, along = objective.along(path, times)
        values.append(along[np.searchsorted(gammas, best, side="right") - 1])
    return float(np.std(values))
