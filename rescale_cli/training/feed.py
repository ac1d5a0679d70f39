"""The augmented batches of an epoch: our own crops and flips, which depend only on seed and epoch.

The distributions are those of torchvision's RandomCrop with padding, RandomResizedCrop and
RandomHorizontalFlip. Those draw from torch's global generator, so an epoch could not be resumed at
any step, and they take one image at a time.

Small sets stay as bytes on the device and are augmented there, a batch at a time: every image is
stored padded, and a second time mirrored. A crop is H runs of W pixels, so an augmented image is
nothing but the position of its first pixel. Larger sets are decoded, cropped and mirrored by worker
processes, and converted to floats on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.predictions import Image, Preprocessing
from rescale_cli.errors import BadInput, RescaleError
from rescale_cli.evaluating.batches import decoded, free_cpus
from rescale_cli.evaluating.ranks import as_text, from_text
from rescale_cli.training.images import TrainingImages
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.samplers import Batches, seed_of

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor
    from torch import device as Device  # noqa: N812 - a class, though torch writes it small


@dataclass(frozen=True, slots=True)
class ImageStore:
    """N images of H x W pixels and c channels, 2 c (H + 2 pad) (W + 2 pad) bytes each."""

    runs: Tensor
    """(pixels - W + 1, W * c), uint8: the W pixels that start at each pixel, as a view."""
    shape: tuple[int, int, int, int]
    """N, H, W, c."""
    pad: int
    """Black pixels on each side."""
    scale: Tensor
    """(W * c,), float32: 1 / (255 std), over and over."""
    shift: Tensor
    """(W * c,), float32: mean / std, over and over."""

    @classmethod
    def of(
        cls,
        images: NDArray[np.uint8] | Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        pad: int = 4,
        device: Device | str = "cpu",
    ) -> ImageStore:
        """Put images on a device.

        Args:
            images: (N, H, W) or (N, H, W, c), uint8.
            mean: of values in 0..1, (c,).
            std: of values in 0..1, (c,), above 0.
            pad: the largest shift of a crop, in pixels; 0 for no crops.
            device: where the images are stored.

        Raises:
            BadInput: another dtype or other axes, or not one mean and std for each channel.
        """
        import torch
        from torch.nn import functional

        bytes_: Tensor = torch.as_tensor(images)
        bytes_ = bytes_.unsqueeze(-1) if bytes_.ndim == 3 else bytes_
        c = bytes_.shape[-1] if bytes_.ndim == 4 else 0
        if not (bytes_.dtype == torch.uint8 and c == len(mean) == len(std) and min(std) > 0):
            raise BadInput(
                "the images must be uint8 (N, H, W, channels) with a mean and std for each channel",
                saw=f"{bytes_.dtype}, {tuple(bytes_.shape)}, {len(mean)} means, {len(std)} stds",
                fix="check --mean and --std, or the array that holds the images",
            )
        n, height, width, _ = bytes_.shape
        padded = functional.pad(bytes_.to(device), (0, 0, pad, pad, pad, pad))
        pixels = torch.cat([padded, padded.flip(2)] if pad else [padded])
        count = pixels.numel() // c - width + 1
        runs = pixels.view(-1).as_strided((count, width * c), (c, 1))
        middle, spread = (torch.tensor(v, dtype=torch.float32, device=device) for v in (mean, std))
        scale, shift = 1 / (255 * spread), middle / spread
        return cls(runs, (n, height, width, c), pad, scale.repeat(width), shift.repeat(width))

    def draw(self, order: Tensor, generator: Generator) -> Tensor:
        """Positions of randomly cropped and mirrored images, for a whole epoch or for a batch.

        The crop starts at 0 to 2 pad pixels in each direction, uniformly; half are mirrored.

        Args:
            order: (M,), indices of images, on the store's device.
            generator: on any device. If the order is that of all ranks, any number of ranks sees
                the same images.

        Returns:
            (M,), int64, on the store's device, for `batch`.
        """
        import torch

        where: Any = {"generator": generator, "device": generator.device}
        offsets = torch.randint(2 * self.pad + 1, (2, len(order)), **where).to(order.device)
        mirror = torch.randint(2, (len(order),), **where).to(order.device)
        return self.place(order, offsets[0], offsets[1], mirror)

    def place(self, order: Tensor, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
        """Positions of images, cropped from `top`, `left` of the padded image, then mirrored.

        Args:
            order: (M,), indices of images.
            top: (M,), 0 to 2 pad.
            left: (M,), 0 to 2 pad.
            mirror: (M,), 0 or 1.

        Returns:
            (M,), int64: the first pixel of each image.
        """
        n, height, width, _ = self.shape
        # Mirroring a crop is cropping the mirrored image from the other side.
        column = left + mirror * (2 * self.pad - 2 * left)
        row = (order + mirror * n) * (height + 2 * self.pad) + top
        return row * (width + 2 * self.pad) + column

    def whole(self, order: Tensor) -> Tensor:
        """Positions of the images as they are, (M,), neither shifted nor mirrored."""
        import torch

        none = torch.zeros_like(order)
        return self.place(order, none + self.pad, none + self.pad, none)

    def batch(self, places: Tensor) -> Tensor:
        """The images at these positions as input of the network, (x / 255 - mean) / std.

        Args:
            places: (n,), from `draw`, `place` or `whole`.

        Returns:
            (n, c, H, W), float32, channels last in memory.
        """
        import torch

        _, height, width, c = self.shape
        across = width + 2 * self.pad
        lines = torch.arange(0, height * across, across, device=places.device)
        found = self.runs.index_select(0, (places[:, None] + lines).view(-1))
        values = found.to(torch.float32).mul_(self.scale).sub_(self.shift)
        return values.view(len(places), height, width, c).permute(0, 3, 1, 2)


#: Area of a random crop as a share of the image, and its width over its height.
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_CROP_PAD = 4

Augmentation = Callable[[Image, Preprocessing, np.random.Generator], Image]


def fitted(image: Image, p: Preprocessing) -> Image:
    """The image resized and converted to the network's size and channels, (H, W, channels)."""
    picture = _picture(image, p)
    if (picture.height, picture.width) != p.size:
        picture = picture.resize(p.size[::-1], _bilinear())
    return _crop_pixels(picture, p)


