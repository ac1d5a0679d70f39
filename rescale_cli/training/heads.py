"""The head of a network that is to be trained: where it is, and what it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import BadInput
from rescale_cli.json_text import clip
from rescale_cli.loading.fit_weights import Build

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class HeadKind:
    """What `head` in a run's config.json says; without it a network is as its library builds it."""

    name: str
    """The dotted name of the last layer, such as `fc`."""
    kind: str = "linear"
    """linear, or cosine: see `CosineHead`."""
    bias: bool = True

    def as_json(self) -> dict[str, object]:
        """What config.json holds; `read` reads the same."""
        return {"name": self.name, "kind": self.kind, "bias": self.bias}

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> HeadKind | None:
        """The head that the config.json of a run describes; None if it is no run's.

        Raises:
            BadInput: it describes none.

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
            "config.json does not describe the head of a run",
            saw=clip(f"head: {said!r}"),
            fix='correct the file: "head": {"name": "fc", "kind": "linear", "bias": false}',
        )

    def give_to(self, network: nn.Module) -> nn.Module:
        """Make the last layer of a network of this kind, in place; the network.

        Raises:
            BadInput: it has no linear layer of that name.
        """
        from torch import nn

        from rescale_cli.training.cosine_head import give_cosine_head

        layer = dict(network.named_modules()).get(self.name)
        kinds = (nn.Linear,) if self.kind == "cosine" else (nn.Linear, nn.Conv2d)
        if layer is None or not isinstance(layer, kinds):
            raise BadInput(
                f"the network has no linear layer {clip(self.name, 80)}",
                saw=f"{type(layer).__name__}, to be {self.kind}",
                fix="name another network: --arch, or another loss",
            )
        if self.kind == "cosine":
            give_cosine_head(network, self.name)
        elif not self.bias:
            layer.register_parameter("bias", None)
        return network


def as_trained(build: Build, config: Mapping[str, Any]) -> Build:
    """How the network of a run is built: as its library does, but for its head."""
    head = HeadKind.read(config)
    if head is None:
        return build
    return lambda num_classes, channels: head.give_to(build(num_classes, channels))


def head_name(network: nn.Module, num_classes: int, arch: str) -> str:
    """The dotted name of the last linear layer, or 1x1 convolution, with a row a class.

    Raises:
        BadInput: there is none.
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
            fix="name a network for that many classes: --arch",
        )
    return found
