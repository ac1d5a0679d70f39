"""A network built to the size of its weights, and the weights loaded into it, all or none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.errors import BadInput
from rescale_cli.json_text import clip
from rescale_cli.loading.state_tensors import Chosen, choose, read_tensors

if TYPE_CHECKING:
    from torch import nn

#: (number of classes, number of channels) to a network.
Build = Callable[[int, int], "nn.Module"]
Shapes = Mapping[str, tuple[int, ...]]

#: Sizes that no network has: where they turn up in a shape, the classes or channels are counted.
CLASSES, CHANNELS = 7919, 7907
#: What a network has where nothing says otherwise.
USUAL = {CLASSES: 1000, CHANNELS: 3}


@dataclass(frozen=True, slots=True)
class Fitted:
    """A network with its weights."""

    module: nn.Module
    num_classes: int
    channels: int
    why: str


def fit(build: Build, tensors: Sequence[TensorInfo], arch: str) -> Fitted:
    """Build the network with as many classes and channels as the weights have, and load them.

    Raises:
        BadInput: a name or a shape in the checkpoint is not the network's, or lacks.
    """
    shapes = hollow_shapes(build)
    chosen = choose(tensors, shapes)
    classes = measure(shapes, chosen, CLASSES)
    channels = measure(shapes, chosen, CHANNELS)
    module = build(classes, channels)
    load_strictly(module, chosen, arch)
    return Fitted(module, classes, channels, chosen.why)


def hollow_shapes(build: Build) -> Shapes:
    """The names and shapes of a network's state, with CLASSES and CHANNELS where they count."""
    try:
        with _hollow()():
            module = build(CLASSES, CHANNELS)
    except (RuntimeError, NotImplementedError):
        # Some networks compute with their weights while they are built.
        module = build(CLASSES, USUAL[CHANNELS])
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@cache
def _hollow() -> Any:
    """A mode in which new parameters have a shape and no memory."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Hollow(TorchFunctionMode):
        """Layers draw their parameters with torch.empty; what is computed stays as it is."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is torch.empty and kwargs.get("device") is None:
                kwargs = {**kwargs, "device": "meta"}
            return func(*args, **kwargs)

    return Hollow


def measure(shapes: Shapes, chosen: Chosen, mark: int) -> int:
    """How many classes (or channels) the weights have, by where the mark stands in the shapes."""
    for name, shape in shapes.items():
        info = chosen.infos.get(name)
        if mark in shape and info is not None and len(info.shape) == len(shape):
            return info.shape[shape.index(mark)]
    return USUAL[mark]


def load_strictly(module: nn.Module, chosen: Chosen, arch: str) -> None:
    """Copy the weights into the module, which keeps its dtypes.

    Raises:
        BadInput: names or shapes differ; the first five of each are told.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wrong = differences(own, chosen, set(dict(module.named_buffers())))
    if wrong:
        raise BadInput(
            f"the weights do not fit {arch}",
            saw="; ".join(wrong),
            fix="name the network they were trained with: --arch torchvision:NAME, timm:NAME or "
            "python:module:callable",
        )
    module.load_state_dict(
        read_tensors({name: chosen.infos[name] for name in own if name in chosen.infos})
    )


def differences(own: Shapes, chosen: Chosen, buffers: Collection[str] = ()) -> list[str]:
    """What keeps the weights from being the network's, in words; [] if nothing does.

    Args:
        own: the network's names and shapes.
        chosen: the weights.
        buffers: names that the network computes by itself, which may be in the checkpoint, too.
    """
    infos = chosen.infos
    # torch itself fills in the counter of batch normalization, which old files lack.
    missing = [n for n in own if n not in infos and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in infos if n not in own and n not in buffers]
    shapes = [
        f"{n} {infos[n].shape}, not {own[n]}"
        for n in own
        if n in infos and infos[n].shape != own[n]
    ]
    named = {"missing": missing, "not of this network": unexpected, "another shape": shapes}
    return [f"{len(found)} {what}: {_first(found)}" for what, found in named.items() if found]


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(clip(name, 80) for name in names[:5])
    return shown + (", ..." if len(names) > 5 else "")
