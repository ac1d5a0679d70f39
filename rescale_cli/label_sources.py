"""Training samples of each class, from data, without decoding an image: one function a source.

To add a source, write one function here under `@counts.register("name", options=..., splits=...)`.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from rescale_cli.counts import RawCounts
from rescale_cli.errors import BadInput, EnvironmentProblem
from rescale_cli.inert_pickle import load_pickle
from rescale_cli.json_text import clip, parse_json
from rescale_cli.registry import Registry
from rescale_cli.regular_file import opened, read_whole, refuse_lfs_pointer

MAX_BYTES = 1 << 30
MAX_LABEL = 1_000_000
#: torchvision.datasets.folder.IMG_EXTENSIONS: what ImageFolder takes for an image.
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot")  # fmt: skip
SPLITS = ("train", "val", "test")
#: Everything that zipfile raises for a file that is no sound archive.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, EOFError,
               RuntimeError)  # fmt: skip


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


@contextmanager
def text_of(path: Path) -> Iterator[TextIO]:
    """The lines of a regular UTF-8 file of at most 1 GiB; damage found on the way is an error."""
    with opened(path, BadInput) as fd:
        size = os.fstat(fd).st_size
        refuse_lfs_pointer(path, os.pread(fd, 64, 0), BadInput)
        if size > MAX_BYTES:
            raise bad_data(f"{path.name} is too large for a list of labels", f"{size:,} bytes")
        with os.fdopen(fd, encoding="utf-8-sig", closefd=False) as text:
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
    whole = labels.astype(np.int64)
    if labels.dtype.kind == "f" and not np.array_equal(whole, labels):
        raise bad_data(f"{source} has fractional labels", f"e.g. {labels[whole != labels][0]}")
    total = np.bincount(whole, minlength=len(names or ()))
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


@counts.register("npz", options=("labels",))
def npz(spec: DataSpec) -> RawCounts:
    """The array `labels` (N,) of an .npz; a pickled array in it is refused."""
    key = spec.options.get("labels", "labels")
    fix = f"name the array of the labels: npz:{spec.path}?labels=KEY"
    with opened(spec.path, BadInput) as fd, os.fdopen(fd, "rb", closefd=False) as file:
        refuse_lfs_pointer(spec.path, os.pread(fd, 64, 0), BadInput)
        try:
            with zipfile.ZipFile(file) as archive:
                if f"{key}.npy" not in archive.namelist():
                    have = f"it has {', '.join(archive.namelist()[:10])}"
                    raise bad_data(f"{spec.path.name} has no array {clip(key, 80)!r}", have, fix)
                size = archive.getinfo(f"{key}.npy").file_size
                if size > MAX_BYTES:
                    raise bad_data(f"{spec.path.name}: {key} is too large", f"{size:,} bytes", fix)
                labels = npy_array(archive.read(f"{key}.npy"))
        except _ZIP_ERRORS as e:
            saw = str(e) or type(e).__name__
            raise bad_data(f"{spec.path.name} cannot be read as .npz", saw) from None
    if labels.dtype.kind == "U" and labels.ndim == 1:
        return tally_texts(labels.tolist(), spec.path.name)
    return tally(labels, spec.path.name)


def npy_array(data: bytes) -> NDArray[Any]:
    """The array of a whole .npy file, a view of its bytes; its header must fit its size.

    Raises:
        ValueError: damaged, or an array of objects, which would be a pickle.
    """
    file = io.BytesIO(data)
    if (version := np.lib.format.read_magic(file)) not in ((1, 0), (2, 0)):
        raise ValueError(f"a .npy file of version {version}")
    old = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers that Python 2 wrote are fine
            shape, _, dtype = read(file)
    except Exception as error:  # numpy lets errors of tokenize and ast pass through
        raise ValueError(f"its header is damaged: {error}") from None
    size = len(data) - file.tell()
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"an array of {dtype}, which is not read")
    if math.prod(shape) * dtype.itemsize != size or any(n < 0 for n in shape):
        raise ValueError(f"its header says {shape} of {dtype}, but {size:,} bytes follow")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


@counts.register("mnist", splits=("train", "test"))
def mnist(spec: DataSpec) -> RawCounts:
    """The IDX labels of MNIST or a set in its form, raw or .gz, in DIR or DIR/MNIST/raw."""
    return idx_labels(_idx_file(spec))


@counts.register("fashion-mnist", splits=("train", "test"))
def fashion_mnist(spec: DataSpec) -> RawCounts:
    """The IDX labels of Fashion-MNIST, raw or .gz, in DIR or DIR/FashionMNIST/raw."""
    return idx_labels(_idx_file(spec), FASHION)


def _idx_file(spec: DataSpec) -> Path:
    stem = "t10k" if spec.split == "test" else "train"
    folders = [spec.path / sub for sub in ("", "raw", "FashionMNIST/raw", "MNIST/raw")]
    names = [f"{stem}-labels{mid}idx1-ubyte{end}" for mid in "-." for end in ("", ".gz")]
    found = [
        folder / name for folder in folders for name in names if os.path.lexists(folder / name)
    ]
    if not found:
        what = f"there are no {stem} labels in {spec.path}"
        raise bad_data(what, f"no {names[0]} or {names[1]}", "name the folder with that file")
    return found[0]


def idx_labels(path: Path, names: tuple[str, ...] | None = None) -> RawCounts:
    """Count the labels of one IDX file: magic 0x801, N, N bytes; big-endian, perhaps gzipped."""
    data = read_whole(path, MAX_BYTES, BadInput)
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_BYTES + 9)
        except (OSError, EOFError, zlib.error) as error:
            raise bad_data(f"{path.name} is a damaged gzip file", str(error)) from None
    magic, size = struct.unpack(">II", data[:8]) if len(data) >= 8 else (0, 0)
    if magic != 0x801 or size != len(data) - 8:
        saw = f"magic {magic:#x}, {size:,} labels said, {max(0, len(data) - 8):,} bytes of labels"
        raise bad_data(f"{path.name} is no IDX file of labels", saw, "fetch the file again")
    return tally(np.frombuffer(data, np.uint8, offset=8), path.name, names)


@counts.register("cifar10", splits=("train", "test"))
def cifar10(spec: DataSpec) -> RawCounts:
    """CIFAR-10's batches, the Python or the binary version; no pickle is run."""
    files = ("test_batch",) if spec.split == "test" else tuple(f"data_batch_{i}" for i in "12345")
    return _cifar(spec, files, "labels", before=0, size=10)


