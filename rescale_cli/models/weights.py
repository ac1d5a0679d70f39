"""A checkpoint's tensors as torch tensors, in a network built to their size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rescale_cli.checkpoints.read_tensors import blocks
from rescale_cli.core.floats import ITEM_SIZES
from rescale_cli.errors import BadCheckpoint, BadInput
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.reading import opened
from rescale_cli.finding.names import FOLLOWERS, is_foreign
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    from torch import Tensor, nn


#: Of several copies, the one that timm loads: averages first, wherever they were written.
ORDER = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")

#: Segments that a wrapper puts in front of any part of a network.
WRAPPED = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

_PARTS = "backbone.* and head.fc.* are its parts, as mmpretrain names them"


@dataclass(frozen=True, slots=True)
class Chosen:
    """One copy of a network's weights among all that a checkpoint holds."""

    infos: Mapping[str, TensorInfo]
    """By the network's own names; those it does not know included."""
    why: str
    """Which copy, where there is a choice; empty where there is none."""


def choose(tensors: Sequence[TensorInfo], wanted: Collection[str]) -> Chosen:
    """The tensors that bear a network's names below one common prefix.

    Most names decide; of equally complete copies, an average is taken first, as timm does. Where
    parts of a network were wrapped by themselves, the wrapper's name is taken out.

    Args:
        tensors: of the whole checkpoint.
        wanted: the names of the network's own state.

    Example:
        >>> from pathlib import Path
        >>> info = TensorInfo("model.module.fc.bias", (2,), (1,), "float32", Path(), 0, 8)
        >>> list(choose([info], ["fc.bias"]).infos)
        ['fc.bias']
    """
    names = {info.name: info for info in tensors}
    found = _below_a_prefix(names, wanted)
    for rename, how in ((_unwrapped, ""), (_without_parts, _PARTS)):
        if len(found.infos.keys() & set(wanted)) == len(wanted):
            break
        again = _below_a_prefix({rename(name): info for name, info in names.items()}, wanted)
        if len(again.infos.keys() & set(wanted)) > len(found.infos.keys() & set(wanted)):
            found = replace(again, why="; ".join(filter(None, (again.why, how))))
    return found


def _below_a_prefix(names: Mapping[str, TensorInfo], wanted: Collection[str]) -> Chosen:
    known, hits = set(wanted), Counter[str]()
    for name in names:
        hits.update(prefix for prefix, rest in _splits(name) if rest in known)
    most = max(hits.values(), default=0)
    full = [prefix for prefix, n in hits.items() if n == most] or [""]
    prefix, *others = sorted(full, key=_rank)
    infos = {
        name[len(prefix) :]: info
        for name, info in names.items()
        if name.startswith(prefix)
        and (name[len(prefix) :] in known or not is_foreign(name))
        and not any(name.startswith(other) for other in others if other.startswith(prefix))
    }
    why = ""
    if others:
        shown = ", ".join(_shown(other) for other in others)
        why = f"weights from {_shown(prefix)}, not from {shown}"
        why += ", as timm chooses" if _rank(prefix)[0] < len(ORDER) else ""
    return Chosen(infos, why)


def _splits(name: str) -> Iterable[tuple[str, str]]:
    """Every way to cut a name into a prefix and the rest."""
    yield "", name
    for at, letter in enumerate(name):
        if letter == ".":
            yield name[: at + 1], name[at + 1 :]


def _rank(prefix: str) -> tuple[int, bool]:
    """The place of a copy among others; sorting is stable, so the file's order decides the rest."""
    first = prefix.partition(".")[0]
    return ORDER.index(first) if first in ORDER else len(ORDER), bool(FOLLOWERS.search(first))


def _shown(prefix: str) -> str:
    return prefix.rstrip(".") or "the top"


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def _without_parts(name: str) -> str:
    """The name that a part of mmpretrain's classifier has in a network that is not in parts."""
    bare = _unwrapped(name).replace("head.fc.", "fc.")
    return ".".join(part for part in bare.split(".") if part != "backbone")


def read_tensors(infos: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """The tensors themselves, each in its own dtype, contiguous, on the CPU."""
    return {name: read_tensor(info) for name, info in infos.items()}


def read_tensor(info: TensorInfo) -> Tensor:
    """One tensor, read where it lies; strides and byte order are honoured.

    Raises:
        BadCheckpoint: a dtype that no network computes in.
    """
    import torch

    dtype = getattr(torch, info.dtype, None)
    size = ITEM_SIZES.get(info.dtype, 0)
    if dtype is None or size not in (1, 2, 4, 8) or info.dtype.startswith("q"):
        raise BadCheckpoint(
            f"{info.name} is stored as {info.dtype}, which is not loaded into a network",
            saw=f"{info.name} {info.shape}",
            fix="save the weights as float32, float16 or bfloat16",
        )
    flat = info if info.shape else replace(info, shape=(1,), strides=(1,))
    bits = np.empty(flat.shape, f"=u{size}")
    with opened(info.file) as fd:
        for block in blocks(flat):
            bits[tuple(block.along(axis) for axis in range(bits.ndim))] = block.read(fd)
    # torch has few operations for unsigned integers; signed ones of the same bits always work.
    return torch.from_numpy(bits.view(f"=i{size}")).view(dtype).reshape(info.shape)


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
