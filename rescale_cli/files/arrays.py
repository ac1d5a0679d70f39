"""Read and create arrays of any size: in memory, mapped from a file, or in an .npz file.

numpy.load is not used: it allocates whatever size the header promises, and it cannot map an array
from an .npz file.
"""

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

#: Larger arrays, in bytes, are kept in a temporary file.
IN_MEMORY = 1 << 30
#: Bytes of rows that are processed at a time.
_BLOCK = 8 << 20


def big_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Create an uninitialized array in C order.

    Above `IN_MEMORY` bytes, it is mapped from an unnamed temporary file: the system can write its
    pages to disk when memory is short, and the file is deleted with the array.

    Raises:
        EnvironmentProblem: there is not enough disk space.
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
            # Allocate now: if the disk filled up later, writing to the map would kill the process.
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:
            raise EnvironmentProblem(
                f"there is not enough space in {folder} for {size:,} bytes of logits",
                saw=str(error),
                fix="free some space, or set another folder: TMPDIR=DIR",
            ) from None
        return np.ndarray(shape, kind, buffer=mmap.mmap(file.fileno(), size))


def mapped(fd: int, start: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Map an array in C order at byte `start` of a file, without reading it.

    The array is writable, because torch warns about read-only arrays; writing to it changes a
    private copy, never the file.
    """
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(fd, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.ndarray(shape, dtype, buffer=memory, offset=start)


def row_blocks(array: NDArray[Any]) -> Iterator[slice]:
    """Yield slices of rows that cover an array (N, ...), a few MiB each."""
    row = max(1, array.nbytes // max(1, len(array)))
    step = max(1, _BLOCK // row)
    for lo in range(0, len(array), step):
        yield slice(lo, min(lo + step, len(array)))


#: Bytes that are read or decompressed at a time; a header of numpy is shorter.
_CHUNK = 1 << 20
#: The largest decompressed array, in bytes; deflate compresses by at most 1032 to 1.
_MAX_UNPACKED = 16 << 30
_MOST = 1032
_FIX = "write it again: np.savez(FILE, NAME=array)"


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """The header of a .npy file."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    size: int
    """Number of bytes before the data."""

    @property
    def nbytes(self) -> int:
        """Number of bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


def npy_header(data: bytes) -> NpyHeader:
    """Parse the header of a .npy file.

    Raises:
        ValueError: damaged, or an array of objects, which would be a pickle.
    """
    file = io.BytesIO(data)
    if (version := np.lib.format.read_magic(file)) not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format is not supported")
    old = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers that Python 2 wrote are fine
            shape, fortran, dtype = read(file)
    except Exception as error:  # numpy also raises errors of tokenize and ast
        raise ValueError(f"its header is damaged: {error}") from None
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"arrays of {dtype} are not supported")
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"invalid shape {shape}")
    return NpyHeader(shape, fortran, dtype, file.tell())


@dataclass(frozen=True, slots=True)
class NpzFile:
    """An .npz file and the table of its arrays."""

    path: Path
    table: ZipTable

    @classmethod
    def of(cls, path: Path) -> NpzFile:
        """Read the table, but no array.

        Raises:
            BadInput: a damaged archive, or a git-lfs pointer.
        """
        with opened(path, BadInput) as fd:
            refuse_lfs_pointer(path, read_at(fd, 0, min(64, os.fstat(fd).st_size)), BadInput)
        try:
            return cls(path, read_zip_table(path))
        except BadCheckpoint as error:
            raise BadInput(error.what, saw=f"{error.saw}; it was read as .npz", fix=_FIX) from None

    @property
    def names(self) -> list[str]:
        """The names of the arrays."""
        return [name.removesuffix(".npy") for name in self.table.entries]

    def array(self, name: str, limit: int | None = None) -> NDArray[Any]:
        """Read one array, or map it from the file if possible; changes are never written back.

        Args:
            name: the name of the array.
            limit: its maximum size in bytes; None for no limit but the size of the file.

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
            f"its header promises {header.shape} of {header.dtype}, {header.nbytes:,} bytes, "
            f"but it has {'' if entry.stored else 'at most '}{bound:,}"
        )
    if limit is not None and header.nbytes > limit:
        raise ValueError(f"{header.nbytes:,} bytes, which is larger than the limit of {limit:,}")
    at = entry.start + header.size
    if entry.stored and not at % header.dtype.alignment and not header.fortran and header.nbytes:
        for _ in chunks:  # the checksum is compared at the end
            pass
        return mapped(fd, at, header.shape, header.dtype)
    shape = header.shape[::-1] if header.fortran else header.shape
    array = big_array(shape, header.dtype)
    _fill(array.reshape(-1).view(np.uint8).data, first[header.size :], chunks)
    return array.T if header.fortran else array


def _fill(space: memoryview, first: bytes, chunks: Iterator[bytes]) -> None:
    """Copy the bytes into the array; their number must be exactly its size."""
    at = 0
    for part in itertools.chain([first], chunks):
        if len(part) > len(space) - at:
            raise ValueError("it has more bytes than its header promises")
        space[at : at + len(part)] = part
        at += len(part)
    if at != len(space):
        raise ValueError(f"its last {len(space) - at:,} bytes are missing")


def _chunks(fd: int, entry: ZipEntry) -> Iterator[bytes]:
    """Yield the decompressed bytes of an entry; the first chunk contains the whole header.

    Raises:
        ValueError: after the last chunk, if the checksum does not match.
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
        raise ValueError("its checksum does not match its bytes")
