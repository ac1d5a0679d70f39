"""Run a model over a data set in one streamed pass, by one process or by several.

Under torchrun every rank takes whole batches, the same ones that a single process would make, so
that the logits are bit-equal whatever the number of ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.predictions import Classifier, Images, Predictions, Preprocessing
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.evaluating import ranks
from rescale_cli.evaluating.batches import Batch, batches
from rescale_cli.evaluating.forward import Forward
from rescale_cli.evaluating.ranks import Team
from rescale_cli.files.arrays import big_array, row_blocks
from rescale_cli.foreign_code import pick_device
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    import torch

    from rescale_cli.evaluating.head_input import HeadInput


#: Images that an error names.
_NAMED = 5


class Shard:
    """The part of the data set that this rank runs: whole batches, divided as evenly as possible.

    Args:
        data: N images.
        batch_size: images at once; a rank's samples begin and end where a batch does.
        classes: C.
        team: the ranks; None without torchrun.
        features: D if the inputs of the head are kept, too; else 0.
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
                fix="try --amp off, or check the weights and the preprocessing: --mean, --std",
            )
        rows = np.array(indices) - self.samples.start
        self._logits[rows] = logits
        if self._features is not None:
            self._features[rows] = features

    def gather(self, *, skip_bad: bool) -> bool:
        """Bring the shares of all ranks to rank 0; whether this is rank 0.

        Raises:
            BadInput: on every rank if any rank could not read an image, unless such images are
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
        rows = [slice(shard.start, shard.stop) for shard in shares]
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
            fix=f"download them again, or {other}",
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


Progress = Callable[[int, int, float], None]
Notes = Callable[[str], None]

#: Images at once: what fills a CUDA device, and what still fits the caches of a CPU.
BATCH = {"cuda": 256, "cpu": 64}
#: Seconds between two reports of progress.
_BETWEEN = 0.1


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a model is run; the defaults suit the device."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int | None = None
    """Images at once; None: 64 on a CPU, 256 on CUDA."""
    workers: int | None = None
    """Processes that decode images; None: one a core, at most 8."""
    amp: str = "off"
    """bf16, fp16 or off: the precision of autocast."""
    channels_last: bool | None = None
    """The memory layout that convolutions like; None: where there are convolutions."""
    compile: bool = False
    """Whether torch.compile is used."""
    skip_bad: bool = False
    """Whether images that cannot be read are left out, instead of an error."""


def predict(
    model: Classifier,
    data: Images,
    preprocessing: Preprocessing,
    options: RunOptions,
    progress: Progress | None = None,
    notes: Notes = lambda note: None,
    head_input: HeadInput | None = None,
) -> Predictions | None:
    """Run a model once over all images and keep its logits.

    Args:
        model: its module is moved to the device.
        data: N images.
        preprocessing: from an image to the model's input.
        options: how it is run.
        progress: called with images done, N, and images per second, at most ten times a second.
        notes: called with what the user should know: no CUDA, too little memory.
        head_input: records the inputs of the head, if they are kept, too.

    Returns:
        Logits (N, C) float32, with the labels as the data set numbers them; None on any rank but
        0.

    Raises:
        UsageError: an option that does not exist.
        BadInput: no images, some that cannot be read (unless left out), a model that fails, does
            not give C numbers an image, or gives NaN.
        EnvironmentProblem: no such device, or too little memory for a single image.
    """
    team = ranks.team() if ranks.size() > 1 else None
    if team is None:
        return _predict(model, data, preprocessing, options, progress, notes, None, head_input)
    if team.rank:
        progress, notes = None, lambda note: None
    try:
        return _predict(model, data, preprocessing, options, progress, notes, team, head_input)
    except Exception as error:
        team.fail(error)
        raise


def _predict(
    model: Classifier,
    data: Images,
    preprocessing: Preprocessing,
    options: RunOptions,
    progress: Progress | None,
    notes: Notes,
    team: Team | None,
    head_input: HeadInput | None,
) -> Predictions | None:
    if not len(data):
        raise BadInput(
            f"{data.source} has no images", fix="name a data set that has images: --data DATA"
        )
    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(
            f"the batch size must be at least 1, got {options.batch_size}", fix="--batch-size 64"
        )
    if options.workers is not None and options.workers < 0:
        raise UsageError(
            f"the number of workers must be at least 0, got {options.workers}", fix="--workers 0"
        )
    device = pick_device(options.device, notes)
    batch_size = options.batch_size or BATCH[device.type]
    forward = Forward(
        model, device, options.amp, options.channels_last, options.compile, notes, head_input
    )
    meter = _Meter(len(data), team.size if team else 1, progress)
    width = 0 if head_input is None else head_input.width
    shard = Shard(data, batch_size, model.num_classes, team, width)
    stream = batches(data, preprocessing, shard.samples, batch_size, options.workers, device)
    for done in _run(forward, stream, shard, skip_bad=options.skip_bad):
        meter.add(done)
        if team is not None:
            team.beat()
    if shard.deep_gray:
        notes(
            f"{shard.deep_gray:,} images are gray with more than 8 bits a pixel, and Pillow's "
            "conversion turns everything above 255 white: convert them to 8 bits as for training"
        )
    if not shard.gather(skip_bad=options.skip_bad):
        return None
    return shard.predictions(meter.finish())


def _run(
    forward: Forward, stream: Iterable[Batch], shard: Shard, *, skip_bad: bool
) -> Iterator[int]:
    """Fill the shard, and yield the size of each batch.

    The logits of a batch are fetched from the device while the next one is on its way there.
    """
    waiting: tuple[list[int], torch.Tensor, torch.Tensor | None] | None = None

    def fetch(indices: list[int], logits: torch.Tensor, features: torch.Tensor | None) -> None:
        rows = None if features is None else features.cpu().numpy()
        shard.store(indices, logits.cpu().numpy(), rows)

    for batch in stream:
        shard.leave_out(batch.bad)
        shard.deep_gray += batch.deep
        # After a bad image that may not be left out, the others are only read, to count them all.
        if batch.indices and (skip_bad or not shard.has_bad):
            answer = forward.logits(batch.take, len(batch.indices))
            if waiting is not None:
                fetch(*waiting)
            waiting = batch.indices, answer, forward.features()
        yield len(batch.indices) + len(batch.bad)
    if waiting is not None:
        fetch(*waiting)


class _Meter:
    """Reports progress from time to time; it counts one rank, and assumes that all are as fast.

    Args:
        total: N.
        ranks: how many work on them.
        progress: called with images done, N, and images per second.
    """

    def __init__(self, total: int, ranks: int, progress: Progress | None) -> None:
        self._total, self._ranks, self._progress = total, ranks, progress
        self._done, self._start, self._last = 0, time.perf_counter(), 0.0

    def add(self, images: int) -> None:
        """Count images that are done."""
        self._done = min(self._total, self._done + images * self._ranks)
        now = time.perf_counter()
        if self._progress is None or self._done == self._total or now - self._last < _BETWEEN:
            return
        self._last = now
        self._progress(self._done, self._total, self._done / (now - self._start))

    def finish(self) -> float:
        """Report that all are done; return the images per second of the whole pass."""
        rate = self._total / (time.perf_counter() - self._start)
        if self._progress is not None:
            self._progress(self._total, self._total, rate)
        return rate
