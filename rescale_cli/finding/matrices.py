"""The matrices of a checkpoint: every tensor that could be the weight of a linear layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.finding.head_names import layer_path

_WEIGHT_NORM = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)

#: What the weight of a linear layer is called: by torch, by torch under pruning, by Flax.
WEIGHTS = ("weight", "weight_orig", "kernel")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A tensor that could be the weight of a linear layer, with its bias."""

    weight: TensorInfo
    bias: TensorInfo | None
    module: str
    path: tuple[str, ...]
    """The module without wrappers."""
    layout: str
    rows: int
    width: int
    direction: TensorInfo | None = None


def matrices(tensors: Sequence[TensorInfo]) -> list[Matrix]:
    """Every tensor that could be a linear layer: (C, D), (C, D, 1, 1), (D, C) or a weight norm."""
    by_name = {tensor.name: tensor for tensor in tensors}
    found = []
    for tensor in tensors:
        if _is_of_a_norm(tensor.name, by_name):
            matrix = _weight_norm(tensor, by_name)
        else:
            matrix = _plain(tensor, by_name)
        if matrix:
            found.append(matrix)
    return found


def _weight_norm(tensor: TensorInfo, by_name: dict[str, TensorInfo]) -> Matrix | None:
    for g, v in _WEIGHT_NORM:
        if not tensor.name.endswith(g):
            continue
        module = tensor.name.removesuffix(g)
        direction = by_name.get(module + v)
        # Only dim=0 gives a length to each row; for any other dim g is no scale of the classes.
        if direction and _is_linear(direction.shape) and tensor.numel == direction.shape[0]:
            rows, width = direction.shape[:2]
            bias = _vector(by_name.get(module + ".bias"), rows)
            path = layer_path(module)
            return Matrix(tensor, bias, module, path, "weight_norm", rows, width, direction)
    return None


def _is_of_a_norm(name: str, by_name: dict[str, TensorInfo]) -> bool:
    """Whether a tensor is g, v, or the weight that a module keeps beside them and overwrites."""
    if re.search(r"\.weight_v$|\.parametrizations\.\w+\.original\d*$", name):
        return True
    module = name.removesuffix("_g").removesuffix(".weight")
    return module != name and f"{module}.weight_g" in by_name and f"{module}.weight_v" in by_name


def _plain(tensor: TensorInfo, by_name: dict[str, TensorInfo]) -> Matrix | None:
    if not _is_linear(tensor.shape) or is_integer(tensor):
        return None
    module, _, leaf = tensor.name.rpartition(".")
    rows, width = tensor.shape[:2]
    named = leaf in WEIGHTS
    path = layer_path(module) if named else (*layer_path(module), leaf)
    bias = by_name.get(f"{module}.bias" if module else "bias") if named else None
    if _vector(bias, rows):
        layout = "linear" if len(tensor.shape) == 2 else "conv1x1"
        return Matrix(tensor, bias, module, path, layout, rows, width)
    if _vector(bias, width) and len(tensor.shape) == 2:
        return Matrix(tensor, bias, module, path, "transposed", width, rows)
    layout = "linear" if len(tensor.shape) == 2 else "conv1x1"
    return Matrix(tensor, None, module, path, layout, rows, width)


def is_integer(tensor: TensorInfo) -> bool:
    """Whether it counts or points, as a buffer does; 8-bit numbers may be weights."""
    return tensor.dtype in ("int64", "int32", "int16", "bool", "uint64", "uint32", "uint16")


def _is_linear(shape: tuple[int, ...]) -> bool:
    return 2 <= len(shape) <= 5 and all(size == 1 for size in shape[2:]) and min(shape) > 0


def _vector(tensor: TensorInfo | None, length: int) -> TensorInfo | None:
    return tensor if tensor is not None and tensor.shape == (length,) else None
