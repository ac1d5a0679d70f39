"""Re-scale a live torch module in place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rescale_cli.checkpoints.locate_head import refuse_no_effect
from rescale_cli.core.alignment import join_counts
from rescale_cli.core.classes import HeadRows
from rescale_cli.core.floats import Float64, to_bits
from rescale_cli.core.head import Head, one_row, two_rows
from rescale_cli.core.methods import Adjustment
from rescale_cli.data.counts import CountsLike, as_raw_counts
from rescale_cli.data.labels import ClassesLike, row_hints
from rescale_cli.errors import BadHead, NoClassifier
from rescale_cli.files.contents import TensorInfo
from rescale_cli.finding.find_head import FoundHeads, find_heads

if TYPE_CHECKING:
    import torch


def rescale_(
    module: torch.nn.Module,
    counts: CountsLike,
    gamma: float,
    *,
    method: str = "rescale",
    normalize: bool = False,
    bias: str = "",
    head: str | None = None,
    classes: ClassesLike | None = None,
    temperature: float = 1.0,
) -> torch.nn.Module:
    """Re-scale the head of a live classifier: w_i <- (n_1 / n_i)^gamma * w_i, in place.

    The arithmetic is that of the command: float64 on the CPU, rounded once to the dtype of the
    parameter, so a CUDA module gets the same bits as a checkpoint.

    Args:
        module: the head itself (Linear, or a convolution with a 1x1 kernel), or a classifier in
            which the head is found.
        counts: training samples of each class, (C,) or by name.
        gamma: the strength, 0 to 4.
        method: rescale, tau-norm or logit-adjust.
        normalize: scale all rows to equal length first.
        bias: keep, scale or drop.
        head: the name of the head in `module`, if it cannot be found.
        classes: class names in head order, for counts that carry names.
        temperature: T > 0; weight and bias are divided by it.

    Returns:
        The same module.

    Raises:
        NoClassifier, AmbiguousHead: there is no head, or there are several.
        NoEffect: a cosine classifier, which normalises its rows whenever it runs.
        BadHead: the head contains NaN, or its dtype cannot hold the result.
        BadCounts, UnknownClassOrder: the counts do not fit its rows.
    """
    import torch

    raw = as_raw_counts(counts)
    adjustment = Adjustment(method, gamma, normalize, bias, temperature=temperature)
    hints = row_hints(classes)
    updates: list[tuple[torch.Tensor, torch.Tensor]] = []
    for weight, offset in _pairs(module, len(raw.values), head):
        rows = weight.detach().to("cpu", torch.float64).numpy()
        shift = None if offset is None else offset.detach().to("cpu", torch.float64).numpy()
        before = Head.of(rows.reshape(len(rows), -1), shift)
        before = two_rows(before) if len(rows) == 1 else before
        counted, _ = join_counts(raw, HeadRows(before.num_classes), hints)
        update = adjustment.update(before, counted)
        update = one_row(update) if len(rows) == 1 else update
        scale = update.scale.reshape(-1, *[1] * (rows.ndim - 1))
        updates.append((weight, _rounded(rows * scale, weight)))
        if offset is not None and shift is not None:
            updates.append((offset, _rounded(update.on_bias(shift), offset)))
    with torch.no_grad():
        for parameter, values in updates:
            parameter.copy_(values)
    return module


def _rounded(values: Float64, like: torch.Tensor) -> torch.Tensor:
    """The values in the dtype of a parameter, rounded once, on the CPU.

    torch itself rounds float64 to the 16-bit dtypes through float32, that is, twice.
    """
    import torch

    bits = to_bits(np.ascontiguousarray(values), str(like.dtype).removeprefix("torch."))
    rounded = torch.from_numpy(bits.view(f"i{bits.itemsize}")).view(like.dtype)
    if not torch.isfinite(rounded).all():
        raise BadHead(
            f"the head holds NaN or infinity, or a row does not fit into {like.dtype}",
            fix="use a smaller gamma, a wider dtype, or an earlier state of the model",
        )
    return rounded


def _pairs(
    module: torch.nn.Module, num_classes: int, head: str | None
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight and bias of each head: of the module itself if it is a layer, else of those in it."""
    own = dict(module.named_parameters(recurse=False))
    if "weight" in own and set(own) <= {"weight", "bias"} and own["weight"].dim() > 1:
        if any(size != 1 for size in own["weight"].shape[2:]):
            raise NoClassifier(
                "a convolution with a kernel larger than 1 x 1 is not a classifier head",
                saw=f"weight {tuple(own['weight'].shape)}",
                fix="pass the final linear layer, or the whole model",
            )
        return [(own["weight"], own.get("bias"))]
    return _find(module, num_classes, head)


def _find(
    module: torch.nn.Module, num_classes: int, head: str | None
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    found = heads_in(module, num_classes, head)
    refuse_no_effect(found)
    for keys in found.heads:
        if keys.layout not in ("linear", "conv1x1", "weight_norm"):
            raise NoClassifier(
                f"{keys.weight} is stored as {keys.layout}, which cannot be scaled in place",
                fix="pass the head itself, or re-scale the checkpoint: rescale-cli apply",
            )
    state = _state(module)
    return [(state[k.weight], state[k.bias] if k.bias else None) for k in found.heads]


def heads_in(module: torch.nn.Module, num_classes: int | None, head: str | None) -> FoundHeads:
    """Find the heads of a live classifier by the names and shapes of its parameters and buffers.

    Args:
        module: a classifier.
        num_classes: C, if it is known.
        head: the name of the head, or a unique end of it, if it cannot be found.

    Raises:
        NoClassifier, AmbiguousHead, BadInput: as `find_heads`.
    """
    tensors = [
        TensorInfo(
            name,
            tuple(tensor.shape),
            tuple(tensor.stride()),
            str(tensor.dtype).removeprefix("torch."),
            Path(),
            0,
            tensor.numel() * tensor.element_size(),
        )
        for name, tensor in _state(module).items()
    ]
    owners = {
        name: f"{type(part).__module__}.{type(part).__qualname__}"
        for name, part in module.named_modules()
    }
    names = (head,) if head else ()
    return find_heads(tensors, num_classes=num_classes, names=names, only=True, owners=owners)


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
