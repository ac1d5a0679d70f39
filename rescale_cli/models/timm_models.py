"""Networks of timm and of mmpretrain.

The text is Python. It is parsed, and only its literals and `dict(...)` are read; nothing is run.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rescale_cli.core.predictions import Preprocessing
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.foreign_code import library, torchvision
from rescale_cli.json_text import clip
from rescale_cli.models.preprocessing_config import from_run
from rescale_cli.models.weights import Build

if TYPE_CHECKING:
    from torch import nn


#: Arguments that would fetch or unpickle something, or that the weights themselves decide.
_NOT_PASSED = frozenset(
    {
        "pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay",
        "pretrained_strict", "num_classes", "in_chans", "scriptable", "exportable", "no_jit",
    }
)  # fmt: skip

#: Arguments of timm's training script that say how images are prepared.
_OF_IMAGES = (
    "input_size", "img_size", "in_chans", "mean", "std", "crop_pct", "crop_mode", "interpolation"
)  # fmt: skip


def build_of(name: str, arguments: Mapping[str, Any]) -> Build:
    """How to build timm's model of that name.

    Args:
        name: as timm lists it; a tag behind a dot is let pass.
        arguments: `model_args` of a config.json.

    Raises:
        UsageError: timm has no such model.
        EnvironmentProblem: timm is not installed.
    """
    timm = _timm()
    if ":" in name or not timm.is_model(name):
        known = timm.list_models()
        close = difflib.get_close_matches(clip(name, 80).lower(), known, n=1)
        raise UsageError(
            f"timm has no model {clip(name, 80)!r}",
            saw=f"timm {timm.__version__}, {len(known)} models",
            fix=f"--arch timm:{close[0]}" if close else "--arch timm:NAME, of timm.list_models()",
        )
    kept = {key: value for key, value in arguments.items() if key not in _NOT_PASSED}

    def build(num_classes: int, channels: int) -> nn.Module:
        try:
            made: nn.Module = timm.create_model(
                name, pretrained=False, num_classes=num_classes, in_chans=channels, **kept
            )
        except TypeError as error:
            raise BadInput(
                f"timm cannot build {name} with the model_args of config.json",
                saw=clip(f"{kept}: {error}"),
                fix="correct model_args in config.json",
            ) from None
        return made

    return build


def pretrained_cfg(name: str) -> dict[str, Any]:
    """What timm says of the model's first published weights; empty if it says nothing."""
    found = _timm().get_pretrained_cfg(name)
    return {} if found is None else dict(found.to_dict())


def is_model(name: str) -> bool:
    """Whether timm has a model of that name."""
    return ":" not in name and bool(_timm().is_model(name))


def model_args(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's training script passes to the model, from its arguments, if it matters later."""
    passed = {"global_pool": args.get("gp"), "bn_eps": args.get("bn_eps")}
    size = args.get("input_size") or args.get("img_size")
    if size and pretrained_cfg(name).get("fixed_input_size"):
        passed["img_size"] = tuple(size[1:]) if isinstance(size, list) else size
    passed |= args.get("model_kwargs") or {}
    return {key: value for key, value in passed.items() if value is not None}


def data_config(name: str, args: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """How timm prepares images for a model that was trained with some arguments, and who says it.

    Args:
        name: as timm lists it.
        args: those of timm's training script (input_size, mean, std, crop_pct ...), which go before
            the model's own configuration; {} where there are none.

    Raises:
        BadInput: arguments that timm itself does not take.
    """
    cfg, asked = pretrained_cfg(name), [key for key in _OF_IMAGES if args.get(key)]
    if not asked:
        return cfg, f"timm's default for {name}"
    try:
        made: dict[str, Any] = library("timm.data", "timm").resolve_data_config(
            dict(args), pretrained_cfg=cfg
        )
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        raise BadInput(
            "the args of the checkpoint do not say how images are prepared",
            saw=clip(f"{ {key: args[key] for key in asked} }: {error}"),
            fix="give all of --size, --mean and --std",
        ) from None
    return made, f"timm's default for {name} with {', '.join(asked)} from args"


def tells_images(args: Mapping[str, Any]) -> bool:
    """Whether these are arguments of a timm training script, which decide how it prepares images.

    One that is None there is on record as left to timm's configuration of the model.
    """
    return bool(args.keys() & {"crop_pct", "img_size", "input_size"})


def _timm() -> Any:
    torchvision()  # timm imports it, and must not be blamed if it does not fit torch
    return library("timm", "timm")


_SOURCE = "the configuration of mmpretrain in the checkpoint"
#: Options of mmpretrain's ResNet that change what it computes and neither names nor shapes.
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
    """Stop where mmpretrain's network has the names of another, but computes something else.

    Raises:
        BadInput: its backbone puts its strides or dilations elsewhere.
    """
    backbone = _table(_table(config_of(meta), "model"), "backbone")
    for key, fine in _UNLIKE.items():
        value = backbone.get(key, fine[0])
        if (tuple(value) if isinstance(value, list) else value) not in fine:
            raise BadInput(
                f"mmpretrain's {backbone.get('type', 'backbone')} is not the network {arch}",
                saw=clip(f"{key} = {value!r} in {_SOURCE}"),
                fix="build the network in your own code: --arch python:module:callable",
            )


def preprocessing(meta: Mapping[str, Any]) -> Preprocessing | None:
    """The test pipeline of the configuration; None if the checkpoint has none, or it has no sizes.

    mmpretrain resizes with OpenCV unless told otherwise; Pillow's values differ a little.

    Args:
        meta: the checkpoint's own.
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
    # OpenCV reads blue first, and `to_rgb` turns that around.
    blue_first = not (levels.get("to_rgb") or levels.get("bgr_to_rgb"))
    return None if made is None else replace(made, flip_channels=blue_first and len(mean) == 3)


def _sizes(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Resize and crop of a pipeline, as a run's config.json says them; {} if it has neither."""
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
