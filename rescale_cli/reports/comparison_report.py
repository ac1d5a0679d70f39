"""What `compare` says: as JSON, and as a table."""

from __future__ import annotations

from typing import Any

from rescale_cli.evaluating.accuracy_check import prepared_line
from rescale_cli.measures.significance import Interval
from rescale_cli.reports.grid import Grid
from rescale_cli.reports.screen import Whole, say
from rescale_cli.reports.sweep_report import tied_to
from rescale_cli.reports.verdict_text import Scene, unit_of, verdict_result, verdict_text
from rescale_cli.sweeping.comparison import Comparison, Entry
from rescale_cli.sweeping.trial import Trial

#: Metrics of the table, beside the one that it is ranked by.
_SHOWN = ("balanced_accuracy", "accuracy", "many", "medium", "few")


def comparison_result(trial: Trial, found: Comparison, lines: dict[str, str]) -> dict[str, Any]:
    """The JSON of `compare`; `lines` are the apply lines by name."""
    return {
        "path": str(trial.path),
        **tied_to(trial.provenance),
        "data": trial.predictions.data,
        "alignment": trial.predictions.alignment,
        "metric": found.metric,
        "samples": {"chosen_on": found.chosen_on, "reported_on": found.reported_on,
                    "apart": found.apart},
        "methods": [_entry(entry, trial, found, lines) for entry in found.entries],
        "not_told_apart": [entry.name for entry in found.entries if entry.level],
        "left_out": dict(found.left_out),
        "apply": lines.get(found.entries[0].name),
    }  # fmt: skip


def _entry(entry: Entry, trial: Trial, found: Comparison, lines: dict[str, str]) -> dict[str, Any]:
    outcome = entry.outcome
    return {
        "name": entry.name,
        "method": entry.adjustment.method,
        "normalize": entry.adjustment.normalize,
        "bias_policy": entry.adjustment.bias_policy,
        "gamma": outcome.choice.gamma if outcome else 0.0,
        "gamma_interval": outcome.interval if outcome else None,
        "exact": True,
        "value": entry.at.metrics[found.metric],
        "interval": _ends(entry.at.intervals.get(found.metric)),
        "behind_best": None
        if entry.behind is None
        else {"difference": entry.behind.value, "interval": _ends(entry.behind)},
        **verdict_result(entry.verdict, _text(entry, trial, found), trial.counts.names),
        "metrics": dict(entry.at.metrics),
        "apply": lines.get(entry.name),
    }


def _text(entry: Entry, trial: Trial, found: Comparison) -> str:
    """The verdict on one method in sentences."""
    (plain,) = (other for other in found.entries if other.outcome is None)
    scene = Scene(
        entry.adjustment, unit_of(trial), "others" if found.apart else "same",
        len(trial.predictions.logits), trial.counts.names, (plain.at.recall, entry.at.recall),
    )  # fmt: skip
    return verdict_text(entry.verdict, scene)


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def show_comparison(trial: Trial, found: Comparison, lines: dict[str, str]) -> None:
    """`compare` for a person: the methods ranked, and what the ranking is worth."""
    say(trial.predictions.data_line, *prepared_line(trial.predictions))
    if trial.predictions.alignment is not None:
        say(trial.predictions.alignment["evidence"])
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
        behind = entry.behind
        shown = "" if behind is None else (
            f"{behind.value:.4f} [{behind.low:.4f},\u00a0{behind.high:.4f}]"
            f"{chr(0xA0) + '~' if entry.level else ''}"
        )  # fmt: skip
        grid.add(entry.name, strength, *cells, shown, entry.verdict.kind)
    say(grid)
    say("", *(f"{e.name}: {_text(e, trial, found)}" for e in found.entries if e.outcome), "")
    best, level = found.entries[0], [entry.name for entry in found.entries if entry.level]
    if level:
        say(f"~ cannot be told apart from {best.name} on these samples: {', '.join(level)}")
    for name, why in found.left_out.items():
        say(f"left out {name}: {why}")
    if best.name in lines:
        say("", "to write the best:", Whole(f"  {lines[best.name]}"))
