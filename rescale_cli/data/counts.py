"""Counts from outside: the files of `--counts`, the data of `counts DATA`, numbers in Python.

What a file is, its content says, never its suffix alone. Nothing in it is run.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from rescale_cli.core.alignment import in_row_order
from rescale_cli.core.classes import Classes, HeadRows, RawCounts, RowHints
from rescale_cli.core.counts import bad_counts, few
from rescale_cli.data.arrays import idx_labels
from rescale_cli.data.csv_files import KNOWN_COLUMNS, bad_file, text_counts
from rescale_cli.data.datasets import run_folder, run_images
from rescale_cli.data.image_folders import coco_counts
from rescale_cli.data.labels import (
    BY_NUMBER,
    MAX_BYTES,
    ClassesLike,
    is_json,
    names_in,
    order_in,
    row_hints,
    text_of,
    whole_key,
)
from rescale_cli.data.rows import chosen_lines
from rescale_cli.data.spec import ANY_SPLIT, DataSpec, counts, named_folder, parse_spec, table_only
from rescale_cli.errors import BadCounts, BadInput
from rescale_cli.files.arrays import npy_header
from rescale_cli.files.reading import opened, read_whole, refuse_lfs_pointer
from rescale_cli.json_text import parse_json
from rescale_cli.long_work import long_work

MAX_COUNTS = 16 << 20


def read_counts(spec: str, stdin: BinaryIO | None = None) -> RawCounts:
    """What `--counts` names: a file of counts, data to count, or `-`.

    Args:
        spec: `-`, a path, or a source of `counts DATA` such as `list:train.txt`.
        stdin: read for `-`, at most 16 MiB; sys.stdin's bytes if None.

    Raises:
        BadCounts: not counts in a known form, damaged, too large, or a key given twice.
        BadInput: no such file, no regular file, or data that cannot be counted.
        UsageError: an unknown source, option or split.
    """
    if spec != "-" and not _is_pipe(spec):
        return count_data(spec)
    source = "stdin" if spec == "-" else spec
    if spec != "-":
        with Path(spec).open("rb") as pipe:
            data = pipe.read(MAX_COUNTS + 1)
    elif stdin is None and sys.stdin is None:
        raise bad_file("there is no stdin to read counts from", "stdin is closed")
    else:
        data = (stdin or sys.stdin.buffer).read(MAX_COUNTS + 1)
    if len(data) > MAX_COUNTS:
        raise bad_file(f"{source} is too long", f"more than {MAX_COUNTS:,} bytes")
    if b"\0" in data:
        raise bad_file(f"{source} is neither JSON nor CSV", "a byte of value 0")
    if is_json(data):
        return json_counts(parse_json(data, source, BadCounts), source)
    try:
        return text_counts(io.StringIO(data.decode("utf-8-sig")), source)
    except UnicodeDecodeError as error:
        raise bad_file(f"{source} is neither JSON nor CSV in UTF-8", str(error)) from None


def _is_pipe(spec: str) -> bool:
    """Whether a path leads to a pipe, as `<(zcat counts.json.gz)` of a shell does."""
    try:
        return stat.S_ISFIFO(os.stat(spec).st_mode)  # noqa: PTH116 - Path.stat raises for NUL
    except (OSError, ValueError):
        return False


def count_data(spec: str, *, tally: bool = False) -> RawCounts:
    """Training samples of each class of `name:PATH?key=value@split`, or of a path by its content.

    Args:
        spec: a source, or a path.
        tally: it is data to be counted, so that only a header can make a table one of counts.

    Raises:
        BadInput: no such file, damaged, or not labels; BadCounts for a file of counts.
        UsageError: an unknown source, option or split.
    """
    parsed = replace(parse_spec(spec, counts), purpose="count")
    if not parsed.name:
        if not os.path.isdir(parsed.path):  # noqa: PTH112 - Path.is_dir raises for some paths
            return _by_content(parsed, tally=tally)
        parsed = named_folder(parsed, counts)
    splits = counts.entry(parsed.name).facts.get("splits")
    if splits not in (None, ANY_SPLIT):
        parsed = replace(parsed, split=parsed.split or "train")
    with long_work(f"counting the images of {parsed.path}", "images"):
        raw = counts[parsed.name](replace(parsed, tally=tally))
    return raw if raw.split else replace(raw, split=parsed.split)


def _by_content(spec: DataSpec, *, tally: bool = False) -> RawCounts:
    """Counts, or labels to count, from one regular file."""
    path = spec.path
    with opened(path, BadInput) as fd:
        head = os.pread(fd, 4096, 0)
    refuse_lfs_pointer(path, head, BadInput)
    if b"\0" in head or is_json(head):
        table_only(spec)
    if head.startswith(b"PK\x03\x04"):
        return counts["npz"](DataSpec("npz", path))
    if head.startswith((b"\x1f\x8b", b"\x00\x00\x08\x01")):
        return idx_labels(path)
    if head.startswith(b"\x93NUMPY"):
        return _npy_counts(path)
    if is_json(head):
        coco = b'"images"' in head or b'"annotations"' in head
        data = read_whole(path, MAX_BYTES if coco else MAX_COUNTS, BadCounts)
        value = parse_json(data, path.name, BadCounts)
        if isinstance(value, dict) and isinstance(value.get("annotations"), list):
            return coco_counts(value, path)
        return json_counts(value, path.name)
    with text_of(path) as lines:
        chosen, split = chosen_lines(lines, spec, KNOWN_COLUMNS)
        return replace(text_counts(chosen, path.name, tally=tally), split=split)


def _npy_counts(path: Path) -> RawCounts:
    data = read_whole(path, MAX_COUNTS, BadCounts)
    try:
        header = npy_header(data[: 1 << 16])
        if header.nbytes != len(data) - header.size:
            saw = f"its header says {header.shape} of {header.dtype}"
            raise ValueError(f"{saw}, but {len(data) - header.size:,} bytes follow")
    except ValueError as error:
        raise bad_file(f"{path.name} cannot be read as .npy", str(error)) from None
    if len(header.shape) != 1:
        saw = f"shape {header.shape}"
        raise bad_file(f"{path.name} must hold one number per class", saw)
    array = np.frombuffer(data, header.dtype, offset=header.size)
    return RawCounts(tuple(array.tolist()), None, path.name)


@counts.register("run", splits=("train", "val"))
def run_counts(spec: DataSpec) -> RawCounts:
    """The training images of a run, from its counts.json; with `@val`, those it held out."""
    if spec.split == "val":
        images = run_images(spec)
        assert images.labels is not None
        assert images.classes is not None
        found = np.bincount(images.labels, minlength=len(images.classes.names))
        return RawCounts(tuple(found.tolist()), images.classes, images.source)
    return read_counts(str(run_folder(spec) / "counts.json"))


def json_counts(value: Any, source: str) -> RawCounts:
    """Counts from parsed JSON: a list, {"name": n}, {"0": n}, {"counts": ..., "classes": [...]}.

    Our own file says what its order comes from: `"order": "imagefolder"`. What `--json` printed is
    read, too.

    Raises:
        BadCounts: none of these.

    Example:
        >>> json_counts({"dog": 3, "cat": 5}, "a.json").names
        ('dog', 'cat')
    """
    match value:
        case {"schema": str(), "result": {"counts": list() | dict()} as result}:
            return json_counts(result, source)
        case {"counts": list(values), **rest}:
            return _listed(values, rest, source)
        case {"counts": dict(table)} | dict(table):
            return RawCounts.keyed(table.items(), source)
        case list(values):
            return RawCounts(tuple(values), None, source)
    raise bad_file(f"{source} holds no counts", f"a JSON {type(value).__name__}")


def _listed(values: list[Any], rest: dict[Any, Any], source: str) -> RawCounts:
    """{"counts": [...]} with or without "classes" and "order"."""
    order = order_in(rest)
    if rest.get("classes") is None:
        classes = Classes.numbered(len(values), order) if order in BY_NUMBER else None
        return RawCounts(tuple(values), classes, source)
    names = [str(n) if type(n) is int else n for n in names_in(rest)]
    if len(names) != len(values) or not all(isinstance(name, str) for name in names):
        saw = f"{len(values)} counts, {len(names)} classes"
        raise bad_file(f"{source} must give one name for each count", saw)
    RawCounts.keyed(zip(names, values, strict=True), source)  # no name twice
    indices = rest.get("indices")
    if order in BY_NUMBER:
        indices = list(range(len(names)))
    sound = isinstance(indices, list) and len(indices) == len(names)
    sound = sound and all(type(index) is int and index >= 0 for index in indices or ())
    numbers = tuple(indices) if sound and indices else None
    given = rest.get("order_given") is True
    return RawCounts(tuple(values), Classes(tuple(names), numbers, order, given), source)


def write_counts(raw: RawCounts) -> dict[str, object] | list[object]:
    """What `counts -o counts.json` saves; `json_counts` reads the same counts from it.

    Example:
        >>> write_counts(RawCounts.keyed([("dog", 3), ("cat", 5)], "folder train/", "imagefolder"))
        {'counts': [3, 5], 'classes': ['dog', 'cat'], 'order': 'imagefolder'}
    """
    classes = raw.classes
    if classes is None:
        return list(raw.values)
    table: dict[str, object] = {"counts": list(raw.values)}
    row = tuple(range(len(classes.names)))
    if classes.names != tuple(map(str, row)) or classes.order not in BY_NUMBER:
        table["classes"] = list(classes.names)
    if classes.order not in BY_NUMBER and classes.indices is not None:
        table["indices"] = list(classes.indices)
    return table | {"order": classes.order} | ({"order_given": True} if classes.given else {})


class HasIndex(Protocol):
    """A pandas Series: values under the keys of its index."""

    @property
    def index(self) -> Any:
        """The keys."""

    def tolist(self) -> list[Any]:
        """The values."""


class HasList(Protocol):
    """A NumPy array, or a tensor on any device."""

    def tolist(self) -> Any:
        """The values."""


#: A file or source of `--counts`; numbers in row order; or numbers under names or rows.
CountsLike = (
    str | PathLike[str] | RawCounts | Sequence[float] | HasList | HasIndex
    | Mapping[str, float] | Mapping[int, float]
)  # fmt: skip


def as_raw_counts(counts: CountsLike, classes: ClassesLike | None = None) -> RawCounts:
    """The counts as they were given, not yet in the order of a head.

    Args:
        counts: a file, or data to count, as `--counts` names it; a list, array or tensor in row
            order; a mapping or a pandas Series, such as a Counter or `value_counts()`. Text keys
            are class names, as in a file; integer keys are rows.
        classes: the names of the rows, or a file of them; for counts that have no names.

    Raises:
        BadCounts: none of these, keys of both kinds, or one key twice.
    """
    raw = counts if isinstance(counts, RawCounts) else _as_given(counts)
    if classes is None:
        return raw
    names = row_hints(classes).names or ()
    if raw.classes is None and len(raw.values) == len(names):
        return replace(raw, classes=Classes(names, tuple(range(len(names))), "dataset", given=True))
    values, found = in_row_order(raw, HeadRows(len(names)), RowHints(names))
    order = Classes(found.names or names, tuple(range(len(names))), "dataset", given=True)
    return replace(raw, values=values, classes=order)


def _as_given(counts: Any) -> RawCounts:
    source = "the counts given"
    if isinstance(counts, str | PathLike):
        return read_counts(str(counts))
    if isinstance(counts, Mapping):
        return _keyed(list(counts.items()), source)
    if hasattr(counts, "index") and hasattr(counts, "items") and hasattr(counts, "tolist"):
        return _keyed(list(zip(counts.index.tolist(), counts.tolist(), strict=True)), source)
    values = counts.tolist() if hasattr(counts, "tolist") else counts
    if not isinstance(values, Sequence) or isinstance(values, bytes | bytearray):
        saw = f"{type(counts).__module__}.{type(counts).__qualname__}"
        raise bad_counts("these are not counts in a known form", saw, source)
    return RawCounts(tuple(map(_plain, values)), None, source)


def _plain(value: Any) -> Any:
    """A number of NumPy or torch as one of Python."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _keyed(pairs: list[tuple[Any, Any]], source: str) -> RawCounts:
    """Counts under keys: text is names, as in a file; integers are rows of the head."""
    pairs = [(key, _plain(value)) for key, value in pairs]
    if all(isinstance(key, str) for key, _ in pairs):
        if len(table := dict(pairs)) == len(pairs):
            return json_counts(table, source)
        return RawCounts.keyed(pairs, source)  # which refuses the key that is there twice
    rows = [whole_key(key) for key, _ in pairs]
    strange = [key for (key, _), row in zip(pairs, rows, strict=True) if row is None]
    if strange:
        saw = f"{few([repr(key) for key in strange], 3)}, of {len(pairs)} keys"
        raise bad_counts("the keys are neither all class names nor all rows", saw, source)
    keyed = RawCounts.keyed(
        ((str(row), value) for row, (_, value) in zip(rows, pairs, strict=True)), source
    )
    # Rows 0 to K - 1 are a list, whatever names the head has: "3" may be the name of row 7.
    listed = keyed.classes is not None and keyed.classes.indices == tuple(range(len(pairs)))
    return RawCounts(keyed.values, None, source) if listed else keyed
