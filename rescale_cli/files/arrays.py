"""Arrays of any size: in memory, mapped from a file, or in an .npz, never a pickle."""

from __future__ import annotations

import io
import itertools
import math
import mmap
import os
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rescale_cli.errors import BadCheckpoint, BadInput, EnvironmentProblem
from rescale_cli.files.reading import opened, read_at, refuse_lfs_pointer
from rescale_cli.files.staging import system_errors
from rescale_cli.files.zip_table import ZipEntry, ZipTable, read_zip_table

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


#: Bytes that are read or unpacked at a time; a header of numpy's has fewer.
_CHUNK = 1 << 20
#: Bytes that a compressed array may have; deflate makes a byte of at most 1032 of them.
_MAX_UNPACKED = 16 << 30
_MOST = 1032
_FIX = "write it again: np.savez(FILE, NAME=array)"


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """What stands before the data of a .npy."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    size: int
    """Bytes before the data."""

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


def npy_header(data: bytes) -> NpyHeader:
    """The header that a .npy begins with.

    Raises:
        ValueError: damaged, or an array of objects, which would be a pickle.
    """
    file = io.BytesIO(data)
    if (version := np.lib.format.read_magic(file)) not in ((1, 0), (2, 0)):
        raise ValueError(f"a .npy file of version {version}")
    old = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers that Python 2 wrote are fine
            shape, fortran, dtype = read(file)
    except Exception as error:  # numpy lets errors of tokenize and ast pass through
        raise ValueError(f"its header is damaged: {error}") from None
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"an array of {dtype}, which is not read")
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"its header says {shape}")
    return NpyHeader(shape, fortran, dtype, file.tell())


@dataclass(frozen=True, slots=True)
class NpzFile:
    """The table of one .npz."""

    path: Path
    table: ZipTable

    @classmethod
    def of(cls, path: Path) -> NpzFile:
        """Read the table; no array is read.

        Raises:
            BadInput: a damaged archive, or a git-lfs pointer to one.
        """
        with opened(path, BadInput) as fd:
            refuse_lfs_pointer(path, read_at(fd, 0, min(64, os.fstat(fd).st_size)), BadInput)
        try:
            return cls(path, read_zip_table(path))
        except BadCheckpoint as error:
            raise BadInput(error.what, saw=f"{error.saw}; it was read as .npz", fix=_FIX) from None

    @property
    def names(self) -> list[str]:
        """Of its arrays."""
        return [name.removesuffix(".npy") for name in self.table.entries]

    def array(self, name: str, limit: int | None = None) -> NDArray[Any]:
        """One array, mapped from the file where that is possible; it is never written back.

        Args:
            name: of the array.
            limit: the most bytes that it may have; if None, those that the file can hold.

        Raises:
            KeyError: there is no such array.
            BadInput: damaged, an array of objects, or larger than the limit.
        """
        entry = self.table.entries[f"{name}.npy"]
        try:
            with opened(self.path, BadInput) as fd:
                return _read(fd, entry, limit)
        except (ValueError, zlib.error) as error:
            what = f"the array {name} of {self.path.name} cannot be read"
            raise BadInput(what, saw=str(error), fix=_FIX) from None


def _read(fd: int, entry: ZipEntry, limit: int | None) -> NDArray[Any]:
    chunks = _chunks(fd, entry)
    first = next(chunks, b"")
    header = npy_header(first)
    packed = entry.stop - entry.start
    bound = packed - header.size if entry.stored else min(packed * _MOST, _MAX_UNPACKED)
    if header.nbytes > bound or (entry.stored and header.nbytes != bound):
        raise ValueError(
            f"its header says {header.shape} of {header.dtype}, {header.nbytes:,} bytes, "
            f"but there are {'' if entry.stored else 'at most '}{bound:,}"
        )
    if limit is not None and header.nbytes > limit:
        raise ValueError(f"{header.nbytes:,} bytes, which is larger than the limit of {limit:,}")
    at = entry.start + header.size
    if entry.stored and not at % header.dtype.alignment and not header.fortran and header.nbytes:
        for _ in chunks:  # to its end, where the checksum is compared
            pass
        return mapped(fd, at, header.shape, header.dtype)
    shape = header.shape[::-1] if header.fortran else header.shape
    array = big_array(shape, header.dtype)
    _fill(array.reshape(-1).view(np.uint8).data, first[header.size :], chunks)
    return array.T if header.fortran else array


def _fill(space: memoryview, first: bytes, chunks: Iterator[bytes]) -> None:
    """Put the bytes into the array; there must be exactly as many as it has room for."""
    at = 0
    for part in itertools.chain([first], chunks):
        if len(part) > len(space) - at:
            raise ValueError("more bytes than its header says")
        space[at : at + len(part)] = part
        at += len(part)
    if at != len(space):
        raise ValueError(f"{len(space) - at:,} bytes of it are missing")


def _chunks(fd: int, entry: ZipEntry) -> Iterator[bytes]:
    """The bytes of an entry, unpacked, the first chunk as long as a header may be.

    Raises:
        ValueError: after the last one, the checksum is not theirs.
    """
    inflate = None if entry.stored else zlib.decompressobj(-zlib.MAX_WBITS)
    crc, at, rest = 0, entry.start, b""
    while True:
        if not rest and at < entry.stop:
            rest = read_at(fd, at, min(_CHUNK, entry.stop - at))
            at += len(rest)
        if inflate is None:
            part, rest = rest, b""
        else:
            part = inflate.decompress(rest, _CHUNK)
            rest = inflate.unconsumed_tail
        if not part and not rest and at >= entry.stop:
            break
        crc = zlib.crc32(part, crc)
        if part:
            yield part
    if crc != entry.crc:
        raise ValueError("its checksum is not that of its bytes")
