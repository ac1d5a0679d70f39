"""Recipe: every choice of a training run, as one value that does not change."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rescale_cli.core.counts import ZeroPolicy
from rescale_cli.errors import UsageError
from rescale_cli.training.long_tail import Imbalance
from rescale_cli.training.losses import losses
from rescale_cli.training.samplers import samplers
from rescale_cli.training.schedules import schedules

AUGMENTS = ("crop-flip", "resized-crop", "none")
ZERO_COUNTS = ("error", "one", "skip")
PRECISIONS = ("off", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What `train` does; field `batch_size` is option `--batch-size`, and so on.

    The defaults are the paper's recipe for long-tailed CIFAR (Kim & Kim 2020, Section IV-A, and
    its published code), trained in the ordinary way.

    Raises:
        UsageError: a value out of its range, or values that do not go together.

    Example:
        >>> Recipe(epochs=200, milestones=(160, 180)).lr
        0.1
    """

    data: str = ""
    """The training images, as `--data` names them."""
    val_data: str = ""
    """Images to validate on; empty: the validation split of the same data."""
    val_split: float = 0.1
    """Share of the training images to validate on, of every class, if there are no others; 0: none.
    They are drawn by `seed` before `imbalance` applies."""
    imbalance: str = "none"
    """`exp:100`, `step:10` or `none`: what is made of the training images."""
    imbalance_seed: int | None = None
    """None keeps the first images of each class; a number draws them."""
    size: int = 0
    """Height and width of the network's input, pixels; 0: as the images are."""
    mean: tuple[float, ...] = ()
    """Of values in 0..1, one a channel; empty: measured on the training images."""
    std: tuple[float, ...] = ()
    """As `mean`."""
    augment: str = "crop-flip"
    """crop-flip (4 pixels of padding), resized-crop (of large images), or none."""

    arch: str = "rescale:resnet32"
    """The network, as `--arch` names it."""
    head_bias: bool = False
    """Whether the last layer has a bias; the paper's has none (Section III-A). `wvn` allows none:
    the option --wvn switches it off."""
    weights: str = ""
    """A checkpoint to begin from, but for its head; empty: from random weights."""

    wvn: bool = False
    """Rows of the head to unit length after every step (Algorithm 1, line 8)."""
    gamma: float | None = None
    """RS once at the end, into a second checkpoint (Algorithm 1, line 9); None: no such file."""
    loss: str = "ce"
    """A name in `losses`."""
    drw_epoch: int | None = None
    """The epoch, from 0, at which class weights set in; None: not deferred."""
    sampler: str = "instance"
    """A name in `samplers`."""
    zero_count: ZeroPolicy = "error"
    """What a class without training images is: error, one (counted as one image) or skip."""

    epochs: int = 180
    """Passes over the training images."""
    batch_size: int = 128
    """Images of a step, over all ranks."""
    accumulate: int = 1
    """Parts in which the gradient of a step is computed, one after the other."""
    lr: float = 0.1
    """Learning rate of SGD."""
    head_lr_factor: float = 1.0
    """The head's learning rate is this many times lr."""
    schedule: str = "step"
    """A name in `schedules`."""
    milestones: tuple[int, ...] = (80, 150)
    """Epochs, from 0, at which `step` multiplies the rate by lr_decay."""
    lr_decay: float = 0.1
    """See `milestones`."""
    warmup_epochs: int = 0
    """Epochs in which the rate climbs to lr."""
    momentum: float = 0.9
    """Of SGD, without Nesterov."""
    weight_decay: float = 5e-4
    """Of all parameters."""
    clip_norm: float = 0.0
    """Longest gradient, over all parameters; 0: not clipped."""
    ema: float = 0.0
    """Share that the running average of the weights keeps at a step; 0: no average."""

    seed: int = 0
    """Of weights, order and augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    amp: str = "off"
    """bf16, fp16 or off."""
    channels_last: bool | None = None
    """Memory layout; None: what is faster there."""
    compile: bool = False
    """torch.compile."""
    workers: int | None = None
    """Processes that read images too many for memory; None: as many as there are cores."""
    tensorboard: bool = False
    """Write event files beside metrics.jsonl; needs the extra `tensorboard`."""

    def __post_init__(self) -> None:
        Imbalance.parse(self.imbalance)
        head = losses.entry(self.loss).facts["head"]
        for registry, name in ((samplers, self.sampler), (schedules, self.schedule)):
            registry.entry(name)
        for option, low, high in _RANGES:
            _check_range(option, getattr(self, option), low, high)
        for option, known in (
            ("augment", AUGMENTS),
            ("amp", PRECISIONS),
            ("zero_count", ZERO_COUNTS),
        ):
            value = getattr(self, option)
            _require(value in known, option, value, f"is not one of {', '.join(known)}")
        ascending = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        ascending = ascending and min(self.milestones, default=1) > 0
        _require(ascending, "milestones", self.milestones, "are not ascending epochs above 0")
        for option in ("mean", "std"):
            value = getattr(self, option)
            good = len(value) == len(self.mean) in (0, 1, 3) and all(0 <= v <= 1 for v in value)
            _require(good, option, value, "must be given together, 1 or 3 values from 0 to 1")
        _require(0 not in self.std, "std", self.std, "must be above 0")
        if self.wvn and self.head_bias:
            raise UsageError(
                "--wvn needs a head without bias",
                saw="wvn and head_bias, both on",
                fix="leave out --head-bias (--no-head-bias), or train without --wvn (--no-wvn)",
            )
        # A cosine head normalises its rows itself: they have no length to keep or to change.
        touched = head == "cosine" and (self.wvn or self.gamma is not None)
        _require(not touched, "loss", self.loss, "has a cosine head: leave out --wvn and --gamma")
        _require(
            self.accumulate <= self.batch_size, "accumulate", self.accumulate, "exceeds batch_size"
        )

    @property
    def cosine_head(self) -> bool:
        """Whether the loss needs logits that are scaled cosines."""
        return losses.entry(self.loss).facts["head"] == "cosine"


_INF = math.inf
#: Option, lowest and highest value; None is let through.
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("imbalance_seed", 0, 2**63 - 1), ("val_split", 0, 0.9), ("size", 0, 1 << 14),
    ("gamma", 0, 4), ("drw_epoch", 0, _INF),
    ("epochs", 1, _INF), ("batch_size", 1, _INF), ("accumulate", 1, _INF),
    ("lr", 1e-300, 1e6), ("head_lr_factor", 0, 1e6), ("lr_decay", 0, 1), ("warmup_epochs", 0, _INF),
    ("momentum", 0, 1), ("weight_decay", 0, 1), ("clip_norm", 0, 1e30), ("ema", 0, 1),
    ("seed", 0, 2**63 - 1), ("workers", 0, 1 << 12),
)  # fmt: skip


def _check_range(option: str, value: float | None, low: float, high: float) -> None:
    if value is not None:
        to = f"from {low:g} on" if high == _INF else f"from {low:g} to {high:g}"
        _require(low <= value <= high, option, value, f"must lie {to}")


def _require(holds: bool, option: str, value: object, problem: str) -> None:
    """UsageError unless it holds."""
    if not holds:
        dashed = option.replace("_", "-")
        raise UsageError(f"--{dashed} {problem}", saw=repr(value), fix=f"change --{dashed}")
