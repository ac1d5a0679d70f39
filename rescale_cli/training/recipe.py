"""Recipe: every choice of a training run, as one value; as flat TOML; and the paper's recipes.

Where the paper leaves a value out, the comment beside it says whose it is. The loss is plain
cross-entropy and training is WVN with RS at the end, as in the tables' last row; `--no-wvn` and
`--loss` give the other rows. The gammas are the paper's, which chose them on the test set: choose
your own with `sweep-gamma`.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rescale_cli.core.counts import ZeroPolicy
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.json_text import clip
from rescale_cli.registry import Registry
from rescale_cli.training.losses import losses, schedules
from rescale_cli.training.samplers import Imbalance, samplers

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


#: The annotation of each field, in the words of recipe.py.
_KINDS: dict[str, str] = {
    field.name: str(field.type).replace("ZeroPolicy", "str") for field in fields(Recipe)
}


def to_toml(recipe: Recipe) -> str:
    """One line a value, in the order of the fields; what is not set is a comment.

    Example:
        >>> [line for line in to_toml(Recipe(gamma=0.3)).splitlines() if "gamma" in line]
        ['gamma = 0.3']
    """
    values = ((name, getattr(recipe, name)) for name in _KINDS)
    lines = (f"# {k} is not set" if v is None else f"{k} = {_text(v)}" for k, v in values)
    return "\n".join(lines) + "\n"


def options_in(text: str, source: str) -> dict[str, Any]:
    r"""The options that a TOML text sets, by field name, as `Recipe` and `replace` take them.

    Args:
        text: one flat table.
        source: its name, for errors.

    Raises:
        BadInput: no TOML, an unknown option, or a value of another kind.

    Example:
        >>> options_in("lr = 1\nmilestones = [60, 80]", "a.toml")
        {'lr': 1.0, 'milestones': (60, 80)}
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        fix = "see what --print-config writes"
        raise BadInput(f"{source} is not TOML", saw=clip(str(error), 200), fix=fix) from None
    return options_from(table, source)


def options_from(table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The same from a table that was parsed already; None is what is not set.

    Raises:
        BadInput: an unknown option, or a value of another kind.
    """
    return {name: _value(name, value, source) for name, value in table.items() if value is not None}


def _text(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which only TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)


def _value(name: str, value: Any, source: str) -> Any:
    if name not in _KINDS:
        near = difflib.get_close_matches(clip(name, 80).replace("-", "_"), _KINDS, n=1)
        raise BadInput(
            f"{source} sets {clip(name, 80)!r}, which is no option",
            saw=clip(repr(value), 80),
            fix=f"did you mean {near[0]}?" if near else "see what --print-config writes",
        )
    kind = _KINDS[name].removesuffix(" | None")
    one = kind.removeprefix("tuple[").removesuffix(", ...]")
    listed = kind != one
    items = value if listed and isinstance(value, list) else [value]
    fits = all(type(item).__name__ in _FITS[one] for item in items)
    if fits and listed == isinstance(value, list):
        items = [float(item) if one == "float" else item for item in items]
        return tuple(items) if listed else items[0]
    raise BadInput(
        f"{source} sets {name} to something else than {'a list of ' if listed else ''}{one}",
        saw=clip(repr(value), 80),
        fix=f"{name} = {_text(getattr(Recipe(), name) or _EXAMPLES[one])}",
    )


#: What each kind takes: a whole number is a fine float, True is no number.
_FITS = {"str": ("str",), "bool": ("bool",), "int": ("int",), "float": ("int", "float")}
_EXAMPLES: dict[str, Any] = {"str": "", "bool": False, "int": 0, "float": 0.5}


#: Facts of each: `reference`, the section and table.
presets: Registry[Recipe] = Registry("preset")

_CIFAR = Recipe(
    imbalance="exp:100",  # Table 1: 200, 100, 50, 20, 10, 1; Fig. 8 and 9 show 100
    arch="rescale:resnet32",  # Section IV-A
    wvn=True,  # Algorithm 1
    epochs=180,  # Section IV-A
    lr=0.1,  # Section IV-A
    milestones=(80, 150),  # Section IV-A
    lr_decay=0.1,  # Section IV-A
    head_bias=False,  # Section III-A
    loss="ce",  # Eq. 2
    # The rest is in the published code (cifar.py), the same constants for CIFAR-10 and -100.
    batch_size=128,
    momentum=0.9,
    weight_decay=5e-4,
    augment="crop-flip",
    val_split=0.0,  # Table 1 counts every training image: 5000 of the largest class
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)

#: The usual constants of ImageNet; in the published code, too (imagenet.py of its first version).
_LARGE = replace(
    _CIFAR,
    imbalance="none",  # Section IV-D: these sets are long-tailed as they are
    size=224,
    augment="resized-crop",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)

_ALL = {
    "cifar10-lt": ("Section IV-A, Table 1", replace(_CIFAR, gamma=0.3)),  # gamma: Section IV-A
    "cifar100-lt": ("Section IV-A, Table 1", replace(_CIFAR, gamma=0.4)),  # gamma: Section IV-A
    "cifar10-step-vgg16": (
        "Section IV-B, Table 2",
        # Epochs and rates are not stated for this table: Section IV-A's. No gamma is given.
        replace(_CIFAR, imbalance="step:10", arch="rescale:vgg16"),
    ),
    "tiny-imagenet-lt": (
        "Section IV-C, Table 3",
        # "The same protocol used for CIFAR"; epochs and rates are not stated: Section IV-A's.
        replace(
            _CIFAR,
            arch="torchvision:resnet18",
            gamma=0.1,
            size=64,
            mean=_LARGE.mean,
            std=_LARGE.std,
        ),
    ),
    "inaturalist2018": (
        "Section IV-D, Table 4",
        replace(
            _LARGE,
            arch="torchvision:resnet50",  # Section IV-D
            # Not in the paper: defaults of the published code's first version (imagenet.py) ...
            epochs=90,
            batch_size=256,
            weight_decay=1e-4,
            # ... which leaves the milestones open: the usual thirds of 90 epochs.
            milestones=(30, 60),
        ),
    ),
    "imagenet-lt": (
        "Section IV-D, Table 5",
        replace(
            _LARGE,
            arch="rescale:resnet10",  # Section IV-D, "following [31]"
            # Not in the paper: stage 1 of the published configuration of [31], Liu et al. 2019.
            epochs=30,
            batch_size=256,
            milestones=(10, 20),
        ),
    ),
    "places-lt": (
        "Section IV-D, Table 5",
        replace(
            _LARGE,
            arch="torchvision:resnet152",  # Section IV-D, "following [31]"
            # Not in the paper: stage 1 of the published configuration of [31], Liu et al. 2019,
            # which begins from weights trained on ImageNet (--weights) and hardly moves them.
            epochs=30,
            batch_size=128,
            milestones=(10, 20),
            lr=0.001,
            head_lr_factor=100.0,
        ),
    ),
    "fashion-lt": (
        "the bundled example, not in the paper",
        replace(
            _CIFAR,
            arch="rescale:resnet8",
            wvn=False,
            head_bias=True,  # as most people's networks have
            epochs=30,
            milestones=(13, 25),  # the paper's 80 and 150 of 180
            mean=(0.2983,),
            std=(0.3551,),
        ),
    ),
}
for _name, (_reference, _recipe) in _ALL.items():
    presets.register(_name, reference=_reference)(_recipe)
