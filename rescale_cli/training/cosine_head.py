"""The head that LDAM needs. It is torch throughout: only functions import this file."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that PyTorch's own pages use)


class CosineHead(nn.Module):
    """z_i = s cos(w_i, f): rows and features to unit length (Cao et al. 2019).

    The authors store the weight as (D, C) and leave s to the loss; here it is (C, D), as in every
    linear layer, and s is in the logits, so that probabilities come out right.
    """

    def __init__(self, feature_dim: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        self.scale: Tensor
        # Among the weights it is also the sign by which such a head is told from a linear one.
        self.register_buffer("scale", torch.tensor(scale))
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim).uniform_(-1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, D) to logits (N, C), from -s to s."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def give_cosine_head(network: nn.Module, name: str, scale: float = 30.0) -> CosineHead:
    """Put a cosine head in the place of the linear layer of that name, and return it.

    Args:
        network: changed in place.
        name: the dotted name of its last linear layer, such as `fc`.
        scale: s.
    """
    above, _, last = name.rpartition(".")
    old = network.get_submodule(name)
    assert isinstance(old, nn.Linear), name
    made = CosineHead(old.in_features, old.out_features, scale).to(old.weight)
    setattr(network.get_submodule(above), last, made)
    return made
