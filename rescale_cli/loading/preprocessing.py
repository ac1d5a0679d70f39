"""From an image to what a network takes in: as the command line says it, and as it is done.

The arithmetic is that of torchvision's transforms on Pillow images, to the last bit: Resize,
CenterCrop, ToTensor, Normalize.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.images import Image, Preprocessing
from rescale_cli.errors import NeedsDecision, UsageError
from rescale_cli.registry import Registry

if TYPE_CHECKING:
    import torch

#: What `--preset` names. `none` keeps values between 0 and 1 as they are.
presets: Registry[Preprocessing | None] = Registry("preset")

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def _preset(
    name: str, size: int, mean: tuple[float, ...], std: tuple[float, ...], resize: int | None = None
) -> None:
    made = Preprocessing((size, size), mean, std, resize or size, source=f"preset {name}")
    presets.register(name)(made)


_preset("imagenet", 224, *_IMAGENET, resize=256)
_preset("inception", 299, *_HALF, resize=342)
_preset("cifar10", 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_preset("cifar100", 32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_preset("mnist", 28, (0.1307,), (0.3081,))
_preset("fashion-mnist", 28, (0.2860,), (0.3530,))
presets.register("none")(None)

_FIX = "--preset imagenet (or another), or all three of --size H,W --mean M,M,M --std S,S,S"


def override(
    base: Preprocessing | None,
    preset: str | None = None,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preprocessing:
    """The preprocessing that is used: the checkpoint's own, unless the user says otherwise.

    A preset takes the place of all that the checkpoint says. A size alone keeps the share that the
    crop leaves of the image; beside mean and std it is the whole: the shorter side is resized to
    it, and nothing more is cut off. One mean or std stands for all channels that there were.

    Args:
        base: what the checkpoint says, if it does.
        preset: a name in `presets`.
        size: height and width of the network's input, pixels.
        mean: of values in 0..1, one a channel.
        std: of values in 0..1, one a channel.

    Raises:
        NeedsDecision: nothing says the size, the mean or the standard deviation.
        UsageError: an unknown preset, or values that no image has.

    Example:
        >>> override(None, "imagenet", size=(112, 112)).resize
        128
    """
    start = base
    if preset is not None:
        start = presets[preset] or _raw(base)
    if start is None:
        return _from_nothing(preset, size, mean, std)
    made = start
    if size is not None:
        whole = preset is None and mean is not None and std is not None
        made = replace(made, size=size, resize=min(size) if whole else _scaled(made, size))
    if mean is not None or std is not None:
        given = (mean or made.mean, std or made.std)
        mean, std = (tuple(v) * (made.channels if len(v) == 1 else 1) for v in given)
        made = replace(made, mean=mean, std=std)
    if made is not start:
        made = replace(made, source=f"{start.source}, changed by options")
    return checked(made)


def _raw(base: Preprocessing | None) -> Preprocessing | None:
    """The same sizes, values between 0 and 1."""
    if base is None:
        return None
    zeros, ones = (0.0,) * base.channels, (1.0,) * base.channels
    return replace(base, mean=zeros, std=ones, source="preset none")


def _scaled(made: Preprocessing, size: tuple[int, int]) -> int | tuple[int, int] | None:
    if isinstance(made.resize, int):
        return round(made.resize * min(size) / min(made.size))
    if made.resize is None:
        return None
    old = zip(made.resize, made.size, size, strict=True)
    height, width = (round(whole * new / crop) for whole, crop, new in old)
    return height, width


def _from_nothing(
    preset: str | None,
    size: tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocessing:
    if preset is not None:
        mean, std = mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0)
    given = {"--size": size, "--mean": mean, "--std": std}
    if size is None or mean is None or std is None:
        lacking = ", ".join(option for option, value in given.items() if value is None)
        raise NeedsDecision(
            "nothing says how images are prepared for this model",
            saw=f"no preprocessing beside the checkpoint, and no {lacking}",
            fix=f"--size H,W for --preset {preset}" if preset else _FIX,
        )
    return checked(Preprocessing(size, tuple(mean), tuple(std), min(size), source="options"))


def checked(made: Preprocessing) -> Preprocessing:
    """The same, as many values of mean as of std, once it can be done.

    Raises:
        UsageError: sizes below 1, channels that no image has, a standard deviation of 0.
    """
    channels = max(made.channels, len(made.std))
    mean, std = (v * channels if len(v) == 1 else v for v in (made.mean, made.std))
    finite = np.isfinite([*mean, *std]).all()
    sound = len(mean) == len(std) and channels in (1, 3) and finite and all(s > 0 for s in std)
    resize = made.resize if made.resize is not None else made.size
    if not sound or min(made.size) < 1 or np.min(resize) < 1:
        raise UsageError(
            "these values do not prepare an image",
            saw=f"size {made.size}, resize {made.resize}, mean {made.mean}, std {made.std}",
            fix="--size H,W of 1 pixel and more, --mean and --std of 1 or 3 values, std above 0",
        )
    return replace(made, mean=mean, std=std)


def apply_preprocessing(image: Image, p: Preprocessing) -> torch.Tensor:
    """The network's input, (channels, height, width), float32, from one image.

    Args:
        image: (H, W) or (H, W, 1 or 3), uint8. Gray becomes colour, and colour gray, as Pillow
            converts them.
        p: what to do.
    """
    import torch
    from PIL import Image as Pillow

    gray = image.ndim == 2 or image.shape[2] == 1
    picture = Pillow.fromarray(image.reshape(image.shape[:2]) if gray else image)
    picture = picture.convert("L" if p.channels == 1 else "RGB")
    height, width = _resized(p, picture.height, picture.width)
    if (height, width) != (picture.height, picture.width):
        picture = picture.resize((width, height), Pillow.Resampling[p.interpolation.upper()])
    pixels = torch.from_numpy(np.array(picture).reshape(1, height, width, p.channels))
    return _to_input(pixels, p)[0]


def needs_no_resize(p: Preprocessing, height: int, width: int) -> bool:
    """Whether images of that size only need to be cropped, so that a batch is plain arithmetic."""
    return _resized(p, height, width) == (height, width)


def batch_preprocessing(
    images: NDArray[Any] | torch.Tensor, p: Preprocessing, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The network's input, (n, channels, height, width), float32, of images that need no resizing.

    The same values as `apply_preprocessing` gives, computed on the device, where the images may
    already lie.

    Args:
        images: (n, H, W) or (n, H, W, 1 or 3), uint8; `needs_no_resize` holds for H and W.
        p: what to do.
        device: where it is computed and stays.
    """
    import torch

    pixels = torch.as_tensor(images).to(device, non_blocking=True)
    if pixels.dim() == 3:
        pixels = pixels.unsqueeze(-1)
    if pixels.shape[-1] == 3 and p.channels == 1:
        pixels = _gray(pixels)
    return _to_input(pixels, p)


