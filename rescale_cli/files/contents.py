"""The result of reading a checkpoint's headers: tensors as ranges of bytes, checksums and facts.

A format is one module of `checkpoints/formats/` with

    NAME: str                                       shown by `inspect`
    matches(path) -> bool                           decided by the content, never by the suffix
    list_tensors(path, accept=frozenset()) -> Contents

`list_tensors` reads headers only, refuses damaged and ambiguous files, and runs no code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: The maximum number of dimensions in torch and NumPy.
MAX_DIMS = 64


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor of that shape.

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
    """The name and the place of one tensor of a checkpoint, whose values have not been read."""

    name: str
    """Dotted path from the top of the file: `state_dict.module.fc.weight`."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements, as in torch; transposed tensors are legal and occur in practice."""
    dtype: str
    """Torch's name without `torch.`: `float32`, `bfloat16`, `int64`."""
    file: Path
    start: int
    """Offset in the file of the element at index 0, 0, ..."""
    stop: int
    """One past the last byte of the view; equal to start if it is empty."""
    byteorder: str = "little"

    @property
    def numel(self) -> int:
        """Number of elements, the product of the shape."""
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements are stored row by row without gaps."""
        steps = zip(self.shape, self.strides, row_major(self.shape), strict=True)
        return all(size <= 1 or stride == expected for size, stride, expected in steps)


@dataclass(frozen=True, slots=True)
class Checksum:
    """The CRC-32 of the bytes [start, stop) of a file, stored little-endian at each offset `at`."""

    file: Path
    start: int
    stop: int
    at: tuple[int, ...]
    name: str


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that the headers of one checkpoint declare."""

    format: str
    """`safetensors`, `torch-zip`, `torchscript`, `torch-legacy`, `hugging-face-folder`, ..."""
    tensors: tuple[TensorInfo, ...]
    files: tuple[Path, ...]
    """The files that hold tensors; the others of a folder are side files."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The whole `__metadata__` of a safetensors file."""
    config: Mapping[str, object] = field(default_factory=dict)
    """The config.json beside the weights, if there is one."""
    class_names: tuple[tuple[str, ...], ...] = ()
    """Every list of class names in the file, in row order; the head's length selects one."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that a pickle has about the network: `arch`, `args`, `hyper_parameters` ..."""
    tool: str = ""
    """The library that trained it, if a pickle says so: timm or torchvision; see `find_tool`."""
    globals: tuple[str, ...] = ()
    """Sorted names in a pickle other than tensors and plain containers; none was imported."""
    module_classes: Mapping[str, str] = field(default_factory=dict)
    """For a pickled module: the full class name of each layer that has a weight, by its name."""
    checksums: tuple[Checksum, ...] = ()
