"""One image, from a file or from bytes, as Pillow decodes it."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.counts import few
from rescale_cli.core.predictions import Image
from rescale_cli.data.labels import bad_data
from rescale_cli.errors import BadImage, EnvironmentProblem
from rescale_cli.files.reading import opened, refuse_lfs_pointer
from rescale_cli.json_text import clip

#: The tag of EXIF that says which way up a picture is.
_ORIENTATION = 0x0112
#: Modes of 16-bit and 32-bit gray: values above 255 become 255.
_DEEP_GRAY = ("I;16", "I;16B", "I;16L", "I;16N", "I")
#: torchvision.datasets.folder.IMG_EXTENSIONS: what ImageFolder takes for an image.
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


#: Pillow's readers that are used. Its reader of EPS starts Ghostscript, which runs the file.
READERS = (
    "JPEG", "MPO", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000", "TGA",
    "PCX", "ICO",
)  # fmt: skip


class DeepGrayWarning(UserWarning):
    """An image of more than 8 bits a pixel in gray, which Pillow's conversion turns white."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """What a library does to an image after it is decoded."""

    upright: bool = False
    """Turn it as its EXIF orientation says, as `datasets` does and ImageFolder does not."""
    mode: str | None = None
    """Convert it to this mode of Pillow first."""


AS_STORED = Decoding()


def decode(data: bytes, name: str, how: Decoding = AS_STORED) -> Image:
    """An encoded image as (H, W, 3) RGB, or (H, W, 1) where it is stored as 8-bit gray.

    The first frame of several; everything else as `PIL.Image.convert("RGB")` turns it into RGB.
    By default it lies as it is stored, whatever EXIF says, like torchvision's ImageFolder.

    Warns:
        DeepGrayWarning: more than 8 bits a pixel of gray, which are cut off at 255.

    Raises:
        BadImage: it is no image, damaged, cut short, or of so many pixels that it must be a trap.
    """
    return _decoded(io.BytesIO(data), name, how)


def read_image(path: Path, how: Decoding = AS_STORED) -> Image:
    """The image in a file; see `decode`.

    Raises:
        BadImage: no such file, no regular file, or no image that can be decoded.
        EnvironmentProblem: the file may not be read.
    """
    with opened(path, BadImage) as fd:
        refuse_lfs_pointer(path, os.pread(fd, 64, 0), BadImage)
        with os.fdopen(fd, "rb", closefd=False) as file:
            return _decoded(file, str(path), how)


def _decoded(file: BinaryIO, name: str, how: Decoding) -> Image:
    import PIL.Image as pillow  # noqa: N813 - it is a module
    from PIL.ImageOps import exif_transpose

    try:
        pillow.init()
        readers = [name for name in READERS if name in pillow.OPEN]
        with pillow.open(file, formats=readers) as opened_picture:
            picture: Any = opened_picture
            if picture.width * picture.height > (pillow.MAX_IMAGE_PIXELS or 1 << 62):
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
            picture.load()
            if how.upright and picture.getexif().get(_ORIENTATION) is not None:
                picture = exif_transpose(picture)
            if how.mode and picture.mode != how.mode:
                picture = picture.convert(how.mode)
            pixels, deep = _pixels(picture), _is_deep_gray(picture)
    except Exception as error:  # Pillow lets through whatever its readers trip over
        saw = clip(str(error), 120).replace(f"{file!r}", "it") or type(error).__name__
        raise bad_image(name, saw) from None
    if deep:
        _warn_of_deep_gray()
    return pixels


def from_picture(picture: Any) -> Image:
    """The pixels of a PIL.Image; see `decode`."""
    picture.load()
    if _is_deep_gray(picture):
        _warn_of_deep_gray()
    return _pixels(picture)


def _is_deep_gray(picture: Any) -> bool:
    return picture.mode in _DEEP_GRAY and max(picture.getextrema()) > 255


def _warn_of_deep_gray() -> None:
    text = "a gray image of more than 8 bits a pixel: everything above 255 becomes white"
    warnings.warn(text, DeepGrayWarning, stacklevel=3)


def _pixels(picture: Any) -> Image:
    picture.info.pop("transparency", None)  # no pixel depends on it, but a warning does
    if picture.mode == "L":
        return np.array(picture)[:, :, None]
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def bad_image(name: str, saw: str) -> BadImage:
    """The error for one image that cannot be decoded."""
    fix = "replace the image, or take it out of the data; evaluation leaves it out: --skip-bad"
    return BadImage(f"{clip(name, 300)} cannot be decoded", saw=saw, fix=fix)


@dataclass(frozen=True)
class ImageFiles:
    """Reads image i from the file of that name below a folder."""

    root: Path
    names: Sequence[str]

    def __call__(self, index: int) -> Image:
        """The image of that index."""
        return read_image(self.root / self.names[index])


@dataclass(frozen=True)
class ArrayImages:
    """Reads image i of an array of images (N, H, W) or (N, H, W, channels)."""

    array: NDArray[np.uint8]

    def __call__(self, index: int) -> Image:
        """The image of that index, a copy."""
        image: Image = self.array[index].copy()
        return image if image.ndim == 3 else image[:, :, None]


def image_array(array: NDArray[Any], size: int, source: str) -> NDArray[np.uint8]:
    """Check that an array holds the images of `size` labels, and make it writable.

    Raises:
        BadInput: not uint8, not (N, H, W) or (N, H, W, channels), not N of them.
    """
    shape = array.shape
    fix = "save uint8 images as (N, H, W) gray or (N, H, W, 3) RGB: images.transpose(0, 2, 3, 1)"
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or shape[3:] not in ((), (1,), (3,)):
        raise bad_data(f"{source} holds no images", f"shape {shape}, dtype {array.dtype}", fix)
    if len(array) != size or 0 in shape:
        fix = "give as many images as labels, each of at least one pixel"
        raise bad_data(f"{source} has {len(array)} images for {size} labels", f"{shape}", fix)
    # torch warns of memory that it may not write to.
    return np.require(array, requirements=["C", "W"])


def check_present(root: Path, names: Iterable[str], fix: str) -> None:
    """Refuse files that are not there, in one look a folder rather than one a file.

    Raises:
        BadInput: there is no root, or an image is missing; the error lists the first of them.
        EnvironmentProblem: a folder may not be read.
    """
    if not root.is_dir():
        raise bad_data(f"there is no folder {root}", "it should hold the images", fix)
    there: dict[str, frozenset[str]] = {}
    missing = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in there:
            there[folder] = _files_in(root / folder)
        if file not in there[folder]:
            missing.append(name)
    if missing:
        raise bad_data(f"{len(missing):,} images are not in {root}", few(missing), fix)


def _files_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names, without a Path each
    except PermissionError as error:
        fix = "check the folder's permissions"
        raise EnvironmentProblem(f"{folder} may not be read", saw=str(error), fix=fix) from None
    except (OSError, ValueError):
        return frozenset()
