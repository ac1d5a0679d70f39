"""What files say of a model's input: beside a checkpoint, or by `--preprocessing FILE`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rescale_cli.core.predictions import Preprocessing
from rescale_cli.errors import BadInput, OutputExists, UsageError
from rescale_cli.files.reading import read_whole
from rescale_cli.files.staging import write_text
from rescale_cli.foreign_code import torchvision
from rescale_cli.json_text import clip, parse_json
from rescale_cli.models.preprocessing import check_preprocessing, presets

#: Pillow's numbers, which Hugging Face writes down.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
#: timm resizes so much larger than the crop where nothing else is said.
_CROP_PCT = 0.875
#: Fields of `Preprocessing` that are false unless a file says otherwise.
_FLAGS = ("keep_ratio", "flip_channels", "crop_rounds_down")


def from_run(config: Mapping[str, Any], source: str = "config.json") -> Preprocessing | None:
    """The `preprocessing` of a run's config.json, as `to_run` writes it; None if it has none.

    Raises:
        BadInput: it is there and does not prepare an image.
    """
    said = config.get("preprocessing")
    if said is None:
        return None
    return _made(source, said, lambda: _from_run(said, source))


def _from_run(said: Mapping[str, Any], source: str) -> Preprocessing:
    resize = said.get("resize")
    return Preprocessing(
        size=_pair(said["size"]),
        mean=_floats(said["mean"]),
        std=_floats(said["std"]),
        resize=resize if resize is None or isinstance(resize, int) else _pair(resize),
        interpolation=_interpolation(said.get("interpolation", "bilinear")),
        **{flag: _flag(said.get(flag, False)) for flag in _FLAGS},
        source=source,
    )


def to_run(p: Preprocessing) -> dict[str, object]:
    """What a run writes under `preprocessing`; `from_run` reads the same.

    Example:
        >>> to_run(Preprocessing((28, 28), (0.3,), (0.35,)))
        {'size': [28, 28], 'mean': [0.3], 'std': [0.35]}
    """
    said: dict[str, object] = {"size": [*p.size], "mean": [*p.mean], "std": [*p.std]}
    if p.resize is not None:
        said["resize"] = p.resize if isinstance(p.resize, int) else [*p.resize]
    if p.interpolation != "bilinear":
        said["interpolation"] = p.interpolation
    return said | {flag: True for flag in _FLAGS if getattr(p, flag)}


def from_timm(cfg: Mapping[str, Any], source: str = "pretrained_cfg") -> Preprocessing | None:
    """The evaluation transform of timm; None for what it says nothing of, and for crop_mode border.

    Args:
        cfg: `pretrained_cfg`: input_size, mean, std, interpolation, crop_pct, crop_mode.
        source: what it is, for messages.
    """
    if not {"input_size", "mean", "std"} <= cfg.keys() or cfg.get("crop_mode") == "border":
        return None
    return _made(source, cfg, lambda: _from_timm(cfg, source))


def _from_timm(cfg: Mapping[str, Any], source: str) -> Preprocessing:
    channels, height, width = cfg["input_size"]
    share = float(cfg.get("crop_pct") or _CROP_PCT)
    resize = math.floor(height / share), math.floor(width / share)
    square = resize[0] == resize[1] and cfg.get("crop_mode") != "squash"
    mean, std = _floats(cfg["mean"]), _floats(cfg["std"])
    if channels == 1 and len(mean) == 3:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    return Preprocessing(
        size=(height, width),
        mean=mean,
        std=std,
        resize=resize[0] if square else resize,
        interpolation=_interpolation(cfg.get("interpolation") or "bilinear"),
        keep_ratio=cfg.get("crop_mode") != "squash",
        source=source,
    )


def from_config(config: Mapping[str, Any]) -> Preprocessing | None:
    """What the config.json of a run or of timm says; None if it says nothing.

    Raises:
        BadInput: it is there and does not prepare an image.
    """
    cfg = config.get("pretrained_cfg")
    return from_run(config) or (from_timm(cfg, "config.json") if isinstance(cfg, dict) else None)


def from_torchvision(name: str) -> Preprocessing:
    """What torchvision's first published weights of that network were tried with."""
    weights = next(iter(torchvision().models.get_model_weights(name)))
    done = weights.transforms()
    (size,), (resize,) = done.crop_size, done.resize_size
    return Preprocessing(
        size=(size, size),
        mean=tuple(done.mean),
        std=tuple(done.std),
        resize=resize,
        interpolation=done.interpolation.value,
        source=f"torchvision's default for {name}",
    )


def from_references(args: Mapping[str, Any], source: str = "args") -> Preprocessing | None:
    """What torchvision's training script tests with, from its arguments; None if they lack it."""
    crop, resize = args.get("val_crop_size"), args.get("val_resize_size")
    if not isinstance(crop, int) or not isinstance(resize, int):
        return None
    base = presets["imagenet"]
    said = {"mean": base.mean, "std": base.std, "size": (crop, crop), "resize": resize}  # type: ignore[union-attr]
    said |= {"interpolation": args.get("interpolation") or "bilinear"}
    return from_run({"preprocessing": said}, f"{source} of the checkpoint")


def from_hugging_face(
    config: Mapping[str, Any], source: str = "preprocessor_config.json"
) -> Preprocessing | None:
    """A Hugging Face image processor; None if it does not bring images to one size.

    Images are resized by Pillow; processors that resize tensors differ by a level or two.

    Args:
        config: preprocessor_config.json, or `to_dict` of the processor, which knows its defaults.
        source: what it is, for messages.
    """
    return _made(source, config, lambda: _from_hugging_face(config, source))


