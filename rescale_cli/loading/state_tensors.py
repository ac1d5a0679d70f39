"""A checkpoint's tensors as torch tensors, by the names of the network that takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rescale_cli.checkpoints.tensor_bytes import blocks
from rescale_cli.core.tensor_info import ITEM_SIZES, TensorInfo
from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.regular_file import opened
from rescale_cli.finding.head_names import FOLLOWERS, is_foreign

if TYPE_CHECKING:
    from torch import Tensor

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
