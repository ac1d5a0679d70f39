"""Counts and samples from CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from rescale_cli.core.classes import NUMBER, RawCounts
from rescale_cli.core.predictions import Images
from rescale_cli.data.image_folders import image_root, list_counts
from rescale_cli.data.images import IMAGES, ImageFiles
from rescale_cli.data.labels import bad_data, numbered, tally_texts, text_of, whole_text
from rescale_cli.data.rows import chosen_lines
from rescale_cli.data.spec import ANY_SPLIT, DataSpec, counts, datasets
from rescale_cli.errors import BadCounts, NeedsDecision
from rescale_cli.json_text import clip

IMAGE_COLUMNS = ("image", "images", "image_id", "id_code", "imageid", "path", "file", "filename",
                 "file_name", "image_path", "filepath", "file_path", "img", "img_path")  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "class_name", "class_id",
                 "classid", "classname", "label_name", "species", "diagnosis")  # fmt: skip
COUNT_COLUMNS = ("count", "counts", "n", "num", "number", "samples", "num_samples", "images",
                 "num_images", "frequency", "support")  # fmt: skip
#: What pandas and others write where a value is missing.
_MISSING = ("", "#N/A", "#NA", "<NA>", "N/A", "n/a", "NA", "NULL", "null", "None")
#: Columns that do not hold the names of splits.
KNOWN_COLUMNS = {*IMAGE_COLUMNS, *LABEL_COLUMNS, *COUNT_COLUMNS}
#: What mends most files that were to hold counts.
NAME_COUNTS = (
    'use a JSON list, {"name": count}, CSV lines `class,count`, a 1-D .npy, or data: --counts FILE'
)


def text_counts(lines: Iterator[str], source: str, *, tally: bool = False) -> RawCounts:
    """Counts or labels from text: a list file, one label a line, or CSV; see `csv_counts`.

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
    return csv_counts(every, source, tally=tally)


def is_list_line(line: str) -> bool:
    """Whether a line is `relative/path label` beyond doubt."""
    path, _, label = line.strip().rpartition(" ")
    return label.isdecimal() and ("/" in path or path.lower().endswith(IMAGES))


def csv_counts(
    lines: Iterator[str], source: str, label: str | None = None, *, tally: bool = False
) -> RawCounts:
    """Counts from CSV (also ; or tab): `class,count`, or one row a sample with a label column.

    Args:
        lines: the text, with or without a header.
        source: for the errors.
        label: the header of the label column, where the user names it.
        tally: the table is data to be counted, so that only a header can make it counts.

    Raises:
        BadCounts: no column is known to be label or count, or a class has two counts.
        BadInput: a row without a label.
        NeedsDecision: two columns could be the label, or the table could be counts or samples.
    """
    table = _Table.of(lines, source, label)
    if table.count is None:
        return tally_texts((text for _, text in table.labels()), source)
    rows = list(table.rows)
    pairs = [(_cell(row, table.label, source).strip(), _number(_cell(row, table.count, source)))
             for _, row in rows]  # fmt: skip
    if table.label == table.count:
        return RawCounts(tuple(value for _, value in pairs), None, source)
    if not table.header and (tally or len({name for name, _ in pairs}) < len(pairs)):
        raise _samples_or_counts(source, ",".join(map(str, pairs[0])))
    whole = [(whole_text(name), number) for name, number in pairs]
    numbers = all(NUMBER.fullmatch(name) for name, _ in whole)  # pandas writes 3 as 3.0
    return RawCounts.keyed(whole if numbers else pairs, source)


def _samples_or_counts(source: str, first: str) -> NeedsDecision:
    return NeedsDecision(
        f"{source} has no header, so its numbers could be labels of samples or counts of classes",
        saw=f"the first line {clip(first, 80)!r}",
        fix="write a first line: `class,count` over counts, `image,label` over samples, or `count` "
        "or `label` over a single column",
    )


@dataclass(frozen=True)
class _Table:
    """A CSV whose columns are known."""

    source: str
    top: list[str]
    """The first row."""
    header: bool
    """Whether the first row names the columns."""
    rows: Iterator[tuple[int, list[str]]]
    """The other rows, each with its line number."""
    label: int
    """The column of the label, or of the class."""
    count: int | None
    """The column of the counts; None where each row is a sample."""
    sample: list[str]
    """The first row of data."""

    @classmethod
    def of(cls, lines: Iterator[str], source: str, label: str | None) -> _Table:
        """Find the columns."""
        rows = _rows(lines, source)
        _, top = next(rows, (0, []))
        if not top:
            raise bad_file(f"{source} is empty", "no line with text")
        number, second = next(rows, (0, []))
        name, count, header = _columns(top, second, label, source)
        body = chain([] if header else [(1, top)], [(number, second)] if second else [], rows)
        return cls(source, top, header, body, name, count, second if header else top)

    def labels(self) -> Iterator[tuple[list[str], str]]:
        """Each row with its label.

        Raises:
            BadInput: a label is missing; the error has its line.
        """
        for number, row in self.rows:
            text = _cell(row, self.label, self.source).strip()
            if text in _MISSING or text.lower() in ("nan", "<na>"):
                what = f"line {number} of {self.source} has no label"
                fix = "take out the rows without a label, or write it; a class needs another name"
                raise bad_data(what, clip(",".join(row), 80), fix)
            yield row, text


