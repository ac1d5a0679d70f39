"""The processes that torchrun started: their messages, and how they end together.

Ours, because collectives such as `gather_object` time out while a rank is merely slow, and torchrun
ends the other ranks before rank 0 has printed why one failed. So each rank leaves a sign of life,
or its error, in torchrun's store; only the logits are sent from process to process, by gloo, since
they lie in memory and not on a device. Rank 0 alone prints and writes.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rescale_cli import errors
from rescale_cli.errors import EnvironmentProblem, RescaleError
from rescale_cli.files.arrays import row_blocks
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import Store  # type: ignore[attr-defined]


#: Seconds without a sign of life after which a rank is considered dead.
PATIENCE = 600.0
#: Seconds between two signs of life, and between two checks of a key.
_BEAT, _LOOK = 0.5, 0.02
#: Seconds that failing ranks wait so that the others learn of it.
_LAST_WORDS = 20.0


def size() -> int:
    """The number of processes that work together: 1 without torchrun."""
    started = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if started else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def finish(problem: RescaleError | None = None) -> None:
    """Call last, after rank 0 has printed its result or error: no rank ends before that.

    torchrun stops all ranks when the first one fails, so the others wait for rank 0.

    Args:
        problem: the error of this rank, if it failed; it is passed on to the others.
    """
    if size() == 1 or (problem is None and not team.cache_info().currsize):
        return
    try:
        team().end(problem)
    except (RescaleError, RuntimeError):  # the store is gone, and so are the others
        return


def as_text(error: Exception) -> str:
    """An error as text, for another process."""
    if not isinstance(error, RescaleError):
        what = f"an internal error on rank {rank()}: {type(error).__name__}"
        error = RescaleError(what, saw=str(error), fix="report it with the output of -vv")
    return json.dumps([type(error).__name__, error.what, error.saw, error.fix])


def from_text(text: str) -> RescaleError:
    """The error of another process, of the same class."""
    name, what, saw, fix = json.loads(text)
    kind: type[RescaleError] = getattr(errors, name, RescaleError)
    return kind(what, saw=saw, fix=fix)


class Team:
    """This process, and the store that it shares with the others.

    Args:
        rank: of this process.
        size: how many there are, at least 2.
        store: torchrun's key-value store.
    """

    def __init__(self, rank: int, size: int, store: Store) -> None:
        self.rank, self.size, self._store = rank, size, store
        self._beats, self._last, self._passes = 0, 0.0, 0
        if rank == 0:
            atexit.register(finish)

    def beat(self) -> None:
        """Give a sign of life from time to time, and stop if another rank has failed.

        Raises:
            RescaleError: what the other rank raised.
            EnvironmentProblem: the store is gone.
        """
        if time.monotonic() - self._last < _BEAT:
            return
        self._last, self._beats = time.monotonic(), self._beats + 1
        self.tell("alive", str(self._beats))
        self.stop_if_failed()

    def stop_if_failed(self) -> None:
        """Raise the error of another rank, if one has failed."""
        failed = self._get("failed")
        if failed is not None:
            raise from_text(failed)

    def next_pass(self) -> int:
        """The number of the next pass over a data set, the same on all ranks."""
        self._passes += 1
        return self._passes

    def tell(self, key: str, text: str) -> None:
        """Store a text for the others to read."""
        with _reachable():
            self._store.set(f"{key}/{self.rank}", text)

    def _get(self, key: str) -> str | None:
        """The text stored under a key; None if there is none."""
        with _reachable():
            return str(self._store.get(key), "utf-8") if self._store.check([key]) else None

    def hear(self, key: str, of: int) -> str:
        """Wait for the text of another rank, as long as that rank is alive.

        Raises:
            RescaleError: a rank has failed, or the other rank gives no sign of life.
        """
        pulse, since = None, time.monotonic()
        while (word := self._get(f"{key}/{of}")) is None:
            self.stop_if_failed()
            self.beat()
            before, pulse = pulse, self._get(f"alive/{of}")
            since = since if pulse == before else time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise EnvironmentProblem(
                    f"rank {of} has given no sign of life for {PATIENCE / 60:.0f} minutes",
                    fix="start all processes by torchrun, which notices when one dies",
                )
            time.sleep(_LOOK)
        return word

    def fail(self, error: Exception) -> None:
        """Make the others stop, too. The first error is the one that is reported."""
        with contextlib.suppress(RuntimeError):  # without the store there are no others
            if not self._store.check(["failed"]):
                self._store.set("failed", as_text(error))

    def end(self, problem: RescaleError | None = None) -> None:
        """End after rank 0 has printed; if the run failed, wait until every rank knows that."""
        if problem is not None:
            self.fail(problem)
        if self.rank == 0:
            self._store.set("printed", "yes")
        wait = timedelta(seconds=_LAST_WORDS)
        if problem is not None and self.rank:
            self._store.wait(["printed"], wait)
            self._store.set(f"left/{self.rank}", "yes")
        elif problem is not None:
            # The store may be part of this process.
            self._store.wait([f"left/{other}" for other in range(1, self.size)], wait)

    def start_group(self, backend: str, name: str = "group") -> None:
        """Let all ranks exchange tensors until `torch.distributed.destroy_process_group`."""
        import torch.distributed as dist

        meeting = dist.PrefixStore(name, self._store)  # type: ignore[attr-defined]
        wait = timedelta(seconds=PATIENCE)
        dist.init_process_group(
            backend, store=meeting, rank=self.rank, world_size=self.size, timeout=wait
        )

    def bring_together(
        self, arrays: list[NDArray[np.generic]], shares: list[slice], number: int
    ) -> None:
        """Send the rows of this rank to rank 0, block by block.

        Args:
            arrays: (N, ...) each on rank 0, and only the rows of this rank on the others.
            shares: the rows of each rank.
            number: of the pass, the same on all ranks.
        """
        import torch
        import torch.distributed as dist

        own = not dist.is_initialized()
        if own:
            self.start_group("gloo", f"gather/{number}")
        wait = timedelta(seconds=PATIENCE)
        group: Any = None if own else dist.new_group(backend="gloo", timeout=wait)
        try:
            for other in range(1, self.size):
                if self.rank not in (0, other):
                    continue
                for array in arrays:
                    part = array[shares[other]] if self.rank == 0 else array
                    for rows in row_blocks(part):
                        block = torch.from_numpy(part[rows])
                        if self.rank == 0:
                            dist.recv(block, other, group)
                        else:
                            dist.send(block, 0, group)
        finally:
            dist.destroy_process_group(group)


@contextlib.contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise EnvironmentProblem(
            "lost the connection to the other processes",
            saw=str(error).splitlines()[0],
            fix="read the errors of the other ranks, then start all of them again",
        ) from None


@functools.cache
def team() -> Team:
    """The team of this process; call it only under torchrun.

    Raises:
        EnvironmentProblem: the others cannot be reached.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    try:
        wait = timedelta(seconds=PATIENCE)
        store, mine, everyone = next(rendezvous("env://", timeout=wait))
    except (RuntimeError, ValueError, OSError) as error:
        raise EnvironmentProblem(
            "the processes of torchrun cannot connect to each other",
            saw=str(error).splitlines()[0],
            fix="check MASTER_ADDR and MASTER_PORT, or run without torchrun",
        ) from None
    return Team(mine, everyone, PrefixStore("rescale-cli", store))


