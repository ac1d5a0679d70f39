"""The verdict on a strength, in sentences and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rescale_cli.core.floats import Float64
from rescale_cli.core.methods import Adjustment
from rescale_cli.json_text import percent
from rescale_cli.sweeping.sweep import Sweep
from rescale_cli.sweeping.sweep_input import SweepInput
from rescale_cli.sweeping.verdict import FEW, NEGLIGIBLE, Reason, Verdict

_NAMES = {
    "few": "the mean recall of the rare classes",
    "worst_recall": "the smallest recall",
    "gmean_multiclass": "the geometric mean of the recalls",
    "macro_f1": "macro F1",
    "target_accuracy": "the accuracy expected under the target prior",
}
_METHODS = {"tau-norm": "tau-normalization", "logit-adjust": "logit adjustment"}
_ADVICE: Mapping[Reason, str] = {
    "same-decisions": "Keep the head as it is.",
    "negligible": f"A change of up to {100 * NEGLIGIBLE:g} points is no gain: keep the head as it "
    "is.",
    "no-value": "To settle the question, give samples of the classes that the metric is about.",
    "no-labels": "To settle the question, label some of the samples.",
    "same-samples": "Such a gain is optimistic; to settle the question, report on other samples: "
    "--holdout 0.5.",
    "one-class": "All these samples are of one class, so what other classes lose cannot be seen; "
    "to settle the question, give samples of every class.",
}
#: Classes that the second sentence names.
_NAMED = 3


def verdict_result(verdict: Verdict, text: str, names: Sequence[str] | None) -> dict[str, Any]:
    """The fields `verdict`, `gain` and `explanation` of the JSON."""
    gain = verdict.gain
    return {
        "verdict": verdict.kind,
        "gain": None if gain is None else {
            "metric": gain.metric,
            "before": gain.before,
            "after": gain.after,
            "difference": gain.difference,
            "interval": None if gain.interval is None else list(gain.interval),
            "p": gain.p,
        },
        "explanation": {
            "why": verdict.why,
            "text": text,
            "samples_needed": verdict.needed,
            "losing_classes": [_name(row, names) for row in verdict.losers],
        },
    }  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What a verdict is about."""

    adjustment: Adjustment
    """Its method is what helps or harms."""
    unit: str
    """samples or images."""
    chosen_on: Literal["others", "unlabeled", "same"]
    """How the samples to report on relate to those that the strength was chosen on."""
    total: int
    """Samples in all: to choose on and to report on."""
    names: Sequence[str] | None
    """Of the C classes."""
    recall: tuple[Float64, Float64] | None
    """(C,) before and after; None without labels."""


def sweep_text(given: SweepInput, found: Sweep) -> str:
    """The verdict of a sweep in sentences."""
    at = found.at
    return verdict_text(
        found.verdict,
        Scene(
            found.best.method.adjustment,
            unit_of(given),
            "others" if found.parts.apart else "unlabeled" if found.selection.unlabeled else "same",
            len(given.predictions.logits),
            given.counts.names,
            (at["0"].recall, at["chosen"].recall) if at else None,
        ),
    )


def unit_of(given: SweepInput) -> str:
    """What the samples are: images where a model was run on them, anything where logits are given.

    The measure of speed exists only in the first case.
    """
    return "samples" if given.predictions.images_per_second is None else "images"


def verdict_text(verdict: Verdict, scene: Scene) -> str:
    """What was found, who loses, and what would settle an open question."""
    sentences = (_finding(verdict, scene), _losses(verdict, scene), _advice(verdict, scene))
    return " ".join(sentence for sentence in sentences if sentence)


def _finding(verdict: Verdict, scene: Scene) -> str:
    """The first sentence: where, what, how sure, and the verdict."""
    method = _METHODS.get(scene.adjustment.method, "re-scaling")
    ends = {"helps": f"{method} helps", "harms": f"{method} harms", "no-gain": "no gain"}
    end = ends.get(verdict.kind, "undecided")
    if verdict.gain is None:
        what = "no gain can be measured"
        if verdict.kind == "no-gain":
            what = "the best strength is 0, which changes nothing"
        return f"Without labels, {what}: {end}."
    where = {
        "others": " that were not used to choose γ",
        "unlabeled": " whose labels were not used to choose γ",
        "same": ", the same ones that γ was chosen on",
    }[scene.chosen_on]
    return f"On {verdict.samples:,} {scene.unit}{where}, {_change(verdict)}: {end}."


