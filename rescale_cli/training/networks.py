"""Networks of the long-tail literature, by name: `rescale:resnet32`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rescale_cli.registry import Registry

if TYPE_CHECKING:
    from torch import nn

#: (num_classes, channels, bias of the head) to a network: (N, channels, H, W) to (N, C).
Network = Callable[[int, int, bool], "nn.Module"]

#: Facts: `parameters` (of 10 classes, 3 channels, with a bias) and `reference`.
networks: Registry[Network] = Registry("network")
network = networks.register

_HE = "He et al. 2016, section 4.2"
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


@network("resnet8", parameters=75_290, reference=_HE)
def resnet8(num_classes: int, channels: int = 3, bias: bool = True) -> nn.Module:
    """The CIFAR ResNet with one block a stage; 75 thousand parameters."""
    return _cifar_resnet(1, num_classes, channels, bias)


@network("resnet20", parameters=269_722, reference=_HE)
def resnet20(num_classes: int, channels: int = 3, bias: bool = True) -> nn.Module:
    """The CIFAR ResNet with 3 blocks a stage; 0.27 million parameters."""
    return _cifar_resnet(3, num_classes, channels, bias)


@network("resnet32", parameters=464_154, reference=_HE)
def resnet32(num_classes: int, channels: int = 3, bias: bool = True) -> nn.Module:
    """The CIFAR ResNet with 5 blocks a stage, the one of the paper; 0.46 million parameters."""
    return _cifar_resnet(5, num_classes, channels, bias)


@network("resnet44", parameters=658_586, reference=_HE)
def resnet44(num_classes: int, channels: int = 3, bias: bool = True) -> nn.Module:
    """The CIFAR ResNet with 7 blocks a stage; 0.66 million parameters."""
    return _cifar_resnet(7, num_classes, channels, bias)


@network("resnet56", parameters=853_018, reference=_HE)
def resnet56(num_classes: int, channels: int = 3, bias: bool = True) -> nn.Module:
    """The CIFAR ResNet with 9 blocks a stage; 0.85 million parameters."""
    return _cifar_resnet(9, num_classes, channels, bias)


@network("resnet110", parameters=1_727_962, reference=_HE)
def resnet110(num_classes: int, channels: int = 3, bias: bool = True) -> nn.Module:
    """The CIFAR ResNet with 18 blocks a stage; 1.7 million parameters."""
    return _cifar_resnet(18, num_classes, channels, bias)


@network("vgg16", parameters=14_724_042, reference="Simonyan & Zisserman 2015, table 1 D")
def vgg16(num_classes: int, channels: int = 3, bias: bool = True) -> nn.Module:
    """VGG16 for images of 32x32 pixels and more: batch normalization, one linear layer (C, 512)."""
    from rescale_cli.training.layers import PooledNetwork, vgg_features

    return PooledNetwork(vgg_features(_VGG16, channels), num_classes, bias)


@network("resnet10", parameters=4_910_922, reference="Liu et al. 2019, section 4")
def resnet10(num_classes: int, channels: int = 3, bias: bool = True) -> nn.Module:
    """The ResNet of ImageNet-LT: torchvision's ResNet-18 with one block a stage, for 224x224."""
    from rescale_cli.loading.libraries import torchvision
    from rescale_cli.training.layers import set_channels_

    models = torchvision().models.resnet
    made = models.ResNet(models.BasicBlock, [1, 1, 1, 1], num_classes=num_classes)
    set_channels_(made, channels)
    if not bias:
        made.fc.register_parameter("bias", None)
    module: nn.Module = made
    return module


def _cifar_resnet(depth: int, num_classes: int, channels: int, bias: bool) -> nn.Module:
    from rescale_cli.training.layers import CifarResNet

    return CifarResNet(depth, num_classes, channels, bias)
