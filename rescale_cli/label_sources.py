"""Training samples of each class, from data, without decoding an image: one function a source.

To add a source, write one function here under `@counts.register("name", options=..., splits=...)`.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from rescale_cli.class_order import RawCounts
from rescale_cli.errors import BadInput, EnvironmentProblem
from rescale_cli.json_text import clip, parse_json
from rescale_cli.registry import Registry
from rescale_cli.regular_file import opened, read_whole, refuse_lfs_pointer

MAX_BYTES = 1 << 30
MAX_LINE = 1 << 20
MAX_LABEL = 1_000_000
#: torchvision.datasets.folder.IMG_EXTENSIONS: what ImageFolder takes for an image.
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DataSpec:
    """What `name:PATH?key=value@split` says."""

    name: str
    """The source; empty when only a path was given."""
    path: Path
    options: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None


counts = Registry[Callable[[DataSpec], RawCounts]]("source of counts")


def bad_data(what: str, saw: str, fix: str = "name the labels of the training set") -> BadInput:
    """The error of every source for data that cannot be counted."""
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
        refuse_lfs_pointer(path, os.pread(fd, 64, 0), BadInput)
        if size > MAX_BYTES:
            raise bad_data(f"{path.name} is too large for a list of labels", f"{size:,} bytes")
        with _Lines(os.fdopen(fd, "rb", closefd=False), encoding="utf-8-sig") as text:
            try:
                yield text
            except UnicodeDecodeError as error:
                raise bad_data(f"{path.name} is not UTF-8 text", str(error)) from None


def tally(labels: NDArray[Any], source: str, names: tuple[str, ...] | None = None) -> RawCounts:
    """Count integer labels (N,): entry i is the number of labels i, C the largest label + 1.

    Raises:
        BadInput: no labels, not (N,), not whole numbers, negative, above 10^6.
    """
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iuf":
        saw = f"shape {labels.shape}, dtype {labels.dtype}"
        raise bad_data(f"{source} does not hold one whole number a sample", saw)
    low, high = labels.min(), labels.max()
    if not (low >= 0 and high <= MAX_LABEL):
        raise bad_data(f"{source} has labels outside 0 to {MAX_LABEL:,}", f"from {low} to {high}")
    total = np.zeros(max(int(high) + 1, len(names or ())), np.int64)
    for start in range(0, len(labels), 1 << 22):  # as int64 a byte would take eight
        part = labels[start : start + (1 << 22)]
        whole = part.astype(np.int64)
        if labels.dtype.kind == "f" and not np.array_equal(whole, part):
            raise bad_data(f"{source} has fractional labels", f"e.g. {part[whole != part][0]}")
        total += np.bincount(whole, minlength=len(total))
    known = names if names is not None and len(names) == len(total) else None
    return RawCounts(tuple(total.tolist()), known, "index", source)


def tally_texts(labels: Iterable[str], source: str) -> RawCounts:
    """Count labels as text: whole numbers are rows, everything else names, in sorted order."""
    found = Counter(labels)
    if "" in found or not found:
        raise bad_data(f"{source} has samples without a label", f"{found['']} of {found.total()}")
    if all(re.fullmatch("-?[0-9]{1,9}", label) for label in found):
        table: Counter[int] = Counter()
        for label, times in found.items():
            table[int(label)] += times
        low, high = min(table), max(table)
        if low < 0 or high > MAX_LABEL:
            raise bad_data(f"{source} has labels outside 0 to {MAX_LABEL:,}", f"{low} to {high}")
        return RawCounts(tuple(table[i] for i in range(high + 1)), None, "index", source)
    return RawCounts.keyed(sorted(found.items()), source, ordered=True)


@counts.register("folder", splits=SPLITS)
def folder(spec: DataSpec) -> RawCounts:
    """Class folders as torchvision's ImageFolder reads them; a folder without images is zero."""
    root = spec.path / spec.split if spec.split else spec.path
    classes = sorted(_scan(root)[0])
    if not spec.split and "train" in classes and {*classes} <= {*SPLITS, "valid", "validation"}:
        return folder(DataSpec(spec.name, spec.path, spec.options, "train"))
    if not classes:
        raise bad_data(f"{root} has no class folders", "no sub-folder", "name a folder of folders")
    pairs = [(name, _count_images(root / name)) for name in classes]
    if not any(number for _, number in pairs):
        saw = f"{len(pairs)} sub-folders without a file that ends in {', '.join(IMAGES)}"
        raise bad_data(f"{root} has no images", saw)
    return RawCounts.keyed(pairs, f"folder {root.name}/", ordered=True)


