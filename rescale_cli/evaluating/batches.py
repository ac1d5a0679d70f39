"""Batches of preprocessed images, from worker processes or from memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from rescale_cli.core.predictions import Images, Preprocessing
from rescale_cli.data.images import DeepGrayWarning
from rescale_cli.errors import BadImage, EnvironmentProblem, RescaleError
from rescale_cli.evaluating.ranks import as_text, from_text
from rescale_cli.models.preprocessing import (
    apply_preprocessing,
    batch_preprocessing,
    needs_no_resize,
)

if TYPE_CHECKING:
    import torch


_MOST_WORKERS = 8

P = TypeVar("P", contravariant=True)
R = TypeVar("R", covariant=True)


class Reader(Protocol[P, R]):
    """Returns a batch for its description, such as the indices of its samples."""

    def __getitem__(self, part: P, /) -> R: ...


class Batch(NamedTuple):
    """Samples of a data set, ready for the model."""

    indices: list[int]
    """The indices of the images that could be read."""
    take: Callable[[int, int], torch.Tensor]
    """Returns these images from lo to hi, on the device: (hi - lo, channels, H, W) float32."""
    bad: list[tuple[int, str]]
    """The index of each image that could not be read, with the reason."""
    deep: int = 0
    """Number of gray images with more than 8 bits per pixel."""


def batches(
    data: Images,
    preprocessing: Preprocessing,
    samples: range,
    batch_size: int,
    workers: int | None,
    device: torch.device,
) -> Iterator[Batch]:
    """The samples in order, in batches of equal size; the last one may be smaller.

    Images in memory that need no resizing are preprocessed on the device, a batch at a time. Others
    are decoded and preprocessed by `workers` processes, or by this process if that is 0.

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
    """The cores for this process: its share if several ranks run on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class _Read(NamedTuple):
    """What a worker sends. An error is sent as text, since torch would not restore it."""

    images: torch.Tensor | None
    good: list[int]
    bad: list[tuple[int, str]]
    error: str | None
    deep: int = 0


@dataclass(frozen=True)
class _Reader:
    """A map from the indices of a batch to its images, for torch's DataLoader."""

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
        # In a worker, default_collate writes straight into shared memory.
        return _Read(default_collate(images) if images else None, good, bad, None)


def decoded(reader: Reader[P, R], parts: list[P], workers: int, pinned: bool) -> Iterator[R]:
    """The batches of a reader, in order, prefetched by worker processes.

    Args:
        reader: returns the batch for each part; it is sent to the workers.
        parts: the description of each batch.
        workers: number of processes; 0 for this process alone.
        pinned: whether the batches will be copied to a CUDA device.

    Raises:
        EnvironmentProblem: a worker was killed.
    """
    if not workers:
        yield from map(reader.__getitem__, parts)
        return
    import torch
    from torch.utils.data import DataLoader

    with warnings.catch_warnings():
        # The user may choose more workers than cores, and torch itself forks beside threads.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")
        loader = iter(
            DataLoader(
                reader,  # type: ignore[arg-type]  # only __getitem__ is used
                batch_size=None,
                sampler=parts,
                num_workers=min(workers, len(parts)),
                pin_memory=pinned,
                generator=torch.Generator(),  # keeps torch's global random state unchanged
            )
        )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise EnvironmentProblem(
            "a worker process that reads images was killed",
            saw=str(error).splitlines()[0],
            fix="use fewer workers, or --workers 0: memory or /dev/shm may be full",
        ) from None
