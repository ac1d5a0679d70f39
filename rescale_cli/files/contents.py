"""What a checkpoint format says of its files: tensors as ranges of bytes, checksums and facts.

A format is one module of `checkpoints/formats/` with

    NAME: str                                       shown by `inspect`
    matches(path) -> bool                           decided by the content, never by the suffix
    list_tensors(path, accept=frozenset()) -> Contents

`list_tensors` reads headers only; it refuses what is damaged or ambiguous and runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
