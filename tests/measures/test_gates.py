"""Gates: what may be typed, and what passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli.errors import UsageError
from rescale_cli.measures.gates import (
    LOWER_IS_BETTER,
    Gate,
    GateKind,
    read_gates,
    refuse_unjudgeable,
)
from rescale_cli.measures.metric_names import ABOUT
from rescale_cli.measures.metrics import Confusion, metrics_of
from rescale_cli.measures.significance import Interval

HIGHER = [name for name in ABOUT if name not in LOWER_IS_BETTER]
shares = st.floats(0, 1)


def test_the_names_are_those_of_the_metrics() -> None:
    table = metrics_of(Confusion.of(np.array([0, 1]), np.array([0, 1]), 2))
    assert set(ABOUT) == set(table)
    assert set(LOWER_IS_BETTER) < set(ABOUT)


@given(st.sampled_from(HIGHER), shares)
def test_what_is_typed_is_what_is_read(name: str, limit: float) -> None:
    for typed in (name, name.replace("_", "-"), name.upper(), f" {name} "):
        assert read_gates("fail-under", [f"{typed}={limit!r}"]) == [Gate(name, "fail-under", limit)]


@given(st.sampled_from(sorted(LOWER_IS_BETTER)), shares)
def test_metrics_of_which_less_is_better_have_an_upper_bound(name: str, limit: float) -> None:
    assert read_gates("fail-over", [f"{name}={limit!r}"]) == [Gate(name, "fail-over", limit)]


@pytest.mark.parametrize(
    ("kind", "word", "fix"),
    [
        ("fail-under", "balanced_accuracy", "--fail-under balanced_accuracy=0.7"),
        ("fail-under", "", "--fail-under balanced_accuracy=0.7"),
        ("fail-under", "balanced_acuracy=0.7", "--fail-under balanced_accuracy=0.7"),
        ("fail-under", "f1=0.7", "--fail-under macro_f1=0.7"),
        ("fail-under", "xyzzy=0.7", "name one of"),
        ("fail-under", "=0.7", "name one of"),
        ("fail-under", "accuracy=70%", "--fail-under accuracy=0.7"),
        ("fail-under", "accuracy=70", "--fail-under accuracy=0.7"),
        ("fail-under", "accuracy=0.7%", "--fail-under accuracy=0.007"),
        ("fail-under", "accuracy=-0.1", "--fail-under accuracy=0.7"),
        ("fail-under", "accuracy=1e9", "--fail-under accuracy=0.7"),
        ("fail-under", "accuracy=0,7", "--fail-under accuracy=0.7"),
        ("fail-under", "accuracy=nan", "--fail-under accuracy=0.7"),
        ("fail-under", "accuracy=inf", "--fail-under accuracy=0.7"),
        ("fail-under", "accuracy=", "--fail-under accuracy=0.7"),
        ("fail-under", "accuracy=0_7", "--fail-under accuracy=0.7"),
        ("fail-under", "nll=0.5", "--fail-over nll=0.5"),
        ("fail-over", "accuracy=0.5", "--fail-under accuracy=0.5"),
        ("fail-over", "ece=5", "--fail-over ece=0.05"),
        ("fail-over", "brier=3", "--fail-over brier=0.7"),
        ("fail-over", "nll=-1", "--fail-over nll=0.7"),
        ("fail-drop", "many=5", "--fail-drop many=0.05"),
        ("fail-drop", "many=5%", "--fail-drop many=0.05"),
        ("fail-drop", "many=-2", "--fail-drop many=0.05"),
    ],
)
def test_what_makes_no_sense_is_an_error_with_a_fix(kind: GateKind, word: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_gates(kind, [word])
    assert fix in caught.value.fix


def test_an_unknown_metric_lists_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="unknown metric 'xyzzy'") as caught:
        read_gates("fail-under", ["xyzzy=1"])
    assert all(name in caught.value.saw for name in ABOUT)


@given(shares, shares)
def test_a_lower_bound_passes_what_is_not_under_it(value: float, limit: float) -> None:
    assert Gate("accuracy", "fail-under", limit).check("m", value).passed == (value >= limit - 1e-9)


@given(st.floats(0, 100), st.floats(0, 100))
def test_an_upper_bound_passes_what_is_not_over_it(value: float, limit: float) -> None:
    assert Gate("nll", "fail-over", limit).check("m", value).passed == (value <= limit + 1e-9)


@given(shares, shares, shares)
def test_a_drop_is_measured_in_the_direction_that_is_worse(
    base: float, value: float, limit: float
) -> None:
    fall = Gate("accuracy", "fail-drop", limit).check("m", value, base)
    rise = Gate("nll", "fail-drop", limit).check("m", base, value)
    assert fall.passed == rise.passed == (base - value <= limit + 1e-9)
    assert fall.value == rise.value


@pytest.mark.parametrize(("base", "value", "limit"), [(0.8, 0.75, 0.05)])
def test_a_drop_of_exactly_the_limit_passes_whatever_float64_makes_of_it(
    base: float, value: float, limit: float
) -> None:
    assert base - value > limit
    assert Gate("many", "fail-drop", limit).check("m", value, base).passed
    assert not Gate("many", "fail-drop", limit).check("m", value - 1e-6, base).passed


@pytest.mark.parametrize("kind", ["fail-under", "fail-drop"])
def test_a_metric_without_a_value_fails_and_says_why(kind: GateKind) -> None:
    verdict = Gate("few", kind, 0.1).check("m", None, 0.5)
    assert (verdict.passed, verdict.value) == (False, None)
    assert verdict.message == "few is n/a: no class of this group has samples"
    assert "no value" in Gate("top_5", kind, 0.1).check("m", None, 0.5).message


def test_a_base_without_a_value_fails_and_says_whose_it_is() -> None:
    verdict = Gate("few", "fail-drop", 0.1).check("m", 0.5, None)
    assert not verdict.passed
    assert verdict.message.startswith("few of the base is n/a")


@pytest.mark.parametrize(
    ("limit", "value", "base", "message"),
    [
        (0.1, 0.5, 0.7, "many fell by 0.2000 (0.7000 to 0.5000), more than 0.1"),
        (0.1, 0.65, 0.7, "many fell by 0.0500 (0.7000 to 0.6500), at most 0.1"),
        (0.1, 0.8, 0.7, "many did not fall (0.7000 to 0.8000), at most 0.1"),
    ],
)
def test_a_verdict_says_what_happened(
    limit: float, value: float, base: float, message: str
) -> None:
    assert Gate("many", "fail-drop", limit).check("m", value, base).message == message


def test_a_gate_that_cannot_be_judged_stops_before_the_work() -> None:
    drop, group = Gate("accuracy", "fail-drop", 0.1), Gate("few", "fail-under", 0.1)
    refuse_unjudgeable([drop, group], grouped=True, based=True)
    with pytest.raises(UsageError, match="needs a base model") as caught:
        refuse_unjudgeable([drop], grouped=True, based=False)
    assert "--against" in caught.value.fix
    with pytest.raises(UsageError, match="few needs the class counts") as caught:
        refuse_unjudgeable([group], grouped=False, based=True)
    assert "--counts" in caught.value.fix


def test_an_interval_that_rounds_to_zero_has_no_minus_sign() -> None:
    change = Interval(-0.00001, -0.00002, 0.1)
    message = Gate("accuracy", "fail-drop", 0.1).check("a.pth", 0.5, 0.50001, change).message
    assert "interval of the change +0.0000 to +0.1000" in message
