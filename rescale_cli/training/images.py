"""The images of a run: which are trained on, which validated on, and the validation itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.alignment import Alignment, join_labels
from rescale_cli.core.classes import Classes, HeadRows
from rescale_cli.core.predictions import Image, Images, Preprocessing
from rescale_cli.data.datasets import held_out, open_images, part_of
from rescale_cli.data.spec import NoSplit, datasets, parse_spec, splits_in
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.samplers import Imbalance

if TYPE_CHECKING:
    pass


#: Images, evenly spaced, from which mean and standard deviation are measured if they are files.
_LOOKED_AT = 1000
_AT_ONCE = 256
#: Validation takes this share of the resized image from its center.
_CROP = 0.875


@dataclass(frozen=True, slots=True, eq=False)
class TrainingImages:
    """The images of a run."""

    train: Images
    kept: NDArray[np.int64]
    """(M,), indices of the images that are trained on."""
    labels: NDArray[np.int64]
    """(M,), their classes."""
    classes: tuple[str, ...]
    """(C,), in the order of the head's rows."""
    named: bool
    """Whether the data has names for its classes."""
    validation: Images | None
    """With labels as rows of the head."""
    preprocessing: Preprocessing
    """The preprocessing for validation, and for every later use of the model."""
    alignment: Alignment | None = None
    """How the labels of `validation` were matched with the rows."""
    val_split: float = 0.0
    """The share of the training images that `validation` is; 0 if it is separate data."""
    sweep_data: str = ""
    """Validation data for choosing a gamma, as `--data` names them; empty if there are none."""
    augment: str = "crop-flip"
    """The augmentation of the recipe, with `auto` replaced."""
    resized: bool = True
    """Whether images of another size are resized; else `read` refuses them."""

    def read(self, index: int) -> Image:
        """The training image of that index.

        Raises:
            BadInput: without --size, it has another size than the first image.
        """
        image = self.train.read(index)
        if not self.resized and image.shape[:2] != self.preprocessing.size:
            (h, w), first = image.shape[:2], "{} x {}".format(*self.preprocessing.size)
            raise BadInput(
                f"the images of {self.train.source} have different sizes",
                saw=f"{first}, but {h} x {w} pixels in {self.train.names[index]}",
                fix="resize every image to a square of N pixels, whatever its shape: --size "
                f"{min(self.preprocessing.size)}",
            )
        return image

    def described(self) -> dict[str, Any]:
        """The data of the run, for config.json and `--json`."""
        train, val = self.train, self.validation
        return {
            "train": {"source": train.source, "split": train.split, "samples": len(self.kept)},
            "validation": None if val is None else {
                "source": val.source, "split": val.split, "samples": len(val),
                "val_split": self.val_split or None,
            },
        }  # fmt: skip

    def digest(self) -> str:
        """SHA-256 of the labels and the images that are trained on.

        Of images in memory it covers all pixels; of others the names, the sizes of files, and the
        pixels of at most a hundred evenly spaced images, so that large data are not read twice.
        """
        found = hashlib.sha256(self.labels.tobytes())
        if self.train.array is not None:
            for rows in np.array_split(self.kept, -(-len(self.kept) // _AT_ONCE)):
                found.update(self.train.array[rows].tobytes())
            return found.hexdigest()
        root = getattr(self.train.read, "root", None)
        for index in self.kept.tolist():
            name = self.train.names[index]
            size = 0
            with suppress(OSError):  # a missing file is reported when it is read
                size = (root / name).stat().st_size if root else 0
            found.update(f"{name}\n{size}\n".encode("utf-8", "surrogateescape"))
        for place in np.linspace(0, len(self.kept) - 1, min(len(self.kept), 100)).astype(int):
            found.update(self.train.read(int(self.kept[place])).tobytes())
        return found.hexdigest()

    @property
    def counts(self) -> NDArray[np.int64]:
        """Training images of each class, n_i, (C,)."""
        return np.bincount(self.labels, minlength=len(self.classes))


def open_training_images(
    recipe: Recipe, *, download: bool = False, notes: Callable[[str], None] = lambda text: None
) -> TrainingImages:
    """Open the data of a recipe and choose the images that are trained on.

    Args:
        recipe: its data, val_data, val_split, seed, imbalance, size, mean and std are read.
        download: fetch data that are missing.
        notes: called with what the user should know.

    Raises:
        BadInput: there are no data or no labels, or only one class.
        UsageError: --data is missing.
    """
    if not recipe.data:
        raise UsageError("--data is missing: there are no training images", fix="--data DATA")
    train = open_images(recipe.data, purpose="train", download=download)
    if train.labels is None:
        raise BadInput(f"{train.source} has no labels", fix="name data with labels: --data DATA")
    known = train.classes or Classes.numbered(int(train.labels.max()) + 1)
    classes = known.names
    if len(classes) < 2:
        raise BadInput(
            f"{train.source} has only one class", fix="name data with several classes: --data DATA"
        )
    validation, sweep_data = _other(recipe, train, download)
    aligned, part = None, np.zeros(0, np.int64)
    if validation is not None:
        validation, aligned = _in_rows(validation, known, notes)
    else:
        part = held_out(train.labels, recipe.val_split, recipe.seed)
        validation = _part(train, part, recipe.val_split, notes)
    rest = np.setdiff1d(np.arange(len(train)), part)
    chosen = Imbalance.parse(recipe.imbalance)
    kept = rest[chosen.choose(train.labels[rest], len(classes), recipe.imbalance_seed)]
    labels = train.labels[kept].astype(np.int64)
    _say_remaining(recipe, train.labels[rest], labels, notes)
    prepared = _preprocessing(recipe, train, kept, notes)
    share = recipe.val_split if len(part) else 0.0
    found = TrainingImages(
        train, kept, labels, classes, known.named, validation, prepared, aligned, share, sweep_data,
        _augmentation(recipe, prepared, notes), bool(recipe.size) or train.array is not None,
    )  # fmt: skip
    for place in np.linspace(0, len(kept) - 1, min(len(kept), _LOOKED_AT)).astype(np.int64):
        if found.resized:
            break
        found.read(int(kept[place]))  # before hours are spent
    return found


def _say_remaining(
    recipe: Recipe,
    available: NDArray[np.int64],
    kept: NDArray[np.int64],
    notes: Callable[[str], None],
) -> None:
    """Tell how many images --imbalance keeps of data that are imbalanced already."""
    have, left = (np.bincount(labels) for labels in (available, kept))
    if recipe.imbalance != "none" and have.max() > 1.2 * have[have > 0].min():
        notes(
            f"--imbalance {recipe.imbalance} keeps {len(kept):,} of {len(available):,} images "
            f"({left.max():,} to {left[left > 0].min():,} a class): the data are imbalanced "
            f"already ({have.max():,} to {have[have > 0].min():,} a class)"
        )


def _augmentation(recipe: Recipe, prepared: Preprocessing, notes: Callable[[str], None]) -> str:
    """The augmentation of a recipe: `auto` leaves small images and digits as they are."""
    if recipe.augment != "auto":
        return recipe.augment
    digits = recipe.data.startswith("mnist:")
    if min(prepared.size) >= 16 and not digits:
        return "crop-flip"
    why = (
        "the images are digits" if digits else f"the images have {min(prepared.size)} pixels a side"
    )
    notes(f"--augment auto is none, because {why}")
    return "none"


def _other(recipe: Recipe, train: Images, download: bool) -> tuple[Images | None, str]:
    """The images of --val-data or of the validation split, and their name for `--data`."""
    if recipe.val_data:
        found = open_images(recipe.val_data, purpose="validate", download=download)
        test = found.split == "test" or "test" in splits_in(parse_spec(recipe.val_data).path.name)
        return found, "" if test else recipe.val_data
    if train.split != "train":
        return None, ""
    spec = replace(parse_spec(recipe.data, datasets), split=None)
    try:
        found = open_images(spec, purpose="validate", download=download)
    except NoSplit:
        return None, ""
    return found, spec.text("val")


def _part(
    train: Images, part: NDArray[np.int64], share: float, notes: Callable[[str], None]
) -> Images | None:
    """The part of the training images that is held out for validation; None if it is empty."""
    if not len(part):
        why, fix = "", "--val-split 0.1, or --val-data DATA"
        if share:
            why, fix = (
                ", and no class has two images, so that one could be held out",
                "--val-data DATA",
            )
        notes(
            f"{train.source} has no validation split{why}, so the run is not validated; "
            f"to validate it: {fix}"
        )
        return None
    notes(
        f"{train.source} has no validation split, so {len(part):,} of its images are held out for "
        f"validation (--val-split {share:g})"
    )
    return part_of(train, part, share)


def _in_rows(
    images: Images, known: Classes, notes: Callable[[str], None]
) -> tuple[Images, Alignment]:
    if images.labels is None or images.classes is None:
        raise BadInput(
            f"{images.source} has no labels", fix="name data with labels: --val-data DATA"
        )
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
    """The preprocessing of a run: with the channels of the data, and their size unless --size."""
    first = train.read(int(kept[0]))
    channels = 1 if first.ndim == 2 else first.shape[2]
    height, width = first.shape[:2]
    if recipe.augment == "resized-crop" and not recipe.size:
        raise UsageError(
            "--augment resized-crop needs the size of the network's input", fix="--size 224"
        )
    size = (recipe.size, recipe.size) if recipe.size else (height, width)
    mean, std = recipe.mean, recipe.std
    if not mean:
        mean, std = measured(train, kept, channels)
    elif len(mean) == 3 and channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        notes("the images are grayscale, so --mean and --std are averaged over their channels")
    elif len(mean) == 1:
        mean, std = mean * channels, std * channels
    resize = round(recipe.size / _CROP) if recipe.augment == "resized-crop" else None
    return Preprocessing(size, tuple(mean), tuple(std), resize)


def measured(
    images: Images, kept: NDArray[np.int64], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels, in 0..1, each (channels,), to four digits.

    All images are measured if they are in memory, and a thousand of them if they are files.
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
    std = np.where(std < 1e-4, 1.0, std)  # a constant channel
    return (
        tuple(round(float(v), 4) for v in mean),
        tuple(round(float(v), 4) for v in std),
    )
