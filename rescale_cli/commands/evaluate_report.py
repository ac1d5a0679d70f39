"""What `evaluate` reports: JSON, CSV, text, and outputs for GitHub Actions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli.commands.console import plain, say, to_stderr, verbosity
from rescale_cli.commands.github import annotation, append_outputs, append_summary, markdown
from rescale_cli.commands.metric_files import FORMATS, junit, openmetrics, prediction_rows
from rescale_cli.commands.tables import Grid, change, ends, number
from rescale_cli.core.counts import few
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import data_line
from rescale_cli.errors import GateFailed
from rescale_cli.evaluating.checks import prepared_line
from rescale_cli.evaluating.evaluate_models import Difference, Evaluation, MeasuredModel, Terms
from rescale_cli.json_text import finite
from rescale_cli.measures.gates import Gate, GateResult
from rescale_cli.measures.metric_names import ABOUT, definitions
from rescale_cli.measures.metrics import Confusion
from rescale_cli.sweeping.sweep_result import ends_of, tied_to

#: The confusion matrix of at most this many classes is written in full.
MOST_DENSE = 200


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationReport:
    """An evaluation as JSON, as text, as files, and for GitHub Actions."""

    found: Evaluation
    terms: Terms
    gates: tuple[GateResult, ...] = ()

    @classmethod
    def of(cls, found: Evaluation, terms: Terms, gates: Sequence[Gate]) -> EvaluationReport:
        """The report, with every gate checked for every model."""
        base = found.base.metrics if found.base is not None else {}
        changes = [difference.intervals for difference in found.differences]
        results = (
            gate.check(model.name, model.metrics[gate.name], base.get(gate.name), of.get(gate.name))
            for model, of in zip(found.scored, changes or [{}] * len(found.scored), strict=True)
            for gate in gates
        )
        return cls(found, terms, tuple(results))

    @property
    def failure(self) -> GateFailed | None:
        """The error that names the gates that failed; None if all passed."""
        failed = [gate for gate in self.gates if not gate.passed]
        if not failed:
            return None
        shown = [f"{gate.model}: {gate.message}" for gate in failed]
        bound = f"--{failed[0].gate.kind} {failed[0].gate.name}=VALUE"
        return GateFailed(
            f"{len(failed)} of {len(self.gates)} gates failed",
            saw=few(shown, 10),
            fix=f"use a better model, or another bound: {bound}",
        )

    def result(self) -> dict[str, Any]:
        """The JSON of `evaluate`."""
        found, adjustment = self.found, self.terms.adjustment
        first, (many, few_) = found.scored[0] if found.scored else None, self.terms.groups
        grouped = self.terms.counts is not None
        return {
            "models": [_model(model) for model in found.scored],
            "data": dict(first.data) if first else None,
            "alignment": first.alignment if first else None,
            "groups": {"many_above": many, "few_below": few_} if grouped else None,
            "adjustment": None if adjustment is None else _adjustment(adjustment),
            "gates": [_gate(gate) for gate in self.gates],
            "against": None if found.base is None else _against(found, found.base),
        }

    def metrics(self, suffix: str) -> str:
        """The text of `--metrics-out`: OpenMetrics for .prom, otherwise JSON."""
        models = self._metrics()
        if suffix == ".prom":
            return openmetrics(models, ABOUT)
        flat = self.found.scored[0].metrics if len(models) == 1 else models
        return json.dumps(finite(flat), indent=1) + "\n"

    def predictions(self, suffix: str) -> str:
        """The text of `--predictions-out`, in the format of that suffix."""
        one = self.found.scored[0]
        rows = prediction_rows(one.labels, one.predicted, one.confidence, one.classes, one.names)
        return FORMATS[suffix or ".csv"](rows)

    def junit(self) -> str:
        """The text of `--junit`."""
        return junit(self.gates, "rescale-cli evaluate")

    def csv(self) -> str:
        """One row per model with its metrics, then one per model and class; an empty cell is n/a.

        The column `class` (the row of the head) is empty in the rows of models, and the columns of
        the metrics are empty in the rows of classes. With a base, each metric is followed by its
        change from the base and the ends of that change's 95 % interval.
        """
        ends = ("change", "change_low", "change_high")
        changes = [f"{name}_{end}" for name in ABOUT for end in ends]
        based = self.found.base is not None
        columns = ["model", "role", *_OF_CLASS, *ABOUT, *(changes if based else [])]
        text = StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(finite(row) for row in _rows(self.found))
        return text.getvalue()

    def tell_github(self) -> None:
        """Write the summary page, the outputs and the annotations of a step of GitHub Actions."""
        append_summary(markdown("rescale-cli evaluate", _columns(self.found), self.gates))
        # The first model's metrics have their own names, those of the next models are numbered.
        append_outputs({
            name if place == 1 else f"{name}_{place}": value
            for place, metrics in enumerate(self._metrics().values(), 1)
            for name, value in metrics.items()
            if value is not None
        })  # fmt: skip
        for gate in self.gates:
            line = annotation(f"gate {gate.gate}", f"{gate.model}: {gate.message}")
            if line is not None and not gate.passed:
                to_stderr(line + "\n")

    def _metrics(self) -> dict[str, Mapping[str, float | None]]:
        return {model.name: model.metrics for model in self.found.scored}

    def show(self) -> None:
        """Print it: the metrics of the models, each class with -v, then the gates."""
        found, terms = self.found, self.terms
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
            known = {k for model in found.scored for k, x in model.metrics.items() if x is not None}
            say("", *definitions(name for name in ABOUT if name in known))
        for model in found.scored if verbosity.get() else ():
            say("", model.name, _class_table(model))
        for model, difference in zip(found.scored, found.differences, strict=False):
            test = difference.mcnemar
            say(
                f"{model.name}: {test.only_second:,} samples right that the base has wrong, "
                f"{test.only_first:,} the other way; McNemar p = {test.p:.2g}"
            )
        for gate in self.gates:
            word = "passed" if gate.passed else "FAILED"
            say(f"{word} {gate.gate}: {gate.message} ({gate.model})")


def _columns(found: Evaluation) -> dict[str, Mapping[str, float | str | None]]:
    """The metrics of the base and of each model, and the changes from the base."""
    if found.base is None:
        return {model.name: model.metrics for model in found.scored}
    columns: dict[str, Mapping[str, float | str | None]] = {
        f"base {found.base.name}": found.base.metrics
    }
    several = len(found.scored) > 1
    for model, difference in zip(found.scored, found.differences, strict=True):
        of = f" of {model.name}" if several else ""
        columns[model.name] = model.metrics
        columns[f"difference{of}"] = {
            name: None if value is None else number(value, "+")
            for name, value in difference.differences.items()
        }
        columns[f"95 % interval{of}"] = {
            name: f"{number(interval.low, '+')} to {number(interval.high, '+')}"
            if interval
            else None
            for name, interval in difference.intervals.items()
        }
    return columns


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
            metric: {"difference": value, "interval": ends_of(difference.intervals.get(metric))}
            for metric, value in difference.differences.items()
        },
        "mcnemar": {
            "only_base_right": test.only_first,
            "only_model_right": test.only_second,
            "p": test.p,
            "test": test.test,
        },
    }


#: Columns of the rows of classes.
_OF_CLASS = (
    "class", "name", "group", "count", "support", "predicted", "recall", "precision", "f1"
)  # fmt: skip


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
        yield from ({"model": model.name, "role": role, **row} for row in per_class(model))


def _changes(difference: Difference) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in ABOUT:
        interval = difference.intervals.get(name)
        found[f"{name}_change"] = difference.differences[name]
        found[f"{name}_change_low"] = None if interval is None else interval.low
        found[f"{name}_change_high"] = None if interval is None else interval.high
    return found


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
            row.append(number(model.metrics[name]))
            if difference is not None:
                row.append(_change(difference, name))
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
    classes = int(np.count_nonzero(model.groups[name]))
    return f"{words} ({classes} class{'' if classes == 1 else 'es'}, {span})"


def _change(difference: Difference, name: str) -> str:
    interval = difference.intervals.get(name)
    ends = None if interval is None else (interval.low, interval.high)
    return change(difference.differences[name], ends)


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
            *(number(entry[key]) for key in ("recall", "precision", "f1")),
        )
    return grid
