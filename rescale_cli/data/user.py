"""A data set or a network that the user's own code gives: `python:module:function`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import RawCounts
from rescale_cli.core.predictions import Image, Images
from rescale_cli.data.arrays import array_set
from rescale_cli.data.images import bad_image, from_picture, image_array
from rescale_cli.data.labels import bad_data, labels_of, tally_of
from rescale_cli.data.spec import DataSpec, counts, datasets
from rescale_cli.errors import BadInput
from rescale_cli.foreign_code import announce
from rescale_cli.json_text import clip


def user_function(name: str, source: str) -> Callable[..., Any]:
    """The callable of that name; modules of the current directory can be imported.

    Args:
        name: `module:callable`, the latter with dots where it lies in a class.
        source: what stands in front of it on the command line, for messages.

    Raises:
        BadInput: no such module, no such name in it, or nothing that can be called.
    """
    module, _, path = name.partition(":")
    fix = f"name what can be imported here: {source}:MODULE:FUNCTION"
    if not module or not path:
        saw = f"{source}:{clip(name, 80)}"
        raise BadInput("expected MODULE:FUNCTION", saw=saw, fix=fix)
    announce(f"{source}:{clip(name, 80)} runs the Python code of that module")
    here = os.getcwd()  # noqa: PTH109 - a string is what sys.path takes
    if here not in sys.path:
        # It stays: what the function imports later, and worker processes, need it, too.
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:
        saw = clip(f"{type(error).__name__}: {error}", 200)
        raise BadInput(f"{clip(name, 80)} cannot be imported", saw=saw, fix=fix) from error
    if not callable(found):
        saw = f"a value of the type {type(found).__name__}"
        raise BadInput(f"{clip(name, 80)} is not a function", saw=saw, fix=fix)
    called: Callable[..., Any] = found
    return called


_FIX = (
    "return (images, labels), or a data set of (image, label): uint8 arrays (H, W, 3) or PIL images"
)


@dataclass(frozen=True)
class UserImages:
    """Reads image i of what the user's code returned."""

    images: Any
    pairs: bool
    """Whether it holds (image, label) rather than images."""
    source: str

    def __call__(self, index: int) -> Image:
        """The image of that index."""
        name = f"{self.source}[{index}]"
        try:
            value = self.images[index]
            return as_image(value[0] if self.pairs else value)
        except BadInput:
            raise
        except Exception as error:
            raise bad_image(name, f"{type(error).__name__}: {clip(str(error), 200)}") from error


@counts.register("python")
def python(spec: DataSpec) -> RawCounts:
    """The labels of what a function of the user's returns; its code is run."""
    _, labels, _, classes, source = _called(spec)
    return tally_of(labels, classes, source)


@datasets.register("python")
def python_images(spec: DataSpec) -> Images:
    """What a function of the user's returns; its code is run.

    (images, labels), N each: an array uint8 (N, H, W) or (N, H, W, channels), or a sequence of
    images. Or a sequence of (image, label), such as a torch Dataset; its labels are read from
    `targets` where it has them, the class names from `classes`.
    """
    images, values, pairs, names, source = _called(spec)
    labels, classes = labels_of(values, names, source)
    if isinstance(images, np.ndarray) and not pairs:
        return array_set(image_array(images, len(labels), source), labels, classes, source)
    numbers = tuple(map(str, range(len(labels))))
    return Images(UserImages(images, pairs, source), labels, classes, numbers, source)


def as_image(value: Any) -> Image:
    """A PIL image, a uint8 array (H, W[, channels]) or tensor (channels, H, W) as an Image.

    Raises:
        TypeError: none of these; a float image was scaled already, and nobody knows how.
    """
    if hasattr(value, "convert") and hasattr(value, "mode"):
        return from_picture(value)
    if hasattr(value, "detach"):  # torch keeps channels first, as torchvision.io reads them
        value = value.detach().cpu().numpy()
        value = value.transpose(1, 2, 0) if value.ndim == 3 else value
    array = np.asarray(value)
    fine = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if array.dtype != np.uint8 or not fine or not array.size:
        raise TypeError(
            f"an image of shape {array.shape}, dtype {array.dtype}, is not read; {_FIX}"
        )
    return np.array(array if array.ndim == 3 else array[:, :, None])


def _called(spec: DataSpec) -> tuple[Any, NDArray[Any], bool, tuple[str, ...] | None, str]:
    """Images, labels (N,), whether the images are pairs, class names, and what it is called."""
    source = f"python {spec.path}"
    function = user_function(str(spec.path), "python")
    try:
        found = function()
        pairs = not (isinstance(found, tuple) and len(found) == 2)
        images, labels = (found, _labels_of(found)) if pairs else found
        classes = getattr(found, "classes", None)
        size, array = len(images), np.asarray(labels)
    except Exception as error:
        saw = f"{type(error).__name__}: {clip(str(error), 200)}"
        raise BadInput(f"{spec.path} does not give a data set", saw=saw, fix=_FIX) from error
    if array.ndim != 1 or size != len(array) or not size:
        raise bad_data(f"{spec.path} gives {size} images", f"labels of shape {array.shape}", _FIX)
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return images, array, pairs, tuple(classes) if named and classes else None, source


def _labels_of(pairs: Any) -> Any:
    targets = getattr(pairs, "targets", None)
    if targets is not None and len(targets) == len(pairs):
        return targets
    return [int(label) if hasattr(label, "__index__") else label
            for label in (pairs[i][1] for i in range(len(pairs)))]  # fmt: skip
