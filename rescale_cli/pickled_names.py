"""The lists of class names that a pickled checkpoint carries, wherever its author put them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rescale_cli.inert_values import Built
from rescale_cli.pickled_tensors import attributes, walk

_BY_INDEX = (
    "idx_to_class", "index_to_class", "id2label", "id_to_label", "idx2label", "classes", "CLASSES",
    "class_names", "classnames", "names", "labels", "label_names", "class_labels", "target_names",
    "categories", "category_names", "vocab",
)  # fmt: skip
_BY_NAME = ("class_to_idx", "class2idx", "class_to_index", "label2id", "label_to_id")
_KEYS = frozenset(_BY_INDEX + _BY_NAME)
_MOST = 1_000_000


def find_class_names(value: object) -> tuple[tuple[str, ...], ...]:
    """Every list of distinct names under a key that speaks of classes, in row order.

    `{"cat": 0, "dog": 1}` under `class_to_idx`, `{0: "cat", 1: "dog"}` or a list under `names` and
    the like; attributes of a pickled module count as keys.
    """
    found: dict[tuple[str, ...], None] = {}
    for _, container in walk(value):
        for key, candidate in _named(container):
            if type(key) is str and key in _KEYS:
                names = _in_row_order(candidate)
                if names:
                    found[names] = None
    return tuple(found)


def _named(container: Any) -> Iterator[tuple[object, Any]]:
    if type(container) is dict:
        yield from container.items()
    elif type(container) is Built:
        yield from container.keyed
        yield from attributes(container)


def _in_row_order(candidate: Any) -> tuple[str, ...]:
    """The names in a dict or list, or () if it is no list of names."""
    for _ in range(4):  # a list-like object keeps its elements in itself or in `items`
        if type(candidate) is not Built:
            break
        held = dict(attributes(candidate)) if type(candidate.state) is dict else {}
        inner = candidate.listed or dict(candidate.keyed) or held.get("items")
        candidate = inner or held.get("_content") or held.get("_val")
    if type(candidate) is dict and len(candidate) <= _MOST:
        return _of_dict(candidate)
    if type(candidate) in (list, tuple) and len(candidate) <= _MOST:
        return _distinct([_text(one) for one in candidate])
    return ()


def _of_dict(candidate: dict[Any, Any]) -> tuple[str, ...]:
    pairs = [(_index(key), _text(value)) for key, value in candidate.items()]
    if any(index is None for index, _ in pairs):
        pairs = [(_index(value), key) for key, value in candidate.items()]
    rows = {index: name for index, name in pairs if index is not None}
    if len(rows) != len(candidate) or sorted(rows) != list(range(len(rows))):
        return ()
    return _distinct([rows[index] for index in range(len(rows))])


def _index(value: Any) -> int | None:
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if type(value) is int else None


def _text(value: Any) -> object:
    if type(value) is Built and type(value.state) is dict:
        return value.state.get("_val")
    return value


def _distinct(names: list[Any]) -> tuple[str, ...]:
    """The names, if they are texts, at least two, and each is another."""
    if len(names) < 2 or any(type(name) is not str for name in names):
        return ()
    return tuple(names) if len(set(names)) == len(names) else ()
