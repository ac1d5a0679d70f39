"""What `compare` reports: JSON, CSV, text, and outputs for GitHub Actions."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rescale_cli.commands.apply import show_written
from rescale_cli.commands.choice_options import HeadOptions
from rescale_cli.commands.choice_report import (
    apply_line,
    gain_required,
    left_alone,
    tell_github,
    written_result,
)
from rescale_cli.commands.console import Whole, say
from rescale_cli.commands.tables import Grid, change, number
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import GateFailed
from rescale_cli.evaluating.checks import prepared_line
from rescale_cli.json_text import finite
from rescale_cli.measures.metric_names import ABOUT
from rescale_cli.patching.patch import Patched
from rescale_cli.patching.plan import CountsChoice, obstacle
from rescale_cli.sweeping.comparison import AS_IT_IS, Comparison, RankedMethod
from rescale_cli.sweeping.sweep_input import SweepInput
from rescale_cli.sweeping.sweep_result import document, ends_of, tied_to
from rescale_cli.sweeping.verdict import FEW
from rescale_cli.sweeping.verdict_text import (
    Scene,
    change_in_points,
    unit_of,
    verdict_result,
    verdict_text,
)

#: Metrics of the table, beside the one that it is ranked by.
_SHOWN = ("balanced_accuracy", "accuracy", "many", "medium", "few")


@dataclass(frozen=True, slots=True, eq=False)
class ComparisonReport:
    """A comparison as JSON, as CSV, as text, and for GitHub Actions."""

    given: SweepInput
    found: Comparison
    obstacles: Mapping[str, str]
    """Why a method cannot be written, by its name."""
    lines: Mapping[str, str]
    """The `apply` command of each method that helps and can be written, by its name."""
    output: Path | None = None
    """The checkpoint of `--apply`."""
    patched: Patched | None = None
    """What was written there."""

    @classmethod
    def of(
        cls,
        given: SweepInput,
        found: Comparison,
        choice: CountsChoice,
        head: HeadOptions,
        output: Path | None,
    ) -> ComparisonReport:
        """The report on a comparison with these counts and options."""
        checkpoint = given.checkpoint
        assert given.path is not None
        assert checkpoint is not None
        obstacles = {
            entry.name: why
            for entry in found.entries
            if entry.outcome and (why := obstacle(checkpoint, choice, entry.decided, head.heads))
        }
        best, typed = found.to_write(obstacles), {**head.of_apply(choice.typed), **given.compose}
        lines = {
            entry.name: apply_line(
                given.path, entry.decided, typed, output if entry is best else None
            )
            for entry in found.entries
            if entry.verdict.helps and entry.name not in obstacles
        }
        return cls(given, found, obstacles, lines, output)

    @property
    def chosen(self) -> RankedMethod | None:
        """The best method that helps and can be written."""
        return self.found.to_write(self.obstacles)

    @property
    def to_write(self) -> Adjustment:
        """What `--apply` does: that method, or no change if there is none."""
        return Adjustment() if self.chosen is None else self.chosen.decided

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """What limits the use of the result."""
        found = list(self.given.warnings)
        for name, what in self.obstacles.items():
            text = f"{name} cannot be written to {self.given.path and self.given.path.name}: {what}"
            found.append(("not-writable", text))
        why = nothing_to_write(self.found) if self.chosen is None else ""
        return found + left_alone(
            self.output, why, "a method all the same, use `apply` with its number"
        )

    @property
    def no_gain(self) -> GateFailed | None:
        """The error of `--require-gain`; None if a method helps and can be written."""
        if self.chosen is not None:
            return None
        what = "a gain is required, and there is no method to write"
        return gain_required(what, nothing_to_write(self.found))

    def result(self) -> dict[str, Any]:
        """The JSON of `compare`."""
        given, found, chosen = self.given, self.found, self.chosen
        text = f"{ranking_text(found)} {writing_text(found, self.obstacles)}".rstrip(":")
        written = {} if self.patched is None else {"written": written_result(self.patched)}
        return {
            "path": str(given.path),
            **tied_to(given.provenance),
            "data": given.predictions.data,
            "alignment": given.predictions.alignment,
            "metric": found.metric,
            "samples": {
                "chosen_on": found.chosen_on,
                "reported_on": found.reported_on,
                "apart": found.apart,
            },
            "methods": [self._method(entry) for entry in found.entries],
            "best": found.best.name,
            "not_told_apart": [entry.name for entry in found.level],
            "left_out": dict(found.left_out),
            "text": text,
            "to_write": None if chosen is None else chosen.name,
            "apply": None if chosen is None else self.lines.get(chosen.name),
            **written,
        }

    def _method(self, entry: RankedMethod) -> dict[str, Any]:
        gain = None if entry.behind is None else entry.behind.gain
        changes = entry.verdict.changes
        means = changes.means if changes else {}
        return {
            "name": entry.name,
            "method": entry.adjustment.method,
            "normalize": entry.adjustment.normalize,
            "bias_policy": entry.adjustment.bias_policy,
            "gamma": entry.decided.strength,
            "gamma_interval": entry.outcome.interval if entry.outcome else None,
            "exact": True,
            "value": entry.at.metrics[self.found.metric],
            "interval": ends_of(entry.at.intervals.get(self.found.metric)),
            "behind_best": None
            if gain is None
            else {"difference": gain.difference, "interval": gain.interval, "p": gain.p},
            **verdict_result(entry.verdict, self._text(entry), self.given.counts.names),
            "metrics": dict(entry.at.metrics),
            "changes": {
                name: {"difference": one.value, "interval": ends_of(one)}
                for name, one in means.items()
                if one is not None
            },
            "writable": not self.obstacles.get(entry.name),
            "obstacle": self.obstacles.get(entry.name) or None,
            "apply": self.lines.get(entry.name),
        }

    def _text(self, entry: RankedMethod) -> str:
        """The verdict on one method in sentences."""
        given, apart = self.given, self.found.apart
        (plain,) = (other for other in self.found.entries if other.outcome is None)
        scene = Scene(
            entry.adjustment, unit_of(given), "others" if apart else "same",
            len(given.predictions.logits), given.counts.names, (plain.at.recall, entry.at.recall),
        )  # fmt: skip
        return verdict_text(entry.verdict, scene)

    def document(self) -> str:
        """The JSON for `--output`."""
        return document("compare", self.result())

    def csv(self) -> str:
        """One row per method, the best first; an empty cell is n/a."""
        text = StringIO(newline="")
        rows = [
            finite(_row(entry, self.found.metric, self.obstacles)) for entry in self.found.entries
        ]
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def tell_github(self) -> None:
        """Write the outputs and the summary page of the step of GitHub Actions.

        The outputs are those of the method to write, or of the head as it is if there is none.
        """
        unchanged = next(entry for entry in self.found.entries if entry.outcome is None)
        entry = self.chosen or unchanged
        models = {one.name: one.at.metrics for one in self.found.entries}
        text = writing_text(self.found, self.obstacles).rstrip(":.")
        text = f"{ranking_text(self.found)} {text}."
        said = {"method": entry.name, "gamma": entry.decided.strength}
        tell_github("compare", said, entry.verdict, models, text, self.patched)

    def show(self) -> None:
        """Print it: the ranking, the verdict on each method, and how to write the best."""
        found, predictions, chosen = self.found, self.given.predictions, self.chosen
        say(predictions.data_line, *prepared_line(predictions))
        if predictions.alignment is not None:
            say(predictions.alignment["evidence"])
        where = f"chosen on {found.chosen_on:,} samples, reported on {found.reported_on:,} others"
        same = f"chosen and reported on the same {found.chosen_on:,} samples (oracle)"
        say(where if found.apart else same, _table(found))
        say("", *(f"{e.name}: {self._text(e)}" for e in found.entries if e.outcome), "")
        say(ranking_text(found))
        for name, why in found.left_out.items():
            say(f"left out {name}: {why}")
        writing = writing_text(found, self.obstacles)
        if self.patched is not None:
            say("", f"{chosen.name} was applied:" if chosen else writing)
            show_written(self.patched)
            return
        say("", writing)
        if chosen is not None:
            say(Whole(f"  {self.lines[chosen.name]}"))


def ranking_text(found: Comparison) -> str:
    """Which method is best, and which of the others cannot be distinguished from it."""
    name = _called(found.best)
    start = f"{name[0].upper()}{name[1:]} is best"
    if not found.level:
        return f"{start}." if len(found.entries) > 1 else f"{start}: no other method was compared."
    others = [f"{_called(entry)} ({_distance(entry)})" for entry in found.level]
    return f"{start}, but cannot be distinguished from {_listed(others)}."


def writing_text(found: Comparison, obstacles: Mapping[str, str]) -> str:
    """Which method the printed command writes, or why there is no command."""
    entry = found.to_write(obstacles)
    if entry is None:
        return f"There is no command to write a method: {nothing_to_write(found)}."
    if entry is found.best:
        return f"To write {entry.name}, the best method:"
    return (
        f"To write {entry.name}, the best method that helps and can be written "
        f"({_distance(entry, 'behind the best')}):"
    )


def nothing_to_write(found: Comparison) -> str:
    """Why no method is written: no method helps, or those that help cannot be written."""
    helping = [entry.name for entry in found.entries if entry.verdict.helps]
    if helping:
        verb = "helps" if len(helping) == 1 else "help"
        return f"{_listed(helping)} {verb}, but cannot be written"
    kinds = [f"{e.name}: {e.verdict.kind}" for e in found.entries if e.outcome is not None]
    if not kinds:
        return "no method was compared"
    return f"no method has the verdict helps ({', '.join(kinds)})"


def _called(entry: RankedMethod) -> str:
    return f"keeping the head {AS_IT_IS}" if entry.outcome is None else entry.name


def _distance(entry: RankedMethod, what: str = "difference") -> str:
    """How far a method is from the best one: `difference 0.3 points, 95 % interval ...`."""
    gain = None if entry.behind is None else entry.behind.gain
    if entry.behind is None or gain is None or gain.difference is None:
        return "the metric has no value"
    text = f"{what} {change_in_points(gain.difference, gain.interval)}"
    if entry.behind.why == "few-changes":
        text += f", which rests on {FEW} samples or fewer"
    return text


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    Example:
        >>> _listed(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _row(entry: RankedMethod, metric: str, obstacles: Mapping[str, str]) -> dict[str, object]:
    gain, behind = entry.verdict.gain, entry.behind.gain if entry.behind else None
    assert gain is not None
    strength = entry.outcome.interval if entry.outcome else None
    return {
        "name": entry.name,
        "method": entry.adjustment.method,
        "normalize": entry.adjustment.normalize,
        "bias": entry.adjustment.bias_policy,
        "gamma": entry.decided.strength,
        **_columns("gamma", strength),
        "metric": metric,
        "before": gain.before,
        "after": gain.after,
        "difference": gain.difference,
        **_columns("difference", gain.interval),
        "p": gain.p,
        "verdict": entry.verdict.kind,
        "behind_best": behind.difference if behind else None,
        **_columns("behind_best", behind.interval if behind else None),
        "distinguished_from_best": None if behind is None else not entry.level,
        "writable": not obstacles.get(entry.name),
        "obstacle": obstacles.get(entry.name) or None,
        **{name: entry.at.metrics.get(name) for name in ABOUT},
    }


def _columns(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _table(found: Comparison) -> Grid:
    """One row per method, the best first; `~` marks one that cannot be told from the best."""
    names = [found.metric, *(name for name in _SHOWN if name != found.metric)]
    names = [n for n in names if any(e.at.metrics.get(n) is not None for e in found.entries)]
    titles = [name.replace("_", " ") for name in names]
    numbers = (f"{title}>" for title in ("strength", *titles, "behind [95\u00a0%]"))
    grid = Grid(["method", *numbers, "verdict"])
    for entry in found.entries:
        strength = f"{entry.outcome.choice.gamma:g}" if entry.outcome else "-"
        gain = entry.behind.gain if entry.behind else None
        behind = ""
        if gain is not None and gain.difference is not None and gain.interval is not None:
            tied = "\u00a0~" if entry.level else ""
            behind = f"{change(gain.difference, gain.interval, sign='')}{tied}"
        cells = (number(entry.at.metrics.get(name)) for name in names)
        grid.add(entry.name, strength, *cells, behind, entry.verdict.kind)
    return grid
