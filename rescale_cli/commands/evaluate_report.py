"""What `evaluate` says: as JSON, as CSV, and as tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli.commands.console import plain, say, verbosity
from rescale_cli.commands.sweep_report import tied_to
from rescale_cli.commands.tables import Grid, ends
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import data_line
from rescale_cli.evaluating.checks import prepared_line
from rescale_cli.evaluating.evaluate_models import Difference, Evaluation, MeasuredModel, Terms
from rescale_cli.measures.gates import GateResult
from rescale_cli.measures.metric_names import ABOUT, definitions
from rescale_cli.measures.metrics import Confusion
from rescale_cli.measures.significance import Interval

#: Up to so many classes the confusion matrix is written in full.
MOST_DENSE = 200


def evaluate_result(
    found: Evaluation, verdicts: Sequence[GateResult], terms: Terms
) -> dict[str, Any]:
    """The JSON of `evaluate`."""
    many, few = terms.groups
    return {
        "models": [_model(model) for model in found.scored],
        "data": dict(found.scored[0].data) if found.scored else None,
        "alignment": found.scored[0].alignment if found.scored else None,
        "groups": {"many_above": many, "few_below": few} if terms.counts is not None else None,
        "adjustment": None if terms.adjustment is None else _adjustment(terms.adjustment),
        "gates": [_gate(verdict) for verdict in verdicts],
        "against": None if found.base is None else _against(found, found.base),
    }


def _model(model: MeasuredModel) -> dict[str, Any]:
    dense = model.confusion.num_classes <= MOST_DENSE
    return {
        "path": model.name,
        **tied_to(model.provenance),
        "samples": len(model.labels),
        "num_classes": model.confusion.num_classes,
        "metrics": dict(model.metrics),
        "per_class": per_class(model),
        "confusion": model.confusion.dense().tolist() if dense else None,
        "confusion_cells": None if dense else _cells(model.confusion),
        "images_per_second": model.images_per_second,
        "skipped": list(model.skipped),
    }


def per_class(model: MeasuredModel) -> list[dict[str, Any]]:
    """One entry a row of the head; a NaN is n/a."""
    tallies, counts = model.confusion.tallies, model.counts
    columns = zip(
        tallies.support.tolist(), tallies.predicted.tolist(), tallies.recall.tolist(),
        tallies.precision.tolist(), tallies.f1.tolist(), strict=True,
    )  # fmt: skip
    return [
        {
            "class": row,
            "name": model.classes[row] if model.classes else None,
            "count": int(counts.values[row]) if counts is not None else None,
            "group": next((name for name, mask in model.groups.items() if mask[row]), None),
            "support": support,
            "predicted": predicted,
            "recall": recall,
            "precision": precision,
            "f1": f1,
        }
        for row, (support, predicted, recall, precision, f1) in enumerate(columns)
    ]


def _cells(confusion: Confusion) -> dict[str, list[int]]:
    return {
        "actual": confusion.actual.tolist(),
        "predicted": confusion.predicted.tolist(),
        "count": confusion.count.tolist(),
    }


def _adjustment(adjustment: Adjustment) -> dict[str, Any]:
    return {
        "method": adjustment.method,
        "gamma": adjustment.strength,
        "normalize": adjustment.normalize,
        "bias_policy": adjustment.bias_policy,
        "temperature": adjustment.temperature,
    }


def _gate(verdict: GateResult) -> dict[str, Any]:
    return {
        "name": verdict.gate.name,
        "kind": verdict.gate.kind,
        "limit": verdict.gate.limit,
        "model": verdict.model,
        "value": verdict.value,
        "interval": verdict.interval,
        "passed": verdict.passed,
        "message": verdict.message,
    }


def _against(found: Evaluation, base: MeasuredModel) -> dict[str, Any]:
    return {
        "path": base.name,
        "metrics": dict(base.metrics),
        "models": [
            _difference(model.name, difference)
            for model, difference in zip(found.scored, found.differences, strict=True)
        ],
    }


def _difference(name: str, difference: Difference) -> dict[str, Any]:
    test = difference.mcnemar
    return {
        "path": name,
        "differences": {
            metric: {"difference": value, "interval": _ends(difference.intervals, metric)}
            for metric, value in difference.differences.items()
        },
        "mcnemar": {
            "only_base_right": test.only_first,
            "only_model_right": test.only_second,
            "p": test.p,
            "test": test.test,
        },
    }


def _ends(intervals: Mapping[str, Interval | None], metric: str) -> list[float] | None:
    interval = intervals.get(metric)
    return None if interval is None else [interval.low, interval.high]


#: Columns of the rows of classes.
_OF_CLASS = (
    "class", "name", "group", "count", "support", "predicted", "recall", "precision", "f1"
)  # fmt: skip


def evaluate_csv(found: Evaluation) -> str:
    """One row a model with its metrics, then one row a model and class; an empty cell is n/a.

    The column `class` (the row of the head) is empty in the rows of models, and the columns of the
    metrics are empty in the rows of classes. With a base, each metric is followed by its change
    from the base and the ends of that change's 95 % interval.
    """
    changes = [f"{name}_{end}" for name in ABOUT for end in ("change", "change_low", "change_high")]
    columns = ["model", "role", *_OF_CLASS, *ABOUT, *(changes if found.base is not None else [])]
    text = StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(found))
    return text.getvalue()


def _rows(found: Evaluation) -> Iterator[dict[str, object]]:
    base = [] if found.base is None else [(found.base, "base", None)]
    differences = found.differences or (None,) * len(found.scored)
    pairs = zip(found.scored, differences, strict=True)
    every = [*base, *((model, "model", difference) for model, difference in pairs)]
    for model, role, difference in every:
        yield {
            "model": model.name,
            "role": role,
            "support": len(model.labels),
            **{name: model.metrics[name] for name in ABOUT},
            **(_changes(difference) if difference is not None else {}),
        }
    for model, role, _ in every:
        yield from ({"model": model.name, "role": role, **row} for row in _classes(model))


def _classes(model: MeasuredModel) -> Iterator[dict[str, object]]:
    for entry in per_class(model):
        yield {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in entry.items()
        }


def _changes(difference: Difference) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in ABOUT:
        interval = difference.intervals.get(name)
        found[f"{name}_change"] = difference.differences[name]
        found[f"{name}_change_low"] = None if interval is None else interval.low
        found[f"{name}_change_high"] = None if interval is None else interval.high
    return found


def show_evaluate(found: Evaluation, verdicts: Sequence[GateResult], terms: Terms) -> None:
    """`evaluate` for a person: the models side by side, then each class with -v, then the gates."""
    adjustment = terms.adjustment
    if adjustment is not None:
        normalized = "rows normalised, then " if adjustment.normalize else ""
        bias, t = f"bias {adjustment.bias_policy}", adjustment.temperature
        cooled = "" if t == 1 else f", temperature {t:g}"
        method = f"{normalized}{adjustment.method}"
        say(f"as if by {method}, strength {adjustment.strength:g}, {bias}{cooled}")
    for model in found.scored:
        speed = model.images_per_second
        shown = f", {speed:,.0f} images/s" if speed else ""
        classes = model.confusion.num_classes
        say(f"{model.name}: {len(model.labels):,} samples of {classes} classes{shown}")
    for line in dict.fromkeys(
        data_line(str(m.data["source"]), m.data["split"], len(m.labels)) for m in found.scored
    ):
        say(line)
    for line in dict.fromkeys(line for m in found.scored for line in prepared_line(m)):
        say(line)
    for line in dict.fromkeys(m.alignment["evidence"] for m in found.scored if m.alignment):
        say(line)
    say(_metric_table(found, terms))
    if verbosity.get():
        known = {
            name for model in found.scored for name, x in model.metrics.items() if x is not None
        }
        say("", *definitions(name for name in ABOUT if name in known))
    for model in found.scored if verbosity.get() else ():
        say("", model.name, _class_table(model))
    for model, difference in zip(found.scored, found.differences, strict=False):
        test = difference.mcnemar
        say(
            f"{model.name}: {test.only_second:,} samples right that the base has wrong, "
            f"{test.only_first:,} the other way; McNemar p = {test.p:.2g}"
        )
    for verdict in verdicts:
        word = "passed" if verdict.passed else "FAILED"
        say(f"{word} {verdict.gate}: {verdict.message} ({verdict.model})")


def _metric_table(found: Evaluation, terms: Terms) -> Grid:
    """One row a metric, the most telling one first; one column a model, and a difference."""
    columns: list[tuple[MeasuredModel, Difference | None]] = []
    if found.base is not None:
        columns.append((found.base, None))
    differences = found.differences or (None,) * len(found.scored)
    columns += zip(found.scored, differences, strict=True)
    names, titles = _short(found.scored), ["metric"]
    for model, difference in columns:
        titles.append("base>" if model is found.base else f"{names[model.name]}>")
        titles += ["change [95\u00a0%]>"] if difference is not None else []
    grid = Grid(titles)
    for name in ABOUT:
        if all(model.metrics.get(name) is None for model, _ in columns):
            continue
        row = [_title(name, found.scored[0], terms)]
        for model, difference in columns:
            row.append(_value(model.metrics[name]))
            if difference is not None:
                row.append(_difference_line(difference, name))
        grid.add(*row, style="bold" if name == "balanced_accuracy" else "")
    return grid


def _short(models: Sequence[MeasuredModel]) -> dict[str, str]:
    """What heads each model's column: the name of its file, or its number where two are alike."""
    files = {model.name: plain(Path(model.name).name) for model in models}
    if len(set(files.values())) == len(models):
        return files
    return {model.name: f"model {number}" for number, model in enumerate(models, 1)}


