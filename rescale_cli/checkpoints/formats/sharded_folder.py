"""Read a folder of weights (Hugging Face, timm, a training run): one file, or indexed shards."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rescale_cli.checkpoints.foreign import unreadable
from rescale_cli.checkpoints.formats import file_format
from rescale_cli.checkpoints.model_folders import refuse_link_out, weights_of
from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.contents import Contents
from rescale_cli.files.reading import opened_once, read_whole
from rescale_cli.json_text import clip, parse_json

NAME = "folder of weights"

MAX_INDEX = 256 << 20
MAX_CONFIG = 64 << 20


def matches(path: Path) -> bool:
    """Whether it is a folder, or the index of its shards."""
    if path.is_dir():
        return True
    if not path.is_file() or path.suffix != ".json":
        return False
    return b'"weight_map"' in read_whole(path, MAX_INDEX)


def list_tensors(path: Path, accept: frozenset[str] = frozenset()) -> Contents:
    """Read the tensors of all shards into one table, with the config beside them."""
    folder = path if path.is_dir() else path.parent
    weights = path if path.is_file() else weights_of(folder)
    refuse_link_out(folder, weights)
    if weights.name.endswith(".json"):
        parts = _shards(folder, weights, accept)
    else:
        parts = [_list_file(weights, accept)]
    config = read_config(folder)
    return Contents(
        format=parts[0].format + ("-sharded" if weights.name.endswith(".json") else "-folder"),
        tensors=tuple(info for part in parts for info in part.tensors),
        files=tuple(file for part in parts for file in part.files),
        metadata={key: value for part in parts for key, value in part.metadata.items()},
        config=config,
        class_names=names_in_config(config) + tuple(n for part in parts for n in part.class_names),
        tool=next((part.tool for part in parts if part.tool), ""),
        globals=tuple(sorted({name for part in parts for name in part.globals})),
        checksums=tuple(check for part in parts for check in part.checksums),
    )


def _shards(folder: Path, index: Path, accept: frozenset[str]) -> list[Contents]:
    """Read every shard that the index names, and compare it with the index."""
    table = parse_json(read_whole(index, MAX_INDEX), index.name)
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad_index(index, "it has no weight_map", clip(repr(table)))
    parts, owner = [], dict[str, str]()
    for name in sorted({str(file) for file in weight_map.values()}):
        shard = _shard_path(folder, index, name)
        part = _list_file(shard, accept)
        for info in part.tensors:
            if owner.setdefault(info.name, name) != name:
                saw = f"{clip(info.name)} in {owner[info.name]} and in {name}"
                raise _bad_index(index, "a tensor is in two shards", saw)
        parts.append(part)
    for tensor, file in weight_map.items():
        if owner.get(tensor) != file:
            saw = f"{clip(tensor)} is not in {clip(str(file))}"
            raise _bad_index(index, "it lists a tensor that is not in its shard", saw)
    return parts


def _shard_path(folder: Path, index: Path, name: str) -> Path:
    plain = Path(name).name == name and "\\" not in name and ":" not in name and "\0" not in name
    if not plain or name in ("", ".", ".."):
        raise _bad_index(index, "the name of a shard must be a plain file name", clip(repr(name)))
    shard = folder / name
    if not os.path.exists(shard):  # noqa: PTH110  (Path.exists raises where a name is too long)
        raise BadCheckpoint(
            f"a shard is missing: {clip(name)}",
            saw=f"named in {index.name}",
            fix="fetch the whole folder",
        )
    refuse_link_out(folder, shard)
    return shard


def _list_file(file: Path, accept: frozenset[str]) -> Contents:
    with opened_once(file):
        module = file_format(file)
        if module is None:
            raise unreadable(file)
        contents: Contents = module.list_tensors(file, accept)
        return contents


def read_config(folder: Path) -> dict[str, Any]:
    """Read the folder's config.json; an empty dict if there is none."""
    path = folder / "config.json"
    if not path.exists():
        return {}
    refuse_link_out(folder, path)
    config = parse_json(read_whole(path, MAX_CONFIG), "config.json")
    if not isinstance(config, dict):
        raise BadCheckpoint(
            "config.json is not a JSON object", saw=clip(repr(config)), fix="restore the file"
        )
    return config


def names_in_config(config: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return the class names in config.json in row order: id2label sorted by number, and others."""
    found = []
    ids = config.get("id2label")
    if isinstance(ids, dict) and all(re.fullmatch("[0-9]{1,9}", str(key)) for key in ids):
        order = sorted(ids, key=int)
        if [int(key) for key in order] == list(range(len(order))):
            found.append(tuple(str(ids[key]) for key in order))
    for key in ("label_names", "classes", "class_names"):
        names = config.get(key)
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            found.append(tuple(names))
    return tuple(found)


def _bad_index(index: Path, what: str, saw: str) -> BadCheckpoint:
    return BadCheckpoint(f"{index.name}: {what}", saw=saw, fix="fetch the whole folder again")
