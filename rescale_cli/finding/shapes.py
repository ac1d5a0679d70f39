"""What shapes say: the matrices of a file, which of them feed another, and copies of one model.

A network is a chain of widths. The rows of an inner layer come again, as the input width of the
next matrix or the length of a norm; the number of classes comes once, at the end.
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


#: So many neighbours of a layer are looked at, the last; real networks have a third of it.
_NEIGHBOURS = 64


class Graph:
    """The widths of one model: who has, who takes, who normalises how many."""

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
                # A kernel over at most 4 channels looks at the image, not at the classes.
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
        """How many tensors the layer itself brings to the count of its rows."""
        return 1 + (m.bias is not None) + (m.direction is not None)

    def is_unique(self, m: Matrix) -> bool:
        """Whether no tensor but its own and its siblings' has the row count among its sizes."""
        own = self.own_mentions(m) * (self.repeats(m) if self.is_sibling(m) else 1)
        return self._mentions[m.rows] <= own and m.rows > 1

    def is_sibling(self, m: Matrix) -> bool:
        """Whether it is one of several final layers side by side: `linears.0`, `linears.1`.

        They sound final, or have a bias and a number for a name; they differ in one number only,
        and nothing takes their rows.
        """
        if self.repeats(m) < 2 or m.layout == "conv1x1":
            return False
        said = opinion(m.path).points
        if said <= 0 and not (said >= -2 and m.bias and m.path[-1].isdigit()):
            return False
        return sum(any(c.isdigit() for c in step) for step in m.path) == 1 and self.is_end(m)

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

    def turned(self, k: int | None = None) -> list[Matrix]:
        """Matrices that read as (D, C): their rows are an inner width, their columns come once.

        With the class count k, also those with k columns and another number of rows.
        """
        found = []
        for m in self.matrices:
            if m.bias or m.layout != "linear" or not m.weight.is_contiguous:
                continue
            other = replace(m, layout="transposed", rows=m.width, width=m.rows)
            told = other.rows == k != m.rows and opinion(m.path).points > 0
            inner = self._made[m.rows] > 1 or m.rows == m.width
            if ((self.is_unique(other) and inner) or told) and not self.is_unique(m):
                found.append(other)
        return found

    def is_last(self, m: Matrix) -> bool:
        """Whether it is the last of a numbered sequence, itself last if it is numbered as well."""
        if not m.path or _stem(m.path[-1])[0]:
            return False
        return all(
            0 < _stem(step)[1] == self._highest[m.path[:depth]]
            for depth, step in enumerate(m.path)
            if not _stem(step)[0] and depth in (0, len(m.path) - 1)
        )

    def feeds(self, m: Matrix) -> str | None:
        """The layer beside it that takes its rows, if one does.

        Beside: below the same module or the one above it. Of two numbered siblings the later one
        takes, never the earlier. A square pair takes each other's rows and says nothing.
        """
        mine = opinion(m.path).points
        for depth in range(len(m.path) - 1, max(len(m.path) - 3, -1), -1):
            for other in self._scopes.get((m.path[:depth], m.rows), ()):
                if other is m or _before(other.path, m.path):
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


def upright(tensors: Sequence[TensorInfo]) -> list[Matrix]:
    """All matrices, those that the flow of widths shows to be stored as (D, C) turned.

    Such a head says so without a bias: its first size is the width of other layers, and its second
    is the output of none. It could only be the width of a flattened map, a multiple of another, so
    then it stays as it is.
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
            inner = inner or taken[rows] > 0  # CLIP's own projections are (in, out) as well
        flattened = width > rows and any(width % size == 0 for size in widths)
        if rows < 8 or not inner or made[width] or flattened:
            return m
        return replace(m, layout="transposed", rows=width, width=rows)

    return [turned(m) for m in found]


def _role(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """What the heads of all copies and experts have in common: the last steps and the shape."""
    return re.sub(r"\d+", "#", ".".join(name.split(".")[-3:])), shape


def _template(m: Matrix) -> tuple[str, tuple[int, ...]]:
    return re.sub(r"\d+", "#", m.weight.name), m.weight.shape


def _before(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether a comes before b by the number in the first segment that differs: fc1, fc2; 0, 3."""
    for x, y in zip(a, b, strict=False):
        if x != y:
            (stem, number), (other_stem, other_number) = _stem(x), _stem(y)
            return stem == other_stem and -1 < number < other_number
    return False


@lru_cache(maxsize=65536)
def _stem(segment: str) -> tuple[str, int]:
    """A segment without the number at its end, and the number; -1 if there is none.

    Example:
        >>> _stem("fc12"), _stem("3"), _stem("fc")
        (('fc', 12), ('', 3), ('fc', -1))
    """
    stem = segment.rstrip("0123456789")
    digits = segment[len(stem) :][-18:]  # no layer has a longer one, and a file may
    return stem, int(digits) if digits else -1


def in_model(tensors: Sequence[TensorInfo]) -> list[TensorInfo]:
    """The tensors that are no optimizer state, loss or metric."""
    return [tensor for tensor in tensors if not is_foreign(tensor.name)]


def copies(tensors: Sequence[TensorInfo]) -> tuple[str, ...]:
    """Prefixes below which the file keeps the same whole model, the leading one first.

    Two branches of the tree of names are copies when nearly every tensor of one has its twin, by
    name and shape, in the other, together they are most of the file, and one is called a model or
    a version of it (`ema`, `teacher`, `best`). Of `rgb` and `flow` nothing says so: they may be two
    streams that decide together. Numbered branches are blocks, and a branch with nothing but its
    own weight is a layer: neither are copies.

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
    """Whether the names of two branches say that one holds a version of what the other holds."""
    follows = [bool(FOLLOWERS.search(k.lower()) or VERSIONS & {*words_of(k)}) for k in (key, other)]
    return any(follows) or {key.lower(), other.lower()} <= WRAPPERS


def _is_model(key: str, items: list[tuple[str, tuple[int, ...]]]) -> bool:
    """Whether a branch is more than one layer, or is called a model."""
    named = key.lower() in WRAPPERS or FOLLOWERS.search(key.lower())
    return bool(named) or any("." in name for name, _ in items)


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
