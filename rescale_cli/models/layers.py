"""Our own torch modules: layers of networks, the cosine head, and a wrapper that returns logits.

Only functions import this file, because it imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that PyTorch's own pages use)

from rescale_cli.errors import BadInput
from rescale_cli.json_text import clip


class PadShortcut(nn.Module):
    """Shortcut that skips pixels and fills new channels with zeros: option A of He et al. 2016."""

    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, wide - wide_in

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, wide_in, H, W) to (N, wide, H / stride, W / stride)."""
        half = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, half, self.new_channels - half))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them."""

    def __init__(self, wide_in: int, wide: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, wide_in, H, W) to (N, wide, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class CifarResNet(nn.Module):
    """Three stages of `depth` blocks with 16, 32 and 64 channels, then `linear` (C, 64)."""

    def __init__(self, depth: int, num_classes: int, channels: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _padded_stage(16, 16, depth)
        self.layer2 = _padded_stage(16, 32, depth)
        self.layer3 = _padded_stage(32, 64, depth)
        self.linear = nn.Linear(64, num_classes, bias=bias)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to logits (N, C)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class PooledNetwork(nn.Module):
    """A feature extractor, global average pooling, then `fc` (C, 512)."""

    def __init__(self, features: nn.Module, num_classes: int, bias: bool) -> None:
        super().__init__()
        self.features = features
        self.fc = nn.Linear(512, num_classes, bias=bias)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to logits (N, C)."""
        logits: Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return logits


def vgg_features(widths: Sequence[int], channels: int) -> nn.Sequential:
    """For each width a 3x3 convolution, batch normalization and ReLU; 0 is 2x2 max pooling."""
    layers: list[nn.Module] = []
    for wide in widths:
        if not wide:
            layers.append(nn.MaxPool2d(2))
            continue
        conv = nn.Conv2d(channels, wide, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
        channels = wide
    return nn.Sequential(*layers)


def initialize(network: nn.Module) -> None:
    """Initialize every weight matrix as in He et al. 2015, for layers followed by ReLU."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def set_channels_(network: nn.Module, channels: int) -> None:
    """Change the number of input channels of a network's first convolution, in place."""
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if conv.in_channels == channels:
        return
    shape = (conv.out_channels, channels, *conv.kernel_size)
    conv.in_channels, conv.weight = channels, nn.Parameter(conv.weight.new_empty(shape))
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _padded_stage(wide_in: int, wide: int, depth: int) -> nn.Sequential:
    stride = 1 if wide == wide_in else 2
    shortcut = nn.Identity() if wide == wide_in else PadShortcut(wide_in, wide, stride)
    first = ResidualBlock(wide_in, wide, stride, shortcut)
    return nn.Sequential(
        first, *(ResidualBlock(wide, wide, 1, nn.Identity()) for _ in range(depth - 1))
    )


class CosineHead(nn.Module):
    """z_i = s cos(w_i, f), with rows and features scaled to unit length (Cao et al. 2019).

    The authors store the weight as (D, C) and apply s in the loss. Here the weight is (C, D), as in
    every linear layer, and the logits include s, so that their softmax gives the probabilities.
    """

    def __init__(self, feature_dim: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        self.scale: Tensor
        # A checkpoint that has this buffer shows that its head is not linear.
        self.register_buffer("scale", torch.tensor(scale))
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim).uniform_(-1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, D) to logits (N, C), from -s to s."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def give_cosine_head(network: nn.Module, name: str) -> CosineHead:
    """Replace the linear layer of that name with a cosine head, in place, and return the head."""
    above, _, last = name.rpartition(".")
    old = network.get_submodule(name)
    assert isinstance(old, nn.Linear), name
    made = CosineHead(old.in_features, old.out_features).to(old.weight)
    setattr(network.get_submodule(above), last, made)
    return made


class LogitsOnly(nn.Module):
    """Wraps a model so that it returns only its logits (n, C)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, H, W) to (n, C).

        Raises:
            BadInput: the model does not return one row of logits per image.
        """
        return _logits_in(self.model(images), len(images))


def _logits_in(output: Any, n: int) -> Tensor:
    """The logits (n, C) in an output: a tensor, the first of a tuple, or the entry `logits`."""
    found = output
    if isinstance(output, dict):
        found = output.get("logits")
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    found = getattr(found, "logits", found)
    if isinstance(found, Tensor) and found.dim() == 1:
        found = found[:, None]  # one logit per image, for two classes
    if isinstance(found, Tensor) and found.dim() > 2 and found.shape[2:].numel() == 1:
        found = found.flatten(1)
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != n:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
        raise BadInput(
            "the model does not return one row of logits per image",
            saw=clip(f"{shape} for {n} images"),
            fix="wrap it in a function that returns (n, C) logits: --arch python:module:callable",
        )
    return found
