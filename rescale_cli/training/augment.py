"""Small images as bytes on the device: a whole batch cropped, mirrored and normalised at once.

What torchvision does image by image in a DataLoader (RandomCrop with padding, then
RandomHorizontalFlip), as one lookup a batch. Every image lies padded in memory, and mirrored once
more behind all the others; a window of it is H runs of W pixels, so an augmented image is nothing
but the place of its first pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Generator, Tensor
    from torch import device as Device  # noqa: N812 - a class, though torch writes it small


@dataclass(frozen=True, slots=True)
class ImageStore:
    """N images of H x W pixels and c channels; 2 c (H + 2 pad) (W + 2 pad) bytes each."""

    runs: Tensor
    """(number of pixels - W + 1, W * c), uint8: the W pixels from each pixel on; they overlap."""
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
            pad: how far a crop may be off, pixels; 0 for images that are only looked at.
            device: where they are to lie.

        Raises:
            BadInput: other bytes or axes, or not one mean and std a channel.
        """
        import torch
        from torch.nn import functional

        bytes_: Tensor = torch.as_tensor(images)
        bytes_ = bytes_.unsqueeze(-1) if bytes_.ndim == 3 else bytes_
        c = bytes_.shape[-1] if bytes_.ndim == 4 else 0
        if not (bytes_.dtype == torch.uint8 and c == len(mean) == len(std) and min(std) > 0):
            raise BadInput(
                "the images are not bytes (N, H, W, channels) with one mean and std a channel",
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
        """Places of randomly cropped and mirrored images, for an epoch at once or for a batch.

        The crop is off by 0 to 2 pad pixels in each direction, evenly; half are mirrored.

        Args:
            order: (M,), which images, on the store's device.
            generator: on any device. Drawn for the global order, whoever takes which share, one
                rank and many see the same images.

        Returns:
            (M,), int64, on the store's device; `batch` reads any part of it.
        """
        import torch

        where: Any = {"generator": generator, "device": generator.device}
        offsets = torch.randint(2 * self.pad + 1, (2, len(order)), **where).to(order.device)
        mirror = torch.randint(2, (len(order),), **where).to(order.device)
        return self.place(order, offsets[0], offsets[1], mirror)

    def place(self, order: Tensor, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
        """Places of images whose crop starts at `top`, `left` of the padded image; then mirrored.

        Args:
            order: (M,), which images.
            top: (M,), 0 to 2 pad.
            left: (M,), 0 to 2 pad.
            mirror: (M,), 0 or 1.

        Returns:
            (M,), int64: the first pixel of each.
        """
        n, height, width, _ = self.shape
        # Mirroring a crop is cropping the mirrored image from the other side.
        column = left + mirror * (2 * self.pad - 2 * left)
        row = (order + mirror * n) * (height + 2 * self.pad) + top
        return row * (width + 2 * self.pad) + column

    def whole(self, order: Tensor) -> Tensor:
        """Places of the images as they are, (M,): neither moved nor mirrored."""
        import torch

        none = torch.zeros_like(order)
        return self.place(order, none + self.pad, none + self.pad, none)

    def batch(self, places: Tensor) -> Tensor:
        """The images at these places, as the network takes them: (x / 255 - mean) / std.

        Args:
            places: (n,), of `draw`, `place` or `whole`.

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
