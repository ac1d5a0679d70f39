"""The rules by which a strength is chosen, against brute force and the definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import balanced_accuracy_score

from rescale_cli.errors import UsageError
from rescale_cli.measures.significance import drawn_again
from rescale_cli.sweeping import selection as module
from rescale_cli.sweeping.decisions import DecisionPath
from rescale_cli.sweeping.selection import (
    Objective,
    Selection,
    choose_strength,
    distance_to,
    first_within,
    halves,
    standard_error,
    thinned,
    widest_plateau,
)

MANY = np.array([True, False, False])
GROUPS = {"many": MANY, "medium": np.array([False, True, False]), "few": MANY[::-1]}
SHARES = st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.8]), min_size=1, max_size=8)


@st.composite
def paths(draw: Any) -> DecisionPath:
    """The decisions on some samples of three classes, each of which changes at most twice."""
    labels = np.array([0, 1, 2, *draw(st.lists(st.integers(0, 2), max_size=9))])
    start = np.array([draw(st.integers(0, 2)) for _ in labels])
    times = st.sampled_from([0.25, 0.5, 1.0, 1.5])
    changes, now = [], start.copy()
    for sample in range(len(labels)):
        for gamma in sorted(draw(st.sets(times, max_size=2))):
            after = draw(st.sampled_from([k for k in range(3) if k != now[sample]]))
            changes.append((gamma, sample, now[sample], after))
            now[sample] = after
    changes.sort()
    gamma, sample, before, after = (
        np.array(column) for column in zip(*changes, strict=True)
    ) if changes else np.zeros((4, 0), np.int64)  # fmt: skip
    return DecisionPath(3, labels, 2.0, start, gamma.astype(float), sample, before, after)


@given(SHARES, st.sampled_from([0.0, 0.05, 0.1, 0.3]))
def test_the_cautious_choice_is_the_first_strength_near_the_best(
    values: list[float], allowance: float
) -> None:
    gammas = np.arange(len(values)) / 4
    found = first_within(gammas, np.array(values), 2.0, allowance)
    near = [value >= max(values) - allowance - 1e-9 for value in values]
    first = near.index(True)
    rest = [i for i in range(first, len(values)) if not near[i]]
    assert found.value == values[first]
    assert found.plateau == (gammas[first], gammas[rest[0]] if rest else 2.0)
    following = [*gammas, 2.0][first + 1]
    middle = (gammas[first] + following) / 2 if first else 0.0
    assert found.gamma == pytest.approx(middle, abs=(following - gammas[first]) / 4)


@given(SHARES)
def test_the_middle_of_the_widest_plateau_is_chosen_unless_zero_is_as_good(
    values: list[float],
) -> None:
    gammas = np.cumsum([0, *range(1, len(values))]) / 16
    found = widest_plateau(gammas, np.array(values), 2.0)
    best, ends = max(values), [*gammas[1:], 2.0]
    runs: list[list[float]] = []
    for i, value in enumerate(values):
        if value == best and i and values[i - 1] == best:
            runs[-1][1] = ends[i]
        elif value == best:
            runs.append([gammas[i], ends[i]])
    low, high = runs[0] if values[0] == best else max(runs, key=lambda run: run[1] - run[0])
    assert found.plateau == (low, high)
    assert found.value == best
    middle = 0.0 if values[0] == best else (low + high) / 2
    assert found.gamma == pytest.approx(middle, abs=(high - low) / 4)


@given(st.floats(0, 4), st.floats(1e-9, 1))
def test_a_strength_is_typed_with_as_few_decimals_as_stay_well_inside(
    low: float, width: float
) -> None:
    high = low + width
    found = module._rounded(low, high)
    assert abs(found - (low + high) / 2) <= (high - low) / 4
    shorter = round((low + high) / 2, max(2, len(repr(found).partition(".")[2]) - 1))
    assert shorter == found or abs(shorter - (low + high) / 2) > (high - low) / 4
    assert module._rounded(0.11, 0.99) == 0.55


@given(paths())
def test_the_distance_to_a_prior_is_the_divergence_of_the_predictions(path: DecisionPath) -> None:
    target = np.array([0.5, 0.3, 0.2])
    gammas, distance = distance_to(path, target)
    assert gammas[0] == 0
    for gamma, value in zip(gammas, distance, strict=True):
        shares = np.bincount(path.predicted(gamma), minlength=3)
        assert value == pytest.approx(entropy(shares, target))


@given(paths())
def test_a_mean_of_recalls_along_a_path_is_scikit_learns(path: DecisionPath) -> None:
    gammas, values = Objective("balanced_accuracy", GROUPS).along(path)
    assert gammas.tolist() == path.breakpoints().tolist()
    for gamma, value in zip(gammas, values, strict=True):
        wanted = balanced_accuracy_score(path.labels, path.predicted(gamma))
        assert value == pytest.approx(wanted)
    right = (path.start == path.labels) | np.isin(
        np.arange(len(path.labels)), path.sample[path.after == path.labels[path.sample]]
    )
    assert path.never_right == pytest.approx(1 - right.mean())


@given(paths(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_a_bounded_choice_costs_the_frequent_classes_no_more(
    path: DecisionPath, drop: float
) -> None:
    objective, labels = Objective("balanced_accuracy", GROUPS), path.labels
    right = labels == np.roll(labels, 1)

    def lost(gamma: float) -> float:
        now = path.predicted(gamma) == labels
        return float(right[labels == 0].mean() - now[labels == 0].mean())

    allowed = [g for g in path.breakpoints() if lost(g) <= drop + 1e-12]
    selection = Selection(rule=f"max-head-drop={drop}")
    if not allowed:
        with pytest.raises(UsageError):
            choose_strength(path, selection, objective, right)
        return
    found = choose_strength(path, selection, objective, right)
    assert lost(found.gamma) <= drop + 1e-12
    best = max(balanced_accuracy_score(labels, path.predicted(gamma)) for gamma in allowed)
    assert found.value == pytest.approx(best)


@settings(max_examples=10)
@given(paths())
def test_the_standard_error_is_that_of_the_metric_at_its_best_strength(path: DecisionPath) -> None:
    objective = Objective("balanced_accuracy", GROUPS)
    best = path.predicted(widest_plateau(*objective.along(path), path.limit).gamma)
    drawn = [
        balanced_accuracy_score(path.labels, best, sample_weight=times)
        for times in drawn_again(path.labels, 100, 1)
    ]
    assert standard_error(path, objective) == pytest.approx(np.std(drawn))


@given(st.integers(1, 40), st.integers(1, 40))
def test_thinned_strengths_are_spread_from_the_first_to_the_last(size: int, most: int) -> None:
    found = thinned(np.arange(size) / 8, most) * 8
    assert len(found) == min(size, most)
    assert found[0] == 0
    assert set(np.diff(found)) <= {(size - 1) // max(1, len(found) - 1), -(-(size - 1) // max(
        1, len(found) - 1))}  # fmt: skip


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from([0.25, 0.5, 0.9]))
def test_each_class_is_divided_by_the_share_up_to_one_sample(
    sizes: list[int], share: float
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    chosen, reported = halves(labels, share, 3)
    assert sorted([*chosen, *reported]) == list(range(len(labels)))
    assert chosen.tolist() == sorted(chosen)
    assert reported.tolist() == sorted(reported)
    for label, size in enumerate(sizes):
        assert abs((labels[reported] == label).sum() - share * size) < 1


def test_options_have_bounds() -> None:
    for right in ({"holdout": 0.0}, {"limit": 4.0}, {"limit": 0.1}, {"rule": "max-head-drop=0"},
                  {"rule": "max-head-drop=1"}, {"rule": "one-se"}):  # fmt: skip
        Selection(**right)
    for wrong in ({"holdout": 1.0}, {"holdout": -0.1}, {"limit": 0.0}, {"limit": 4.1},
                  {"rule": "max-head-drop=1.1"}, {"rule": "max-head-drop=-0.1"},
                  {"rule": "max-head-drop=x"}, {"rule": "max-head-drop"},
                  {"rule": "worst"}):  # fmt: skip
        with pytest.raises(UsageError):
            Selection(**wrong)


def test_the_prior_is_the_targets_or_uniform() -> None:
    assert Objective("few", GROUPS).prior.tolist() == pytest.approx([1 / 3] * 3)
    target = np.array([2.0, 1.0, 1.0])
    assert Objective("few", GROUPS, target).prior.tolist() == [0.5, 0.25, 0.25]
