"""Networks by name: torchvision's, ours and the user's own, and the heads they are trained with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rescale_cli.data.user import user_function
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.files.contents import TensorInfo
from rescale_cli.foreign_code import torchvision
from rescale_cli.json_text import clip
from rescale_cli.models.weights import Build
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
    from rescale_cli.models.layers import PooledNetwork, vgg_features

    return PooledNetwork(vgg_features(_VGG16, channels), num_classes, bias)


@network("resnet10", parameters=4_910_922, reference="Liu et al. 2019, section 4")
def resnet10(num_classes: int, channels: int = 3, bias: bool = True) -> nn.Module:
    """The ResNet of ImageNet-LT: torchvision's ResNet-18 with one block a stage, for 224x224."""
    from rescale_cli.foreign_code import torchvision
    from rescale_cli.models.layers import set_channels_

    models = torchvision().models.resnet
    made = models.ResNet(models.BasicBlock, [1, 1, 1, 1], num_classes=num_classes)
    set_channels_(made, channels)
    if not bias:
        made.fc.register_parameter("bias", None)
    module: nn.Module = made
    return module


def _cifar_resnet(depth: int, num_classes: int, channels: int, bias: bool) -> nn.Module:
    from rescale_cli.models.layers import CifarResNet

    return CifarResNet(depth, num_classes, channels, bias)


#: Networks of torchvision with auxiliary heads, which a checkpoint may lack: the number of
#: parameters with and without them, for 1000 classes.
AUXILIARY = {"googlenet": (13_004_888, 6_624_904), "inception_v3": (27_161_264, 23_834_568)}


def torchvision_names() -> list[str]:
    """Torchvision's image classifiers."""
    models = torchvision().models
    names: list[str] = models.list_models(module=models)
    return names


def variant_of(arch: str, tensors: Sequence[TensorInfo]) -> bool:
    """The variant of a network that the weights belong to.

    For torchvision: whether there are auxiliary heads. For ours: whether the head has a bias.
    """
    if arch.startswith("rescale:"):
        return any(info.name.endswith(("linear.bias", "fc.bias")) for info in tensors)
    return any("aux" in info.name.lower() for info in tensors)


def builder_of(arch: str, variant: bool) -> Build:
    """How to build the network `torchvision:NAME` or `rescale:NAME`.

    Raises:
        UsageError: there is no network of that name.
    """
    source, _, name = arch.partition(":")
    if source == "rescale":
        run = networks[name]
        return lambda num_classes, channels: run(num_classes, channels, variant)
    if name not in torchvision_names():
        raise _no_network(name)

    def build(num_classes: int, channels: int) -> nn.Module:
        from rescale_cli.models.layers import set_channels_

        options: dict[str, Any] = {"weights": None, "num_classes": num_classes}
        if name in AUXILIARY:
            options |= {"init_weights": False, "aux_logits": variant}
        module: nn.Module = torchvision().models.get_model(name, **options)
        set_channels_(module, channels)
        return module

    return build


def _no_network(name: str) -> UsageError:
    import difflib

    known = torchvision_names()
    close = difflib.get_close_matches(clip(name, 80).lower(), known, n=1)
    return UsageError(
        f"torchvision has no image classifier {clip(name, 80)!r}",
        saw=f"known: {', '.join(known)}",
        fix=f"--arch torchvision:{close[0]}" if close else "--arch torchvision:NAME, as listed",
    )


