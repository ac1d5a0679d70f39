"""The processes that torchrun started: which one this is, what they share, how they end together.

Rank 0 is the one that speaks. What one rank has to tell the others goes through torchrun's store:
whether it lives, and why it failed; only the logits go from process to process, by gloo, since
they lie in memory and not on a device.
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


#: Seconds after which a rank that gave no sign of life is given up.
PATIENCE = 600.0
#: Seconds between two signs of life, and between two looks at a key.
_BEAT, _LOOK = 0.5, 0.02
#: Seconds that ranks which fail give each other to hear of it.
_LAST_WORDS = 20.0


def size() -> int:
    """How many processes work on this together: 1 without torchrun."""
    started = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if started else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that speaks and writes."""
    return rank() == 0


def finish(problem: RescaleError | None = None) -> None:
    """Call last, after rank 0 has spoken: then no rank ends before its words are out.

    torchrun stops all ranks when the first one fails, so the others wait for rank 0.

    Args:
        problem: why this rank ends, if it failed; the others are told.
    """
    if size() == 1 or (problem is None and not team.cache_info().currsize):
        return
    try:
        team().end(problem)
    except (RescaleError, RuntimeError):  # the store has gone: so have the others
        return


def as_text(error: Exception) -> str:
    """An error for another process."""
    if not isinstance(error, RescaleError):
        what = f"a bug of ours on rank {rank()}: {type(error).__name__}"
        error = RescaleError(what, saw=str(error), fix="report it, with what `-vv` prints")
    return json.dumps([type(error).__name__, error.what, error.saw, error.fix])


def from_text(text: str) -> RescaleError:
    """The error that another process had, of the same kind."""
    name, what, saw, fix = json.loads(text)
    kind: type[RescaleError] = getattr(errors, name, RescaleError)
    return kind(what, saw=saw, fix=fix)


class Team:
    """This process among the others, and the store that they share.

    Args:
        rank: of this process.
        size: how many there are, at least 2.
        store: what torchrun gave all of them.
    """

    def __init__(self, rank: int, size: int, store: Store) -> None:
        self.rank, self.size, self._store = rank, size, store
        self._beats, self._last, self._passes = 0, 0.0, 0
        if rank == 0:
            atexit.register(finish)

    def beat(self) -> None:
        """Give a sign of life now and then, and stop if another rank has failed.

        Raises:
            RescaleError: what the other rank raised.
            EnvironmentProblem: the store has gone.
        """
        if time.monotonic() - self._last < _BEAT:
            return
        self._last, self._beats = time.monotonic(), self._beats + 1
        self.tell("alive", str(self._beats))
        self.stop_if_failed()

    def stop_if_failed(self) -> None:
        """Raise what another rank has raised, if one has."""
        failed = self._get("failed")
        if failed is not None:
            raise from_text(failed)

    def next_pass(self) -> int:
        """The number of the pass over a data set that begins; the same on all ranks."""
        self._passes += 1
        return self._passes

    def tell(self, key: str, text: str) -> None:
        """Leave a word for the others."""
        with _reachable():
            self._store.set(f"{key}/{self.rank}", text)

    def _get(self, key: str) -> str | None:
        """What somebody left under a key, if anybody did."""
        with _reachable():
            return str(self._store.get(key), "utf-8") if self._store.check([key]) else None

    def hear(self, key: str, of: int) -> str:
        """Wait for the word of another rank, as long as that one lives.

        Raises:
            RescaleError: a rank has failed, or that one gives no sign of life.
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
        """Let the others stop, too; the first error is the one that counts."""
        with contextlib.suppress(RuntimeError):  # no store, no others
            if not self._store.check(["failed"]):
                self._store.set("failed", as_text(error))

    def end(self, problem: RescaleError | None = None) -> None:
        """Rank 0 has spoken; where this is the end of all, each waits until that is known."""
        if problem is not None:
            self.fail(problem)
        if self.rank == 0:
            self._store.set("spoken", "yes")
        wait = timedelta(seconds=_LAST_WORDS)
        if problem is not None and self.rank:
            self._store.wait(["spoken"], wait)
            self._store.set(f"left/{self.rank}", "yes")
        elif problem is not None:
            # The store may lie in this process.
            self._store.wait([f"left/{other}" for other in range(1, self.size)], wait)

    def start_group(self, backend: str, name: str = "group") -> None:
        """Let all ranks exchange tensors, until `torch.distributed.destroy_process_group`."""
        import torch.distributed as dist

        meeting = dist.PrefixStore(name, self._store)  # type: ignore[attr-defined]
        wait = timedelta(seconds=PATIENCE)
        dist.init_process_group(
            backend, store=meeting, rank=self.rank, world_size=self.size, timeout=wait
        )

    def bring_together(
        self, arrays: list[NDArray[np.generic]], shares: list[slice], number: int
    ) -> None:
        """Send this rank's rows to rank 0, which has room for those of all, block by block.

        Args:
            arrays: of (N, ...) each on rank 0, of this rank's rows alone on the others.
            shares: the rows of each rank.
            number: of the pass, the same on all ranks: their meeting point.
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
            "the other processes cannot be reached any more",
            saw=str(error).splitlines()[0],
            fix="see what the other ranks said, then start all of them again",
        ) from None


@functools.cache
def team() -> Team:
    """The team of this process; to be asked for only where there is one.

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
            "the processes of torchrun cannot reach each other",
            saw=str(error).splitlines()[0],
            fix="check MASTER_ADDR and MASTER_PORT, or run without torchrun",
        ) from None
    return Team(mine, everyone, PrefixStore("rescale-cli", store))


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
        mine.hear(f"begun/{number}", 0)  # where it could not begin, this says why
    else:
        mine.tell(f"begun/{number}", "yes")
    mine.start_group("nccl" if device.type == "cuda" else "gloo", f"train/{number}")
    try:
        yield Ranks(mine.rank, mine.size)
    except Exception as error:
        if isinstance(error, RuntimeError):  # the words of gloo when another rank has gone
            time.sleep(_HEAR)
            mine.stop_if_failed()
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                error = EnvironmentProblem(
                    "another process of this run has gone",
                    saw=clip(str(error), 200),
                    fix="go on from the last state: train --resume RUN",
                )
        mine.fail(error)
        raise error
    finally:
        dist.destroy_process_group()
