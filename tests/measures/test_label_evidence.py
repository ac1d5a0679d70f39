"""The order of the labels, told from the predictions; scipy's assignment is the oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import linear_sum_assignment

from rescale_cli.measures import label_evidence as module
from rescale_cli.measures.label_evidence import (
    Moved,
    assignment,
    best_permutation,
    label_evidence,
    swapped,
)

RNG = np.random.default_rng(0)


def noisy(rows, labels, right, num_classes):
    """Predictions that name the row of a label with the probability `right`, else any row."""
    anything = RNG.integers(0, num_classes, len(labels))
    return np.where(RNG.random(len(labels)) < right, np.asarray(rows)[labels], anything)


def text_ranks(num_classes):
    return np.argsort(sorted(range(num_classes), key=str))


@given(st.integers(1, 9).flatmap(lambda n: arrays.arrays(np.float64, (n, n),
       elements=st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]))))  # fmt: skip
def test_the_assignment_is_as_good_as_scipys(value):
    columns = assignment(value)
    assert sorted(columns.tolist()) == list(range(len(value)))
    best = value[linear_sum_assignment(value, maximize=True)].sum()
    assert value[np.arange(len(value)), columns].sum() == pytest.approx(best)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.4, 0.7, 1.0]))
def test_the_permutation_is_the_best_one(num_classes, seed, right):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, rng.integers(1, 80))
    predicted = noisy(rng.permutation(num_classes), labels, right, num_classes)
    rates = module._rates(predicted, labels, num_classes)
    dense = np.zeros((num_classes, num_classes))
    dense[rates[0], rates[1]] = rates[2]
    rows = best_permutation(rates, num_classes)
    assert sorted(rows.tolist()) == list(range(num_classes))
    best = dense[linear_sum_assignment(dense, maximize=True)].sum()
    assert dense[np.arange(num_classes), rows].sum() == pytest.approx(best, abs=1e-4)


def alarm(predicted, labels, num_classes, **names):
    found = label_evidence(predicted, labels, num_classes, **names)
    return found is not None and found.wrong


@pytest.mark.parametrize(
    ("num_classes", "each", "right"),
    [(100, 2, 0.0), (100, 20, 0.0), (8142, 1, 0.0), (8142, 3, 0.0), (12, 3, 0.9), (2, 50, 0.0)],
)
def test_chance_and_good_models_give_no_alarm(num_classes, each, right):
    labels = np.repeat(np.arange(num_classes), each)
    predicted = noisy(np.arange(num_classes), labels, right, num_classes)
    assert not alarm(predicted, labels, num_classes)


def test_a_model_that_predicts_one_class_gives_no_alarm():
    labels = np.repeat(np.arange(100), 20)
    assert not alarm(np.full(len(labels), 7), labels, 100)
    for few in (np.repeat([2, 5, 7], [1, 1, 4]), np.repeat([0, 1, 2], [96, 1, 1])):
        assert not alarm(np.full(len(few), 9), few, 10)
    assert swapped(np.full(len(labels), 7), labels, 100) == ()


def test_a_strongly_confused_pair_gives_no_alarm():
    labels = np.repeat(np.arange(4), 50)
    predicted = np.where((labels < 2) & (RNG.random(200) < 0.6), 1 - labels, labels)
    assert not alarm(predicted, labels, 4)
    assert swapped(predicted, labels, 4) == ()


def test_a_long_tailed_model_that_ignores_its_rare_classes_gives_no_alarm():
    labels = np.repeat(np.arange(20), 30)
    rows = np.concatenate([np.arange(10), RNG.integers(0, 10, 10)])
    predicted = rows[labels]
    assert not alarm(predicted, labels, 20)
    assert swapped(predicted, labels, 20) == ()


def test_no_honest_model_of_a_thousand_gives_an_alarm():
    for _ in range(1000):
        c = int(RNG.integers(3, 15))
        confusion = RNG.dirichlet(np.full(c, 0.5), c) + np.eye(c) * RNG.random((c, 1))
        confusion /= confusion.sum(1, keepdims=True)
        # A class is not predicted more often as any other one than as itself.
        most = confusion.argmax(1)
        confusion[np.arange(c), [*range(c)]], confusion[np.arange(c), most] = (
            confusion.max(1), confusion.diagonal().copy(),
        )  # fmt: skip
        labels = np.repeat(np.arange(c), RNG.integers(2, 30, c))
        predicted = np.array([RNG.choice(c, p=confusion[label]) for label in labels])
        assert not alarm(predicted, labels, c)


def test_twelve_classes_of_three_samples_in_text_order_are_recognized():
    labels = np.repeat(np.arange(12), 3)
    found = label_evidence(text_ranks(12)[labels], labels, 12)
    assert found.wrong
    assert (found.diagonal, found.permuted) == (pytest.approx(2 / 12), pytest.approx(1.0))
    assert found.order == "the rows are in text order (1, 10, 2), and the labels are not"
    assert Moved(2, 4, 1.0) in found.moved
    assert all(one.label not in (0, 1) for one in found.moved)


def test_labels_in_text_order_under_rows_in_natural_order_are_recognized():
    labels = np.repeat(np.arange(12), 3)
    order = np.array(sorted(range(12), key=str))
    found = label_evidence(order[labels], labels, 12)
    assert found.order == "the rows are in natural order (1, 2, 10), and the labels are not"
    names = [f"class_{i}" for i in order]
    assert label_evidence(order[labels], labels, 12, names=names).order == found.order


def test_a_shifted_model_that_is_right_in_60_percent_is_recognized():
    labels = np.repeat(np.arange(9), 20)
    rows = np.arange(10) + (np.arange(10) >= 2)
    found = label_evidence(noisy(rows, labels, 0.6, 10), labels, 10)
    assert found.wrong
    assert found.order == "the labels skip class 2, so that all later labels are 1 too small"


def test_labels_that_start_at_1_are_recognized():
    labels = np.repeat(np.arange(1, 10), 20)
    found = label_evidence(noisy(np.arange(-1, 9), labels, 0.8, 10), labels, 10)
    assert found.wrong
    assert found.order == "the labels start at 1"


def test_names_in_another_order_than_the_heads_are_recognized():
    head = ["happy", "angry", "sad", "neutral"]
    data = sorted(head)
    labels = np.repeat(np.arange(4), 12)
    predicted = np.array([head.index(name) for name in data])[labels]
    found = label_evidence(predicted, labels, 4, names=data, head_names=head)
    assert found.wrong
    assert found.order == "the rows are in the order of their names"


def test_a_random_order_is_found_without_a_name():
    labels = np.repeat(np.arange(50), 8)
    rows = RNG.permutation(50)
    found = label_evidence(noisy(rows, labels, 0.7, 50), labels, 50)
    assert found.wrong
    assert found.order is None
    assert {(m.label, m.row) for m in found.moved if m.rate > 0.5} <= set(enumerate(rows))


def test_one_swapped_pair_among_many_classes_is_told_apart_from_errors():
    labels = np.repeat(np.arange(50), 8)
    rows = np.arange(50)
    rows[[3, 7]] = 7, 3
    predicted = rows[labels]
    assert not alarm(predicted, labels, 50)
    assert swapped(predicted, labels, 50) == (Moved(3, 7, 1.0), Moved(7, 3, 1.0))
    assert swapped(predicted[::4], labels[::4], 50) == ()  # two samples a class say nothing


def test_a_few_guesses_give_no_alarm_and_a_few_exchanged_samples_do():
    labels = np.repeat([0, 1], 3)
    guesses = [np.array(bits) for bits in itertools.product([0, 1], repeat=6)]
    alarms = [g for g in guesses if (found := label_evidence(g, labels, 2)) and found.wrong]
    assert [alarm.tolist() for alarm in alarms] == [(1 - labels).tolist()]


@pytest.mark.parametrize(
    ("each", "elsewhere", "right", "found"),
    [(20, 17, 0, True), (20, 16, 0, False), (20, 19, 1, False), (40, 39, 1, True),
     (3, 3, 0, True), (2, 2, 0, False)],
)  # fmt: skip
def test_a_swap_is_four_fifths_elsewhere_a_twentieth_right_and_three_samples(
    each, elsewhere, right, found
):
    rest = each - elsewhere - right
    answers = [[other] * elsewhere + [own] * right + [2] * rest for own, other in ((0, 1), (1, 0))]
    predicted = np.array([*answers[0], *answers[1], *[2] * each])
    moved = swapped(predicted, np.repeat(np.arange(3), each), 3)
    rate = elsewhere / each
    assert moved == ((Moved(0, 1, rate), Moved(1, 0, rate)) if found else ())


def test_an_alarm_needs_a_fifth_more_and_an_interval_above_a_tenth():
    for permuted, low, wrong in ((0.2, 0.11, True), (0.19, 0.11, False), (0.2, 0.10, False)):
        assert module.LabelEvidence(0.0, permuted, (low, 0.5), (), None).wrong == wrong


@given(st.lists(st.sampled_from([0, 1, 2]), min_size=4, max_size=30))
def test_the_interval_of_the_gain_is_that_of_a_mean_where_classes_are_of_one_size(predicted):
    predicted = np.array(predicted)[: len(predicted) // 2 * 2]
    labels, rows = np.arange(len(predicted)) % 2, np.array([1, 0])
    gain = 1.0 * (predicted == 1 - labels) - (predicted == labels)
    error = 1.96 * gain.std() / np.sqrt(len(gain))
    assert module._gain(predicted, labels, rows) == pytest.approx(
        (gain.mean() - error, gain.mean() + error)
    )


@pytest.mark.parametrize("size", [5, 6])
def test_halves_are_equal_and_an_odd_sample_is_in_the_first(size):
    labels = np.tile(np.arange(3), size)
    first = module._first_half(labels, seed=1)
    assert np.bincount(labels[first]).tolist() == [(size + 1) // 2] * 3
    assert not np.array_equal(first, module._first_half(labels, seed=2))
