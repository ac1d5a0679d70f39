"""The numbers of `evaluate` as one CSV table: each model, then each class of each model."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from io import StringIO

from rescale_cli.evaluating.scoring import Difference, Scored
from rescale_cli.evaluating.side_by_side import Evaluation
from rescale_cli.measures.metric_names import ABOUT
from rescale_cli.reports.evaluate_report import per_class

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


def _classes(model: Scored) -> Iterator[dict[str, object]]:
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
