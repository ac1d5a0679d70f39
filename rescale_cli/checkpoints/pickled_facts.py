"""Extract plain facts from a pickled checkpoint: class names, the network, the library.

Nothing is imported: an `argparse.Namespace`, a Lightning `AttributeDict` or an OmegaConf node is
read as the dictionary inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rescale_cli.checkpoints.pickle_policy import Built
from rescale_cli.checkpoints.pickled_tensors import is_tensor, walk

#: Top-level keys whose tables describe the network; numbers and texts are read under any key.
_DESCRIBES = frozenset({"args", "hyper_parameters", "hparams", "meta", "config", "cfg"})
_MAX_DEPTH = 8
_MAX_VALUES = 20_000
_MAX_TEXT = 1 << 20
_SCALARS = (str, int, float, bool, type(None))


def plain_facts(value: object) -> dict[str, Any]:
    """Return the top-level entries of a checkpoint that are plain values.

    Args:
        value: the value from `load_pickle`.

    Returns:
        numbers and texts by key, and nested tables for the keys that describe a network (`args`,
        `hyper_parameters`, `meta` ...). Tensors and unknown objects are None.

    Example:
        >>> plain_facts({"arch": "resnet18", "epoch": 3, "state_dict": {"fc.bias": 1.0}})
        {'arch': 'resnet18', 'epoch': 3}
    """
    left = [_MAX_VALUES]
    items = value.items() if type(value) is dict else ()
    return {
        key: _plain(entry, 0, left)
        for key, entry in items
        if type(key) is str and (key in _DESCRIBES or type(entry) in _SCALARS)
    }


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if depth > _MAX_DEPTH or left[0] < 0:
        return None
    if type(value) is Built:
        value = None if is_tensor(value.func.full) else _inside(value)
    if type(value) is dict:
        pairs = ((key, entry) for key, entry in value.items() if type(key) in (str, int))
        return {str(key): _plain(entry, depth + 1, left) for key, entry in pairs if left[0] > 0}
    if type(value) in (list, tuple):
        return [_plain(entry, depth + 1, left) for entry in value[: max(left[0], 0)]]
    if type(value) is str:
        return value[:_MAX_TEXT]
    return value if type(value) in _SCALARS else None


def _inside(found: Built) -> Any:
    """Return the dictionary, list or value that an object wraps."""
    state = found.state if type(found.state) is dict else {}
    for key in ("_content", "_val"):  # OmegaConf
        if key in state:
            inner = state[key]
            return _inside(inner) if type(inner) is Built else inner
    if found.keyed:
        return {key: value for key, value in found.keyed if type(key) in (str, int)}
    return found.listed or state


_BY_INDEX = (
    "idx_to_class", "index_to_class", "id2label", "id_to_label", "idx2label", "classes", "CLASSES",
    "class_names", "classnames", "names", "labels", "label_names", "class_labels", "target_names",
    "categories", "category_names", "vocab",
)  # fmt: skip
_BY_NAME = ("class_to_idx", "class2idx", "class_to_index", "label2id", "label_to_id")
_KEYS = frozenset(_BY_INDEX + _BY_NAME)
_MOST = 1_000_000


def find_class_names(value: object) -> tuple[tuple[str, ...], ...]:
    """Return every list of distinct names under a key for class names, in row order.

    Examples are `{"cat": 0, "dog": 1}` under `class_to_idx`, and `{0: "cat", 1: "dog"}` or a list
    under `names`; attributes of a pickled module count as keys.
    """
    found: dict[tuple[str, ...], None] = {}
    seen: set[int] = set()  # a list that a thousand keys share is read once
    for _, _, children in walk(value):
        for key, candidate in children:
            if type(key) is str and key in _KEYS:
                inner = _elements_of(candidate)
                if not {id(candidate), id(inner)} & seen:
                    seen |= {id(candidate), id(inner)}
                    found[_in_row_order(inner)] = None
    found.pop((), None)
    return tuple(found)


def find_tool(value: object) -> str:
    """Return the library that trained a checkpoint, from its `args`: timm, torchvision, or "".

    The training scripts save their argparse.Namespace. The library determines how class folders
    were sorted: by timm's reader, or by ImageFolder, as in torchvision's references and DeiT.
    """
    args = value.get("args") if type(value) is dict else None
    state = args.state if type(args) is Built else args
    if type(state) is not dict:
        return ""
    if "data_dir" in state and "class_map" in state:
        kind = str(state.get("dataset") or "")
        if kind in ("torch/folder", "torch/image_folder"):
            return "torchvision"
        return "" if state["class_map"] or "/" in kind else "timm"
    folder = "data_path" in state and "model" in state
    return "torchvision" if folder and state.get("data_set", "IMNET") == "IMNET" else ""


def _elements_of(candidate: Any) -> Any:
    """Return the dict or list in an object: its own elements, or those in `items` and the like."""
    for _ in range(4):
        if type(candidate) is not Built:
            break
        state = candidate.state if type(candidate.state) is dict else {}
        inside = (state.get(key) for key in ("items", "_content", "_val"))
        own = candidate.listed or candidate.keyed
        candidate = own or next((one for one in inside if one is not None), None)
    return candidate


def _in_row_order(candidate: Any) -> tuple[str, ...]:
    """Return the names in a dict, in pairs or in a list; () if these are not class names."""
    if type(candidate) not in (dict, list, tuple) or not 1 < len(candidate) <= _MOST:
        return ()
    if type(candidate) is dict:
        return _of_pairs(list(candidate.items()))
    if type(candidate[0]) is tuple and all(type(p) is tuple and len(p) == 2 for p in candidate):
        return _of_pairs(candidate)
    return _distinct([_text(one) for one in candidate])


def _of_pairs(candidate: Sequence[Any]) -> tuple[str, ...]:
    pairs = [(_index(key), _text(value)) for key, value in candidate]
    if any(index is None for index, _ in pairs):
        pairs = [(_index(value), key) for key, value in candidate]
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
    """Return the names if they are at least two distinct texts, otherwise ()."""
    if len(names) < 2 or any(type(name) is not str for name in names):
        return ()
    return tuple(names) if len(set(names)) == len(names) else ()
