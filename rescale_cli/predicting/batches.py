"""From a data set to batches of a model's input, decoded by workers or straight from memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from rescale_cli.core.images import Images, Preprocessing
from rescale_cli.errors import BadImage, EnvironmentProblem, RescaleError
from rescale_cli.loading.preprocessing import (
    apply_preprocessing,
    batch_preprocessing,
    needs_no_resize,
)
from rescale_cli.predicting.ranks import as_text, from_text
from rescale_cli.sources.image_files import DeepGrayWarning

if TYPE_CHECKING:
    import torch

_MOST_WORKERS = 8

P = TypeVar("P", contravariant=True)
R = TypeVar("R", covariant=True)


class Reader(Protocol[P, R]):
    """Gives a batch for what stands for it."""

    def __getitem__(self, part: P, /) -> R: ...


class Batch(NamedTuple):
    """Some samples of a data set, ready for the model."""

    indices: list[int]
    """Of the n images that could be read."""
    take: Callable[[int, int], torch.Tensor]
    """Rows lo to hi of them, on the device: (hi - lo, channels, H, W) float32."""
    bad: list[tuple[int, str]]
    """Index of each image that could not be read, and why."""
    deep: int = 0
    """Gray images of more than 8 bits a pixel."""


def batches(
    data: Images,
    preprocessing: Preprocessing,
    samples: range,
    batch_size: int,
    workers: int | None,
    device: torch.device,
) -> Iterator[Batch]:
    """The samples in order, whole batches and a last one that may be smaller.

    Images in memory that need no resizing are preprocessed all at once on the device, no worker in
    the way; the others are decoded and preprocessed by `workers` processes, or by this one where
    that is 0.

    Raises:
        EnvironmentProblem: a worker was killed.
    """
    parts = [samples[at : at + batch_size] for at in range(0, len(samples), batch_size)]
    if data.array is not None and needs_no_resize(preprocessing, *data.array.shape[1:3]):
        pixels = data.array
        for part in parts:
            yield Batch(list(part), _in_memory(pixels, part, preprocessing, device), [])
        return
    if workers is None:
        workers = min(_MOST_WORKERS, free_cpus())
    for read in decoded(_Reader(data, preprocessing), parts, workers, device.type == "cuda"):
        if read.error is not None:
            raise from_text(read.error)
        yield Batch(read.good, _on_device(read.images, device), read.bad, read.deep)


def _in_memory(
    pixels: Any, part: range, preprocessing: Preprocessing, device: torch.device
) -> Callable[[int, int], torch.Tensor]:
    def take(lo: int, hi: int) -> torch.Tensor:
        return batch_preprocessing(pixels[part.start + lo : part.start + hi], preprocessing, device)

    return take


def _on_device(
    images: torch.Tensor | None, device: torch.device
) -> Callable[[int, int], torch.Tensor]:
    def take(lo: int, hi: int) -> torch.Tensor:
        assert images is not None
        return images[lo:hi].to(device, non_blocking=True)

    return take


def free_cpus() -> int:
    """Cores of this process, shared with the other ranks of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class _Read(NamedTuple):
    """What a worker sends; an exception of ours would not survive the way."""

    images: torch.Tensor | None
    good: list[int]
    bad: list[tuple[int, str]]
    error: str | None
    deep: int = 0


@dataclass(frozen=True)
class _Reader:
    """A map from the indices of a batch to its images, as torch's DataLoader wants it."""

    data: Images
    preprocessing: Preprocessing

    def __getitem__(self, indices: Sequence[int]) -> _Read:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DeepGrayWarning)
            read = self._read(indices)
        deep = 0
        for one in caught:
            if issubclass(one.category, DeepGrayWarning):
                deep += 1
            else:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        return read._replace(deep=deep)

    def _read(self, indices: Sequence[int]) -> _Read:
        from torch.utils.data import default_collate

        images, good, bad = [], [], []
        try:
            for index in indices:
                try:
                    image = self.data.read(index)
                except BadImage as error:
                    bad.append((index, f"{error.what}: {error.saw}".removesuffix(": ")))
                    continue
                images.append(apply_preprocessing(image, self.preprocessing))
                good.append(index)
        except RescaleError as error:
            return _Read(None, [], [], as_text(error))
        # In a worker this one stacks straight into memory that both processes see.
        return _Read(default_collate(images) if images else None, good, bad, None)


def decoded(reader: Reader[P, R], parts: list[P], workers: int, pinned: bool) -> Iterator[R]:
    """The batches of a reader, in order, read ahead by worker processes.

    Args:
        reader: from what stands for a batch to the batch; it is sent to the workers.
        parts: one a batch.
        workers: 0 for this process alone.
        pinned: whether the batches are to go to a CUDA device.

    Raises:
        EnvironmentProblem: a worker was killed.
    """
    if not workers:
        yield from map(reader.__getitem__, parts)
        return
    import torch
    from torch.utils.data import DataLoader

    with warnings.catch_warnings():
        # More workers than cores is the user's choice; forking beside threads is how torch works.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")
        loader = iter(
            DataLoader(
                reader,  # type: ignore[arg-type]  # only __getitem__ is used
                batch_size=None,
                sampler=parts,
                num_workers=min(workers, len(parts)),
                pin_memory=pinned,
                generator=torch.Generator(),  # the user's random numbers stay as they are
            )
        )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise EnvironmentProblem(
            "a process that reads images was killed",
            saw=str(error).splitlines()[0],
            fix="--workers 0, or fewer workers: memory, or /dev/shm, may be full",
        ) from None
