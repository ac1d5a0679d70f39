"""Batches of a model's input, decoded by workers or from memory; and the model on its device."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from rescale_cli.core.predictions import Classifier, Images, Preprocessing
from rescale_cli.data.images import DeepGrayWarning
from rescale_cli.errors import BadImage, BadInput, EnvironmentProblem, RescaleError, UsageError
from rescale_cli.evaluating.ranks import as_text, from_text
from rescale_cli.json_text import clip
from rescale_cli.models.networks import input_channels
from rescale_cli.models.preprocessing import (
    apply_preprocessing,
    batch_preprocessing,
    needs_no_resize,
)

if TYPE_CHECKING:
    import torch

    from rescale_cli.evaluating.head_input import HeadInput


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
            "a worker process that reads images was killed",
            saw=str(error).splitlines()[0],
            fix="use fewer workers, or --workers 0: memory or /dev/shm may be full",
        ) from None


#: How the allocators of torch, CUDA's libraries and the system say that memory is short.
_NO_MEMORY = (
    "DefaultCPUAllocator", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc",
)  # fmt: skip


class Forward:
    """Runs a classifier; after memory ran out, with half as many images at once as before.

    Args:
        model: its module is moved to the device.
        device: where it runs.
        amp: `bf16`, `fp16` or `off`.
        channels_last: the memory layout that convolutions like; None: where it is faster.
        compiled: whether torch.compile is asked to make it faster.
        notes: told when memory was short.
        head_input: catches the inputs of the head, where they are wanted.
    """

    def __init__(
        self,
        model: Classifier,
        device: torch.device,
        amp: str,
        channels_last: bool | None,
        compiled: bool,
        notes: Callable[[str], None],
        head_input: HeadInput | None = None,
    ) -> None:
        import torch

        kinds = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
        if amp not in kinds:
            raise UsageError(
                f"the precision {amp!r} is not supported", fix="--amp bf16, --amp fp16 or --amp off"
            )
        self._model, self._device, self._notes = model, device, notes
        self._dtype, self._compiled, self._head_input = kinds[amp], compiled, head_input
        self._most: int | None = None
        module = model.module.to(device)
        if channels_last is None:
            channels_last = _convolutional(module)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            module = module.to(memory_format=torch.channels_last)
        self._module = torch.compile(module) if compiled else module

    def features(self) -> torch.Tensor | None:
        """The inputs of the head (size, D) for the images of the last `logits`, if wanted."""
        return None if self._head_input is None else self._head_input.take()

    def logits(self, take: Callable[[int, int], torch.Tensor], size: int) -> torch.Tensor:
        """The logits of `size` images, (size, C) float32, on the device.

        Args:
            take: gives images lo to hi, on the device.
            size: how many there are, at least 1.

        Raises:
            BadInput: the model does not take such images, or does not give C logits each.
            EnvironmentProblem: memory is too short for one image.
        """
        import torch

        done: list[torch.Tensor] = []
        at = 0
        while at < size:
            upto = min(size, at + (self._most or size))
            part = self._tried(take, at, upto)
            if part is None:
                self._halve(upto - at)
                continue
            done.append(part)
            at = upto
        return done[0] if len(done) == 1 else torch.cat(done)

    def _tried(
        self, take: Callable[[int, int], torch.Tensor], at: int, upto: int
    ) -> torch.Tensor | None:
        """The logits of some images; None where memory did not suffice.

        The tensors of the failed try are gone with its frames when this has returned.
        """
        shape: tuple[int, ...] = ()
        if self._head_input is not None:
            self._head_input.forget()
        try:
            images = take(at, upto)
            shape = tuple(images.shape)
            answer = self._checked(self._run(images), upto - at)
            if self._head_input is not None:
                self._head_input.keep(answer, short=self._dtype is not None)
            return answer
        except RescaleError:
            raise
        except Exception as error:
            if _out_of_memory(error):
                return None
            raise self._refused(shape, error) from error

    def _run(self, images: torch.Tensor) -> Any:
        import torch

        amp: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._dtype is not None:
            amp = torch.autocast(self._device.type, self._dtype)
        with torch.inference_mode(), amp:
            return self._module(images.contiguous(memory_format=self._layout))

    def _checked(self, answer: Any, size: int) -> torch.Tensor:
        import torch

        if not isinstance(answer, torch.Tensor):
            saw = f"a {type(answer).__name__}"
        elif answer.shape == (size, self._model.num_classes) and answer.dtype.is_floating_point:
            return answer.float()
        else:
            saw = f"{tuple(answer.shape)} of {answer.dtype} for {size} images"
        raise BadInput(
            f"{self._model.arch} does not give {self._model.num_classes} logits per image",
            saw=saw,
            fix="name the network that these weights were trained in: --arch",
        )

    def _refused(self, shape: tuple[int, ...], error: Exception) -> BadInput:
        lines = str(error).strip().splitlines() or ["no message"]
        given, wanted = shape[1], input_channels(self._model.module)
        if wanted in (1, 3) and given in (1, 3) and wanted != given:
            presets = "mnist or fashion-mnist" if wanted == 1 else "cifar10, cifar100 or imagenet"
            half = ",".join(["0.5"] * wanted)
            return BadInput(
                f"the preprocessing gives images with {given} channel{'s'[: given - 1]}, but the "
                f"network takes {wanted}",
                saw=clip(f"{self._model.arch}; {type(error).__name__}: {lines[0]}", 500),
                fix=f"name a preset with as many channels: --preset {presets}; or give {wanted} "
                f"value{'s'[: wanted - 1]} each, such as --mean {half} --std {half}",
            )
        fix = "give the images the size and channels that it was trained on: --size, --mean, --std"
        return BadInput(
            f"the model {self._model.arch} failed on images of shape {shape}",
            saw=clip(f"{type(error).__name__}: {lines[0]}", 500),
            fix=f"leave out --compile; if it fails then, too, {fix}" if self._compiled else fix,
        )

    def _halve(self, size: int) -> None:
        import torch

        if size == 1:
            raise EnvironmentProblem(
                f"there is too little memory on {self._device} for one image",
                fix="free some memory, or use another device: --device cpu",
            )
        self._most = size // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._notes(
            f"out of memory with {size} images at once; going on with {self._most}: "
            f"--batch-size {self._most} would begin with that"
        )


def _convolutional(module: Any) -> bool:
    """Whether the network is one of convolutions that torch may lay out anew."""
    import torch

    if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
        return False
    return any(isinstance(part, torch.nn.Conv2d) for part in module.modules())


def _out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)
