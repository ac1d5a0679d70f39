"""From the name of a head to its numbers, read in blocks: row norms, bias, gauge."""

from __future__ import annotations

import numpy as np

from rescale_cli.checkpoints.adapter import refuse_adapted_head
from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.checkpoints.tensor_bytes import blocks, overlaps_itself, share_bytes
from rescale_cli.core.floats import Float64, decode
from rescale_cli.core.head import Head
from rescale_cli.core.tensor_info import HEAD_DTYPES, TensorInfo
from rescale_cli.errors import BadHead
from rescale_cli.files.regular_file import opened
from rescale_cli.finding.find_head import HeadKeys


def class_axis(keys: HeadKeys) -> int:
    """The axis of the weight that counts the classes."""
    return 1 if keys.layout == "transposed" else 0


def read_head(checkpoint: Checkpoint, keys: HeadKeys) -> Head:
    """The row norms, bias and gauge of a head.

    The memory used is that of one block and a few vectors, however large the head.

    Raises:
        BadHead: a dtype that is no float of 16 bits or more, NaN or infinity in it, or bytes that
            belong to two of its elements.
    """
    weight = checkpoint.tensor(keys.weight)
    refuse_adapted_head(keys.weight, checkpoint.contents.tensors)
    # First of all: a broadcast view may declare more rows or columns than any memory holds.
    _refuse_broadcast(weight)
    _refuse_dtype(weight)
    lengths_only = keys.layout == "weight_norm"
    squares = np.zeros(keys.num_classes)
    total = np.zeros(0 if lengths_only else keys.feature_dim)
    axis = class_axis(keys)
    with opened(weight.file) as fd:
        for block in blocks(weight):
            values = decode(block.read(fd), weight.dtype)
            _refuse_nan(weight, values, axis, block.lo if block.axis == axis else 0)
            rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
            with np.errstate(over="ignore"):
                squares[block.along(axis)] += (rows**2).sum(axis=1)
            if lengths_only:
                continue
            sums = rows.sum(axis=0)
            total[slice(None) if len(sums) == len(total) else block.along(1 - axis)] += sums
    norms = np.sqrt(squares)
    if not np.isfinite(norms).all():
        raise BadHead(
            f"row {int(np.argmin(np.isfinite(norms)))} of {keys.weight} is too long to measure",
            saw="the sum of its squares is above the largest float64",
            fix="use a checkpoint from before the training diverged",
        )
    length = norms.sum()
    gauge = float(np.sqrt((total**2).sum()) / length) if length else 0.0
    return Head(norms, _read_bias(checkpoint, keys), gauge)


def refuse_shared(checkpoint: Checkpoint, edited: list[TensorInfo]) -> None:
    """Refuse a head that cannot change alone.

    Raises:
        BadHead: one of its bytes is two of its elements, or belongs to a tensor that is no head.
    """
    for info in edited:
        _refuse_broadcast(info)
        for other in checkpoint.contents.tensors:
            same = (other.start, other.shape, other.strides) == (
                info.start,
                info.shape,
                info.strides,
            )
            if (other in edited and same) or other == info:
                continue
            if share_bytes(info, other):
                raise BadHead(
                    f"{info.name} shares its bytes with {other.name}, which would change too",
                    saw=f"both lie in bytes {max(info.start, other.start):,} to "
                    f"{min(info.stop, other.stop):,} of {info.file.name}",
                    fix="save the checkpoint with a .clone() of the head, then apply again",
                )


def _read_bias(checkpoint: Checkpoint, keys: HeadKeys) -> Float64 | None:
    if keys.bias is None:
        return None
    info = checkpoint.tensor(keys.bias)
    _refuse_dtype(info)
    bias = np.empty(keys.num_classes)
    with opened(info.file) as fd:
        for block in blocks(info):
            bias[block.along(0)] = decode(block.read(fd), info.dtype).reshape(-1)
    _refuse_nan(info, bias, 0, 0)
    return bias


def _refuse_broadcast(info: TensorInfo) -> None:
    if overlaps_itself(info):
        raise BadHead(
            f"{info.name} is a broadcast view: one byte of it is in several rows",
            saw=f"shape {info.shape}, strides {info.strides}",
            fix="save the checkpoint with .contiguous() on this tensor",
        )


def _refuse_dtype(info: TensorInfo) -> None:
    if info.dtype not in HEAD_DTYPES:
        raise BadHead(
            f"{info.name} is stored as {info.dtype}, which cannot be re-scaled without loss",
            saw=f"{info.name} {info.shape}",
            fix=f"re-scale the checkpoint it was made from, in one of {', '.join(HEAD_DTYPES)}",
        )


def _refuse_nan(info: TensorInfo, values: Float64, axis: int, first: int) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        spot = tuple(np.argwhere(~finite)[0])
        raise BadHead(
            f"class {int(spot[axis]) + first} of {info.name} holds {values[spot]}",
            saw=f"{int((~finite).sum())} values that are not finite",
            fix="use a checkpoint from before the training diverged",
        )
