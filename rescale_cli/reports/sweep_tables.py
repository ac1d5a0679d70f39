"""What `sweep-gamma` shows a person: the choice, the curve, and who pays."""

from __future__ import annotations

import numpy as np
from rich.text import Text

from rescale_cli.core.head import Float64
from rescale_cli.evaluating.accuracy_check import prepared_line
from rescale_cli.measures.metric_names import ABOUT
from rescale_cli.measures.significance import Interval
from rescale_cli.patching.patch import Patched
from rescale_cli.reports.grid import Bar, Grid
from rescale_cli.reports.screen import Whole, drawable, say, width
from rescale_cli.reports.sweep_report import part
from rescale_cli.reports.tables import show_written
from rescale_cli.reports.verdict_text import sweep_text
from rescale_cli.sweeping.sweep_result import Sweep
from rescale_cli.sweeping.trial import Trial

_BLOCKS = " ▁▂▃▄▅▆▇█"
#: Of the chart, in characters; its labels take eight more.
_WIDTH, _HEIGHT, _LABEL = 64, 8, 8
#: Classes that are shown at either end.
_MOST = 5


def show_sweep(
    trial: Trial, found: Sweep, line: str | None, patched: Patched | None = None
) -> None:
    """`sweep-gamma` for a person: the verdict first, at the end what was written or how to."""
    say(sweep_text(trial, found), "")
    show_choice(trial, found)
    show_curve(trial, found)
    if found.at:
        say("", _metric_table(found), "", payers(trial, found))
    if found.never_right is not None:
        limit = f"{found.wanted.limit:g}"
        say(f"{found.never_right:.2%} of all samples are right at no strength up to {limit}")
    if patched is not None:
        say("")
        show_written(patched)
    elif line is not None:
        say("", "to write it:", Whole(f"  {line}"))


def show_choice(trial: Trial, found: Sweep) -> None:
    """Which rows the labels are, which strength, by what, on what."""
    say(trial.predictions.data_line, *prepared_line(trial.predictions))
    if trial.predictions.alignment is not None:
        say(trial.predictions.alignment["evidence"])
    best, wanted = found.best, found.wanted
    adjustment, choice = best.family.adjustment, best.choice
    normalized = "rows normalised, then " if adjustment.normalize else ""
    bias = adjustment.bias_policy if best.family.head.bias is not None else "none"
    interval = "" if best.interval is None else f" [{best.interval[0]:.3g}, {best.interval[1]:.3g}]"
    say(
        f"{normalized}{adjustment.method}, bias {bias}: strength {choice.gamma:g}{interval}, "
        f"plateau {choice.plateau[0]:.4g} to {choice.plateau[1]:.4g}"
    )
    how = "the predicted classes, without labels" if wanted.unlabeled else (
        f"{found.objective.metric.replace('_', ' ')} ({wanted.rule})"
    )  # fmt: skip
    say(f"chosen by {how}, on {part(found, chosen_on=True)}")
    if found.parts.apart:
        say(f"reported on {len(found.parts.reported):,} other samples")
    say(f"every strength, exactly: {found.breakpoints:,} breakpoints")
    if found.temperature is not None:
        say(f"temperature {found.temperature:.4g}, fitted where the strength was chosen")


def show_curve(trial: Trial, found: Sweep) -> None:
    """The metric along the strength, where there are labels."""
    metric = (
        found.objective.metric if found.objective.metric in found.curve else "balanced_accuracy"
    )
    if metric in found.curve:
        name, samples = metric.replace("_", " "), len(trial.predictions.logits)
        say("", f"{name} of all {samples:,} samples, along the strength")
        wide = max(16, min(_WIDTH, width() - _LABEL))
        for text in chart(found.curve["gamma"], found.curve[metric], found.best.choice.gamma, wide):
            say(Text(drawable(text.rstrip())))


def chart(gammas: Float64, values: Float64, chosen: float, wide: int = _WIDTH) -> list[str]:
    """A curve in characters, eight lines high, with the chosen strength marked below."""
    across = np.linspace(0, gammas[-1], wide)
    heights = values[np.searchsorted(gammas, across, side="right") - 1]
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    steps = np.round((heights - low) / ((high - low) or 1) * (_HEIGHT * 8 - 1)).astype(int) + 1
    lines = []
    for row in reversed(range(_HEIGHT)):
        label = {_HEIGHT - 1: f"{high:.1%}", 0: f"{low:.1%}"}.get(row, "")
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


def _metric_table(found: Sweep) -> Grid:
    chosen, plain_at = found.at["chosen"], found.at["0"]
    grid = Grid(["metric", "as it is>", f"at {chosen.gamma:g}>", "change [95\u00a0%]>"])
    for name in dict.fromkeys((*ABOUT, *chosen.metrics)):  # the most telling one first
        value, before = chosen.metrics.get(name), plain_at.metrics.get(name)
        change = found.changes.get(name)
        if value is None or before is None:
            continue
        shown = "" if change is None else change_text(change)
        style = "bold" if name == found.objective.metric else ""
        grid.add(name.replace("_", " "), f"{before:.4f}", f"{value:.4f}", shown, style=style)
    return grid


def change_text(change: Interval) -> str:
    """A change of a metric with its interval; the space within it does not break.

    Example:
        >>> change_text(Interval(0.03, 0.01, 0.05)).replace(chr(0xA0), " ")
        '+0.0300 [+0.0100, +0.0500]'
    """
    return f"{change.value:+.4f} [{change.low:+.4f},\u00a0{change.high:+.4f}]"


def payers(trial: Trial, found: Sweep) -> Grid:
    """The classes that lose most and those that gain most."""
    changes = found.verdict.changes
    assert changes is not None
    change = changes.difference
    order = [int(row) for row in np.argsort(change, kind="stable") if not np.isnan(change[row])]
    some = order if len(order) <= 2 * _MOST else [*order[:_MOST], None, *order[-_MOST:]]
    grid = Grid(["who pays, who gains", "count>", "recall>", "becomes>", "[95\u00a0%]>", "change"])
    names, most = trial.counts.names, max(np.nanmax(np.abs(change)), 1e-9)
    for row in some:
        if row is None:
            grid.add("…")
            continue
        style, share = "red" if change[row] < 0 else "green", float(abs(change[row]) / most)
        grid.add(
            names[row] if names else f"class {row}",
            f"{trial.counts.values[row]:,}",
            f"{found.at['0'].recall[row]:.1%}",
            f"{found.at['chosen'].recall[row]:.1%}",
            f"[{changes.low[row]:+.1%},\u00a0{changes.high[row]:+.1%}]",
            Bar(share, f"{change[row]:+7.1%}", longest=20, before=True, style=style),
        )
    return grid
