"""Intervals and tests: against scipy, against a plain bootstrap, and in their coverage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.measures import significance
from rescale_cli.measures.calibration import measure_logits
from rescale_cli.measures.metrics import METRICS, Confusion, metrics_of
from rescale_cli.measures.significance import (
    MOST_EXACT,
    Interval,
    bootstrap,
    bootstrap_difference,
    drawn_again,
    mcnemar,
)

COUNTS = ClassCounts.of([6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60])
GROUPS = COUNTS.groups(many=1000, few=200)


@pytest.fixture(scope="module")
def fashion() -> tuple[Any, Any, Any]:
    """Predictions (2000,) before and after re-scaling by gamma = 0.2, and labels."""
    path = Path(__file__).parents[2] / "examples" / "fashion_lt" / "val_logits.npz"
    with np.load(path) as file:
        logits, labels = file["logits"].astype(np.float64), file["labels"]
    update = Adjustment("rescale", 0.2).update(Head.of(np.ones((10, 3))), COUNTS)
    return logits.argmax(axis=1), update.on_logits(logits).argmax(axis=1), labels


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any, Any, int]:
    """Two predictions (N,), labels (N,) and C; classes may be absent."""
    c = draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    first, second, labels = rng.integers(c, size=(3, draw(st.integers(1, 30))))
    return first, second, labels, c


def every(table: dict[str, Interval | None]) -> list[Interval]:
    """The intervals that are not n/a."""
    return [interval for interval in table.values() if interval is not None]


def plain(
    guesses: list[Any], labels: Any, c: int, groups: Any, replicates: int, seed: int
) -> list[list[dict[str, float | None]]]:
    """The metrics of each guess on each resampling, the slow way."""
    draws = [
        np.repeat(np.arange(len(labels)), times.astype(int))
        for times in drawn_again(labels, replicates, seed)
    ]
    return [
        [metrics_of(Confusion.of(guess[at], labels[at], c), groups) for at in draws]
        for guess in guesses
    ]


@given(case=pairs(), held=st.sampled_from([1, 40, 1 << 20]))
def test_intervals_are_the_percentiles_of_metrics_of_resampled_samples(
    case: Any, held: int
) -> None:
    first, second, labels, c = case
    groups = {"many": np.arange(c) < 1, "few": np.arange(c) >= 1}
    one, two = plain([first, second], labels, c, groups, 9, seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(significance, "_HELD", held)
        alone = bootstrap(first, labels, c, groups, replicates=9, seed=5)
        paired = bootstrap_difference(first, second, labels, c, groups, replicates=9, seed=5)
    whole = metrics_of(Confusion.of(first, labels, c), groups)
    assert list(alone) == list(paired) == [*METRICS, *groups]
    for name, interval in alone.items():
        values = [table[name] for table in one if table[name] is not None]
        if interval is None:
            assert whole[name] is None or not values
            continue
        assert interval.value == pytest.approx(whole[name])
        expected = np.quantile(values, [0.025, 0.975])
        assert [interval.low, interval.high] == pytest.approx(expected)
        both = zip(one, two, strict=True)
        values = [b[name] - a[name] for a, b in both if a[name] is not None]
        expected = np.quantile(values, [0.025, 0.975])
        assert [paired[name].low, paired[name].high] == pytest.approx(expected)


def test_the_intervals_of_recalls_are_scipys_where_each_class_is_drawn_for_itself(
    fashion: Any,
) -> None:
    predicted, _, labels = fashion
    support = np.bincount(labels)
    right = [(predicted == labels)[labels == row].astype(float) for row in range(10)]
    found = bootstrap(predicted, labels, 10, replicates=4000)
    for name, shares in [("accuracy", support / support.sum()), ("balanced_accuracy", 0.1)]:

        def metric(*drawn: Any, axis: int, shares: Any = shares) -> Any:
            recalls = np.stack([one.mean(axis=axis) for one in drawn], axis=-1)
            return (recalls * shares).sum(axis=-1)

        theirs = stats.bootstrap(
            right, metric, n_resamples=4000, method="percentile", vectorized=True, rng=1
        ).confidence_interval
        assert [found[name].low, found[name].high] == pytest.approx([*theirs], abs=0.0015)


def test_an_interval_holds_the_metric_of_many_classes_of_few_samples() -> None:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(300), 3)
    predicted = np.where(rng.random(900) < 0.3, labels, rng.integers(300, size=900))
    found = bootstrap(predicted, labels, 300, replicates=200)
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert found[name].low < found[name].value < found[name].high


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=50), seed=st.integers(0, 99))
def test_each_class_is_drawn_as_often_as_it_has_samples(labels: list[int], seed: int) -> None:
    for times in drawn_again(np.array(labels), 3, seed):
        assert np.array_equal(np.bincount(labels, times), np.bincount(labels))


def test_nine_intervals_in_ten_or_more_hold_the_truth() -> None:
    rng, truth = np.random.default_rng(0), np.array([0.9, 0.6, 0.75])
    inside = 0
    for seed in range(200):
        labels = rng.choice(3, size=400, p=[0.6, 0.1, 0.3])
        right = rng.random(400) < truth[labels]
        predicted = np.where(right, labels, (labels + 1) % 3)
        found = bootstrap(predicted, labels, 3, replicates=200, seed=seed)["balanced_accuracy"]
        inside += found.low <= truth.mean() <= found.high
    assert 180 <= inside <= 199


def test_the_gain_of_rescaling_is_told_from_chance(fashion: Any) -> None:
    plainly, rescaled, labels = fashion
    found = bootstrap_difference(plainly, rescaled, labels, 10, GROUPS)
    assert found["few"].low > 0
    assert found["balanced_accuracy"].low > 0
    assert not found["balanced_accuracy"].holds_zero
    assert mcnemar(plainly, rescaled, labels).p < 0.001


def test_a_pair_is_told_apart_where_two_intervals_overlap(fashion: Any) -> None:
    plainly, _, labels = fashion
    better = plainly.copy()
    wrong = np.flatnonzero(plainly != labels)[:12]
    better[wrong] = labels[wrong]
    before, after = (bootstrap(each, labels, 10)["accuracy"] for each in (plainly, better))
    assert before.high > after.low
    assert bootstrap_difference(plainly, better, labels, 10)["accuracy"].low > 0


@given(case=pairs(), seed=st.integers(0, 2**32))
def test_a_model_does_not_differ_from_itself(case: Any, seed: int) -> None:
    first, _, labels, c = case
    found = bootstrap_difference(first, first, labels, c, replicates=5, seed=seed)
    assert {(i.value, i.low, i.high) for i in every(found)} == {(0.0, 0.0, 0.0)}
    assert mcnemar(first, first, labels).p == 1


@given(case=pairs())
def test_exchanging_the_two_models_turns_the_difference_round(case: Any) -> None:
    first, second, labels, c = case
    one = bootstrap_difference(first, second, labels, c, replicates=20)
    other = bootstrap_difference(second, first, labels, c, replicates=20)
    for a, b in zip(every(one), every(other), strict=True):
        assert [a.value, a.low, a.high] == pytest.approx([-b.value, -b.high, -b.low])
    there, back = mcnemar(first, second, labels), mcnemar(second, first, labels)
    assert (there.only_first, there.only_second) == (back.only_second, back.only_first)
    assert there.p == back.p


def test_the_interval_of_a_mean_is_scipys_and_an_infinite_one_has_none(fashion: Any) -> None:
    predicted, _, labels = fashion
    logits = np.random.default_rng(0).normal(size=(len(labels), 10)) + 3 * np.eye(10)[labels]
    found = measure_logits(logits, labels)
    ours = bootstrap(predicted, labels, 10, None, found.samples, replicates=4000)["brier"]
    parts = [found.samples.means["brier"][labels == row] for row in range(10)]
    shares = np.bincount(labels) / len(labels)
    theirs = stats.bootstrap(
        parts,
        lambda *drawn, axis: sum(d.mean(axis=axis) * s for d, s in zip(drawn, shares, strict=True)),
        n_resamples=4000, method="percentile", vectorized=True, rng=1,
    ).confidence_interval  # fmt: skip
    assert [ours.low, ours.high] == pytest.approx([*theirs], abs=0.0015)
    logits[0, labels[0]] = -np.inf
    endless = measure_logits(logits, labels)
    assert endless.nll == np.inf
    table = bootstrap(predicted, labels, 10, None, endless.samples, replicates=5)
    assert table["nll"] is None
    assert table["ece"] is not None


def test_the_same_seed_gives_the_same_intervals_and_another_others(fashion: Any) -> None:
    predicted, _, labels = fashion
    one, same, other = (
        bootstrap(predicted, labels, 10, replicates=50, seed=s)["macro_f1"] for s in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_an_empty_group_has_no_interval(fashion: Any) -> None:
    first, second, labels = fashion
    groups = {"many": np.ones(10, bool), "few": np.zeros(10, bool)}
    assert bootstrap(first, labels, 10, groups, replicates=5)["few"] is None
    assert bootstrap_difference(first, second, labels, 10, groups, replicates=5)["few"] is None


def discordant(b: int, c: int) -> tuple[Any, Any, Any]:
    """Predictions of which b are right by the first alone and c by the second alone."""
    zeros, ones = np.zeros(b, int), np.ones(c, int)
    first = np.concatenate([zeros, ones, [0, 1]])
    return first, np.concatenate([zeros + 1, ones - 1, [0, 2]]), np.zeros(b + c + 2, int)


@given(b=st.integers(0, 60), c=st.integers(0, 60))
def test_mcnemar_is_scipys_binomial_for_few_pairs_and_chi_square_for_many(b: int, c: int) -> None:
    found = mcnemar(*discordant(b, c))
    assert (found.only_first, found.only_second) == (b, c)
    if b + c == 0:
        assert (found.p, found.test) == (1.0, "exact")
    elif b + c <= MOST_EXACT:
        assert found.test == "exact"
        assert found.p == pytest.approx(stats.binomtest(b, b + c).pvalue)
    else:
        assert found.test == "chi-square"
        statistic = max(0, abs(b - c) - 1) ** 2 / (b + c)
        assert found.p == pytest.approx(stats.chi2(1).sf(statistic), rel=1e-9)


def test_mcnemars_two_tails_of_many_pairs_are_near_the_exact_ones() -> None:
    for b, c in [(13, 13), (20, 12), (30, 45), (100, 140)]:
        exact = stats.binomtest(b, b + c).pvalue
        assert mcnemar(*discordant(b, c)).p == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("replicates", [0, -3])
def test_no_replicates_are_no_interval(replicates: int) -> None:
    with pytest.raises(UsageError, match="at least 1 replicate") as error:
        bootstrap(np.array([0]), np.array([0]), 2, replicates=replicates)
    assert error.value.fix


def test_predictions_of_other_samples_are_refused() -> None:
    labels = np.array([0, 1, 1])
    with pytest.raises(BadInput, match="labels and samples differ in number"):
        bootstrap_difference(labels, labels[:2], labels, 2)
    with pytest.raises(BadInput, match="same samples"):
        mcnemar(labels, labels[:2], labels)


def test_the_interval_of_classwise_ece_is_that_of_a_bootstrap_that_sorts_again() -> None:
    path = Path(__file__).parents[2] / "examples" / "fashion_lt" / "val_logits.npz"
    with np.load(path) as file:
        logits, labels = file["logits"].astype(np.float64), file["labels"].astype(np.int64)
    update = Adjustment("rescale", 0.2).update(Head.of(np.ones((10, 3))), COUNTS)
    tables = [logits, update.on_logits(logits)]
    one, two = (measure_logits(table, labels) for table in tables)
    found = bootstrap_difference(
        one.predicted, two.predicted, labels, 10, samples=(one.samples, two.samples)
    )["classwise_ece"]
    assert found is not None
    assert found.value == pytest.approx(two.classwise_ece - one.classwise_ece)
    drawn = []
    for times in drawn_again(labels, 300, seed=7):
        at = np.repeat(np.arange(len(labels)), times.astype(int))
        first, second = (measure_logits(table[at], labels[at]).classwise_ece for table in tables)
        drawn.append(second - first)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.2 * (high - low))