def _rows(lines: Iterator[str], source: str) -> Iterator[tuple[int, list[str]]]:
    """The rows with text in them, by the number of their last line; Excel's `sep=;` is obeyed."""
    skipped, first = 0, next(lines, "")
    while first and not first.strip():
        skipped, first = skipped + 1, next(lines, "")
    if said := re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE):
        skipped, first, comma = skipped + 1, next(lines, ""), said[1]
    else:
        comma = next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.reader(chain([first], lines), delimiter=comma, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num + skipped, row
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
        NeedsDecision: two columns could be the label or the image.
    """
    table = _Table.of(lines, source, label)
    if table.count is not None:
        what = f"{source} counts classes, and names no images"
        raise bad_data(what, _shown(table.top), f"csv:{source}?image=COLUMN&label=COLUMN")
    column = _image_column(table, image)
    entries = [(_cell(row, column, source).strip(), text) for row, text in table.labels()]
    return [path for path, _ in entries], [text for _, text in entries]


def _image_column(table: _Table, image: str | None) -> int:
    """The column of the paths: named, known by its header, or the one that ends like an image."""
    words = [cell.strip().lower() for cell in table.top]
    ends = [i for i, cell in enumerate(table.sample)
            if cell.strip().lower().endswith((*IMAGES, ".gif"))]  # fmt: skip
    known = [i for i, word in enumerate(words) if table.header and word in IMAGE_COLUMNS]
    if image is not None:
        found = [i for i, cell in enumerate(table.top) if cell == image]
    else:
        found = [i for i in known if i in ends] or known or ends
        found = [i for i in found if i != table.label]
    if len(found) == 1:
        return found[0]
    fix = f"csv:{table.source}?image=COLUMN&label=COLUMN"
    if not found:
        what = f"{table.source} has no column known to be the image"
        raise bad_data(what, _shown(table.top), fix)
    raise _ambiguous(table.source, "image", [table.top[i] for i in found], fix)


def _ambiguous(source: str, kind: str, columns: list[str], fix: str) -> NeedsDecision:
    what = f"{len(columns)} columns of {source} could be the {kind}"
    return NeedsDecision(what, saw=clip(", ".join(columns), 200), fix=fix)


def _shown(top: list[str]) -> str:
    return f"the columns {', '.join(clip(cell, 40) for cell in top[:10])}"


def _columns(
    top: list[str], second: list[str], label: str | None, source: str
) -> tuple[int, int | None, bool]:
    """The columns of class and count (None: one row a sample), and whether `top` is a header.

    One column of counts is returned as both.
    """
    words = [cell.strip().lower() for cell in top]
    header = not any(isinstance(_number(word), int | float) for word in words)
    sample = second if header and second else top
    if label is not None and label in top:
        return top.index(label), None, True
    named = [i for i, word in enumerate(words) if header and word in LABEL_COLUMNS]
    image = [i for i, word in enumerate(words) if header and word in IMAGE_COLUMNS]
    numeric = {i for i, cell in enumerate(sample) if isinstance(_number(cell), int | float)}
    counted = [
        i
        for i, word in enumerate(words)
        if header and word in COUNT_COLUMNS and (i in numeric or not second or i not in image)
    ]
    paths = any(cell.strip().lower().endswith((*IMAGES, ".gif", ".jfif")) for cell in sample[:1])
    if len(words) > 2:
        counted = [i for i in counted if i in numeric or not second]
    elif paths and len(words) == 2:  # a file is no class
        counted = []
    if counted and len(named) == 2 and len({*named} & numeric) == 1:
        named = [i for i in named if i not in numeric]  # the number of a class and its name
    if label is None and len(named) > 1:
        fix = f"name it: csv:{source}?label={top[named[0]]}"
        raise _ambiguous(source, "label", [top[i] for i in named], fix)
    if label is None and len(counted) == 1 and (named or len(words) <= 2):
        other = [i for i in (*named, *range(len(words))) if i not in counted]
        return (other or counted)[0], counted[0], True
    if label is None and named:
        return named[0], None, True
    if label is None and len(words) == 2 and (paths or image == [0]):
        return 1, None, header and not words[0].endswith(IMAGES)
    if label is None and len(words) == 2 and 1 in numeric and not header:
        return 0, 1, False
    if label is None and len(words) == 1:
        if numeric and not header:
            raise _samples_or_counts(source, top[0])
        return 0, None, False
    raise bad_file(
        f"{source} has no column known to be the label", _shown(top), "csv:FILE?label=COLUMN"
    )


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


@counts.register("csv", options=("image", "label", "root", "where"), splits=ANY_SPLIT)
def csv_file(spec: DataSpec) -> RawCounts:
    """A table of samples with a label column, or of classes with a count column."""
    with text_of(spec.path) as text:
        lines, split = chosen_lines(text, spec, KNOWN_COLUMNS)
        raw = csv_counts(lines, spec.path.name, spec.options.get("label"), tally=spec.tally)
        return replace(raw, split=split)


@datasets.register("csv", options=("image", "label", "root", "where"), splits=ANY_SPLIT)
def csv_images(spec: DataSpec) -> Images:
    """A table of samples; labels are numbers or names, paths lie below root, or the table."""
    source = spec.path.name
    with text_of(spec.path) as text:
        lines, split = chosen_lines(text, spec, KNOWN_COLUMNS)
        image, label = spec.options.get("image"), spec.options.get("label")
        names, texts = csv_entries(lines, source, image, label)
    labels, classes = numbered(texts, source)
    root = image_root(spec, spec.path.parent, names)
    return Images(ImageFiles(root, names), labels, classes, names, source, split=split)


def bad_file(what: str, saw: str, fix: str = NAME_COUNTS) -> BadCounts:
    """The error for a file that does not hold counts."""
    return BadCounts(what, saw=clip(saw, 200), fix=fix)