def _change(verdict: Verdict) -> str:
    """What becomes of the metric."""
    gain = verdict.gain
    assert gain is not None
    name = _NAMES.get(gain.metric, gain.metric.replace("_", " "))
    if gain.before is None or gain.after is None or gain.difference is None:
        return f"{name} has no value"
    if verdict.why == "same-decisions":
        return f"{name} stays at {percent(gain.before)}, because no decision changes"
    verb = "stays at" if gain.difference == 0 else "rises" if gain.difference > 0 else "falls"
    values = f"from {percent(gain.before)} to {percent(gain.after)}"
    values = percent(gain.before) if gain.difference == 0 else values
    return f"{name} {verb} {values} ({change_in_points(gain.difference, gain.interval)})"


def change_in_points(change: float, interval: tuple[float, float] | None) -> str:
    """A difference of two shares and its interval, in percentage points.

    Example:
        >>> change_in_points(0.003, (-0.002, 0.008))
        '+0.3 points, 95 % interval -0.2 to +0.8'
    """
    difference = f"{_points(change)} points"
    if interval is None:
        return f"{difference}, no interval"
    low, high = map(_points, interval)
    return f"{difference}, 95 % interval {low} to {high}"


def _points(share: float) -> str:
    """Signed, with as many digits as tell it from 0.

    Example:
        >>> _points(0.029), _points(0.0), _points(-0.0003)
        ('+2.9', '0.0', '-0.03')
    """
    if share == 0:
        return "0.0"
    digits = next((n for n in (1, 2, 3) if round(abs(100 * share), n) > 0), 4)
    return f"{100 * share:+.{digits}f}"


def _losses(verdict: Verdict, scene: Scene) -> str:
    """The second sentence, where some classes lose much while the metric gains little."""
    if not verdict.losers or scene.recall is None:
        return ""
    before, after = scene.recall
    shown = [
        f"{_name(row, scene.names)} falls from {percent(before[row])} to {percent(after[row])}"
        f"{_class_change(verdict, row)}"
        for row in verdict.losers[:_NAMED]
    ]
    number = len(verdict.losers)
    more = f", and {number - _NAMED} more" if number > _NAMED else ""
    classes = "1 class loses" if number == 1 else f"{number} classes lose"
    gains = verdict.gain is not None and (verdict.gain.difference or 0) > 0
    beside = "little" if gains else "nothing"
    return f"But {classes} much recall while the metric gains {beside}: {', '.join(shown)}{more}."


def _class_change(verdict: Verdict, row: int) -> str:
    """The change of one class and its interval, in brackets."""
    changes = verdict.changes
    interval = None if changes is None else changes.of_class(row)
    if changes is None or interval is None:
        return ""
    return f" ({change_in_points(float(changes.difference[row]), interval)})"


def _advice(verdict: Verdict, scene: Scene) -> str:
    """The reason of a verdict that is not `helps`, and what would settle the question."""
    if verdict.helps:
        return ""
    if verdict.kind == "harms":
        return "Keep the head as it is."
    if verdict.why in _ADVICE:
        return _ADVICE[verdict.why]
    reason = "The interval contains 0."
    if verdict.why == "few-changes":
        reason = f"The difference rests on {FEW} samples or fewer."
    needed = verdict.needed or verdict.samples
    more = _rough((needed - verdict.samples) * scene.total / verdict.samples)
    return (
        f"{reason} If the difference stays as it is, about {more} more labelled {scene.unit} "
        "would settle the question."
    )


def _rough(number: float) -> str:
    """A number rounded up to two digits: it is an estimate."""
    unit = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return f"{math.ceil(number / unit) * unit:,}"


def _name(row: int, names: Sequence[str] | None) -> str:
    return names[row] if names else f"class {row}"
