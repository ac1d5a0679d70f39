"""Judge tensors by their shapes: which are matrices, which feed another, which are copies.

A network is a chain of widths. The number of rows of an inner layer appears again, as the input
width of the next matrix or the length of a norm; the number of classes appears once, at the end.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from rescale_cli.files.contents import TensorInfo
from rescale_cli.finding.names import (
    FOLLOWERS,
    VERSIONS,
    WRAPPERS,
    ZERO_SHOT,
    is_foreign,
    layer_path,
    opinion,
    words_of,
)

_WEIGHT_NORM = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)

#: The name of a linear layer's weight in torch, in torch with pruning, and in Flax.
WEIGHTS = ("weight", "weight_orig", "kernel")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A tensor that could be the weight of a linear layer, with its bias."""

    weight: TensorInfo
    bias: TensorInfo | None
    module: str
    path: tuple[str, ...]
    """The segments of the module's name without wrappers."""
    layout: str
    rows: int
    width: int
    direction: TensorInfo | None = None


def matrices(tensors: Sequence[TensorInfo]) -> list[Matrix]:
    """Return the tensors that could be linear layers: (C, D), (C, D, 1, 1), (D, C), weight norm."""
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
        # g scales the rows only with dim=0.
        if direction and _is_linear(direction.shape) and tensor.numel == direction.shape[0]:
            rows, width = direction.shape[:2]
            bias = _vector(by_name.get(module + ".bias"), rows)
            path = layer_path(module)
            return Matrix(tensor, bias, module, path, "weight_norm", rows, width, direction)
    return None


def _is_of_a_norm(name: str, by_name: dict[str, TensorInfo]) -> bool:
    """Whether a tensor is the g or v of a weight norm, or the weight computed from them."""
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
    """Whether it is a buffer of integers; 8-bit integers may be weights."""
    return tensor.dtype in ("int64", "int32", "int16", "bool", "uint64", "uint32", "uint16")


def _is_linear(shape: tuple[int, ...]) -> bool:
    return 2 <= len(shape) <= 5 and all(size == 1 for size in shape[2:]) and min(shape) > 0


def _vector(tensor: TensorInfo | None, length: int) -> TensorInfo | None:
    return tensor if tensor is not None and tensor.shape == (length,) else None


#: How many neighbors of a layer are examined, the last ones; real networks have a third of this.
_NEIGHBOURS = 64


