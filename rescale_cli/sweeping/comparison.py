"""The post-hoc methods beside one another, each at the strength chosen for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rescale_cli.core.binary import adjusting_line, refuse_rescaling
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import BadHead, NeedsDecision
from rescale_cli.sweeping.choose import Objective
from rescale_cli.sweeping.straight_lines import Family
from rescale_cli.sweeping.sweep import Outcome, Parts, decide, parts_of
from rescale_cli.sweeping.sweep_result import At, at_strength, objective_of
from rescale_cli.sweeping.trial import Trial
from rescale_cli.sweeping.verdict import Verdict, judge
from rescale_cli.sweeping.wanted import Wanted

#: The head without a change.
AS_IT_IS = "as it is"
#: What is compared, by the name that is shown.
METHODS_COMPARED: Mapping[str, Adjustment] = {
    AS_IT_IS: Adjustment(),
    "rescale": Adjustment(),
    "normalize + rescale": Adjustment(normalize=True),
    "tau-norm": Adjustment("tau-norm"),
    "logit-adjust": Adjustment("logit-adjust"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One method."""

    name: str
    adjustment: Adjustment
    outcome: Outcome | None
    """None for the head as it is."""
    at: At
    """On the samples to report on."""
    behind: Verdict | None
    """Whether the best method is better than this one, on the samples to report on; None for the
    best itself."""
    verdict: Verdict
    """Compared with the head as it is, which itself has no gain."""

    @property
    def level(self) -> bool:
        """Whether it cannot be distinguished from the best.

        The paired interval of the difference contains 0, or five samples account for it.
        """
        if self.behind is None or self.behind.gain is None:
            return False
        interval = self.behind.gain.interval
        return interval is None or interval[0] <= 0 or self.behind.why == "few-changes"

    @property
    def decided(self) -> Adjustment:
        """The method at its own strength."""
        strength = 0.0 if self.outcome is None else self.outcome.choice.gamma
        return replace(self.adjustment, strength=strength)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All of them, the best first."""

    metric: str
    entries: tuple[Entry, ...]
    """The head as it is among them."""
    left_out: Mapping[str, str]
    """Methods that this head cannot take, and why."""
    chosen_on: int
    """Samples."""
    reported_on: int
    """Samples."""
    apart: bool

    @property
    def best(self) -> Entry:
        """The method with the largest metric on the samples to report on."""
        return self.entries[0]

    @property
    def level(self) -> tuple[Entry, ...]:
        """The methods that cannot be distinguished from the best."""
        return tuple(entry for entry in self.entries if entry.level)

    def to_write(self, obstacles: Mapping[str, str]) -> Entry | None:
        """The best method that helps and can be written; None if there is no such method.

        Args:
            obstacles: why a method cannot be written, by its name; see `patching.obstacle`.
        """
        able = (e for e in self.entries if e.verdict.helps and not obstacles.get(e.name))
        return next(able, None)


def compare_methods(
    trial: Trial, wanted: Wanted, bias: str = "", device: str = "cpu"
) -> Comparison:
    """Choose each method's strength on some samples, and compare them on the others.

    The best method is compared with each of the others by the paired bootstrap of a verdict; these
    intervals do not include that the best was picked on the same samples, which favours it.

    Args:
        trial: the model on N labelled samples.
        wanted: how to choose.
        bias: keep, scale or drop; each method's own default if empty.
        device: where the arithmetic is done.

    Raises:
        UsageError, BadInput: as `sweep`.
    """
    labels = trial.predictions.labels
    assert labels is not None
    objective = objective_of(wanted, trial.counts)
    parts = parts_of(labels, len(labels), wanted)
    found, left_out = _choose_each(trial, wanted, objective, parts, bias, device)
    ats = {
        name: at_strength(
            family, outcome.choice.gamma if outcome else 0.0, trial.predictions, parts, objective,
            wanted,
        )
        for name, (family, outcome) in found.items()
    }  # fmt: skip
    order = sorted(ats, key=lambda name: -(ats[name].metrics[objective.metric] or 0.0))

    def against(before: str, after: str, *, independent: bool) -> Verdict:
        shown, seed = labels[parts.reported], wanted.seed
        one, two = ats[before].predicted, ats[after].predicted
        return judge(one, two, shown, objective, independent=independent, seed=seed)

    entries = tuple(
        Entry(
            name, found[name][0].adjustment, found[name][1], ats[name],
            None if name == order[0] else against(name, order[0], independent=True),
            against(AS_IT_IS, name, independent=parts.apart),
        )
        for name in order
    )  # fmt: skip
    samples = len(parts.chosen), len(parts.reported)
    return Comparison(objective.metric, entries, left_out, *samples, parts.apart)


def _choose_each(
    trial: Trial, wanted: Wanted, objective: Objective, parts: Parts, bias: str, device: str
) -> tuple[dict[str, tuple[Family, Outcome | None]], dict[str, str]]:
    """Each method at the strength chosen for it, and why the others are left out."""
    target = trial.counts.target
    target = np.ones(trial.head.num_classes) if target is None else target
    found: dict[str, tuple[Family, Outcome | None]] = {}
    left_out: dict[str, str] = {}
    for name, adjustment in METHODS_COMPARED.items():
        policy = bias if name != AS_IT_IS and adjustment.method == "rescale" else ""
        family = Family(_with_bias(adjustment, policy), trial.head, trial.counts)
        if name == AS_IT_IS:
            found[name] = family, None
            continue
        try:
            if trial.head.binary and adjustment.method != "logit-adjust":
                refuse_rescaling(adjustment.method, adjusting_line())
            trial.joint.refuse(family.adjustment)
            outcome = decide(
                family, trial.predictions, parts, wanted, objective, target / target.sum(), device
            )
        except (BadHead, NeedsDecision) as error:
            left_out[name] = error.what
        else:
            found[name] = family, outcome
    return found, left_out


def _with_bias(adjustment: Adjustment, bias: str) -> Adjustment:
    return Adjustment(adjustment.method, 0.0, adjustment.normalize, bias)
