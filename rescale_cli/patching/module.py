"""The heads of a live torch module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rescale_cli.files.contents import TensorInfo
from rescale_cli.finding.find_head import FoundHeads, find_heads

if TYPE_CHECKING:
    import torch


def heads_in(module: torch.nn.Module, num_classes: int | None, head: str | None) -> FoundHeads:
    """Find the heads of a live classifier by the names and shapes of its parameters and buffers.

    Args:
        module: a classifier.
        num_classes: C, if it is known.
        head: the name of the head, or a unique end of it, if it cannot be found.

    Raises:
        NoClassifier, AmbiguousHead, BadInput: as `find_heads`.
    """
    tensors = [
        TensorInfo(
            name,
            tuple(tensor.shape),
            tuple(tensor.stride()),
            str(tensor.dtype).removeprefix("torch."),
            Path(),
            0,
            tensor.numel() * tensor.element_size(),
        )
        for name, tensor in _state(module).items()
    ]
    owners = {
        name: f"{type(part).__module__}.{type(part).__qualname__}"
        for name, part in module.named_modules()
    }
    names = (head,) if head else ()
    return find_heads(tensors, num_classes=num_classes, names=names, only=True, owners=owners)


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
