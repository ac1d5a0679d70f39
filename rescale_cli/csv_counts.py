"""Counts from text: CSV of classes or of samples, list files, one label a line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from typing import TextIO

from rescale_cli.class_order import RawCounts
from rescale_cli.errors import BadCounts
from rescale_cli.json_text import clip
from rescale_cli.label_sources import IMAGES, DataSpec, counts, list_counts, tally_texts, text_of

LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "class_name", "class_id")
COUNT_COLUMNS = ("count", "counts", "n", "num", "number", "samples", "num_samples", "images",
                 "num_images", "frequency", "support")  # fmt: skip
_FIX = (
    'use a JSON list, {"name": count}, CSV lines `class,count`, a 1-D .npy, or data: --counts FILE'
)


def text_counts(lines: TextIO, source: str) -> RawCounts:
    """Counts or labels from text: a list file, one label a line, or CSV.

    Raises:
        BadCounts: no such form.
        BadInput: a line that is not what the others are.
    """
    first = next((line for line in lines if line.strip()), "")
    every = chain([first], lines)
    path, _, label = first.strip().rpartition(" ")
    if label.isdecimal() and ("/" in path or path.lower().endswith(IMAGES)):
        return list_counts(every, source)
    if label.isdecimal() and path and not any(mark in path for mark in ",;\t"):
        what = f"{source} could be paths with labels, or names with counts"
        raise bad_file(
            what, f"the first line {clip(first.strip(), 80)!r}", "separate by a comma: name,count"
        )
    return csv_counts(every, source)


def csv_counts(lines: Iterator[str], source: str, label: str | None = None) -> RawCounts:
    """Counts from CSV (also ; or tab): `class,count`, or one row a sample with a label column.

    Args:
        lines: the text, with or without a header.
        source: for the errors.
        label: the header of the label column, where the user names it.

    Raises:
        BadCounts: no column is known to be label or count, or a class has two counts.
        BadInput: a row without a label.
    """
    first = next((line for line in lines if line.strip()), "")
    comma = next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.reader(chain([first], lines), delimiter=comma, skipinitialspace=True, strict=True)
    rows = (row for row in reader if any(cell.strip() for cell in row))
    try:
        if not (top := next(rows, [])):
            raise bad_file(f"{source} is empty", "no line with text")
        second = next(rows, [])
        name, count, header = _columns(top, second, label, source)
        body = chain([] if header else [top], [second] if second else [], rows)
        if count is None:
            return tally_texts((_cell(row, name, source).strip() for row in body), source)
        pairs = [(_cell(row, name, source), _number(_cell(row, count, source))) for row in body]
    except csv.Error as error:
        raise bad_file(f"{source} is not valid CSV", str(error)) from None
    if name == count:
        return RawCounts(tuple(value for _, value in pairs), None, "list", source)
    return RawCounts.keyed(pairs, source)


def _columns(
    top: list[str], second: list[str], label: str | None, source: str
) -> tuple[int, int | None, bool]:
    """The columns of class and count (None: one row a sample), and whether `top` is a header.

    One column of counts is returned as both.
    """
    words = [cell.strip().lower() for cell in top]
    header = not any(isinstance(_number(word), int | float) for word in words)
    named = [i for i, word in enumerate(words) if header and word in LABEL_COLUMNS]
    counted = [i for i, word in enumerate(words) if header and word in COUNT_COLUMNS]
    sample = second if header and second else top
    image = sample[0].lower().endswith(IMAGES) if sample else False
    numeric = len(sample) == 2 and isinstance(_number(sample[1]), int | float)
    if label is not None:
        if label in top:
            return top.index(label), None, True
    elif counted and len(words) <= 2 + bool(named):
        other = [i for i in (*named, *range(len(words))) if i not in counted]
        return (other or counted)[0], counted[0], True
    elif named and not (named == [0] and numeric):
        return named[-1], None, True
    elif len(words) == 2 and numeric and not image:
        return 0, 1, header
    elif len(words) == 2 and image:
        return 1, None, not top[0].lower().endswith(IMAGES)
    elif len(words) == 1:
        return 0, None, False
    saw = f"the columns {', '.join(clip(cell, 40) for cell in top[:10])}"
    raise bad_file(f"{source} has no column known to be the label", saw, "csv:FILE?label=COLUMN")


def _cell(row: list[str], column: int, source: str) -> str:
    if column >= len(row):
        raise bad_file(f"{source} has a row that is too short", clip(",".join(row), 80))
    return row[column]


def _number(text: str) -> object:
    """A whole number, a float, or the text itself, which `ClassCounts.of` refuses."""
    text = text.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,300}", text):
        return int(text)
    decimal = r"[+-]?([0-9]+\.?[0-9]*(e[+-]?[0-9]+)?|\.[0-9]+|nan|inf)"
    return float(text) if re.fullmatch(decimal, text, re.IGNORECASE) else text


@counts.register("csv", options=("image", "label"))
def csv_file(spec: DataSpec) -> RawCounts:
    """A table of samples with a label column, or of classes with a count column."""
    with text_of(spec.path) as lines:
        return csv_counts(lines, spec.path.name, spec.options.get("label"))


def bad_file(what: str, saw: str, fix: str = _FIX) -> BadCounts:
    """The error for a file that does not hold counts."""
    return BadCounts(what, saw=clip(saw, 200), fix=fix)
