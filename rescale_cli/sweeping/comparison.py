"""Compare the post-hoc methods, each at the strength chosen for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rescale_cli.core.head import adjusting_line, refuse_rescaling
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import BadHead, NeedsDecision
from rescale_cli.sweeping.decisions import SweptMethod
from rescale_cli.sweeping.selection import Objective, Selection
from rescale_cli.sweeping.sweep import (
    At,
    Outcome,
    Parts,
    at_strength,
    decide,
    objective_of,
    parts_of,
)
from rescale_cli.sweeping.sweep_input import SweepInput
from rescale_cli.sweeping.verdict import Verdict, reach_verdict

#: The unchanged head.
AS_IT_IS = "as it is"
#: The methods to compare, by the name that is shown.
METHODS_COMPARED: Mapping[str, Adjustment] = {
    AS_IT_IS: Adjustment(),
    "rescale": Adjustment(),
    "normalize + rescale": Adjustment(normalize=True),
    "tau-norm": Adjustment("tau-norm"),
    "logit-adjust": Adjustment("logit-adjust"),
}


@dataclass(frozen=True, slots=True, eq=False)
class RankedMethod:
    """One method of the ranking, with its results."""

    name: str
    adjustment: Adjustment
    outcome: Outcome | None
    """None for the unchanged head."""
    at: At
    """Metrics on the held-out samples."""
    behind: Verdict | None
    """Whether the best method beats this one on the held-out samples; None for the best itself."""
    verdict: Verdict
    """Comparison with the unchanged head."""

    @property
    def level(self) -> bool:
        """Whether the method is tied with the best.

        That is, the paired confidence interval of the difference contains 0, or reverting at most
        five samples removes the difference.
        """
        if self.behind is None or self.behind.gain is None:
            return False
        interval = self.behind.gain.interval
        return interval is None or interval[0] <= 0 or self.behind.why == "few-changes"

    @property
    def decided(self) -> Adjustment:
        """The method at its chosen strength."""
        strength = 0.0 if self.outcome is None else self.outcome.choice.gamma
        return replace(self.adjustment, strength=strength)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The ranking of all methods."""

    metric: str
    entries: tuple[RankedMethod, ...]
    """The best first. The unchanged head is one of them."""
    left_out: Mapping[str, str]
    """Methods that cannot be applied to this head, each with the reason."""
    chosen_on: int
    """Number of samples that the strengths were chosen on."""
    reported_on: int
    """Number of samples that the metrics are reported on."""
    apart: bool
    """Whether these are different samples."""

    @property
    def best(self) -> RankedMethod:
        """The method with the largest metric on the held-out samples."""
        return self.entries[0]

    @property
    def level(self) -> tuple[RankedMethod, ...]:
        """The methods that are tied with the best."""
        return tuple(entry for entry in self.entries if entry.level)

    def to_write(self, obstacles: Mapping[str, str]) -> RankedMethod | None:
        """The best method that helps and can be written; None if there is no such method.

        Args:
            obstacles: by a method's name, why it cannot be written; see `plan.obstacle`.
        """
        able = (e for e in self.entries if e.verdict.helps and not obstacles.get(e.name))
        return next(able, None)


def compare_methods(given: SweepInput, selection: Selection, bias: str = "") -> Comparison:
    """Choose each method's strength on some samples, and compare the methods on the others.

    The best method is compared with each of the others by the paired bootstrap of a verdict. The
    best is picked on the same samples, which the intervals do not account for.

    Args:
        given: the model on N labelled samples.
        selection: how to choose.
        bias: keep, scale or drop; empty for each method's default.

    Raises:
        UsageError, BadInput: as `sweep`.
    """
    labels = given.predictions.labels
    assert labels is not None
    objective = objective_of(selection, given.counts)
    parts = parts_of(labels, len(labels), selection)
    found, left_out = _choose_each(given, selection, objective, parts, bias)
    ats = {
        name: at_strength(
            swept, outcome.choice.gamma if outcome else 0.0, given.predictions, parts, objective,
            selection,
        )
        for name, (swept, outcome) in found.items()
    }  # fmt: skip
    order = sorted(ats, key=lambda name: -(ats[name].metrics[objective.metric] or 0.0))

    def against(before: str, after: str, *, independent: bool) -> Verdict:
        shown, seed = labels[parts.reported], selection.seed
        one, two = ats[before].predicted, ats[after].predicted
        return reach_verdict(one, two, shown, objective, independent=independent, seed=seed)

    entries = tuple(
        RankedMethod(
            name, found[name][0].adjustment, found[name][1], ats[name],
            None if name == order[0] else against(name, order[0], independent=True),
            against(AS_IT_IS, name, independent=parts.apart),
        )
        for name in order
    )  # fmt: skip
    samples = len(parts.chosen), len(parts.reported)
    return Comparison(objective.metric, entries, left_out, *samples, parts.apart)


def _choose_each(
    given: SweepInput,
    selection: Selection,
    objective: Objective,
    parts: Parts,
    bias: str,
) -> tuple[dict[str, tuple[SweptMethod, Outcome | None]], dict[str, str]]:
    """Each method at the strength chosen for it, and the reasons why others are left out."""
    found: dict[str, tuple[SweptMethod, Outcome | None]] = {}
    left_out: dict[str, str] = {}
    for name, adjustment in METHODS_COMPARED.items():
        policy = bias if name != AS_IT_IS and adjustment.method == "rescale" else ""
        swept = SweptMethod(_with_bias(adjustment, policy), given.head, given.counts)
        if name == AS_IT_IS:
            found[name] = swept, None
            continue
        try:
            if given.head.binary and adjustment.method != "logit-adjust":
                refuse_rescaling(adjustment.method, adjusting_line())
            given.joint.refuse(swept.adjustment)
            outcome = decide(swept, given.predictions, parts, selection, objective)
        except (BadHead, NeedsDecision) as error:
            left_out[name] = error.what
        else:
            found[name] = swept, outcome
    return found, left_out


def _with_bias(adjustment: Adjustment, bias: str) -> Adjustment:
    return Adjustment(adjustment.method, 0.0, adjustment.normalize, bias)
