"""What `sweep-gamma` says: as JSON, as CSV, as a table, and the line to type."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from rescale_cli.commands.apply import show_written
from rescale_cli.commands.console import Whole, drawable, say, verbosity, width
from rescale_cli.commands.sweep_options import HeadOptions
from rescale_cli.commands.tables import Bar, Grid
from rescale_cli.commands.verdict_text import sweep_text, verdict_result
from rescale_cli.core.floats import Float64
from rescale_cli.core.methods import METHODS, Adjustment
from rescale_cli.core.predictions import Provenance
from rescale_cli.evaluating.checks import prepared_line
from rescale_cli.measures.metric_names import ABOUT, definitions
from rescale_cli.measures.significance import Interval
from rescale_cli.patching.patch import Patched
from rescale_cli.sweeping.comparison import SweepInput
from rescale_cli.sweeping.decisions import SweptMethod
from rescale_cli.sweeping.sweep import At, Outcome, Sweep

#: What a curve shows, where it is known.
CURVES = ("accuracy", "balanced_accuracy", "target_accuracy", "macro_f1", "gmean_multiclass",
          "worst_recall", "many", "medium", "few")  # fmt: skip


def sweep_result(
    given: SweepInput,
    found: Sweep,
    line: str | None,
    counted_with: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON of `sweep-gamma`.

    Args:
        given: the model and what it says.
        found: what came out.
        line: the apply line to type, where there is one.
        counted_with: `HeadOptions.counted_with`; its defaults if None.
    """
    best, metric = found.best, found.objective.metric
    chosen = found.at.get("chosen")
    return {
        "path": None if given.path is None else str(given.path),
        **tied_to(given.provenance),
        "samples": len(given.predictions.logits),
        "data": given.predictions.data,
        "alignment": given.predictions.alignment,
        "counted_with": {
            **(counted_with or HeadOptions().counted_with()),
            "counts": given.counts.values.tolist(),
        },
        "chosen": {
            **_method(best),
            "metric": metric,
            "value": None if chosen is None else chosen.metrics.get(metric),
            "interval": None if chosen is None else _ends(chosen.intervals.get(metric)),
            "gamma_interval": best.interval,
            "value_where_chosen": best.choice.value,
            "rule": "unlabeled" if found.selection.unlabeled else found.selection.rule,
            "chosen_on": part(found, chosen_on=True),
            "reported_on": None if chosen is None else part(found, chosen_on=False),
        },
        **verdict_result(found.verdict, sweep_text(given, found), given.counts.names),
        "plateau": list(best.choice.plateau),
        "oracle": None if found.oracle is None else {
            "gamma": found.oracle.gamma,
            "value": found.oracle.value,
            "note": "chosen on the samples it is reported on",
        },
        "curve": curve(found),
        "exact": True,
        "breakpoints": found.breakpoints,
        "at": {key: dict(at.metrics) for key, at in _keyed(found).items()},
        "intervals": {
            key: {name: _ends(interval) for name, interval in at.intervals.items()}
            for key, at in _keyed(found).items()
        },
        "changes": {
            name: {"difference": change.value, "interval": _ends(change)}
            for name, change in found.changes.items()
        },
        "per_class": per_class(given, found),
        "negative_true_logits": found.negative_true,
        "beyond_rescue": found.never_right,
        "temperature": found.temperature,
        "others": [{**_method(other), "value": other.choice.value} for other in found.others],
        "apply": line,
    }  # fmt: skip


def tied_to(known: Provenance) -> dict[str, Any]:
    """What ties a result to its model: the head, the preprocessing, the versions."""
    said = known.as_json()
    return {key: said[key] for key in ("head_sha256", "preprocessing", "versions")}


def part(found: Sweep, *, chosen_on: bool) -> str:
    """Which samples, in words."""
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
    """The head as it is under `0`, and the chosen strength under its own number.

    A strength of 0 may be another head, with its rows normalised or without its bias: `0 chosen`.
    """
    if not found.at:
        return {}
    plain, chosen = found.at["0"], found.at["chosen"]
    key, adjustment = f"{chosen.gamma:.12g}", found.best.method.adjustment
    changes = adjustment.normalize or adjustment.bias_policy != "keep"
    return {"0": plain, "0 chosen" if key == "0" and changes else key: chosen}


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def curve(found: Sweep) -> dict[str, list[float]]:
    """Metrics of all samples along gamma, (G,) each; those of predictions where they are known."""
    known = found.best.path.knows_predictions
    names = [n for n in CURVES if n in found.curve and (known or n != "macro_f1")]
    return {name: found.curve[name].tolist() for name in ("gamma", *names)}


def per_class(given: SweepInput, found: Sweep) -> list[dict[str, Any]]:
    """One entry a class: who gains and who pays, on the samples that are reported on."""
    if not found.at:
        return []
    before, after = found.at["0"].recall, found.at["chosen"].recall
    names, changes = given.counts.names, found.verdict.changes
    assert changes is not None
    return [
        {
            "class": row,
            "name": names[row] if names else None,
            "count": int(given.counts.values[row]),
            "recall": float(before[row]),
            "recall_chosen": float(after[row]),
            "difference": float(changes.difference[row]),
            "interval": changes.of_class(row),
        }
        for row in range(len(before))
    ]


