"""One model or several in a file: beside it an average, a teacher, a momentum copy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.finding.head_names import FOLLOWERS, VERSIONS, WRAPPERS, is_foreign, words_of


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