class Graph:
    """The widths of one model: which layers have, take or normalize each of them."""

    def __init__(self, tensors: Sequence[TensorInfo], *, turn: bool = True) -> None:
        self.matrices = upright(tensors) if turn else matrices(tensors)
        biases = {m.bias.name for m in self.matrices if m.bias}
        self._mentions: Counter[int] = Counter()
        self._norms: Counter[int] = Counter()
        self._made: Counter[int] = Counter()
        self._takes: Counter[tuple[bool, int]] = Counter()
        self._alike: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._scopes: dict[tuple[tuple[str, ...], int], deque[Matrix]] = defaultdict(
            lambda: deque(maxlen=_NEIGHBOURS)
        )
        self._norm_scopes: dict[tuple[str, ...], set[int]] = defaultdict(set)
        self._highest: dict[tuple[str, ...], int] = defaultdict(int)
        wide = {m.weight.name: m.width for m in self.matrices}
        for tensor in tensors:
            if is_integer(tensor):
                continue
            self._made[tensor.shape[0] if tensor.shape else 0] += 1
            for size in set(tensor.shape[:2]):
                self._mentions[size] += 1
            if len(tensor.shape) == 1 and tensor.name not in biases:
                if tensor.name.endswith((".weight", ".running_mean")):
                    self._norms[tensor.shape[0]] += 1
                    path = layer_path(tensor.name.rpartition(".")[0])
                    self._norm_scopes[path[:-1]].add(tensor.shape[0])
            elif len(tensor.shape) > 1:
                width = wide.get(tensor.name, tensor.shape[1])
                # A kernel with at most 4 input channels reads the image, not the classes.
                if width > 4 or tensor.numel == tensor.shape[0] * tensor.shape[1]:
                    self._takes[len(tensor.shape) == 2, width] += 1
        for matrix in self.matrices:
            self._alike[_template(matrix)] += 1
            for depth, step in enumerate(matrix.path):
                stem, number = _stem(step)
                if not stem:
                    above = matrix.path[:depth]
                    self._highest[above] = max(self._highest[above], number)
            for depth in range(max(0, len(matrix.path) - 2), len(matrix.path)):
                self._scopes[matrix.path[:depth], matrix.width].append(matrix)

    def own_mentions(self, m: Matrix) -> int:
        """Number of tensors of this layer that have its number of rows as a dimension."""
        return 1 + (m.bias is not None) + (m.direction is not None)

    def is_unique(self, m: Matrix) -> bool:
        """Whether only its own tensors and its siblings' have a dimension of this many rows."""
        own = self.own_mentions(m) * (self.repeats(m) if self.is_sibling(m) else 1)
        return self._mentions[m.rows] <= own and m.rows > 1

    def is_sibling(self, m: Matrix) -> bool:
        """Whether it is one of several parallel final layers: `linears.0`, `linears.1`.

        They are named like final layers, or have a bias and a number as their name; the names
        differ in one number only, and no layer takes their output.
        """
        if self.repeats(m) < 2 or m.layout == "conv1x1":
            return False
        said = opinion(m.path).points
        if said <= 0 and not (said >= -2 and m.bias and m.path[-1].isdigit()):
            return False
        return sum(any(c.isdigit() for c in step) for step in m.path) == 1 and self.is_end(m)

    def is_end(self, m: Matrix) -> bool:
        """Whether no matrix and no norm takes an input of this many rows."""
        if self._norms[m.rows]:
            return False
        flat = len(m.weight.shape) == 2
        taken = self._takes[True, m.rows] + (0 if flat else self._takes[False, m.rows])
        return not taken

    def repeats(self, m: Matrix) -> int:
        """Number of layers with this shape and, apart from numbers, this name."""
        return self._alike[_template(m)]

    def turned(self, k: int | None = None) -> list[Matrix]:
        """Return matrices that could be (D, C): rows of an inner width, a unique number of columns.

        If the number of classes k is given, also those with k columns and not k rows.
        """
        found = []
        for m in self.matrices:
            if m.bias or m.layout != "linear" or not m.weight.is_contiguous:
                continue
            other = replace(m, layout="transposed", rows=m.width, width=m.rows)
            given = other.rows == k != m.rows and opinion(m.path).points > 0
            inner = self._made[m.rows] > 1 or m.rows == m.width
            if ((self.is_unique(other) and inner) or given) and not self.is_unique(m):
                found.append(other)
        return found

    def is_last(self, m: Matrix) -> bool:
        """Whether it is the last layer of a numbered sequence, which itself comes last."""
        if not m.path or _stem(m.path[-1])[0]:
            return False
        return all(
            0 < _stem(step)[1] == self._highest[m.path[:depth]]
            for depth, step in enumerate(m.path)
            if not _stem(step)[0] and depth in (0, len(m.path) - 1)
        )

    def feeds(self, m: Matrix) -> str | None:
        """Return the neighbor that takes its output, if there is one.

        Neighbors are below the same module or the one above it. Of two numbered siblings, only the
        later one can take the other's output. Two layers that could feed each other are ignored.
        """
        mine = opinion(m.path).points
        for depth in range(len(m.path) - 1, max(len(m.path) - 3, -1), -1):
            for other in self._scopes.get((m.path[:depth], m.rows), ()):
                if other is m or _before(other.path, m.path):
                    continue
                if other.rows == m.width and not _before(m.path, other.path):
                    continue
                theirs = opinion(other.path).points
                # Skip tables, which may have any width, and inner layers, which come earlier.
                if theirs < -2 or (theirs < mine - 2 and not self.is_end(other)):
                    continue
                if len(other.path) > len(m.path) and not other.bias:
                    continue
                return other.module
        if m.rows != m.width and len(m.path) > 1 and m.rows in self._norm_scopes[m.path[:-1]]:
            return "a norm beside it"
        return None


