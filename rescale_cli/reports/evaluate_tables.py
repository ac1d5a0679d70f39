"""What `evaluate` shows a person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rescale_cli.core.predictions import data_line
from rescale_cli.evaluating.accuracy_check import prepared_line
from rescale_cli.evaluating.scoring import Difference, Scored, Terms
from rescale_cli.evaluating.side_by_side import Evaluation
from rescale_cli.measures.gates import Verdict
from rescale_cli.measures.metric_names import ABOUT
from rescale_cli.reports.evaluate_report import per_class
from rescale_cli.reports.grid import Grid
from rescale_cli.reports.screen import plain, say, verbosity
from rescale_cli.reports.tables import ends


def show_evaluate(found: Evaluation, verdicts: Sequence[Verdict], terms: Terms) -> None:
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
    columns: list[tuple[Scored, Difference | None]] = []
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
                row.append(_difference(difference, name))
        grid.add(*row, style="bold" if name == "balanced_accuracy" else "")
    return grid


def _short(models: Sequence[Scored]) -> dict[str, str]:
    """What heads each model's column: the name of its file, or its number where two are alike."""
    files = {model.name: plain(Path(model.name).name) for model in models}
    if len(set(files.values())) == len(models):
        return files
    return {model.name: f"model {number}" for number, model in enumerate(models, 1)}


def _title(name: str, model: Scored, terms: Terms) -> str:
    words = name.replace("_", " ")
    if name not in model.groups:
        return words
    many, few = terms.groups
    span = {"many": f"> {many}", "medium": f"{few} to {many}", "few": f"< {few}"}[name]
    return f"{words} ({int(np.count_nonzero(model.groups[name]))} classes, {span})"


def _value(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _difference(difference: Difference, name: str) -> str:
    value, interval = difference.differences[name], difference.intervals.get(name)
    if value is None:
        return "n/a"
    shown = "" if interval is None else f" [{interval.low:+.4f},\u00a0{interval.high:+.4f}]"
    return f"{value:+.4f}{shown}"


def _class_table(model: Scored) -> Grid:
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