@dataclass(frozen=True, slots=True)
class HeadKind:
    """The head of a run, as config.json describes it."""

    name: str
    """The dotted name of the last layer, such as `fc`."""
    kind: str = "linear"
    """linear, or cosine: see `CosineHead`."""
    bias: bool = True

    def as_json(self) -> dict[str, object]:
        """The form in config.json, which `read` reads."""
        return {"name": self.name, "kind": self.kind, "bias": self.bias}

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> HeadKind | None:
        """The head in the config.json of a run; None if it is not that of a run.

        Raises:
            BadInput: the description is invalid.

        Example:
            >>> HeadKind.read({"arch": "rescale:resnet8", "head": {"name": "linear"}})
            HeadKind(name='linear', kind='linear', bias=True)
        """
        said = config.get("head")
        if said is None or "arch" not in config:
            return None
        match said:
            case {"name": str(name), **rest} if rest.get("kind", "linear") in ("linear", "cosine"):
                return cls(name, str(rest.get("kind", "linear")), bool(rest.get("bias", True)))
        raise BadInput(
            "config.json has an invalid description of the head",
            saw=clip(f"head: {said!r}"),
            fix='correct the file: "head": {"name": "fc", "kind": "linear", "bias": false}',
        )

    def give_to(self, network: nn.Module) -> nn.Module:
        """Give the last layer of a network this form, in place, and return the network.

        Raises:
            BadInput: the network has no linear layer of that name.
        """
        from torch import nn

        from rescale_cli.models.layers import give_cosine_head

        layer = dict(network.named_modules()).get(self.name)
        kinds = (nn.Linear,) if self.kind == "cosine" else (nn.Linear, nn.Conv2d)
        if layer is None or not isinstance(layer, kinds):
            raise BadInput(
                f"the network has no linear layer {clip(self.name, 80)}",
                saw=f"a {type(layer).__name__}, where a {self.kind} head is needed",
                fix="use another network, --arch, or another --loss",
            )
        if self.kind == "cosine":
            give_cosine_head(network, self.name)
        elif not self.bias:
            layer.register_parameter("bias", None)
        return network


def input_channels(network: nn.Module) -> int | None:
    """Channels of the images that a network takes, by its first convolution; None without one."""
    return next((p.shape[1] for p in network.parameters() if p.ndim == 4), None)


def as_trained(build: Build, config: Mapping[str, Any]) -> Build:
    """A function that builds the network of a run: as its library does, except for the head."""
    head = HeadKind.read(config)
    if head is None:
        return build
    return lambda num_classes, channels: head.give_to(build(num_classes, channels))


def head_name(network: nn.Module, num_classes: int, arch: str) -> str:
    """The dotted name of the last linear layer or 1x1 convolution with a row for each class.

    Raises:
        BadInput: there is no such layer.
    """
    from torch import nn

    found = ""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == num_classes:
            found = name
        elif isinstance(module, nn.Conv2d) and module.out_channels == num_classes:
            found = name if module.kernel_size == (1, 1) else found
    if not found:
        raise BadInput(
            f"{arch} has no last linear layer with {num_classes} rows",
            saw=f"{sum(1 for _ in network.modules())} layers",
            fix="use a network that can be built for that many classes: --arch",
        )
    return found


_FIX = (
    "name a function that returns a torch.nn.Module, and takes at most num_classes: "
    "--arch python:MODULE:FUNCTION"
)


def build_users_network(name: str, num_classes: int) -> nn.Module:
    """The module that `module:callable` returns; `num_classes` is passed if it takes that.

    Raises:
        BadInput: the callable does not exist, raises an error, or returns no torch.nn.Module.
    """
    from torch import nn

    run = user_function(name, "--arch python")
    arguments = {"num_classes": num_classes} if _takes(run, "num_classes") else {}
    said = ", ".join(f"{key}={value}" for key, value in arguments.items())
    try:
        made = run(**arguments)
    except Exception as error:
        saw = clip(f"{type(error).__name__}: {error}", 200)
        raise BadInput(f"{clip(name, 80)}({said}) failed", saw=saw, fix=_FIX) from error
    if not isinstance(made, nn.Module):
        saw = f"a value of the type {type(made).__name__}"
        raise BadInput(
            f"{clip(name, 80)}({said}) does not return a torch.nn.Module", saw=saw, fix=_FIX
        )
    return made


def _takes(run: Any, argument: str) -> bool:
    try:
        parameters = inspect.signature(run).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)
