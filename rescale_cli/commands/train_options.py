"""The options of `train`: what is trained on what, by which recipe, on which machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescale_cli.commands.data_options import Amp
from rescale_cli.commands.options import ZeroPolicy
from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    from rescale_cli.training.recipe import Recipe


@dataclass(frozen=True)
class WhatOptions:
    """Data, network and method. See `option_groups.spread`: each field is an option."""

    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="The training images.")
    ] = None
    val_data: Annotated[
        str | None,
        typer.Option(
            "--val-data",
            metavar="DATA",
            help="Images to validate on. Default: the validation split of --data.",
        ),
    ] = None
    val_split: Annotated[
        float | None,
        typer.Option(
            "--val-split",
            metavar="F",
            help="Share of each class's training images to validate on instead of training on it, "
            "if there are no other validation images; 0: none. Default: 0.1, and 0 in a --preset.",
        ),
    ] = None
    imbalance: Annotated[
        str | None,
        typer.Option(
            "--imbalance", metavar="exp:R|step:R|none", help="Keep fewer images of later classes."
        ),
    ] = None
    imbalance_seed: Annotated[
        int | None,
        typer.Option(
            "--imbalance-seed", metavar="N", help="Draw them. Default: the first of each class."
        ),
    ] = None
    size: Annotated[
        int | None,
        typer.Option("--size", metavar="N", help="Of the network's input. Default: as they are."),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option("--mean", metavar="R,G,B", help="Taken from values in 0 to 1. Default: ours."),
    ] = None
    std: Annotated[
        str | None,
        typer.Option("--std", metavar="R,G,B", help="What values less the mean are divided by."),
    ] = None
    augment: Annotated[
        str | None,
        typer.Option("--augment", metavar="crop-flip|resized-crop|none", help="Random changes."),
    ] = None
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            metavar="KIND:NAME",
            help="rescale:resnet32, torchvision:NAME, timm:NAME, python:module:callable.",
        ),
    ] = None
    head_bias: Annotated[
        bool | None,
        typer.Option(
            "--head-bias/--no-head-bias",
            help="Whether the last layer has a bias. --wvn allows none.",
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="FILE", help="Begin from these, but for the head."),
    ] = None
    wvn: Annotated[
        bool | None,
        typer.Option(
            "--wvn/--no-wvn",
            help="Scale the rows of the head to length 1 after every step; the head has no bias.",
        ),
    ] = None
    gamma: Annotated[
        str | None,
        typer.Option(
            "-g", "--gamma", metavar="G|none", help="Re-scale once at the end, into a second file."
        ),
    ] = None
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss", metavar="NAME", help="ce, reweight, focal, cb, ldam or balanced-softmax."
        ),
    ] = None
    drw_epoch: Annotated[
        int | None,
        typer.Option("--drw-epoch", metavar="N", help="Class weights set in at this epoch."),
    ] = None
    sampler: Annotated[
        str | None,
        typer.Option("--sampler", metavar="instance|over|under|sqrt", help="Which images, often."),
    ] = None

    zero_count: Annotated[
        ZeroPolicy | None,
        typer.Option(
            "--zero-count",
            help="A class without training images is an error (default), counts as one image, or "
            "keeps its row at --gamma.",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """What was typed, as `Recipe` takes it."""
        said = typed(self)
        if self.zero_count is not None:
            said["zero_count"] = self.zero_count.value
        if self.gamma is not None:
            said["gamma"] = None if self.gamma == "none" else number("--gamma", self.gamma)
        for name in ("mean", "std"):
            if name in said:
                said[name] = tuple(number(f"--{name}", part) for part in said[name].split(","))
        return said


def recipe_of(preset: str | None, config: Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe: what was typed, else what the file says, else the preset, else the default.

    Raises:
        UsageError: no such preset, or values that do not go together.
        BadInput: the file is no recipe.
    """
    from rescale_cli.files.reading import read_whole
    from rescale_cli.training.recipe import Recipe, options_in, presets

    start = Recipe() if preset is None else presets[preset]
    said: dict[str, Any] = {}
    if config is not None:
        text = read_whole(config, 1 << 20).decode("utf-8", "replace")
        said = _with_implied(options_in(text, config.name))
    return replace(start, **{**said, **_with_implied(given)})


