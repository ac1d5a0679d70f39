"""The rows of a table that are read: `?where=COLUMN=VALUE`, and a column of split names."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.counts import few
from rescale_cli.data.spec import DataSpec, pick, split_word
from rescale_cli.errors import BadInput, NeedsDecision, UsageError
from rescale_cli.json_text import clip

#: Lines of a table that are read to see whether a column could hold the names of splits.
_PEEKED = 64


def conditions(spec: DataSpec) -> dict[str, str]:
    """Column and value of each `?where=COLUMN=VALUE`.

    Raises:
        UsageError: one is not of that form.
    """
    found = {}
    for text in spec.options.get("where", "").split("&") if "where" in spec.options else ():
        column, equals, value = text.partition("=")
        if not (column and equals):
            fix = f"{spec.name or 'csv'}:{spec.path}?where=fold=1"
            raise UsageError("?where needs a column and a value", saw=clip(text, 80), fix=fix)
        found[column] = value
    return found


def could_be_splits(values: Sequence[str]) -> bool:
    """Whether all values of a column name splits, and there are some."""
    return bool(values) and all(split_word(value) for value in {*values})


def chosen_rows(
    spec: DataSpec,
    columns: Collection[str],
    read: Callable[[str], Sequence[str]],
    candidates: Sequence[str] = (),
) -> tuple[NDArray[np.int64] | None, str | None]:
    """The rows that the conditions and the split select, and the split.

    Args:
        spec: its options, split and purpose.
        columns: the names of all columns.
        read: a column as text, (N,).
        candidates: columns that hold the names of splits, if all their values do.

    Returns:
        the selected rows, ascending, or None for all; the split, or None where no column names it.

    Raises:
        BadInput: no such column, no row with that value, or no such split.
        NeedsDecision: two columns hold names of splits; NoSplit: see `splits.pick`.
    """
    rows: NDArray[np.int64] | None = None
    wanted = conditions(spec)
    for column, value in wanted.items():
        if column not in columns:
            fix = f"?where=COLUMN={value} with one of these columns"
            raise BadInput(f"{spec.path.name} has no column {clip(column, 40)}",
                           saw=f"columns {few(list(columns), 10)}", fix=fix)  # fmt: skip
        values = read(column)
        here = np.flatnonzero([_same(text, value) for text in values])
        rows = here if rows is None else np.intersect1d(rows, here)
        if not len(rows):
            seen = [text for text, _ in Counter(values).most_common(10)]
            what = f"no row of {spec.path.name} has {column}={value}"
            what += " beside the other conditions" if len(here) else ""
            fix = f"?where={column}={seen[0] if seen else 'VALUE'}"
            raise BadInput(what, saw=clip(f"{column}: {few(seen, 10)}", 200), fix=fix)
    named = [c for c in candidates if could_be_splits(read(c))]
    if typed := [column for column in named if column in wanted]:
        return rows, split_word(wanted[typed[0]])
    if len(named) > 1:
        fix = f"select rows of one: {spec.text()}?where={named[0]}={read(named[0])[0]}"
        what = f"{spec.path.name} has {len(named)} columns that name splits"
        raise NeedsDecision(what, saw=f"columns {few(named)}", fix=fix)
    if not named:
        if spec.split is not None:
            what = f"{spec.path.name} has no splits"
            fix = f"leave out @{spec.split}: {spec.text()}"
            raise BadInput(what, saw="no column whose values are all names of splits", fix=fix)
        return rows, None
    values = read(named[0])
    rows = np.arange(len(values)) if rows is None else rows
    sizes = Counter(values[row] for row in rows.tolist())
    name = pick(spec, sizes, lambda split: f"{sizes[split]:,} rows")
    kept = rows[[values[row] == name for row in rows.tolist()]]
    return kept, split_word(name)


def _same(text: str, value: str) -> bool:
    """Whether a cell has a value: as text, or as a number (pandas writes 1 as 1.0)."""
    if text.strip() == value:
        return True
    try:
        return float(text) == float(value)
    except ValueError:
        return False


def chosen_lines(
    lines: Iterator[str], spec: DataSpec, other: Collection[str]
) -> tuple[Iterator[str], str | None]:
    """The lines of a CSV whose rows are read, and the split; see `chosen_rows`.

    A row that is not read becomes blank lines, so that the numbers of the others stay.

    Args:
        lines: the text, with a header if rows are to be chosen.
        spec: what was typed.
        other: names of columns, in lower case, that do not hold splits: the label, the image.
    """
    head = list(islice(lines, _PEEKED))
    other = {*other, *(v.lower() for k, v in spec.options.items() if k in ("label", "image"))}
    candidates = _candidates(head, other)
    if not candidates and "where" not in spec.options and spec.split is None:
        return chain(head, lines), None
    every = [*head, *lines]
    records = _records(every)
    if records is None:  # whoever reads the table says what is wrong
        return iter(every), None
    names = [cell.strip() for cell in records[0][0]] if records else []

    def read(column: str) -> list[str]:
        place = names.index(column)
        return [row[place].strip() if place < len(row) else "" for row, _, _ in records[1:]]

    rows, split = chosen_rows(spec, names, read, candidates)
    kept = None if rows is None else {*rows.tolist()}
    for number, (_, start, stop) in enumerate(records[1:]):
        if kept is not None and number not in kept:
            every[start:stop] = ["\n"] * (stop - start)
    return iter(every), split


def _candidates(head: list[str], other: Collection[str]) -> list[str]:
    """The columns whose first values are names of splits."""
    records = _records(head[:-1] if len(head) == _PEEKED else head) or []
    names = [cell.strip() for cell in records[0][0]] if records else []
    found = []
    for place, name in enumerate(names):
        values = [row[place] for row, _, _ in records[1:] if place < len(row)]
        if name.lower() not in other and not split_word(name) and could_be_splits(values):
            found.append(name)
    return found


def _records(lines: list[str]) -> list[tuple[list[str], int, int]] | None:
    """Each record with text in it, and the lines it takes; None where this is not CSV."""
    start = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    said = re.fullmatch(r"sep=(.)\s*", lines[start], re.IGNORECASE) if start < len(lines) else None
    start += said is not None
    first = lines[start] if start < len(lines) else ""
    comma = said[1] if said else next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.reader(lines[start:], delimiter=comma, skipinitialspace=True, strict=True)
    found, before = [], start
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                found.append((row, before, start + reader.line_num))
            before = start + reader.line_num
    except csv.Error:
        return None
    return found
