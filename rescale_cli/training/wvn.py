"""Weight vector normalization: rows of unit length after every step (Kim & Kim 2020, Algorithm 1).

This is projected SGD: line 8 of Algorithm 1 follows the update of lines 6 and 7. So the rows are
projected after the optimizer's step, not in a backward hook before it. Because parameters are
projected, not gradients, every rank of a distributed run can do it by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rescale_cli.errors import BadHead

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle


def project_rows_(weight: Tensor) -> Tensor:
    """Scale each row to length 1, in place: w_i <- w_i / |w_i|.

    Computed in float32 at least, and rounded once to the dtype of the weight. Does not wait for the
    device, and can be captured in a graph. Projecting again changes nothing beyond rounding. A row
    of zeros has no direction and stays zero; `check_rows`, which waits for the device, reports it.

    Args:
        weight: (C, D), or (C, D, 1, 1) of a 1x1 convolution; a parameter or a plain tensor.

    Returns:
        the same tensor.

    Example:
        >>> import torch
        >>> project_rows_(torch.tensor([[3.0, 4.0], [0.0, -2.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, -1.0]]
    """
    import torch

    with torch.no_grad():
        return weight.div_(_norms(weight).clamp_min_(torch.finfo(torch.float32).tiny))


def check_rows(weight: Tensor) -> None:
    """Refuse rows that have no direction; called at the start, after each epoch and before saving.

    Args:
        weight: (C, D) or (C, D, 1, 1).

    Raises:
        BadHead: a row is all zeros, or contains NaN or infinity; the error names the first one.
    """
    norms = _norms(weight.detach()).flatten().tolist()
    bad = [row for row, norm in enumerate(norms) if not 0 < norm < float("inf")]
    if bad:
        what = "is all zeros" if norms[bad[0]] == 0 else "is not finite"
        raise BadHead(
            f"row {bad[0]} of the head {what}, so it has no direction to normalise",
            saw=f"{len(bad)} of {len(norms)} rows are like this; training has diverged",
            fix="train with a smaller --lr, with --warmup-epochs 5, or with --no-wvn",
        )


def attach(head: nn.Module, optimizer: Optimizer) -> RemovableHandle:
    """Project the head now and after every step that the optimizer takes.

    If a gradient scaler skips a step (fp16 overflow), the rows stay as they are. The weight is
    looked up at each step, so a state may be loaded afterwards. The rows of a moving average (EMA)
    are shorter than 1: project a copy before it is used.

    Weight decay moves a unit row only along itself, which the projection undoes, so the parameter
    groups are left as they are.

    Args:
        head: the last layer, with `weight` (C, D) or (C, D, 1, 1) and no bias.
        optimizer: the one that updates the head.

    Returns:
        a handle, whose `remove()` ends the projections.

    Raises:
        BadHead: the head has a bias or a row without direction, or is not in the optimizer.
    """
    if getattr(head, "bias", None) is not None:
        # Section III-A: a bias would learn the class frequencies that WVN keeps out of the norms.
        raise BadHead(
            "weight vector normalization needs a head without bias",
            saw=type(head).__name__,
            fix="build the head without bias: --no-head-bias, or train with --no-wvn",
        )
    if not any(p is head.weight for group in optimizer.param_groups for p in group["params"]):
        raise BadHead(
            "the optimizer does not update the weight of the head",
            saw=f"{sum(len(g['params']) for g in optimizer.param_groups)} parameters",
            fix="give the optimizer all parameters of the network",
        )
    check_rows(_weight_of(head))
    project_rows_(_weight_of(head))

    def after_step(*_: Any) -> None:
        project_rows_(_weight_of(head))

    return optimizer.register_step_post_hook(after_step)


def _weight_of(head: nn.Module) -> Tensor:
    weight: Tensor = head.weight  # type: ignore[assignment]
    return weight


def _norms(weight: Tensor) -> Tensor:
    """Row lengths (C, 1) or (C, 1, 1, 1), in float32 or wider."""
    import torch

    wide = torch.promote_types(weight.dtype, torch.float32)
    across = tuple(range(1, weight.ndim))
    norms: Tensor = torch.linalg.vector_norm(weight, dim=across, keepdim=True, dtype=wide)
    return norms
