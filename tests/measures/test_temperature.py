"""The temperature: the minimum that scipy finds, and a clear word where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import BadInput
from rescale_cli.measures import calibration
from rescale_cli.measures.calibration import measure_logits
from rescale_cli.measures.temperature import fit_temperature

INF = np.inf


@pytest.fixture(scope="module")
def fashion() -> tuple[Any, Any]:
    """Logits (2000, 10) and labels of the bundled classifier."""
    path = Path(__file__).parents[2] / "examples" / "fashion_lt" / "val_logits.npz"
    with np.load(path) as file:
        return file["logits"], file["labels"]


def noisy(seed: int, scale: float = 2.0) -> tuple[Any, Any]:
    """Logits (80, 5) that are often, not always, right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(5, size=80)
    return scale * (rng.normal(size=(80, 5)) + 1.2 * np.eye(5)[labels]), labels


def by_scipy(logits: Any, labels: Any) -> float:
    """Brent's method on the log of T."""

    def nll(log_t: float) -> float:
        return measure_logits(logits, labels, lambda z: z / np.exp(log_t)).nll

    found = minimize_scalar(nll, bracket=(-1, 1), tol=1e-10)
    return float(np.exp(found.x))


def test_real_logits_get_the_temperature_that_scipy_finds(fashion: Any) -> None:
    temperature = fit_temperature(*fashion)
    assert temperature == pytest.approx(by_scipy(*fashion), rel=1e-5)
    before, after = measure_logits(*fashion), measure_logits(*fashion, lambda z: z / temperature)
    assert after.nll < before.nll
    assert after.predicted.tolist() == before.predicted.tolist()


def test_a_dozen_passes_over_the_logits_are_enough(fashion: Any) -> None:
    for scale in (0.01, 1.0, 100.0):
        seen: list[int] = []

        def counted(z: Any, scale: float = scale, seen: list[int] = seen) -> Any:
            seen.append(len(z))
            return scale * z

        found = fit_temperature(*fashion, counted)
        assert found == pytest.approx(scale * fit_temperature(*fashion), rel=2e-6)
        assert sum(seen) <= 12 * len(fashion[1])


@given(seed=st.integers(0, 2**32))
def test_no_neighbour_is_likelier(seed: int) -> None:
    logits, labels = noisy(seed)
    t = fit_temperature(logits, labels)

    def slope(beta: float) -> Any:
        p = np.exp(beta * logits)
        p /= p.sum(axis=1, keepdims=True)
        return ((p * logits).sum(axis=1) - logits[np.arange(80), labels]).mean()

    assert slope(1 / (t * (1 + 1e-6))) <= 0 <= slope(1 / (t * (1 - 1e-6)))


@given(seed=st.integers(0, 2**32), scale=st.floats(-6, 6))
def test_the_temperature_grows_with_the_logits(seed: int, scale: float) -> None:
    logits, labels = noisy(seed)
    t = fit_temperature(logits, labels)
    assert fit_temperature(10**scale * logits, labels) == pytest.approx(10**scale * t, rel=2e-6)


def test_logits_already_of_the_best_temperature_get_one(fashion: Any) -> None:
    logits, labels = fashion
    t = fit_temperature(logits, labels)
    assert fit_temperature(logits, labels, lambda z: z / t) == pytest.approx(1, rel=1e-6)


def test_folded_into_the_head_it_changes_no_decision(fashion: Any) -> None:
    logits, labels = fashion
    counts = ClassCounts.of([6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60])
    head = Head.of(np.ones((10, 3)), np.linspace(-1, 1, 10))
    plain = Adjustment("rescale", 0.2).update(head, counts)
    t = fit_temperature(logits, labels, lambda z: plain.on_logits(z, head.bias))
    folded = Adjustment("rescale", 0.2, temperature=t).update(head, counts)
    before = measure_logits(logits, labels, lambda z: plain.on_logits(z, head.bias))
    after = measure_logits(logits, labels, lambda z: folded.on_logits(z, head.bias))
    assert after.predicted.tolist() == before.predicted.tolist()
    assert after.nll < before.nll


def test_blocks_change_nothing(fashion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit_temperature(*fashion)
    monkeypatch.setattr(calibration, "_BLOCK", 77)
    assert fit_temperature(*fashion) == pytest.approx(expected, rel=1e-12)


@given(seed=st.integers(0, 2**32))
def test_classes_at_minus_infinity_are_out_of_the_question(seed: int) -> None:
    logits, labels = noisy(seed)
    impossible = np.random.default_rng(seed).random(logits.shape) < 0.2
    impossible[np.arange(80), labels] = False
    masked = np.where(impossible, -INF, logits)
    assume((masked.max(axis=1) > masked[np.arange(80), labels]).any())
    # Far away is as good as gone, as long as T stays of the order of the logits.
    far = np.where(impossible, -1e4, logits)
    assert fit_temperature(masked, labels) == pytest.approx(fit_temperature(far, labels), rel=1e-6)


def test_a_certain_and_right_sample_adds_nothing() -> None:
    logits, labels = noisy(0)
    more = np.concatenate([logits, [[0, INF, 0, 0, 0]]])
    expected = fit_temperature(logits, labels)
    assert fit_temperature(more, np.append(labels, 1)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        ([[2.0, 1.0], [1.0, 2.0]], [0, 1], "every sample is predicted correctly"),
        ([[1.0, 1.0], [1.0, 1.0]], [0, 1], "every sample is predicted correctly"),
        ([[2.0, 1.0], [2.0, 1.0]], [0, 1], "no larger than the average"),
        ([[2.0, 1.0]], [1], "no larger than the average"),
        ([[0.0, -INF], [0.0, 1.0]], [1, 1], "probability 0"),
        ([[0.0, INF], [0.0, 1.0]], [0, 1], "probability 0"),
        ([[1e-15, 0.0]] * 4, [0, 0, 0, 1], "outside"),
        ([[0.0, np.nan]], [0], "NaN"),
    ],
)
def test_where_there_is_no_temperature_the_error_says_why(
    logits: Any, labels: Any, words: str
) -> None:
    with pytest.raises(BadInput, match=words) as error:
        fit_temperature(np.array(logits), np.array(labels))
    assert error.value.saw
    assert error.value.fix
