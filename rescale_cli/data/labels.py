"""Labels of samples and names of classes, whoever wrote them."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import Classes, RawCounts, RowHints
from rescale_cli.core.predictions import Labels
from rescale_cli.errors import BadInput
from rescale_cli.files.reading import opened, read_whole, refuse_lfs_pointer
from rescale_cli.json_text import clip, parse_json

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


MAX_NAMES = 64 << 20
#: Of these, the place of a class is its number.
BY_NUMBER = ("index", "dataset", "run")
#: What `counts` writes as the origin of an order.
ORDERS = ("imagefolder", "natural", *BY_NUMBER, "text", "file")
_IN_BRACKETS = re.compile(rb"\[[A-Za-z][^\[\]\"',]*\][ \t]*([,;\t\r\n]|$)")


def read_class_names(path: Path | str) -> tuple[str, ...]:
    """The names of the head's rows, from `--classes FILE`; see `read_said`."""
    return read_said(path)[0]


def read_said(path: Path | str, option: str = "--classes") -> tuple[tuple[str, ...], str, bool]:
    """The names of the head's rows from a file, and what put them in that order.

    Args:
        path: text, one a line; a JSON list; {"0": "cat"}; {"cat": 0}; {"counts", "classes"}, as
            `counts` writes it.
        option: whose file it is, for the errors.

    Returns:
        names (C,); their order as the file says it, or ""; and whether a user chose that order.

    Raises:
        BadInput: none of these, a row without a name, or a name given twice.
    """
    path = Path(path)
    fix = f"give one name per row, one per line, in the order of the head's rows: {option} FILE"
    try:
        data = read_whole(path, MAX_NAMES, BadInput)
    except BadInput as error:
        error.fix = f"name a file of names, such as what `rescale-cli counts` writes: {option} FILE"
        raise
    order, given = "", False
    if is_json(data):
        value = parse_json(data, path.name, BadInput)
        listed = names_in(value)
        names = [str(name) if type(name) is int else name for name in listed]
        if isinstance(value, dict) and "counts" in value:
            order, given = order_in(value), value.get("order_given") is True
            if not names and order in BY_NUMBER and isinstance(value["counts"], list):
                names = [str(i) for i in range(len(value["counts"]))]
    else:
        with text_of(path) as lines:
            names = [line.strip() for line in lines.read().rstrip().split("\n")]
    if not names or not all(isinstance(name, str) and name for name in names):
        saw = "an empty line" if names and "" in names else "it is not a list of names"
        raise BadInput(f"{path.name} does not name the classes", saw=saw, fix=fix)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        saw = ", ".join(clip(name, 80) for name in twice[:5])
        raise BadInput(f"{path.name} gives two rows the same name", saw=saw, fix=fix)
    return tuple(names), order, given


#: A file of names; names in row order; or a label map, from name to row or from row to name.
ClassesLike = str | PathLike[str] | Sequence[str] | Mapping[str, int] | Mapping[int, str]


def row_hints(
    classes: ClassesLike | None,
    label_order: str | PathLike[str] | Sequence[str] | None = None,
    order: str | None = None,
) -> RowHints:
    """What the user says about the head's rows.

    Args:
        classes: `--classes`: a file, the names, or a label map such as `class_to_idx`.
        label_order: `--label-order`: name, index, a file, or the labels in row order.
        order: `--order`: imagefolder, natural or index.

    Raises:
        BadInput: a file that does not hold names; see `read_said`. Or a map without a name for each
            row.
    """
    names, origin, given, source = None, "", False, "--classes"
    if isinstance(classes, str | PathLike):
        names, origin, given = read_said(Path(classes))
        source = Path(classes).name
    elif classes is not None:
        names = _listed_names(classes)
    by, listed = "", None
    if isinstance(label_order, str | PathLike):
        by = str(label_order) if label_order in ("name", "index") else ""
        listed = None if by else read_said(Path(label_order), "--label-order")[0]
    elif label_order is not None:
        listed = tuple(label_order)
    return RowHints(names, origin, given, source, by, listed, order or "")


def _listed_names(classes: Any) -> tuple[str, ...]:
    """The names in row order; which side of a label map is the rows is decided by the types."""
    if hasattr(classes, "tolist"):  # a Series has an index, an array or an Index has not
        has_keys = hasattr(classes, "items") and hasattr(classes, "index")
        values = classes.tolist()
        classes = dict(zip(classes.index.tolist(), values, strict=True)) if has_keys else values
    names: Any = classes
    if isinstance(classes, Mapping):
        pairs = list(classes.items())
        if all(whole_key(row) is not None for _, row in pairs):
            pairs = [(row, name) for name, row in pairs]
        numbers = [int(r) if isinstance(r, str) and r.isdecimal() else whole_key(r)
                   for r, _ in pairs]  # fmt: skip
        table = dict(zip(numbers, (name for _, name in pairs), strict=True))
        names = [table.get(row) for row in range(len(pairs))]
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise BadInput(
            "the classes do not name the rows of the head",
            saw=clip(repr(classes)),
            fix="give the names in row order, a dict from name to row or from row to name, or a "
            "file: --classes FILE",
        )
    return tuple(map(str, names))


def whole_key(key: object) -> int | None:
    """An integer of any library, or a whole float, as an int; None for anything else."""
    try:
        whole = int(key) if isinstance(key, float) and key.is_integer() else index(key)  # type: ignore[arg-type]
    except TypeError:
        return None
    return None if isinstance(key, bool) or whole < 0 else whole


#: One name or number, or several.
Names = str | int | Iterable[str | int] | None


def names_of(given: Names) -> tuple[str, ...]:
    """Names as a tuple; a text or a number alone is one name."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        return () if given is None else (str(given),)
    return tuple(map(str, given))


def order_in(value: dict[Any, Any]) -> str:
    """What a counts.json says its order comes from; "file" where it says nothing known."""
    order = value.get("order")
    order = {"timm": "natural", "label": "dataset"}.get(order, order) if order else "file"
    return order if isinstance(order, str) and order in ORDERS else "file"


def names_in(value: Any) -> list[Any]:
    """The names in head order, from parsed JSON; [] if there are none."""
    match value:
        case {"schema": str(), "result": dict(result)}:
            return names_in(result)
        case {"classes": list(names)} | list(names):
            return names
        case {"classes": dict(table)}:
            return names_in(table)
        case {"counts": list()}:
            return []
        case dict(table):
            size = len(table)
            if all(type(row) is int for row in table.values()):
                table = {str(row): name for name, row in table.items()}
            rows = [table.get(str(i)) for i in range(size)]
            return rows if None not in rows else []
    return []


def is_json(data: bytes) -> bool:
    """Whether a text begins as a JSON object or list; a first line [pad] is the name of a class."""
    begin = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    return begin[:1] in (b"{", b"[") and not _IN_BRACKETS.match(begin)
