"""What `sweep-gamma` reports: JSON, CSV, text, and outputs for GitHub Actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from rescale_cli.commands.apply import show_written
from rescale_cli.commands.choice_options import HeadOptions
from rescale_cli.commands.choice_report import (
    apply_line,
    gain_required,
    left_alone,
    tell_github,
    written_result,
)
from rescale_cli.commands.console import Whole, drawable, say, verbosity, width
from rescale_cli.commands.tables import Bar, Grid, change, number, percent_cell
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.floats import Float64
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import GateFailed
from rescale_cli.evaluating.checks import prepared_line
from rescale_cli.json_text import percent
from rescale_cli.measures.metric_names import ABOUT, definitions
from rescale_cli.patching.patch import Patched
from rescale_cli.sweeping.sweep import Sweep
from rescale_cli.sweeping.sweep_input import SweepInput
from rescale_cli.sweeping.sweep_result import curve, document, part, sweep_result
from rescale_cli.sweeping.verdict_text import sweep_text


@dataclass(frozen=True, slots=True, eq=False)
class SweepReport:
    """A sweep as JSON, as CSV, as text, and for GitHub Actions."""

    given: SweepInput
    found: Sweep
    line: str | None = None
    """The `apply` command to type; None if there is nothing to apply."""
    counted_with: Mapping[str, Any] = field(default_factory=HeadOptions().counted_with)
    """See `HeadOptions.counted_with`."""
    output: Path | None = None
    """The checkpoint of `--apply`."""
    patched: Patched | None = None
    """What was written there."""

    @classmethod
    def of(
        cls, given: SweepInput, found: Sweep, head: HeadOptions, counts: str, output: Path | None
    ) -> SweepReport:
        """The report on a sweep with these options."""
        report, line = cls(given, found, None, head.counted_with(), output), None
        if found.best.method.writable and found.verdict.helps:
            typed = {**head.of_apply(counts), **given.compose}
            line = apply_line(given.path or "MODEL", report.chosen, typed, output)
        return replace(report, line=line)

    @property
    def chosen(self) -> Adjustment:
        """The best method at its chosen strength, with the fitted temperature."""
        best, fitted = self.found.best, self.found.temperature
        adjustment = replace(best.method.adjustment, strength=best.choice.gamma)
        return replace(adjustment, temperature=fitted or 1.0)

    @property
    def to_write(self) -> Adjustment:
        """What `--apply` does: the chosen strength if it helps, and else no change."""
        return self.chosen if self.found.verdict.helps else Adjustment()

    @property
    def text(self) -> str:
        """The verdict in sentences."""
        return sweep_text(self.given, self.found)

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """What limits the use of the result."""
        found, method = list(self.given.warnings), self.found.best.method
        if not method.writable:
            text = f"{method.adjustment.method} changes the bias, and this head has no bias, so "
            text += "apply cannot write it; add the change to the logits yourself"
            found.append(("not-writable", text))
        verdict = self.found.verdict
        why = "" if verdict.helps else f"the verdict is {verdict.kind}"
        instead = "the chosen strength all the same, use `apply` with the number "
        return found + left_alone(self.output, why, f"{instead}{self.chosen.strength:.12g}")

    @property
    def no_gain(self) -> GateFailed | None:
        """The error of `--require-gain`; None if the strength helps."""
        verdict = self.found.verdict
        if verdict.helps:
            return None
        what = f"a gain is required, and the verdict is {verdict.kind}"
        return gain_required(what, self.text)

    def result(self) -> dict[str, Any]:
        """The JSON of `sweep-gamma`."""
        written = {} if self.patched is None else {"written": written_result(self.patched)}
        found = sweep_result(self.given, self.found, self.counted_with)
        return {**found, "apply": None if self.given.path is None else self.line, **written}

    def document(self) -> str:
        """The JSON for `--output`."""
        return document("sweep-gamma", self.result())

    def csv(self) -> str:
        """The curve, one line per strength; an empty cell is n/a."""
        columns = curve(self.found)
        rows = zip(*columns.values(), strict=True)
        lines = (",".join("" if np.isnan(v) else repr(v + 0.0) for v in row) for row in rows)
        return "\n".join([",".join(columns), *lines]) + "\n"

    def tell_github(self) -> None:
        """Write the outputs and the summary page of the step of GitHub Actions."""
        gamma = self.found.best.choice.gamma
        names = {"0": "as it is", "chosen": f"strength {gamma:g}"}
        models = {names[key]: at.metrics for key, at in self.found.at.items()}
        verdict = self.found.verdict
        tell_github("sweep-gamma", {"gamma": gamma}, verdict, models, self.text, self.patched)

    def show(self) -> None:
        """Print it: the verdict first, and at the end what was written or how to write it."""
        found = self.found
        say(self.text, "")
        self.show_choice()
        self.show_curve()
        if found.at:
            say("", metric_table(found))
            if verbosity.get():
                values = found.at["chosen"].metrics
                say("", *definitions(name for name in ABOUT if values.get(name) is not None))
            say("", class_table(self.given.counts, found))
        if found.never_right is not None:
            share, limit = percent(found.never_right, 2), f"{found.selection.limit:g}"
            say(f"{share} of all samples stay wrong at every strength from 0 to {limit}")
        if self.patched is not None:
            say("")
            show_written(self.patched)
        elif self.line is not None and self.given.path is not None:
            say("", "to write it:", Whole(f"  {self.line}"))

    def show_choice(self) -> None:
        """Print which strength was chosen, by what, and on which samples."""
        given, found = self.given, self.found
        say(given.predictions.data_line, *prepared_line(given.predictions))
        if given.predictions.alignment is not None:
            say(given.predictions.alignment["evidence"])
        best, selection = found.best, found.selection
        adjustment, choice = best.method.adjustment, best.choice
        normalized = "rows normalised, then " if adjustment.normalize else ""
        bias = adjustment.bias_policy if best.method.head.bias is not None else "none"
        interval = (
            "" if best.interval is None else f" [{best.interval[0]:.3g}, {best.interval[1]:.3g}]"
        )
        say(
            f"{normalized}{adjustment.method}, bias {bias}: strength {choice.gamma:g}{interval}, "
            f"best range of γ {choice.plateau[0]:.4g} to {choice.plateau[1]:.4g}"
        )
        how = "the predicted classes, without labels" if selection.unlabeled else (
            f"{found.objective.metric.replace('_', ' ')} ({selection.rule})"
        )  # fmt: skip
        say(f"chosen by {how}, on {part(found, chosen_on=True)}")
        if found.parts.apart:
            say(f"reported on {len(found.parts.reported):,} other samples")
        say(f"every strength, exactly: {found.breakpoints:,} breakpoints")
        if found.temperature is not None:
            say(f"temperature {found.temperature:.4g}, fitted where the strength was chosen")

    def show_curve(self) -> None:
        """Print the metric along the strength, if there are labels."""
        given, found = self.given, self.found
        metric = (
            found.objective.metric if found.objective.metric in found.curve else "balanced_accuracy"
        )
        if metric in found.curve:
            name, samples = metric.replace("_", " "), len(given.predictions.logits)
            say("", f"{name} of all {samples:,} samples, along the strength")
            wide = max(16, min(_WIDTH, width() - _LABEL))
            for text in chart(
                found.curve["gamma"], found.curve[metric], found.best.choice.gamma, wide
            ):
                say(Text(drawable(text.rstrip())))


_BLOCKS = " ▁▂▃▄▅▆▇█"
#: Size of the chart in characters, and the width of the labels beside it.
_WIDTH, _HEIGHT, _LABEL = 64, 8, 8
#: Classes that are shown at each end of the table.
_MOST = 5


def chart(gammas: Float64, values: Float64, chosen: float, wide: int = _WIDTH) -> list[str]:
    """A curve in characters, eight lines high, with the chosen strength marked below."""
    across = np.linspace(0, gammas[-1], wide)
    heights = values[np.searchsorted(gammas, across, side="right") - 1]
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    steps = np.round((heights - low) / ((high - low) or 1) * (_HEIGHT * 8 - 1)).astype(int) + 1
    lines = []
    for row in reversed(range(_HEIGHT)):
        label = {_HEIGHT - 1: percent(high), 0: percent(low)}.get(row, "")
        cells = "".join(_BLOCKS[min(max(step - 8 * row, 0), 8)] for step in steps)
        lines.append(f"{label:>7} {cells}")
    mark = round(chosen / gammas[-1] * (wide - 1))
    lines.append(" " * (_LABEL + mark) + "▲")
    lines.append(" " * _LABEL + _axis(mark, f"{chosen:g}", f"{gammas[-1]:g}", wide))
    return lines


def _axis(mark: int, chosen: str, end: str, wide: int) -> str:
    """0, the chosen strength as near below its mark as there is room, and the last one."""
    shown = "" if chosen in ("0", end) else chosen
    room = wide - len(end) - 1 - len(shown)
    place = max(2, min(mark - len(shown) // 2, room))
    return f"{'0':<{place}}{shown}".ljust(wide - len(end)) + end


def metric_table(found: Sweep) -> Grid:
    """Each metric before and after, with the change; the most telling metric first."""
    chosen, plain = found.at["chosen"], found.at["0"]
    grid = Grid(["metric", "as it is>", f"at {chosen.gamma:g}>", "change [95\u00a0%]>"])
    for name in dict.fromkeys((*ABOUT, *chosen.metrics)):
        value, before = chosen.metrics.get(name), plain.metrics.get(name)
        if value is None or before is None:
            continue
        one = found.changes.get(name)
        shown = "" if one is None else change(one.value, (one.low, one.high))
        style = "bold" if name == found.objective.metric else ""
        grid.add(name.replace("_", " "), number(before), number(value), shown, style=style)
    return grid


def class_table(counts: ClassCounts, found: Sweep) -> Grid:
    """The classes that lose most and those that gain most."""
    changes = found.verdict.changes
    assert changes is not None
    difference = changes.difference
    order = [int(r) for r in np.argsort(difference, kind="stable") if not np.isnan(difference[r])]
    some = order if len(order) <= 2 * _MOST else [*order[:_MOST], None, *order[-_MOST:]]
    grid = Grid(["who pays, who gains", "count>", "recall>", "becomes>", "[95\u00a0%]>", "change"])
    names, most = counts.names, max(np.nanmax(np.abs(difference)), 1e-9)
    for row in some:
        if row is None:
            grid.add("…")
            continue
        by = float(difference[row])
        style, share = "red" if by < 0 else "green", float(abs(by) / most)
        grid.add(
            names[row] if names else f"class {row}",
            f"{counts.values[row]:,}",
            percent_cell(found.at["0"].recall[row]),
            percent_cell(found.at["chosen"].recall[row]),
            f"[{percent_cell(changes.low[row], '+')},\u00a0{percent_cell(changes.high[row], '+')}]",
            Bar(share, f"{percent(by, sign='+'):>8}", longest=20, before=True, style=style),
        )
    return grid
