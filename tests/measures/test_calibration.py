"""Metrics of probabilities: against scikit-learn, torch, and their definitions sample by sample."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as oracle

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import BadInput
from rescale_cli.measures import calibration
from rescale_cli.measures.calibration import BINS, Measured, measure_logits

INF = np.inf


@pytest.fixture(scope="module")
def fashion() -> tuple[Any, Any]:
    """Logits (2000, 10) and labels of the bundled classifier."""
    path = Path(__file__).parents[2] / "examples" / "fashion_lt" / "val_logits.npz"
    with np.load(path) as file:
        return file["logits"], file["labels"]


@st.composite
def logit_tables(draw: st.DrawFn) -> tuple[Any, Any]:
    """logits (N, C), many of them equal, and labels (N,)."""
    n, c = draw(st.integers(1, 70)), draw(st.integers(2, 9))
    values = draw(st.sampled_from([st.integers(-3, 3), st.floats(-40, 40)]))
    logits = draw(arrays.arrays(np.float64, (n, c), elements=values))
    return logits, draw(arrays.arrays(np.int64, n, elements=st.integers(0, c - 1)))


def softmax(logits: Any) -> Any:
    """(N, C) by torch, in float64."""
    return torch.from_numpy(np.asarray(logits, np.float64)).softmax(dim=1).numpy()


def binned_error(probability: Any, happened: Any) -> float:
    """The definition: sort, cut into 15 equal parts, compare the two means of each."""
    order = np.argsort(probability, kind="stable")
    for value in np.unique(probability):  # samples of one confidence share their outcomes
        same = probability == value
        happened = np.where(same, happened[same].mean(), happened)
    parts = np.array_split(order, BINS)
    return sum(abs(probability[p].sum() - happened[p].sum()) for p in parts) / len(probability)


def same(found: Measured, expected: Measured) -> None:
    """Equal, but for the order of summation."""
    assert found.predicted.tolist() == expected.predicted.tolist()
    for name in ("top_5", "nll", "ece", "classwise_ece", "brier"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12), name


@given(case=logit_tables(), seed=st.integers(0, 99))
def test_the_parts_of_the_samples_make_the_metrics_however_often_each_counts(
    case: Any, seed: int
) -> None:
    logits, labels = case
    found = measure_logits(logits, labels)
    times = np.random.default_rng(seed).integers(0, 3, len(labels)) + (labels == labels[0])
    once, more = np.ones((1, len(labels))), times[None].astype(float)
    for name, (value,) in found.samples.metrics(once).items():
        assert value == pytest.approx(getattr(found, name), abs=1e-12)
    again = measure_logits(np.repeat(logits, times, axis=0), np.repeat(labels, times))
    for name in found.samples.means.keys() - {"classwise_ece"}:  # there, the signs are held fixed
        (value,) = found.samples.metrics(more)[name]
        assert value == pytest.approx(getattr(again, name), abs=1e-12)


def test_replicates_of_ece_keep_the_bins_of_the_samples(fashion: Any) -> None:
    found, p = measure_logits(*fashion), softmax(fashion[0])
    times = np.random.default_rng(0).integers(0, 3, len(p)).astype(float)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == fashion[1]
    gap = (times * (confidence - right))[np.argsort(confidence, kind="stable")]
    expected = sum(abs(part.sum()) for part in np.array_split(gap, BINS)) / times.sum()
    assert found.samples.metrics(times[None])["ece"][0] == pytest.approx(expected, abs=1e-4)


@given(case=logit_tables())
def test_every_number_is_its_definition_even_where_logits_tie(case: Any) -> None:
    logits, labels = case
    n, c = logits.shape
    found, p = measure_logits(logits, labels), softmax(logits)
    assert found.predicted.tolist() == logits.argmax(axis=1).tolist()
    tensor = torch.from_numpy(logits)
    nll = torch.nn.functional.cross_entropy(tensor, torch.from_numpy(labels))
    assert found.nll == pytest.approx(float(nll), abs=1e-12)
    truth = np.eye(c)[labels]
    assert found.brier == pytest.approx(((p - truth) ** 2).sum(axis=1).mean(), abs=1e-12)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)  # the same bits for what ties
    right = (found.predicted == labels).astype(float)
    assert found.ece == pytest.approx(binned_error(p.max(axis=1), right), abs=1e-9)
    each = [binned_error(p[:, k], truth[:, k]) for k in range(c)]
    assert found.classwise_ece == pytest.approx(np.mean(each), abs=1e-9)
    above = (logits > logits[np.arange(n), labels][:, None]).sum(axis=1)
    assert found.top_5 == (None if c <= 5 else (above < 5).mean())


def test_real_logits_give_what_scikit_learn_torch_and_torchmetrics_give(fashion: Any) -> None:
    from torchmetrics.functional.classification import multiclass_accuracy

    logits, labels = fashion
    found, p = measure_logits(logits, labels), softmax(logits)
    assert found.nll == pytest.approx(oracle.log_loss(labels, p), rel=1e-9)
    assert found.top_5 == oracle.top_k_accuracy_score(labels, logits, k=5)
    tensors = torch.from_numpy(logits), torch.from_numpy(labels)
    top_5 = multiclass_accuracy(*tensors, 10, average="micro", top_k=5)
    assert found.top_5 == pytest.approx(float(top_5), rel=1e-6)
    each = [oracle.brier_score_loss(labels == k, p[:, k]) for k in range(10)]
    assert found.brier == pytest.approx(sum(each), rel=1e-9)
    right = (p.argmax(axis=1) == labels).astype(float)
    assert found.ece == pytest.approx(binned_error(p.max(axis=1), right), abs=1e-9)


def test_a_well_calibrated_model_has_no_error_and_a_boastful_one_has() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits)])
    honest, boastful = measure_logits(logits, labels), measure_logits(3 * logits, labels)
    assert honest.ece < 0.015
    assert honest.classwise_ece < 0.015
    assert boastful.ece > 0.1
    assert boastful.nll > honest.nll


@given(case=logit_tables(), seed=st.integers(0, 2**32))
def test_the_order_of_the_samples_changes_nothing(case: Any, seed: int) -> None:
    logits, labels = case
    order = np.random.default_rng(seed).permutation(len(labels))
    found, shuffled = measure_logits(logits, labels), measure_logits(logits[order], labels[order])
    assert shuffled.predicted.tolist() == found.predicted[order].tolist()
    for name in ("top_5", "nll", "ece", "classwise_ece", "brier"):
        assert getattr(shuffled, name) == pytest.approx(getattr(found, name), abs=1e-9), name


@pytest.mark.parametrize(("block", "held"), [(1, 1), (70, 2000), (333, 7000), (10**6, 10**6)])
def test_the_size_of_the_blocks_changes_nothing(
    fashion: Any, monkeypatch: pytest.MonkeyPatch, block: int, held: int
) -> None:
    expected = measure_logits(*fashion)
    monkeypatch.setattr(calibration, "_BLOCK", block)
    monkeypatch.setattr(calibration, "_HELD", held)
    same(measure_logits(*fashion), expected)


@pytest.mark.parametrize("held", [1 << 26, 4000])
def test_an_adjustment_by_blocks_is_that_of_the_whole(
    fashion: Any, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    logits, labels = fashion
    head = Head.of(np.ones((10, 3)), np.linspace(-1, 1, 10))
    counts = ClassCounts.of([6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60])
    update = Adjustment("rescale", 0.3, bias="drop", temperature=1.7).update(head, counts)
    whole = update.on_logits(logits.astype(np.float64), head.bias)
    monkeypatch.setattr(calibration, "_BLOCK", 123)
    monkeypatch.setattr(calibration, "_HELD", held)
    same(
        measure_logits(logits, labels, lambda z: update.on_logits(z, head.bias)),
        measure_logits(whole, labels),
    )


def test_the_logits_that_were_given_stay_as_they_are() -> None:
    logits = np.array([[1.0, 2.0], [3.0, INF]])
    before = logits.copy()
    measure_logits(logits, np.array([0, 1]))
    measure_logits(logits, np.array([0, 1]), lambda z: z)
    assert np.array_equal(logits, before)


def test_infinite_logits_are_certain_and_never_nan() -> None:
    logits = np.array([[INF, 0, 1], [INF, INF, 0], [-INF, 0, -INF], [-INF, -INF, -INF]])
    found = measure_logits(logits, np.array([0, 1, 1, 2]))
    assert found.predicted.tolist() == [0, 0, 1, 0]
    assert found.nll == pytest.approx((np.log(2) + np.log(3)) / 4)
    assert found.brier == pytest.approx((0.5 + 2 / 3) / 4)
    assert np.isfinite([found.ece, found.classwise_ece]).all()
    assert measure_logits(logits, np.array([1, 1, 1, 2])).nll == INF


@given(scale=st.sampled_from([1e-300, 1e-10, 1e10, 1e300]), case=logit_tables())
def test_logits_of_any_size_give_finite_errors(scale: float, case: Any) -> None:
    logits, labels = case
    found = measure_logits(logits * scale, labels)
    assert 0 <= found.brier <= 2 + 1e-12
    assert 0 <= found.ece <= 1
    assert 0 <= found.classwise_ece <= 1
    assert found.nll >= 0


@given(arrays.arrays(np.float64, (12, 2), elements=st.integers(-3, 3)))
def test_two_classes_are_ranked_by_the_difference_of_their_logits(logits: Any) -> None:
    labels = np.arange(12) % 2
    found, margin = measure_logits(logits, labels), logits[:, 1] - logits[:, 0]
    assert found.roc_auc == pytest.approx(oracle.roc_auc_score(labels, margin))
    wanted = oracle.average_precision_score(labels, margin)
    assert found.average_precision == pytest.approx(wanted)
    alone = measure_logits(logits[::2], labels[::2])
    assert (alone.roc_auc, alone.average_precision) == (None, None)


def test_few_classes_have_no_top_5() -> None:
    assert measure_logits(np.eye(5), np.arange(5)).top_5 is None
    assert measure_logits(np.zeros((6, 6)), np.arange(6)).top_5 == 1.0  # none is strictly above


def test_memory_stays_below_the_size_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.zeros((4000, 2000), np.float32)  # 32 MB, 64 MB of probabilities
    logits[:] = np.arange(2000) % 7
    monkeypatch.setattr(calibration, "_HELD", 1 << 19)
    tracemalloc.start()
    measure_logits(logits, np.arange(4000) % 2000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 16 << 20


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        ([[0.0, np.nan]], [0], "NaN"),
        (np.zeros((0, 2)), np.zeros(0, int), "no samples"),
        ([[0.0, 1.0]], [0, 1], "labels and samples differ in number"),
        ([[0.0, 1.0]], [2], "not a row of the head"),
    ],
)
def test_what_cannot_be_measured_is_refused(logits: Any, labels: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words) as error:
        measure_logits(np.array(logits), np.array(labels))
    assert error.value.saw
    assert error.value.fix
