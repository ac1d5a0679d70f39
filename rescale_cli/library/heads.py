"""A head in memory: its numbers and its SHA-256, from a module or from arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.floats import HEAD_DTYPES, Bits, to_float64
from rescale_cli.core.head import Head, two_rows
from rescale_cli.errors import BadHead, UsageError

if TYPE_CHECKING:
    import torch

    ArrayLike = NDArray[Any] | torch.Tensor | Sequence[Any]
else:
    ArrayLike = Any


def as_array(given: Any, what: str = "the values") -> NDArray[Any]:
    """An array of a tensor on any device, an array or nested lists; bfloat16 becomes float32.

    Raises:
        BadHead: these are not numbers in rows of one length.
    """
    if hasattr(given, "detach"):
        tensor = given.detach().cpu()
        return np.asarray((tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy())
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, RuntimeError):  # rows of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        saw = f"{type(given).__module__}.{type(given).__qualname__}"
        raise BadHead(
            f"{what} are not an array of numbers", saw=saw, fix="pass one array or tensor"
        )
    return array


def bits_of(tensor: Any) -> tuple[Bits, str]:
    """The bit patterns of a tensor or array, in C order, and its dtype by torch's name.

    Raises:
        BadHead: a dtype that cannot be re-scaled, or no plain tensor: sharded, quantised, lazy.
    """
    kind = type(getattr(tensor, "data", tensor)).__name__
    dtype = str(tensor.dtype).removeprefix("torch.")
    plain = not hasattr(tensor, "detach") or (kind == "Tensor" and not tensor.is_meta)
    if dtype not in HEAD_DTYPES or not plain or "Uninitialized" in type(tensor).__name__:
        raise BadHead(
            "the head is not a plain tensor of floats, so its rows cannot be re-scaled here",
            saw=f"{type(tensor).__name__} of {kind}, {dtype}",
            fix="gather, materialise or de-quantise the head first, or re-scale the state dict "
            "that is loaded into the model",
        )
    size = {"float64": 8, "float32": 4}.get(dtype, 2)
    if hasattr(tensor, "detach"):
        import torch

        whole = getattr(torch, f"int{8 * size}")
        bits = tensor.detach().cpu().contiguous().view(whole).numpy()
        return bits.view(f"u{size}"), dtype
    return np.ascontiguousarray(tensor).view(f"u{size}"), dtype


def head_of(weight: Any, bias: Any) -> Head:
    """The numbers of a head with weight (C, D), or (C, D, 1, 1), and bias (C,) or None.

    Raises:
        BadHead: see `bits_of`; or the two do not fit each other, or hold NaN or infinity.
    """
    rows = to_float64(*bits_of(weight))
    shift = None if bias is None else to_float64(*bits_of(bias)).reshape(-1)
    if rows.ndim < 2 or any(n != 1 for n in rows.shape[2:]) or (
        shift is not None and len(shift) != len(rows)
    ):  # fmt: skip
        saw = f"weight {rows.shape}, bias {None if shift is None else shift.shape}"
        raise BadHead("this is not the weight and the bias of a final linear layer", saw=saw,
                      fix="pass the layer: head=model.fc, or head=(weight, bias)")  # fmt: skip
    if not np.isfinite(rows).all() or (shift is not None and not np.isfinite(shift).all()):
        raise BadHead("the head contains NaN or infinity", saw=f"weight {rows.shape}",
                      fix="use a model from before the training diverged")  # fmt: skip
    head = Head.of(rows.reshape(len(rows), -1), shift)
    return two_rows(head) if len(rows) == 1 else head


def sha256_of(*tensors: Any) -> str:
    """The SHA-256 of the bytes of weight and bias, as `find_records.head_sha256` computes it."""
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            found.update(bits_of(tensor)[0].tobytes())
    return found.hexdigest()


def parts_of_module(module: Any) -> tuple[Any, Any]:
    """Weight and bias of a layer.

    Raises:
        UsageError: it has none.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not hasattr(weight, "detach") or not (bias is None or hasattr(bias, "detach")):
        raise UsageError(
            f"{type(module).__name__} has no weight of its own",
            fix="give the final linear layer: head=model.fc, or head=(weight, bias)",
        )
    return weight, bias