def crop_flip(image: Image, p: Preprocessing, random: np.random.Generator) -> Image:
    """Shift by up to 4 pixels in each direction, black beyond the edge; mirror half of them."""
    top, left = random.integers(2 * _CROP_PAD + 1, size=2).tolist()
    mirror = random.integers(2)
    padded = np.pad(fitted(image, p), ((_CROP_PAD, _CROP_PAD), (_CROP_PAD, _CROP_PAD), (0, 0)))
    height, width = p.size
    crop: Image = padded[top : top + height, left : left + width]
    return np.ascontiguousarray(crop[:, ::-1] if mirror else crop)


def resized_crop(image: Image, p: Preprocessing, random: np.random.Generator) -> Image:
    """Resize a crop of 8 to 100 % of the area to the network's size; mirror half of them.

    As RandomResizedCrop does: the logarithm of the aspect ratio is uniform. After ten crops that do
    not lie in the image, the center is taken, as far as the ratio allows.
    """
    picture = _picture(image, p)
    left, top, width, height = _part(picture.width, picture.height, random)
    box = (left, top, left + width, top + height)
    picture = picture.resize(p.size[::-1], _bilinear(), box=box)
    pixels = _crop_pixels(picture, p)
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


#: By the name in a recipe.
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


def _crop_pixels(picture: Any, p: Preprocessing) -> Image:
    return np.array(picture).reshape(picture.height, picture.width, p.channels)


def _bilinear() -> Any:
    from PIL import Image as Pillow

    return Pillow.Resampling.BILINEAR


#: Largest set in bytes, with padding and mirrored copy, that is stored on the device.
IN_MEMORY = 4 << 30
_PAD = 4
_MOST_WORKERS = 16


class Feed(Protocol):
    """The source of a run's training batches."""

    def epoch(
        self, number: int, order: NDArray[np.int64], batches: Batches, rank: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (n, channels, H, W) float32 and labels (n,), on the device, for each step.

        Args:
            number: the epoch, from 0.
            order: the order of all ranks, as indices into the images that are trained on.
            batches: how the order is divided into steps and ranks.
            rank: the rank whose share is wanted.
            start: the first step, more than 0 if an epoch is resumed in its middle.
        """


def make_feed(data: TrainingImages, recipe: Recipe, device: torch.device) -> Feed:
    """A feed from memory if all images fit and need no random resizing, otherwise from files."""
    height, width = data.preprocessing.size
    side = 2 * _PAD
    bytes_ = 2 * len(data.labels) * (height + side) * (width + side) * data.preprocessing.channels
    if data.augment == "resized-crop" or bytes_ > IN_MEMORY:
        return Streamed(data, recipe, device)
    return InMemory(data, recipe, device)


class InMemory:
    """A feed of images that are stored on the device; see `ImageStore`."""

    def __init__(self, data: TrainingImages, recipe: Recipe, device: torch.device) -> None:
        import torch

        self._seed, self._moving = recipe.seed, data.augment == "crop-flip"
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
    """The images that are trained on, in the network's size and channels, (M, H, W, channels)."""
    p, images = data.preprocessing, data.train
    shape = () if images.array is None else images.array.shape[1:]
    if images.array is not None and (*shape, 1)[:3] == (*p.size, p.channels):
        return np.ascontiguousarray(images.array[data.kept])
    with ThreadPoolExecutor(free_cpus()) as pool:  # Pillow releases the interpreter lock
        made = pool.map(lambda index: fitted(data.read(index), p), data.kept.tolist())
        return np.stack(list(made))


class Streamed:
    """A feed of images that worker processes read again for each epoch, ahead of the network."""

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
    """Reads and augments the images at positions of an epoch's order.

    The random numbers depend only on the seed, the epoch and the position.
    """

    data: TrainingImages
    recipe: Recipe
    order: NDArray[np.int64]
    epoch: int

    def __getitem__(self, places: NDArray[np.int64]) -> tuple[Tensor, str | None]:
        """Images (n, H, W, channels), uint8; or an error as text, to pass between processes."""
        import torch

        p: Preprocessing = self.data.preprocessing
        augment = AUGMENTATIONS[self.data.augment]
        made: list[Image] = []
        try:
            for place in places.tolist():
                index = int(self.data.kept[self.order[place]])
                random = np.random.default_rng([self.recipe.seed, self.epoch, place])
                made.append(augment(self.data.read(index), p, random))
        except RescaleError as error:
            return torch.empty(0), as_text(error)
        return torch.from_numpy(np.stack(made)), None
