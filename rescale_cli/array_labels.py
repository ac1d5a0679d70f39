"""Arrays of an .npz: labels (N,) and images, read without a pickle."""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rescale_cli.class_order import RawCounts
from rescale_cli.data_spec import DataSpec, counts, datasets
from rescale_cli.errors import BadInput
from rescale_cli.image_files import ArrayImages, image_array
from rescale_cli.images import Images
from rescale_cli.json_text import clip
from rescale_cli.label_sources import bad_data, labels_of, tally_of
from rescale_cli.regular_file import opened, refuse_lfs_pointer

#: Larger than any public set of labels, small enough to be read twice.
MAX_BYTES = 192 << 20
#: Images are read into memory whole: 100,000 of 224 x 224.
MAX_IMAGE_BYTES = 16 << 30
#: Everything that zipfile raises for a file that is no sound archive.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, ValueError, EOFError,
               RuntimeError)  # fmt: skip


@counts.register("npz", options=("labels", "images"))
def npz(spec: DataSpec) -> RawCounts:
    """The array `labels` (N,) of an .npz; a pickled array in it is refused."""
    return tally_of(_array(spec, "labels", MAX_BYTES), None, spec.path.name)


@datasets.register("npz", options=("labels", "images"))
def npz_images(spec: DataSpec) -> Images:
    """The arrays `images`, uint8 (N, H, W) or (N, H, W, 3), and `labels` (N,) of an .npz."""
    source = spec.path.name
    labels, classes = labels_of(_array(spec, "labels", MAX_BYTES), None, source)
    array = image_array(_array(spec, "images", MAX_IMAGE_BYTES), len(labels), source)
    return array_set(array, labels, classes, source)


def array_set(
    array: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: tuple[str, ...] | None,
    source: str,
) -> Images:
    """Images (N, H, W[, channels]) in memory; each is named by its number."""
    names = tuple(map(str, range(len(array))))
    return Images(ArrayImages(array), labels, classes, names, source, array)


def _array(spec: DataSpec, default: str, limit: int) -> NDArray[Any]:
    """The array of an .npz that the option of that name, or its default, names."""
    key = spec.options.get(default, default)
    fix = f"name the array of the {default}: npz:{spec.path}?{default}=KEY"
    with opened(spec.path, BadInput) as fd, os.fdopen(fd, "rb", closefd=False) as file:
        refuse_lfs_pointer(spec.path, os.pread(fd, 64, 0), BadInput)
        try:
            with zipfile.ZipFile(file) as archive:
                if f"{key}.npy" not in archive.namelist():
                    have = f"it has {', '.join(archive.namelist()[:10])}"
                    raise bad_data(f"{spec.path.name} has no array {clip(key, 80)!r}", have, fix)
                info = archive.getinfo(f"{key}.npy")
                if info.file_size > limit or info.compress_type not in (0, 8):
                    saw = f"{info.file_size:,} bytes, method {info.compress_type}"
                    what = f"{spec.path.name}: {clip(key, 80)} is too large, or oddly packed"
                    raise bad_data(what, saw, fix)
                return npy_array(archive.read(f"{key}.npy"))
        except _ZIP_ERRORS as e:
            saw = str(e) or type(e).__name__
            raise bad_data(f"{spec.path.name} cannot be read as .npz", saw) from None


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
            shape, fortran, dtype = read(file)
    except Exception as error:  # numpy lets errors of tokenize and ast pass through
        raise ValueError(f"its header is damaged: {error}") from None
    size = len(data) - file.tell()
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"an array of {dtype}, which is not read")
    if math.prod(shape) * dtype.itemsize != size or any(n < 0 for n in shape):
        raise ValueError(f"its header says {shape} of {dtype}, but {size:,} bytes follow")
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order=order)
