"""The learning rate of each step: our own functions, because they keep no state.

torch's schedulers hold their position and compute some rates from the one before. A function of
the recipe and the step gives a resumed run the very rates of an unbroken one, also if --epochs or
--milestones were changed. The tests compare it with torch's.

To add a schedule, write one function here under `@schedule("name", reference=...)`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from rescale_cli.registry import Registry

if TYPE_CHECKING:
    from rescale_cli.training.recipe import Recipe

#: From the recipe and the epochs done (1.5 is the middle of the second) to a factor of `lr`.
Schedule = Callable[["Recipe", float], float]

schedules: Registry[Schedule] = Registry("schedule")
schedule = schedules.register


@schedule("step", reference="Kim & Kim 2020, Section IV-A")
def step(recipe: Recipe, epoch: float) -> float:
    """lr_decay^k after k milestones; milestone 80 is the start of the 81st epoch."""
    passed = bisect.bisect_right(recipe.milestones, epoch)
    return math.prod([recipe.lr_decay] * passed, start=1.0)


@schedule("cosine", reference="Loshchilov & Hutter 2017, Eq. 5")
def cosine(recipe: Recipe, epoch: float) -> float:
    """(1 + cos(pi t)) / 2, with t from 0 at the end of the warm-up to 1 at the end of the run."""
    length = max(recipe.epochs - recipe.warmup_epochs, 1)
    t = min(max((epoch - recipe.warmup_epochs) / length, 0.0), 1.0)
    return (1 + math.cos(math.pi * t)) / 2


def learning_rate(recipe: Recipe, at: int, steps: int) -> float:
    """The learning rate of step `at`, counted from 0 over the whole run.

    During the warm-up the rate rises linearly, by the factor (at + 1) / (warmup_epochs * steps).

    Args:
        recipe: its lr, schedule, milestones, lr_decay, epochs and warmup_epochs are read.
        at: the step, at least 0.
        steps: steps of one epoch.

    Example:
        >>> from rescale_cli.training.recipe import Recipe
        >>> [learning_rate(Recipe(), at, steps=10) for at in (0, 799, 800)]
        [0.1, 0.1, 0.010000000000000002]
        >>> cosine = Recipe(schedule="cosine", epochs=12, warmup_epochs=2)
        >>> [round(learning_rate(cosine, epoch, steps=1), 6) for epoch in (0, 2, 7, 12)]
        [0.05, 0.1, 0.05, 0.0]
    """
    factor = schedules[recipe.schedule](recipe, at / steps)
    warming = recipe.warmup_epochs * steps
    return recipe.lr * factor * (min((at + 1) / warming, 1.0) if warming else 1.0)
