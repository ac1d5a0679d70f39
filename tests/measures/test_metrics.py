"""Metrics of the confusion matrix: scikit-learn, imbalanced-learn and torchmetrics say the same."""

from __future__ import annotations

import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from imblearn.metrics import geometric_mean_score, make_index_balanced_accuracy
from sklearn import metrics as oracle

from rescale_cli.core.counts import ClassCounts
from rescale_cli.errors import BadInput
from rescale_cli.measures.calibration import measure_logits
from rescale_cli.measures.metrics import (
    METRICS,
    Confusion,
    Tallies,
    balanced_accuracy,
    metrics_of,
    recalls,
    table_of,
)

Classes = np.ndarray[Any, np.dtype[np.int64]]


@st.composite
def predictions(draw: st.DrawFn, full: bool = False) -> tuple[Classes, Classes, int]:
    """predicted (N,), labels (N,) and C; some classes may not occur, unless full."""
    c = draw(st.integers(2, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = rng.choice(c, size=draw(st.integers(1, 60)), p=rng.dirichlet(np.full(c, 0.6)))
    if full:
        labels = np.concatenate([labels, np.arange(c)])
    right = rng.random(len(labels)) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    return np.where(right, labels, rng.integers(c, size=len(labels))), labels, c


def of_oracle(metric: Any, labels: Classes, predicted: Classes, **more: Any) -> float:
    """The other library's number, without its warnings of classes that do not occur."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(metric(labels, predicted, **more))


@given(case=predictions())
def test_every_mean_is_scikit_learns_whichever_classes_occur(case: Any) -> None:
    predicted, labels, c = case
    table = metrics_of(Confusion.of(predicted, labels, c))
    macro = {"average": "macro", "zero_division": 0}
    expected = {
        "accuracy": of_oracle(oracle.accuracy_score, labels, predicted),
        "balanced_accuracy": of_oracle(oracle.balanced_accuracy_score, labels, predicted),
        "macro_precision": of_oracle(oracle.precision_score, labels, predicted, **macro),
        "macro_f1": of_oracle(oracle.f1_score, labels, predicted, **macro),
    }
    assert {name: table[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@given(case=predictions())
def test_g_means_and_iba_are_imbalanced_learns_whichever_classes_occur(case: Any) -> None:
    predicted, labels, c = case
    table = metrics_of(Confusion.of(predicted, labels, c))
    iba = make_index_balanced_accuracy(alpha=0.1, squared=True)(geometric_mean_score)
    g_mean = geometric_mean_score
    assert table["gmean_multiclass"] == pytest.approx(of_oracle(g_mean, labels, predicted))
    macro = {"average": "macro"}
    assert table["gmean_ovr"] == pytest.approx(of_oracle(g_mean, labels, predicted, **macro))
    assert table["iba_ovr"] == pytest.approx(of_oracle(iba, labels, predicted, **macro))


@given(case=predictions())
def test_each_class_has_scikit_learns_precision_recall_f1_and_support(case: Any) -> None:
    predicted, labels, c = case
    tallies = Confusion.of(predicted, labels, c).tallies
    p, r, f, n = oracle.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(c), zero_division=0
    )
    np.testing.assert_allclose(np.nan_to_num(tallies.precision), p)
    np.testing.assert_allclose(np.nan_to_num(tallies.recall), r)
    np.testing.assert_allclose(np.nan_to_num(tallies.f1), f)
    assert tallies.support.tolist() == n.tolist()
    assert np.isnan(tallies.recall).tolist() == (n == 0).tolist()
    occurs = np.isin(np.arange(c), np.concatenate([labels, predicted]))
    assert np.isnan(tallies.f1).tolist() == np.isnan(tallies.precision).tolist()
    assert np.isnan(tallies.f1).tolist() == (~occurs).tolist()


@settings(max_examples=25)
@given(case=predictions(full=True))
def test_torchmetrics_says_the_same_where_every_class_has_samples(case: Any) -> None:
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_f1_score,
    )

    predicted, labels, c = case
    confusion = Confusion.of(predicted, labels, c)
    table = metrics_of(confusion)
    both = torch.from_numpy(predicted), torch.from_numpy(labels)
    assert confusion.dense().tolist() == multiclass_confusion_matrix(*both, c).tolist()
    assert table["balanced_accuracy"] == pytest.approx(float(multiclass_accuracy(*both, c)), 1e-5)
    assert table["macro_f1"] == pytest.approx(float(multiclass_f1_score(*both, c)), 1e-5, 1e-6)
    micro = multiclass_accuracy(*both, c, average="micro")
    assert table["accuracy"] == pytest.approx(float(micro), 1e-5, 1e-6)


@given(case=predictions())
def test_the_cells_are_the_matrix_and_its_margins_the_tallies(case: Any) -> None:
    predicted, labels, c = case
    confusion = Confusion.of(predicted, labels, c)
    dense = confusion.dense()
    assert dense.tolist() == oracle.confusion_matrix(labels, predicted, labels=range(c)).tolist()
    assert (confusion.count > 0).all()
    assert confusion.tallies.hits.tolist() == dense.diagonal().tolist()
    assert confusion.tallies.support.tolist() == dense.sum(axis=1).tolist()
    assert confusion.tallies.predicted.tolist() == dense.sum(axis=0).tolist()


@given(case=predictions(), other=st.integers(0, 2**32))
def test_many_tallies_at_once_are_each_by_itself(case: Any, other: int) -> None:
    predicted, labels, c = case
    shuffled = np.random.default_rng(other).permutation(predicted)
    each = [Confusion.of(guess, labels, c).tallies for guess in (predicted, shuffled)]
    stacked = Tallies(*(np.stack([getattr(t, f) for t in each]) for f in Tallies.__slots__))
    groups = ClassCounts.of([200, 50] + [3] * (c - 2)).groups()
    for name, both in table_of(stacked, groups).items():
        alone = [float(table_of(tallies, groups)[name]) for tallies in each]
        np.testing.assert_array_equal(both, alone, err_msg=name)


def test_the_worst_recall_is_of_a_class_with_samples() -> None:
    predicted, labels = np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1])
    assert metrics_of(Confusion.of(predicted, labels, 4))["worst_recall"] == 0.5


def test_groups_are_means_over_their_classes_with_samples_and_empty_ones_are_not_zero() -> None:
    counts = ClassCounts.of([500, 400, 50, 60, 70])
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    predicted = np.array([0, 0, 1, 0, 2, 2, 2, 0])
    confusion = Confusion.of(predicted, labels, 5)
    table = metrics_of(confusion, counts.groups())
    assert (table["many"], table["medium"], table["few"]) == (0.75, 0.75, None)
    assert metrics_of(confusion)["many"] is None
    untested = metrics_of(Confusion.of(labels[:4], labels[:4], 5), counts.groups())
    assert (untested["many"], untested["medium"]) == (1.0, None)


def test_the_flat_table_always_has_every_name_in_one_order() -> None:
    names = [
        "accuracy", "top_5", "balanced_accuracy", "macro_precision", "macro_f1",
        "gmean_multiclass", "gmean_ovr", "iba_ovr", "worst_recall", "many", "medium", "few",
        "roc_auc", "average_precision", "nll", "ece", "classwise_ece", "brier",
    ]  # fmt: skip
    labels = np.arange(6)
    confusion = Confusion.of(labels, labels, 6)
    bare = metrics_of(confusion)
    measured = measure_logits(9 * np.eye(6), labels)
    masks = ClassCounts.of([200, 200, 50, 50, 3, 3]).groups()
    whole = metrics_of(confusion, masks, measured)
    assert list(bare) == list(whole) == names
    assert {name for name in bare if bare[name] is not None} == set(METRICS)
    assert {name for name in whole if whole[name] is None} == {"roc_auc", "average_precision"}
    assert whole["brier"] == measured.brier


def test_the_short_forms_are_those_of_the_matrix() -> None:
    predicted, labels = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 1])
    assert recalls(predicted, labels, 2).tolist() == [0.5, 0.5]
    assert balanced_accuracy(predicted, labels, 2) == 0.5


def test_eight_thousand_classes_take_no_square_of_memory() -> None:
    c, n = 8142, 24426
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(c, size=(2, n))
    tracemalloc.start()
    table = metrics_of(Confusion.of(predicted, labels, c), {"many": np.arange(c) < 800})
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20 << 20
    assert table["macro_f1"] == pytest.approx(
        of_oracle(oracle.f1_score, labels, predicted, average="macro", zero_division=0)
    )


@pytest.mark.parametrize(
    ("predicted", "labels", "words"),
    [
        ([], [], "no samples"),
        ([0, 1], [0], "labels and samples differ in number"),
        ([0, 2], [0, 1], "not a row of the head"),
        ([0, 1], [0, -1], "not a row of the head"),
    ],
)
def test_what_is_no_confusion_is_refused(predicted: Any, labels: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words) as error:
        Confusion.of(np.array(predicted, int), np.array(labels, int), 2)
    assert error.value.saw
    assert error.value.fix
