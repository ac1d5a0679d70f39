"""How torchvision's networks and ours are built, by name, for any classes and channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip
from rescale_cli.loading.fit_weights import Build
from rescale_cli.loading.libraries import torchvision
from rescale_cli.training.networks import networks

if TYPE_CHECKING:
    from torch import nn

#: Those of torchvision that have auxiliary heads, which a checkpoint may lack: how many parameters
#: they have with and without, for 1000 classes.
AUXILIARY = {"googlenet": (13_004_888, 6_624_904), "inception_v3": (27_161_264, 23_834_568)}


def torchvision_names() -> list[str]:
    """Torchvision's image classifiers."""
    models = torchvision().models
    names: list[str] = models.list_models(module=models)
    return names


def variant_of(arch: str, tensors: Sequence[TensorInfo]) -> bool:
    """What the weights say of a network besides its sizes.

    Of torchvision's: whether there are auxiliary heads. Of ours: whether the head has a bias.
    """
    if arch.startswith("rescale:"):
        return any(info.name.endswith(("linear.bias", "fc.bias")) for info in tensors)
    return any("aux" in info.name.lower() for info in tensors)


def build_of(arch: str, variant: bool) -> Build:
    """How to build the network `torchvision:NAME` or `rescale:NAME`.

    Raises:
        UsageError: there is none of that name.
    """
    source, _, name = arch.partition(":")
    if source == "rescale":
        run = networks[name]
        return lambda num_classes, channels: run(num_classes, channels, variant)
    if name not in torchvision_names():
        raise _no_network(name)

    def build(num_classes: int, channels: int) -> nn.Module:
        from rescale_cli.training.layers import set_channels_

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