def _scan(folder: Path | str) -> tuple[list[str], int]:
    """The names of the sub-folders, and the number of images."""
    folders, images = [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(IMAGES):
                    images += 1
    except PermissionError as error:
        fix = "check the folder's permissions"
        raise EnvironmentProblem(f"{folder} may not be read", saw=str(error), fix=fix) from None
    except (OSError, ValueError) as error:
        raise bad_data(f"{folder} is no folder that can be read", str(error)) from None
    return folders, images


def _count_images(folder: Path) -> int:
    """The images in a folder and all below it; links are followed, as ImageFolder does."""
    total = 0
    waiting: list[tuple[str, frozenset[str]]] = [(str(folder), frozenset())]
    while waiting:
        here, above = waiting.pop()
        real = os.path.realpath(here)
        if real in above:  # a link to a folder above, and no end
            continue
        folders, images = _scan(here)
        total += images
        waiting += [(f"{here}{os.sep}{name}", above | {real}) for name in folders]
    return total


@counts.register("list", options=("root",))
def list_file(spec: DataSpec) -> RawCounts:
    """Lines `relative/path label`, split at the last space; labels from 0."""
    with text_of(spec.path) as lines:
        return list_counts(lines, spec.path.name)


def list_counts(lines: Iterable[str], source: str) -> RawCounts:
    """Count the labels of a list file's lines."""
    return tally(np.fromiter((n for _, n in list_entries(lines, source)), np.int64), source)


def list_entries(lines: Iterable[str], source: str) -> Iterator[tuple[str, int]]:
    """Path and label of each line of a list file, in order; blank lines are passed over.

    Raises:
        BadInput: a line that does not end in a label from 0 to 10^6; the error has its number.
    """
    for number, line in enumerate(lines, 1):
        path, _, label = line.strip().rpartition(" ")
        if label.isascii() and label.isdecimal() and len(label) < 8 and path:
            if int(label) <= MAX_LABEL:
                yield path.rstrip(), int(label)
                continue
        elif not line.strip():
            continue
        raise bad_data(
            f"line {number} of {source} is not `relative/path label`",
            repr(clip(line.strip(), 80)),
            f"end each line in a whole number from 0 to {MAX_LABEL:,}, after a space",
        )


@counts.register("imagenet-lt", splits=SPLITS)
def imagenet_lt(spec: DataSpec) -> RawCounts:
    """The published list ImageNet_LT_train.txt of the folder."""
    return list_file(DataSpec("list", spec.path / f"ImageNet_LT_{spec.split or 'train'}.txt"))


@counts.register("places-lt", splits=SPLITS)
def places_lt(spec: DataSpec) -> RawCounts:
    """The published list Places_LT_train.txt of the folder; it is not sorted by count."""
    return list_file(DataSpec("list", spec.path / f"Places_LT_{spec.split or 'train'}.txt"))


@counts.register("tiny-imagenet", splits=("train",))
def tiny_imagenet(spec: DataSpec) -> RawCounts:
    """train/<wnid>/images/*.JPEG; the wnids are the names."""
    return folder(DataSpec("folder", spec.path, split="train"))


@counts.register("inaturalist2018", splits=("train", "val"))
def inaturalist2018(spec: DataSpec) -> RawCounts:
    """train2018.json: one category_id an annotation, from 0."""
    path = spec.path / f"{spec.split or 'train'}2018.json"
    return coco_counts(parse_json(read_whole(path, MAX_BYTES, BadInput), path.name, BadInput), path)


def coco_counts(value: Any, path: Path) -> RawCounts:
    """Count the `category_id`s of a COCO-like JSON."""
    try:
        labels = [entry["category_id"] for entry in value["annotations"]]
        size = len(value.get("categories") or ())
    except (TypeError, KeyError, AttributeError):
        labels = [None]
    if not all(type(label) is int and 0 <= label <= MAX_LABEL for label in labels):
        saw = "no whole number from 0 on as category_id in each of `annotations`"
        raise bad_data(f"{path.name} is not in iNaturalist's form", saw)
    raw = tally(np.array(labels), path.name)
    return RawCounts(raw.values + (0,) * (size - len(raw.values)), None, "index", path.name)
