"""Read files of torch.save before 1.6: five pickles, then the raw bytes of the storages.

Big-endian machines note their byte order in `sys_info`, but torch has always written the storages
as little-endian (`THPStorage_writeFileRaw`) and ignores that entry when reading, as we do here.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rescale_cli.checkpoints.partial_models import refuse_training_state
from rescale_cli.checkpoints.pickle_machine import load_pickle
from rescale_cli.checkpoints.pickle_policy import Global, is_ordinary
from rescale_cli.checkpoints.pickled_facts import find_class_names, find_tool, plain_facts
from rescale_cli.checkpoints.pickled_tensors import (
    Storage,
    View,
    bad_tensor,
    list_views,
    module_classes,
    storage_of,
)
from rescale_cli.core.floats import ITEM_SIZES
from rescale_cli.errors import BadCheckpoint, UnsafePickle
from rescale_cli.files.contents import Contents, TensorInfo
from rescale_cli.files.reading import opened, read_at

NAME = "torch legacy (before 1.6)"

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_PICKLE = 1 << 30


def matches(path: Path) -> bool:
    """Whether the file begins with the pickled magic number."""
    if not path.is_file():
        return False
    with opened(path) as fd:
        head = read_at(fd, 0, min(64, os.fstat(fd).st_size))
    try:
        return bool(load_pickle(head).value == _MAGIC)
    except (BadCheckpoint, UnsafePickle):
        return False


def list_tensors(path: Path, accept: frozenset[str] = frozenset()) -> Contents:
    """Read the pickles and each storage's length, without reading storages or running code.

    Raises:
        BadCheckpoint: the pickles or the storages after them are damaged.
        UnsafePickle: a pickle calls or names something that no checkpoint needs and `accept` lacks.
    """
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        if not size:
            raise _bad(path, "it is empty")
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
            pickles = _read_pickles(data, accept, path)
        refuse_training_state(pickles.value, pickles.named, path)
        views = list_views(pickles.value, path)
        starts = _find_storages(fd, size, pickles, path)
    tensors = [_placed(path, name, view, starts) for name, view in views]
    return Contents(
        format="torch-legacy",
        tensors=tuple(tensors),
        files=(path,),
        class_names=find_class_names(pickles.value),
        module_classes=module_classes(pickles.value),
        facts=plain_facts(pickles.value),
        tool=find_tool(pickles.value),
        globals=tuple(sorted(name for name in pickles.named if not is_ordinary(name))),
    )


@dataclass(frozen=True, slots=True)
class _Pickles:
    """The contents of the five pickles."""

    value: Any
    keys: list[str]
    storages: dict[str, Storage]
    named: frozenset[str]
    stop: int


def _bad(path: Path, saw: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path.name} is a damaged file of torch.save",
        saw=saw,
        fix="fetch the file again, or save it again",
    )


def _read_pickles(data: mmap.mmap, accept: frozenset[str], path: Path) -> _Pickles:
    storages: dict[str, Storage] = {}
    end = min(len(data), _MAX_PICKLE)
    at, values, named = 0, [], frozenset[str]()
    for what in ("magic number", "protocol", "system", "checkpoint", "list of storages"):
        loaded = load_pickle(
            data,
            at,
            stop=end,
            persistent=(lambda name: _persistent(name, storages)) if what == "checkpoint" else None,
            accept=accept,
            what=f"the {what} of {path.name}",
        )
        at = loaded.stop
        values.append(loaded.value)
        named |= loaded.named
    magic, protocol, system, value, keys = values
    if magic != _MAGIC or protocol != _PROTOCOL or type(system) is not dict:
        raise _bad(path, "its header is not that of torch.save")
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise _bad(path, "its list of storages is not a list of strings")
    return _Pickles(value, keys, storages, named, at)


def _persistent(name: object, storages: dict[str, Storage]) -> object:
    """Convert a persistent ID: a storage, or the class of a module."""
    if type(name) is tuple and name and name[0] == "module":
        if len(name) != 4 or type(name[1]) is not Global:
            raise ValueError("a module without a class")
        return name[1]
    storage = storage_of(name)
    if storages.setdefault(storage.key, storage) != storage:
        raise ValueError(f"two storages are named {storage.key[:40]!r}")
    view = name[5] if type(name) is tuple and len(name) > 5 else None
    if view is None:
        return storage
    _, first, length = view
    if type(first) is not int or type(length) is not int or first < 0 or length < 0:
        raise ValueError("a view of a storage with invalid bounds")
    return replace(storage, first=first, length=length)


def _find_storages(fd: int, size: int, pickles: _Pickles, path: Path) -> dict[str, int]:
    """Return where each storage begins; together they must fill the file."""
    starts: dict[str, int] = {}
    at = pickles.stop
    for key in pickles.keys:
        storage = pickles.storages.get(key)
        if storage is None or key in starts or storage.dtype not in ITEM_SIZES:
            raise _bad(path, f"{key[:40]!r} in its list of storages is unknown or a duplicate")
        if at + 8 > size:
            raise _bad(path, f"it ends before storage {key[:40]}: it is truncated")
        numel = int.from_bytes(read_at(fd, at, 8), "little", signed=True)
        starts[key] = at + 8
        at += 8 + storage.numel * ITEM_SIZES[storage.dtype]
        if numel != storage.numel:
            raise _bad(path, f"storage {key[:40]} has {numel} elements, not {storage.numel}")
        if at > size:
            raise _bad(path, f"it ends inside storage {key[:40]}: it is truncated")
    if at != size:
        raise _bad(path, f"{size - at:,} bytes after its last storage")
    return starts


def _placed(path: Path, name: str, view: View, starts: dict[str, int]) -> TensorInfo:
    if view.storage.key not in starts:
        raise bad_tensor(path, name, "its storage is not in the file")
    try:
        start, stop = view.span()
    except ValueError as error:
        raise bad_tensor(path, name, str(error)) from None
    base = starts[view.storage.key]
    return TensorInfo(name, view.shape, view.strides, view.dtype, path, base + start, base + stop)
