"""Torch's pickled tensors: a storage by its key, and a view into it by offset, shape, strides."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rescale_cli.core.tensor_info import ITEM_SIZES, MAX_DIMS
from rescale_cli.pickles.inert_values import Built
from rescale_cli.pickles.pickle_policy import Global

#: So many wrappers around one tensor are looked through; torch writes one or two.
MAX_WRAPS = 8
_REBUILD = "torch._utils._rebuild_"
#: Calls that give their first argument, perhaps with another Python type.
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
    """What a persistent id of torch stands for: a run of elements outside the pickle."""

    key: str
    dtype: str
    numel: int
    """Of the whole run in the file."""
    first: int = 0
    """Where this storage begins in the run, in elements (only pre-1.6 files have such views)."""
    length: int | None = None
    """How many elements of the run it has; all if None."""


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: some elements of a storage, with strides."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def span(self) -> tuple[int, int]:
        """First and one past the last byte that the view touches, from the start of the run.

        Raises:
            ValueError: it reaches beyond its storage.
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
    """The storage that torch's persistent id names: ('storage', type, key, location, numel).

    Raises:
        ValueError: it is none, or of a type that torch does not have.
    """
    if type(name) is not tuple or len(name) < 5 or name[0] not in ("storage", b"storage"):
        raise ValueError("a persistent id that is no storage")
    kind, key, numel = name[1], name[2], name[4]
    dtype = _STORAGE_DTYPES.get(kind.name) if type(kind) is Global else None
    if dtype is None or type(key) is not str or type(numel) is not int or numel < 0:
        raise ValueError("a storage of an unknown type")
    return Storage(key, dtype, numel)


def view_of(call: Built) -> View | None:
    """The view that one of torch's rebuild functions would have made, if it is a plain one.

    Raises:
        IndexError, TypeError, ValueError: its arguments make no tensor.
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
        raise ValueError("an offset, size or stride that is no natural number")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    if type(value) is Built and value.func.full == "torch.Size" and value.args:
        value = value.args[0]
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMS:
        raise TypeError("a shape that is no tuple, or a long one")
    return tuple(map(_whole, value))


def is_tensor(full: str) -> bool:
    """Whether a function of that name makes a tensor."""
    return full.startswith((_REBUILD, "torch._tensor._rebuild_from_type")) or (
        full == "torch.tensor._rebuild_from_type"
    )
