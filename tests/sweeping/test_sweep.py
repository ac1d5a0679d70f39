"""`sweep-gamma` and `compare` against brute force, on the bundled classifier and on made ones."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imblearn.metrics import geometric_mean_score, make_index_balanced_accuracy
from safetensors.numpy import load_file, save_file
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score

from rescale_cli import api
from rescale_cli.cli import main
from rescale_cli.commands.choice_options import ChoiceOptions
from rescale_cli.commands.demo_report import bundled
from rescale_cli.commands.schema import schema_text
from rescale_cli.commands.sweep_report import chart
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import Predictions
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.measures.gates import Gate, read_gates
from rescale_cli.measures.metric_names import ABOUT, ALIASES
from rescale_cli.sweeping.decisions import SweptMethod, by_curves, by_envelope, by_intervals
from rescale_cli.sweeping.selection import (
    CHOICES,
    Selection,
    distance_to,
    first_within,
    halves,
    widest_plateau,
)
from rescale_cli.sweeping.sweep import sweep

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_lt"
MODEL, COUNTS, LOGITS = (
    EXAMPLE / n for n in ("model.safetensors", "counts.json", "val_logits.npz")
)
Capture = pytest.CaptureFixture[str]

FAMILIES = [
    Adjustment(bias="drop"), Adjustment(bias="scale"), Adjustment(normalize=True),
    Adjustment(normalize=True, bias="scale"), Adjustment("tau-norm", bias="drop"),
    Adjustment("logit-adjust"), Adjustment("logit-adjust", bias="drop"),
]  # fmt: skip


@pytest.fixture(scope="module")
def example() -> tuple[Head, ClassCounts, Predictions]:
    plan = api.apply(MODEL, COUNTS, 0.0, dry_run=True).plan
    with np.load(LOGITS) as file:
        found = Predictions(file["logits"], file["labels"].astype(np.int64), "val_logits.npz")
    return plan.heads[0].before, plan.counts, found


def run(capsys: Capture, *words: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*(str(word) for word in words), "--json"])
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads(schema_text(str(words[0]))))
    return code, document.get("result", document.get("error"))


@pytest.mark.parametrize("adjustment", FAMILIES, ids=str)
def test_both_exact_paths_are_brute_force_at_every_strength(
    example: tuple[Head, ClassCounts, Predictions], adjustment: Adjustment
) -> None:
    head, counts, found = example
    assert found.labels is not None
    family = SweptMethod(adjustment, head, counts)
    right = by_intervals(family, found.logits, found.labels, 2.0)
    path = by_envelope(family, found.logits, found.labels, 2.0)
    gammas = np.linspace(0, 2, 101)
    rights, tallies = right.tallies(gammas), path.tallies(gammas)
    assert path.knows_predictions
    for i, gamma in enumerate(gammas):
        predicted = family.scores(found.logits, gamma).argmax(axis=1)
        np.testing.assert_array_equal(path.predicted(gamma), predicted)
        hits = np.bincount(found.labels[predicted == found.labels], minlength=10)
        np.testing.assert_array_equal(rights.hits[i], hits)
        np.testing.assert_array_equal(tallies.hits[i], hits)
        np.testing.assert_array_equal(tallies.predicted[i], np.bincount(predicted, minlength=10))


def test_a_decision_changes_at_its_own_strength_and_other_wrong_classes_are_not_named(
    example: tuple[Head, ClassCounts, Predictions],
) -> None:
    head, counts, found = example
    assert found.labels is not None
    swept = SweptMethod(Adjustment(bias="drop"), head, counts)
    path = by_envelope(swept, found.logits, found.labels, 2.0)
    for event in range(0, len(path.gamma), 50):
        sample, gamma = path.sample[event], path.gamma[event]
        assert path.predicted(gamma)[sample] == path.after[event]
        assert path.predicted(np.nextafter(gamma, 0))[sample] == path.before[event]
    right = by_intervals(swept, found.logits, found.labels, 2.0)
    truth = found.labels[right.sample]
    assert not right.knows_predictions
    assert set(right.start[right.start != found.labels]) == {-1}
    assert set(right.before[right.before != truth]) == {-1}
    assert set(right.after[right.after != truth]) == {-1}


def test_only_logit_adjustment_needs_a_bias_to_be_written() -> None:
    head, counts = Head.of(np.eye(2)), ClassCounts.of([5, 1])
    writable = {
        method: SweptMethod(Adjustment(method), head, counts).writable
        for method in ("rescale", "tau-norm", "logit-adjust")
    }
    assert writable == {"rescale": True, "tau-norm": True, "logit-adjust": False}


CURVED = [
    Adjustment(), Adjustment(normalize=True, bias="keep"), Adjustment("tau-norm"),
    Adjustment("tau-norm", bias="scale"), Adjustment("tau-norm", bias="drop"),
]  # fmt: skip


@pytest.mark.parametrize("excluded", [(), (0, 7)], ids=["all", "some"])
@pytest.mark.parametrize("adjustment", CURVED, ids=str)
def test_the_curved_path_is_brute_force_at_every_strength(
    example: tuple[Head, ClassCounts, Predictions],
    adjustment: Adjustment,
    excluded: tuple[int, ...],
) -> None:
    head, counts, found = example
    family = SweptMethod(adjustment, head, counts.exclude(excluded))
    path = by_curves(family, found.logits, found.labels, 4.0)
    for gamma in np.random.default_rng(0).uniform(0, 4, 100):
        predicted = family.scores(found.logits, gamma).argmax(axis=1)
        np.testing.assert_array_equal(path.predicted(gamma), predicted)


def test_a_kept_bias_is_no_straight_line_and_one_of_zeros_is_none(
    example: tuple[Head, ClassCounts, Predictions],
) -> None:
    head, counts, _ = example
    assert not SweptMethod(Adjustment(), head, counts).straight
    zero = SweptMethod(Adjustment(), replace(head, bias=np.zeros(10)), counts)
    assert zero.straight


@pytest.mark.parametrize("adjustment", FAMILIES[:4], ids=str)
def test_curves_and_straight_lines_give_the_same_events(
    example: tuple[Head, ClassCounts, Predictions], adjustment: Adjustment
) -> None:
    head, counts, found = example
    family = SweptMethod(adjustment, head, counts)
    straight = by_envelope(family, found.logits, found.labels, 2.0)
    curved = by_curves(family, found.logits, found.labels, 2.0)
    np.testing.assert_array_equal(curved.start, straight.start)
    np.testing.assert_allclose(curved.gamma, straight.gamma, rtol=0, atol=1e-12)
    for name in ("sample", "before", "after"):
        np.testing.assert_array_equal(getattr(curved, name), getattr(straight, name))


def test_each_point_of_a_curve_is_what_evaluating_that_strength_gives(
    example: tuple[Head, ClassCounts, Predictions],
) -> None:
    head, counts, found = example
    for adjustment in (Adjustment(), Adjustment(bias="drop")):
        swept = sweep(found, head, counts, [adjustment], Selection(replicates=0))
        curve, family = swept.curve, SweptMethod(adjustment, head, counts)
        for gamma, value in zip(curve["gamma"], curve["balanced_accuracy"], strict=True):
            predicted = family.scores(found.logits, gamma).argmax(axis=1)
            assert value == pytest.approx(balanced_accuracy_score(found.labels, predicted))


def test_the_choice_is_the_best_of_all_strengths(
    example: tuple[Head, ClassCounts, Predictions],
) -> None:
    head, counts, found = example
    selection = Selection(holdout=0, replicates=0)
    swept = sweep(found, head, counts, [Adjustment(bias="drop")], selection)
    family = SweptMethod(Adjustment(bias="drop"), head, counts)
    brute = [
        balanced_accuracy_score(found.labels, family.scores(found.logits, gamma).argmax(axis=1))
        for gamma in np.linspace(0, 2, 2001)
    ]
    assert swept.best.choice.value >= max(brute) - 1e-12
    low, high = swept.best.choice.plateau
    assert low <= swept.best.choice.gamma <= high
    for gamma in (low + 1e-9, swept.best.choice.gamma, high - 1e-9):  # an end is a tie
        predicted = family.scores(found.logits, gamma).argmax(axis=1)
        assert balanced_accuracy_score(found.labels, predicted) == pytest.approx(
            swept.best.choice.value, abs=1e-12
        )


@pytest.mark.parametrize("metric", CHOICES)
def test_every_metric_is_that_of_scikit_learn_where_it_was_chosen(
    example: tuple[Head, ClassCounts, Predictions], metric: str
) -> None:
    head, counts, found = example
    selection = Selection(metric, holdout=0, replicates=0, sizes=(1000, 300))
    swept = sweep(found, head, counts, [Adjustment(bias="drop")], selection)
    family, gamma = swept.best.method, swept.best.choice.gamma
    predicted = family.scores(found.logits, gamma).argmax(axis=1)
    recalls = recall_score(found.labels, predicted, average=None)
    groups = counts.groups(1000, 300)
    gmean_ovr = geometric_mean_score(found.labels, predicted, average="macro")
    oracle = {
        "balanced_accuracy": recalls.mean(),
        "accuracy": (predicted == found.labels).mean(),
        "macro_precision": precision_score(found.labels, predicted, average="macro"),
        "macro_f1": f1_score(found.labels, predicted, average="macro"),
        "gmean_multiclass": np.exp(np.log(recalls).mean()),
        "gmean_ovr": gmean_ovr,
        "iba_ovr": make_index_balanced_accuracy()(geometric_mean_score)(
            found.labels, predicted, average="macro"
        ),
        "worst_recall": recalls.min(),
        **{name: recalls[mask].mean() for name, mask in groups.items()},
    }[metric]
    assert swept.best.choice.value == pytest.approx(oracle, abs=1e-9)
    assert swept.at["chosen"].metrics[metric] == pytest.approx(oracle, abs=1e-9)


@pytest.mark.parametrize("name", [*ABOUT, *ALIASES])
def test_metric_and_gates_take_the_same_names_in_both_spellings(name: str) -> None:
    wanted = ALIASES.get(name, name)
    for typed in (name, name.replace("_", "-"), name.upper()):
        if wanted in CHOICES:
            assert ChoiceOptions(metric=typed).selection().metric == wanted
        else:
            with pytest.raises(UsageError, match="cannot be chosen") as caught:
                ChoiceOptions(metric=typed).selection()
            assert "few" in caught.value.fix
        assert read_gates("fail-drop", [f"{typed}=0.1"]) == [Gate(wanted, "fail-drop", 0.1)]


def test_an_unknown_metric_names_the_nearest_ones() -> None:
    with pytest.raises(UsageError, match="unknown metric 'ballanced accuracy'") as caught:
        ChoiceOptions(metric="ballanced accuracy").selection()
    assert caught.value.fix.startswith("--metric balanced_accuracy")
    with pytest.raises(UsageError) as caught:
        ChoiceOptions(metric="recall").selection()
    assert caught.value.fix == "--metric few, or --metric many, or --metric worst_recall"


def test_a_choice_without_labels_is_within_two_points_of_the_best(
    example: tuple[Head, ClassCounts, Predictions],
) -> None:
    head, counts, found = example
    bare = replace(found, labels=None)
    swept = sweep(bare, head, counts, [Adjustment(bias="drop")], Selection(unlabeled=True))
    assert swept.at == {}
    assert swept.oracle is None
    best = sweep(found, head, counts, [Adjustment(bias="drop")], Selection(holdout=0, replicates=0))
    predicted = best.best.path.predicted(swept.best.choice.gamma)
    reached = (predicted == found.labels).mean()
    assert reached >= best.best.choice.value - 0.02
    with pytest.raises(BadInput, match="no labels"):
        sweep(bare, head, counts, [Adjustment()], Selection())


def test_the_divergence_is_least_where_the_predictions_are_as_wanted(
    example: tuple[Head, ClassCounts, Predictions],
) -> None:
    head, counts, found = example
    path = by_envelope(SweptMethod(Adjustment(bias="drop"), head, counts), found.logits, None, 2.0)
    gammas, divergence = distance_to(path, np.full(10, 0.1))
    for i in range(0, len(gammas), 97):
        shares = np.bincount(path.predicted(gammas[i]), minlength=10) / len(found.logits)
        shares = shares[shares > 0]
        assert divergence[i] == pytest.approx((shares * np.log(shares * 10)).sum(), abs=1e-12)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 99))
def test_the_halves_are_apart_stratified_and_the_same_again(labels: list[int], seed: int) -> None:
    truth = np.array(labels)
    one, other = halves(truth, 0.5, seed)
    assert sorted([*one, *other]) == list(range(len(truth)))
    for label in set(labels):
        difference = (truth[one] == label).sum() - (truth[other] == label).sum()
        assert abs(int(difference)) <= 1
    again = halves(truth, 0.5, seed)
    assert np.array_equal(one, again[0])


@given(
    st.lists(st.tuples(st.floats(0.001, 1.99), st.integers(0, 5)), max_size=30), st.integers(0, 5)
)
def test_the_chosen_strength_has_the_best_value(steps: list[tuple[float, int]], first: int) -> None:
    gammas = np.unique([0.0, *(gamma for gamma, _ in steps)])
    values = np.array([first, *(value for _, value in steps)], float)[: len(gammas)]
    values = np.resize(values, len(gammas))
    choice = widest_plateau(gammas, values, 2.0)
    assert values[np.searchsorted(gammas, choice.gamma, side="right") - 1] == values.max()
    cautious = first_within(gammas, values, 2.0, 1.0)
    assert cautious.gamma <= choice.gamma + 1e-12
    assert cautious.value >= values.max() - 1


def test_a_bounded_loss_of_the_head_is_kept_where_it_was_chosen(
    example: tuple[Head, ClassCounts, Predictions],
) -> None:
    head, counts, found = example
    selection = Selection(rule="max-head-drop=0.01", holdout=0, replicates=20, sizes=(1000, 300))
    swept = sweep(found, head, counts, [Adjustment(bias="drop")], selection)
    many = swept.objective.groups["many"]
    before, after = (np.nanmean(swept.at[name].recall[many]) for name in ("0", "chosen"))
    assert after >= before - 0.01 - 1e-9
    free = sweep(found, head, counts, [Adjustment(bias="drop")], replace(selection, rule="best"))
    assert swept.best.choice.value <= free.best.choice.value


def test_a_group_of_one_sample_can_be_chosen_by_and_an_empty_one_is_named() -> None:
    labels = np.array([0] * 60 + [1])
    logits = np.stack([np.ones(61), np.linspace(0.1, 1.1, 61)], axis=1)
    found = Predictions(logits, labels, "made")
    head, counts = Head.of(np.eye(2)), ClassCounts.of([500, 5])
    one = Selection("few-recall", holdout=0, replicates=50)
    assert sweep(found, head, counts, [Adjustment()], one).best.interval is not None
    none = replace(found, labels=np.zeros(61, np.int64))
    with pytest.raises(UsageError, match="no sample belongs to a class with few training samples"):
        sweep(none, head, counts, [Adjustment()], one)
    bounded = Selection(rule="max-head-drop=0.1", holdout=0, replicates=0)
    with pytest.raises(UsageError, match="a class with many training samples"):
        sweep(replace(found, labels=np.ones(61, np.int64)), head, counts, [Adjustment()], bounded)


def test_the_samples_beyond_rescue_are_those_that_no_strength_makes_right(
    example: tuple[Head, ClassCounts, Predictions],
) -> None:
    head, counts, found = example
    for adjustment in (Adjustment(bias="drop"), Adjustment("logit-adjust"), Adjustment()):
        swept = sweep(found, head, counts, [adjustment], Selection(replicates=0))
        family = SweptMethod(adjustment, head, counts)
        ever = np.zeros(len(found.logits), bool)
        for gamma in np.linspace(0, 2, 1001):
            ever |= family.scores(found.logits, gamma).argmax(axis=1) == found.labels
        assert swept.never_right == pytest.approx(1 - ever.mean(), abs=0.002)


def test_a_target_prior_is_what_the_choice_is_for(
    example: tuple[Head, ClassCounts, Predictions],
) -> None:
    head, counts, found = example
    as_trained = counts.against_target(counts.values)
    swept = sweep(found, head, as_trained, [Adjustment(bias="drop")], Selection(replicates=0))
    assert swept.objective.metric == "target_accuracy"
    assert swept.best.method.at(1.0).scale == pytest.approx(1.0), "nothing is to be corrected"


def test_the_sweep_prints_what_its_schema_says_and_a_line_that_works(
    capsys: Capture, tmp_path: Path
) -> None:
    words = ("sweep-gamma", MODEL, "--counts", COUNTS, "--logits", LOGITS, "--bias", "drop")
    kept, csv = tmp_path / "sweep.json", tmp_path / "curve.csv"
    code, result = run(capsys, *words, "-o", kept, "--csv", csv, "--fit-temperature")
    assert code == 0
    assert result["exact"] is True
    chosen = result["chosen"]
    assert chosen["interval"][0] <= chosen["value"] <= chosen["interval"][1]
    assert chosen["chosen_on"].startswith("1,000 samples")
    assert set(result["at"]) == {"0", f"{chosen['gamma']:.12g}"}
    assert result["at"]["0"]["balanced_accuracy"] < chosen["value"]
    assert csv.read_text().count("\n") == len(result["curve"]["gamma"]) + 1
    line = shlex.split(result["apply"])[1:]
    code, applied = run(capsys, *line, "-o", tmp_path / "patched.safetensors")
    assert code == 0
    assert applied["gamma"] == chosen["gamma"]
    assert applied["temperature"] == result["temperature"]
    code, again = run(
        capsys, "apply", MODEL, "--counts", COUNTS, "--gamma", f"@{kept}",
        "-o", tmp_path / "again.safetensors",
    )  # fmt: skip
    assert code == 0
    assert again["factors"] == applied["factors"]
    assert again["bias_policy"] == "drop", "the sweep's policies go with its strength"


def test_a_target_prior_has_intervals_and_a_curve(capsys: Capture, tmp_path: Path) -> None:
    prior, csv = tmp_path / "prior.json", tmp_path / "curve.csv"
    prior.write_text(json.dumps([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]))
    words = (MODEL, "--counts", COUNTS, "--logits", LOGITS, "--target-prior", prior)
    code, result = run(
        capsys, "sweep-gamma", *words, "--csv", csv, "--holdout", 0, "--bias", "drop"
    )
    assert code == 0
    chosen, curve = result["chosen"], result["curve"]
    assert chosen["metric"] == "target_accuracy"
    assert chosen["interval"][0] < chosen["value"] < chosen["interval"][1]
    assert chosen["value"] == pytest.approx(max(curve["target_accuracy"]))
    assert "target_accuracy" in csv.read_text()
    code, result = run(capsys, "compare", *words)
    assert code == 0
    assert all(entry["interval"] for entry in result["methods"])
    assert all(entry["behind_best"] for entry in result["methods"][1:])


def test_the_sweep_writes_the_checkpoint_when_asked(capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "patched.safetensors"
    words = ("sweep-gamma", MODEL, "--counts", COUNTS, "--logits", LOGITS)
    code, result = run(capsys, *words, "--bias", "all", "--normalize", "both", "--apply", out)
    assert code == 0
    assert len(result["others"]) == 5
    code, proof = run(capsys, "verify", out, "--against", MODEL)
    assert code == 0
    assert proof["gamma"] == result["chosen"]["gamma"]


def test_the_head_as_it_is_stays_apart_from_a_chosen_strength_of_zero(capsys: Capture) -> None:
    words = ["sweep-gamma", MODEL, "--counts", COUNTS, "--logits", LOGITS, "--bootstrap", 0]
    _, plain = run(capsys, *words)
    cautious = ("--choose", "one-se", "--gamma-max", 1e-9)
    _, normalized = run(capsys, *words, "--normalize", "on", *cautious)
    assert normalized["chosen"]["gamma"] == 0
    assert normalized["at"]["0"] == plain["at"]["0"]
    assert normalized["at"]["0 chosen"] != plain["at"]["0"]


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--holdout", "1"], 2, "--holdout"),
        (["--choose", "max-head-drop=2"], 2, "--choose"),
        (["--choose", "worst"], 2, "--choose"),
        (["--gamma-max", "9"], 2, "--gamma-max"),
        (["--groups", "20,100"], 2, "--groups"),
        (["--metric", "few-recall"], 2, "few"),
        (["--unlabeled", "--metric", "accuracy"], 2, "--unlabeled"),
        (["--unlabeled", "--choose", "one-se"], 2, "--unlabeled"),
        (["--data", "folder:nowhere"], 2, "one of --data and --logits"),
    ],
)
def test_what_cannot_be_chosen_by_is_a_clear_error(
    capsys: Capture, words: list[str], code: int, what: str
) -> None:
    found, error = run(capsys, "sweep-gamma", MODEL, "--counts", COUNTS, "--logits", LOGITS, *words)
    assert found == code
    assert what in error["what"]
    assert error["fix"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-o", "x", "--csv", "x"], "usage"),
        (["-o", "x", "--apply", "./x"], "usage"),
        (["--apply", "there"], "output-exists"),
        (["--apply", MODEL, "--force"], "output-exists"),
        (["--apply", "nowhere/x"], "bad-input"),
    ],
)
def test_an_output_that_could_not_be_written_is_refused_before_the_work(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[Any], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").touch()
    # The logits do not exist: they would be the next error.
    words = ["sweep-gamma", MODEL, "--counts", COUNTS, "--logits", "none.npz", *words]
    _, error = run(capsys, *words)
    assert error["code"] == code
    assert error["fix"]


def test_a_step_on_github_gets_the_choice_and_what_was_written(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, page = tmp_path / "outputs", tmp_path / "page.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_OUTPUT", str(outputs))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    words = ("sweep-gamma", MODEL, "--counts", COUNTS, "--logits", LOGITS, "--bootstrap", 0)
    out, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    _, result = run(capsys, *words, "--apply", out)
    gamma = result["chosen"]["gamma"]
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    low, high = result["gain"]["interval"]
    assert outputs.read_text() == (
        f"gamma={gamma}\nverdict=helps\ngain={result['gain']['difference']}\n"
        f"gain_low={low}\ngain_high={high}\noutput={out}\nsha256={sha256}\n"
        f"applied_gamma={gamma}\n"
    )
    assert result["written"] == {
        "output": str(out), "sha256": sha256, "gamma": gamma, "left_behind": [],
    }  # fmt: skip
    assert f"helps, strength {gamma:g}" in page.read_text()
    assert "re-scaling helps" in page.read_text()
    assert "| balanced_accuracy |" in page.read_text()
    outputs.unlink()
    run(capsys, *words, "--unlabeled")
    assert outputs.read_text().startswith("gamma=")
    outputs.unlink()
    line = ("apply", MODEL, "--counts", COUNTS, "--gamma", 0.25)
    run(capsys, *line, "--dry-run")
    assert not outputs.exists()
    _, applied = run(capsys, *line, "-o", again)
    assert outputs.read_text() == f"output={again}\nsha256={applied['sha256']}\ngamma=0.25\n"


def test_logit_adjustment_of_a_head_without_bias_is_chosen_and_ranked_but_not_written(
    capsys: Capture, tmp_path: Path
) -> None:
    bare, out = tmp_path / "bare.safetensors", tmp_path / "out.safetensors"
    tensors = load_file(MODEL)
    save_file({name: t for name, t in tensors.items() if name != "linear.bias"}, bare)
    with np.load(LOGITS) as file:  # without the word that they are another head's
        np.savez(tmp_path / "z.npz", logits=file["logits"], labels=file["labels"])
    on = ("--logits", tmp_path / "z.npz", "--bootstrap", 0)
    words = (bare, "--counts", COUNTS, *on, "--classes", COUNTS)
    sweep_words = ("sweep-gamma", *words, "--method", "logit-adjust")
    code, chosen = run(capsys, *sweep_words)
    assert code == 0
    assert chosen["apply"] is None
    assert chosen["chosen"]["value"] > chosen["at"]["0"]["balanced_accuracy"]
    code, result = run(capsys, "compare", *words)
    assert code == 0
    (entry,) = (e for e in result["methods"] if e["name"] == "logit-adjust")
    assert entry["value"] == chosen["chosen"]["value"]
    assert entry["apply"] is None
    assert result["left_out"] == {}
    assert main([str(word) for word in sweep_words]) == 0
    shown = capsys.readouterr()
    assert "apply cannot write it" in " ".join(shown.err.split())
    assert "to write it" not in shown.out
    code, error = run(capsys, *sweep_words[:5], "none.npz", *sweep_words[6:], "--apply", out)
    assert (code, error["code"]) == (3, "bad-head")


def test_compare_ranks_the_methods_and_says_which_are_level(capsys: Capture) -> None:
    words = ("compare", MODEL, "--counts", COUNTS, "--logits", LOGITS)
    code, result = run(capsys, *words)
    assert code == 0
    values = [entry["value"] for entry in result["methods"]]
    assert values == sorted(values, reverse=True)
    assert {entry["name"] for entry in result["methods"]} == {
        "as it is", "rescale", "normalize + rescale", "tau-norm", "logit-adjust",
    }  # fmt: skip
    best = result["methods"][0]
    assert (best["behind_best"], result["best"]) == (None, best["name"])
    assert result["apply"] == best["apply"]
    for entry in result["methods"][1:]:
        behind = entry["behind_best"]
        assert behind["difference"] == pytest.approx(best["value"] - entry["value"])
        low, high = behind["interval"]
        assert low <= behind["difference"] <= high
        assert (low <= 0 <= high) == (entry["name"] in result["not_told_apart"])
    assert main([str(word) for word in words]) == 0
    shown = capsys.readouterr().out
    assert f"To write {best['name']}, the best method:\n  {best['apply']}\n" in shown
    assert result["text"].split(" To write")[0] in shown


def test_a_sweep_for_a_person_shows_the_curve_and_who_pays(capsys: Capture) -> None:
    words = ["sweep-gamma", MODEL, "--counts", COUNTS, "--logits", LOGITS, "--bias", "drop"]
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert "▲" in out
    assert "who pays" in out
    assert "reported on 1,000 other samples" in out
    table = out[out.index("as it is") :].splitlines()
    assert table[1].startswith("balanced accuracy")
    assert "rescale-cli apply" in out


@given(st.floats(1e-9, 4), st.floats(0, 1))
def test_the_labels_below_a_chart_stand_apart_and_within_it(limit: float, share: float) -> None:
    gammas = np.linspace(0, limit, 11)
    chosen = round(limit * share, 4)
    *curve, mark, axis = chart(gammas, np.linspace(0, 1, 11), min(chosen, limit))
    assert {len(line) for line in [*curve, axis]} == {8 + 64}
    assert mark.index("▲") < 8 + 64
    labels = ["0", f"{min(chosen, limit):g}", f"{limit:g}"]
    assert axis.split() == list(dict.fromkeys(labels))


def test_unknown_metrics_are_refused_by_name() -> None:
    with pytest.raises(UsageError):
        Selection(rule="max-head-drop=x")


def test_a_swept_strength_takes_what_it_was_chosen_with_along(
    tmp_path: Path, capsys: Capture
) -> None:
    for name in ("model.safetensors", "counts.json", "config.json", "val_logits.npz"):
        shutil.copy(EXAMPLE / name, tmp_path)
    model, counts, sweep_file = (
        str(tmp_path / n) for n in ("model.safetensors", "counts.json", "sweep.json")
    )
    prior = tmp_path / "prior.json"
    prior.write_text(json.dumps([2.0] * 5 + [1.0] * 5))
    on = ["--logits", str(tmp_path / "val_logits.npz"), "--bias", "drop"]
    with_ = ["--exclude-class", "Bag", "--target-prior", str(prior)]
    assert main(["sweep-gamma", model, "--counts", counts, *on, *with_, "-o", sweep_file]) == 0
    words = ["apply", model, "--counts", counts, "--gamma", f"@{sweep_file}", "--dry-run", "--json"]
    capsys.readouterr()
    factors = []
    for more in ([], with_):
        assert main([*words, *more]) == 0
        factors.append(json.loads(capsys.readouterr().out)["result"]["factors"])
    assert factors[0] == factors[1]


def test_a_model_with_a_record_gets_a_line_that_composes_and_is_not_written_at_once(
    tmp_path: Path, capsys: Capture
) -> None:
    folder = shutil.copytree(bundled(), tmp_path / "demo")
    model = folder / "model.rescaled.safetensors"
    api.apply(folder / "model.safetensors", folder / "counts.json", 0, output=model)
    words = ["sweep-gamma", str(model), "--counts", str(folder / "counts.json")]
    words += ["--data", f"npz:{folder / 'val.npz'}", "--json"]
    assert main(words) == 0
    line = json.loads(capsys.readouterr().out)["result"]["apply"]
    assert "--compose" in shlex.split(line)
    assert main([*words, "--apply", str(tmp_path / "out.safetensors")]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "already-rescaled"


@pytest.mark.parametrize("command", ["sweep-gamma", "compare"])
def test_what_apply_wrote_is_named_in_place_of_the_command_that_would_write_it(
    command: str, tmp_path: Path, capsys: Capture
) -> None:
    bundle, out = bundled(), tmp_path / "out.safetensors"
    words = [command, str(bundle / "model.safetensors"), "--counts", str(bundle / "counts.json")]
    words += ["--logits", str(bundle / "val_logits.npz"), "--bootstrap", "20", "--apply", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}" in said
    assert hashlib.sha256(out.read_bytes()).hexdigest() in said
    assert "rescale-cli apply" not in said


def test_without_labels_a_strength_above_zero_is_undecided_and_zero_is_no_gain() -> None:
    logits = np.random.default_rng(0).normal(size=(300, 3))
    counts, head = ClassCounts.of([100, 50, 25]), Head(np.ones(3), None)
    found = []
    for shift in (0.0, 0.7):
        predictions = Predictions(logits + np.array([shift + 3, 3.0, 3.0]), None, "x")
        swept = sweep(predictions, head, counts, [Adjustment()], Selection(unlabeled=True))
        found.append((swept.best.choice.gamma, swept.verdict.kind))
    assert 0 < found[1][0] < 1
    assert found[1][1] == "undecided"
    assert (found[0][1] == "undecided") == (found[0][0] > 0)
