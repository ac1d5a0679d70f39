"""Arrays of images and labels: .npz, the IDX files of MNIST, the batches of CIFAR."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rescale_cli.checkpoints.pickle_machine import load_pickle
from rescale_cli.checkpoints.pickle_policy import Built, OddKey
from rescale_cli.core.classes import Classes, RawCounts
from rescale_cli.core.counts import few
from rescale_cli.core.predictions import Images, Labels
from rescale_cli.data.images import ArrayImages, image_array
from rescale_cli.data.labels import bad_data, labels_of, tally, tally_of, text_of
from rescale_cli.data.spec import DataSpec, counts, datasets
from rescale_cli.errors import BadInput, NotDownloaded
from rescale_cli.files.arrays import NpzFile, npy_header
from rescale_cli.files.reading import read_whole
from rescale_cli.json_text import clip

#: Larger than any public set of labels, small enough to be read twice.
MAX_BYTES = 192 << 20


@counts.register("npz", options=("labels", "images"))
def npz(spec: DataSpec) -> RawCounts:
    """The array `labels` (N,) of an .npz; a pickled array in it is refused."""
    return tally_of(_labels(spec), None, spec.path.name)


@datasets.register("npz", options=("labels", "images"))
def npz_images(spec: DataSpec) -> Images:
    """The arrays `images`, uint8 (N, H, W) or (N, H, W, 3), and `labels` (N,) of an .npz."""
    source = spec.path.name
    labels, classes = labels_of(_labels(spec), None, source)
    array = image_array(_array(spec, "images", None), len(labels), source)
    return array_set(array, labels, classes, source)


def array_set(
    array: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: Classes,
    source: str,
) -> Images:
    """Images (N, H, W[, channels]) in memory; each is named by its number."""
    names = tuple(map(str, range(len(array))))
    return Images(ArrayImages(array), labels, classes, names, source, array)


def _labels(spec: DataSpec) -> NDArray[Any]:
    """The array of the labels; Keras and scikit-learn keep labels as a column."""
    array = _array(spec, "labels", MAX_BYTES)
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _array(spec: DataSpec, option: str, limit: int | None) -> NDArray[Any]:
    """The array that an option names, or that has the name of the option."""
    key, file = spec.options.get(option, option), NpzFile.of(spec.path)
    if key not in file.names:
        have, fix = f"it has {few(file.names, 10)}", f"npz:{spec.path}?{option}=KEY"
        raise bad_data(f"{spec.path.name} has no array {clip(key, 80)!r}", have, fix)
    return file.array(key, limit)


def npy_array(data: bytes) -> NDArray[Any]:
    """The array of a whole .npy file, a view of its bytes; its header must fit its size.

    Raises:
        ValueError: damaged, or an array of objects, which would be a pickle.
    """
    header = npy_header(data[: 1 << 16])
    size = len(data) - header.size
    if header.nbytes != size:
        saw = f"its header says {header.shape} of {header.dtype}, but {size:,} bytes follow"
        raise ValueError(saw)
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    return np.frombuffer(data, header.dtype, offset=header.size).reshape(header.shape, order=order)


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


#: Bytes of one image: 3 planes of 32 x 32, red first.
PIXELS = 3072


@counts.register("cifar10", splits=("train", "test"))
def cifar10(spec: DataSpec) -> RawCounts:
    """CIFAR-10's batches, the Python or the binary version; no pickle is run."""
    return _counts(spec, 10)


@counts.register("cifar100", splits=("train", "test"))
def cifar100(spec: DataSpec) -> RawCounts:
    """CIFAR-100's fine labels, the Python or the binary version; no pickle is run."""
    return _counts(spec, 100)


@datasets.register("cifar10", splits=("train", "test"), held_out="test", download="CIFAR10")
def cifar10_images(spec: DataSpec) -> Images:
    """CIFAR-10, (N, 32, 32, 3), the Python or the binary version; no pickle is run."""
    return _batch_images(spec, 10)


@datasets.register("cifar100", splits=("train", "test"), held_out="test", download="CIFAR100")
def cifar100_images(spec: DataSpec) -> Images:
    """CIFAR-100 with its fine labels, (N, 32, 32, 3); no pickle is run."""
    return _batch_images(spec, 100)


def _counts(spec: DataSpec, size: int) -> RawCounts:
    split = spec.split or "train"
    labels = np.concatenate([_batch(path, size)[0] for path in _files(spec, size, split)])
    _check_labels(labels, spec.path, size)
    classes = _classes(_files(spec, size, split)[0].parent, size)
    return tally(labels, f"{spec.name} {split}", classes)


def _batch_images(spec: DataSpec, size: int) -> Images:
    split = spec.split or "test"
    paths = _files(spec, size, split)
    labels, pixels = [], []
    for path in paths:
        some, data = _batch(path, size)
        labels.append(some)
        pixels.append(_planes(data, len(some), path))
    every = np.concatenate(labels)
    _check_labels(every, spec.path, size)
    array = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    classes = _classes(paths[0].parent, size)
    if not classes.named:  # as many as there are
        classes = Classes.numbered(int(every.max()) + 1, "dataset")
    return array_set(np.ascontiguousarray(array), every, classes, f"{spec.name} {split}")


