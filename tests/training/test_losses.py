"""Losses: hand-worked values, PyTorch's cross-entropy in the limits, gradients that stay finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from rescale_cli.errors import UsageError
from rescale_cli.training.losses import (
    BETA,
    balanced_softmax,
    class_weights,
    cross_entropy,
    focal,
    ldam,
    losses,
)

#: Two samples whose p_y are 3/4 and 1/2 by construction.
LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])
COUNTS = torch.tensor([48, 3])


def random_batch(seed: int, n: int = 9, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    return logits, labels, torch.randint(1, 500, (classes,), generator=generator)


def test_cross_entropy_by_hand() -> None:
    value = cross_entropy(LOGITS, LABELS, COUNTS).item()
    assert value == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_focal_by_hand() -> None:
    value = focal(LOGITS, LABELS, COUNTS).item()
    assert value == pytest.approx((0.25 * math.log(4 / 3) + 0.5 * math.log(2)) / 2)
    squared = focal(LOGITS, LABELS, COUNTS, focus=2.0).item()
    assert squared == pytest.approx((0.25**2 * math.log(4 / 3) + 0.5**2 * math.log(2)) / 2)


def test_balanced_softmax_by_hand() -> None:
    # 48 * 3 against 3 * 1, and 3 against 48.
    value = balanced_softmax(LOGITS, LABELS, COUNTS).item()
    assert value == pytest.approx((math.log(147 / 144) + math.log(51 / 3)) / 2)


def test_ldam_by_hand() -> None:
    # Margins 30 * 0.5 * (3 / 48)^(1/4) = 7.5 and 30 * 0.5 = 15, taken from the true class only.
    value = ldam(LOGITS, LABELS, COUNTS).item()
    first = math.log(1 + math.exp(7.5) / 3)
    second = math.log(1 + math.exp(15.0))
    assert value == pytest.approx((first + second) / 2, rel=1e-6)


def test_ldam_is_the_authors_formula_on_cosines() -> None:
    cosines, labels, counts = random_batch(3)
    cosines = torch.tanh(cosines)
    margins = 1.0 / counts.double().sqrt().sqrt()
    margins = margins * (0.5 / margins.max())
    moved = cosines.double() - functional.one_hot(labels, 4) * margins[labels, None]
    theirs = functional.cross_entropy(30 * moved, labels).item()
    assert ldam(30 * cosines, labels, counts).item() == pytest.approx(theirs, rel=1e-5)


def test_weights_of_inverse_frequency_by_hand() -> None:
    # w_i = N / (C n_i): 51 / 96 and 51 / 6.
    weights = class_weights("reweight", COUNTS.numpy())
    assert weights is not None
    assert weights.tolist() == pytest.approx([51 / 96, 51 / 6])
    value = losses["reweight"](LOGITS, LABELS, COUNTS, torch.from_numpy(weights)).item()
    assert value == pytest.approx((51 / 96 * math.log(4 / 3) + 51 / 6 * math.log(2)) / 2)


def test_weights_of_the_effective_number_by_hand() -> None:
    # beta^1 and beta^2: effective numbers 1 and 1 + beta.
    weights = class_weights("cb", np.array([1, 2]))
    assert weights is not None
    assert weights[0] / weights[1] == pytest.approx(1 + BETA)
    assert (weights * [1, 2]).sum() / 3 == pytest.approx(1)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=30))
def test_class_weights_have_mean_1_over_the_training_samples(values: list[int]) -> None:
    counts = np.array(values)
    for name in ("reweight", "cb"):
        weights = class_weights(name, counts)
        assert weights is not None
        assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
        order = np.argsort(counts, kind="stable")
        assert (np.diff(weights[order]) <= 1e-12 * weights.max()).all()


def test_deferred_weights_set_in_at_their_epoch() -> None:
    counts = np.array([5000, 50])
    for name in losses:
        now = class_weights(name, counts)
        assert class_weights(name, counts, epoch=159, drw_epoch=160) is None
        late = class_weights(name, counts, epoch=160, drw_epoch=160)
        assert late is not None
        expected = class_weights("cb", counts) if now is None else now
        assert expected is not None
        assert late.tolist() == expected.tolist()


def test_the_effective_number_keeps_its_digits_for_few_and_for_many() -> None:
    weights = class_weights("cb", np.array([1, 10**9]))
    assert weights is not None
    assert weights[0] / weights[1] == pytest.approx(1 / (1 - BETA))


@pytest.mark.parametrize("seed", range(6))
def test_every_loss_is_cross_entropy_in_its_limit(seed: int) -> None:
    logits, labels, _ = random_batch(seed)
    equal = torch.full((4,), 77)
    plain = functional.cross_entropy(logits, labels).item()
    assert focal(logits, labels, equal, focus=0.0).item() == pytest.approx(plain, rel=1e-5)
    assert ldam(logits, labels, equal, margin=0.0).item() == pytest.approx(plain, rel=1e-5)
    for name in ("ce", "reweight", "cb", "balanced-softmax"):
        weights = class_weights(name, equal.numpy())
        given_ = None if weights is None else torch.from_numpy(weights)
        value = losses[name](logits, labels, equal, given_).item()
        assert value == pytest.approx(plain, rel=1e-5), name


@pytest.mark.parametrize("seed", range(6))
def test_weights_act_as_in_pytorch_summed_and_divided_by_n(seed: int) -> None:
    logits, labels, counts = random_batch(seed)
    weights = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    theirs = functional.cross_entropy(logits, labels, weights, reduction="sum").item() / len(labels)
    assert cross_entropy(logits, labels, counts, weights).item() == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("name", list(losses))
def test_two_halves_average_to_the_whole(name: str) -> None:
    logits, labels, counts = random_batch(5, n=10)
    weights = torch.tensor([0.1, 2.0, 0.7, 9.0])
    whole = losses[name](logits, labels, counts, weights).item()
    halves = [losses[name](logits[i::2], labels[i::2], counts, weights).item() for i in (0, 1)]
    assert whole == pytest.approx(sum(halves) / 2, rel=1e-5)


@pytest.mark.parametrize("name", list(losses))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(name: str, dtype: torch.dtype) -> None:
    logits, labels, counts = random_batch(6)
    half = logits.to(dtype)
    value = losses[name](half, labels, counts, None)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, losses[name](half.float(), labels, counts, None))


@pytest.mark.parametrize("name", list(losses))
@pytest.mark.parametrize("size", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_stay_finite_where_the_model_is_sure(
    name: str, size: float, dtype: torch.dtype
) -> None:
    sure = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    logits = (size * sure).to(dtype).requires_grad_()
    loss = losses[name](logits, torch.tensor([0, 1]), torch.tensor([10**6, 1]), None)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", list(losses))
def test_the_gradient_is_the_slope(name: str) -> None:
    logits, labels, counts = random_batch(8, n=3)
    weights = torch.tensor([0.1, 2.0, 0.7, 9.0], dtype=torch.float64)
    doubles = logits.double().requires_grad_()
    torch.autograd.gradcheck(lambda z: losses[name](z, labels, counts, weights), doubles)


def test_every_loss_says_what_head_and_weights_it_takes() -> None:
    for name in losses:
        facts = losses.entry(name).facts
        assert facts["head"] in ("linear", "cosine")
        assert facts["weights"] in ("none", "inverse", "effective")
        assert facts["reference"]
    with pytest.raises(UsageError, match="no loss 'focall'"):
        class_weights("focall", np.array([1, 2]))
