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

from rescale_cli.core.classes import Classes, RawCounts
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
            raise bad_data(
                f"{path.name} is not a text file", f"a byte of value 0 at {head.index(0)}"
            )
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
        raise bad_data(f"{source} must hold one whole number per sample", saw)
    low, high = labels.min().item(), labels.max().item()  # float16 cannot hold MAX_LABEL
    if not (low >= 0 and high <= MAX_LABEL):
        raise bad_data(f"{source} has labels outside 0 to {MAX_LABEL:,}", f"from {low} to {high}")
    for start in range(0, len(labels), 1 << 22):  # as int64 a byte would take eight
        part = labels[start : start + (1 << 22)]
        whole = part.astype(np.int64)
        if labels.dtype.kind == "f" and not np.array_equal(whole, part):
            raise bad_data(f"{source} has fractional labels", f"e.g. {part[whole != part][0]}")
        yield whole


def tally(labels: NDArray[Any], source: str, classes: Classes | None = None) -> RawCounts:
    """Count integer labels (N,): entry i is the number of labels i.

    Args:
        labels: (N,).
        source: for the errors.
        classes: (K,), where they are known; else as many as the largest label says.

    Raises:
        BadInput: see `whole_labels`.
    """
    total = np.zeros(len(classes.names) if classes is not None else 0, np.int64)
    for part in _whole_parts(labels, source):
        found = np.bincount(part, minlength=len(total))
        found[: len(total)] += total
        total = found
    if classes is None or len(classes.names) != len(total):
        classes = Classes.numbered(len(total))
    return RawCounts(tuple(total.tolist()), classes, source)


def numbered(texts: Iterable[str], source: str) -> tuple[Labels, Classes]:
    """Labels as text: whole numbers are indices and names, everything else names, sorted as text.

    Returns:
        labels (N,), each the place of its class, and the classes (K,). Numbers keep their text, but
        whole floats (pandas writes 3 as 3.0 where a label is missing) are integers.

    Raises:
        BadInput: no labels, an empty one, or a number outside 0 to 10^6.

    Example:
        >>> numbered(["owl", "cat", "owl"], "a.csv")[1].names
        ('cat', 'owl')
        >>> labels, classes = numbered(["02", "0", "1.0"], "a.csv")
        >>> labels.tolist(), classes.names
        ([2, 0, 1], ('0', '1', '02'))
    """
    texts = list(texts)
    table, classes = _meaning(Counter(texts), source)
    return np.array([table[text] for text in texts], np.int64), classes


def tally_texts(labels: Iterable[str], source: str) -> RawCounts:
    """Count labels as text; see `numbered`."""
    found = Counter(labels)
    table, classes = _meaning(found, source)
    total = [0] * len(classes.names)
    for text, number in table.items():
        total[number] += found[text]
    return RawCounts(tuple(total), classes, source)


def labels_of(
    values: NDArray[Any], names: tuple[str, ...] | None, source: str
) -> tuple[Labels, Classes]:
    """Labels (N,) and classes (K,) from numbers or texts (N,), and the names of the numbers.

    Raises:
        BadInput: see `whole_labels` and `numbered`; or a number that has no name.
    """
    if values.dtype.kind == "U" and values.ndim == 1:
        return numbered(values.tolist(), source)
    whole = whole_labels(values, source)
    size = int(whole.max()) + 1
    if names is None:
        return whole, Classes.numbered(size)
    if size > len(names):
        what, saw = f"{source} has labels without a name", f"{size - 1}, of {len(names)} names"
        raise bad_data(what, saw, "fetch or write the data again, with a name for each label")
    return whole, Classes(names, tuple(range(len(names))), "dataset")


def tally_of(values: NDArray[Any], names: tuple[str, ...] | None, source: str) -> RawCounts:
    """Count what `labels_of` reads; a name without samples is a zero."""
    if values.dtype.kind == "U" and values.ndim == 1:
        return tally_texts(values.tolist(), source)
    whole, classes = labels_of(values, names, source)
    total = np.bincount(whole, minlength=len(classes.names)).tolist()
    return RawCounts(tuple(total), classes, source)


def whole_text(text: str) -> str:
    """A whole float as the integer it is: "3.0", and "3.000e+00" as numpy.savetxt writes it.

    Example:
        >>> whole_text("3.0"), whole_text("1.1e+01"), whole_text("v2.0.1")
        ('3', '11', 'v2.0.1')
    """
    if re.fullmatch(r"-?[0-9]\.?[0-9]*[eE][+-]?[0-9]{1,2}", text) and float(text).is_integer():
        return str(int(float(text)))
    return re.sub(r"\.0+$", "", text)


def _meaning(found: Counter[str], source: str) -> tuple[dict[str, int], Classes]:
    """The class of each text, and the classes: numbers keep their text, names are sorted."""
    if "" in found or not found:
        raise bad_data(f"{source} has samples without a label", f"{found['']} of {found.total()}")
    plain = {text: whole_text(text) for text in found}
    if not all(re.fullmatch("-?[0-9]{1,9}", text) for text in plain.values()):
        names = tuple(sorted(found))
        return {name: i for i, name in enumerate(names)}, Classes(names)
    table = {text: int(whole) for text, whole in plain.items()}
    low, high = min(table.values()), max(table.values())
    if low < 0 or high > MAX_LABEL:
        raise bad_data(f"{source} has labels outside 0 to {MAX_LABEL:,}", f"{low} to {high}")
    written = {whole: int(whole) for whole in plain.values()}
    if len({*written.values()}) < len(written):  # "1" and "01" are two names
        names = tuple(sorted(written))
        place = {name: i for i, name in enumerate(names)}
        return {text: place[whole] for text, whole in plain.items()}, Classes(names)
    texts = {number: whole for whole, number in written.items()}
    names = tuple(texts.get(i, str(i)) for i in range(high + 1))
    return table, Classes(names, tuple(range(high + 1)), "index")
