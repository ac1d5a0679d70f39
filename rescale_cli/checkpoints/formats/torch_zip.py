"""Read zip files of torch.save and TorchScript: a pickle, and one record per storage."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rescale_cli.checkpoints.partial_models import refuse_training_state
from rescale_cli.checkpoints.pickle_machine import Loaded, load_pickle
from rescale_cli.checkpoints.pickle_policy import is_ordinary
from rescale_cli.checkpoints.pickled_facts import find_class_names, find_tool, plain_facts
from rescale_cli.checkpoints.pickled_tensors import (
    View,
    bad_tensor,
    list_views,
    module_classes,
    storage_of,
)
from rescale_cli.core.floats import ITEM_SIZES
from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.contents import Contents, TensorInfo
from rescale_cli.files.reading import opened, read_at
from rescale_cli.files.zip_table import (
    ZipTable,
    list_names,
    read_record,
    read_zip_table,
    stored_entry,
)

NAME = "torch zip"

_MAX_PICKLE = 1 << 30
_FIRST = re.compile(rb"[^/]+/(data\.pkl|data/\d+|constants/\d+|byteorder|version|\.format_version)")


def matches(path: Path) -> bool:
    """Whether the file is a zip with `<folder>/data.pkl`, perhaps truncated."""
    if not path.is_file():
        return False
    with opened(path) as fd:
        head = read_at(fd, 0, min(4096, path.stat().st_size))
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        return bool(_roots(list_names(path)))
    except BadCheckpoint:
        # Claimed anyway, so that the error describes the damage.
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return _FIRST.fullmatch(name) is not None


def is_exported(path: Path) -> bool:
    """Whether a file is an archive of torch.export, which is also a zip."""
    with opened(path) as fd:
        if path.stat().st_size < 4 or read_at(fd, 0, 4) != b"PK\x03\x04":
            return False
    try:
        return any(name.endswith("/archive_format") for name in list_names(path))
    except BadCheckpoint:
        return False  # damaged; opening it reports the damage


def list_tensors(path: Path, accept: frozenset[str] = frozenset()) -> Contents:
    """Read the zip's directory and its pickles, without reading storages or running code.

    Raises:
        BadCheckpoint: the archive, a pickle or the place of a tensor is invalid.
        UnsafePickle: a pickle calls or names something that no checkpoint needs and `accept` lacks.
    """
    table = read_zip_table(path)
    roots = _roots(table.entries)
    if len(roots) != 1:
        raise BadCheckpoint(
            f"{path.name} contains {len(roots)} pickles that could be the checkpoint",
            saw=", ".join(f"{root}/data.pkl" for root in roots) or "no data.pkl",
            fix="save the model again with torch.save",
        )
    root = roots[0]
    script = f"{root}/constants.pkl" in table.entries
    order = _byteorder(table, root)
    loaded = _load(table, f"{root}/data.pkl", accept)
    refuse_training_state(loaded.value, loaded.named, path)
    tensors = _place(list_views(loaded.value, path), table, f"{root}/data/", order)
    named = set(loaded.named)
    if script:
        constants = _load(table, f"{root}/constants.pkl", accept)
        views = [(f"constants.{name}", view) for name, view in list_views(constants.value, path)]
        tensors += _place(views, table, f"{root}/constants/", order)
        named |= constants.named
    return Contents(
        format="torchscript" if script else "torch-zip",
        tensors=tuple(tensors),
        files=(path,),
        class_names=find_class_names(loaded.value),
        module_classes=module_classes(loaded.value),
        facts=plain_facts(loaded.value),
        tool=find_tool(loaded.value),
        globals=tuple(sorted(name for name in named if not is_ordinary(name))),
        checksums=table.checksums(),
    )


def _roots(names: Iterable[str]) -> list[str]:
    parts = [name.split("/") for name in names if name.endswith("/data.pkl")]
    return [folder for folder, *rest in parts if len(rest) == 1]


def _byteorder(table: ZipTable, root: str) -> str:
    name = f"{root}/byteorder"
    if name not in table.entries:
        return "little"
    order = read_record(table, name, 16)
    if order not in (b"little", b"big"):
        raise BadCheckpoint(
            f"{table.path.name} has an unknown byte order",
            saw=f"{order!r} in {name}",
            fix="fetch the file again",
        )
    return order.decode()


def _load(table: ZipTable, name: str, accept: frozenset[str]) -> Loaded:
    data = read_record(table, name, _MAX_PICKLE)
    loaded = load_pickle(data, persistent=storage_of, accept=accept, what=name)
    if loaded.stop != len(data):
        raise BadCheckpoint(
            f"{name} contains more than one pickle",
            saw=f"{len(data) - loaded.stop} bytes after its end",
            fix="fetch the file again, or save it again with torch.save",
        )
    return loaded


def _place(
    views: list[tuple[str, View]], table: ZipTable, folder: str, order: str
) -> list[TensorInfo]:
    """Convert each view to bytes of the file, and check that they are inside its record."""
    placed = []
    for name, view in views:
        entry = stored_entry(table, folder + view.storage.key)
        size = view.storage.numel * ITEM_SIZES[view.storage.dtype]
        if entry.stop - entry.start != size:
            saw = f"{entry.name} has {entry.stop - entry.start:,} bytes, the pickle says {size:,}"
            raise bad_tensor(table.path, name, saw)
        try:
            start, stop = view.span()
        except ValueError as error:
            raise bad_tensor(table.path, name, str(error)) from None
        start, stop = entry.start + start, entry.start + stop
        placed.append(
            TensorInfo(name, view.shape, view.strides, view.dtype, table.path, start, stop, order)
        )
    return placed
