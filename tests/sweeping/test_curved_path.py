"""The path of curves against brute force: every strength by exponentials and arg max."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.floats import Float64
from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.strength_path import PredictedPath, predicted_path
from rescale_cli.sweeping import curved_path as module
from rescale_cli.sweeping.curved_path import curved_path
from rescale_cli.sweeping.curves import Curves
from rescale_cli.sweeping.decisions import SweptMethod, by_curves

ADJUSTMENTS = [
    Adjustment(), Adjustment(normalize=True, bias="keep"), Adjustment("tau-norm"),
    Adjustment("tau-norm", bias="scale"), Adjustment(temperature=3.0),
]  # fmt: skip


def predicted_at(path: PredictedPath, gamma: float) -> np.ndarray:
    begun = path.gamma <= gamma
    answer = np.full(int(path.sample.max()) + 1, -1)
    answer[path.sample[begun].cpu().numpy()] = path.label[begun].cpu().numpy()
    return answer


def problem(seed: int, samples: int, classes: int) -> tuple[Head, ClassCounts, Float64]:
    rng = np.random.default_rng(seed)
    shift, spread, unit = rng.choice([-8, 0, 4]), rng.choice([0.1, 1.0, 5.0]), rng.choice([0.01, 1])
    logits = rng.normal(shift, spread, (samples, classes))
    if rng.random() < 0.3:
        logits = logits.round()  # many ties
    bias = rng.normal(0, unit, classes).round(rng.choice([0, 8]))
    norms = np.exp(rng.normal(0, rng.choice([0.02, 0.4, 1.5]), classes))
    counts = rng.integers(1, rng.choice([2, 30, 10**5]), classes, endpoint=True)
    return Head(norms, bias), ClassCounts.of(counts.tolist()), logits


def assert_brute_force(family: SweptMethod, logits: Float64, limit: float, seed: int) -> None:
    """Equal decisions, but where the two largest scores differ by rounding alone."""
    path = by_curves(family, logits, None, limit)
    for gamma in [0.0, *np.random.default_rng(seed).uniform(0, limit, 25), limit]:
        scores = family.scores(logits, gamma)
        predicted = path.predicted(gamma)
        behind = scores.max(1) - np.take_along_axis(scores, predicted[:, None], 1)[:, 0]
        scale = np.abs(family.at(gamma).scale * (logits - family.head.bias)).max(1) + 10
        assert (behind <= 1e-13 * scale).all()


@pytest.mark.parametrize("adjustment", ADJUSTMENTS, ids=str)
@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**9), samples=st.integers(1, 40), classes=st.integers(2, 40),
    limit=st.sampled_from([0.3, 2.0, 4.0]), left_out=st.booleans(),
)  # fmt: skip
def test_decisions_are_those_of_brute_force(
    adjustment: Adjustment, seed: int, samples: int, classes: int, limit: float, left_out: bool
) -> None:
    head, counts, logits = problem(seed, samples, classes)
    counts = counts.exclude([0]) if left_out else counts
    assert_brute_force(SweptMethod(adjustment, head, counts), logits, limit, seed)


@given(
    values=st.lists(
        st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, np.inf]), min_size=4, max_size=4
    ),
    counts=st.lists(st.sampled_from([1, 2, 4]), min_size=4, max_size=4),
    bias=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=4, max_size=4),
)
def test_ties_zeros_and_infinities_are_those_of_brute_force(
    values: list[float], counts: list[int], bias: list[float]
) -> None:
    family = SweptMethod(Adjustment(), Head(np.ones(4), np.array(bias)), ClassCounts.of(counts))
    logits = np.array([values])
    path = by_curves(family, logits, None, 4.0)
    for gamma in (0.0, 0.3, 0.77, 2.2, 3.9):  # at others curves may cross: who is first is moot
        assert path.predicted(gamma)[0] == family.scores(logits, gamma).argmax(1)[0]


def test_two_curves_that_cross_twice_give_two_events() -> None:
    # e^2x and 4 e^x - 3 cross at e^x = 1 and 3: class 1 leads in between.
    curves = Curves(
        np.array([2.0, 1.0]), np.array([0.0, -3.0]), np.ones(1), np.zeros(1), np.zeros(2, bool)
    )
    path = curved_path(torch.tensor([[1.0, 4.0]]), curves, 2.0)
    assert path.label.tolist() == [0, 1, 0]
    np.testing.assert_allclose(path.gamma, [0.0, 0.0, np.log(3.0)], rtol=1e-15, atol=1e-300)
    later = curved_path(torch.tensor([[1.0, 3.9]], dtype=torch.float64), curves, 2.0)
    roots = np.log((3.9 + np.array([-1, 1]) * np.sqrt(3.9**2 - 12)) / 2)
    np.testing.assert_allclose(later.gamma[1:], roots, rtol=1e-13)


def test_large_strengths_and_ratios_do_not_overflow() -> None:
    head = Head(np.array([1e-6, 1.0, 1e6]), np.array([0.5, 0.0, -0.5]))
    counts = ClassCounts.of([10**15, 1, 1000])
    logits = np.random.default_rng(0).normal(size=(200, 3)) * 1e30
    for adjustment in ADJUSTMENTS:
        assert_brute_force(SweptMethod(adjustment, head, counts), logits, 4.0, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_dtypes_are_taken_as_the_numbers_they_are(dtype: torch.dtype) -> None:
    head, counts, logits = problem(5, 300, 20)
    curves, _ = SweptMethod(Adjustment(), head, counts).curves()
    scores = torch.from_numpy(logits).to(dtype)
    for one, other in zip(
        curved_path(scores, curves), curved_path(scores.double(), curves), strict=True
    ):
        assert torch.equal(one, other)


def test_steps_of_batches_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    head, counts, logits = problem(11, 500, 30)
    curves, scores = SweptMethod(Adjustment(), head, counts).curves()
    u = torch.from_numpy(scores(logits))
    whole = curved_path(u, curves)
    parts = [curved_path(part, curves) for part in u.split(77)]
    assert torch.equal(whole.label, torch.cat([part.label for part in parts]))
    assert torch.equal(whole.gamma, torch.cat([part.gamma for part in parts]))
    monkeypatch.setattr(module, "_CHUNK", 3000)  # five chunks, shared by the threads
    monkeypatch.setattr(module, "_BLOCK", 500)
    monkeypatch.setattr(module, "_HELD", 10)
    for one, other in zip(whole, curved_path(u, curves), strict=True):
        assert torch.equal(one, other)


def test_no_samples_have_no_steps() -> None:
    head, counts, _ = problem(11, 1, 30)
    curves, _ = SweptMethod(Adjustment(), head, counts).curves()
    none = torch.empty(0, 30)
    for path in (curved_path(none, curves), predicted_path(none, torch.from_numpy(curves.rates))):
        assert [len(column) for column in path] == [0, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")
@pytest.mark.parametrize("adjustment", ADJUSTMENTS, ids=str)
def test_cuda_gives_the_path_of_the_cpu(adjustment: Adjustment) -> None:
    head, counts, logits = problem(3, 3000, 200)
    curves, scores = SweptMethod(adjustment, head, counts).curves()
    u = torch.from_numpy(scores(logits))
    here, there = curved_path(u, curves), curved_path(u.cuda(), curves)
    assert torch.equal(here.label, there.label.cpu())
    torch.testing.assert_close(there.gamma.cpu(), here.gamma, rtol=1e-12, atol=1e-12)