def _check_labels(labels: Labels, path: Path, size: int) -> None:
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < size:
        fix = "fetch the data again"
        raise bad_data(f"{path} has labels outside 0 to {size - 1}", f"{labels.max()}", fix)


def _files(spec: DataSpec, size: int, split: str) -> list[Path]:
    """The files of a split, of either version, in any of the folders they are unpacked to."""
    stems = [split]
    if size == 10:
        stems = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in "12345"]
    usual = f"cifar-{size}-python", f"cifar-{size}-batches-py", f"cifar-{size}-binary"
    folders = [spec.path / sub for sub in ("", *usual, f"cifar-{size}-batches-bin")]
    found = []
    for stem in stems:
        paths = [folder / f"{stem}{end}" for folder in folders for end in ("", ".bin")]
        path = next((path for path in paths if os.path.lexists(path) and not path.is_dir()), None)
        if path is None:
            what, saw = f"{spec.path} does not contain {spec.name}", f"no {stem} and no {stem}.bin"
            raise NotDownloaded(what, saw=saw, fix="name the folder with these files")
        found.append(path)
    return found


def _batch(path: Path, size: int) -> tuple[Labels, Any]:
    """The labels of one file, and its pixels: an array, or what a pickle has in its place."""
    data = read_whole(path, MAX_BYTES, BadInput)
    before = 0 if size == 10 else 1  # CIFAR-100's records begin with the coarse label
    if path.suffix == ".bin":
        if len(data) % (before + 1 + PIXELS):
            raise bad_data(f"{path.name} is truncated", f"{len(data):,} bytes", "fetch it again")
        records = np.frombuffer(data, np.uint8).reshape(-1, before + 1 + PIXELS)
        return records[:, before].astype(np.int64), records[:, before + 1 :]
    key = "labels" if size == 10 else "fine_labels"
    table = load_pickle(data, what=path.name).value
    found = _entry(table, key)
    if not isinstance(found, list) or not all(
        type(label) is int and -size <= label < 256 for label in found
    ):
        raise bad_data(f"{path.name} has no {key}", f"a pickled {type(table).__name__}")
    return np.array(found, np.int64), _entry(table, "data")


def _entry(table: Any, key: str) -> Any:
    """What a table has under a text, its bytes, or bytes as Python 3 writes them for Python 2."""
    if not isinstance(table, dict):
        return None
    for name, value in table.items():
        match name:
            case OddKey(value=Built(args=(str(text), "latin1"))):  # _codecs.encode(text, "latin1")
                name = text
            case bytes():
                name = name.decode("latin-1")
        if name == key:
            return value
    return None


def _planes(data: Any, size: int, path: Path) -> NDArray[np.uint8]:
    """The pixels (N, 3072) of a batch, from a numpy array that was never unpickled."""
    if not isinstance(data, np.ndarray):
        raw = _array_bytes(data, size * PIXELS)
        if raw is None:
            saw, fix = f"a pickled {type(data).__name__}", "fetch or write the batch again"
            raise bad_data(f"{path.name} has no {size} images as `data`", saw, fix)
        data = np.frombuffer(raw, np.uint8).reshape(size, PIXELS)
    planes: NDArray[np.uint8] = data
    return planes


def _array_bytes(array: Any, size: int) -> bytes | bytearray | None:
    """The bytes of a pickled uint8 array in row order, if there are `size` of them."""
    raw = dtype = None
    match array:
        # numpy.ndarray: _reconstruct(...), then the state (version, shape, dtype, fortran, bytes)
        case Built(state=(int(), tuple(), dtype, False, raw)):
            pass
        case Built(args=(raw, dtype, tuple(), "C")):  # protocol 5: _frombuffer
            pass
    if not isinstance(dtype, Built) or dtype.args[:1] not in (("u1",), ("|u1",), (b"u1",)):
        return None
    if isinstance(raw, Built) and len(raw.args) == 2:  # _codecs.encode(text, "latin1")
        raw = raw.args[0]
    if isinstance(raw, str):  # Python 2's bytes; they were read as UTF-8 where they were that
        narrow = len(raw) == size
        raw = raw.encode("latin-1" if narrow else "utf-8", "replace")
    return raw if isinstance(raw, bytes | bytearray) and len(raw) == size else None


def _classes(folder: Path, size: int) -> Classes:
    """The classes, with the names beside the batches: a pickled batches.meta, or a text."""
    stem = "batches.meta" if size == 10 else "meta"
    key = "label_names" if size == 10 else "fine_label_names"
    names: Any = None
    if os.path.lexists(folder / stem):
        names = _entry(load_pickle(read_whole(folder / stem, MAX_BYTES, BadInput)).value, key)
        names = [n.decode() if isinstance(n, bytes) else n for n in names or ()]
    for text in ("batches.meta.txt", "fine_label_names.txt"):
        if names is None and os.path.lexists(folder / text):
            with text_of(folder / text) as lines:
                names = [line.strip() for line in lines if line.strip()]
    sound = names and len({*names}) == size and all(isinstance(name, str) for name in names)
    if not sound:
        return Classes.numbered(size, "dataset")
    return Classes(tuple(names), tuple(range(size)), "dataset")
