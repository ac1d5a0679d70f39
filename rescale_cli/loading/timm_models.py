"""How timm's models are built: by name, without weights, without the network."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import BadInput, UsageError
from rescale_cli.json_text import clip
from rescale_cli.loading.fit_weights import Build
from rescale_cli.loading.libraries import library, torchvision

if TYPE_CHECKING:
    from torch import nn

#: Arguments that would fetch or unpickle something, or that the weights themselves decide.
_NOT_PASSED = frozenset(
    {
        "pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay",
        "pretrained_strict", "num_classes", "in_chans", "scriptable", "exportable", "no_jit",
    }
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


def _timm() -> Any:
    torchvision()  # timm imports it, and must not be blamed if it does not fit torch
    return library("timm", "timm")
