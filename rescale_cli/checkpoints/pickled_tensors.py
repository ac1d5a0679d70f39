"""List the tensors in the value of a pickle by their dotted paths.

Checkpoints may be nested in any way: dictionaries in dictionaries, whole modules, trainers. Every
container is visited once, in the order of the file, and every tensor is listed by its path:
`state_dict.module.fc.weight`, or `model.fc.weight` for a whole module under the key `model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from rescale_cli.checkpoints.pickle_policy import Built, Global, OddKey
from rescale_cli.core.floats import ITEM_SIZES
from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.contents import MAX_DIMS

#: The maximum number of wrappers around one tensor; torch writes one or two.
MAX_WRAPS = 8
_REBUILD = "torch._utils._rebuild_"
#: Calls that return their first argument, perhaps with another Python type.
WRAPPERS = frozenset(
    [f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state", "torch.nn.parameter.Parameter"]
    + ["torch.nn.parameter.Buffer", "torch.jit._pickle.restore_type_tag"]
    + [f"torch.jit._pickle.build_{kind}list" for kind in ("int", "tensor", "double", "bool")]
)
_STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "UntypedStorage": "uint8", "_UntypedStorage": "uint8",
    "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """The meaning of a persistent ID of torch: a run of elements outside the pickle."""

    key: str
    dtype: str
    numel: int
    """Number of elements of the whole run in the file."""
    first: int = 0
    """Where this storage begins in the run, in elements (only pre-1.6 files have such views)."""
    length: int | None = None
    """Number of elements of this storage; None for the whole run."""


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as a strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def span(self) -> tuple[int, int]:
        """Return the first byte of the view and one past the last, from the start of the run.

        Raises:
            ValueError: the view extends beyond its storage.
        """
        item, unit = ITEM_SIZES[self.dtype], ITEM_SIZES[self.storage.dtype]
        length = self.storage.numel if self.storage.length is None else self.storage.length
        base, limit = self.storage.first * unit, length * unit
        start = self.offset * item
        stop = start
        if math.prod(self.shape):
            steps = zip(self.shape, self.strides, strict=True)
            stop += (1 + sum((size - 1) * stride for size, stride in steps)) * item
        if stop > limit or base + limit > self.storage.numel * unit:
            raise ValueError("a view beyond the end of its storage")
        return base + start, base + stop


def storage_of(name: object) -> Storage:
    """Parse torch's persistent ID of a storage: ('storage', type, key, location, numel).

    Raises:
        ValueError: it is not a storage, or its type is unknown.
    """
    if type(name) is not tuple or len(name) < 5 or name[0] not in ("storage", b"storage"):
        raise ValueError("a persistent ID that is not a storage")
    kind, key, numel = name[1], name[2], name[4]
    dtype = _STORAGE_DTYPES.get(kind.name) if type(kind) is Global else None
    if dtype is None or type(key) is not str or type(numel) is not int or numel < 0:
        raise ValueError("a storage of an unknown type")
    return Storage(key, dtype, numel)


def view_of(call: Built) -> View | None:
    """Return the view that one of torch's rebuild functions would create; None if it is not plain.

    Raises:
        IndexError, TypeError, ValueError: the arguments are invalid.
    """
    full, args = call.func.full, call.args
    for _ in range(MAX_WRAPS):
        if full.startswith(
            ("torch._tensor.", "torch.tensor.")
        ):  # _rebuild_from_type(func, type, args)
            if type(args[0]) is not Global or type(args[2]) is not tuple:
                raise TypeError("a tensor of a type without a function")
            full, args = args[0].full, args[2]
        elif full in WRAPPERS and type(args[0]) is Built:
            full, args = args[0].func.full, args[0].args
        else:
            break
    kind = full.removeprefix(_REBUILD)
    if kind not in ("tensor", "tensor_v2", "tensor_v3", "qtensor"):
        return None
    storage, offset, shape, strides = args[:4]
    if type(storage) is not Storage:
        raise TypeError("a tensor without a storage")
    dtype, metadata = storage.dtype, args[6:7]
    if kind == "tensor_v3":
        if type(args[6]) is not Global:
            raise TypeError("a tensor without a dtype")
        dtype, metadata = args[6].name, args[7:8]
    flags = metadata[0] if metadata and kind != "qtensor" else None
    if type(flags) is dict and any(flags.values()):  # conj or neg: the bytes are not the values
        return None
    if dtype not in ITEM_SIZES or storage.dtype not in ITEM_SIZES:
        return None
    view = View(storage, _whole(offset), _sizes(shape), _sizes(strides), dtype)
    if len(view.shape) != len(view.strides):
        raise ValueError("a tensor whose strides do not match its shape")
    return view


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("an offset, size or stride that is not a non-negative integer")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    if type(value) is Built and value.func.full == "torch.Size" and value.args:
        value = value.args[0]
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMS:
        raise TypeError("a shape that is not a tuple, or has too many dimensions")
    return tuple(map(_whole, value))


def is_tensor(full: str) -> bool:
    """Whether a function of that name creates a tensor."""
    return full.startswith((_REBUILD, "torch._tensor._rebuild_from_type")) or (
        full == "torch.tensor._rebuild_from_type"
    )


_MAX_DEPTH = 200
_MAX_NAME = 1000
_MAX_TENSORS = 500_000
_MAX_NAMES = 32_000_000  # characters in all
_INSIDES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """A position in nested containers, linked to the one above, so that deep nesting is cheap."""

    above: Path | None
    key: object
    depth: int

    def name(self) -> str:
        """Join the keys from the top with dots."""
        keys: list[str] = []
        here: Path | None = self
        while here is not None and here.depth:
            keys.append(_as_text(here.key))
            here = here.above
        return ".".join(reversed(keys))


def walk(value: object) -> Iterator[tuple[Path, Any, list[tuple[object, Any]]]]:
    """Yield every container and every tensor with its path and its children, without recursion.

    A container that is reached twice is visited once, and so are its parts: a hundred thousand
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
            if not fresh(found):
                continue
            children = list(_children(found, fresh))
            yield path, found, children
            below = [(Path(path, key, path.depth + 1), child) for key, child in children]
            todo.extend(reversed(below))


def list_views(value: object, path: FilePath) -> list[tuple[str, View]]:
    """Return every tensor of a pickle by name, except sparse, nested and lazily negated ones.

    Raises:
        BadCheckpoint: a tensor is invalid, or there are more than any network has.
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
        while name in views:  # two paths with the same spelling: {"a.b": ..., "a": {"b": ...}}
            base = name.partition("#")[0]
            again[base] = again.get(base, 1) + 1
            name = f"{base}#{again[base]}"
        views[name] = view
    return list(views.items())


def module_classes(value: object) -> dict[str, str]:
    """Return the full class name of each pickled module that has a weight, by module name."""
    return {
        place.name(): found.func.full
        for place, found, children in walk(value)
        if type(found) is Built and any(key == "weight" for key, _ in children)
    }


def bad_tensor(path: FilePath, name: str, saw: str) -> BadCheckpoint:
    """Return the error for a tensor that cannot be where the file says."""
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
    """Yield the children of a container with their keys, skipping a module's own containers."""
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
    """Yield the attributes that an object's state would set, in any of its forms."""
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
    # A lone surrogate is legal only in a pickle. A key that is too long makes the name too long.
    return text[: _MAX_NAME + 1].encode("utf-8", "backslashreplace").decode()
