"""What is trained and validated on, and how good the network is on it at each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.alignment import Alignment, join_labels
from rescale_cli.core.classes import Classes, HeadRows
from rescale_cli.core.predictions import Images, Predictions, Preprocessing
from rescale_cli.data.datasets import held_out, open_images, part_of
from rescale_cli.data.spec import NoSplit, datasets, parse_spec, splits_in
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.evaluating.batches import batches
from rescale_cli.evaluating.ranks import Ranks
from rescale_cli.measures.metrics import Groups, Tallies, accuracy, table_of
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.samplers import Imbalance

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


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
    val_split: float = 0.0
    """The share of the training images that `validation` is; 0 where it is other data."""
    sweep_data: str = ""
    """What to choose a strength on, as `--data` names it; empty where it is no validation data."""

    def described(self) -> dict[str, Any]:
        """What was trained and validated on, for config.json and `--json`."""
        train, val = self.train, self.validation
        return {
            "train": {"source": train.source, "split": train.split, "samples": len(self.kept)},
            "validation": None if val is None else {
                "source": val.source, "split": val.split, "samples": len(val),
                "val_split": self.val_split or None,
            },
        }  # fmt: skip

    @property
    def counts(self) -> NDArray[np.int64]:
        """n_i, (C,)."""
        return np.bincount(self.labels, minlength=len(self.classes))


def open_training_images(
    recipe: Recipe, *, download: bool = False, notes: Callable[[str], None] = lambda text: None
) -> TrainingImages:
    """Open the data of a recipe and choose the images that are trained on.

    Args:
        recipe: its data, val_data, val_split, seed, imbalance, size, mean and std are read.
        download: fetch what is not there.
        notes: told what the user should know.

    Raises:
        BadInput: no data, no labels, one class.
        UsageError: no --data.
    """
    if not recipe.data:
        raise UsageError("there is nothing to train on", fix="--data DATA")
    train = open_images(recipe.data, purpose="train", download=download)
    if train.labels is None:
        raise BadInput(f"{train.source} has no labels", fix="name data with labels: --data")
    known = train.classes or Classes.numbered(int(train.labels.max()) + 1)
    classes = known.names
    if len(classes) < 2:
        raise BadInput(f"{train.source} has one class only", fix="name data with several: --data")
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
    prepared = _preprocessing(recipe, train, kept, notes)
    share = recipe.val_split if len(part) else 0.0
    return TrainingImages(
        train, kept, labels, classes, known.named, validation, prepared, aligned, share, sweep_data
    )  # fmt: skip


def _other(recipe: Recipe, train: Images, download: bool) -> tuple[Images | None, str]:
    """The images of --val-data, or of the validation split, and how `--data` names them."""
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
    """A part of the training images, to validate on."""
    if not len(part):
        why, fix = "", "--val-split 0.1, or --val-data DATA"
        if share:
            why, fix = ", and no class has two images of which one could be held out", "--val-data"
            fix += " DATA"
        notes(f"{train.source} has no validation split{why}, so nothing is validated: {fix}")
        return None
    notes(
        f"{train.source} has no validation split: {len(part):,} of its images are not trained on, "
        f"but validated on (--val-split {share:g})"
    )
    return part_of(train, part, share)


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


_BATCH = {"cuda": 512, "cpu": 128}


class Validation:
    """A labelled set, and the groups of its classes.

    Args:
        images: N, with labels as rows of the head.
        preprocessing: from an image to the network's input.
        groups: many, medium and few, (C,) each.
        device: where the network is.
        workers: that decode images.
        ranks: each takes its share of the images.
    """

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        groups: Groups,
        device: torch.device,
        workers: int | None,
        ranks: Ranks,
    ) -> None:
        import torch

        self._images, self._preprocessing, self._groups = images, preprocessing, groups
        self._device, self._workers, self._ranks = device, workers, ranks
        n, world = len(images), ranks.world
        self._share = range(n * ranks.rank // world, n * (ranks.rank + 1) // world)
        assert images.labels is not None
        self._labels = torch.from_numpy(images.labels.astype(np.int64)).to(device)
        if device.type == "cuda" and images.array is not None and images.array.nbytes < 1 << 30:
            # It is looked at every epoch: it may as well lie there.
            self._images = replace(images, array=torch.from_numpy(images.array).to(device))  # type: ignore[arg-type]

    def first(self) -> Tensor:
        """A batch of it, on the device: what is wrong with the set shows before a run begins."""
        few = range(min(8, len(self._images)))  # of any rank: a share may be empty
        for batch in self._batches(few):
            return batch[1]
        raise BadInput(f"{self._images.source} has no images", fix="--val-data DATA")

    def errors(
        self, network: nn.Module, weights: Mapping[str, Tensor], layout: torch.memory_format
    ) -> dict[str, float | None]:
        """Loss and errors of a network with these weights, 0 to 1; the same on every rank.

        Returns:
            `val_loss`, `val_error`, `val_balanced_error`, and the mean error of the classes with
            `many`, `medium` and `few` training samples; None is n/a.
        """
        import torch
        from torch.func import functional_call
        from torch.nn import functional

        c = len(next(iter(self._groups.values())))
        tallies = torch.zeros(3 * c + 1, dtype=torch.float64, device=self._device)
        was_training = network.training
        network.eval()
        with torch.no_grad():
            for rows, x in self._batches(self._share):
                x = x.contiguous(memory_format=layout)
                logits = functional_call(network, dict(weights), (x,)).float()
                y = self._labels[rows]
                predicted = logits.argmax(1)
                hit = predicted[predicted == y]
                counted = [torch.bincount(v, minlength=c) for v in (hit, y, predicted)]
                tallies[:-1] += torch.cat(counted)
                tallies[-1] += functional.cross_entropy(logits, y, reduction="sum")
        network.train(was_training)
        found: NDArray[np.float64] = self._ranks.total(tallies).cpu().numpy()
        hits, support, predictions = found[:-1].reshape(3, c)
        return _errors(Tallies(hits, support, predictions), self._groups, found[-1])

    def predictions(
        self, network: nn.Module, weights: Mapping[str, Tensor], layout: torch.memory_format
    ) -> Predictions:
        """The logits of all images, whatever the rank, with their labels as rows of the head."""
        import torch
        from torch.func import functional_call

        was_training = network.training
        network.eval()
        with torch.no_grad():
            logits = [
                functional_call(network, dict(weights), (x.contiguous(memory_format=layout),))
                .float()
                .cpu()
                for _, x in self._batches(range(len(self._images)))
            ]
        network.train(was_training)
        labels = self._labels.cpu().numpy()
        source, names = self._images.source, self._images.names
        return Predictions(torch.cat(logits).numpy(), labels, source, names)

    def _batches(self, samples: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the set, and their images on the device."""
        import torch

        size = _BATCH[self._device.type]
        stream = batches(
            self._images, self._preprocessing, samples, size, self._workers, self._device
        )
        for batch in stream:
            if batch.bad:
                index, why = batch.bad[0]
                raise BadInput(
                    f"an image to validate on cannot be read: {self._images.names[index]}",
                    saw=why,
                    fix="replace it, or take it out of the data",
                )
            rows = torch.tensor(batch.indices, device=self._device)
            yield rows, batch.take(0, len(batch.indices))


def _errors(tallies: Tallies, groups: Groups, loss: float) -> dict[str, float | None]:
    table = table_of(tallies, groups)
    named = {
        "val_loss": loss / tallies.support.sum(),
        "val_error": 1 - accuracy(tallies),
        "val_balanced_error": 1 - table["balanced_accuracy"],
        **{name: 1 - table[name] for name in groups},
    }
    return {name: None if np.isnan(value) else float(value) for name, value in named.items()}
