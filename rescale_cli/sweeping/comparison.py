"""The post-hoc methods beside one another, each at the strength chosen for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rescale_cli.core.binary import adjusting_line, refuse_rescaling
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import Labels
from rescale_cli.errors import BadHead, NeedsDecision
from rescale_cli.measures.significance import Interval, bootstrap_difference
from rescale_cli.sweeping.choose import Objective
from rescale_cli.sweeping.straight_lines import Family
from rescale_cli.sweeping.sweep import Outcome, decide, parts_of
from rescale_cli.sweeping.sweep_result import At, at_strength, objective_of
from rescale_cli.sweeping.trial import Trial
from rescale_cli.sweeping.verdict import Verdict, judge
from rescale_cli.sweeping.wanted import Wanted

#: What is compared, by the name that is shown.
METHODS_COMPARED: Mapping[str, Adjustment] = {
    "as it is": Adjustment(),
    "rescale": Adjustment(),
    "normalize + rescale": Adjustment(normalize=True),
    "tau-norm": Adjustment("tau-norm"),
    "logit-adjust": Adjustment("logit-adjust"),
}
_AS_IT_IS = "as it is"


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One method."""

    name: str
    adjustment: Adjustment
    outcome: Outcome | None
    """None for the head as it is."""
    at: At
    """On the samples to report on."""
    behind: Interval | None
    """The best one's metric less this one's, paired; None for the best, and without bootstrap."""
    verdict: Verdict
    """Compared with the head as it is, which itself has no gain."""

    @property
    def level(self) -> bool:
        """Whether it cannot be told apart from the best."""
        return self.behind is not None and self.behind.holds_zero


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All of them, the best first."""

    metric: str
    entries: tuple[Entry, ...]
    left_out: Mapping[str, str]
    """Methods that this head cannot take, and why."""
    chosen_on: int
    """Samples."""
    reported_on: int
    """Samples."""
    apart: bool


def compare_methods(
    trial: Trial, wanted: Wanted, bias: str = "", device: str = "cpu"
) -> Comparison:
    """Choose each method's strength on some samples, and compare them on the others.

    Args:
        trial: the model on N labelled samples.
        wanted: how to choose.
        bias: keep, scale or drop; each method's own default if empty.
        device: where the arithmetic is done.

    Raises:
        UsageError, BadInput: as `sweep`.
    """
    predictions, labels = trial.predictions, trial.predictions.labels
    assert labels is not None
    objective = objective_of(wanted, trial.counts)
    target = trial.counts.target
    target = np.ones(trial.head.num_classes) if target is None else target
    parts = parts_of(labels, len(labels), wanted)
    found: dict[str, tuple[Family, Outcome | None]] = {}
    left_out: dict[str, str] = {}
    for name, adjustment in METHODS_COMPARED.items():
        policy = bias if name != _AS_IT_IS and adjustment.method == "rescale" else ""
        family = Family(_with_bias(adjustment, policy), trial.head, trial.counts)
        if name == _AS_IT_IS:
            found[name] = family, None
            continue
        try:
            if trial.head.binary and adjustment.method != "logit-adjust":
                refuse_rescaling(adjustment.method, adjusting_line())
            trial.joint.refuse(family.adjustment)
            outcome = decide(
                family, predictions, parts, wanted, objective, target / target.sum(), device
            )
        except (BadHead, NeedsDecision) as error:
            left_out[name] = error.what
        else:
            found[name] = family, outcome
    ats = {
        name: at_strength(
            family, outcome.choice.gamma if outcome else 0.0, predictions, parts, objective, wanted
        )
        for name, (family, outcome) in found.items()
    }
    metric = objective.metric
    order = sorted(ats, key=lambda name: -(ats[name].metrics[metric] or 0.0))
    shown = labels[parts.reported]
    decided = {name: ats[name].predicted for name in order}
    entries = tuple(
        Entry(
            name, found[name][0].adjustment, found[name][1], ats[name],
            None if name == order[0] or not wanted.replicates
            else _behind(decided[order[0]], decided[name], shown, objective, wanted),
            judge(decided[_AS_IT_IS], decided[name], shown, objective,
                  independent=parts.apart, seed=wanted.seed),
        )
        for name in order
    )  # fmt: skip
    return Comparison(
        metric, entries, left_out, len(parts.chosen), len(parts.reported), parts.apart
    )


def _with_bias(adjustment: Adjustment, bias: str) -> Adjustment:
    return Adjustment(adjustment.method, 0.0, adjustment.normalize, bias)


def _behind(
    best: Labels, other: Labels, labels: Labels, objective: Objective, wanted: Wanted
) -> Interval | None:
    """How much better the best one is, on the same samples drawn again."""
    classes, shares = len(objective.groups["few"]), objective.shares
    found = bootstrap_difference(
        other, best, labels, classes, shares, replicates=wanted.replicates, seed=wanted.seed
    )
    return found.get(objective.metric)
