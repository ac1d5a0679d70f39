"""The losses of the paper's tables: a plain function each.

Every loss takes logits (n, C) of any float dtype, labels (n,), the counts of the training set (C,)
and class weights (C,) or None, and returns the mean over the batch, computed in float32 at least.

The mean is over the n samples, sum_k w_{y_k} l_k / n, with weights whose mean over the training
samples is 1. PyTorch's `weight=` divides by the batch's own sum of weights instead, so that two
halves of a batch no longer average to the whole: one rank and two would train differently. The
codes that are cited scale weights to sum C; the two differ by a constant factor.

To add a loss, write one function here under `@loss("name", reference=...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.floats import Float64
from rescale_cli.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


Loss = Callable[["Tensor", "Tensor", "Tensor", "Tensor | None"], "Tensor"]

#: Facts of each: `reference`; `head`, linear or cosine; `weights`, the class weights it brings.
losses: Registry[Loss] = Registry("loss")
loss = losses.register

#: Cui et al. 2019 and Cao et al. 2019 use the same.
BETA = 0.9999


@loss("ce", reference="Kim & Kim 2020, Eq. 2", head="linear", weights="none")
def cross_entropy(
    logits: Tensor, labels: Tensor, counts: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy, l = -log p_y with p = softmax(z).

    Args:
        logits: z, (n, C).
        labels: y, (n,), int64.
        counts: (C,), not read.
        weights: (C,) or None for 1.

    Returns:
        the mean, a scalar in float32 (float64 for float64 logits).
    """
    return _mean(_negative_log(logits, labels), labels, weights)


@loss("reweight", reference="Huang et al. 2016", head="linear", weights="inverse")
def reweighted(
    logits: Tensor, labels: Tensor, counts: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy with classes weighted by inverse frequency, w_i = N / (C n_i).

    The same function as `cross_entropy`; only the weights from `class_weights` differ.
    """
    return cross_entropy(logits, labels, counts, weights)


@loss("cb", reference="Cui et al. 2019, Eq. 10", head="linear", weights="effective")
def class_balanced(
    logits: Tensor, labels: Tensor, counts: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Class-balanced cross-entropy: classes weighted by their effective number of samples.

    w_i ~ (1 - beta) / (1 - beta^n_i), beta = 0.9999. The same function as `cross_entropy`; only the
    weights from `class_weights` differ.
    """
    return cross_entropy(logits, labels, counts, weights)


@loss("focal", reference="Lin et al. 2017, Eq. 4", head="linear", weights="none")
def focal(
    logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    weights: Tensor | None = None,
    focus: float = 1.0,
) -> Tensor:
    """Focal loss, l = -(1 - p_y)^focus log p_y: well-classified samples count less.

    Args:
        logits: z, (n, C).
        labels: y, (n,).
        counts: (C,), not read.
        weights: (C,) or None for 1.
        focus: the exponent, called gamma by Lin et al.; at least 1 where p_y may reach 1 exactly,
            or 0, which is cross-entropy. 1 is what Cao et al. 2019 compare with.
    """
    logp = -_negative_log(logits, labels)
    # expm1 computes 1 - p_y without losing digits where p_y is nearly 1.
    return _mean(-((-logp.expm1()) ** focus) * logp, labels, weights)


@loss("ldam", reference="Cao et al. 2019, Eq. 13", head="cosine", weights="none")
def ldam(
    logits: Tensor,
    labels: Tensor,
    counts: Tensor,
    weights: Tensor | None = None,
    margin: float = 0.5,
    scale: float = 30.0,
) -> Tensor:
    """Label-distribution-aware margins: l = -log softmax(z - s Delta_y e_y)_y.

    Delta_i = margin * (min(n) / n_i)^(1/4): the rarest class has the largest margin. The logits are
    z = s cos(w_i, f), of a head whose rows AND features have unit length: a margin means something
    only where logits are bounded. So the network is built with a cosine head of the same scale s,
    and the factor s is part of the model that is saved; in the authors' code it is in the loss.
    Such a head has no row norms: re-scaling it changes nothing.

    Args:
        logits: s cos, (n, C), from -s to s.
        labels: y, (n,).
        counts: (C,), at least 1 each.
        weights: (C,) or None; with deferred re-weighting the effective-number weights of late
            epochs.
        margin: the largest margin, of cosines.
        scale: s, the head's.
    """
    import torch

    margins = scale * margin * (counts.min() / counts) ** 0.25
    wide = _wide(logits)
    taken = torch.zeros_like(wide).scatter(1, labels[:, None], margins.to(wide.dtype)[labels, None])
    return _mean(_negative_log(wide - taken, labels), labels, weights)


@loss("balanced-softmax", reference="Ren et al. 2020, Eq. 4", head="linear", weights="none")
def balanced_softmax(
    logits: Tensor, labels: Tensor, counts: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Balanced softmax, l = -log(n_y e^z_y / sum_i n_i e^z_i): the prior is in the loss.

    The logits then fit a uniform prior, so a later adjustment would correct twice.

    Args:
        logits: z, (n, C).
        labels: y, (n,).
        counts: (C,), at least 1 each.
        weights: (C,) or None for 1.
    """
    wide = _wide(logits)
    priors = (counts / counts.sum()).to(wide.dtype)
    return _mean(_negative_log(wide + priors.log(), labels), labels, weights)


def class_weights(
    name: str, counts: NDArray[np.int64], epoch: int = 0, drw_epoch: int | None = None
) -> Float64 | None:
    """The class weights of a loss at an epoch, (C,), or None where all are 1.

    Deferred re-weighting (DRW; Cao et al. 2019, Algorithm 1): before `drw_epoch` all weights are 1;
    then they are those of the loss, or of the effective number if the loss has none.

    Args:
        name: the loss.
        counts: training samples of each class, (C,), at least 1 each.
        epoch: from 0.
        drw_epoch: None if weights are not deferred.

    Raises:
        UsageError: there is no such loss.

    Example:
        >>> class_weights("reweight", np.array([6, 2])).tolist()
        [0.6666666666666666, 2.0]
        >>> class_weights("ldam", np.array([6, 2]), epoch=159, drw_epoch=160) is None
        True
    """
    kind = losses.entry(name).facts["weights"]
    if drw_epoch is not None:
        if epoch < drw_epoch:
            return None
        kind = "effective" if kind == "none" else kind
    if kind == "none":
        return None
    numbers = counts.astype(np.float64)
    if kind == "effective":
        # (1 - beta^n) / (1 - beta); expm1 keeps its digits.
        numbers = np.expm1(numbers * np.log(BETA)) / (BETA - 1)
    weights: Float64 = counts.sum() / (numbers * (counts / numbers).sum())
    return weights


def _wide(logits: Tensor) -> Tensor:
    """Float16 and bfloat16 as float32, because their softmax has only two or three digits."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _negative_log(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y of each sample, (n,)."""
    from torch.nn import functional

    return functional.cross_entropy(_wide(logits), labels, reduction="none")


def _mean(values: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    if weights is not None:
        values = values * weights.to(values.dtype)[labels]
    return values.mean()
