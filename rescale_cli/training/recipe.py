"""Recipe: every choice of a training run, declared once.

A field of `Recipe` carries its documentation, range and choices. The options of `train`, the TOML
of `--config` and `--print-config`, and the checks of every value are all made from them.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rescale_cli.core.counts import ZeroPolicy
from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip
from rescale_cli.training.losses import losses
from rescale_cli.training.samplers import Imbalance, samplers
from rescale_cli.training.schedules import schedules

#: The panels of `train --help`, in the order in which they are shown.
INPUT, METHOD, TRAINING, ADVANCED = "Input", "Method", "Training", "Advanced"

#: The lowest value of a number that must be above 0.
_POSITIVE = 1e-300
#: The highest seed that torch takes.
_LAST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Setting:
    """What is declared of one field of `Recipe`."""

    panel: str
    """Where `--help` shows it."""
    help: str
    """What it does, in complete sentences."""
    metavar: str = ""
    """How `--help` writes its value; empty: the choices, and nothing for on or off."""
    low: float = -math.inf
    """The lowest value of a number."""
    high: float = math.inf
    """The highest value of a number."""
    choices: tuple[str, ...] = ()
    """The values of a text, where only some are valid."""
    unset: str = ""
    """What the default stands for, where its value does not say it."""
    short: str = ""
    """A short name of the option, such as -b."""
    name: str = ""
    default: Any = None
    item: type = str
    """str, bool, int or float; of a list, the type of one item."""
    listed: bool = False
    """Whether the value is a tuple of items."""
    optional: bool = False
    """Whether the value may be None."""

    @property
    def option(self) -> str:
        """The long name of the option."""
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """The valid numbers, in words; empty if every number is valid."""
        if self.low == -math.inf:
            return ""
        if self.high < _SHOWN:
            return f"{self.low:g} to {self.high:g}"
        return "above 0" if self.low == _POSITIVE else f"{self.low:g} or more"

    def check(self, value: Any) -> None:
        """Refuse a value that is not a choice or not in the range.

        Raises:
            UsageError: it is not.
        """
        if self.choices and value not in self.choices:
            near = difflib.get_close_matches(clip(value, 80).lower(), self.choices, n=1)
            fix = f"{self.option} {(near or [self.default])[0]}"
            raise _invalid(self.name, value, f"must be one of {', '.join(self.choices)}", fix)
        if self.item in (int, float) and not self.listed and value is not None:
            holds = self.low <= value <= self.high
            limits = f"{self.high:g} or less" if value > self.high else self.range
            _require(holds, self.name, value, f"must be {limits}")


#: Upper limits from here on only guard against overflow, and help does not show them.
_SHOWN = 1e4


def _setting(default: Any, panel: str, help: str, metavar: str = "", **more: Any) -> Any:
    """A field of `Recipe`; see `Setting`."""
    return field(default=default, metadata={"setting": Setting(panel, help, metavar, **more)})


@dataclass(frozen=True, slots=True)
class Recipe:
    """What `train` does; the field `batch_size` is the option `--batch-size`, and so on.

    The defaults are the paper's recipe for long-tailed CIFAR (Kim & Kim 2020, Section IV-A, and
    its published code), trained in the ordinary way.

    Raises:
        UsageError: a value out of its range, or values that do not go together.

    Example:
        >>> Recipe(epochs=200, milestones=(160, 180)).lr
        0.1
    """

    data: str = _setting(
        "", INPUT, "Training images: a folder with one sub-folder per class, list:FILE, csv:FILE, "
        "npz:FILE, cifar10:DIR and others.", "DATA",
        unset="none; needed without --config and --resume",
    )  # fmt: skip
    val_data: str = _setting(
        "", INPUT, "Validation images, named like --data.", "DATA",
        unset="the validation split of --data, or else the part that --val-split holds out",
    )  # fmt: skip
    # The images are drawn by `seed` before `imbalance` applies.
    val_split: float = _setting(
        0.1, INPUT, "Share of each class's training images to hold out for validation if there are "
        "no other validation images.", "F", low=0, high=0.9, unset="0.1, and 0 in a --preset",
    )  # fmt: skip
    imbalance: str = _setting(
        "none", INPUT, "Make the classes imbalanced by leaving out images: exponentially (exp), "
        "half of the classes (step), or not at all. R is the largest class size over the smallest.",
        "exp:R|step:R|none",
    )  # fmt: skip
    imbalance_seed: int | None = _setting(
        None, INPUT, "Seed for drawing the images that --imbalance keeps.", "N",
        low=0, high=_LAST_SEED, unset="keep the first images of each class",
    )  # fmt: skip
    size: int = _setting(
        0, INPUT, "Height and width of the network's input in pixels.", "N",
        low=0, high=1 << 14, unset="0, the size of the images",
    )  # fmt: skip
    mean: tuple[float, ...] = _setting(
        (), INPUT, "Mean of each channel to subtract, for pixel values from 0 to 1.", "R,G,B",
        unset="measured on the training images",
    )  # fmt: skip
    std: tuple[float, ...] = _setting(
        (), INPUT, "Standard deviation of each channel to divide by, for pixel values from 0 to 1.",
        "R,G,B", unset="measured on the training images",
    )  # fmt: skip
    augment: str = _setting(
        "auto", INPUT, "Random augmentation: crop-flip shifts images by up to 4 pixels and "
        "mirrors half of them; resized-crop crops and resizes large images to --size; auto is "
        "none for images of less than 16 pixels a side and for mnist:, else crop-flip.",
        choices=("auto", "crop-flip", "resized-crop", "none"),
    )  # fmt: skip
    arch: str = _setting(
        "rescale:resnet32", INPUT, "Network: rescale:NAME, torchvision:NAME, timm:NAME or "
        "python:module:callable.", "KIND:NAME",
    )  # fmt: skip
    # The paper's has none (Section III-A).
    head_bias: bool = _setting(
        False, INPUT, "Give the last layer a bias. --wvn trains without one."
    )
    weights: str = _setting(
        "", INPUT, "Checkpoint to start from. Its head is not used.", "FILE",
        unset="random weights",
    )  # fmt: skip
    weights_partial: bool = _setting(
        False, INPUT, "Use the layers of --weights that fit the network, list them, and leave the "
        "others as initialised. Without this, every layer but the head must fit.",
    )  # fmt: skip

    # Algorithm 1, line 8.
    wvn: bool = _setting(
        False, METHOD, "Weight vector normalization (WVN): scale the rows of the head to length 1 "
        "after every step. The head then has no bias.",
    )  # fmt: skip
    # Algorithm 1, line 9.
    gamma: float | None = _setting(
        None, METHOD, "Re-scale the head once after training with this gamma, and write the result "
        "to a second file; or none.", "G|none", low=0, high=4, unset="none", short="-g",
    )  # fmt: skip
    loss: str = _setting(
        "ce", METHOD, "Loss function: cross-entropy (ce), weighted by inverse class frequency "
        "(reweight), class-balanced (cb), focal, LDAM or balanced softmax.", choices=tuple(losses),
    )  # fmt: skip
    drw_epoch: int | None = _setting(
        None, METHOD, "Epoch, counted from 0, from which classes are weighted (deferred "
        "re-weighting, DRW).", "N", low=0, unset="not deferred",
    )  # fmt: skip
    sampler: str = _setting(
        "instance", METHOD, "How often images are drawn: each once (instance), all classes equally "
        "often (over), as often as the rarest class (under), or in between (sqrt).",
        choices=tuple(samplers),
    )  # fmt: skip
    zero_count: ZeroPolicy = _setting(  # noqa: RUF009 - a field of the dataclass
        "error", METHOD, "For a class without training images: stop with an error, count it as one "
        "image, or skip it when re-scaling with --gamma.", choices=get_args(ZeroPolicy),
    )  # fmt: skip

    epochs: int = _setting(180, TRAINING, "Number of passes over the training images.", "N", low=1)
    batch_size: int = _setting(
        128, TRAINING, "Images per optimizer step, over all ranks.", "N", low=1, short="-b"
    )
    accumulate: int = _setting(
        1, TRAINING, "Split each step into this many parts and add up their gradients, to save "
        "memory.", "N", low=1,
    )  # fmt: skip
    lr: float = _setting(
        0.1, TRAINING, "Learning rate of SGD.", "F", low=_POSITIVE, high=1e6
    )  # fmt: skip
    head_lr_factor: float = _setting(
        1.0, TRAINING, "Learning rate of the head, as a multiple of --lr.", "F", low=0, high=1e6
    )
    schedule: str = _setting(
        "step", TRAINING, "Learning rate schedule: multiply by --lr-decay at each of --milestones "
        "(step), or follow a cosine down to 0 (cosine).", choices=tuple(schedules),
    )  # fmt: skip
    milestones: tuple[int, ...] = _setting(
        (80, 150), TRAINING, "Epochs, counted from 0, at which --schedule step lowers the learning "
        "rate; or none.", "N,N",
    )  # fmt: skip
    lr_decay: float = _setting(
        0.1, TRAINING, "Multiply the learning rate by this factor at each milestone.", "F",
        low=0, high=1,
    )  # fmt: skip
    warmup_epochs: int = _setting(
        0, TRAINING, "Number of first epochs in which the learning rate rises linearly to --lr.",
        "N", low=0,
    )  # fmt: skip
    momentum: float = _setting(
        0.9, TRAINING, "Momentum of SGD, without Nesterov.", "F", low=0, high=1
    )
    weight_decay: float = _setting(
        5e-4, TRAINING, "Weight decay of all parameters.", "F", low=0, high=1
    )
    clip_norm: float = _setting(
        0.0, TRAINING, "Clip the norm of the gradient, over all parameters, to this value.", "F",
        low=0, high=1e30, unset="0, no clipping",
    )  # fmt: skip
    ema: float = _setting(
        0.0, TRAINING, "Decay of an exponential moving average of the weights, such as 0.999. The "
        "average is validated and saved.", "F", low=0, high=1, unset="0, no average",
    )  # fmt: skip
    seed: int = _setting(
        0, TRAINING, "Seed for initial weights, held-out images, image order and augmentation.",
        "N", low=0, high=_LAST_SEED,
    )  # fmt: skip

    device: str = _setting("auto", ADVANCED, "Device to train on.", "auto|cpu|cuda[:N]")
    amp: str = _setting(
        "off", ADVANCED, "Mixed precision: compute in bfloat16 or float16.",
        choices=("off", "bf16", "fp16"),
    )  # fmt: skip
    channels_last: bool | None = _setting(
        None, ADVANCED, "Keep images in the channels-last memory format.", unset="if it is faster"
    )
    compile: bool = _setting(False, ADVANCED, "Compile the network with torch.compile.")
    workers: int | None = _setting(
        None, ADVANCED, "Number of processes that read images, for data that does not fit in "
        "memory.", "N", low=0, high=1 << 12, unset="one per CPU core, at most 16", short="-j",
    )  # fmt: skip
    tensorboard: bool = _setting(
        False, ADVANCED, "Also write event files for TensorBoard. Needs the extra tensorboard."
    )

    def __post_init__(self) -> None:
        Imbalance.parse(self.imbalance)
        for setting in SETTINGS.values():
            setting.check(getattr(self, setting.name))
        ascending = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        ascending = ascending and min(self.milestones, default=1) > 0
        _require(ascending, "milestones", self.milestones, "must be ascending epochs above 0")
        for name in ("mean", "std"):
            value = getattr(self, name)
            good = len(value) == len(self.mean) in (0, 1, 3) and all(0 <= v <= 1 for v in value)
            _require(good, name, value, "needs 1 or 3 values from 0 to 1; --mean and --std go "
                     "together")  # fmt: skip
        _require(0 not in self.std, "std", self.std, "must be above 0")
        if self.wvn and self.head_bias:
            raise UsageError(
                "--wvn needs a head without bias",
                saw="both wvn and head_bias are on",
                fix="leave out --head-bias (--no-head-bias), or train without --wvn (--no-wvn)",
            )
        # A cosine head normalises its rows itself: their lengths mean nothing.
        touched = self.cosine_head and (self.wvn or self.gamma is not None)
        _require(not touched, "loss", self.loss, "has a cosine head, which --wvn and --gamma "
                 "cannot change", "leave out --wvn and --gamma, or --loss ce")  # fmt: skip
        if self.weighted and self.sampler != "instance":
            saw = f"--sampler {self.sampler} with " + (
                f"--loss {self.loss}" if self.drw_epoch is None else f"--drw-epoch {self.drw_epoch}"
            )
            raise UsageError(
                "--sampler and class weights both correct the class frequencies: together the rare "
                "classes count twice and every step is several times larger",
                saw=saw,
                fix="--sampler instance, or --loss ce without --drw-epoch",
            )
        _require(self.accumulate <= self.batch_size, "accumulate", self.accumulate,
                 f"must be at most the batch size, {self.batch_size}")  # fmt: skip

    @property
    def weighted(self) -> bool:
        """Whether the loss weights classes, from the start or from `drw_epoch` on."""
        return self.drw_epoch is not None or losses.entry(self.loss).facts["weights"] != "none"

    @property
    def corrected(self) -> bool:
        """Whether the loss corrects the class frequencies, so that a gamma would correct twice."""
        late = self.drw_epoch is not None and self.drw_epoch >= self.epochs
        return (self.weighted and not late) or self.loss == "balanced-softmax"

    @property
    def cosine_head(self) -> bool:
        """Whether the loss needs logits that are scaled cosines."""
        return losses.entry(self.loss).facts["head"] == "cosine"


def _declared(name: str, setting: Setting, default: Any, hint: Any) -> Setting:
    """The setting of a field with its type."""
    optional = type(None) in get_args(hint)
    kinds = [kind for kind in get_args(hint) if kind not in (type(None), ...)]
    item = str if get_origin(hint) is Literal else kinds[0] if kinds else hint
    listed = get_origin(hint) is tuple
    return replace(
        setting, name=name, default=default, item=item, listed=listed, optional=optional
    )  # fmt: skip


_HINTS = get_type_hints(Recipe)
#: Every field of `Recipe`, in its order.
SETTINGS: dict[str, Setting] = {
    f.name: _declared(f.name, f.metadata["setting"], f.default, _HINTS[f.name])
    for f in fields(Recipe)
}


def _require(holds: bool, name: str, value: object, problem: str, fix: str = "") -> None:
    """UsageError unless it holds."""
    if not holds:
        raise _invalid(name, value, problem, fix)


def _invalid(name: str, value: object, problem: str, fix: str = "") -> UsageError:
    setting = SETTINGS[name]
    typed = setting.default
    typed = ",".join(map(str, typed)) if setting.listed else typed
    usual = f"for example {setting.option} {typed}" if typed else f"leave out {setting.option}"
    return UsageError(f"{setting.option} {problem}", saw=clip(repr(value), 80), fix=fix or usual)
