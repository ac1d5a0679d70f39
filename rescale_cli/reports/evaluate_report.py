"""The JSON of `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rescale_cli.core.methods import Adjustment
from rescale_cli.evaluating.scoring import Difference, Scored, Terms
from rescale_cli.evaluating.side_by_side import Evaluation
from rescale_cli.measures.gates import Verdict
from rescale_cli.measures.metrics import Confusion
from rescale_cli.measures.significance import Interval
from rescale_cli.reports.sweep_report import tied_to

#: Up to so many classes the confusion matrix is written in full.
MOST_DENSE = 200


def evaluate_result(found: Evaluation, verdicts: Sequence[Verdict], terms: Terms) -> dict[str, Any]:
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


def _model(model: Scored) -> dict[str, Any]:
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


def per_class(model: Scored) -> list[dict[str, Any]]:
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


def _gate(verdict: Verdict) -> dict[str, Any]:
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


def _against(found: Evaluation, base: Scored) -> dict[str, Any]:
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
