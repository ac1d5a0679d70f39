"""Parquet files of encoded images and labels, as Hugging Face writes them; needs pyarrow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import RawCounts
from rescale_cli.core.counts import few
from rescale_cli.core.predictions import Image, Images
from rescale_cli.data.images import AS_STORED, Decoding, bad_image, decode, read_image
from rescale_cli.data.labels import bad_data, labels_of, tally_of
from rescale_cli.data.rows import chosen_rows
from rescale_cli.data.spec import (
    ANY_SPLIT,
    DataSpec,
    by_split,
    counts,
    data_files,
    datasets,
    files_of,
    split_word,
    splits_in,
)
from rescale_cli.errors import BadImage, BadInput
from rescale_cli.files.reading import opened, refuse_lfs_pointer
from rescale_cli.foreign_code import library
from rescale_cli.json_text import clip, parse_json

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class", "target")


@dataclass(frozen=True)
class ParquetImages:
    """Reads image i from its row group; the last few row groups stay in memory."""

    files: tuple[Path, ...]
    column: str
    starts: NDArray[np.int64]
    """(row groups,): the first image of each."""
    groups: NDArray[np.int64]
    """(row groups, 2): file, number in the file."""
    how: Decoding = AS_STORED

    def __call__(self, index: int) -> Image:
        """The image of that index."""
        place = int(np.searchsorted(self.starts, index, side="right")) - 1
        file, group = self.groups[place].tolist()
        path, row = self.files[file], index - int(self.starts[place])
        name = f"{path.name}, row {row} of row group {group}"
        try:
            value = _row_group(path, group, self.column)[row].as_py()
        except (OSError, ValueError, IndexError) as error:  # pyarrow's errors are of these kinds
            raise bad_image(name, clip(str(error))) from None
        return encoded_image(value, name, path.parent, self.how)


@lru_cache(maxsize=2)
def _row_group(path: Path, group: int, column: str) -> Any:
    parquet = library("pyarrow.parquet", "parquet")
    with opened(path, BadImage) as fd, os.fdopen(fd, "rb", closefd=False) as file:
        return (
            parquet.ParquetFile(file)
            .read_row_group(group, columns=[column], use_threads=False)
            .column(0)
        )


def encoded_image(value: Any, name: str, folder: Path, how: Decoding) -> Image:
    """An image as a table holds it: its bytes, or {bytes, path} as Hugging Face writes it."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, "")
    if isinstance(data, bytes):
        return decode(data, f"{name} ({path})" if path else name, how)
    if path:
        return read_image(folder / path, how)
    raise bad_image(name, f"{type(value).__name__} where its bytes should be")


def scalar_labels(values: list[Any], source: str) -> NDArray[Any]:
    """Numbers or texts (N,) from a table's column; nothing else is a label."""
    kinds = {type(value) for value in values}
    if not (kinds <= {int, float} or kinds == {str}) or any(
        not isinstance(value, str) and not abs(value) < 1e15 for value in values
    ):
        saw = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise bad_data(
            f"{source} must have one label per row", saw, "name the column: ?label=COLUMN"
        )
    return np.array(values)


@counts.register("parquet", options=("image", "label", "where"), splits=ANY_SPLIT)
def parquet(spec: DataSpec) -> RawCounts:
    """The label column of one .parquet, or of a folder of them; no image is read."""
    table, rows, split, source = _chosen(spec, need_image=False)
    return replace(tally_of(table.labels()[rows], table.classes, source), split=split)


@datasets.register("parquet", options=("image", "label", "where"), splits=ANY_SPLIT)
def parquet_images(spec: DataSpec) -> Images:
    """Columns `image` (bytes, or {bytes, path}) and `label` of one .parquet, or a folder of them.

    Class names are read from the schema where Hugging Face wrote them.
    """
    table, rows, split, source = _chosen(spec, need_image=True)
    labels, classes = labels_of(table.labels()[rows], table.classes, source)
    names = tuple(map(str, range(sum(table.rows))))
    starts = np.cumsum([0, *table.rows])[:-1]
    groups = np.array(table.groups, np.int64)
    read = ParquetImages(table.files, table.image, starts, groups, table.how)
    if isinstance(rows, slice):
        return Images(read, labels, classes, names, source, split=split)
    every = Images(read, None, None, names, source).only(rows, split)
    return replace(every, labels=labels, classes=classes)


def _chosen(
    spec: DataSpec, *, need_image: bool
) -> tuple[_Table, NDArray[np.int64] | slice, str | None, str]:
    """The table of the files of a split, the rows that are read, the split, and the title."""
    files, split, source = _files(spec)
    table = _Table.of(files, spec, need_image=need_image)
    by_row = spec if split is None else replace(spec, split=None)
    candidates = [] if split else [n for n in table.texts if n not in (table.image, table.label)]
    candidates = [name for name in candidates if split_word(table.first(name))]
    if by_row.split is None and not candidates and "where" not in spec.options:
        return table, slice(None), split, source
    rows, found = chosen_rows(by_row, table.columns, table.texts_of, candidates)
    source += f" {found}" if found else ""
    return table, slice(None) if rows is None else rows, split or found, source


