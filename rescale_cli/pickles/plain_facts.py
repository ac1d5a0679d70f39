"""What a pickled checkpoint says about itself in plain values: the name of its network, arguments.

Nothing is imported: an `argparse.Namespace`, a Lightning `AttributeDict` or an OmegaConf node is
read as the dictionary inside it.
"""

from __future__ import annotations

from typing import Any

from rescale_cli.pickles.inert_values import Built
from rescale_cli.pickles.tensor_views import is_tensor

#: Top-level keys under which training programs describe the network; numbers and texts are read
#: under every key.
_DESCRIBES = frozenset({"args", "hyper_parameters", "hparams", "meta", "config", "cfg"})
_MAX_DEPTH = 8
_MAX_VALUES = 20_000
_MAX_TEXT = 1 << 20
_SCALARS = (str, int, float, bool, type(None))


def plain_facts(value: object) -> dict[str, Any]:
    """The top-level entries of a checkpoint that are plain values, read without running anything.

    Args:
        value: what `load_pickle` built.

    Returns:
        numbers and texts under their keys, and nested tables under the keys that describe a
        network (`args`, `hyper_parameters`, `meta` ...). Tensors and unknown objects are None.

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
    """The dictionary, list or value that an object wraps."""
    state = found.state if type(found.state) is dict else {}
    for key in ("_content", "_val"):  # OmegaConf
        if key in state:
            inner = state[key]
            return _inside(inner) if type(inner) is Built else inner
    if found.keyed:
        return {key: value for key, value in found.keyed if type(key) in (str, int)}
    return found.listed or state