def _gray(pixels: torch.Tensor) -> torch.Tensor:
    """Pillow's L: 19595, 38470 and 7471 parts of 65536, rounded."""
    red, green, blue = pixels.int().unbind(-1)
    gray = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return gray.byte().unsqueeze(-1)


def _resized(p: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """Height and width after resizing and before the crop."""
    if p.resize is None:
        return p.size
    if not isinstance(p.resize, int):
        if not p.keep_ratio:
            return p.resize
        ratio = min(height / p.resize[0], width / p.resize[1])
        return round(height / ratio), round(width / ratio)
    if height <= width:
        return p.resize, int(p.resize * width / height)
    return int(p.resize * height / width), p.resize


def _to_input(pixels: torch.Tensor, p: Preprocessing) -> torch.Tensor:
    """Crop, scale and normalize bytes (n, H, W, c) to (n, channels, height, width)."""
    pixels = _cropped(pixels, p).permute(0, 3, 1, 2)
    if p.flip_channels:
        pixels = pixels.flip(1)
    # In the network's order first: bytes are moved, not floats.
    values = pixels.contiguous().float().div_(255).expand(-1, p.channels, -1, -1)
    mean, std = (values.new_tensor(v).view(-1, 1, 1) for v in (p.mean, p.std))
    return values.sub(mean).div_(std).contiguous()


def _cropped(pixels: torch.Tensor, p: Preprocessing) -> torch.Tensor:
    """The middle of bytes (n, H, W, c), with black around where they are smaller."""
    from torch.nn.functional import pad

    less = [max(wanted - have, 0) for wanted, have in zip(p.size, pixels.shape[1:3], strict=True)]
    if any(less):
        tall, wide = less
        pixels = pad(pixels, (0, 0, wide // 2, (wide + 1) // 2, tall // 2, (tall + 1) // 2))
    spare = (have - wanted for wanted, have in zip(p.size, pixels.shape[1:3], strict=True))
    top, left = (n // 2 if p.crop_rounds_down else round(n / 2) for n in spare)
    return pixels[:, top : top + p.size[0], left : left + p.size[1]]
