"""The options of every command that runs a model on data: which data, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rescale_cli.commands.help_page import advanced_option, input_option, output_option
from rescale_cli.commands.options import MethodName
from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    from rescale_cli.core.predictions import Preprocessing
    from rescale_cli.evaluating.run_on_data import DataChoice


LOGITS_SUFFIXES = (".npz", ".safetensors")


class Amp(StrEnum):
    """Which short floats the model computes in."""

    OFF = "off"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True)
class DataOptions:
    """See `options.spread`: each field is an option."""

    data: Annotated[
        str | None,
        input_option(
            "--data",
            metavar="DATA",
            help="Labelled images: a folder with one sub-folder per class, list:FILE, csv:FILE, "
            "npz:FILE, cifar10:DIR, hf:NAME and others. The suffix @train, @val or @test picks a "
            "split.",
            show_default="none, as --logits replaces it",
        ),
    ] = None
    logits: Annotated[
        list[Path] | None,
        input_option(
            "--logits",
            metavar="FILE",
            help="File of logits and labels (.npz, .safetensors) to use in place of --data. No "
            "model is run then.",
            show_default="none",
        ),
    ] = None
    arch: Annotated[
        str | None,
        input_option(
            "--arch",
            metavar="KIND:NAME",
            help="Network that the checkpoint belongs to: torchvision:NAME, timm:NAME, hf, "
            "rescale:NAME or python:module:callable.",
            show_default="recognized from the checkpoint",
        ),
    ] = None
    preset: Annotated[
        str | None,
        input_option(
            "--preset",
            metavar="NAME",
            help="Preprocessing by name: imagenet (resize to 256, crop to 224 pixels), inception "
            "(342, 299), cifar10 or cifar100 (32), mnist or fashion-mnist (28), library (what "
            "torchvision or timm uses for its own weights of the network), or none (pixel values "
            "from 0 to 1).",
            show_default="the preprocessing stored with the checkpoint",
        ),
    ] = None
    size: Annotated[
        str | None,
        input_option(
            "--size",
            metavar="N|H,W",
            help="Size of the network's input in pixels. Images are resized to cover it, then "
            "cropped at the center.",
            show_default="from --preset or the checkpoint",
        ),
    ] = None
    mean: Annotated[
        str | None,
        input_option(
            "--mean",
            metavar="R,G,B",
            help="Mean of each channel to subtract, for pixel values from 0 to 1.",
            show_default="from --preset or the checkpoint",
        ),
    ] = None
    std: Annotated[
        str | None,
        input_option(
            "--std",
            metavar="R,G,B",
            help="Standard deviation of each channel to divide by after --mean; above 0.",
            show_default="from --preset or the checkpoint",
        ),
    ] = None
    preprocessing: Annotated[
        Path | None,
        input_option(
            "--preprocessing",
            metavar="FILE",
            help="File to read the preprocessing from: one of --save-preprocessing, a sweep.json, "
            "a config.json of timm, or a preprocessor_config.json.",
            show_default="stored with the checkpoint",
        ),
    ] = None
    save_preprocessing: Annotated[
        Path | None,
        output_option(
            "--save-preprocessing",
            metavar="FILE",
            help="Write the preprocessing that was used to this JSON file, for --preprocessing.",
            show_default="not written",
        ),
    ] = None
    save_logits: Annotated[
        Path | None,
        output_option(
            "--save-logits",
            metavar="FILE",
            help="Write logits and labels to this file (.npz, .safetensors), for --logits.",
            show_default="not written",
        ),
    ] = None
    save_features: Annotated[
        Path | None,
        output_option(
            "--save-features",
            metavar="FILE",
            help="Write the head's inputs with labels and sample names to this file (.npz, "
            ".safetensors): features (N, D), where logits = features @ weight.T + bias.",
            show_default="not written",
        ),
    ] = None
    download: Annotated[
        bool, input_option("--download", help="Download the data set if it is missing.")
    ] = False
    device: Annotated[
        str, advanced_option("--device", metavar="auto|cpu|cuda[:N]", help="Device to run on.")
    ] = "auto"
    batch_size: Annotated[
        int | None,
        advanced_option(
            "-b",
            "--batch-size",
            metavar="N",
            min=1,
            help="Number of images per batch.",
            show_default="256 on CUDA, 64 on a CPU",
        ),
    ] = None
    workers: Annotated[
        int | None,
        advanced_option(
            "-j",
            "--workers",
            metavar="N",
            min=0,
            help="Number of processes that decode images.",
            show_default="one per CPU core, at most 16",
        ),
    ] = None
    amp: Annotated[
        Amp, advanced_option("--amp", help="Mixed precision: compute in bfloat16 or float16.")
    ] = Amp.OFF
    channels_last: Annotated[
        bool | None,
        advanced_option(
            "--channels-last/--no-channels-last",
            help="Keep images in the channels-last memory format.",
            show_default="on for convolutional networks",
        ),
    ] = None
    compile: Annotated[
        bool, advanced_option("--compile", help="Compile the model with torch.compile.")
    ] = False
    skip_bad: Annotated[
        bool,
        input_option(
            "--skip-bad",
            help="Leave out images that are missing or unreadable, and list them.",
        ),
    ] = False
    accept_order: Annotated[
        bool,
        advanced_option(
            "--accept-order",
            help="Continue even if the predictions suggest that the labels are in a different "
            "order than the rows of the head.",
        ),
    ] = False
    accept_poor_accuracy: Annotated[
        bool,
        advanced_option(
            "--accept-poor-accuracy",
            help="Continue even if the accuracy is no better than guessing, or far below the "
            "model's confidence, as happens with wrong preprocessing.",
        ),
    ] = False

    def choice(self, *, force: bool = False) -> DataChoice:
        """The same, checked and typed, for a command that takes one model."""
        return self.choices(1, force=force)[0]

    def choices(
        self, models: int | None, *, force: bool = False, sweep: Path | None = None
    ) -> list[DataChoice]:
        """The same, checked and typed, for each of several models.

        Args:
            models: how many; None where each file of logits stands for itself.
            force: whether the files of --save-logits and --save-preprocessing may be replaced.
            sweep: a sweep.json that is used, whose preprocessing is picked up.

        Raises:
            UsageError: neither or both of --data and --logits, not one file of logits a model, or a
                number that is none.
        """
        from rescale_cli.evaluating.predict import RunOptions
        from rescale_cli.evaluating.run_on_data import DataChoice

        alone = models is None
        if models is None:
            models = 0 if self.data else len(self.logits or ())
        self._check(models)
        run = RunOptions(
            device=self.device,
            batch_size=self.batch_size,
            workers=self.workers,
            amp=self.amp.value,
            channels_last=self.channels_last,
            compile=self.compile,
            skip_bad=self.skip_bad,
        )
        choice = DataChoice(
            data=self.data,
            arch=self.arch,
            prepared=self._prepared(sweep),
            preset=self.preset,
            size=_size(self.size),
            mean=_numbers("--mean", self.mean),
            std=_numbers("--std", self.std),
            download=self.download,
            save_logits=self.save_logits,
            save_preprocessing=self.save_preprocessing,
            save_features=self.save_features,
            force=force,
            run=run,
            accept_order=self.accept_order,
            accept_poor=self.accept_poor_accuracy,
            alone=alone,
        )
        files = [*(self.logits or ())] or [None] * models
        return [replace(choice, logits=file) for file in files]

    @property
    def saved(self) -> dict[str, Path | None]:
        """Option -> the file that it writes."""
        return {
            "--save-logits": self.save_logits,
            "--save-preprocessing": self.save_preprocessing,
            "--save-features": self.save_features,
        }

    def _prepared(self, sweep: Path | None) -> Preprocessing | None:
        """What --preprocessing says, or else the sweep; None if neither does."""
        from rescale_cli.models.preprocessing_config import (
            preprocessing_of_sweep,
            read_preprocessing,
        )

        if self.preprocessing is None:
            return None if sweep is None or self.preset else preprocessing_of_sweep(sweep)
        if self.preset is not None:
            raise UsageError(
                "--preset and --preprocessing exclude each other",
                saw=f"--preset {self.preset}, --preprocessing {self.preprocessing}",
                fix="leave one of them out",
            )
        return read_preprocessing(self.preprocessing)

    def _check(self, models: int) -> None:
        if not models:
            raise UsageError(
                "no MODEL is given, and no logits that could stand for it",
                saw=f"--data {clip(self.data, 80)}" if self.data else "neither MODEL nor --logits",
                fix="name the checkpoint: MODEL --data DATA, or give its logits: --logits FILE",
            )
        if (self.data is None) == (not self.logits):
            raise UsageError(
                "what to evaluate on is one of --data and --logits",
                saw="both" if self.data is not None else "neither",
                fix="--data DATA, or --logits FILE",
            )
        if self.logits and len(self.logits) != models:
            raise UsageError(
                "--logits is given once a model, in the order of the models",
                saw=f"{len(self.logits)} files of logits, {models} models",
                fix="--logits FILE for each MODEL",
            )
        self._check_saved(models)

    def _check_saved(self, models: int) -> None:
        """Stop where a file that is asked for cannot be written."""
        for option, path in self.saved.items():
            if path is not None and models > 1:
                raise UsageError(
                    f"{option} writes the file of one model",
                    saw=f"{models} models",
                    fix="evaluate them one by one",
                )
            holds_arrays = option != "--save-preprocessing"
            if path is not None and holds_arrays and path.suffix not in LOGITS_SUFFIXES:
                raise UsageError(
                    f"{option} tells the format by its suffix, .npz or .safetensors",
                    saw=str(path),
                    fix=f"{option} {path.with_suffix('.npz')}",
                )
        if self.save_features is not None and self.data is None:
            raise UsageError(
                "--save-features needs a model that is run, so it needs --data",
                saw="--logits",
                fix="--data DATA in place of --logits, or leave out --save-features",
            )
        if self.save_features is not None and self.compile:
            raise UsageError(
                "--save-features cannot look into a compiled model",
                saw="--compile",
                fix="leave out --compile",
            )


def refuse_without_model(on: DataOptions, method: MethodName, apply: Path | None) -> None:
    """Raise UsageError unless logits alone are enough for `sweep-gamma`."""
    if on.logits and method.value == "logit-adjust" and apply is None:
        return
    saw = (
        f"--apply {apply}" if apply else f"--method {method.value}" if on.logits else "no --logits"
    )
    raise UsageError(
        "MODEL may be left out only with --logits FILE --method logit-adjust: other methods read "
        "the rows and the bias of the head, --data needs a model to run, --apply one to write",
        saw=saw,
        fix="name the checkpoint: rescale-cli sweep-gamma MODEL ...",
    )


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().replace(",", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) for side in sides):
        raise UsageError(
            "--size is one number of pixels, or two", saw=clip(text, 80), fix="--size 224"
        )
    height, width = int(sides[0]), int(sides[-1])
    return height, width


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    fix = f"{option} 0.5, or {option} 0.485,0.456,0.406"
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3) or not all(-10 <= number <= 10 for number in numbers):
        raise UsageError(
            f"{option} is one number a channel, of values from 0 to 1", saw=clip(text, 80), fix=fix
        )
    if option == "--std" and min(numbers) <= 0:
        raise UsageError("--std must be above 0", saw=clip(text, 80), fix=fix)
    return numbers
