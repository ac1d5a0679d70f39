"""What shapes say: which matrices a file holds, and whether anything takes their rows as input.

A network is a chain of widths. The rows of an inner layer come again, as the input width of the
next matrix or the length of a norm; the number of classes comes once, at the end.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.finding.head_names import ZERO_SHOT, layer_path, opinion
from rescale_cli.finding.matrices import Matrix, is_integer, matrices

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
