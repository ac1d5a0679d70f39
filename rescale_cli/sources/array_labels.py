"""Arrays of an .npz: labels (N,) and images, read without a pickle."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import Classes, RawCounts
from rescale_cli.core.counts import few
from rescale_cli.core.images import Images
from rescale_cli.errors import BadInput
from rescale_cli.files.npz_file import NpzFile, npy_header
from rescale_cli.files.regular_file import opened, refuse_lfs_pointer
from rescale_cli.json_text import clip
from rescale_cli.sources.data_spec import DataSpec, counts, datasets
from rescale_cli.sources.image_files import ArrayImages, image_array
from rescale_cli.sources.label_sources import bad_data, labels_of, tally_of

#: Larger than any public set of labels, small enough to be read twice.
MAX_BYTES = 192 << 20
#: Everything that zipfile raises for a file that is no sound archive.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, EOFError,
               RuntimeError)  # fmt: skip


@counts.register("npz", options=("labels", "images"))
def npz(spec: DataSpec) -> RawCounts:
    """The array `labels` (N,) of an .npz; a pickled array in it is refused."""
    return tally_of(_labels(spec), None, spec.path.name)


@datasets.register("npz", options=("labels", "images"))
def npz_images(spec: DataSpec) -> Images:
    """The arrays `images`, uint8 (N, H, W) or (N, H, W, 3), and `labels` (N,) of an .npz."""
    source = spec.path.name
    labels, classes = labels_of(_labels(spec), None, source)
    key, file = spec.options.get("images", "images"), NpzFile.of(spec.path)
    if key not in file.names:
        have, fix = f"it has {few(file.names, 10)}", f"npz:{spec.path}?images=KEY"
        raise bad_data(f"{source} has no array {clip(key, 80)!r}", have, fix)
    array = image_array(file.array(key), len(labels), source)
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
    """The array of the labels, which the option of that name may name."""
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
                    what = f"{spec.path.name}: {clip(key, 80)} is too large, or packed oddly"
                    raise bad_data(what, saw, fix)
                array = npy_array(archive.read(f"{key}.npy"))
                # Keras and scikit-learn keep labels as a column.
                return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        except _ZIP_ERRORS as e:
            saw = str(e) or type(e).__name__
            raise bad_data(f"{spec.path.name} cannot be read as .npz", saw) from None


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
