"""From an image to the input of a network: our own arithmetic, in batches and without torchvision.

The values are those of torchvision's Resize, CenterCrop, ToTensor and Normalize on Pillow images,
to the last bit. Models that do not come from torchvision run without it, its transforms take one
image at a time, and they do not have the crops of timm and of mmpretrain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.predictions import Image, Preprocessing
from rescale_cli.errors import NeedsDecision, UsageError, again
from rescale_cli.registry import Registry

if TYPE_CHECKING:
    import torch


#: The presets of `--preset`. `library` is what the library of the network uses for its own weights;
#: `none` leaves values from 0 to 1 as they are.
presets: Registry[Preprocessing | None] = Registry("preset")

#: Images up to this height and width are not what networks for ImageNet are trained on.
SMALL = 160

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
presets.register("library")(None)
presets.register("none")(None)


@dataclass(frozen=True, slots=True)
class Hints:
    """What is known beside the options: to complete them, or to say which ones are missing.

    Nothing of it is used unless an option asks for it.
    """

    usual: Preprocessing | None = None
    """The preprocessing that the library uses for its own weights of the network."""
    fixed: tuple[int, int] | None = None
    """Height and width of the input, if the program of the network accepts no other."""
    image: tuple[int, int] | None = None
    """Height and width of the first image of the data."""
    channels: int | None = None
    """Channels of the network's input, 1 or 3, if they are known."""


def override(
    base: Preprocessing | None,
    preset: str | None = None,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    hints: Hints = Hints(),
) -> Preprocessing:
    """The preprocessing to use: that of the checkpoint, unless options change it.

    A preset replaces everything that the checkpoint says. The image is resized to a given size, and
    only cropped to fit its shape. One mean or std stands for all channels. If the checkpoint says
    nothing, a size alone takes mean and std from the library's own weights of that network; mean
    and std alone never take its size, because the size is what differs.

    Args:
        base: the preprocessing of the checkpoint, if it has any.
        preset: a name in `presets`.
        size: height and width of the network's input, pixels.
        mean: of values in 0..1, one a channel.
        std: of values in 0..1, one a channel.
        hints: what else is known.

    Raises:
        NeedsDecision: the size, the mean or the standard deviation is not known.
        UsageError: the preset is unknown, or a value is invalid.

    Example:
        >>> override(None, "imagenet", size=(32, 32)).sizes
        'resized to 32, cropped to 32 x 32'
    """
    start, usual = base, hints.usual
    if preset is not None:
        start = usual if preset == "library" else presets[preset] or _raw(base)
        size = size or (hints.fixed if start is not None and start.size != hints.fixed else None)
    elif base is None and size is not None and usual is not None and not (mean and std):
        start = replace(usual, source=f"mean and std of {usual.source}")
    if start is None:
        return _from_nothing(preset, size, mean, std, hints)
    made = start
    if size is not None:
        made = replace(made, size=size, **_resized_to(made, size))
    if mean is not None or std is not None:
        given = (mean or made.mean, std or made.std)
        mean, std = (tuple(v) * (made.channels if len(v) == 1 else 1) for v in given)
        made = replace(made, mean=mean, std=std)
    if made is not start:
        made = replace(made, source=f"{start.source}, changed by options")
    return check_preprocessing(made)


def _raw(base: Preprocessing | None) -> Preprocessing | None:
    """The same sizes, with values from 0 to 1."""
    if base is None:
        return None
    zeros, ones = (0.0,) * base.channels, (1.0,) * base.channels
    return replace(base, mean=zeros, std=ones, source="preset none")


def _resized_to(made: Preprocessing | None, size: tuple[int, int]) -> dict[str, Any]:
    """`resize` and `keep_ratio` for --size, with which a square image is kept whole.

    If both sides were resized to the input's, whatever the shape of the image, they still are.
    """
    if made is not None and not isinstance(made.resize, int) and not made.keep_ratio:
        return {"resize": None if made.resize is None else size}
    if size[0] == size[1]:
        return {"resize": size[0], "keep_ratio": False}
    return {"resize": size, "keep_ratio": True}


def _from_nothing(
    preset: str | None,
    size: tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    hints: Hints,
) -> Preprocessing:
    size = size or hints.fixed
    if preset == "none":
        channels = hints.channels or 3
        mean, std = mean or (0.0,) * channels, std or (1.0,) * channels
    given = {"--size": size, "--mean": mean, "--std": std}
    if size is None or mean is None or std is None:
        lacking = ", ".join(option for option, value in given.items() if value is None)
        raise NeedsDecision(
            "the checkpoint does not say how images are prepared for this network, and a wrong "
            "guess looks like a bad model",
            saw=_seen(lacking, hints),
            fix=_lines(given, hints, preset),
        )
    made = Preprocessing(size, tuple(mean), tuple(std), source="options")
    return check_preprocessing(replace(made, **_resized_to(None, size)))


def _seen(lacking: str, hints: Hints) -> str:
    seen = [f"no preprocessing beside the checkpoint, and no {lacking}"]
    if hints.image is not None:
        seen.append(f"the first image has {hints.image[0]} x {hints.image[1]} pixels")
    if hints.usual is not None:
        seen.append(f"not used, as it may differ from the training: {hints.usual}")
    return "; ".join(seen)


#: What `N` stands for in a line that asks for the size.
WHAT_N_IS = "N: the size that the network was trained at, in pixels"
#: Options that a preset takes the place of.
OF_A_PRESET = ("--size", "--mean", "--std", "--preprocessing")


