"""A model of any library as one whose answer is logits. Only functions import this file."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rescale_cli.errors import BadInput
from rescale_cli.json_text import clip


class LogitsOnly(nn.Module):
    """Takes (n, C) logits out of what a model answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, H, W) to (n, C).

        Raises:
            BadInput: the answer is no matrix of one row an image.
        """
        return logits_of(self.model(images), len(images))


def logits_of(answer: Any, n: int) -> Tensor:
    """The logits (n, C) in an answer: a tensor, the first of a tuple, or `logits` by name.

    Raises:
        BadInput: there is no such tensor in it.
    """
    found = answer
    if isinstance(answer, dict):
        found = answer.get("logits")
    elif isinstance(answer, tuple | list) and answer:
        found = answer[0]
    found = getattr(found, "logits", found)
    if isinstance(found, Tensor) and found.dim() == 1:
        found = found[:, None]  # one logit an image, for two classes
    if isinstance(found, Tensor) and found.dim() > 2 and found.shape[2:].numel() == 1:
        found = found.flatten(1)
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != n:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(answer).__name__
        raise BadInput(
            "the model does not answer with one row of logits an image",
            saw=clip(f"{shape} for {n} images"),
            fix="wrap it in a function that returns (n, C) logits: --arch python:module:callable",
        )
    return found
