"""What a checkpoint format says of a file: a table of byte ranges, and no more.

A format is one module of this folder with

    NAME: str                                       shown by `inspect`
    matches(path) -> bool                           told by content, never by suffix
    list_tensors(path, accept=frozenset()) -> Contents

`list_tensors` reads headers only; it refuses what is damaged or ambiguous and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescale_cli.core.tensor_info import TensorInfo


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
