"""One image of a file, cropped and mirrored at random: what workers do for sets too large to hold.

The distributions are those of torchvision's RandomResizedCrop, RandomCrop with padding and
RandomHorizontalFlip.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rescale_cli.core.images import Image, Preprocessing

#: The share of the image's area that a crop has, and its width over its height.
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_PAD = 4

Augmentation = Callable[[Image, Preprocessing, np.random.Generator], Image]


def fitted(image: Image, p: Preprocessing) -> Image:
    """The image in the network's size and channels, (H, W, channels)."""
    picture = _picture(image, p)
    if (picture.height, picture.width) != p.size:
        picture = picture.resize(p.size[::-1], _bilinear())
    return _pixels(picture, p)


def crop_flip(image: Image, p: Preprocessing, random: np.random.Generator) -> Image:
    """Off by 0 to 4 pixels in each direction, black beyond the edge; mirrored or not."""
    top, left = random.integers(2 * _PAD + 1, size=2).tolist()
    mirror = random.integers(2)
    padded = np.pad(fitted(image, p), ((_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    height, width = p.size
    crop: Image = padded[top : top + height, left : left + width]
    return np.ascontiguousarray(crop[:, ::-1] if mirror else crop)


def resized_crop(image: Image, p: Preprocessing, random: np.random.Generator) -> Image:
    """A part of 8 to 100 % of the area, resized to the network's size; mirrored or not.

    RandomResizedCrop: the ratio of the sides is drawn evenly in its logarithm. After ten parts that
    do not lie in the image, the middle is taken, as far as the ratio allows.
    """
    picture = _picture(image, p)
    left, top, width, height = _part(picture.width, picture.height, random)
    box = (left, top, left + width, top + height)
    picture = picture.resize(p.size[::-1], _bilinear(), box=box)
    pixels = _pixels(picture, p)
    return np.ascontiguousarray(pixels[:, ::-1]) if random.integers(2) else pixels


def _part(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.integers(width - w + 1), random.integers(height - h + 1)
            return int(left), int(top), w, h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


#: By the name that a recipe gives.
AUGMENTATIONS: dict[str, Augmentation] = {
    "crop-flip": crop_flip,
    "resized-crop": resized_crop,
    "none": lambda image, p, random: fitted(image, p),
}


def _picture(image: Image, p: Preprocessing) -> Any:
    from PIL import Image as Pillow

    gray = image.ndim == 2 or image.shape[2] == 1
    picture = Pillow.fromarray(image.reshape(image.shape[:2]) if gray else image)
    return picture.convert("L" if p.channels == 1 else "RGB")


def _pixels(picture: Any, p: Preprocessing) -> Image:
    return np.array(picture).reshape(picture.height, picture.width, p.channels)


def _bilinear() -> Any:
    from PIL import Image as Pillow

    return Pillow.Resampling.BILINEAR
