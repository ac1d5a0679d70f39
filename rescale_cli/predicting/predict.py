"""What a model says of a data set: one pass over its images, streamed, by one process or several.

Under torchrun every rank takes whole batches, those that a single process would make, so that the
logits are the same to the last bit however many ranks there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rescale_cli.core.images import Classifier, Images, Preprocessing
from rescale_cli.core.predictions import Predictions
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.loading.devices import pick_device
from rescale_cli.predicting import ranks
from rescale_cli.predicting.batches import Batch, batches
from rescale_cli.predicting.forward import Forward
from rescale_cli.predicting.ranks import Team
from rescale_cli.predicting.share import Share

if TYPE_CHECKING:
    import torch

    from rescale_cli.predicting.head_input import HeadInput

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
        notes: told what the user should know: no CUDA, memory that was short.
        head_input: catches the inputs of the head, where they are to be kept, too.

    Returns:
        Logits (N, C) float32, with the labels as the data set numbers them; None on any rank but
        0, which has those of all.

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
        raise BadInput(f"{data.source} has no images", fix="name a data set that has some: --data")
    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(f"{options.batch_size} images are no batch", fix="--batch-size 64")
    if options.workers is not None and options.workers < 0:
        raise UsageError(f"{options.workers} workers cannot be", fix="--workers 0, or more")
    device = pick_device(options.device, notes)
    batch_size = options.batch_size or BATCH[device.type]
    forward = Forward(
        model, device, options.amp, options.channels_last, options.compile, notes, head_input
    )
    meter = _Meter(len(data), team.size if team else 1, progress)
    width = 0 if head_input is None else head_input.width
    share = Share(data, batch_size, model.num_classes, team, width)
    stream = batches(data, preprocessing, share.samples, batch_size, options.workers, device)
    for done in _run(forward, stream, share, skip_bad=options.skip_bad):
        meter.add(done)
        if team is not None:
            team.beat()
    if share.deep_gray:
        notes(
            f"{share.deep_gray:,} images are gray with more than 8 bits a pixel, and Pillow's "
            "conversion turns everything above 255 white: convert them to 8 bits as for training"
        )
    if not share.gather(skip_bad=options.skip_bad):
        return None
    return share.predictions(meter.finish())


def _run(
    forward: Forward, stream: Iterable[Batch], share: Share, *, skip_bad: bool
) -> Iterator[int]:
    """Fill the share, and tell the size of each batch.

    The logits of a batch are fetched from the device while the next one is on its way there.
    """
    waiting: tuple[list[int], torch.Tensor, torch.Tensor | None] | None = None

    def fetch(indices: list[int], logits: torch.Tensor, features: torch.Tensor | None) -> None:
        rows = None if features is None else features.cpu().numpy()
        share.store(indices, logits.cpu().numpy(), rows)

    for batch in stream:
        share.leave_out(batch.bad)
        share.deep_gray += batch.deep
        # After a bad image that may not be left out, the others are only read, to count them all.
        if batch.indices and (skip_bad or not share.has_bad):
            answer = forward.logits(batch.take, len(batch.indices))
            if waiting is not None:
                fetch(*waiting)
            waiting = batch.indices, answer, forward.features()
        yield len(batch.indices) + len(batch.bad)
    if waiting is not None:
        fetch(*waiting)


class _Meter:
    """Tells the progress now and then; of several ranks it sees one, and takes all to be like it.

    Args:
        total: N.
        ranks: how many work on them.
        progress: is told.
    """

    def __init__(self, total: int, ranks: int, progress: Progress | None) -> None:
        self._total, self._ranks, self._progress = total, ranks, progress
        self._done, self._start, self._last = 0, time.perf_counter(), 0.0

    def add(self, images: int) -> None:
        """So many more are done."""
        self._done = min(self._total, self._done + images * self._ranks)
        now = time.perf_counter()
        if self._progress is None or self._done == self._total or now - self._last < _BETWEEN:
            return
        self._last = now
        self._progress(self._done, self._total, self._done / (now - self._start))

    def finish(self) -> float:
        """All are done; images per second of the whole."""
        rate = self._total / (time.perf_counter() - self._start)
        if self._progress is not None:
            self._progress(self._total, self._total, rate)
        return rate