def _with_implied(said: Mapping[str, Any]) -> dict[str, Any]:
    """What one source sets, and what follows from it: wvn is training without a bias."""
    implied = {"head_bias": False} if said.get("wvn") else {}
    return {**implied, **said}


def typed(options: Any) -> dict[str, Any]:
    """The fields of a group of options that somebody typed."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: value for name, value in values.items() if value is not None}


def number(option: str, text: str) -> float:
    """A number that was typed.

    Raises:
        UsageError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"{option} takes numbers", saw=clip(text, 80), fix=f"{option} 0.5"
        ) from None


def show_config(recipe: Recipe, as_json: bool) -> None:
    """`--print-config`: every value, as `--config` reads it."""
    from rescale_cli.commands.console import Screen
    from rescale_cli.commands.train_report import empty_result
    from rescale_cli.training.recipe import to_toml

    def show() -> None:
        typer.echo(to_toml(recipe), nl=False)

    Screen("train", as_json).result({**empty_result(), "recipe": asdict(recipe)}, (), show)


def _option(*names: str, metavar: str, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help)


@dataclass(frozen=True)
class HowOptions:
    """Steps, rates and the machine. See `option_groups.spread`: each field is an option."""

    epochs: Annotated[
        int | None, _option("--epochs", metavar="N", help="Passes over the images.")
    ] = None
    batch_size: Annotated[
        int | None,
        _option("-b", "--batch-size", metavar="N", help="Images of a step, over all ranks."),
    ] = None
    accumulate: Annotated[
        int | None, _option("--accumulate", metavar="N", help="Parts of a step, one by one.")
    ] = None
    lr: Annotated[float | None, _option("--lr", metavar="F", help="Learning rate of SGD.")] = None
    head_lr_factor: Annotated[
        float | None,
        _option("--head-lr-factor", metavar="F", help="The head's rate is so many times --lr."),
    ] = None
    schedule: Annotated[
        str | None,
        _option("--schedule", metavar="step|cosine", help="How the rate falls."),
    ] = None
    milestones: Annotated[
        str | None,
        _option("--milestones", metavar="N,N", help="Epochs at which the rate falls; or none."),
    ] = None
    lr_decay: Annotated[
        float | None, _option("--lr-decay", metavar="F", help="To so much of what it was.")
    ] = None
    warmup_epochs: Annotated[
        int | None, _option("--warmup-epochs", metavar="N", help="In which the rate climbs.")
    ] = None
    momentum: Annotated[float | None, _option("--momentum", metavar="F", help="Of SGD.")] = None
    weight_decay: Annotated[
        float | None, _option("--weight-decay", metavar="F", help="Of all parameters.")
    ] = None
    clip_norm: Annotated[
        float | None, _option("--clip-norm", metavar="F", help="Longest gradient. Default: any.")
    ] = None
    ema: Annotated[
        float | None,
        _option("--ema", metavar="F", help="Keep a running average of the weights, as 0.999."),
    ] = None
    seed: Annotated[
        int | None, _option("--seed", metavar="N", help="Of weights, order and augmentation.")
    ] = None
    device: Annotated[
        str | None, _option("--device", metavar="auto|cpu|cuda[:N]", help="Where it is trained.")
    ] = None
    amp: Annotated[
        Amp | None, typer.Option("--amp", help="Compute in short floats. Default: off.")
    ] = None
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--no-channels-last", help="Memory format. Default: as is faster."
        ),
    ] = None
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile the network.")
    ] = None
    workers: Annotated[
        int | None,
        _option("-j", "--workers", metavar="N", help="Processes that read images, of large sets."),
    ] = None
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard/--no-tensorboard", help="Write event files, too."),
    ] = None

    def given(self) -> dict[str, Any]:
        """What was typed, as `Recipe` takes it."""
        said = typed(self)
        if self.amp is not None:
            said["amp"] = self.amp.value
        if self.milestones is not None:
            said["milestones"] = _epochs(self.milestones)
        return said


def _epochs(text: str) -> tuple[int, ...]:
    words = [] if text in ("", "none") else text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(
            "--milestones are epochs, or none", saw=clip(text, 80), fix="--milestones 80,150"
        )
    return tuple(int(word) for word in words)
