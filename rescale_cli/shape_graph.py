"""What shapes say: which matrices a file holds, and whether anything takes their rows as input.

A network is a chain of widths. The rows of an inner layer come again, as the input width of the next
matrix or the length of a norm; the number of classes comes once, at the end.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rescale_cli.head_names import FOLLOWERS, is_foreign, layer_path, opinion
from rescale_cli.tensor_info import TensorInfo

_WEIGHT_NORM = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


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
        matrix = _weight_norm(tensor, by_name) or _plain(tensor, by_name)
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


def _plain(tensor: TensorInfo, by_name: dict[str, TensorInfo]) -> Matrix | None:
    if not _is_linear(tensor.shape) or _integer(tensor):
        return None
    if re.search(r"\.weight_v$|\.parametrizations\.\w+\.original\d*$", tensor.name):
        return None
    module, _, leaf = tensor.name.rpartition(".")
    rows, width = tensor.shape[:2]
    path = layer_path(module) if leaf == "weight" else (*layer_path(module), leaf)
    bias = by_name.get(f"{module}.bias" if module else "bias") if leaf == "weight" else None
    if _vector(bias, rows):
        layout = "linear" if len(tensor.shape) == 2 else "conv1x1"
        return Matrix(tensor, bias, module, path, layout, rows, width)
    if _vector(bias, width) and len(tensor.shape) == 2:
        return Matrix(tensor, bias, module, path, "transposed", width, rows)
    layout = "linear" if len(tensor.shape) == 2 else "conv1x1"
    return Matrix(tensor, None, module, path, layout, rows, width)


def _integer(tensor: TensorInfo) -> bool:
    return tensor.dtype in ("int64", "int32", "int16", "bool", "uint64", "uint32", "uint16")


def _is_linear(shape: tuple[int, ...]) -> bool:
    return 2 <= len(shape) <= 5 and all(size == 1 for size in shape[2:]) and min(shape) > 0


def _vector(tensor: TensorInfo | None, length: int) -> TensorInfo | None:
    return tensor if tensor is not None and tensor.shape == (length,) else None


def in_model(tensors: Sequence[TensorInfo]) -> list[TensorInfo]:
    """The tensors that are no optimizer state, loss or metric."""
    return [tensor for tensor in tensors if not is_foreign(tensor.name)]


def copies(tensors: Sequence[TensorInfo]) -> tuple[str, ...]:
    """Prefixes below which the file keeps the same whole model, the leading one first.

    Two branches of the tree of names are copies when nearly every tensor of one has its twin, by
    name and shape, in the other, and together they are most of the file. Numbered branches are
    blocks, not copies.

    Returns:
        at least two prefixes, each ending in a dot, or () when there is one model only.
    """
    items = [(t.name, t.shape) for t in tensors if len(t.shape) > 1]
    prefix, total = "", len(items)
    while items:
        branches: dict[str, list[tuple[str, tuple[int, ...]]]] = defaultdict(list)
        for rest, shape in items:
            head, dot, tail = rest.partition(".")
            if dot:
                branches[head].append((tail, shape))
        big = {b: _descend(v) for b, v in branches.items() if len(v) >= 0.25 * total}
        keys = [key for key in big if not key.isdigit()]
        for i, key in enumerate(keys):
            mine = set(big[key][1])
            twins = [
                other for other in keys[i + 1 :]
                if len(mine & set(big[other][1])) >= 0.8 * max(len(mine), len(big[other][1]))
            ]  # fmt: skip
            if twins:
                roots = sorted([key, *twins], key=lambda k: bool(FOLLOWERS.search(k.lower())))
                return tuple(f"{prefix}{root}.{big[root][0]}" for root in roots)
        if not big:
            return ()
        largest = max(big, key=lambda key: len(branches[key]))
        prefix, items = f"{prefix}{largest}.", branches[largest]
        if len(items) < 0.5 * total:
            return ()
    return ()


def _descend(
    items: list[tuple[str, tuple[int, ...]]],
) -> tuple[str, list[tuple[str, tuple[int, ...]]]]:
    """Skip the segments that all names share: `module.` of a wrapped model."""
    prefix = ""
    while True:
        heads = {name.partition(".")[0] for name, _ in items}
        if len(heads) != 1 or any("." not in name for name, _ in items):
            return prefix, items
        head = heads.pop()
        prefix += head + "."
        items = [(name[len(head) + 1 :], shape) for name, shape in items]


class Graph:
    """The widths of one model: who has, who takes, who normalises how many."""

    def __init__(self, tensors: Sequence[TensorInfo]) -> None:
        self.matrices = matrices(tensors)
        biases = {m.bias.name for m in self.matrices if m.bias}
        self._mentions: Counter[int] = Counter()
        self._norms: Counter[int] = Counter()
        self._takes: Counter[tuple[bool, int]] = Counter()
        self._alike: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._scopes: dict[tuple[tuple[str, ...], int], list[Matrix]] = defaultdict(list)
        self._norm_scopes: dict[tuple[str, ...], set[int]] = defaultdict(set)
        self._highest: dict[tuple[str, ...], int] = defaultdict(int)
        wide = {m.weight.name: m.width for m in self.matrices}
        for tensor in tensors:
            if _integer(tensor):
                continue
            for size in set(tensor.shape[:2]):
                self._mentions[size] += 1
            if len(tensor.shape) == 1 and tensor.name not in biases:
                if tensor.name.endswith((".weight", ".running_mean")):
                    self._norms[tensor.shape[0]] += 1
                    path = layer_path(tensor.name.rpartition(".")[0])
                    self._norm_scopes[path[:-1]].add(tensor.shape[0])
            elif len(tensor.shape) > 1:
                width = wide.get(tensor.name, tensor.shape[1])
                # A kernel over at most 4 channels looks at the image, not at the classes.
                if width > 4 or tensor.numel == tensor.shape[0] * tensor.shape[1]:
                    self._takes[len(tensor.shape) == 2, width] += 1
        for matrix in self.matrices:
            self._alike[_template(matrix)] += 1
            for depth, step in enumerate(matrix.path):
                if step.isdigit():
                    above = matrix.path[:depth]
                    self._highest[above] = max(self._highest[above], int(step))
            for depth in range(max(0, len(matrix.path) - 2), len(matrix.path)):
                self._scopes[matrix.path[:depth], matrix.width].append(matrix)

    def own_mentions(self, m: Matrix) -> int:
        """How many tensors the layer itself brings to the count of its rows."""
        return 1 + (m.bias is not None) + (m.direction is not None)

    def is_unique(self, m: Matrix) -> bool:
        """Whether no other tensor has the row count among its sizes."""
        return self._mentions[m.rows] <= self.own_mentions(m) and m.rows > 1

    def is_end(self, m: Matrix) -> bool:
        """Whether no matrix takes the rows as input width and no norm has their length."""
        if self._norms[m.rows]:
            return False
        flat = len(m.weight.shape) == 2
        taken = self._takes[True, m.rows] + (0 if flat else self._takes[False, m.rows])
        return not taken

    def repeats(self, m: Matrix) -> int:
        """How many layers have this shape and, numbers aside, this name."""
        return self._alike[_template(m)]

    def is_last(self, m: Matrix) -> bool:
        """Whether it is the last of a numbered sequence, itself last if it is numbered as well."""
        if not m.path or not m.path[-1].isdigit():
            return False
        return all(
            int(step) == self._highest[m.path[:depth]]
            for depth, step in enumerate(m.path)
            if step.isdigit() and depth in (0, len(m.path) - 1)
        )

    def feeds(self, m: Matrix) -> str | None:
        """The layer beside it that takes its rows, if one does.

        Beside: below the same module or the one above it. Of two numbered siblings the later one
        takes, never the earlier. A square pair takes each other's rows and says nothing.
        """
        mine = opinion(m.path).points
        for depth in (len(m.path) - 1, len(m.path) - 2):
            for other in self._scopes.get((m.path[: max(depth, 0)], m.rows), ()):
                if other is m or _before(other.path, m.path) or depth < 0:
                    continue
                if other.rows == m.width and not _before(m.path, other.path):
                    continue
                theirs = opinion(other.path).points
                # A table has no bias and may have any width; an inner layer comes earlier.
                if theirs < -2 or (theirs < mine - 2 and not self.is_end(other)):
                    continue
                if len(other.path) > len(m.path) and not other.bias:
                    continue
                return other.module
        if m.rows != m.width and len(m.path) > 1 and m.rows in self._norm_scopes[m.path[:-1]]:
            return "a norm beside it"
        return None


def _template(m: Matrix) -> tuple[str, tuple[int, ...]]:
    return re.sub(r"\d+", "#", m.weight.name), m.weight.shape


def _before(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether a comes before b by the number in the first segment that differs: fc1, fc2; 0, 3."""
    for x, y in zip(a, b, strict=False):
        if x != y:
            p, q = (re.fullmatch(r"(.*?)(\d+)", s) for s in (x, y))
            return bool(p and q and p[1] == q[1] and int(p[2]) < int(q[2]))
    return False