def upright(tensors: Sequence[TensorInfo]) -> list[Matrix]:
    """Return all matrices, after transposing those that the widths show to be stored as (D, C).

    Without a bias, such a head is recognized by its shape: its first size is the width of other
    layers, and its second is the output of no layer. If the second could be the width of a
    flattened map, that is, a multiple of another width, the matrix is not transposed.
    """
    found = matrices(tensors)
    made: Counter[int] = Counter()
    alike: Counter[tuple[str, tuple[int, ...]]] = Counter(_role(t.name, t.shape) for t in tensors)
    for tensor in tensors:
        if tensor.shape and not is_integer(tensor):
            made[tensor.shape[0]] += 1
    taken = Counter(t.shape[1] for t in tensors if len(t.shape) == 2)
    widths = [size for size in made if size >= 16]

    def turned(m: Matrix) -> Matrix:
        rows, width = m.rows, m.width
        if m.bias or m.layout != "linear" or len(m.weight.shape) != 2 or width < 2:
            return m
        if not m.weight.is_contiguous or opinion(m.path).points <= 0:
            return m
        inner = made[rows] > alike[_role(m.weight.name, m.weight.shape)]
        if ZERO_SHOT.fullmatch(m.path[-1]):
            inner = inner or taken[rows] > 0  # CLIP's own projections are (in, out) too
        flattened = width > rows and any(width % size == 0 for size in widths)
        if rows < 8 or not inner or made[width] or flattened:
            return m
        return replace(m, layout="transposed", rows=width, width=rows)

    return [turned(m) for m in found]


def _role(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """The last segments without numbers, and the shape; equal for copies and for experts."""
    return re.sub(r"\d+", "#", ".".join(name.split(".")[-3:])), shape


def _template(m: Matrix) -> tuple[str, tuple[int, ...]]:
    return re.sub(r"\d+", "#", m.weight.name), m.weight.shape


def _before(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether a comes before b by the number in the first segment that differs: fc1 before fc2."""
    for x, y in zip(a, b, strict=False):
        if x != y:
            (stem, number), (other_stem, other_number) = _stem(x), _stem(y)
            return stem == other_stem and -1 < number < other_number
    return False


@lru_cache(maxsize=65536)
def _stem(segment: str) -> tuple[str, int]:
    """Split a segment into its stem and the number at its end, -1 without a number.

    Example:
        >>> _stem("fc12"), _stem("3"), _stem("fc")
        (('fc', 12), ('', 3), ('fc', -1))
    """
    stem = segment.rstrip("0123456789")
    digits = segment[len(stem) :][-18:]  # a hostile file may contain a very long number
    return stem, int(digits) if digits else -1


def in_model(tensors: Sequence[TensorInfo]) -> list[TensorInfo]:
    """Return the tensors that do not belong to an optimizer, a loss or a metric."""
    return [tensor for tensor in tensors if not is_foreign(tensor.name)]


def copies(tensors: Sequence[TensorInfo]) -> tuple[str, ...]:
    """Return the prefixes of the copies of one model in the file, the leading copy first.

    Two branches of the tree of names are copies if at least 80 % of their tensors agree in name
    and shape, they make up most of the file, and one is named as a model or a version of it
    (`ema`, `teacher`, `best`). `rgb` and `flow` are not: they may be two streams whose logits the
    model combines. Numbered branches are blocks, and a branch with only a weight is a layer.

    Returns:
        at least two prefixes, each ending in a dot, or () if there is only one model.
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
        keys = [key for key in big if not key.isdigit() and _is_model(key, branches[key])]
        for i, key in enumerate(keys):
            mine = set(big[key][1])
            twins = [
                other for other in keys[i + 1 :]
                if _is_version(key, other)
                and len(mine & set(big[other][1])) >= 0.8 * max(len(mine), len(big[other][1]))
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


def _is_version(key: str, other: str) -> bool:
    """Whether the names of two branches show that one is a version of the other."""
    follows = [bool(FOLLOWERS.search(k.lower()) or VERSIONS & {*words_of(k)}) for k in (key, other)]
    return any(follows) or {key.lower(), other.lower()} <= WRAPPERS


def _is_model(key: str, items: list[tuple[str, tuple[int, ...]]]) -> bool:
    """Whether a branch has more than one layer, or is named as a model."""
    named = key.lower() in WRAPPERS or FOLLOWERS.search(key.lower())
    return bool(named) or any("." in name for name, _ in items)


def _descend(
    items: list[tuple[str, tuple[int, ...]]],
) -> tuple[str, list[tuple[str, tuple[int, ...]]]]:
    """Split off the segments that all names share, such as `module.` of a wrapped model."""
    prefix = ""
    while True:
        heads = {name.partition(".")[0] for name, _ in items}
        if len(heads) != 1 or any("." not in name for name, _ in items):
            return prefix, items
        head = heads.pop()
        prefix += head + "."
        items = [(name[len(head) + 1 :], shape) for name, shape in items]
