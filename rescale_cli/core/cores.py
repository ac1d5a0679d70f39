"""Blocks of rows, shared among the cores: each thread takes the next one when it is free."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

Work = Callable[[slice], None]


def in_blocks(rows: int, step: int, begin: Callable[[], Work], *, on_cpu: bool = True) -> None:
    """Do the same work on blocks of rows until all are done; no rows are one empty block.

    Torch by itself divides each operation among the cores, which then wait for one another after
    each; where another program has one of them, that wait is most of the time. Here each core has
    operations, and a cache, to itself.

    Args:
        rows: N.
        step: rows of a block.
        begin: gives a thread what it calls with the rows of each of its blocks; what `begin` makes,
            buffers say, belongs to one thread.
        on_cpu: else there is nothing to divide, and this thread does it all.
    """
    import torch

    todo = iter(range(0, max(rows, 1), step))

    def until_none_is_left() -> None:
        work = begin()
        for first in todo:
            work(slice(first, min(first + step, rows)))

    cores = torch.get_num_threads()
    blocks = -(-rows // step)
    if not on_cpu or min(cores, blocks) < 2:
        until_none_is_left()
        return

    def alone() -> None:
        torch.set_num_threads(1)  # of this thread's operations
        until_none_is_left()

    try:
        with ThreadPoolExecutor(min(cores, blocks)) as pool:
            for thread in [pool.submit(alone) for _ in range(min(cores, blocks))]:
                thread.result()
    finally:
        torch.set_num_threads(cores)  # later threads begin with what was set last
