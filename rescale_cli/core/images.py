"""A data set of images, as every source gives it: labels at once, pictures when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import Classes

if TYPE_CHECKING:
    from rescale_cli.core.predictions import Labels

#: One image, (H, W, channels), uint8, channels 1 or 3.
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """N labelled images. It can be sent to a worker process."""

    read: Callable[[int], Image]
    """The image of that index, decoded; BadImage where it cannot be."""
    labels: Labels | None
    """(N,), the class of each image, as a place in `classes`; None where the source has none."""
    classes: Classes | None
    """(K,): what is known of each class; not None where there are labels."""
    names: Sequence[str]
    """(N,): the file or key of each image."""
    source: str
    """What it is, for messages and records."""
    array: NDArray[Any] | None = None
    """(N, H, W) or (N, H, W, channels), uint8: small sets lie in memory as one array."""
    split: str | None = None
    """Which split of the data it is: train, val, test, or as the data name it; None: not known."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """How many entries are no samples, by reason: ".txt files", "hidden folders"."""

    def only(self, rows: NDArray[np.int64], split: str | None) -> Images:
        """Those of some rows, (n,), as the split of that name."""
        return replace(
            self,
            read=_Rows(self.read, rows),
            labels=None if self.labels is None else self.labels[rows],
            names=[self.names[row] for row in rows.tolist()],
            array=None if self.array is None else self.array[rows],
            split=split,
        )

    def __len__(self) -> int:
        """N."""
        return len(self.names)


@dataclass(frozen=True)
class _Rows:
    """Reads image i of some rows of a set."""

    read: Callable[[int], Image]
    rows: NDArray[np.int64]

    def __call__(self, index: int) -> Image:
        """The image of that index."""
        return self.read(int(self.rows[index]))


@dataclass(frozen=True, slots=True)
class DataRead:
    """What was found where the samples were looked for: `data` of the JSON."""

    source: str
    """What it is, for messages."""
    split: str | None
    """Which split of it; None: not known."""
    entries: int
    """Samples and skipped entries."""
    skipped: Mapping[str, int]
    """How many entries are no samples, by reason."""

    @classmethod
    def of(
        cls,
        source: str,
        samples: int,
        skipped: Mapping[str, int],
        bad: int = 0,
        split: str | None = None,
    ) -> DataRead:
        """With `bad` of the samples left out by `--skip-bad`."""
        left_out = {"missing or unreadable images": bad} if bad else {}
        return cls(source, split, samples + sum(skipped.values()), {**skipped, **left_out})

    def as_json(self) -> dict[str, Any]:
        """`result.data`."""
        return asdict(self)

    def __str__(self) -> str:
        """In words, for messages.

        Example:
            >>> print(DataRead.of("folder val/", 90, {".txt files": 3, "hidden folders": 1}))
            folder val/: 4 of 94 entries were skipped: .txt files (3), hidden folders (1)
        """
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in self.skipped.items())
        number = sum(self.skipped.values())
        return f"{self.source}: {number:,} of {self.entries:,} entries were skipped: {reasons}"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From an image to a model's input: resize, crop, scale to 0..1, less mean, over std."""

    size: tuple[int, int]
    """Height and width of the model's input, pixels."""
    mean: tuple[float, ...]
    """Of values in 0..1, one a channel: 1 or 3."""
    std: tuple[float, ...]
    """Of values in 0..1, one a channel."""
    resize: int | tuple[int, int] | None = None
    """The shorter side (int) or both sides before the crop; None: resize to `size` outright."""
    interpolation: str = "bilinear"
    """As Pillow names it: nearest, bilinear, bicubic, lanczos, box or hamming."""
    keep_ratio: bool = False
    """Whether a pair in `resize` is covered, the image keeping its aspect ratio, as timm does."""
    flip_channels: bool = False
    """Whether the network takes blue, green, red."""
    crop_rounds_down: bool = False
    """Where the middle lies between two pixels: the first of them; else the even one."""
    source: str = "given"
    """Where it was read, for messages."""

    @property
    def channels(self) -> int:
        """1 or 3."""
        return len(self.mean)

    def __str__(self) -> str:
        """In words, for messages.

        Example:
            >>> print(Preprocessing((224, 224), (0.5,), (0.5,), 256, source="preset x"))
            resized to 256, cropped to 224 x 224, less 0.5, over 0.5 (preset x)
        """
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{self.sizes}, less {mean}, over {std} ({self.source})"

    @property
    def sizes(self) -> str:
        """The resizing and the crop, in words."""
        cut = f"{self.size[0]} x {self.size[1]}"
        if self.resize not in (None, self.size):
            cut = f"{self.resize}, cropped to {cut}"
        return f"resized to {cut}"


@dataclass(frozen=True)
class Classifier:
    """A model that was built and loaded: images in, logits out."""

    module: Any
    """torch.nn.Module in evaluation mode on the CPU: (n, channels, H, W) float32 to (n, C)."""
    num_classes: int
    """C."""
    arch: str
    """As `--arch` names it: torchvision:resnet50, hf, torchscript."""
    why: str
    """How the architecture was known, in words."""
    classes: tuple[str, ...] | None = None
    """Names in row order, where the checkpoint has them."""
    preprocessing: Preprocessing | None = None
    """What its own files say of its input."""
    tool: str = ""
    """What trained the checkpoint, where it says so: timm, torchvision or rescale."""
    usual: Preprocessing | None = None
    """What the library uses for its own weights of this network: a suggestion, never a default."""
    input_size: tuple[int, int] | None = None
    """Height and width that its program takes, where it takes no other."""
