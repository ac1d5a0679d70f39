"""A tensor as a range of bytes, what a format says of a file, and its floats as float64.

A format is one module of this folder with

    NAME: str                                       shown by `inspect`
    matches(path) -> bool                           told by content, never by suffix
    list_tensors(path, accept=frozenset()) -> Contents

`list_tensors` reads headers only; it refuses what is damaged or ambiguous and runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bytes of one element, by torch's name of the dtype. A dtype that is missing here is opaque to us.
ITEM_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1, "complex64": 8, "complex128": 16, "complex32": 4,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2,
    "uint8": 1, "bool": 1, "qint8": 1, "quint8": 1, "qint32": 4,
}  # fmt: skip

#: The dtypes a head may have.
HEAD_DTYPES = ("float64", "float32", "float16", "bfloat16")

#: No tensor has more dimensions: it is the limit of torch and of NumPy.
MAX_DIMS = 64


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor of that shape.

    Example:
        >>> row_major((10, 64))
        (64, 1)
    """
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One named tensor of a checkpoint, unread."""

    name: str
    """Dotted path from the top of the file: `state_dict.module.fc.weight`."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements, as torch gives them; a transposed tensor is legal and occurs."""
    dtype: str
    """Torch's name without `torch.`: `float32`, `bfloat16`, `int64`."""
    file: Path
    start: int
    """Offset in the file of the element at index 0, 0, ..."""
    stop: int
    """One past the last byte that the view touches; equal to start if it is empty."""
    byteorder: str = "little"

    @property
    def numel(self) -> int:
        """Number of elements, the product of the shape."""
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie row after row without a gap."""
        steps = zip(self.shape, self.strides, row_major(self.shape), strict=True)
        return all(size <= 1 or stride == wanted for size, stride, wanted in steps)


Bits = NDArray[np.unsignedinteger[Any]]
Float64 = NDArray[np.float64]

_FLOATS = {"float64": np.float64, "float32": np.float32, "float16": np.float16}


def bits_dtype(dtype: str, byteorder: str = "little") -> np.dtype[Any]:
    """The unsigned integer that holds one element of a float dtype, in the file's byte order."""
    return np.dtype(f"{'<' if byteorder == 'little' else '>'}u{ITEM_SIZES[dtype]}")


def decode(bits: Bits, dtype: str) -> Float64:
    """The values of the bit patterns, exactly, as float64 of the same shape."""
    native = np.ascontiguousarray(bits).astype(f"=u{ITEM_SIZES[dtype]}", copy=False)
    if dtype == "bfloat16":
        native, dtype = native.astype(np.uint32) << 16, "float32"
    with np.errstate(invalid="ignore"):  # a signalling NaN is refused later, by name
        return native.view(_FLOATS[dtype]).astype(np.float64)


def encode(values: Float64, dtype: str) -> Bits:
    """The nearest bit patterns, ties to even, rounded once; too large becomes infinity.

    Example:
        >>> [hex(bits) for bits in encode(np.array([1.0, 1.00390625, 3.5e38]), "bfloat16")]
        ['0x3f80', '0x3f80', '0x7f80']
    """
    with np.errstate(over="ignore", under="ignore"):
        if dtype != "bfloat16":
            rounded = values.astype(_FLOATS[dtype])
            return rounded.view(f"=u{rounded.itemsize}")
        # float64 -> float32 -> bfloat16 would round twice. Rounding to odd first is safe: the
        # float32 keeps a last bit that says "not exact", so the second rounding sees no false tie.
        near = values.astype(np.float32)
        bits, back = near.view(np.uint32), near.astype(np.float64)
        bits = bits - (np.abs(back) > np.abs(values))
        bits |= (back != values).astype(np.uint32)
    bits = bits.astype(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def ordered(bits: Bits) -> NDArray[np.int64]:
    """Integers that step by one from each float to the next: differences are in last places.

    One to one, -0.0 and 0.0 included; `unordered` is the way back.
    """
    width = bits.dtype.itemsize * 8
    signed = bits.astype(f"=u{width // 8}").view(f"=i{width // 8}").astype(np.int64)
    return np.where(signed < 0, np.int64(-1) - (signed & np.int64(2 ** (width - 1) - 1)), signed)


def unordered(steps: NDArray[np.int64], dtype: str) -> Bits:
    """The bit patterns that `ordered` numbered."""
    width = ITEM_SIZES[dtype] * 8
    low = np.where(steps < 0, np.int64(-1) - steps, steps).astype(np.uint64)
    sign = (steps < 0).astype(np.uint64) << np.uint64(width - 1)
    return (low | sign).astype(f"=u{width // 8}")


@dataclass(frozen=True, slots=True)
class Checksum:
    """The CRC-32 of the bytes [start, stop) of a file, kept little-endian at each place in `at`."""

    file: Path
    start: int
    stop: int
    at: tuple[int, ...]
    name: str


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that one checkpoint declares."""

    format: str
    """`safetensors`, `torch-zip`, `torchscript`, `torch-legacy`, `hugging-face-folder`, ..."""
    tensors: tuple[TensorInfo, ...]
    files: tuple[Path, ...]
    """The files that hold tensors; the others of a folder are side files."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """safetensors' `__metadata__`, whole."""
    config: Mapping[str, object] = field(default_factory=dict)
    """The config.json beside the weights, where there is one."""
    class_names: tuple[tuple[str, ...], ...] = ()
    """Every list of class names found in the file, in row order; the head's length selects one."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a pickle says of the network in plain values: `arch`, `args`, `hyper_parameters` ..."""
    tool: str = ""
    """What trained it, where a pickle says so: timm or torchvision; see `pickled_names`."""
    globals: tuple[str, ...] = ()
    """What a pickle names beyond tensors and plain containers, sorted; none of it was imported."""
    module_classes: Mapping[str, str] = field(default_factory=dict)
    """Of a pickled module: the full class name of each layer that has a weight, by its name."""
    checksums: tuple[Checksum, ...] = ()
