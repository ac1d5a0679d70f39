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
    document,
    ends_of,
    gain_required,
    left_alone,
    sweep_text,
    tell_github,
    tied_to,
    verdict_result,
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
from rescale_cli.measures.significance import Interval
from rescale_cli.patching.patch import Patched
from rescale_cli.sweeping.sweep import At, Outcome, Sweep
from rescale_cli.sweeping.sweep_input import SweepInput

#: Metrics of the curve, where they are known.
CURVES = ("accuracy", "balanced_accuracy", "target_accuracy", "macro_f1", "gmean_multiclass",
          "worst_recall", "many", "medium", "few")  # fmt: skip


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
        given, found, best = self.given, self.found, self.found.best
        keyed, names = _keyed(found), given.counts.names
        counted = {**self.counted_with, "counts": given.counts.values.tolist()}
        others = [{**_method(other), "value": other.choice.value} for other in found.others]
        written = {} if self.patched is None else {"written": written_result(self.patched)}
        return {
            "path": None if given.path is None else str(given.path),
            **tied_to(given.provenance),
            "samples": len(given.predictions.logits),
            "data": given.predictions.data,
            "data_sha256": None if found.selection.unlabeled else given.predictions.data_sha256,
            "alignment": given.predictions.alignment,
            "counted_with": counted,
            "chosen": _chosen(found),
            **verdict_result(found.verdict, self.text, names),
            "plateau": list(best.choice.plateau),
            "oracle": None if found.oracle is None else {
                "gamma": found.oracle.gamma,
                "value": found.oracle.value,
                "note": "chosen on the samples it is reported on",
            },
            "curve": curve(found),
            "exact": True,
            "breakpoints": found.breakpoints,
            "at": {key: dict(at.metrics) for key, at in keyed.items()},
            "intervals": {key: _all_ends(at.intervals) for key, at in keyed.items()},
            "changes": _differences(found.changes),
            "per_class": per_class(given.counts, found),
            "negative_true_logits": found.negative_true,
            "beyond_rescue": found.never_right,
            "temperature": found.temperature,
            "others": others,
            "apply": None if given.path is None else self.line,
            **written,
        }  # fmt: skip

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


def _chosen(found: Sweep) -> dict[str, Any]:
    """The chosen strength, and what it was chosen and reported on."""
    best, metric, chosen = found.best, found.objective.metric, found.at.get("chosen")
    return {
        **_method(best),
        "metric": metric,
        "value": None if chosen is None else chosen.metrics.get(metric),
        "interval": None if chosen is None else ends_of(chosen.intervals.get(metric)),
        "gamma_interval": best.interval,
        "value_where_chosen": best.choice.value,
        "rule": "unlabeled" if found.selection.unlabeled else found.selection.rule,
        "chosen_on": part(found, chosen_on=True),
        "reported_on": None if chosen is None else part(found, chosen_on=False),
    }


def _all_ends(intervals: Mapping[str, Interval | None]) -> dict[str, list[float] | None]:
    return {name: ends_of(interval) for name, interval in intervals.items()}


def _differences(changes: Mapping[str, Interval]) -> dict[str, Any]:
    return {
        name: {"difference": one.value, "interval": ends_of(one)} for name, one in changes.items()
    }


def per_class(counts: ClassCounts, found: Sweep) -> list[dict[str, Any]]:
    """One entry per class: its recall before and after, on the samples that are reported on."""
    if not found.at:
        return []
    before, after = found.at["0"].recall, found.at["chosen"].recall
    names, changes = counts.names, found.verdict.changes
    assert changes is not None
    return [
        {
            "class": row,
            "name": names[row] if names else None,
            "count": int(counts.values[row]),
            "recall": float(before[row]),
            "recall_chosen": float(after[row]),
            "difference": float(changes.difference[row]),
            "interval": changes.of_class(row),
        }
        for row in range(len(before))
    ]


def part(found: Sweep, *, chosen_on: bool) -> str:
    """Which samples the strength was chosen on, or is reported on, in words."""
    parts = found.parts
    if not parts.apart:
        whole = f"all {len(parts.chosen):,} samples"
        return whole if found.selection.unlabeled else f"{whole} (oracle: the same ones)"
    rows = parts.chosen if chosen_on else parts.reported
    return f"{len(rows):,} samples, stratified, seed {found.selection.seed}"


def _method(outcome: Outcome) -> dict[str, Any]:
    adjustment = outcome.method.adjustment
    return {
        "gamma": outcome.choice.gamma,
        "method": adjustment.method,
        "normalize": adjustment.normalize,
        "bias_policy": adjustment.bias_policy,
    }


def _keyed(found: Sweep) -> dict[str, At]:
    """The head as it is as `0`, and the chosen strength as its own number.

    The chosen strength is `0 chosen` if it is 0 with normalized rows or another bias.
    """
    if not found.at:
        return {}
    plain, chosen = found.at["0"], found.at["chosen"]
    key, adjustment = f"{chosen.gamma:.12g}", found.best.method.adjustment
    changes = adjustment.normalize or adjustment.bias_policy != "keep"
    return {"0": plain, "0 chosen" if key == "0" and changes else key: chosen}


def curve(found: Sweep) -> dict[str, list[float]]:
    """Metrics of all samples along gamma, (G,) each."""
    known = found.best.path.knows_predictions
    names = [n for n in CURVES if n in found.curve and (known or n != "macro_f1")]
    return {name: found.curve[name].tolist() for name in ("gamma", *names)}


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
