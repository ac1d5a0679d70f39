"""The network with which a run begins: built, given its head, and loaded from --weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.errors import BadInput, RescaleError, UsageError
from rescale_cli.models import networks, timm_models
from rescale_cli.models.networks import HeadKind, builder_of, head_name
from rescale_cli.models.weights import Build, choose, differences, read_tensors
from rescale_cli.patching.module import heads_in
from rescale_cli.patching.record import digest
from rescale_cli.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn


def build_network(
    recipe: Recipe,
    num_classes: int,
    channels: int,
    notes: Callable[[str], None] = lambda text: None,
) -> tuple[nn.Module, HeadKind]:
    """Build the network of a recipe, with the head that the recipe asks for, on the CPU in float32.

    Args:
        recipe: its arch, head_bias, loss, wvn, weights and seed are read.
        num_classes: C.
        channels: channels of the images.
        notes: called with what the user should know.

    Raises:
        UsageError: there is no such network, or --wvn would cover only one of its heads.
        BadInput: the network has no head, or --weights does not fit it.
    """
    import torch

    torch.manual_seed(recipe.seed)
    network = _build(recipe)(num_classes, channels).float()
    kind = "cosine" if recipe.cosine_head else "linear"
    name = head_name(network, num_classes, recipe.arch)
    if recipe.wvn:
        _refuse_several_heads(network, num_classes, recipe.arch)
    HeadKind(name, kind, recipe.head_bias).give_to(network)
    layer: Any = network.get_submodule(name)
    if recipe.wvn and not layer.weight.any():  # as torchvision's transformers begin
        layer.reset_parameters()
    bias = getattr(layer, "bias", None) is not None
    if recipe.weights:
        _begin_from(network, recipe, name, notes)
    return network.train(), HeadKind(name, kind, bias)


def _refuse_several_heads(network: nn.Module, num_classes: int, arch: str) -> None:
    heads: list[str] = []
    with suppress(RescaleError):  # unusual layers; the last linear one is the head
        heads = [keys.weight for keys in heads_in(network, num_classes, None).heads]
    if len(heads) > 1:
        raise UsageError(
            f"--wvn normalises one head, and {arch} ends in {len(heads)}",
            saw=", ".join(heads),
            fix="train with --no-wvn, or use a network with one head: --arch",
        )


def _build(recipe: Recipe) -> Build:
    source, _, name = recipe.arch.partition(":")
    if source in ("rescale", "torchvision") and name:
        # For torchvision the variant is the auxiliary heads, which training has no loss for.
        return builder_of(recipe.arch, source == "rescale" and recipe.head_bias)
    if source == "timm" and name:
        return timm_models.timm_builder(name, {})
    if source == "python" and name:
        return lambda num_classes, _: networks.build_users_network(name, num_classes)
    raise UsageError(
        "this network cannot be trained",
        saw=f"--arch {recipe.arch}",
        fix="--arch rescale:NAME, torchvision:NAME, timm:NAME or python:module:callable",
    )


def _begin_from(
    network: nn.Module, recipe: Recipe, head: str, notes: Callable[[str], None]
) -> None:
    """Copy every weight except those of the head from a checkpoint."""
    path = Path(recipe.weights)
    own = {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if not name.startswith(f"{head}.")
    }
    chosen = choose(open_checkpoint(path).contents.tensors, own)
    # Other heads, and counters of layers that the network does not have, say nothing new.
    idle = {n for n in chosen.infos if n.endswith("num_batches_tracked") and n not in own}
    idle |= {n for n in chosen.infos if n.startswith(f"{head}.")}
    body = {name: info for name, info in chosen.infos.items() if name not in idle}
    wrong = differences(own, replace(chosen, infos=body), set(dict(network.named_buffers())))
    there = {name: body[name] for name in own if name in body and body[name].shape == own[name]}
    if not there or (wrong and not recipe.weights_partial):
        raise BadInput(
            f"{path.name} does not hold the weights of {recipe.arch}",
            saw="; ".join(wrong),
            fix="name a checkpoint of the same network: --weights FILE, or use the layers that fit "
            "and leave the others as initialised: --weights-partial",
        )
    if wrong:
        used = dict.fromkeys(name.rpartition(".")[0] for name in there)
        notes(
            f"--weights-partial: {len(there)} of {len(own)} tensors are from {path.name}, in the "
            f"layers {', '.join(used)}; the rest does not fit: {'; '.join(wrong)}"
        )
    network.load_state_dict(read_tensors(there), strict=False)


def weights_digest(recipe: Recipe) -> str | None:
    """SHA-256 of the tensors of --weights, without single numbers; None without it."""
    if not recipe.weights:
        return None
    tensors = open_checkpoint(Path(recipe.weights)).contents.tensors
    return digest([info for info in tensors if info.shape])
