"""The functions that the curves are made of, against their formulas, autograd and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from rescale_cli.sweeping.curves import Basis, Curves, basis_of, crossings

C, LIMIT = 4, 4.0
SEEDS = st.integers(0, 2**32 - 1)
CPU = torch.device("cpu")


def drawn(seed: int, *, bent: bool) -> tuple[Curves, Basis]:
    """Curves of four classes, of which one follows q; without `bent`, q is 1."""
    rng = np.random.default_rng(seed)
    rates, offsets = rng.normal(0, 2, C), rng.normal(0, 1, C)
    shares = rng.random(3) + 0.1
    exponents = rng.normal(0, rng.choice([0.1, 3.0]), 3) if bent else np.zeros(3)
    follows = np.array([bent, False, False, False])
    curves = Curves(rates, offsets, shares / shares.sum(), exponents, follows)
    return curves, basis_of(curves, LIMIT, CPU)


def common(curves: Curves, gamma: Tensor) -> Tensor:
    shares, exponents = map(torch.from_numpy, (curves.shares, curves.exponents))
    return (shares * (exponents * gamma[..., None]).exp()).sum(-1)


def factor(curves: Curves, row: int, gamma: Tensor) -> Tensor:
    follows = bool(curves.follows[row])
    return common(curves, gamma) if follows else (float(curves.rates[row]) * gamma).exp()


def derivatives(function: Any, gamma: Tensor) -> list[Tensor]:
    """The function and its first two derivatives, by autograd."""
    at = gamma.clone().requires_grad_()
    found = [function(at)]
    for _ in range(2):
        found.append(torch.autograd.grad(found[-1].sum(), at, create_graph=True)[0])
    return [value.detach() for value in found]


@pytest.mark.parametrize("bent", [True, False])
@settings(max_examples=30)
@given(seed=SEEDS, u=st.floats(-5, 5))
def test_every_function_and_its_derivatives_are_autograds(bent: bool, seed: int, u: float) -> None:
    curves, basis = drawn(seed, bent=bent)
    gamma = torch.linspace(0, LIMIT, 57, dtype=torch.float64)

    def same(found: Tensor, wanted: Tensor) -> None:
        scale = wanted.abs().max().item() or 1.0
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12 * scale)

    q = derivatives(lambda at: common(curves, at) + 0 * at**3, gamma)
    for row in range(C):
        k, score = torch.full((57,), row), torch.full_like(gamma, u)
        offset = float(curves.offsets[row])
        f = derivatives(lambda at, row=row: factor(curves, row, at), gamma)
        for order in range(3):
            same(basis.common(gamma, order), q[order])
            same(basis.factor(k, gamma, order), f[order])
            same(basis.value(score, k, gamma, order), u * f[order] + offset * q[order])
        same(basis.pull(k, gamma), f[1] / f[0] - q[1] / q[0])


@pytest.mark.parametrize("bent", [True, False])
@settings(max_examples=30)
@given(seed=SEEDS, u=st.floats(0, 5), b=st.floats(0, 2), ends=st.tuples(*[st.floats(0, LIMIT)] * 2))
def test_the_bend_is_the_least_bound_of_each_part(
    bent: bool, seed: int, u: float, b: float, ends: tuple[float, float]
) -> None:
    curves, basis = drawn(seed, bent=bent)
    low, high = min(ends), max(ends)
    gamma = torch.linspace(low, high, 50, dtype=torch.float64)
    q = derivatives(lambda at: common(curves, at) + 0 * at**3, gamma)[2]
    one = torch.ones(1, dtype=torch.float64)
    for row in range(C):
        f = derivatives(lambda at, row=row: factor(curves, row, at), gamma)[2]
        bend = basis.bend(u * one, b * one, torch.tensor([row]), low * one, high * one).item()
        assert bend == pytest.approx((u * f.max() + b * q.max()).item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("bent", [True, False])
@settings(max_examples=60)
@given(seed=SEEDS)
def test_two_curves_cross_where_scipy_finds_it(bent: bool, seed: int) -> None:
    curves, basis = drawn(seed, bent=bent)
    u = np.random.default_rng(seed).normal(0, 2, 2)

    def lead(gamma: float) -> float:
        at = torch.tensor(gamma, dtype=torch.float64)
        values = [
            u[i] * factor(curves, i, at) + curves.offsets[i] * common(curves, at) for i in (0, 1)
        ]
        return float(values[0] - values[1])

    if lead(0.0) <= 0 or lead(LIMIT) >= 0:
        return
    ends = torch.tensor([[0.0], [LIMIT]], dtype=torch.float64)
    found = crossings(basis, torch.from_numpy(u[:, None]), torch.tensor([[0], [1]]), ends).item()
    assert 0 < found < LIMIT
    at = torch.tensor(found, dtype=torch.float64)
    sizes = [
        abs(u[i]) * factor(curves, i, at) + abs(curves.offsets[i]) * common(curves, at)
        for i in (0, 1)
    ]
    assert abs(lead(found)) <= 1e-11 * float(sum(sizes))
    signs = [lead(gamma) > 0 for gamma in np.linspace(0, LIMIT, 100)]
    if signs == sorted(signs, reverse=True):
        assert found == pytest.approx(brentq(lead, 0, LIMIT, xtol=1e-14), rel=1e-5)
