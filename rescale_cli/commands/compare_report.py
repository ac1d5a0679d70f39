"""What `compare` says and concludes: as JSON, as CSV, as a table, in sentences."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from typing import Any

from rescale_cli.commands.apply import show_written
from rescale_cli.commands.console import Whole, say
from rescale_cli.commands.sweep_report import tied_to
from rescale_cli.commands.tables import Grid
from rescale_cli.commands.verdict_text import (
    Scene,
    change_in_points,
    unit_of,
    verdict_result,
    verdict_text,
)
from rescale_cli.evaluating.checks import prepared_line
from rescale_cli.measures.metric_names import ABOUT
from rescale_cli.measures.significance import Interval
from rescale_cli.patching.patch import Patched
from rescale_cli.sweeping.comparison import AS_IT_IS, Comparison, RankedMethod, SweepInput
from rescale_cli.sweeping.verdict import FEW


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
    """Why no method is written: the methods that help cannot be, or no method helps."""
    helping = [entry.name for entry in found.entries if entry.verdict.helps]
    if helping:
        return (
            f"{_listed(helping)} {'helps' if len(helping) == 1 else 'help'}, but cannot be written"
        )
    kinds = [f"{e.name}: {e.verdict.kind}" for e in found.entries if e.outcome is not None]
    return f"no method has the verdict helps ({', '.join(kinds)})" if kinds else "none was compared"


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


def _listed(names: list[str]) -> str:
    """Names in a sentence.

    Example:
        >>> _listed(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


#: Metrics of the table, beside the one that it is ranked by.
_SHOWN = ("balanced_accuracy", "accuracy", "many", "medium", "few")


def comparison_result(
    given: SweepInput, found: Comparison, lines: Mapping[str, str], obstacles: Mapping[str, str]
) -> dict[str, Any]:
    """The JSON of `compare`.

    Args:
        given: the model and what it says.
        found: what came out.
        lines: the apply line of each method that helps and can be written.
        obstacles: why a method cannot be written, by name.
    """
    chosen = found.to_write(obstacles)
    return {
        "path": str(given.path),
        **tied_to(given.provenance),
        "data": given.predictions.data,
        "alignment": given.predictions.alignment,
        "metric": found.metric,
        "samples": {"chosen_on": found.chosen_on, "reported_on": found.reported_on,
                    "apart": found.apart},
        "methods": [_entry(entry, given, found, lines, obstacles) for entry in found.entries],
        "best": found.best.name,
        "not_told_apart": [entry.name for entry in found.level],
        "left_out": dict(found.left_out),
        "text": f"{ranking_text(found)} {writing_text(found, obstacles)}".rstrip(":"),
        "to_write": None if chosen is None else chosen.name,
        "apply": None if chosen is None else lines.get(chosen.name),
    }  # fmt: skip


def _entry(
    entry: RankedMethod, given: SweepInput, found: Comparison, lines: Mapping[str, str],
    obstacles: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    outcome, behind, changes = entry.outcome, entry.behind, entry.verdict.changes
    gain = None if behind is None else behind.gain
    return {
        "name": entry.name,
        "method": entry.adjustment.method,
        "normalize": entry.adjustment.normalize,
        "bias_policy": entry.adjustment.bias_policy,
        "gamma": entry.decided.strength,
        "gamma_interval": outcome.interval if outcome else None,
        "exact": True,
        "value": entry.at.metrics[found.metric],
        "interval": _ends(entry.at.intervals.get(found.metric)),
        "behind_best": None
        if gain is None
        else {"difference": gain.difference, "interval": gain.interval, "p": gain.p},
        **verdict_result(entry.verdict, _text(entry, given, found), given.counts.names),
        "metrics": dict(entry.at.metrics),
        "changes": {
            name: {"difference": change.value, "interval": _ends(change)}
            for name, change in (changes.means if changes else {}).items()
            if change is not None
        },
        "writable": not obstacles.get(entry.name),
        "obstacle": obstacles.get(entry.name) or None,
        "apply": lines.get(entry.name),
    }


def comparison_csv(found: Comparison, obstacles: Mapping[str, str]) -> str:
    """One row a method, the best first; an empty cell is n/a."""
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for number, entry in enumerate(found.entries):
        row = _row(entry, found.metric, obstacles)
        if not number:
            writer.writerow(row)
        writer.writerow(row.values())
    return text.getvalue()


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


def _text(entry: RankedMethod, given: SweepInput, found: Comparison) -> str:
    """The verdict on one method in sentences."""
    (plain,) = (other for other in found.entries if other.outcome is None)
    scene = Scene(
        entry.adjustment, unit_of(given), "others" if found.apart else "same",
        len(given.predictions.logits), given.counts.names, (plain.at.recall, entry.at.recall),
    )  # fmt: skip
    return verdict_text(entry.verdict, scene)


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def show_comparison(
    given: SweepInput, found: Comparison, lines: Mapping[str, str], obstacles: Mapping[str, str],
    patched: Patched | None = None,
) -> None:  # fmt: skip
    """`compare` for a person: the methods ranked, and what the ranking is worth."""
    say(given.predictions.data_line, *prepared_line(given.predictions))
    if given.predictions.alignment is not None:
        say(given.predictions.alignment["evidence"])
    where = f"chosen on {found.chosen_on:,} samples, reported on {found.reported_on:,} others"
    say(where if found.apart else f"chosen and reported on the same {found.chosen_on:,} (oracle)")
    names = [found.metric, *(name for name in _SHOWN if name != found.metric)]
    names = [n for n in names if any(e.at.metrics.get(n) is not None for e in found.entries)]
    titles = (name.replace("_", " ") for name in names)
    heads = ["method", *(f"{title}>" for title in ("strength", *titles, "behind [95\u00a0%]"))]
    grid = Grid([*heads, "verdict"])
    for entry in found.entries:
        strength = f"{entry.outcome.choice.gamma:g}" if entry.outcome else "-"
        values = (entry.at.metrics.get(name) for name in names)
        cells = ["n/a" if value is None else f"{value:.4f}" for value in values]
        gain = entry.behind.gain if entry.behind else None
        shown = "" if gain is None or gain.difference is None or gain.interval is None else (
            f"{gain.difference:.4f} [{gain.interval[0]:.4f},\u00a0{gain.interval[1]:.4f}]"
            f"{chr(0xA0) + '~' if entry.level else ''}"
        )  # fmt: skip
        grid.add(entry.name, strength, *cells, shown, entry.verdict.kind)
    say(grid)
    say("", *(f"{e.name}: {_text(e, given, found)}" for e in found.entries if e.outcome), "")
    say(ranking_text(found))
    for name, why in found.left_out.items():
        say(f"left out {name}: {why}")
    chosen = found.to_write(obstacles)
    if patched is not None:
        say("", f"{chosen.name} was applied:" if chosen else writing_text(found, obstacles))
        show_written(patched)
        return
    say("", writing_text(found, obstacles))
    if chosen is not None:
        say(Whole(f"  {lines[chosen.name]}"))
