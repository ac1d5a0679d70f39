"""Reads a .pt2 archive of torch.export: its graph as JSON, its tensors as ranges of bytes.

torch's own reader unpickles several records, evaluates strings of the graph (symbolic sizes,
guards) and looks up operators by any dotted name. Here, only the records of an allow-list are read,
and each is checked; an archive with any other record is refused. Nothing is unpickled.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rescale_cli.checkpoints.formats import torch_zip
from rescale_cli.core.floats import ITEM_SIZES
from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.contents import MAX_DIMS, TensorInfo
from rescale_cli.files.zip_table import ZipTable, read_record, read_zip_table, stored_entry
from rescale_cli.json_text import clip, parse_json

EXPORT = "export it again: torch.export.save(torch.export.export(model, ...), 'model.pt2')"

_GRAPH = "models/model.json"
_WEIGHTS = "data/weights/model_weights_config.json"
_CONSTANTS = "data/constants/model_constants_config.json"
_INPUTS = "data/sample_inputs/model.pt"

#: Short records with the only content that is accepted, and records that do not affect the model.
_FIXED = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_IDLE = {".data/version", ".data/serialization_id", ".storage_alignment", ".format_version"}
#: Files that were passed to torch.export.save(extra_files=...). They are never read.
_EXTRA = "extra/"

_MAX_JSON, _MAX_VALUES, _MAX_INPUTS = 64 << 20, 3_000_000, 512 << 20

#: torch._export.serde.schema.ScalarType.
SCALAR_TYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
    8: "float64", 9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16",
    28: "uint16", 29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
_STRIDED = 7


@dataclass(frozen=True, slots=True)
class ExportArchive:
    """What an archive holds: a graph as plain JSON, and tensors as ranges of bytes."""

    path: Path
    graph: Mapping[str, Any]
    """`graph_module` of the program."""
    weights: Mapping[str, TensorInfo]
    """Parameters and buffers, by full name."""
    constants: Mapping[str, TensorInfo]


def read_export_archive(path: Path) -> ExportArchive:
    """Read and check every record of the model; refuse an archive with an unknown record.

    Raises:
        BadCheckpoint: the archive is damaged, or has an unknown record, entry or value.
        UnsafePickle: the pickle of the example inputs calls or names what no checkpoint needs.
    """
    table = read_zip_table(path)
    root = _root_of(table)
    for name, content in _FIXED.items():
        if read_record(table, root + name, 64) != content:
            _refuse(path, root + name, f"a value other than {content!r}")
    weights = _payloads(table, root + _WEIGHTS, "weight_")
    constants = _payloads(table, root + _CONSTANTS, "tensor_")
    known = {root + name for name in (*_FIXED, *_IDLE, _GRAPH, _WEIGHTS, _CONSTANTS, _INPUTS)}
    known |= {record for record, _ in (*weights.values(), *constants.values())}
    for name in table.entries:
        if "/data/aotinductor/" in name:
            saw = clip(name)
            raise BadCheckpoint(f"{path.name} is compiled for one machine", saw=saw, fix=EXPORT)
        if name not in known and not name.startswith(root + _EXTRA):
            _refuse(path, name, "a record that this tool does not read")
    _check_inputs(table, root + _INPUTS)
    return ExportArchive(
        path,
        member(_json(table, root + _GRAPH), "graph_module", dict, path),
        {name: _place(table, name, *payload) for name, payload in weights.items()},
        {name: _place(table, name, *payload) for name, payload in constants.items()},
    )


def member(table: Any, key: str, kind: type, path: Path) -> Any:
    """The value of a key, which must exist and have exactly that type.

    Raises:
        BadCheckpoint: it does not exist, or has another type.
    """
    if type(table) is not dict or type(table.get(key)) is not kind:
        _refuse(path, _GRAPH, f"{key!r} is missing, or not of the type {kind.__name__}")
    return table[key]


def _refuse(path: Path, name: str, saw: str) -> NoReturn:
    raise BadCheckpoint(
        f"{path.name} is not an archive that torch.export.save writes for a plain model",
        saw=clip(f"{name}: {saw}", 300),
        fix=EXPORT,
    )


def _root_of(table: ZipTable) -> str:
    """The folder that holds all records, with a trailing slash."""
    roots = {name.partition("/")[0] + "/" for name in table.entries}
    if len(roots) != 1:
        _refuse(table.path, ", ".join(sorted(roots)[:3]), "records in several folders")
    return roots.pop()


def _json(table: ZipTable, name: str) -> Any:
    data = read_record(table, name, _MAX_JSON)
    return parse_json(data, name, BadCheckpoint, _MAX_VALUES)


def _payloads(table: ZipTable, name: str, prefix: str) -> dict[str, tuple[str, Any]]:
    """The record and the description of each tensor in a table of weights or of constants."""
    folder, found = name.rpartition("/")[0], {}
    for key, entry in member(_json(table, name), "config", dict, table.path).items():
        file = member(entry, "path_name", str, table.path)
        if not re.fullmatch(rf"{prefix}[0-9]{{1,9}}", file, re.ASCII):
            _refuse(table.path, name, f"the path {clip(repr(file), 80)}, not {prefix}N")
        if entry.get("use_pickle") is not False:
            _refuse(table.path, f"{folder}/{file}", "a pickled object, which this tool never loads")
        found[key] = (f"{folder}/{file}", member(entry, "tensor_meta", dict, table.path))
    return found


def _place(table: ZipTable, name: str, record: str, meta: Any) -> TensorInfo:
    """One tensor as a range of bytes, checked to lie within its record."""
    path = table.path
    shape, strides = (_sizes_of(meta, key, path) for key in ("sizes", "strides"))
    offset = _size_of(member(meta, "storage_offset", dict, path), path)
    dtype = SCALAR_TYPES.get(member(meta, "dtype", int, path), "")
    if not dtype or meta.get("layout") != _STRIDED or len(shape) != len(strides):
        _refuse(path, record, f"{clip(name, 80)} is of a kind that this tool does not read")
    entry, item = stored_entry(table, record), ITEM_SIZES[dtype]
    info = TensorInfo(name, shape, strides, dtype, path, 0, 0)
    span = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    start = entry.start + offset * item
    stop = start + (span * item if info.numel else 0)
    # Expanded tensors have more elements than their records have bytes; only small ones are read.
    if stop > entry.stop or info.numel * item > max(entry.stop - entry.start, 1 << 20):
        _refuse(path, record, f"{clip(name, 80)} {shape} does not fit in it")
    return TensorInfo(name, shape, strides, dtype, path, start, stop)


def _sizes_of(meta: Any, key: str, path: Path) -> tuple[int, ...]:
    """Sizes or strides, all of them fixed."""
    sizes = member(meta, key, list, path)
    if len(sizes) > MAX_DIMS:
        _refuse(path, _GRAPH, f"{key!r} has {len(sizes)} dimensions")
    return tuple(_size_of(size, path) for size in sizes)


def _size_of(size: Any, path: Path) -> int:
    value: int = member(size, "as_int", int, path)
    if not 0 <= value < 1 << 62:
        _refuse(path, _GRAPH, f"a size of {value}")
    return value


def _check_inputs(table: ZipTable, name: str) -> None:
    """Check that the example inputs, which are never loaded, are only tensors."""
    if name not in table.entries or not (data := read_record(table, name, _MAX_INPUTS)):
        return
    with tempfile.TemporaryDirectory(prefix="rescale-cli-") as folder:
        inner = Path(folder) / "inner.pt"
        inner.write_bytes(data)
        contents = torch_zip.list_tensors(inner) if torch_zip.matches(inner) else None
    if contents is None or contents.format != "torch-zip" or contents.globals:
        named = ", ".join(contents.globals[:3]) if contents else "not a file of torch.save"
        _refuse(table.path, name, f"a pickled object that is not a tensor ({named})")