T = TypeVar("T")

#: Seconds within which the error of another rank arrives.
_HEAR = 1.0


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process, as one of those that train together."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; the same on each."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def first_main(self, deed: Callable[[], T]) -> T:
        """Call something that may download or write: first on rank 0, then on the others."""
        if self.world == 1:
            return deed()
        import torch.distributed as dist

        done = deed() if self.is_main else None
        dist.barrier()
        return deed() if done is None else done

    def together(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network, with gradients averaged over all ranks."""
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
    """The ranks that torchrun started as one process group; without torchrun only this process.

    Raises:
        EnvironmentProblem: the others cannot be reached.
    """
    if size() == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    mine = team()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    number = mine.next_pass()  # a process may train several times, see seed_runs.py
    if mine.rank:
        mine.hear(f"begun/{number}", 0)  # raises the error if rank 0 could not begin
    else:
        mine.tell(f"begun/{number}", "yes")
    mine.start_group("nccl" if device.type == "cuda" else "gloo", f"train/{number}")
    try:
        yield Ranks(mine.rank, mine.size)
    except Exception as error:
        if isinstance(error, RuntimeError):  # what gloo raises when another rank is gone
            time.sleep(_HEAR)
            mine.stop_if_failed()
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                error = EnvironmentProblem(
                    "another process of this run has ended",
                    saw=clip(str(error), 200),
                    fix="continue from the last state: train --resume RUN",
                )
        mine.fail(error)
        raise error
    finally:
        dist.destroy_process_group()
