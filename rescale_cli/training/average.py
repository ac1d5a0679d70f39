"""The running average of the weights (EMA), a little behind them and steadier."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


class Average:
    """a <- decay a + (1 - decay) w after each step, for weights and batch statistics alike.

    In the first steps the decay is (1 + t) / (10 + t), so that the random weights of the start are
    soon forgotten; as TensorFlow's ExponentialMovingAverage does.

    Args:
        network: whose state is averaged.
        decay: the share of the average that stays, below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay, self.steps = decay, 0
        self._live = network.state_dict()  # the very tensors that training changes
        self.state = {name: value.clone() for name, value in self._live.items()}

    def update(self) -> None:
        """Take the weights after one more step; whole numbers are copied."""
        import torch

        self.steps += 1
        share = 1 - min(self._decay, (1 + self.steps) / (10 + self.steps))
        floats = [name for name, value in self.state.items() if value.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(
                [self.state[name] for name in floats], [self._live[name] for name in floats], share
            )
            for name in self.state.keys() - set(floats):
                self.state[name].copy_(self._live[name])

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on from an average that was kept."""
        self.steps = steps
        for name, value in self.state.items():
            value.copy_(state[name])
