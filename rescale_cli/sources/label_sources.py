"""Labels of samples, whoever wrote them, as numbers (N,) and names (C,), and their counts."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.class_order import RawCounts
from rescale_cli.core.predictions import Labels
from rescale_cli.errors import BadInput
from rescale_cli.files.regular_file import opened, refuse_lfs_pointer
from rescale_cli.json_text import clip

MAX_BYTES = 1 << 30
MAX_LINE = 1 << 20
MAX_LABEL = 1_000_000


#: What mends most errors where labels are read to be counted.
NAME_LABELS = "name the labels of the training set"


def bad_data(what: str, saw: str, fix: str = NAME_LABELS) -> BadInput:
    """The error of every source for data that cannot be read."""
    return BadInput(what, saw=clip(saw, 200), fix=fix)


class _Lines(io.TextIOWrapper):
    """Text whose lines are bounded: a sparse file is one line of a gigabyte."""

    def __next__(self) -> str:  # type: ignore[override]
        line = self.readline(MAX_LINE)
        if len(line) == MAX_LINE:
            raise bad_data("a line is too long for a list of labels", clip(repr(line[:80])))
        if not line:
            raise StopIteration
        return line


@contextmanager
def text_of(path: Path) -> Iterator[TextIO]:
    """The lines of a regular UTF-8 file of at most 1 GiB; damage found on the way is an error."""
    with opened(path, BadInput) as fd:
        size = os.fstat(fd).st_size
        head = os.pread(fd, 4096, 0)
        refuse_lfs_pointer(path, head, BadInput)
        if size > MAX_BYTES:
            raise bad_data(f"{path.name} is too large for a list of labels", f"{size:,} bytes")
        if b"\0" in head:
            raise bad_data(f"{path.name} is no text", f"a byte of value 0 at {head.index(0)}")
        with _Lines(os.fdopen(fd, "rb", closefd=False), encoding="utf-8-sig") as text:
            try:
                yield text
            except UnicodeDecodeError as error:
                raise bad_data(f"{path.name} is not UTF-8 text", str(error)) from None


def whole_labels(labels: NDArray[Any], source: str) -> Labels:
    """Labels (N,) of any numeric kind as whole numbers from 0 to 10^6.

    Raises:
        BadInput: no labels, not (N,), not whole numbers, negative, above 10^6.
    """
    return np.concatenate(list(_whole_parts(labels, source)))


def _whole_parts(labels: NDArray[Any], source: str) -> Iterator[Labels]:
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iuf":
        saw = f"shape {labels.shape}, dtype {labels.dtype}"
        raise bad_data(f"{source} does not hold one whole number a sample", saw)
    low, high = labels.min(), labels.max()
    if not (low >= 0 and high <= MAX_LABEL):
        raise bad_data(f"{source} has labels outside 0 to {MAX_LABEL:,}", f"from {low} to {high}")
    for start in range(0, len(labels), 1 << 22):  # as int64 a byte would take eight
        part = labels[start : start + (1 << 22)]
        whole = part.astype(np.int64)
        if labels.dtype.kind == "f" and not np.array_equal(whole, part):
            raise bad_data(f"{source} has fractional labels", f"e.g. {part[whole != part][0]}")
        yield whole


def tally(labels: NDArray[Any], source: str, names: tuple[str, ...] | None = None) -> RawCounts:
    """Count integer labels (N,): entry i is the number of labels i, C the largest label + 1.

    Raises:
        BadInput: see `whole_labels`.
    """
    total = np.zeros(len(names or ()), np.int64)
    for part in _whole_parts(labels, source):
        found = np.bincount(part, minlength=len(total))
        found[: len(total)] += total
        total = found
    known = names if names is not None and len(names) == len(total) else None
    return RawCounts(tuple(total.tolist()), known, "index", source)


def numbered(texts: Iterable[str], source: str) -> tuple[Labels, tuple[str, ...] | None]:
    """Labels as text: whole numbers are themselves, everything else names, in sorted order.

    Returns:
        labels (N,), and the names (C,), None where the labels are numbers.

    Raises:
        BadInput: no labels, an empty one, or a number outside 0 to 10^6.

    Example:
        >>> numbered(["owl", "cat", "owl"], "a.csv")
        (array([1, 0, 1]), ('cat', 'owl'))
        >>> numbered(["7", "0"], "a.csv")
        (array([7, 0]), None)
    """
    texts = list(texts)
    table, names = _meaning(Counter(texts), source)
    return np.array([table[text] for text in texts], np.int64), names


def tally_texts(labels: Iterable[str], source: str) -> RawCounts:
    """Count labels as text; see `numbered`."""
    found = Counter(labels)
    table, names = _meaning(found, source)
    if names is not None:
        return RawCounts.keyed(((name, found[name]) for name in names), source, ordered=True)
    total = np.zeros(max(table.values()) + 1, np.int64)
    for text, number in table.items():
        total[number] += found[text]
    return RawCounts(tuple(total.tolist()), None, "index", source)


def labels_of(
    values: NDArray[Any], names: tuple[str, ...] | None, source: str
) -> tuple[Labels, tuple[str, ...] | None]:
    """Labels (N,) and names (C,) from numbers or texts (N,), and the names of the numbers.

    Raises:
        BadInput: see `whole_labels` and `numbered`; or a number that has no name.
    """
    if values.dtype.kind == "U" and values.ndim == 1:
        return numbered(values.tolist(), source)
    whole = whole_labels(values, source)
    if names is not None and int(whole.max()) >= len(names):
        what, saw = f"{source} has labels without a name", f"{whole.max()}, of {len(names)} names"
        raise bad_data(what, saw, "fetch or write the data again, with a name for each label")
    return whole, names


def tally_of(values: NDArray[Any], names: tuple[str, ...] | None, source: str) -> RawCounts:
    """Count what `labels_of` reads; a name without samples is a zero."""
    if values.dtype.kind == "U" and values.ndim == 1:
        return tally_texts(values.tolist(), source)
    if names is None:
        return tally(values, source)
    total = np.bincount(labels_of(values, names, source)[0], minlength=len(names)).tolist()
    return RawCounts.keyed(zip(names, total, strict=True), source, ordered=True)


def _meaning(found: Counter[str], source: str) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """The number of each text, and the names, None where the texts are numbers."""
    if "" in found or not found:
        raise bad_data(f"{source} has samples without a label", f"{found['']} of {found.total()}")
    if not all(re.fullmatch("-?[0-9]{1,9}", text) for text in found):
        names = tuple(sorted(found))
        return {name: i for i, name in enumerate(names)}, names
    table = {text: int(text) for text in found}
    low, high = min(table.values()), max(table.values())
    if low < 0 or high > MAX_LABEL:
        raise bad_data(f"{source} has labels outside 0 to {MAX_LABEL:,}", f"{low} to {high}")
    return table, None
