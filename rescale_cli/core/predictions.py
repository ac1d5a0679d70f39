"""Images, a classifier of them, its predictions, and where those come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import Classes


@dataclass(frozen=True, slots=True)
class Provenance:
    """What logits and sweeps record, so that they are not used with another model."""

    head_sha256: str | None = None
    """SHA-256 of the bytes of the head, see `find_records.head_sha256`; None: unknown."""
    preprocessing: Mapping[str, Any] | None = None
    """How images were prepared, as in the config.json of a run, and its `source`; None: unknown,
    or not done by this tool."""
    data: Mapping[str, Any] | None = None
    """`source`, `split` and `samples` of the data."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library -> version, of the libraries that were used."""

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values; `of` reads them back."""
        return {
            "head_sha256": self.head_sha256,
            "preprocessing": None if self.preprocessing is None else dict(self.preprocessing),
            "data": None if self.data is None else dict(self.data),
            "versions": dict(self.versions),
        }

    @classmethod
    def of(cls, said: object) -> Provenance:
        """The provenance in JSON from outside; values of a wrong type count as missing.

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
    """The decoded image of that index; raises BadImage if it cannot be decoded."""
    labels: Labels | None
    """(N,), the class of each image, as an index into `classes`; None without labels."""
    classes: Classes | None
    """(K,): what is known about each class; not None if there are labels."""
    names: Sequence[str]
    """(N,): the file or key of each image."""
    source: str
    """What it is, for messages and records."""
    array: NDArray[Any] | None = None
    """(N, H, W) or (N, H, W, channels), uint8: small data sets are one array in memory."""
    split: str | None = None
    """The split: train, val, test, or as the data name it; None: unknown."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """The number of entries that are not samples, by reason: ".txt files", "hidden folders"."""

    def only(self, rows: NDArray[np.int64], split: str | None) -> Images:
        """The images of some rows, (n,), as a split of that name."""
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
    """Reads image i of a selection of rows."""

    read: Callable[[int], Image]
    rows: NDArray[np.int64]

    def __call__(self, index: int) -> Image:
        """The image of that index."""
        return self.read(int(self.rows[index]))


@dataclass(frozen=True, slots=True)
class DataRead:
    """What was found in the data: `data` in the JSON."""

    source: str
    """What it is, for messages."""
    split: str | None
    """The split of it; None: unknown."""
    entries: int
    """Samples and skipped entries."""
    skipped: Mapping[str, int]
    """The number of entries that are not samples, by reason."""

    @classmethod
    def of(
        cls,
        source: str,
        samples: int,
        skipped: Mapping[str, int],
        bad: int = 0,
        split: str | None = None,
    ) -> DataRead:
        """The same, with `bad` of the samples left out by `--skip-bad`."""
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
    """From an image to an input: resize, crop, scale to 0..1, subtract mean, divide by std."""

    size: tuple[int, int]
    """Height and width of the model's input, pixels."""
    mean: tuple[float, ...]
    """Mean of values in 0..1, one per channel: 1 or 3."""
    std: tuple[float, ...]
    """Standard deviation of values in 0..1, one per channel."""
    resize: int | tuple[int, int] | None = None
    """The shorter side (int) or both sides before the crop; None: resize to `size` directly."""
    interpolation: str = "bilinear"
    """Pillow's name of it: nearest, bilinear, bicubic, lanczos, box or hamming."""
    keep_ratio: bool = False
    """Whether the image keeps its aspect ratio and covers a pair in `resize`, as in timm."""
    flip_channels: bool = False
    """Whether the network expects the channels blue, green, red."""
    crop_rounds_down: bool = False
    """If the middle is between two pixels: whether to take the first, else the even one."""
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
            resized to 256, cropped to 224 x 224, mean 0.5, std 0.5 (preset x)
        """
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{self.sizes}, mean {mean}, std {std} ({self.source})"

    @property
    def sizes(self) -> str:
        """The resizing and the crop, in words."""
        cut = f"{self.size[0]} x {self.size[1]}"
        if self.resize not in (None, self.size):
            cut = f"{self.resize}, cropped to {cut}"
        return f"resized to {cut}"


@dataclass(frozen=True)
class Classifier:
    """A model that was built and loaded: it takes images and gives logits."""

    module: Any
    """torch.nn.Module in evaluation mode on the CPU: (n, channels, H, W) float32 to (n, C)."""
    num_classes: int
    """C."""
    arch: str
    """As `--arch` names it: torchvision:resnet50, hf, torchscript."""
    why: str
    """How the architecture was determined, in words."""
    classes: tuple[str, ...] | None = None
    """Names in row order, if the checkpoint has them."""
    preprocessing: Preprocessing | None = None
    """The preprocessing that its own files specify."""
    tool: str = ""
    """The tool that trained the checkpoint, if it says so: timm, torchvision or rescale."""
    usual: Preprocessing | None = None
    """The preprocessing of the library's own weights of this network: only a suggestion."""
    input_size: tuple[int, int] | None = None
    """Height and width, if its program accepts no others."""


Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits and labels of N samples."""

    logits: NDArray[Any]
    """(N, C), float32 or float64, never NaN; memory-mapped if large."""
    labels: Labels | None
    """(N,), 0 to C - 1; None if they are unknown."""
    source: str
    """What they are, for messages and records."""
    names: Sequence[str] | None = None
    """(N,): the file or key of each sample, if it has one."""
    images_per_second: float | None = None
    """The speed of the model, if one was run."""
    skipped: tuple[str, ...] = ()
    """Samples that could not be read, left out by `--skip-bad`."""
    binary: bool = False
    """Whether the model has one logit; it is in column 1, and column 0 is all zeros."""
    split: str | None = None
    """The split of the data; None: unknown."""
    alignment: Mapping[str, Any] | None = None
    """How the labels were joined with the rows; see `Alignment.as_json`."""
    no_samples: Mapping[str, int] = field(default_factory=dict)
    """The number of entries of the data that are not samples, by reason."""
    provenance: Provenance = Provenance()
    """The model and how they were computed; empty for logits from elsewhere."""
    features: NDArray[np.float32] | None = None
    """(N, D), the inputs of the head, if they were asked for; memory-mapped if large."""

    @property
    def data_sha256(self) -> str | None:
        """SHA-256 of the labels and the predicted classes, which identifies the data of a model.

        Both are little-endian int64. The logits are left out, since their last bits depend on the
        device and the batch size. None without labels.
        """
        if self.labels is None:
            return None
        found = hashlib.sha256()
        for rows in (self.labels, self.logits.argmax(axis=1)):
            found.update(rows.astype("<i8").tobytes())
        return found.hexdigest()

    @property
    def data(self) -> dict[str, Any]:
        """The data, for JSON."""
        bad = len(self.skipped)
        samples = len(self.logits) + bad
        return DataRead.of(self.source, samples, self.no_samples, bad, self.split).as_json()

    @property
    def data_line(self) -> str:
        """The data in one line, with the number of samples."""
        return data_line(self.source, self.split, len(self.logits))

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.logits.shape[1])

    @property
    def columns(self) -> NDArray[Any]:
        """The logits of the model itself: (N, 1) for a binary head, else (N, C)."""
        return self.logits[:, 1:] if self.binary else self.logits


def data_line(source: str, split: str | None, samples: int) -> str:
    """The data of the samples, in one line.

    Example:
        >>> data_line("folder val/", "val", 1200)
        'data: folder val/ (split val), 1,200 samples'
    """
    shown = f" (split {split})" if split else ""
    return f"data: {source}{shown}, {samples:,} samples"
