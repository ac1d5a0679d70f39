"""A data set of images, what a model said of it, and where that comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import Classes


@dataclass(frozen=True, slots=True)
class Provenance:
    """What logits and sweeps carry with them, so that they are not taken for another model's."""

    head_sha256: str | None = None
    """SHA-256 of the bytes of the head, see `record.head_digest`; None: not known."""
    preprocessing: Mapping[str, Any] | None = None
    """How images were prepared, as a run's config.json says it, and its `source`; None: not known,
    or not done by this tool."""
    data: Mapping[str, Any] | None = None
    """`source`, `split` and `samples` of the data."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library -> version, of those that had a part in it."""

    def as_json(self) -> dict[str, Any]:
        """The same as plain values; `of` reads them again."""
        return {
            "head_sha256": self.head_sha256,
            "preprocessing": None if self.preprocessing is None else dict(self.preprocessing),
            "data": None if self.data is None else dict(self.data),
            "versions": dict(self.versions),
        }

    @classmethod
    def of(cls, said: object) -> Provenance:
        """What JSON from outside says; what is not of its type counts as not said.

        Example:
            >>> Provenance.of({"head_sha256": 5, "versions": {"torch": "2.9"}}).versions
            {'torch': '2.9'}
        """
        table = said if isinstance(said, dict) else {}
        sha, versions = table.get("head_sha256"), table.get("versions")
        preprocessing, data = table.get("preprocessing"), table.get("data")
        return cls(
            sha if isinstance(sha, str) else None,
            preprocessing if isinstance(preprocessing, dict) else None,
            data if isinstance(data, dict) else None,
            {str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
        )


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


Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits and labels of N samples."""

    logits: NDArray[Any]
    """(N, C), float32 or float64, never NaN; a file mapped into memory where it is large."""
    labels: Labels | None
    """(N,), 0 to C - 1; None where nobody knows them."""
    source: str
    """What they are, for messages and records."""
    names: Sequence[str] | None = None
    """(N,): the file or key of each sample, where it has one."""
    images_per_second: float | None = None
    """How fast the model was, where one was run."""
    skipped: tuple[str, ...] = ()
    """Samples that could not be read, left out by `--skip-bad`."""
    binary: bool = False
    """Whether the model has one logit: it is column 1, and column 0 is all zeros."""
    split: str | None = None
    """Which split of the data they are of; None: not known."""
    alignment: Mapping[str, Any] | None = None
    """How the labels were joined with the rows; see `Alignment.as_json`."""
    no_samples: Mapping[str, int] = field(default_factory=dict)
    """How many entries of the data are no samples, by reason."""
    provenance: Provenance = Provenance()
    """Whose they are, and how they were made; nothing is known of logits made elsewhere."""
    features: NDArray[np.float32] | None = None
    """(N, D), the inputs of the head, where they were asked for; mapped where they are large."""

    @property
    def data(self) -> dict[str, Any]:
        """What they are of, for JSON."""
        bad = len(self.skipped)
        samples = len(self.logits) + bad
        return DataRead.of(self.source, samples, self.no_samples, bad, self.split).as_json()

    @property
    def data_line(self) -> str:
        """The same for a person, with the number of samples."""
        return data_line(self.source, self.split, len(self.logits))

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.logits.shape[1])

    @property
    def columns(self) -> NDArray[Any]:
        """The logits that the model gave: (N, 1) of a binary head, else (N, C)."""
        return self.logits[:, 1:] if self.binary else self.logits


def data_line(source: str, split: str | None, samples: int) -> str:
    """What samples are of, in one line.

    Example:
        >>> data_line("folder val/", "val", 1200)
        'data: folder val/ (split val), 1,200 samples'
    """
    shown = f" (split {split})" if split else ""
    return f"data: {source}{shown}, {samples:,} samples"