def _lines(given: Mapping[str, object], hints: Hints, preset: str | None) -> str:
    """What to type. The size of the training comes first, which the images at hand do not tell."""
    gray = hints.channels == 1
    mean, std = ("0.5", "0.5") if gray else ("0.485,0.456,0.406", "0.229,0.224,0.225")
    values = {"--mean": mean, "--std": std}
    if hints.usual is not None and given["--size"] is None:
        values = {}  # a size alone takes those of the library
    missing = [w for o, v in values.items() if given[o] is None for w in (o, v)]
    whose = "here for one channel from -1 to 1" if gray else "here those of ImageNet"
    named = f"{' and '.join(missing[::2])}: placeholders for the values of the training, {whose}"
    if given["--size"] is not None:
        return f"{again(*missing)} ({named})"
    fix = f"{again('--size', 'N', *missing)} ({WHAT_N_IS}{f'; {named}' if missing else ''})"
    if preset == "none":
        return fix
    if not gray:
        usual = hints.usual
        same = usual is None or replace(usual, source="") == replace(_imagenet(), source="")
        line = again("--preset", "imagenet" if same else "library", without=OF_A_PRESET)
        trained = "as is usual for ImageNet" if same else "like the published weights"
        fix += f"; or, if it was trained {trained}: {line}"
    return f"{fix}; or give --preset, --size with --mean and --std, or --preprocessing FILE"


def _imagenet() -> Preprocessing:
    made = presets["imagenet"]
    assert made is not None
    return made


def differences(one: Preprocessing, other: Preprocessing) -> list[str]:
    """What differs between two ways to prepare square images, by the names of the fields.

    Example:
        >>> start = Preprocessing((28, 28), (0.3,), (0.35,))
        >>> differences(start, override(start, size=(32, 32), mean=(0.5,)))
        ['size', 'mean']
        >>> differences(start, replace(start, resize=28, source="preset x"))
        []
    """

    def shown(p: Preprocessing) -> dict[str, object]:
        said, square = asdict(p), p.size[0] == p.size[1] == p.resize
        if p.resize is None or square:
            said["resize"] = p.size
        return {name: value for name, value in said.items() if name != "source"}

    now = shown(other)
    found = [name for name, value in shown(one).items() if value != now[name]]
    return [name for name in found if name != "resize" or "size" not in found]


def check_preprocessing(made: Preprocessing) -> Preprocessing:
    """Check a preprocessing, and give mean and std as many values as there are channels.

    Raises:
        UsageError: a size is below 1, the channels are not 1 or 3, or a standard deviation is 0.
    """
    channels = max(made.channels, len(made.std))
    mean, std = (v * channels if len(v) == 1 else v for v in (made.mean, made.std))
    finite = np.isfinite([*mean, *std]).all()
    sound = len(mean) == len(std) and channels in (1, 3) and finite and all(s > 0 for s in std)
    resize = made.resize if made.resize is not None else made.size
    if not sound or min(made.size) < 1 or np.min(resize) < 1:
        raise UsageError(
            "the preprocessing is invalid",
            saw=f"size {made.size}, resize {made.resize}, mean {made.mean}, std {made.std}",
            fix="--size H,W of at least 1 pixel; --mean and --std with 1 or 3 values, std above 0",
        )
    return replace(made, mean=mean, std=std)


def apply_preprocessing(image: Image, p: Preprocessing) -> torch.Tensor:
    """The network's input, (channels, height, width), float32, from one image.

    Args:
        image: (H, W) or (H, W, 1 or 3), uint8. Gray becomes colour, and colour gray, as Pillow
            converts them.
        p: the preprocessing.
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
    """Whether images of that size need no resizing, so that a batch is prepared at once."""
    return _resized(p, height, width) == (height, width)


def batch_preprocessing(
    images: NDArray[Any] | torch.Tensor, p: Preprocessing, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The network's input, (n, channels, height, width), float32, of images that need no resizing.

    The same values as from `apply_preprocessing`, computed on the device, where the images may
    already be.

    Args:
        images: (n, H, W) or (n, H, W, 1 or 3), uint8; `needs_no_resize` holds for H and W.
        p: the preprocessing.
        device: where the result is computed and stays.
    """
    import torch

    pixels = torch.as_tensor(images).to(device, non_blocking=True)
    if pixels.dim() == 3:
        pixels = pixels.unsqueeze(-1)
    if pixels.shape[-1] == 3 and p.channels == 1:
        pixels = _gray(pixels)
    return _to_input(pixels, p)


def _gray(pixels: torch.Tensor) -> torch.Tensor:
    """Grayscale as Pillow's mode L: 19595, 38470 and 7471 parts of 65536, rounded."""
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
    # Put bytes, not floats, into the network's memory order: that is a quarter of the work.
    values = pixels.contiguous().float().div_(255).expand(-1, p.channels, -1, -1)
    mean, std = (values.new_tensor(v).view(-1, 1, 1) for v in (p.mean, p.std))
    return values.sub(mean).div_(std).contiguous()


def _cropped(pixels: torch.Tensor, p: Preprocessing) -> torch.Tensor:
    """The center of images (n, H, W, c), uint8, with black around images that are smaller."""
    from torch.nn.functional import pad

    less = [max(wanted - have, 0) for wanted, have in zip(p.size, pixels.shape[1:3], strict=True)]
    if any(less):
        tall, wide = less
        pixels = pad(pixels, (0, 0, wide // 2, (wide + 1) // 2, tall // 2, (tall + 1) // 2))
    spare = (have - wanted for wanted, have in zip(p.size, pixels.shape[1:3], strict=True))
    top, left = (n // 2 if p.crop_rounds_down else round(n / 2) for n in spare)
    return pixels[:, top : top + p.size[0], left : left + p.size[1]]
