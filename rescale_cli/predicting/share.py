"""One rank's part of a pass over the images: which samples, their logits, and those unreadable."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.images import Images
from rescale_cli.core.predictions import Predictions
from rescale_cli.errors import BadInput
from rescale_cli.files.big_array import big_array, row_blocks
from rescale_cli.json_text import clip
from rescale_cli.predicting.ranks import Team

#: Images that an error names.
_NAMED = 5


class Share:
    """Whole batches of the data set, as evenly among the ranks as they go; one rank has them all.

    Args:
        data: N images.
        batch_size: images at once; a rank's samples begin and end where a batch does.
        classes: C.
        team: the ranks; None where this process is alone.
        features: D, where the inputs of the head are kept, too; else 0.
    """

    def __init__(
        self, data: Images, batch_size: int, classes: int, team: Team | None, features: int = 0
    ) -> None:
        self._data, self._batch_size, self._team = data, batch_size, team
        self._rank, self._size = (team.rank, team.size) if team else (0, 1)
        self.samples = self._samples_of(self._rank)
        # Rank 0 has room for the rows of all.
        room = len(self.samples) if self._rank else len(data)
        self._logits = big_array((room, classes), np.float32)
        self._features = big_array((room, features), np.float32) if features else None
        self._kept = np.ones(room, np.uint8)
        self._bad = 0
        self.deep_gray = 0
        self._first: list[tuple[int, str]] = []

    def _samples_of(self, rank: int) -> range:
        number = len(self._data)
        total = -(-number // self._batch_size)
        lo, hi = (total * r // self._size * self._batch_size for r in (rank, rank + 1))
        return range(min(lo, number), min(hi, number))

    @property
    def has_bad(self) -> bool:
        """Whether an image could not be read."""
        return self._bad > 0

    def leave_out(self, bad: list[tuple[int, str]]) -> None:
        """Note the images that cannot be read, and why."""
        self._bad += len(bad)
        self._first += bad[: max(0, _NAMED - len(self._first))]
        self._kept[[index - self.samples.start for index, _ in bad]] = 0

    def store(
        self,
        indices: list[int],
        logits: NDArray[np.float32],
        features: NDArray[np.float32] | None = None,
    ) -> None:
        """Keep the logits (n, C) of these samples, and the inputs of the head (n, D).

        Raises:
            BadInput: one is NaN; the error names its image.
        """
        nan = np.isnan(logits).any(axis=1)
        if nan.any():
            at = int(nan.argmax())
            raise BadInput(
                f"the model gives NaN for {clip(str(self._data.names[indices[at]]), 300)}",
                saw=f"{int(np.isnan(logits[at]).sum())} of its {logits.shape[1]} logits",
                fix="--amp off, or check the weights and the preprocessing: --mean, --std",
            )
        rows = np.array(indices) - self.samples.start
        self._logits[rows] = logits
        if self._features is not None:
            self._features[rows] = features

    def gather(self, *, skip_bad: bool) -> bool:
        """Bring the shares of all ranks to rank 0; whether this is rank 0.

        Raises:
            BadInput: on every rank, for images that could not be read on any, unless they are
                left out and others remain.
        """
        team = self._team
        if team is None:
            self._refuse_bad(skip_bad=skip_bad)
            return True
        others = range(1, team.size)
        number = team.next_pass()
        if team.rank:
            team.tell(f"{number}/ready", json.dumps([self._bad, self._first]))
            team.hear(f"{number}/go", 0)
        else:
            for other in others:
                bad, first = json.loads(team.hear(f"{number}/ready", other))
                self._bad += bad
                self._first += first[: max(0, _NAMED - len(self._first))]
            self._refuse_bad(skip_bad=skip_bad)
            team.tell(f"{number}/go", "")
        shares = [self._samples_of(rank) for rank in (0, *others)]
        rows = [slice(share.start, share.stop) for share in shares]
        arrays = [self._logits, self._kept, *([] if self._features is None else [self._features])]
        team.bring_together(arrays, rows, number)
        return team.rank == 0

    def _refuse_bad(self, *, skip_bad: bool) -> None:
        total = len(self._data)
        if not self._bad or (skip_bad and self._bad < total):
            return
        named = [(clip(str(self._data.names[i]), 200), clip(why, 200)) for i, why in self._first]
        more = f"; and {self._bad - len(named):,} more" if self._bad > len(named) else ""
        other = (
            "check that these are images" if self._bad == total else "leave them out: --skip-bad"
        )
        raise BadInput(
            f"{self._bad:,} of {total:,} images in {self._data.source} cannot be read",
            saw="; ".join(why if name in why else f"{name}: {why}" for name, why in named) + more,
            fix=f"fetch them again, or {other}",
        )

    def predictions(self, images_per_second: float) -> Predictions:
        """Logits, labels and names of the samples that were read, in order; on rank 0."""
        data, kept = self._data, np.flatnonzero(self._kept)
        logits = _first(self._logits, kept)
        features = None if self._features is None else _first(self._features, kept)
        if len(kept) == len(data):
            return Predictions(
                logits, data.labels, data.source, data.names, images_per_second, features=features
            )
        return Predictions(
            logits,
            None if data.labels is None else data.labels[kept],
            data.source,
            tuple(data.names[i] for i in kept.tolist()),
            images_per_second,
            tuple(str(data.names[i]) for i in np.flatnonzero(self._kept == 0).tolist()),
            features=features,
        )


def _first(array: NDArray[np.float32], kept: NDArray[np.intp]) -> NDArray[np.float32]:
    """The rows that are kept, moved to the front of the array: no other array is needed."""
    if len(kept) < len(array):
        for rows in row_blocks(array[: len(kept)]):  # towards the front: none is lost
            array[rows] = array[kept[rows]]
    return array[: len(kept)]
