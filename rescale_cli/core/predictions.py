"""What a model said of a data set: the one thing that evaluation, sweep and comparison read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.images import DataRead
from rescale_cli.core.provenance import Provenance

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
    provenance: Provenance = Provenance()  # noqa: RUF009 - frozen
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
