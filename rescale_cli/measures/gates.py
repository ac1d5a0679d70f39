"""Quality gates: bounds that a user sets on metrics, and whether a model meets them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip
from rescale_cli.measures.metric_names import metric_name, unknown_metric

if TYPE_CHECKING:
    from rescale_cli.measures.significance import Interval

GateKind = Literal["fail-under", "fail-over", "fail-drop"]

#: Metrics of which less is better, and the largest value that each can have.
LOWER_IS_BETTER: Mapping[str, float] = {
    "nll": math.inf, "ece": 1.0, "classwise_ece": 1.0, "brier": 2.0
}  # fmt: skip
#: Metrics that only counts of the training samples give.
GROUPS = ("many", "medium", "few")
#: 0.80 - 0.75 is a little more than 0.05 in float64.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Gate:
    """One bound on one metric."""

    name: str
    """The metric, as JSON names it: `balanced_accuracy`."""
    kind: GateKind
    """Lowest value, highest value, or largest loss against the base."""
    limit: float

    def __str__(self) -> str:
        return f"{self.kind} {self.name}={self.limit:g}"

    def check(
        self,
        model: str,
        value: float | None,
        base: float | None = None,
        change: Interval | None = None,
    ) -> GateResult:
        """Whether a model meets the bound; a metric without a value does not.

        Args:
            model: its name, for the verdict.
            value: its metric; None where it has none.
            base: the metric of what it is compared with, for `fail-drop`.
            change: the 95 % interval of value - base, for the message of `fail-drop`.

        Example:
            >>> Gate("accuracy", "fail-under", 0.7).check("a.pth", 0.65).message
            'accuracy is 0.6500, under 0.7'
            >>> Gate("nll", "fail-drop", 0.1).check("a.pth", 0.55, base=0.5).passed
            True
        """
        if value is None or (self.kind == "fail-drop" and base is None):
            who = "of the base is" if value is not None else "is"
            reason = "no class of this group has samples" if self.name in GROUPS else "no value"
            return GateResult(self, model, None, False, f"{self.name} {who} n/a: {reason}")
        found, limit = f"{self.name} is {value:.4f}", f"{self.limit:g}"
        if self.kind == "fail-drop":
            worse = self.name in LOWER_IS_BETTER
            loss = (value - float(base or 0)) * (1 if worse else -1)
            if loss > 0:
                text = f"{self.name} {'rose' if worse else 'fell'} by {loss:.4f}"
            else:
                text = f"{self.name} did not {'rise' if worse else 'fall'}"
            text += f" ({base:.4f} to {value:.4f}"
            if change is not None:
                text += f", 95 % interval of the change {change.low:+.4f} to {change.high:+.4f}"
            text += ")"
            kept = loss <= self.limit + _ROUNDING
            found_loss = self._verdict(model, loss, kept, text, "more than")
            return replace(found_loss, interval=_loss_interval(change, worse))
        if self.kind == "fail-over":
            return self._verdict(model, value, value <= self.limit + _ROUNDING, found, "over")
        passed = value >= self.limit - _ROUNDING
        return GateResult(
            self, model, value, passed, f"{found}, {'at least' if passed else 'under'} {limit}"
        )

    def _verdict(self, model: str, value: float, passed: bool, text: str, word: str) -> GateResult:
        said = f"{text}, {'at most' if passed else word} {self.limit:g}"
        return GateResult(self, model, value, passed, said)


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether one model passed a gate."""

    gate: Gate
    model: str
    value: float | None
    """The metric, or its loss against the base; None where there is none."""
    passed: bool
    message: str
    """In words."""
    interval: tuple[float, float] | None = None
    """95 %, of the loss against the base."""


def _loss_interval(change: Interval | None, worse: bool) -> tuple[float, float] | None:
    """The interval of a loss, from that of value - base; `worse` where a rise is the loss."""
    if change is None:
        return None
    return (change.low, change.high) if worse else (-change.high, -change.low)


def read_gates(kind: GateKind, words: Sequence[str]) -> list[Gate]:
    """The gates of one option: `NAME=VALUE` each.

    Args:
        kind: which option it is.
        words: as they were typed; see `metric_names.metric_name` for the names.

    Raises:
        UsageError: no such metric, no such value, or a bound that goes the wrong way.

    Example:
        >>> read_gates("fail-under", ["macro-f1=0.7"])
        [Gate(name='macro_f1', kind='fail-under', limit=0.7)]
    """
    return [_read(kind, word) for word in words]


def _read(kind: GateKind, word: str) -> Gate:
    typed, equals, text = word.partition("=")
    name = metric_name(typed)
    if not equals:
        fix = f"--{kind} {name or 'balanced_accuracy'}=0.7"
        raise UsageError(f"--{kind} takes NAME=VALUE", saw=clip(word, 80), fix=fix)
    if name is None:
        value = clip(text, 20).replace("{", "{{").replace("}", "}}")
        raise unknown_metric(typed, f"--{kind} {{}}={value}")
    if kind != "fail-drop" and (kind == "fail-over") != (name in LOWER_IS_BETTER):
        other = "fail-over" if kind == "fail-under" else "fail-under"
        better = "lower" if name in LOWER_IS_BETTER else "higher"
        raise UsageError(
            f"{better} is better for {name}, so --{kind} would fail the better models",
            saw=clip(word, 80),
            fix=f"--{other} {name}={clip(text, 20)}",
        )
    return Gate(name, kind, _limit(kind, name, text.strip()))


def _limit(kind: GateKind, name: str, text: str) -> float:
    """The bound as a number in the range of its metric."""
    highest = LOWER_IS_BETTER.get(name, 1.0)
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in text:
        raise UsageError(
            f"the bound of {name} is not a number", saw=clip(text, 80), fix=f"--{kind} {name}=0.7"
        )
    lowest = -highest if kind == "fail-drop" else 0.0
    if not percent and lowest <= value <= highest:
        return value
    if 0 < value <= 100 and highest == 1:
        fix = f"--{kind} {name}={value / 100:g}"
    else:
        fix = f"--{kind} {name}={0.05 if kind == 'fail-drop' else 0.7:g}"
    span = f"from {lowest:g} to {highest:g}" if math.isfinite(highest) else "at least 0"
    raise UsageError(
        f"the bound of {name} must be a number {span}, not a percentage",
        saw=clip(text, 80),
        fix=fix,
    )


def refuse_unjudgeable(gates: Sequence[Gate], *, grouped: bool, based: bool) -> None:
    """Stop before the model runs if a gate could not be judged after it.

    Args:
        gates: all of them.
        grouped: whether counts are given.
        based: whether a base is given.

    Raises:
        UsageError: a drop without a base, or a group without counts.
    """
    for gate in gates:
        if gate.kind == "fail-drop" and not based:
            raise UsageError(
                "--fail-drop compares with a base model, which is missing",
                saw=str(gate),
                fix="name the base: --against BASE",
            )
        if gate.name in GROUPS and not grouped:
            raise UsageError(
                f"the group {gate.name} needs the counts of the training set",
                saw=str(gate),
                fix="--counts FILE",
            )