def _from_hugging_face(config: Mapping[str, Any], source: str) -> Preprocessing | None:
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    if not config.get("do_resize", True):
        return None
    resize = _size(config.get("size"))
    crop = _size(config.get("crop_size")) if config.get("do_center_crop") else None
    if isinstance(resize, int) and kind.startswith("Levit"):
        resize = int(256 / 224 * resize)
    elif isinstance(resize, int) and config.get("crop_pct"):
        # PoolFormer always, and ConvNeXT below 384 pixels, resize to more and crop the rest.
        crop = crop or resize
        large = kind.startswith("ConvN") and resize >= 384
        resize = (resize, resize) if large else int(resize / config["crop_pct"])
    size = crop if crop is not None else resize
    if size is None or (isinstance(resize, int) and crop is None):
        return None
    mean, std = _levels(config)
    return Preprocessing(
        size=(size, size) if isinstance(size, int) else size,
        mean=mean,
        std=std,
        resize=resize,
        interpolation=_RESAMPLE[int(config.get("resample", 2))],
        flip_channels=bool(config.get("do_flip_channel_order")),
        crop_rounds_down=True,
        source=source,
    )


def _levels(config: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of values in 0..1 that do what the processor does with bytes."""
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    offset = 1.0 if config.get("rescale_offset") else 0.0
    mean, std = _floats((0, 0, 0)), _floats((1, 1, 1))
    if config.get("do_normalize", True) and config.get("image_mean") is not None:
        mean, std = _floats(config["image_mean"]), _floats(config["image_std"])
    if config.get("include_top"):
        std = tuple(s * s for s in std)  # EfficientNet's processor divides once more
    scale = 255 * factor
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale
    return tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std)


def _size(value: object) -> int | tuple[int, int] | None:
    """The shorter side, or height and width; None for the longest side alone, or nothing."""
    match value:
        case int():
            return value, value
        case {"height": int(height), "width": int(width)}:
            return height, width
        case {"shortest_edge": int(shorter), **rest} if not rest.get("longest_edge"):
            return shorter
        case [int(height), int(width)]:
            return height, width
    return None


def _made(
    source: str, said: object, make: Callable[[], Preprocessing | None]
) -> Preprocessing | None:
    try:
        made = make()
        return None if made is None else check_preprocessing(made)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, UsageError) as error:
        raise BadInput(
            f"{source} does not say how images are prepared",
            saw=clip(f"{type(error).__name__} {error} in {said!r}"),
            fix="correct the file: size, mean and std",
        ) from None


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _pair(value: Any) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)


def _floats(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)


def _interpolation(name: object) -> str:
    if name not in _RESAMPLE:
        raise ValueError(f"interpolation {name!r}")
    return str(name)


_MAX_BYTES = 256 << 20
_FIX = (
    "give a file of --save-preprocessing, a sweep.json, the config.json of a training run or of "
    "timm, or a preprocessor_config.json: --preprocessing FILE"
)
#: Keys of which a file has one if it describes an image processor of Hugging Face.
_PROCESSOR = {"image_processor_type", "feature_extractor_type", "image_mean", "do_resize",
              "do_normalize", "crop_size"}  # fmt: skip


def read_preprocessing(path: Path) -> Preprocessing:
    """What a file says of the images, whichever of the known forms it has.

    Raises:
        BadInput: it is not JSON, has none of the forms, or does not prepare an image.
    """
    said = parse_json(read_whole(path, _MAX_BYTES, BadInput), path.name, BadInput)
    found = _found(said, path.name) if isinstance(said, dict) else None
    if found is None:
        saw = f"the keys {clip(', '.join(map(str, said)))}" if isinstance(said, dict) else (
            f"a value of the type {type(said).__name__}"
        )  # fmt: skip
        raise BadInput(f"{path.name} does not say how images are prepared", saw=saw, fix=_FIX)
    return found


def preprocessing_of_sweep(path: Path) -> Preprocessing | None:
    """What a sweep.json says of the images that the strength was chosen on; None if nothing."""
    said = parse_json(read_whole(path, _MAX_BYTES, BadInput), path.name, BadInput)
    result = said.get("result", said) if isinstance(said, dict) else {}
    return from_run(result, path.name) if isinstance(result, dict) else None


def _found(said: Mapping[str, Any], name: str) -> Preprocessing | None:
    result = said.get("result")
    if isinstance(result, dict):  # of --json, or a sweep.json
        said = result
    if isinstance(said.get("preprocessing"), dict):
        return from_run(said, name)
    cfg = said.get("pretrained_cfg")
    if isinstance(cfg, dict) or "input_size" in said:
        return from_timm(cfg if isinstance(cfg, dict) else said, name)
    if {"size", "mean", "std"} <= said.keys():
        return from_run({"preprocessing": said}, name)
    return from_hugging_face(said, name) if _PROCESSOR & said.keys() else None


def save_preprocessing(path: Path, made: Preprocessing, *, force: bool) -> None:
    """Write what `read_preprocessing` reads.

    Raises:
        OutputExists: the name is taken, and `force` was not given.
        EnvironmentProblem: the system refused something.
    """
    try:
        write_text(path, json.dumps(to_run(made), indent=1) + "\n", force=force)
    except OutputExists as error:
        error.fix = error.fix.replace("--output", "--save-preprocessing")
        raise
