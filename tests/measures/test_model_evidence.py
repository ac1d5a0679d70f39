"""A model that is not run as it was trained is told apart from an honest one that is hard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score
from sklearn.preprocessing import StandardScaler

import rescale_cli
from rescale_cli.core.counts import ClassCounts
from rescale_cli.measures.model_evidence import model_evidence

EXAMPLE = Path(rescale_cli.__file__).parents[1] / "examples" / "fashion_lt"


def exponential(classes: int, ratio: float, most: int = 5000) -> list[int]:
    """Counts of a long-tailed training set."""
    return [max(1, int(most * ratio ** (-i / (classes - 1)))) for i in range(classes)]


def model(
    counts: list[int], each: int, signal: float, scale: float = 1.0, seed: int = 0
) -> tuple[Any, Any]:
    """Logits of a model that learnt the prior of its training set, on balanced samples."""
    random, classes = np.random.default_rng(seed), len(counts)
    labels = np.repeat(np.arange(classes), each)
    prior = np.log(np.array(counts) / np.sum(counts))
    noise = random.normal(size=(len(labels), classes))
    return scale * (signal * np.eye(classes)[labels] + prior + noise), labels


HONEST = {
    "binary, 99 to 1, hardly ever the rare class": ([99_000, 1_000], 200, 1.0, 3.0),
    "a background of 100,000": ([100_000, 400, 100, 25], 100, 2.0, 2.0),
    "four classes, few samples": ([500, 100, 50, 5], 20, 1.5, 2.0),
    "grades of a disease, overconfident": ([2500, 240, 500, 90, 70], 100, 1.2, 2.0),
    "10 classes, 100 to 1, overconfident": (exponential(10, 100), 50, 1.5, 3.0),
    "10 classes, 1,000 to 1, overconfident": (exponential(10, 1000), 50, 1.5, 3.0),
    "100 classes": (exponential(100, 100, 500), 20, 2.0, 3.0),
    "1,000 classes, overconfident": (exponential(1000, 256, 1280), 5, 2.3, 4.0),
}


@pytest.mark.parametrize("case", HONEST)
def test_an_honest_model_of_a_long_tail_passes(case: str) -> None:
    counts, each, signal, scale = HONEST[case]
    logits, labels = model(counts, each, signal, scale)
    assert model_evidence(logits, labels, ClassCounts.of(counts)).poor == ""


def test_the_bundled_model_passes() -> None:
    with np.load(EXAMPLE / "val_logits.npz") as file:
        assert model_evidence(file["logits"], file["labels"]).poor == ""


@pytest.mark.parametrize("classes", [3, 10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_logits_that_do_not_depend_on_the_labels_are_at_chance(classes: int, seed: int) -> None:
    labels = np.arange(1000) % classes
    logits = np.random.default_rng(seed).normal(size=(1000, classes))
    assert model_evidence(logits, labels).poor == "chance"
    everything_one = logits + 50 * np.eye(classes)[0]
    assert model_evidence(everything_one, labels).poor == "chance"


@pytest.mark.parametrize("samples", [4, 10, 20])
def test_few_samples_prove_nothing(samples: int) -> None:
    labels = np.arange(samples) % 4
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(size=(samples, 4))
        assert model_evidence(logits, labels).poor == ""


def test_one_class_is_fine_where_nearly_all_samples_are_of_it() -> None:
    labels = np.repeat([0, 1], [950, 50])
    logits = np.tile([3.0, 0.0], (1000, 1)) + np.random.default_rng(0).normal(size=(1000, 2)) / 10
    assert model_evidence(logits, labels).poor == ""


def test_samples_of_some_classes_only_prove_nothing() -> None:
    counts = exponential(10, 100)
    logits, labels = model(counts, 100, 2.0, 3.0)
    for rare in (labels >= 7, labels == 9):
        found = model_evidence(logits[rare], labels[rare], ClassCounts.of(counts))
        assert found.accuracy < 0.1
        assert found.poor == ""


def collapsed(classes: int = 10) -> tuple[Any, Any]:
    """What wrong means or scales of the pixels do: features are left, decisions are not."""
    logits, labels = model([100] * classes, 100, 3.0, 3.0)
    return logits + 40 * np.eye(classes)[classes // 2], labels


def test_a_model_that_claims_far_more_than_it_reaches_is_caught() -> None:
    logits, labels = collapsed()
    found = model_evidence(logits, labels, ClassCounts.of(exponential(10, 100)))
    assert found.poor == "confidence"
    assert found.confidence > 0.9
    assert found.accuracy < 0.15
    assert found.known > 0.5, "the logits know the classes, so this is not chance"


def test_a_head_that_was_re_scaled_too_far_is_not_blamed_on_the_preprocessing() -> None:
    logits, labels = collapsed()
    assert model_evidence(logits, labels, rescaled=True).poor == ""
    noise = np.random.default_rng(0).normal(size=logits.shape)
    assert model_evidence(noise, labels, rescaled=True).poor == "chance"


@settings(max_examples=20, deadline=None)
@given(
    scale=st.lists(st.floats(0.1, 10), min_size=5, max_size=5),
    shift=st.lists(st.floats(-20, 20), min_size=5, max_size=5),
    signal=st.sampled_from([0.0, 2.5]),
)
def test_no_rescaling_turns_chance_into_knowledge_or_back(
    scale: list[float], shift: list[float], signal: float
) -> None:
    logits, labels = model([100] * 5, 100, signal)
    changed = logits * np.array(scale) + np.array(shift)
    found = model_evidence(changed, labels, rescaled=True)
    assert (found.poor == "chance") == (signal == 0.0)


def test_infinite_and_constant_logits_are_no_problem() -> None:
    labels = np.arange(400) % 4
    logits = np.zeros((400, 4))
    assert model_evidence(logits, labels).poor == "chance"
    logits[:, 3] = -np.inf
    assert model_evidence(logits, labels).poor == "chance"


def test_accuracy_and_confidence_are_those_of_scikit_learn_and_torch() -> None:
    random = np.random.default_rng(5)
    labels = np.arange(300) % 6
    logits = random.normal(size=(300, 6)) + 0.3 * np.eye(6)[labels]
    found = model_evidence(logits, labels)
    predicted = logits.argmax(1)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    softmax = torch.from_numpy(logits).softmax(1)
    assert found.confidence == pytest.approx(softmax.amax(1).mean().item())
    p, q = (np.bincount(x, minlength=6) / 300 for x in (labels, predicted))
    assert found.chance == pytest.approx(max(p @ q, 1 / 6))

    def over_maximum(predicted: Any) -> float:
        # The largest kappa of these margins: of predictions that agree wherever they can.
        q = np.bincount(predicted, minlength=6) / 300
        most = (np.minimum(p, q).sum() - p @ q) / (1 - p @ q)
        return float(cohen_kappa_score(labels, predicted) / most)

    standard = StandardScaler().fit_transform(logits).argmax(1)
    assert found.known == pytest.approx(max(over_maximum(predicted), over_maximum(standard)))


@pytest.mark.parametrize(
    ("right", "samples", "upper"), [(50, 100, 0.5962), (0, 100, 0.0370), (9, 40, 0.3750)]
)
def test_the_upper_bound_is_wilsons(right: int, samples: int, upper: float) -> None:
    """(p + z^2 / 2n + z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), worked out by hand."""
    labels = np.repeat([0, 1], [samples // 2, samples - samples // 2])
    predicted = np.where(np.arange(samples) < right, labels, 1 - labels)
    found = model_evidence(np.eye(2)[predicted], labels)
    assert found.upper == pytest.approx(upper, abs=2e-4)


def test_thirty_samples_are_enough_to_be_at_chance() -> None:
    def verdict(samples: int) -> str:
        labels = np.arange(samples) % 3
        return model_evidence(np.eye(3)[(labels + 1) % 3], labels).poor

    assert (verdict(29), verdict(30)) == ("", "chance")
