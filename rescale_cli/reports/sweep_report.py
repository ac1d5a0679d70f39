"""The JSON, the CSV and the line to type of `sweep-gamma` and `compare`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli.core.methods import METHODS, Adjustment
from rescale_cli.core.provenance import Provenance
from rescale_cli.measures.significance import Interval
from rescale_cli.options.sweep_options import HeadOptions
from rescale_cli.reports.verdict_text import sweep_text, verdict_result
from rescale_cli.sweeping.straight_lines import Family
from rescale_cli.sweeping.sweep import Outcome
from rescale_cli.sweeping.sweep_result import At, Sweep
from rescale_cli.sweeping.trial import Trial

#: What a curve shows, where it is known.
CURVES = ("accuracy", "balanced_accuracy", "target_accuracy", "macro_f1", "gmean_multiclass",
          "worst_recall", "many", "medium", "few")  # fmt: skip


def sweep_result(
    trial: Trial,
    found: Sweep,
    line: str | None,
    counted_with: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON of `sweep-gamma`.

    Args:
        trial: the model and what it says.
        found: what came out.
        line: the apply line to type, where there is one.
        counted_with: `HeadOptions.counted_with`; its defaults if None.
    """
    best, metric = found.best, found.objective.metric
    chosen = found.at.get("chosen")
    return {
        "path": None if trial.path is None else str(trial.path),
        **tied_to(trial.provenance),
        "samples": len(trial.predictions.logits),
        "data": trial.predictions.data,
        "alignment": trial.predictions.alignment,
        "counted_with": {
            **(counted_with or HeadOptions().counted_with()),
            "counts": trial.counts.values.tolist(),
        },
        "chosen": {
            **_method(best),
            "metric": metric,
            "value": None if chosen is None else chosen.metrics.get(metric),
            "interval": None if chosen is None else _ends(chosen.intervals.get(metric)),
            "gamma_interval": best.interval,
            "value_where_chosen": best.choice.value,
            "rule": "unlabeled" if found.wanted.unlabeled else found.wanted.rule,
            "chosen_on": part(found, chosen_on=True),
            "reported_on": None if chosen is None else part(found, chosen_on=False),
        },
        **verdict_result(found.verdict, sweep_text(trial, found), trial.counts.names),
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
        "per_class": per_class(trial, found),
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
        return whole if found.wanted.unlabeled else f"{whole} (oracle: the same ones)"
    rows = parts.chosen if chosen_on else parts.reported
    return f"{len(rows):,} samples, stratified, seed {found.wanted.seed}"


def _method(outcome: Outcome) -> dict[str, Any]:
    adjustment = outcome.family.adjustment
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
    key, adjustment = f"{chosen.gamma:.12g}", found.best.family.adjustment
    changes = adjustment.normalize or adjustment.bias_policy != "keep"
    return {"0": plain, "0 chosen" if key == "0" and changes else key: chosen}


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def curve(found: Sweep) -> dict[str, list[float]]:
    """Metrics of all samples along gamma, (G,) each; those of predictions where they are known."""
    known = found.best.path.knows_predictions
    names = [n for n in CURVES if n in found.curve and (known or n != "macro_f1")]
    return {name: found.curve[name].tolist() for name in ("gamma", *names)}


def per_class(trial: Trial, found: Sweep) -> list[dict[str, Any]]:
    """One entry a class: who gains and who pays, on the samples that are reported on."""
    if not found.at:
        return []
    before, after = found.at["0"].recall, found.at["chosen"].recall
    names, changes = trial.counts.names, found.verdict.changes
    assert changes is not None
    return [
        {
            "class": row,
            "name": names[row] if names else None,
            "count": int(trial.counts.values[row]),
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


def not_writable(family: Family) -> list[tuple[str, str]]:
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
