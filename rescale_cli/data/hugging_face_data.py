"""Data sets of Hugging Face's library; needs the package datasets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rescale_cli.core.classes import RawCounts
from rescale_cli.core.counts import few
from rescale_cli.core.predictions import Image, Images
from rescale_cli.data.images import Decoding, bad_image
from rescale_cli.data.labels import bad_data, labels_of, tally_of
from rescale_cli.data.parquet import encoded_image, scalar_labels
from rescale_cli.data.rows import chosen_rows
from rescale_cli.data.spec import ANY_SPLIT, DataSpec, counts, datasets, pick, split_word
from rescale_cli.errors import BadInput
from rescale_cli.foreign_code import library
from rescale_cli.json_text import clip
from rescale_cli.long_work import long_work

_OPTIONS = ("image", "label", "config", "where")

#: The readers of the library that take files as data alone. Its reader `pandas` unpickles them.
_PLAIN = ("arrow", "cache", "csv", "imagefolder", "json", "parquet", "text", "webdataset")


@dataclass(frozen=True)
class HuggingFaceImages:
    """Reads image i of a datasets.Dataset whose image column is not decoded by it."""

    table: Any
    column: str
    source: str
    how: Decoding

    def __call__(self, index: int) -> Image:
        """The image of that index."""
        name = f"{self.source}, row {index}"
        try:
            value = self.table[index][self.column]
        except (OSError, ValueError) as error:
            raise bad_image(name, clip(str(error))) from None
        return encoded_image(value, name, Path(), self.how)


@counts.register("hf", options=_OPTIONS, splits=ANY_SPLIT)
def hf(spec: DataSpec) -> RawCounts:
    """The label column of a data set's train split; no image is decoded."""
    table, source, column, names, split = _split(spec)
    return replace(tally_of(_column_of(table, column), names, source), split=split)


@datasets.register("hf", options=_OPTIONS, splits=ANY_SPLIT, download="itself")
def hf_images(spec: DataSpec) -> Images:
    """A data set saved to a folder, a folder that its library reads, or one in its cache.

    Class names are those of the ClassLabel.
    """
    library_ = library("datasets", "hf")
    table, source, column, names, split = _split(spec)
    image = _column(spec, "image", _of_kind(table, "Image"), table, source)
    labels, classes = labels_of(_column_of(table, column), names, source)
    how = Decoding(upright=True, mode=getattr(table.features[image], "mode", None))
    bare = table.select_columns([image]).cast_column(image, library_.Image(decode=False))
    numbers = tuple(map(str, range(len(labels))))
    read = HuggingFaceImages(bare, image, source, how)
    return Images(read, labels, classes, numbers, source, split=split)


def _split(spec: DataSpec) -> tuple[Any, str, str, tuple[str, ...] | None, str | None]:
    """The table that is read, what it is called, its label column, class names, and the split."""
    found = _load(spec)
    alone = not hasattr(found, "keys")  # saved without the other splits
    # The library calls data without a split its training split; here that has to be typed.
    tables = {str(found.split or (spec.split and "train") or ""): found} if alone else dict(found)
    name = ""
    if spec.split is not None or {*tables} != {""}:
        name = pick(spec, tables, lambda split: f"{len(tables[split]):,} images")
    table, source = tables[name], f"hf {spec.path.name} {name}".rstrip()
    if "where" in spec.options:
        given = replace(spec, split=None)
        rows, _ = chosen_rows(given, table.column_names, lambda c: _texts(table, c))
        table = table.select(rows)
    column = _column(spec, "label", _labels(table), table, source)
    names = getattr(table.features[column], "names", None)
    return table, source, column, tuple(names) if names else None, split_word(name) or name or None


def _load(spec: DataSpec) -> Any:
    """The splits; nothing is fetched unless the spec says so, and no code of a data set is run."""
    if spec.path.is_absolute() and not spec.path.exists():  # so no hub has it either
        raise bad_data(
            f"there is no {spec.path}",
            "a path is expected, not a name on the Hub",
            "check the path",
        )
    library_ = library("datasets", "hf")
    path, folder = str(spec.path), spec.path.is_dir()
    saved = any((spec.path / name).exists() for name in ("dataset_dict.json", "state.json"))
    try:
        with _quiet(library_, offline=folder or not spec.download):
            if saved:
                return library_.load_from_disk(path)
            builder = library_.load_dataset_builder(path, spec.options.get("config"))
            _refuse_unsafe(builder)
            with long_work(f"preparing the data set {clip(path, 80)}"):
                builder.download_and_prepare()
            return builder.as_dataset()
    except BadInput:
        raise
    except Exception as error:  # of a dozen kinds, by the library and those that it calls
        fix = f"name a folder: hf:DIR; or let it be fetched: --data hf:{spec.path} --download"
        if folder:
            fix = "save it again: data.save_to_disk(DIR); or folder:DIR, parquet:DIR"
        raise bad_data(f"hf:{path} cannot be loaded", str(error), fix) from None


def _refuse_unsafe(builder: Any) -> None:
    """Stop if the library would read the files in another way than as plain data."""
    module = type(builder).__module__.rpartition(".")[2]
    if module not in _PLAIN:
        saw = f"its files would be read by datasets' module {module}"
        what = "only data sets of plain files are loaded: other readers can run code of a file"
        raise bad_data(what, saw, f"save it as Parquet; read here: {', '.join(_PLAIN)}")


@contextmanager
def _quiet(library_: Any, *, offline: bool) -> Iterator[None]:
    """Without progress bars, and without the network where it was not asked for."""
    hub = library("huggingface_hub.constants", "hf")
    bars = not library_.are_progress_bars_disabled()
    before = library_.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    log = logging.getLogger("datasets")
    level = log.level
    try:
        library_.disable_progress_bars()
        log.setLevel(logging.ERROR)
        if offline:
            library_.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
        yield
    finally:
        library_.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before
        log.setLevel(level)
        if bars:
            library_.enable_progress_bars()


def _of_kind(table: Any, kind: str) -> list[str]:
    return [name for name, feature in table.features.items() if type(feature).__name__ == kind]


def _labels(table: Any) -> list[str]:
    named = _of_kind(table, "ClassLabel")
    return named or [name for name in ("label", "labels") if name in table.features]


def _column(spec: DataSpec, kind: str, found: list[str], table: Any, source: str) -> str:
    named = spec.options.get(kind)
    if named is not None:
        found = [named] if named in table.features else []
    if len(found) != 1:
        what = f"{source} has no column known to be the {kind}"
        if len(found) > 1:
            what = f"{source} has {len(found)} columns that could be the {kind}"
        have = f"columns {few(list(table.features), 10)}"
        raise bad_data(what, have, f"name it: hf:{spec.path}?{kind}=COLUMN")
    return found[0]


def _values(table: Any, column: str) -> list[Any]:
    found: list[Any] = table.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
    return found


def _texts(table: Any, column: str) -> list[str]:
    """One column as text, (N,); the number of a ClassLabel as its name."""
    names = getattr(table.features[column], "names", None)
    known = dict(enumerate(names or ()))
    return [str(known.get(value, value)) for value in _values(table, column)]


def _column_of(table: Any, column: str) -> NDArray[Any]:
    """One column as numbers or texts (N,)."""
    return scalar_labels(_values(table, column), f"the column {column}")
