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

#: Metrics for which lower is better, with the largest value of each.
LOWER_IS_BETTER: Mapping[str, float] = {
    "nll": math.inf, "ece": 1.0, "classwise_ece": 1.0, "brier": 2.0
}  # fmt: skip
#: Metrics that need the class counts of the training set.
GROUPS = ("many", "medium", "few")
#: Tolerance for rounding: in float64, 0.80 - 0.75 is slightly more than 0.05.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Gate:
    """One bound on one metric."""

    name: str
    """The JSON name of the metric, such as `balanced_accuracy`."""
    kind: GateKind
    """Whether `limit` is the lowest value, the highest value, or the largest loss from the base."""
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
        """Whether a model passes the gate. A metric without a value fails.

        Args:
            model: its name, for the result.
            value: its metric; None if it is n/a.
            base: the metric of the base model, for `fail-drop`.
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
                low, high = (round(end, 4) + 0.0 for end in (change.low, change.high))  # no -0
                text += f", 95 % interval of the change {low:+.4f} to {high:+.4f}"
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
    """The metric, or for `fail-drop` its loss from the base; None if n/a."""
    passed: bool
    message: str
    """The result as a sentence."""
    interval: tuple[float, float] | None = None
    """95 % interval of the loss from the base."""


def _loss_interval(change: Interval | None, worse: bool) -> tuple[float, float] | None:
    """The interval of a loss, from that of value - base; `worse` if a rise is a loss."""
    if change is None:
        return None
    return (change.low, change.high) if worse else (-change.high, -change.low)


def read_gates(kind: GateKind, words: Sequence[str]) -> list[Gate]:
    """Parse the gates of one option, `NAME=VALUE` each.

    Args:
        kind: the option.
        words: as typed; see `metric_names.metric_name` for the names.

    Raises:
        UsageError: an unknown metric, an invalid value, or the wrong option for this metric.

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
            f"{better} is better for {name}, so --{kind} would reject the better models",
            saw=clip(word, 80),
            fix=f"--{other} {name}={clip(text, 20)}",
        )
    return Gate(name, kind, _limit(kind, name, text.strip()))


def _limit(kind: GateKind, name: str, text: str) -> float:
    """Parse the bound, a number in the range of the metric."""
    highest = LOWER_IS_BETTER.get(name, 1.0)
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in text:
        raise UsageError(
            f"the bound for {name} is not a number", saw=clip(text, 80), fix=f"--{kind} {name}=0.7"
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
        f"the bound for {name} must be a number {span}, not a percentage",
        saw=clip(text, 80),
        fix=fix,
    )


def refuse_unjudgeable(gates: Sequence[Gate], *, grouped: bool, based: bool) -> None:
    """Refuse gates that need a missing input, before the model runs.

    Args:
        gates: all gates.
        grouped: whether class counts are given.
        based: whether a base model is given.

    Raises:
        UsageError: a gate needs a base model or class counts.
    """
    for gate in gates:
        if gate.kind == "fail-drop" and not based:
            raise UsageError(
                "--fail-drop needs a base model",
                saw=str(gate),
                fix="name the base: --against BASE",
            )
        if gate.name in GROUPS and not grouped:
            raise UsageError(
                f"the group {gate.name} needs the class counts of the training set",
                saw=str(gate),
                fix="--counts FILE",
            )
