"""From the inert value of a pickle to the tensors in it, by dotted path.

Checkpoints nest as their authors liked: dictionaries in dictionaries, whole modules, trainers.
Every container is walked once, in the order of the file, and every tensor on the way is listed:
`state_dict.module.fc.weight`, or `model.fc.weight` for a whole module under the key `model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from rescale_cli.errors import BadCheckpoint
from rescale_cli.pickles.inert_values import Built, OddKey
from rescale_cli.pickles.tensor_views import MAX_WRAPS, WRAPPERS, View, is_tensor, view_of

_MAX_DEPTH = 200
_MAX_NAME = 1000
_MAX_TENSORS = 500_000
_MAX_NAMES = 32_000_000  # characters in all
_INSIDES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """A place in nested containers, as a link to the place above, so that depth costs nothing."""

    above: Path | None
    key: object
    depth: int

    def name(self) -> str:
        """The keys from the top, joined by dots."""
        keys: list[str] = []
        here: Path | None = self
        while here is not None and here.depth:
            keys.append(_as_text(here.key))
            here = here.above
        return ".".join(reversed(keys))


def walk(value: object) -> Iterator[tuple[Path, Any, list[tuple[object, Any]]]]:
    """Every container and every tensor with its path and what it holds, without recursion.

    A container that is reached twice is entered once, and so are its parts: a hundred thousand
    objects may share one state of a hundred thousand entries.
    """
    seen: set[int] = set()

    def fresh(part: object) -> bool:
        known = id(part) in seen
        seen.add(id(part))
        return not known

    todo: list[tuple[Path, Any]] = [(Path(None, "", 0), value)]
    while todo:
        path, found = todo.pop()
        found = _unwrapped(found)
        if type(found) is Built and is_tensor(found.func.full):
            yield path, found, []
        elif type(found) in (dict, list, tuple, Built) and path.depth <= _MAX_DEPTH:
            if not fresh(found):  # deeper is a linked list of objects, no checkpoint's nesting
                continue
            children = list(_children(found, fresh))
            yield path, found, children
            below = [(Path(path, key, path.depth + 1), child) for key, child in children]
            todo.extend(reversed(below))


def list_views(value: object, path: FilePath) -> list[tuple[str, View]]:
    """Every tensor of a pickle by its name; sparse, nested and lazily negated ones are left out.

    Raises:
        BadCheckpoint: a tensor whose parts make no tensor, or more of them than any network has.
    """
    views: dict[str, View] = {}
    again: dict[str, int] = {}
    length = 0
    for place, found, _ in walk(value):
        if type(found) is not Built or not is_tensor(found.func.full):
            continue
        name = place.name() or "tensor"
        length += len(name)
        try:
            view = view_of(found)
        except (IndexError, TypeError, ValueError) as error:
            raise bad_tensor(path, name, str(error)) from None
        if view is None:
            continue
        if len(views) >= _MAX_TENSORS or len(name) > _MAX_NAME or length > _MAX_NAMES:
            saw = f"tensor number {len(views):,}, a name of {len(name):,} characters"
            raise bad_tensor(path, name, saw)
        while name in views:  # two paths that are spelled alike: {"a.b": ..., "a": {"b": ...}}
            base = name.partition("#")[0]
            again[base] = again.get(base, 1) + 1
            name = f"{base}#{again[base]}"
        views[name] = view
    return list(views.items())


def module_classes(value: object) -> dict[str, str]:
    """The full class name of every pickled module that has a weight of its own, by its name."""
    return {
        place.name(): found.func.full
        for place, found, children in walk(value)
        if type(found) is Built and any(key == "weight" for key, _ in children)
    }


def bad_tensor(path: FilePath, name: str, saw: str) -> BadCheckpoint:
    """The error for a tensor that cannot be where the file says it is."""
    return BadCheckpoint(
        f"{path.name} contains an invalid tensor: {ascii(name[:200])[1:-1]}",
        saw=saw,
        fix="fetch the file again, or save it again with torch.save",
    )


def _unwrapped(found: Any) -> Any:
    for _ in range(MAX_WRAPS):
        if type(found) is Built and found.func.full in WRAPPERS and found.args:
            found = found.args[0]
    return found


def _children(found: Any, fresh: Callable[[object], bool]) -> Iterator[tuple[object, Any]]:
    """What a container holds, each with its key; a module's own containers are seen through."""
    if type(found) is dict:
        yield from found.items()
    elif type(found) in (list, tuple):
        yield from enumerate(found)
    else:
        if fresh(found.args):
            yield from enumerate(found.args)
        if type(found.kwargs) is dict and fresh(found.kwargs):
            yield from found.kwargs.items()
        yield from enumerate(found.listed)
        yield from found.keyed
        for key, value in _attributes(found.state, fresh):
            if key not in _INSIDES or type(value) is not dict:
                yield key, value
            elif fresh(value):
                yield from value.items()


def _attributes(state: Any, fresh: Callable[[object], bool]) -> Iterator[tuple[object, Any]]:
    """The attributes that an object's state would set, whichever way it is written."""
    with_slots = type(state) is tuple and len(state) == 2 and type(state[1]) is dict
    for part in state if with_slots else (state,):
        if type(part) is dict and fresh(part):
            yield from part.items()
        elif type(part) in (list, tuple) and fresh(part):
            yield from enumerate(part)
        elif type(part) is Built:
            yield "state", part


def _as_text(key: object) -> str:
    if isinstance(key, OddKey):
        parts = key.value if type(key.value) is tuple and len(key.value) < 10 else ()
        texts = [str(part)[:_MAX_NAME] for part in parts if type(part) in (str, bool)]
        return ",".join(texts) or "?"
    text = key.decode("latin-1") if type(key) is bytes else str(key)
    # A lone surrogate is legal in a pickle and nowhere else. A key too long makes a name too long.
    return text[: _MAX_NAME + 1].encode("utf-8", "backslashreplace").decode()
