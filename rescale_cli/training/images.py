"""What is trained and validated on: opened, made long-tailed, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.alignment import Alignment, join_labels
from rescale_cli.core.classes import Classes
from rescale_cli.core.images import Images, Preprocessing
from rescale_cli.core.row_names import HeadRows
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.sources.data_spec import datasets, named_folder, parse_spec
from rescale_cli.sources.datasets import open_images
from rescale_cli.training.long_tail import Imbalance
from rescale_cli.training.recipe import Recipe

#: Images that are looked at for mean and deviation, evenly spaced, where they lie in files.
_LOOKED_AT = 1000
_AT_ONCE = 256
#: Large images are resized so much larger than the middle that validation looks at.
_CROP = 0.875


@dataclass(frozen=True, slots=True, eq=False)
class TrainingImages:
    """The images of a run."""

    train: Images
    kept: NDArray[np.int64]
    """(M,), which of them are trained on."""
    labels: NDArray[np.int64]
    """(M,), their classes."""
    classes: tuple[str, ...]
    """(C,), in the order of the head's rows."""
    named: bool
    """Whether the data has names for its classes."""
    validation: Images | None
    """With labels as rows of the head."""
    preprocessing: Preprocessing
    """Of validation, and of whoever uses the model."""
    alignment: Alignment | None = None
    """How the labels of `validation` were joined with the rows."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """n_i, (C,)."""
        return np.bincount(self.labels, minlength=len(self.classes))


def open_training_images(
    recipe: Recipe, *, download: bool = False, notes: Callable[[str], None] = lambda text: None
) -> TrainingImages:
    """Open the data of a recipe and choose the images that are trained on.

    Args:
        recipe: its data, val_data, imbalance, size, mean and std are read.
        download: fetch what is not there.
        notes: told what the user should know.

    Raises:
        BadInput: no data, no labels, one class.
        UsageError: no --data.
    """
    if not recipe.data:
        raise UsageError("there is nothing to train on", fix="--data DATA")
    train_spec, has_other = _train_split(recipe.data)
    train = open_images(train_spec, download=download)
    if train.labels is None:
        raise BadInput(f"{train.source} has no labels", fix="name data with labels: --data")
    known = train.classes or Classes.numbered(int(train.labels.max()) + 1)
    classes = known.names
    if len(classes) < 2:
        raise BadInput(f"{train.source} has one class only", fix="name data with several: --data")
    chosen = Imbalance.parse(recipe.imbalance)
    kept = chosen.choose(train.labels, len(classes), recipe.imbalance_seed)
    validation = aligned = None
    if recipe.val_data or has_other:
        validation = open_images(recipe.val_data or recipe.data, download=download)
        validation, aligned = _in_rows(validation, known, notes)
    else:
        notes(f"{train.source} has no held-out split, so nothing is validated: --val-data DATA")
    labels = train.labels[kept].astype(np.int64)
    prepared = _preprocessing(recipe, train, kept, notes)
    return TrainingImages(train, kept, labels, classes, known.named, validation, prepared, aligned)


def _train_split(text: str) -> tuple[str, bool]:
    """The name of the training images, and whether the same name leads to others, held out."""
    spec = parse_spec(text, datasets)
    if not spec.name and spec.path.is_dir():
        spec = named_folder(spec, datasets)
    facts = datasets.entry(spec.name).facts if spec.name else {}
    splits = cast("tuple[str, ...]", facts.get("splits", ()))
    if spec.split is not None or "train" not in splits or spec.path.is_file():
        return text, False
    if spec.name == "folder":
        if not (spec.path / "train").is_dir():
            return text, False
        held = any((spec.path / name).is_dir() for name in ("test", "val", "valid", "validation"))
        return f"folder:{spec.path}@train", held
    options = "&".join(f"{key}={value}" for key, value in spec.options.items())
    return f"{spec.name}:{spec.path}{'?' if options else ''}{options}@train", True


def _in_rows(
    images: Images, known: Classes, notes: Callable[[str], None]
) -> tuple[Images, Alignment]:
    if images.labels is None or images.classes is None:
        raise BadInput(f"{images.source} has no labels", fix="name data with labels: --val-data")
    rows = HeadRows(len(known.names), known.names if known.named else None, "rescale")
    labels, found = join_labels(
        images.labels, images.classes, rows, source=images.source, samples=images.names
    )
    for text in found.notes:
        notes(text)
    return replace(images, labels=labels), found


def _preprocessing(
    recipe: Recipe, train: Images, kept: NDArray[np.int64], notes: Callable[[str], None]
) -> Preprocessing:
    """How an image becomes the network's input: with the channels and the size of the data."""
    first = train.read(int(kept[0]))
    channels = 1 if first.ndim == 2 else first.shape[2]
    height, width = first.shape[:2]
    if recipe.augment == "resized-crop" and not recipe.size:
        raise UsageError("random crops need a size to be resized to", fix="--size 224")
    size = (recipe.size, recipe.size) if recipe.size else (height, width)
    mean, std = recipe.mean, recipe.std
    if not mean:
        mean, std = measured(train, kept, channels)
    elif len(mean) == 3 and channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        notes("the images are gray: the means of --mean and --std are taken")
    elif len(mean) == 1:
        mean, std = mean * channels, std * channels
    resize = round(recipe.size / _CROP) if recipe.augment == "resized-crop" else None
    return Preprocessing(size, tuple(mean), tuple(std), resize)


def measured(
    images: Images, kept: NDArray[np.int64], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels, in 0..1, each (channels,), to four digits.

    Of all images where they lie in memory, of a thousand where they lie in files.
    """
    looked = kept
    if images.array is None:
        looked = kept[np.linspace(0, len(kept) - 1, min(len(kept), _LOOKED_AT)).astype(np.int64)]
    histogram = np.zeros((channels, 256), np.int64)
    for part in np.array_split(looked, -(-len(looked) // _AT_ONCE)):
        if images.array is not None:
            read = [images.array[part].reshape(-1, channels)]
        else:
            found = (images.read(index) for index in part.tolist())
            read = [image.reshape(-1, image.shape[2]) for image in found]
        for pixels in read:
            for channel in range(channels):
                plane = pixels[:, min(channel, pixels.shape[1] - 1)]
                histogram[channel] += np.bincount(plane, minlength=256)
    levels = np.arange(256) / 255
    shares = histogram / histogram.sum(axis=1, keepdims=True)
    mean = shares @ levels
    std = np.sqrt(np.maximum(shares @ levels**2 - mean**2, 0))
    std = np.where(std < 1e-4, 1.0, std)  # a channel that never changes
    return (
        tuple(round(float(v), 4) for v in mean),
        tuple(round(float(v), 4) for v in std),
    )
