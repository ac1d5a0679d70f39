"""Counts from text: CSV of classes or of samples, list files, one label a line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TextIO

from rescale_cli.core.classes import RawCounts
from rescale_cli.core.images import Images
from rescale_cli.errors import BadCounts
from rescale_cli.json_text import clip
from rescale_cli.sources.data_spec import DataSpec, counts, datasets
from rescale_cli.sources.image_files import IMAGES, ImageFiles
from rescale_cli.sources.label_sources import bad_data, numbered, tally_texts, text_of
from rescale_cli.sources.list_files import image_root, list_counts

IMAGE_COLUMNS = ("image", "images", "path", "file", "filename", "file_name", "image_path",
                 "filepath", "file_path", "img", "img_path")  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "class_name", "class_id")
COUNT_COLUMNS = ("count", "counts", "n", "num", "number", "samples", "num_samples", "images",
                 "num_images", "frequency", "support")  # fmt: skip
#: What mends most files that were to hold counts.
NAME_COUNTS = (
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
    if is_list_line(first):
        return list_counts(every, source)
    path, _, label = first.strip().rpartition(" ")
    if label.isdecimal() and path and not any(mark in path for mark in ",;\t"):
        what = f"{source} could be paths with labels, or names with counts"
        raise bad_file(
            what, f"the first line {clip(first.strip(), 80)!r}", "separate by a comma: name,count"
        )
    return csv_counts(every, source)


def is_list_line(line: str) -> bool:
    """Whether a line is `relative/path label` beyond doubt."""
    path, _, label = line.strip().rpartition(" ")
    return label.isdecimal() and ("/" in path or path.lower().endswith(IMAGES))


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
    with _table(lines, source, label) as (body, name, count, _):
        if count is None:
            return tally_texts((_cell(row, name, source).strip() for row in body), source)
        pairs = [
            (_cell(row, name, source).strip(), _number(_cell(row, count, source))) for row in body
        ]
    if name == count:
        return RawCounts(tuple(value for _, value in pairs), None, source)
    return RawCounts.keyed(pairs, source)


@contextmanager
def _table(
    lines: Iterator[str], source: str, label: str | None
) -> Iterator[tuple[Iterator[list[str]], int, int | None, list[str]]]:
    """The rows without the header, the columns of label and count, and the first row."""
    first = next((line for line in lines if line.strip()), "")
    comma = next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.reader(chain([first], lines), delimiter=comma, skipinitialspace=True, strict=True)
    rows = (row for row in reader if any(cell.strip() for cell in row))
    try:
        if not (top := next(rows, [])):
            raise bad_file(f"{source} is empty", "no line with text")
        second = next(rows, [])
        name, count, header = _columns(top, second, label, source)
        yield chain([] if header else [top], [second] if second else [], rows), name, count, top
    except csv.Error as error:
        raise bad_file(f"{source} is not valid CSV", str(error)) from None


def csv_entries(
    lines: Iterator[str], source: str, image: str | None = None, label: str | None = None
) -> tuple[list[str], list[str]]:
    """The path and the label of each sample of a CSV, as text.

    Args:
        lines: the text, with or without a header.
        source: for the errors.
        image: the header of the column of paths, where the user names it.
        label: the header of the label column, where the user names it.

    Raises:
        BadInput: no column is known to be the label or the image, or a row is too short.
    """
    with _table(lines, source, label) as (body, name, count, top):
        rows = list(body)
        column = _image_column(top, rows[0] if rows else top, name, image)
        if count is not None or column is None:
            saw = f"the columns {', '.join(clip(cell, 40) for cell in top[:10])}"
            what = f"{source} has no column known to be the image"
            if count is not None:
                what = f"{source} counts classes, and names no images"
            raise bad_data(what, saw, f"csv:{source}?image=COLUMN&label=COLUMN")
        paths = [_cell(row, column, source).strip() for row in rows]
        return paths, [_cell(row, name, source).strip() for row in rows]


def _image_column(top: list[str], sample: list[str], label: int, image: str | None) -> int | None:
    """The column of the paths: named, known by its header, or the one that ends like an image."""
    if image is not None:
        return top.index(image) if image in top else None
    words = [cell.strip().lower() for cell in top]
    known = [i for i, word in enumerate(words) if word in IMAGE_COLUMNS and i != label]
    ends = [i for i, cell in enumerate(sample) if cell.strip().lower().endswith(IMAGES)]
    return next(iter([i for i in ends if i != label] + known), None)


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


@counts.register("csv", options=("image", "label", "root"))
def csv_file(spec: DataSpec) -> RawCounts:
    """A table of samples with a label column, or of classes with a count column."""
    with text_of(spec.path) as lines:
        return csv_counts(lines, spec.path.name, spec.options.get("label"))


@datasets.register("csv", options=("image", "label", "root"))
def csv_images(spec: DataSpec) -> Images:
    """A table of samples; labels are numbers or names, paths lie below root, or the table."""
    source = spec.path.name
    with text_of(spec.path) as lines:
        image, label = spec.options.get("image"), spec.options.get("label")
        names, texts = csv_entries(lines, source, image, label)
    labels, classes = numbered(texts, source)
    root = image_root(spec, spec.path.parent, names)
    return Images(ImageFiles(root, names), labels, classes, names, source)


def bad_file(what: str, saw: str, fix: str = NAME_COUNTS) -> BadCounts:
    """The error for a file that does not hold counts."""
    return BadCounts(what, saw=clip(saw, 200), fix=fix)