def _files(spec: DataSpec) -> tuple[tuple[Path, ...], str | None, str]:
    """The file, or those of a folder that belong to the split that is read; the split; a title."""
    path = spec.path
    if not path.is_dir():
        by_name = spec.split is not None and split_word(spec.split) in splits_in(path.name)
        return (path,), spec.split if by_name else None, path.name
    found = data_files(path, ".parquet")
    if not found:
        raise bad_data(f"{path} has no .parquet file", "a folder without one", "parquet:FILE")
    if spec.split and {*by_split(found, path)} == {""}:  # a column may say it
        return tuple(found), None, f"parquet {path.name}"

    def size(files: tuple[Path, ...]) -> str:
        rows = 0
        for file in files:
            with _opened(file) as table:
                rows += table.metadata.num_rows
        return f"{rows:,} images"

    files, split = files_of(spec, found, path, size)
    return files, split, f"parquet {path.name}" + (f" {split}" if split else "")


@dataclass(frozen=True)
class _Table:
    """What the footers of the files say."""

    files: tuple[Path, ...]
    image: str
    label: str
    classes: tuple[str, ...] | None
    rows: tuple[int, ...]
    """Of each row group."""
    groups: tuple[tuple[int, int], ...]
    how: Decoding
    """How the images are decoded."""
    columns: tuple[str, ...]
    texts: tuple[str, ...]
    """The columns that hold text."""

    @classmethod
    def of(cls, files: tuple[Path, ...], spec: DataSpec, *, need_image: bool) -> _Table:
        """Read the footers, and choose the columns."""
        rows, groups, tables = [], [], []
        for number, path in enumerate(files):
            with _opened(path) as file:
                schema, footer = file.schema_arrow, file.metadata
                for group in range(footer.num_row_groups):
                    rows.append(footer.row_group(group).num_rows)
                    groups.append((number, group))
            columns = tuple(schema.names)
            label = _column(spec, "label", columns, LABEL_COLUMNS, path)
            image = _column(spec, "image", columns, IMAGE_COLUMNS, path) if need_image else ""
            decoding = _decoding(schema, image) if need_image else AS_STORED
            tables.append((image, label, _class_names(schema.metadata, label), decoding))
        if len({*tables}) > 1:
            saw = few([f"{path.name}: {table}" for path, table in zip(files, tables, strict=True)])
            what = f"the files of {spec.path} have different columns or classes"
            raise bad_data(what, saw, "name one of them: parquet:FILE")
        if not sum(rows):
            raise bad_data(f"{spec.path} is empty", "no row", "name a table with images")
        image, label, classes, how = tables[0]
        texts = tuple(f.name for f in schema if "string" in str(f.type))
        return cls(
            files, image, label, classes, tuple(rows), tuple(groups), how, columns, texts
        )  # fmt: skip

    def labels(self) -> NDArray[Any]:
        """The label column: numbers or texts (N,)."""
        return scalar_labels(self._values(self.label), f"{self.files[0].name}: {self.label}")

    def texts_of(self, column: str) -> list[str]:
        """Any column as text, (N,)."""
        return [str(value) for value in self._values(column)]

    def first(self, column: str) -> str:
        """The first value of a column."""
        with _opened(self.files[0]) as file:
            batch = next(file.iter_batches(batch_size=1, columns=[column]), None)
        return str(batch.column(0)[0].as_py()) if batch is not None and len(batch) else ""

    def _values(self, column: str) -> list[Any]:
        parts: list[Any] = []
        for path in self.files:
            with _opened(path) as file:
                parts += file.read(columns=[column]).column(0).to_pylist()
        return parts


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    parquet = library("pyarrow.parquet", "parquet")
    with opened(path, BadInput) as fd, os.fdopen(fd, "rb", closefd=False) as file:
        refuse_lfs_pointer(path, os.pread(fd, 64, 0), BadInput)
        try:
            yield parquet.ParquetFile(file)
        except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
            fix = "fetch the file again"
            raise bad_data(f"{path} cannot be read as parquet", str(error), fix) from None


def _column(
    spec: DataSpec, kind: str, columns: tuple[str, ...], usual: tuple[str, ...], path: Path
) -> str:
    """The column of the image or the label: named, or the only one with a usual name."""
    named = spec.options.get(kind)
    found = [name for name in columns if name == named or (named is None and name in usual)]
    if len(found) != 1:
        what = f"{path.name} has no column known to be the {kind}"
        if len(found) > 1:
            what = f"{path.name} has {len(found)} columns that could be the {kind}"
        fix = f"name it: parquet:{spec.path}?{kind}=COLUMN"
        raise bad_data(what, f"columns {few(columns, 10)}", fix)
    return found[0]


def _decoding(schema: Any, image: str) -> Decoding:
    """As `datasets` decodes the column, if it is the Hub's: {bytes, path}, or declared an Image."""
    declared = _feature(schema.metadata, image)
    kind = schema.field(image).type
    hub = {kind.field(i).name for i in range(kind.num_fields)} >= {"bytes", "path"}
    mode = declared.get("mode")
    known = mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F")
    return Decoding(hub or declared.get("_type") == "Image", mode if known else None)


def _feature(metadata: dict[bytes, bytes] | None, column: str) -> dict[str, Any]:
    """What Hugging Face wrote into the schema about a column, if it did."""
    value = parse_json((metadata or {}).get(b"huggingface", b"{}"), "the schema", BadInput)
    try:
        found = value["info"]["features"][column]
    except (TypeError, KeyError):
        return {}
    return found if isinstance(found, dict) else {}


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """The names that Hugging Face wrote into the schema, if it did."""
    names: Any = _feature(metadata, label).get("names")
    fine = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if fine and len({*names}) == len(names) else None
