"""Reads the configuration that mmpretrain stores in a checkpoint: its network and preprocessing.

The configuration is Python text. It is parsed, and only literals and `dict(...)` are read; nothing
is run.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rescale_cli.core.predictions import Preprocessing
from rescale_cli.errors import BadInput
from rescale_cli.json_text import clip
from rescale_cli.models.preprocessing_config import from_run

_SOURCE = "the configuration of mmpretrain in the checkpoint"
#: Options of mmpretrain's ResNet that change what it computes but neither names nor shapes, with
#: the values for which it computes the same as torchvision's.
_UNLIKE = {"style": ("pytorch",), "strides": ((1, 2, 2, 2),), "dilations": ((1, 1, 1, 1),)}


def config_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The assignments of the configuration in `meta`, as plain values; {} if it has none.

    Example:
        >>> config_of({"cfg": "model = dict(type='ImageClassifier', head=dict(topk=(1, 5)))"})
        {'model': {'type': 'ImageClassifier', 'head': {'topk': (1, 5)}}}
    """
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    try:
        statements = ast.parse(text).body
        return {
            node.targets[0].id: _literal(node.value)
            for node in statements
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=parts):
            return tuple(_literal(part) for part in parts)
        case ast.List(elts=parts):
            return [_literal(part) for part in parts]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {key.value: _literal(v) for key, v in pairs if isinstance(key, ast.Constant)}
        case ast.Call(func=ast.Name(id="dict"), keywords=entries):
            return {entry.arg: _literal(entry.value) for entry in entries if entry.arg}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return None


def refuse_unlike(meta: Mapping[str, Any], arch: str) -> None:
    """Refuse a network of mmpretrain that has the tensors of `arch` but computes something else.

    Raises:
        BadInput: its backbone has another style, or other strides or dilations.
    """
    backbone = _table(_table(config_of(meta), "model"), "backbone")
    for key, fine in _UNLIKE.items():
        value = backbone.get(key, fine[0])
        if (tuple(value) if isinstance(value, list) else value) not in fine:
            kind = backbone.get("type", "backbone")
            raise BadInput(
                f"mmpretrain's {kind} does not compute the same as {arch}",
                saw=clip(f"{key} = {value!r} in {_SOURCE}"),
                fix="build the network in your own code: --arch python:module:callable",
            )


def mmpretrain_preprocessing(meta: Mapping[str, Any]) -> Preprocessing | None:
    """The preprocessing of the test pipeline; None if there is none, or one without sizes.

    mmpretrain resizes with OpenCV by default; Pillow's values differ slightly.

    Args:
        meta: the entry `meta` of the checkpoint.
    """
    config = config_of(meta)
    levels = _table(config, "data_preprocessor") or _table(
        _table(config, "model"), "data_preprocessor"
    )
    steps = _pipeline(config)
    levels = levels or next((step for step in steps if _kind(step) == "Normalize"), {})
    sizes = _sizes(steps)
    if not levels or "size" not in sizes:
        return None
    mean, std = levels.get("mean") or [0.0] * 3, levels.get("std") or [1.0] * 3
    said: dict[str, Any] = {
        "mean": [value / 255 for value in mean],
        "std": [value / 255 for value in std],
        **sizes,
    }
    made = from_run({"preprocessing": said}, _SOURCE)
    # OpenCV reads the channels as blue, green, red; `to_rgb` reverses them.
    blue_first = not (levels.get("to_rgb") or levels.get("bgr_to_rgb"))
    return None if made is None else replace(made, flip_channels=blue_first and len(mean) == 3)


def _sizes(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Resize and crop of a pipeline, in the form of a run's config.json; {} if it has neither."""
    found: dict[str, Any] = {}
    for step in steps:
        size = step.get("scale", step.get("size"))
        if _kind(step) == "ResizeEdge":
            found["resize"] = size
        elif _kind(step) == "Resize" and isinstance(size, tuple | list) and -1 in size:
            found["resize"] = max(size)
        elif _kind(step) == "Resize":
            # A pair is (width, height) as `scale`, and (height, width) as the older `size`.
            pair = size if isinstance(size, tuple | list) else (size, size)
            found["resize"] = tuple(reversed(pair)) if "scale" in step else tuple(pair)
            found["size"] = found["resize"]
        elif _kind(step) == "CenterCrop":
            crop = step.get("crop_size")
            found["size"] = crop if isinstance(crop, tuple | list) else (crop, crop)
        if _kind(step).startswith("Resize") and step.get("interpolation"):
            found["interpolation"] = step["interpolation"]
    return found


def _pipeline(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    loader = _table(config, "test_dataloader") or _table(config, "val_dataloader")
    older = _table(_table(config, "data"), "test")
    for table, key in (
        (_table(loader, "dataset"), "pipeline"),
        (config, "test_pipeline"),
        (older, "pipeline"),
    ):
        steps = table.get(key)
        if isinstance(steps, list) and steps:
            return [step for step in steps if isinstance(step, dict)]
    return []


def _kind(step: Mapping[str, Any]) -> str:
    """The name of a step's class, without its package."""
    return str(step.get("type", "")).rpartition(".")[2]


def _table(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = table.get(key)
    return found if isinstance(found, dict) else {}
