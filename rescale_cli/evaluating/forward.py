"""Run a classifier on its device, with fewer images at once if memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rescale_cli.core.predictions import Classifier
from rescale_cli.errors import BadInput, EnvironmentProblem, RescaleError, UsageError
from rescale_cli.json_text import clip
from rescale_cli.models.networks import input_channels

if TYPE_CHECKING:
    import torch

    from rescale_cli.evaluating.head_input import HeadInput


#: Phrases by which torch, CUDA's libraries and the system report that memory ran out.
_NO_MEMORY = (
    "DefaultCPUAllocator", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc",
)  # fmt: skip


class Forward:
    """Runs a classifier. If memory runs out, it continues with half as many images at once.

    Args:
        model: its module is moved to the device.
        device: where it runs.
        amp: `bf16`, `fp16` or `off`.
        channels_last: whether to use this memory layout; None: if the model has convolutions.
        compiled: whether to use torch.compile.
        notes: called if memory ran out.
        head_input: records the inputs of the head, if they are to be saved.
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
        """The inputs of the head (size, D) in the last call of `logits`; None if not recorded."""
        return None if self._head_input is None else self._head_input.take()

    def logits(self, take: Callable[[int, int], torch.Tensor], size: int) -> torch.Tensor:
        """The logits of `size` images, (size, C) float32, on the device.

        Args:
            take: returns images lo to hi, on the device.
            size: the number of images, at least 1.

        Raises:
            BadInput: the model fails on such images, or does not return C logits for each.
            EnvironmentProblem: there is too little memory for a single image.
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
        """The logits of some images; None if memory ran out.

        Only after this has returned are the tensors of the failed pass freed with its frames.
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
            f"{self._model.arch} does not return {self._model.num_classes} logits per image",
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
        fix = "set the size and the channels that it was trained on: --size, --mean, --std"
        return BadInput(
            f"the model {self._model.arch} failed on images of shape {shape}",
            saw=clip(f"{type(error).__name__}: {lines[0]}", 500),
            fix=f"leave out --compile; if it still fails, {fix}" if self._compiled else fix,
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
            f"out of memory with {size} images at once; continuing with {self._most} (next time, "
            f"start with --batch-size {self._most})"
        )


def _convolutional(module: Any) -> bool:
    """Whether the network has convolutions, and torch can change its memory layout."""
    import torch

    if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
        return False
    return any(isinstance(part, torch.nn.Conv2d) for part in module.modules())


def _out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY)
