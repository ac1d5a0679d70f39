"""The dtypes of a checkpoint, and its floats as bit patterns: to float64 and back.

Ours, because NumPy has no bfloat16, and because each value must be rounded once, not twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bytes of one element, by torch's name of the dtype. Other dtypes are not interpreted.
ITEM_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1, "complex64": 8, "complex128": 16, "complex32": 4,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2,
    "uint8": 1, "bool": 1, "qint8": 1, "quint8": 1, "qint32": 4,
}  # fmt: skip

#: The dtypes a head may have.
HEAD_DTYPES = ("float64", "float32", "float16", "bfloat16")

Bits = NDArray[np.unsignedinteger[Any]]
Float64 = NDArray[np.float64]

_FLOATS = {"float64": np.float64, "float32": np.float32, "float16": np.float16}


def bits_dtype(dtype: str, byteorder: str = "little") -> np.dtype[Any]:
    """The unsigned integer that holds one element of a float dtype, in the file's byte order."""
    return np.dtype(f"{'<' if byteorder == 'little' else '>'}u{ITEM_SIZES[dtype]}")


def to_float64(bits: Bits, dtype: str) -> Float64:
    """The values of the bit patterns, exactly, as float64 of the same shape."""
    native = np.ascontiguousarray(bits).astype(f"=u{ITEM_SIZES[dtype]}", copy=False)
    if dtype == "bfloat16":
        native, dtype = native.astype(np.uint32) << 16, "float32"
    with np.errstate(invalid="ignore"):  # a signalling NaN is refused later
        return native.view(_FLOATS[dtype]).astype(np.float64)


def to_bits(values: Float64, dtype: str) -> Bits:
    """The nearest bit patterns, ties to even, rounded once; too large becomes infinity.

    Example:
        >>> [hex(bits) for bits in to_bits(np.array([1.0, 1.00390625, 3.5e38]), "bfloat16")]
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
    """Integers that step by one from each float to the next, so they differ in last places.

    One to one, including -0.0 and 0.0; `unordered` is the inverse.
    """
    width = bits.dtype.itemsize * 8
    signed = bits.astype(f"=u{width // 8}").view(f"=i{width // 8}").astype(np.int64)
    return np.where(signed < 0, np.int64(-1) - (signed & np.int64(2 ** (width - 1) - 1)), signed)


def unordered(steps: NDArray[np.int64], dtype: str) -> Bits:
    """The bit patterns of the integers of `ordered`."""
    width = ITEM_SIZES[dtype] * 8
    low = np.where(steps < 0, np.int64(-1) - steps, steps).astype(np.uint64)
    sign = (steps < 0).astype(np.uint64) << np.uint64(width - 1)
    return (low | sign).astype(f"=u{width // 8}")
