"""A tensor as a range of bytes: where it lies, not what it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

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
