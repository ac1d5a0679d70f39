"""The exact path against brute force: every strength by multiplication and arg max, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from rescale_cli import strength_path
from rescale_cli.strength_path import correct_intervals, in_blocks, lines_of, predicted_path

EXAMPLE = Path(__file__).parents[1] / "examples" / "fashion_lt"
STRENGTHS = torch.linspace(0, 4, 173, dtype=torch.float64)

#: Of torch, before any test.
THREADS = torch.get_num_threads()


def scores_at(logits: Tensor, slopes: Tensor, gamma: float, log: bool) -> Tensor:
    logits = logits.double()
    return logits * (gamma * slopes).exp() if log else logits + gamma * slopes


def is_right(lo: Tensor, hi: Tensor, gamma: float) -> Tensor:
    return (lo <= gamma) & (gamma <= hi)


def predicted_at(path: tuple[Tensor, Tensor, Tensor], gamma: float, samples: int) -> Tensor:
    sample, begin, label = path
    answer = torch.full((samples,), -1)
    for row, at, found in zip(sample.tolist(), begin.tolist(), label.tolist(), strict=True):
        if at <= gamma:
            answer[row] = found
    return answer


def problem(seed: int, samples: int, classes: int, log: bool) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator) * 3 + (1 if log else 0)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits[torch.arange(samples), labels] += 2
    counts = torch.randint(1, 500, (classes,), generator=generator).double()
    return logits, labels, (counts.max() / counts).log()


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 60), classes=st.integers(2, 30))
def test_a_sample_is_right_exactly_inside_its_interval(
    seed: int, samples: int, classes: int, log: bool, dtype: torch.dtype
) -> None:
    logits, labels, slopes = problem(seed, samples, classes, log)
    logits = logits.to(dtype)
    lo, hi = correct_intervals(logits, labels, slopes, log, ties="first")
    for gamma in STRENGTHS.tolist():
        right = scores_at(logits, slopes, gamma, log).argmax(1) == labels
        assert torch.equal(is_right(lo, hi, gamma), right)


@pytest.mark.parametrize("log", [True, False])
@given(
    values=st.lists(
        st.sampled_from([-torch.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 4.0, torch.inf]),
        min_size=4, max_size=4,
    ),
    slopes=st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=4, max_size=4),
    label=st.integers(0, 3),
)  # fmt: skip
@example(values=[-torch.inf, -torch.inf, 0.5, 4.0], slopes=[0.0, 0.0, 2.0, 0.0], label=3)
def test_ties_zeros_and_infinities_are_those_of_brute_force(
    values: list[float], slopes: list[float], label: int, log: bool
) -> None:
    # Powers of two and strengths that are multiples of log 2: both sides are exact.
    unit = float(np.log(2.0))
    logits, s = torch.tensor([values], dtype=torch.float64), torch.tensor(slopes).double()
    y = torch.tensor([label])
    closed = correct_intervals(logits, y, s * unit, log)
    first = correct_intervals(logits, y, s * unit, log, ties="first")
    for gamma in (0.0, 0.3, 0.5, 1.5, 2.2, 7.125):
        scores = logits * 2 ** (gamma * s) if log else logits + gamma * (s * unit)
        wins = bool(scores[0, label] == scores.amax())
        assert bool(is_right(*closed, gamma)) == wins
        if gamma in (0.0, 0.3, 2.2):  # at the others lines may cross: who comes first is moot
            assert bool(is_right(*first, gamma)) == bool(scores.argmax() == label)
        if gamma <= 4:  # where several are level between two of its steps, any of them is largest
            predicted = predicted_at(predicted_path(logits, s * unit, log), gamma, 1)
            assert bool(scores[0, predicted] == scores.amax())
            assert gamma or bool(predicted == scores.argmax())


def test_the_closed_end_of_an_interval_is_a_tie_that_the_true_class_wins() -> None:
    logits, slopes = (
        torch.tensor([[8.0, 4.0, 8.0]]).double(),
        torch.tensor([0.0, 1.0, 0.0]).double(),
    )
    lo, hi = correct_intervals(logits, torch.tensor([0]), slopes)
    assert lo.item() == -torch.inf
    assert hi.item() == pytest.approx(np.log(2.0))
    lo, _ = correct_intervals(logits, torch.tensor([2]), slopes, ties="first")
    assert lo.item() == torch.inf, "class 0 has the same line and comes first"


@pytest.mark.parametrize("log", [True, False])
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 25), classes=st.integers(2, 12))
def test_the_predicted_path_is_the_arg_max_of_every_strength(
    seed: int, samples: int, classes: int, log: bool
) -> None:
    logits, _, slopes = problem(seed, samples, classes, log)
    logits[0] = -logits[0].abs()
    path = predicted_path(logits, slopes, log, limit=4.0)
    for gamma in (0.0, 0.11, 0.7, 1.9, 4.0):
        scores = scores_at(logits, slopes, gamma, log)
        assert torch.equal(predicted_at(path, gamma, samples), scores.argmax(1))


def test_path_and_intervals_agree_on_the_bundled_example() -> None:
    with np.load(EXAMPLE / "val_logits.npz") as file:
        logits, labels = torch.from_numpy(file["logits"]), torch.from_numpy(file["labels"]).long()
    counts = torch.tensor([6000 * 100 ** (-i / 9) for i in range(10)]).double()
    slopes = (counts.max() / counts).log()
    lo, hi = correct_intervals(logits, labels, slopes)
    path = predicted_path(logits, slopes, limit=2.0)
    assert bool((path.gamma >= 0).all())
    assert bool((path.gamma <= 2).all())
    for gamma in np.linspace(0, 2, 41):
        brute = scores_at(logits, slopes, gamma, log=True).argmax(1)
        assert torch.equal(predicted_at(path, gamma, len(labels)), brute)
        assert torch.equal(is_right(lo, hi, gamma), brute == labels)


def test_intervals_of_batches_are_those_of_the_whole() -> None:
    logits, labels, slopes = problem(7, 500, 40, log=True)
    whole = correct_intervals(logits, labels, slopes)
    parts = [
        correct_intervals(a, b, slopes)
        for a, b in zip(logits.split(77), labels.split(77), strict=True)
    ]
    for side in (0, 1):
        assert torch.equal(whole[side], torch.cat([part[side] for part in parts]))


def test_threads_change_nothing_and_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, slopes = problem(8, 500, 40, log=True)
    once = correct_intervals(logits, labels, slopes), predicted_path(logits, slopes)
    monkeypatch.setattr(strength_path, "_BLOCK", 1000)  # twenty blocks
    again = correct_intervals(logits, labels, slopes), predicted_path(logits, slopes)
    for whole, blocks in zip(once[0], again[0], strict=True):
        assert torch.equal(whole, blocks)
    for gamma in (0.0, 0.3, 1.7):
        one, other = (predicted_at(path, gamma, 500) for path in (once[1], again[1]))
        assert torch.equal(one, other)
    assert torch.get_num_threads() == THREADS


def test_an_error_in_one_thread_is_an_error() -> None:
    def begin() -> Callable[[slice], None]:
        return lambda rows: 1 // (rows.start - 60)

    with pytest.raises(ZeroDivisionError):
        in_blocks(100, 10, begin)
    assert torch.get_num_threads() == THREADS


def test_no_samples_have_no_intervals() -> None:
    lo, hi = correct_intervals(torch.empty(0, 3), torch.empty(0).long(), torch.ones(3))
    assert len(lo) == len(hi) == 0


def test_lines_of_a_dark_row_are_turned_round() -> None:
    lines, slopes = lines_of(torch.tensor([[-1.0, -4.0]]), torch.tensor([0.0, 1.0]), log=True)
    assert lines.argmax(1).item() == 0
    assert slopes.tolist() == [[-0.0, -1.0]]


def test_the_smallest_positive_scores_still_win_from_some_strength_on() -> None:
    tiny = 2.3e-308  # just above the smallest normal number
    logits = torch.tensor([[1.0, tiny]], dtype=torch.float64)
    slopes = torch.tensor([0.0, 1000.0], dtype=torch.float64)
    lo, hi = correct_intervals(logits, torch.tensor([1]), slopes)
    assert lo.item() == pytest.approx(-np.log(tiny) / 1000, rel=1e-12)
    assert hi.item() == torch.inf


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available")
@pytest.mark.parametrize("log", [True, False])
def test_cuda_gives_the_intervals_and_paths_of_the_cpu(log: bool) -> None:
    logits, labels, slopes = problem(3, 3000, 200, log)
    here = correct_intervals(logits, labels, slopes, log)
    there = correct_intervals(logits.cuda(), labels.cuda(), slopes.cuda(), log)
    for cpu, cuda in zip(here, there, strict=True):
        torch.testing.assert_close(cuda.cpu(), cpu, rtol=1e-12, atol=1e-12)
    one, other = (predicted_path(x, slopes, log) for x in (logits, logits.cuda()))
    assert torch.equal(one.label, other.label.cpu())
