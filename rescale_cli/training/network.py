"""The network of a recipe, drawn at random or begun from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.loading import timm_models, user_model
from rescale_cli.loading.fit_weights import Build, differences
from rescale_cli.loading.known_networks import build_of
from rescale_cli.loading.state_tensors import choose, read_tensors
from rescale_cli.training.heads import HeadKind, head_name
from rescale_cli.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn


def build_network(recipe: Recipe, num_classes: int, channels: int) -> tuple[nn.Module, HeadKind]:
    """The network with its head as the recipe wants it, on the CPU, in float32.

    Args:
        recipe: its arch, head_bias, loss, weights and seed are read.
        num_classes: C.
        channels: of the images.

    Raises:
        UsageError: no such network.
        BadInput: it has no head, or the weights to begin from do not fit.
    """
    import torch

    torch.manual_seed(recipe.seed)
    network = _build(recipe)(num_classes, channels).float()
    kind = "cosine" if recipe.cosine_head else "linear"
    name = head_name(network, num_classes, recipe.arch)
    HeadKind(name, kind, recipe.head_bias).give_to(network)
    layer: Any = network.get_submodule(name)
    if recipe.wvn and not layer.weight.any():  # as torchvision's transformers begin
        layer.reset_parameters()
    bias = getattr(layer, "bias", None) is not None
    if recipe.weights:
        _begin_from(network, Path(recipe.weights), name)
    return network.train(), HeadKind(name, kind, bias)


def _build(recipe: Recipe) -> Build:
    source, _, name = recipe.arch.partition(":")
    if source in ("rescale", "torchvision") and name:
        # Of torchvision's, the variant is auxiliary heads, which training has no loss for.
        return build_of(recipe.arch, source == "rescale" and recipe.head_bias)
    if source == "timm" and name:
        return timm_models.build_of(name, {})
    if source == "python" and name:
        return lambda num_classes, _: user_model.build(name, num_classes)
    raise UsageError(
        "this is no network that can be trained",
        saw=f"--arch {recipe.arch}",
        fix="--arch rescale:NAME, torchvision:NAME, timm:NAME or python:module:callable",
    )


def _begin_from(network: nn.Module, path: Path, head: str) -> None:
    """Copy every weight but the head's."""
    own = {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if not name.startswith(f"{head}.")
    }
    chosen = choose(open_checkpoint(path).contents.tensors, own)
    wrong = [text for text in differences(own, chosen) if "not of this network" not in text]
    if wrong:
        raise BadInput(
            f"{path.name} does not hold the weights of this network",
            saw="; ".join(wrong),
            fix="name a checkpoint of the same network: --weights FILE",
        )
    there = {name: chosen.infos[name] for name in own if name in chosen.infos}
    network.load_state_dict(read_tensors(there), strict=False)