def curve_csv(found: Sweep) -> str:
    """The curve as CSV, one line a strength."""
    columns = curve(found)
    rows = zip(*columns.values(), strict=True)
    lines = (",".join("" if np.isnan(v) else repr(v) for v in row) for row in rows)
    return "\n".join([",".join(columns), *lines]) + "\n"


def not_writable(family: SweptMethod) -> list[tuple[str, str]]:
    """The warning where a checkpoint cannot hold what was chosen."""
    if family.writable:
        return []
    text = f"{family.adjustment.method} changes the bias, and this head has none: "
    return [("not-writable", text + "add it to the logits yourself, `apply` cannot write it")]


def left_alone(output: Path | None, why: str, instead: str) -> list[tuple[str, str]]:
    """The warning where `--apply` writes a checkpoint without a change.

    Args:
        output: the checkpoint; None where none is written.
        why: what speaks against a change; empty where nothing does.
        instead: what to type to write it all the same.
    """
    if output is None or not why:
        return []
    text = (
        f"{output} is written with strength 0, so its tensors are those of the original, because "
        f"{why}; to write {instead}"
    )
    return [("left-alone", text)]


def apply_line(
    model: Path | str,
    adjustment: Adjustment,
    options: Mapping[str, Sequence[str]],
    output: Path | None,
) -> str:
    """The command that writes the checkpoint, ready to paste.

    Args:
        model: the checkpoint.
        adjustment: method, strength, policies.
        options: further options of `apply`, each with its values: `{"--counts": ["c.json"]}`; a
            flag has an empty value.
        output: where to, if not the default.
    """
    knob = METHODS.entry(adjustment.method).facts["knob"]
    words = ["rescale-cli", "apply", str(model)]
    for option, values in options.items():
        words += [word for value in values for word in ((option, value) if value else (option,))]
    words += [f"--{knob}", repr(adjustment.strength)]  # every digit: it is to be the same head
    if adjustment.method != "rescale":
        words += ["--method", adjustment.method]
    if adjustment.normalize:
        words.append("--normalize")
    if adjustment.bias:
        words += ["--bias", adjustment.bias]
    if adjustment.temperature != 1:
        words += ["--temperature", repr(adjustment.temperature)]
    if output is not None:
        words += ["--output", str(output)]
    return shlex.join(words)


_BLOCKS = " ▁▂▃▄▅▆▇█"
#: Of the chart, in characters; its labels take eight more.
_WIDTH, _HEIGHT, _LABEL = 64, 8, 8
#: Classes that are shown at either end.
_MOST = 5


def show_sweep(
    given: SweepInput, found: Sweep, line: str | None, patched: Patched | None = None
) -> None:
    """`sweep-gamma` for a person: the verdict first, at the end what was written or how to."""
    say(sweep_text(given, found), "")
    show_choice(given, found)
    show_curve(given, found)
    if found.at:
        say("", _metric_table(found))
        if verbosity.get():
            values = found.at["chosen"].metrics
            say("", *definitions(name for name in ABOUT if values.get(name) is not None))
        say("", payers(given, found))
    if found.never_right is not None:
        limit = f"{found.selection.limit:g}"
        share = f"{100 * found.never_right:.2f} %"
        say(f"{share} of all samples stay wrong at every strength from 0 to {limit}")
    if patched is not None:
        say("")
        show_written(patched)
    elif line is not None:
        say("", "to write it:", Whole(f"  {line}"))


def show_choice(given: SweepInput, found: Sweep) -> None:
    """Which rows the labels are, which strength, by what, on what."""
    say(given.predictions.data_line, *prepared_line(given.predictions))
    if given.predictions.alignment is not None:
        say(given.predictions.alignment["evidence"])
    best, selection = found.best, found.selection
    adjustment, choice = best.method.adjustment, best.choice
    normalized = "rows normalised, then " if adjustment.normalize else ""
    bias = adjustment.bias_policy if best.method.head.bias is not None else "none"
    interval = "" if best.interval is None else f" [{best.interval[0]:.3g}, {best.interval[1]:.3g}]"
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


def show_curve(given: SweepInput, found: Sweep) -> None:
    """The metric along the strength, where there are labels."""
    metric = (
        found.objective.metric if found.objective.metric in found.curve else "balanced_accuracy"
    )
    if metric in found.curve:
        name, samples = metric.replace("_", " "), len(given.predictions.logits)
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


def payers(given: SweepInput, found: Sweep) -> Grid:
    """The classes that lose most and those that gain most."""
    changes = found.verdict.changes
    assert changes is not None
    change = changes.difference
    order = [int(row) for row in np.argsort(change, kind="stable") if not np.isnan(change[row])]
    some = order if len(order) <= 2 * _MOST else [*order[:_MOST], None, *order[-_MOST:]]
    grid = Grid(["who pays, who gains", "count>", "recall>", "becomes>", "[95\u00a0%]>", "change"])
    names, most = given.counts.names, max(np.nanmax(np.abs(change)), 1e-9)
    for row in some:
        if row is None:
            grid.add("…")
            continue
        style, share = "red" if change[row] < 0 else "green", float(abs(change[row]) / most)
        grid.add(
            names[row] if names else f"class {row}",
            f"{given.counts.values[row]:,}",
            f"{found.at['0'].recall[row]:.1%}",
            f"{found.at['chosen'].recall[row]:.1%}",
            f"[{changes.low[row]:+.1%},\u00a0{changes.high[row]:+.1%}]",
            Bar(share, f"{change[row]:+7.1%}", longest=20, before=True, style=style),
        )
    return grid