@counts.register("cifar100", splits=("train", "test"))
def cifar100(spec: DataSpec) -> RawCounts:
    """CIFAR-100's fine labels, the Python or the binary version; no pickle is run."""
    return _cifar(spec, (spec.split or "train",), "fine_labels", before=1, size=100)


def _cifar(spec: DataSpec, files: tuple[str, ...], key: str, before: int, size: int) -> RawCounts:
    """Sum over the files; a binary record is `before` bytes, the label, 3072 bytes of image."""
    usual = f"cifar-{size}-python", f"cifar-{size}-batches-py", f"cifar-{size}-binary"
    folders = [spec.path / sub for sub in ("", *usual, f"cifar-{size}-batches-bin")]
    labels = []
    for name in files:
        paths = [folder / f"{name}{end}" for folder in folders for end in ("", ".bin")]
        path = next((path for path in paths if os.path.lexists(path)), paths[0])
        data = read_whole(path, MAX_BYTES, BadInput)
        if path.suffix == ".bin":
            if len(data) % (before + 3073):
                raise bad_data(f"{path.name} is cut short", f"{len(data):,} bytes")
            labels.append(np.frombuffer(data, np.uint8)[before :: before + 3073])
            continue
        table = load_pickle(data).value
        found = table.get(key, table.get(key.encode())) if isinstance(table, dict) else None
        if not isinstance(found, list) or not all(type(label) is int for label in found):
            raise bad_data(f"{path.name} has no {key}", f"a pickled {type(table).__name__}")
        labels.append(np.array(found))
    every = np.concatenate(labels)
    if every.size and not 0 <= int(every.min()) <= int(every.max()) < size:
        raise bad_data(f"{spec.path} has labels outside 0 to {size - 1}", f"{every.max()}")
    raw = tally(every, f"{spec.name} {spec.split or 'train'}")
    return replace(raw, values=raw.values + (0,) * (size - len(raw.values)))
