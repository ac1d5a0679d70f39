"""The post-hoc methods: laws that hold for every one, and the formulas by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli.commands.options import BiasPolicy, MethodName
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head, RowUpdate
from rescale_cli.core.methods import BIAS_POLICIES, METHODS, Adjustment
from rescale_cli.errors import BadHead, UsageError

EVERY = sorted(METHODS)
FACTS = {name: METHODS.entry(name).facts for name in EVERY}

finite = st.floats(-100, 100)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, Any, ClassCounts, Any]:
    """weight (C, D), bias (C,), counts and features (N, D)."""
    c, d, n = draw(st.integers(2, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.normal(size=(c, d)) + 0.01
    counts = draw(st.lists(st.integers(1, 10**6), min_size=c, max_size=c))
    return weight, rng.normal(size=c), ClassCounts.of(counts), rng.normal(size=(n, d))


def decisions(**more: Any) -> st.SearchStrategy[Adjustment]:
    """Every method with every option that goes with it."""

    def make(name: str, strength: float, bias: str, normalize: bool, t: float) -> Adjustment:
        normalize = normalize and name == "rescale"
        return Adjustment(name, strength, normalize, bias, temperature=t)

    return st.builds(
        make,
        name=st.sampled_from(EVERY),
        strength=more.get("strength", st.floats(0, 4)),
        bias=st.sampled_from(["", *BIAS_POLICIES]),
        normalize=st.booleans(),
        t=more.get("t", st.floats(0.1, 10)),
    )


def test_the_command_line_knows_every_method_and_policy() -> None:
    assert sorted(MethodName) == EVERY
    assert [policy.value for policy in BiasPolicy] == list(BIAS_POLICIES)


@pytest.mark.parametrize("name", EVERY)
def test_every_method_says_its_knob_its_reference_and_its_formula(name: str) -> None:
    assert FACTS[name]["knob"] in ("gamma", "tau")
    assert FACTS[name]["reference"]
    assert isinstance(FACTS[name]["needs_bias"], bool)
    assert "<-" in (METHODS[name].__doc__ or "").split("\n")[0]


@pytest.mark.parametrize("name", EVERY)
@given(problem=problems())
def test_strength_zero_changes_nothing(name: str, problem: Any) -> None:
    weight, bias, counts, _ = problem
    update = Adjustment(name, 0.0).update(Head.of(weight, bias), counts)
    same = RowUpdate.identity(len(weight))
    assert np.array_equal(update.scale, same.scale)
    assert np.array_equal(update.bias_scale, same.bias_scale)
    assert np.array_equal(update.shift, same.shift)


@given(problem=problems(), decision=decisions())
def test_on_weights_equals_on_logits(problem: Any, decision: Adjustment) -> None:
    weight, bias, counts, features = problem
    head = Head.of(weight, bias)
    update = decision.update(head, counts)
    new_weight = update.scale[:, None] * weight
    on_weights = features @ new_weight.T + update.on_bias(bias)
    on_logits = update.on_logits(features @ weight.T + bias, bias)
    size = 1e-12 * (1 + np.abs(update.scale).max()) * 1e3
    np.testing.assert_allclose(on_logits, on_weights, rtol=1e-9, atol=size)


@given(problem=problems(), decision=decisions())
def test_a_head_without_bias_is_adjusted_alike(problem: Any, decision: Adjustment) -> None:
    weight, _, counts, features = problem
    if FACTS[decision.method]["needs_bias"]:
        with pytest.raises(BadHead, match="has none"):
            decision.update(Head.of(weight), counts)
        return
    update = decision.update(Head.of(weight), counts)
    on_weights = features @ (update.scale[:, None] * weight).T
    size = 1e-12 * (1 + np.abs(update.scale).max()) * 1e3
    np.testing.assert_allclose(
        update.on_logits(features @ weight.T), on_weights, rtol=1e-9, atol=size
    )


@given(problem=problems(), strength=st.floats(0, 4), n=st.integers(1, 10**9))
def test_equal_counts_leave_rescale_without_effect(problem: Any, strength: float, n: int) -> None:
    weight, bias, _, _ = problem
    equal = ClassCounts.of([n] * len(weight))
    update = Adjustment("rescale", strength).update(Head.of(weight, bias), equal)
    assert (update.scale == 1).all()
    assert np.array_equal(update.on_bias(bias), bias)


@given(problem=problems(), strength=st.floats(0, 4), n=st.integers(1, 10**9))
def test_equal_counts_change_no_decision_of_logit_adjust(
    problem: Any, strength: float, n: int
) -> None:
    weight, bias, _, _ = problem
    update = Adjustment("logit-adjust", strength).update(
        Head.of(weight, bias), ClassCounts.of([n] * len(weight))
    )
    assert np.ptp(update.shift) == pytest.approx(0, abs=1e-12)


@given(problem=problems(), t=st.floats(0.05, 20))
def test_temperature_divides_every_logit_and_keeps_the_argmax(problem: Any, t: float) -> None:
    weight, bias, counts, features = problem
    update = Adjustment("rescale", 0.0, temperature=t).update(Head.of(weight, bias), counts)
    logits = features @ weight.T + bias
    cooled = update.on_logits(logits, bias)
    np.testing.assert_allclose(cooled, logits / t, rtol=1e-9, atol=1e-9)
    top = np.sort(logits, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-9 if logits.shape[1] > 1 else slice(None)
    assert np.array_equal(cooled.argmax(1)[clear], logits.argmax(1)[clear])


@given(problem=problems(), decision=decisions(t=st.just(1.0)), t=st.floats(0.1, 10))
def test_temperature_comes_after_the_method(problem: Any, decision: Adjustment, t: float) -> None:
    weight, bias, counts, features = problem
    head, logits = Head.of(weight, bias), features @ weight.T + bias
    plain = decision.update(head, counts).on_logits(logits, bias)
    both = Adjustment(
        decision.method, decision.strength, decision.normalize, decision.bias, temperature=t
    )
    cooled = both.update(head, counts).on_logits(logits, bias)
    size = 1e-9 * (1 + np.abs(plain).max())
    np.testing.assert_allclose(cooled, plain / t, rtol=1e-9, atol=size)


@given(problem=problems(), decision=decisions(t=st.just(1.0)), data=st.data())
def test_skipped_rows_are_untouched_and_never_n_1(
    problem: Any, decision: Adjustment, data: st.DataObject
) -> None:
    weight, bias, counts, _ = problem
    row = data.draw(st.integers(0, len(weight) - 1))
    head = Head.of(weight, bias)
    update = decision.update(head, counts.exclude([row]))
    assert (update.scale[row], update.bias_scale[row], update.shift[row]) == (1, 1, 0)
    assert update.on_bias(bias)[row] == bias[row]
    huge = counts.values.copy()
    huge[row] = 10**14
    other = decision.update(head, ClassCounts.of(huge).exclude([row]))
    if decision.method == "rescale":
        assert np.array_equal(update.scale, other.scale)


# ------------------------------------------------------------- the formulas of method.md, by hand

WEIGHT = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])  # norms 5, 2, 1; mean 8/3
BIAS = np.array([0.5, -1.0, 2.0])
COUNTS = ClassCounts.of([100, 25, 4])
HEAD = Head.of(WEIGHT, BIAS)


def test_rescale_is_n_1_over_n_i_to_the_gamma() -> None:
    update = Adjustment("rescale", 0.5).update(HEAD, COUNTS)
    assert update.scale.tolist() == [1, 2, 5]
    assert update.on_bias(BIAS).tolist() == BIAS.tolist()


def test_n_1_is_the_largest_count_wherever_it_stands() -> None:
    update = Adjustment("rescale", 1.0).update(HEAD, ClassCounts.of([4, 100, 25]))
    assert update.scale.tolist() == [25, 1, 4]


def test_normalize_then_rescale_keeps_the_mean_norm() -> None:
    update = Adjustment("rescale", 0.5, normalize=True).update(HEAD, COUNTS)
    m = (5 + 2 + 1) / 3
    np.testing.assert_allclose(update.scale, [m / 5, 2 * m / 2, 5 * m / 1])
    flat = Adjustment("rescale", 0.0, normalize=True).update(HEAD, COUNTS)
    np.testing.assert_allclose(flat.scale * HEAD.norms, [m, m, m])


def test_tau_norm_divides_by_the_norm_to_the_tau_and_keeps_the_mean_norm() -> None:
    for tau in (0.25, 0.5, 1.0, 1.5):
        scale = Adjustment("tau-norm", tau).update(HEAD, COUNTS).scale
        bare = np.array([5.0, 2.0, 1.0]) ** -tau
        np.testing.assert_allclose(scale / scale[0], bare / bare[0])
        assert (scale * HEAD.norms).mean() == pytest.approx(HEAD.norms.mean())


def test_logit_adjust_subtracts_tau_times_the_log_prior() -> None:
    update = Adjustment("logit-adjust", 1.5).update(HEAD, COUNTS)
    wanted = [-1.5 * math.log(n / 129) for n in (100, 25, 4)]
    np.testing.assert_allclose(update.shift, wanted)
    assert update.scale.tolist() == [1, 1, 1]
    np.testing.assert_allclose(update.on_bias(BIAS), BIAS + wanted)


def test_temperature_is_one_over_t_on_weight_and_bias() -> None:
    update = Adjustment("rescale", 0.0, temperature=2.0).update(HEAD, COUNTS)
    assert update.scale.tolist() == [0.5, 0.5, 0.5]
    assert update.on_bias(BIAS).tolist() == [0.25, -0.5, 1.0]


def test_the_bias_is_kept_scaled_or_dropped_as_asked() -> None:
    after = {
        p: Adjustment("rescale", 0.5, bias=p).update(HEAD, COUNTS).on_bias(BIAS)
        for p in BIAS_POLICIES
    }
    assert after["keep"].tolist() == [0.5, -1.0, 2.0]
    assert after["scale"].tolist() == [0.5, -2.0, 10.0]
    assert after["drop"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("normalize", "asked", "policy"),
    [(False, "", "keep"), (True, "", "drop"), (True, "keep", "keep"), (False, "drop", "drop")],
)
def test_the_default_policy_is_keep_and_drop_with_normalize(
    normalize: bool, asked: str, policy: str
) -> None:
    assert Adjustment("rescale", 0.3, normalize, asked).bias_policy == policy


def test_a_dropped_bias_is_a_plain_zero() -> None:
    update = Adjustment("rescale", 0.5, bias="drop").update(HEAD, COUNTS)
    after = update.on_bias(np.array([-1e308, 1.0, -0.0]))
    assert after.tolist() == [0, 0, 0]
    assert not np.signbit(after).any()


def test_a_kept_bias_keeps_its_negative_zero() -> None:
    update = Adjustment("rescale", 0.5).update(HEAD, COUNTS)
    assert np.signbit(update.on_bias(np.array([-0.0, 1.0, 1.0]))).tolist() == [True, False, False]


def test_logit_adjust_with_a_dropped_bias_leaves_the_prior_alone() -> None:
    update = Adjustment("logit-adjust", 1.0, bias="drop").update(HEAD, COUNTS)
    np.testing.assert_allclose(update.on_bias(BIAS), -np.log(COUNTS.priors))


def test_max_factor_is_a_ceiling() -> None:
    update = Adjustment("rescale", 0.5, max_factor=3.0).update(HEAD, COUNTS)
    assert update.scale.tolist() == [1, 2, 3]


def test_the_ends_of_every_range_are_allowed() -> None:
    assert Adjustment("rescale", 4, max_factor=1).update(HEAD, COUNTS).scale.tolist() == [1, 1, 1]
    assert Adjustment("rescale", 0).update(HEAD, COUNTS).scale.tolist() == [1, 1, 1]


def test_max_factor_bounds_the_rescaling_not_the_normalisation() -> None:
    update = Adjustment("rescale", 0.5, normalize=True, max_factor=3.0).update(HEAD, COUNTS)
    np.testing.assert_allclose(update.scale * HEAD.norms, np.array([1, 2, 3]) * 8 / 3)


def test_a_target_prior_divides_the_counts() -> None:
    targeted = COUNTS.against_target([0.5, 0.25, 0.25])
    update = Adjustment("rescale", 1.0).update(HEAD, targeted)
    # n_i / share: 200, 100, 16
    np.testing.assert_allclose(update.scale, [1, 2, 12.5])


def test_the_training_prior_as_target_changes_no_decision() -> None:
    targeted = COUNTS.against_target([100, 25, 4])
    np.testing.assert_allclose(Adjustment("rescale", 1.0).update(HEAD, targeted).scale, [1, 1, 1])
    shift = Adjustment("logit-adjust", 1.0).update(HEAD, targeted).shift
    assert np.ptp(shift) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "decision", [Adjustment("tau-norm", 1.0), Adjustment("rescale", 0.3, True)]
)
def test_a_row_of_zeros_cannot_be_normalised_unless_it_is_left_out(decision: Adjustment) -> None:
    empty = Head.of(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]]), BIAS)
    with pytest.raises(BadHead, match="row 1") as refused:
        decision.update(empty, COUNTS)
    assert "--exclude-class 1" in refused.value.fix
    update = decision.update(empty, COUNTS.exclude([1]))
    assert update.scale[1] == 1
    assert np.isfinite(update.scale).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": -0.1}, {"strength": 4.1}, {"strength": math.nan}, {"bias": "half"},
        {"method": "magic"}, {"method": "tau-norm", "normalize": True},
        {"method": "tau-norm", "max_factor": 2.0}, {"max_factor": 0.5}, {"max_factor": math.nan},
        {"max_factor": math.inf},
        {"temperature": 0.0}, {"temperature": -1.0}, {"temperature": math.inf},
        {"temperature": math.nan}, {"temperature": 1e-320},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_with_a_fix(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as refused:
        Adjustment(**wrong)
    assert refused.value.fix


@given(problem=problems(), one=decisions(), two=decisions())
def test_two_updates_in_a_row_are_one(problem: Any, one: Adjustment, two: Adjustment) -> None:
    weight, bias, counts, features = problem
    head, logits = Head.of(weight, bias), features @ weight.T + bias
    first, second = one.update(head, counts), two.update(head, counts)
    apart = second.on_logits(first.on_logits(logits, bias), first.on_bias(bias))
    both = first.then(second).on_logits(logits, bias)
    np.testing.assert_allclose(both, apart, rtol=1e-7, atol=1e-9 * (1 + np.abs(apart).max()))
