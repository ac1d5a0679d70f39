"""The building blocks of our networks. It is torch throughout: only functions import this file."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that PyTorch's own pages use)


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the new channels: option A of He et al. 2016."""

    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, wide - wide_in

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, wide_in, H, W) to (N, wide, H / stride, W / stride)."""
        half = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, half, self.new_channels - half))


class Block(nn.Module):
    """Two 3x3 convolutions, and a shortcut around them."""

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
    """16, 32 and 64 channels, `depth` blocks each, then `linear` (C, 64)."""

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
    """Features, averaged over all pixels, then `fc` (C, 512)."""

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
    """A 3x3 convolution a width, each with batch normalization; 0 stands for halving the size."""
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
    """Draw every weight matrix as He et al. 2015 do, for layers that ReLU follows."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def set_channels_(network: nn.Module, channels: int) -> None:
    """Let the first convolution of a network take another number of channels, in place."""
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if conv.in_channels == channels:
        return
    shape = (conv.out_channels, channels, *conv.kernel_size)
    conv.in_channels, conv.weight = channels, nn.Parameter(conv.weight.new_empty(shape))
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _padded_stage(wide_in: int, wide: int, depth: int) -> nn.Sequential:
    stride = 1 if wide == wide_in else 2
    shortcut = nn.Identity() if wide == wide_in else PadShortcut(wide_in, wide, stride)
    first = Block(wide_in, wide, stride, shortcut)
    return nn.Sequential(first, *(Block(wide, wide, 1, nn.Identity()) for _ in range(depth - 1)))
