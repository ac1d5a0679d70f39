"""The ranks of a training run: gradients are averaged, batch normalization sees all of a batch."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rescale_cli.errors import EnvironmentProblem
from rescale_cli.json_text import clip
from rescale_cli.predicting import ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

#: Seconds in which the reason why another rank has gone gets here.
_HEAR = 1.0


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

    def first_main(self, deed: Callable[[], T]) -> T:
        """Do something that may fetch or write: rank 0 first, then the others, who find it done."""
        if self.world == 1:
            return deed()
        import torch.distributed as dist

        done = deed() if self.is_main else None
        dist.barrier()
        return deed() if done is None else done

    def together(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as one whose gradients are the mean over all ranks'."""
        if self.world == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about the name of an argument
            # Weights and buffers are equal already: same seed, and all see the same statistics.
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
    number = team.next_pass()  # a process may train several times, see seed_runs.py
    if team.rank:
        team.hear(f"begun/{number}", 0)  # where it could not begin, this says why
    else:
        team.tell(f"begun/{number}", "yes")
    team.start_group("nccl" if device.type == "cuda" else "gloo", f"train/{number}")
    try:
        yield Ranks(team.rank, team.size)
    except Exception as error:
        if isinstance(error, RuntimeError):  # the words of gloo when another rank has gone
            time.sleep(_HEAR)
            team.stop_if_failed()
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                error = EnvironmentProblem(
                    "another process of this run has gone",
                    saw=clip(str(error), 200),
                    fix="go on from the last state: train --resume RUN",
                )
        team.fail(error)
        raise error
    finally:
        dist.destroy_process_group()
