"""MNIST and Fashion-MNIST: IDX files of labels and images, raw or gzipped."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import Classes, RawCounts
from rescale_cli.core.images import Images
from rescale_cli.errors import BadInput, NotDownloaded
from rescale_cli.files.regular_file import read_whole
from rescale_cli.sources.array_labels import MAX_BYTES, array_set
from rescale_cli.sources.data_spec import DataSpec, counts, datasets
from rescale_cli.sources.image_files import image_array
from rescale_cli.sources.label_sources import bad_data, labels_of, tally

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot")  # fmt: skip


@counts.register("mnist", splits=("train", "test"))
def mnist(spec: DataSpec) -> RawCounts:
    """The IDX labels of MNIST or a set in its form, raw or .gz, in DIR or DIR/MNIST/raw."""
    return idx_labels(_find(spec, "labels", "train"))


@counts.register("fashion-mnist", splits=("train", "test"))
def fashion_mnist(spec: DataSpec) -> RawCounts:
    """The IDX labels of Fashion-MNIST, raw or .gz, in DIR or DIR/FashionMNIST/raw."""
    return idx_labels(_find(spec, "labels", "train"), FASHION)


@datasets.register("mnist", splits=("train", "test"), held_out="test", download="MNIST")
def mnist_images(spec: DataSpec) -> Images:
    """The IDX images and labels of MNIST or a set in its form, gray, (N, H, W)."""
    return _images(spec, None)


@datasets.register(
    "fashion-mnist", splits=("train", "test"), held_out="test", download="FashionMNIST"
)
def fashion_mnist_images(spec: DataSpec) -> Images:
    """The IDX images and labels of Fashion-MNIST, gray, (N, 28, 28)."""
    return _images(spec, FASHION)


def _images(spec: DataSpec, classes: tuple[str, ...] | None) -> Images:
    source = f"{spec.name} {spec.split or 'test'}"
    labels, known = labels_of(idx_array(_find(spec, "labels", "test"), 1), classes, source)
    array = image_array(idx_array(_find(spec, "images", "test"), 3), len(labels), source)
    return array_set(array, labels, known, source)


def _find(spec: DataSpec, kind: str, split: str) -> Path:
    """The file of the labels or images of the spec's split, or of `split`."""
    stem = "t10k" if (spec.split or split) == "test" else "train"
    folders = [spec.path / sub for sub in ("", "raw", "FashionMNIST/raw", "MNIST/raw")]
    code = {"labels": 1, "images": 3}[kind]
    names = [f"{stem}-{kind}{mid}idx{code}-ubyte{end}" for mid in "-." for end in ("", ".gz")]
    found = [
        folder / name for folder in folders for name in names if os.path.lexists(folder / name)
    ]
    if not found:
        what = f"there are no {stem} {kind} in {spec.path}"
        fix = "name the folder with that file"
        raise NotDownloaded(what, saw=f"no {names[0]} or {names[1]}", fix=fix)
    return found[0]


def idx_labels(path: Path, names: tuple[str, ...] | None = None) -> RawCounts:
    """Count the labels of one IDX file."""
    classes = None if names is None else Classes(names, tuple(range(len(names))), "dataset")
    return tally(idx_array(path, 1), path.name, classes)


def idx_array(path: Path, ndim: int) -> NDArray[np.uint8]:
    """The bytes of one IDX file: magic 0x800 + ndim, sizes, bytes; big-endian, perhaps gzipped.

    Raises:
        BadInput: damaged, or the sizes in its head do not fit what follows.
    """
    data = read_whole(path, MAX_BYTES, BadInput)
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_BYTES + 17)
        except (OSError, EOFError, zlib.error) as error:
            raise bad_data(f"{path.name} is a damaged gzip file", str(error)) from None
    start = 4 + 4 * ndim
    magic, *shape = struct.unpack(f">{1 + ndim}I", data[:start].ljust(start, b"\0"))
    size = math.prod(shape)
    if len(data) < start or magic != 0x800 + ndim or size != len(data) - start:
        kind = "labels" if ndim == 1 else "images"
        saw = f"magic {magic:#x}, {size:,} bytes declared, {max(0, len(data) - start):,} there"
        raise bad_data(f"{path.name} is not an IDX file of {kind}", saw, "fetch the file again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
