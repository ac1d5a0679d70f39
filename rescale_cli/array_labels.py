"""Labels stored as numbers: npz, IDX (MNIST, Fashion-MNIST), the CIFAR batches."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.class_order import RawCounts
from rescale_cli.errors import BadInput
from rescale_cli.inert_pickle import load_pickle
from rescale_cli.json_text import clip
from rescale_cli.label_sources import DataSpec, bad_data, counts, tally, tally_texts
from rescale_cli.regular_file import opened, read_whole, refuse_lfs_pointer

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot")  # fmt: skip
#: Larger than any public set of labels or batch of CIFAR, small enough to be read twice.
MAX_BYTES = 192 << 20
#: Everything that zipfile raises for a file that is no sound archive.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, EOFError,
               RuntimeError)  # fmt: skip


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
                info = archive.getinfo(f"{key}.npy")
                if info.file_size > MAX_BYTES or info.compress_type not in (0, 8):
                    saw = f"{info.file_size:,} bytes, method {info.compress_type}"
                    what = f"{spec.path.name}: {clip(key, 80)} is too large, or oddly packed"
                    raise bad_data(what, saw, fix)
                labels = npy_array(archive.read(f"{key}.npy"))
        except _ZIP_ERRORS as e:
            saw = str(e) or type(e).__name__
            raise bad_data(f"{spec.path.name} cannot be read as .npz", saw) from None
    if labels.dtype.kind == "U" and labels.ndim == 1:
        return tally_texts(map(str, labels), spec.path.name)
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
