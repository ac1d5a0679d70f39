"""Batch normalization over the batches of all ranks, so that ranks do not change the result.

Only functions import this file, because it imports torch.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def normalize_together(network: nn.Module, device: torch.device) -> nn.Module:
    """Let batch normalization use the batches of all ranks, so that ranks do not change the result.

    On CUDA it is torch's SyncBatchNorm, which does not run on CPUs; there it is ours.
    """
    if device.type == "cuda":
        convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
        synced: nn.Module = convert(network)
        return synced
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(module, name, RankedBatchNorm(child))
    return network


class RankedBatchNorm(nn.Module):
    """Our SyncBatchNorm for CPUs, with the same parameters, buffers and names as BatchNorm."""

    def __init__(self, old: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = old.eps, old.momentum
        self.weight, self.bias = old.weight, old.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(old, name))
        self.train(old.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, ...) to the same shape."""
        mean, var = cast("tuple[Tensor, Tensor]", (self.running_mean, self.running_var))
        if not self.training:
            return nn.functional.batch_norm(
                x, mean, var, self.weight, self.bias, False, 0, self.eps
            )
        y, batch_mean, batch_var, n = _Normalize.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[operator]
            share = self.momentum
            if share is None:
                share = 1 / float(self.num_batches_tracked)  # type: ignore[arg-type]
            mean.lerp_(batch_mean, share)
            var.lerp_(batch_var * (n / max(n - 1, 1)), share)
        return cast("Tensor", y)


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, mean and variance over all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        axes = [0, *range(2, x.dim())]
        own_var, own_mean = torch.var_mean(x.float(), axes, correction=0)
        own, square = own_mean.double(), own_var.double() + own_mean.double().square()
        size = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
        # In float64 the difference of squares keeps its digits: one message, not two.
        sums = torch.cat([own * size, square * size, size])
        dist.all_reduce(sums)
        n, c = float(sums[-1]), x.shape[1]
        mean = sums[:c] / n
        var = (sums[c : 2 * c] / n - mean.square()).clamp_min_(0)
        scale = (var + eps).rsqrt()
        mean, var, scale = mean.to(_wide(x)), var.to(_wide(x)), scale.float()
        shape = (1, c, *[1] * (x.dim() - 2))
        ctx.save_for_backward(x, mean, scale, weight)
        ctx.n, ctx.shape, ctx.axes = n, shape, axes
        y = (x - mean.view(shape)) * scale.view(shape)
        if weight is not None and bias is not None:
            y = y * weight.view(shape) + bias.view(shape)
        ctx.mark_non_differentiable(mean, var)
        return y.to(x.dtype), mean, var, n

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        x, mean, scale, weight = ctx.saved_tensors
        shape, axes = ctx.shape, ctx.axes
        grad = grad.float()
        centred = x - mean.view(shape)
        total, along = grad.sum(axes), (grad * centred).sum(axes)
        sums = torch.cat([total, along])
        dist.all_reduce(sums)
        mean_grad, mean_along = (part / ctx.n for part in sums.chunk(2))
        inner = grad - mean_grad.view(shape)
        inner = inner - centred * (mean_along * scale.square()).view(shape)
        factor = scale if weight is None else scale * weight
        back = (inner * factor.view(shape)).to(x.dtype)
        if weight is None:
            return back, None, None, None
        return back, along * scale, total, None


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of the statistics, float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)
