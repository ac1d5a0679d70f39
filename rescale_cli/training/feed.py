"""Images of an epoch, step by step, as the network takes them: from memory, or read by workers.

Small sets lie as bytes on the device and are augmented there, a batch at a time. Larger ones are
decoded, cropped and mirrored by worker processes, and become floats on the device. Both draw from
(seed, epoch) alone, so an epoch can begin at any step.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.images import Image, Preprocessing
from rescale_cli.errors import RescaleError
from rescale_cli.predicting.batches import decoded, free_cpus
from rescale_cli.predicting.ranks import as_text, from_text
from rescale_cli.training.augment import ImageStore
from rescale_cli.training.crops import AUGMENTATIONS, fitted
from rescale_cli.training.images import TrainingImages
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.samplers import Batches
from rescale_cli.training.seeds import seed_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Bytes that a set may take to live on the device, mirrored copy and padding included.
IN_MEMORY = 4 << 30
_PAD = 4
_MOST_WORKERS = 16


class Feed(Protocol):
    """Where the images of a run come from."""

    def epoch(
        self, number: int, order: NDArray[np.int64], batches: Batches, rank: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (n, channels, H, W) float32 and labels (n,), on the device, a step at a time.

        Args:
            number: of the epoch, from 0.
            order: of all ranks, indices into the images that are trained on.
            batches: how it falls into steps and ranks.
            rank: whose share.
            start: the first step, where an epoch is taken up in its middle.
        """


def make_feed(data: TrainingImages, recipe: Recipe, device: torch.device) -> Feed:
    """In memory where all images fit and need no random resizing, else streamed."""
    height, width = data.preprocessing.size
    side = 2 * _PAD
    bytes_ = 2 * len(data.labels) * (height + side) * (width + side) * data.preprocessing.channels
    if recipe.augment == "resized-crop" or bytes_ > IN_MEMORY:
        return Streamed(data, recipe, device)
    return InMemory(data, recipe, device)


class InMemory:
    """A set that lives on the device; see `ImageStore`."""

    def __init__(self, data: TrainingImages, recipe: Recipe, device: torch.device) -> None:
        import torch

        self._seed, self._moving = recipe.seed, recipe.augment == "crop-flip"
        p = data.preprocessing
        pad = _PAD if self._moving else 0
        self._store = ImageStore.of(_pixels(data), p.mean, p.std, pad=pad, device=device)
        self._labels = torch.from_numpy(data.labels).to(device)
        self._device = device

    def epoch(
        self, number: int, order: NDArray[np.int64], batches: Batches, rank: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Feed`."""
        import torch

        chosen = torch.from_numpy(order).to(self._device)
        generator = torch.Generator().manual_seed(seed_of(self._seed, number))
        store = self._store
        places = store.draw(chosen, generator) if self._moving else store.whole(chosen)
        labels = self._labels[chosen]
        for step in range(start, batches.steps):
            share = batches.share(step, rank)
            yield store.batch(places[share]), labels[share]


def _pixels(data: TrainingImages) -> NDArray[np.uint8]:
    """The images that are trained on, (M, H, W, channels), in the network's size and channels."""
    p, images = data.preprocessing, data.train
    shape = () if images.array is None else images.array.shape[1:]
    if images.array is not None and (*shape, 1)[:3] == (*p.size, p.channels):
        return np.ascontiguousarray(images.array[data.kept])
    with ThreadPoolExecutor(free_cpus()) as pool:  # Pillow lets other threads run
        made = pool.map(lambda index: fitted(images.read(index), p), data.kept.tolist())
        return np.stack(list(made))


class Streamed:
    """A set that is read anew each epoch, ahead of the network, by worker processes."""

    def __init__(self, data: TrainingImages, recipe: Recipe, device: torch.device) -> None:
        import torch

        self._data, self._recipe, self._device = data, recipe, device
        p = data.preprocessing
        self._workers = recipe.workers
        if self._workers is None:
            self._workers = min(_MOST_WORKERS, free_cpus())
        self._scale = (255 * torch.tensor(p.std, device=device)).reciprocal()
        self._shift = torch.tensor(p.mean, device=device) / torch.tensor(p.std, device=device)

    def epoch(
        self, number: int, order: NDArray[np.int64], batches: Batches, rank: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Feed`."""
        import torch

        steps = range(start, batches.steps)
        places = np.arange(len(order))
        parts = [places[batches.share(step, rank)] for step in steps]
        reader = _Reader(self._data, self._recipe, order, number)
        labels = self._data.labels
        stream = decoded(reader, parts, self._workers or 0, self._device.type == "cuda")
        for part, (pixels, error) in zip(parts, stream, strict=True):
            if error is not None:
                raise from_text(error)
            bytes_ = pixels.to(self._device, non_blocking=True)
            values = bytes_.to(torch.float32).mul_(self._scale).sub_(self._shift)
            of = torch.from_numpy(labels[order[part]]).to(self._device, non_blocking=True)
            yield values.permute(0, 3, 1, 2), of


@dataclass(frozen=True)
class _Reader:
    """From places in the order of an epoch to pixels; what it draws depends on the place alone."""

    data: TrainingImages
    recipe: Recipe
    order: NDArray[np.int64]
    epoch: int

    def __getitem__(self, places: NDArray[np.int64]) -> tuple[Tensor, str | None]:
        """Images (n, H, W, channels), uint8; or an error as text, which survives the way."""
        import torch

        p: Preprocessing = self.data.preprocessing
        augment = AUGMENTATIONS[self.recipe.augment]
        made: list[Image] = []
        try:
            for place in places.tolist():
                index = int(self.data.kept[self.order[place]])
                random = np.random.default_rng([self.recipe.seed, self.epoch, place])
                made.append(augment(self.data.train.read(index), p, random))
        except RescaleError as error:
            return torch.empty(0), as_text(error)
        return torch.from_numpy(np.stack(made)), None
