"""The ranks of a training run: gradients are averaged, batch normalization sees all of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rescale_cli import ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; the same on each."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def together(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as one whose gradients are the mean over all ranks'."""
        if self.world == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        # Weights and buffers are equal already: same seed, and all ranks see the same statistics.
        return DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started, as one process group; this one alone without torchrun.

    Raises:
        EnvironmentProblem: the others cannot be reached.
    """
    if ranks.size() == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    team = ranks.team()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    team.start_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(team.rank, team.size)
    except Exception as error:
        team.fail(error)
        raise
    finally:
        dist.destroy_process_group()
