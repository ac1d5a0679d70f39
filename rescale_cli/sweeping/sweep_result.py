"""The result of a sweep as JSON: what `sweep-gamma` prints and writes to sweep.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.predictions import Provenance
from rescale_cli.json_text import finite
from rescale_cli.measures.significance import Interval
from rescale_cli.sweeping.sweep import At, Outcome, Sweep
from rescale_cli.sweeping.sweep_input import SweepInput
from rescale_cli.sweeping.verdict_text import sweep_text, verdict_result

#: Metrics of the curve, where they are known.
CURVES = ("accuracy", "balanced_accuracy", "target_accuracy", "macro_f1", "gmean_multiclass",
          "worst_recall", "many", "medium", "few")  # fmt: skip


def document(command: str, result: Mapping[str, Any]) -> str:
    """What `--json` prints, for a file."""
    said = {"schema": f"rescale-cli/{command}@1", "ok": True, "result": result}
    return json.dumps(finite(said), indent=1) + "\n"


def sweep_result(
    given: SweepInput, found: Sweep, counted_with: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON of `sweep-gamma`, without the command that applies it.

    Args:
        given: what the sweep started from.
        found: its result.
        counted_with: what `apply --gamma @sweep.json` has to repeat, see `HeadOptions`.
    """
    best = found.best
    keyed, names = _keyed(found), given.counts.names
    counted = {**counted_with, "counts": given.counts.values.tolist()}
    others = [{**_method(other), "value": other.choice.value} for other in found.others]
    return {
        "path": None if given.path is None else str(given.path),
        **tied_to(given.provenance),
        "samples": len(given.predictions.logits),
        "data": given.predictions.data,
        "data_sha256": None if found.selection.unlabeled else given.predictions.data_sha256,
        "alignment": given.predictions.alignment,
        "counted_with": counted,
        "chosen": _chosen(found),
        **verdict_result(found.verdict, sweep_text(given, found), names),
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
    }  # fmt: skip


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


def tied_to(known: Provenance) -> dict[str, Any]:
    """What ties a result to its model: the head, the preprocessing, the versions."""
    said = known.as_json()
    return {key: said[key] for key in ("head_sha256", "preprocessing", "versions")}


def ends_of(interval: Interval | None) -> list[float] | None:
    """The two ends for the JSON."""
    return None if interval is None else [interval.low, interval.high]
