"""Builds timm's models, and reads how timm prepares their images."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import BadInput, UsageError
from rescale_cli.foreign_code import library, torchvision
from rescale_cli.json_text import clip
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


def timm_builder(name: str, arguments: Mapping[str, Any]) -> Build:
    """A function that builds timm's model of that name.

    Args:
        name: as timm lists it; a tag after a dot is accepted.
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
            fix=f"--arch timm:{close[0]}" if close else "--arch timm:NAME, see timm.list_models()",
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
    """Timm's description of the model's default weights; empty if it has none."""
    found = _timm().get_pretrained_cfg(name)
    return {} if found is None else dict(found.to_dict())


def is_model(name: str) -> bool:
    """Whether timm has a model of that name."""
    return ":" not in name and bool(_timm().is_model(name))


def model_args(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that timm's training script passes on to the model, from its own arguments."""
    passed = {"global_pool": args.get("gp"), "bn_eps": args.get("bn_eps")}
    size = args.get("input_size") or args.get("img_size")
    if size and pretrained_cfg(name).get("fixed_input_size"):
        passed["img_size"] = tuple(size[1:]) if isinstance(size, list) else size
    passed |= args.get("model_kwargs") or {}
    return {key: value for key, value in passed.items() if value is not None}


def data_config(name: str, args: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """How timm prepares images for a model trained with these arguments, and the source of that.

    Args:
        name: as timm lists it.
        args: those of timm's training script (input_size, mean, std, crop_pct ...), which take
            precedence over the model's own configuration; may be empty.

    Raises:
        BadInput: timm rejects the arguments.
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
            "the args in the checkpoint do not describe a valid preprocessing",
            saw=clip(f"{ {key: args[key] for key in asked} }: {error}"),
            fix="give all of --size, --mean and --std",
        ) from None
    return made, f"timm's default for {name} with {', '.join(asked)} from args"


def sets_preprocessing(args: Mapping[str, Any]) -> bool:
    """Whether these are arguments of timm's training script, which set the preprocessing.

    An argument that is None there means the value in timm's configuration of the model.
    """
    return bool(args.keys() & {"crop_pct", "img_size", "input_size"})


def _timm() -> Any:
    torchvision()  # timm imports it; if it does not fit torch, the error must not name timm
    return library("timm", "timm")