def _title(name: str, model: MeasuredModel, terms: Terms) -> str:
    words = name.replace("_", " ")
    if name not in model.groups:
        return words
    many, few = terms.groups
    span = {"many": f"> {many}", "medium": f"{few} to {many}", "few": f"< {few}"}[name]
    return f"{words} ({int(np.count_nonzero(model.groups[name]))} classes, {span})"


def _value(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _difference_line(difference: Difference, name: str) -> str:
    value, interval = difference.differences[name], difference.intervals.get(name)
    if value is None:
        return "n/a"
    shown = "" if interval is None else f" [{interval.low:+.4f},\u00a0{interval.high:+.4f}]"
    return f"{value:+.4f}{shown}"


def _class_table(model: MeasuredModel) -> Grid:
    titles = ["row>", "class", "count>", "support>", "recall>", "precision>", "F1>"]
    grid = Grid(titles, keys=2)
    entries = per_class(model)
    for row in ends(len(entries)):
        if row is None:
            grid.add("…")
            continue
        entry = entries[row]
        grid.add(
            str(row),
            entry["name"] or "",
            "" if entry["count"] is None else f"{entry['count']:,}",
            f"{entry['support']:,}",
            *(_share(entry[key]) for key in ("recall", "precision", "f1")),
        )
    return grid


def _share(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.4f}"
