"""The options of `train` that say how: steps, rates, and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip
from rescale_cli.options.data_options import Amp
from rescale_cli.options.train_options import typed


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
