"""The learning rate of each step: one pure function a schedule.

A schedule is a factor of the rate the user asked for. It reads the step and the recipe alone, so a
resumed run needs no state of it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rescale_cli.registry import Registry

if TYPE_CHECKING:
    from rescale_cli.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands."""

    epoch: float
    """Epochs done before this step: 1.5 is the middle of the second."""
    epochs: int
    """Epochs in all."""
    warmup: int
    """Epochs of warm-up, in front of and part of `epochs`."""


Schedule = Callable[[Moment, Sequence[int], float], float]

schedules: Registry[Schedule] = Registry("schedule")
schedule = schedules.register


@schedule("step", reference="Kim & Kim 2020, Section IV-A")
def step(moment: Moment, milestones: Sequence[int], lr_decay: float) -> float:
    """lr_decay^k, where k milestones are behind.

    Args:
        moment: where the run stands.
        milestones: epochs, ascending, counted from 0: 80 is the start of the 81st.
        lr_decay: the factor at each.

    Example:
        >>> [step(Moment(epoch, 180, 0), (80, 150), 0.1) for epoch in (0, 79.99, 80)]
        [1.0, 1.0, 0.1]
    """
    return math.prod([lr_decay] * bisect.bisect_right(milestones, moment.epoch), start=1.0)


@schedule("cosine", reference="Loshchilov & Hutter 2017, Eq. 5")
def cosine(moment: Moment, milestones: Sequence[int], lr_decay: float) -> float:
    """(1 + cos(pi t)) / 2, t from 0 at the end of the warm-up to 1 at the end of the run.

    Args:
        moment: where the run stands.
        milestones: not read.
        lr_decay: not read.

    Example:
        >>> [round(cosine(Moment(epoch, 12, 2), (), 1.0), 6) for epoch in (2, 7, 12)]
        [1.0, 0.5, 0.0]
    """
    length = max(moment.epochs - moment.warmup, 1)
    t = min(max((moment.epoch - moment.warmup) / length, 0.0), 1.0)
    return (1 + math.cos(math.pi * t)) / 2


def learning_rate(recipe: Recipe, at: int, steps: int) -> float:
    """The learning rate of step `at`, counted from 0 over the whole run.

    During the warm-up the rate climbs in a straight line and is whole at its last step: the factor
    is (at + 1) / (warmup_epochs * steps).

    Args:
        recipe: its lr, schedule, milestones, lr_decay, epochs and warmup_epochs are read.
        at: the step, from 0 on.
        steps: steps of one epoch.
    """
    moment = Moment(at / steps, recipe.epochs, recipe.warmup_epochs)
    factor = schedules[recipe.schedule](moment, recipe.milestones, recipe.lr_decay)
    warming = recipe.warmup_epochs * steps
    return recipe.lr * factor * (min((at + 1) / warming, 1.0) if warming else 1.0)
