"""Arrays of any size: in memory while they are small, else in a file that has no name."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rescale_cli.errors import EnvironmentProblem
from rescale_cli.files.staging import system_errors

#: Bytes of an array that is kept in memory.
IN_MEMORY = 1 << 30
#: Bytes of rows that are worked on at a time.
_BLOCK = 8 << 20


def big_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A new array in C order, of zeros or of nothing in particular.

    Above `IN_MEMORY` bytes it lies in a temporary file without a name, mapped into memory: the
    system may write its pages out when memory is short, and the file ends with the array.

    Raises:
        EnvironmentProblem: the disk has no room for it.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, kind)
    folder = tempfile.gettempdir()
    with (
        system_errors(f"a temporary file of {size:,} bytes in {folder}"),
        tempfile.TemporaryFile(dir=folder) as file,
    ):
        try:
            # Room is asked for now: a mapped file that outgrows the disk ends the process.
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:
            raise EnvironmentProblem(
                f"there is no room in {folder} for {size:,} bytes of logits",
                saw=str(error),
                fix="free some space, or name another folder: TMPDIR=DIR",
            ) from None
        return np.ndarray(shape, kind, buffer=mmap.mmap(file.fileno(), size))


def mapped(fd: int, start: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array in C order that lies in a file at byte `start`, mapped, not read.

    Writing to it changes this process' copy alone, never the file. Torch takes no array that
    cannot be written to without a warning, therefore it can.
    """
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(fd, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.ndarray(shape, dtype, buffer=memory, offset=start)


def row_blocks(array: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows that cover an array (N, ...), a few MiB each."""
    row = max(1, array.nbytes // max(1, len(array)))
    step = max(1, _BLOCK // row)
    for lo in range(0, len(array), step):
        yield slice(lo, min(lo + step, len(array)))
