"""The verdict of a sweep against an independent bootstrap, and where the truth is known."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
)

from rescale_cli.cli import main
from rescale_cli.commands.schema import schema_text
from rescale_cli.core.counts import ClassCounts
from rescale_cli.sweeping.selection import Objective
from rescale_cli.sweeping.verdict import NEGLIGIBLE, Gain, Verdict, reach_verdict

Capture = pytest.CaptureFixture[str]
Ints = NDArray[np.int64]
EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_lt"
BUNDLED = (
    EXAMPLE / "model.safetensors", "--counts", EXAMPLE / "counts.json",
    "--logits", EXAMPLE / "val_logits.npz",
)  # fmt: skip
GROUPS = ClassCounts.of([500, 60, 5]).groups()
BALANCED = Objective("balanced_accuracy", GROUPS)


def decisions(*classes: tuple[int, int, int, int]) -> tuple[Ints, Ints, Ints]:
    """Before, after and labels; for each class: both right, gained, lost, both wrong."""
    before, after, labels = [], [], []
    for row, (both, gained, lost, wrong) in enumerate(classes):
        other = (row + 1) % len(classes)
        before += [row] * both + [other] * gained + [row] * lost + [other] * wrong
        after += [row] * both + [row] * gained + [other] * lost + [other] * wrong
        labels += [row] * (both + gained + lost + wrong)
    return np.array(before), np.array(after), np.array(labels)


def verdict_of(
    *classes: tuple[int, int, int, int],
    objective: Objective = BALANCED,
    independent: bool = True,
    seed: int = 0,
) -> Verdict:
    return reach_verdict(*decisions(*classes), objective, independent=independent, seed=seed)


def plain_bootstrap(before: Ints, after: Ints, labels: Ints, name: str) -> Any:
    """The textbook, 20,000 times: draw each class's samples with replacement, measure, subtract.

    Drawing samples is drawing how many of them fall into each pair of decisions.
    """
    rng = np.random.default_rng(12345)
    tables = np.zeros((2, 20_000, 3, 3))
    for row in range(3):
        mine = labels == row
        pairs = np.bincount(before[mine] * 3 + after[mine], minlength=9)
        drawn = rng.multinomial(mine.sum(), pairs / mine.sum(), 20_000).reshape(-1, 3, 3)
        tables[0, :, row], tables[1, :, row] = drawn.sum(2), drawn.sum(1)
    of = OF_TABLES[name]
    return of(tables[1]) - of(tables[0])


def recall_of(tables: Any) -> Any:
    return np.einsum("rii->ri", tables) / tables.sum(2)


#: Metrics of confusion matrices (R, 3, 3).
OF_TABLES: dict[str, Any] = {
    "balanced_accuracy": lambda t: recall_of(t).mean(1),
    "accuracy": lambda t: np.einsum("rii->r", t) / t.sum((1, 2)),
    "few": lambda t: recall_of(t)[:, 2],
    "target_accuracy": lambda t: recall_of(t) @ [0.2, 0.3, 0.5],
    "macro_f1": lambda t: (2 * np.einsum("rii->ri", t) / (t.sum(1) + t.sum(2))).mean(1),
    "worst_recall": lambda t: recall_of(t).min(1),
}


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("balanced_accuracy", balanced_accuracy_score),
        ("accuracy", accuracy_score),
        ("few", lambda truth, found: recall_score(truth, found, average=None)[2]),
        (
            "target_accuracy",
            lambda truth, found: recall_score(truth, found, average=None) @ [0.2, 0.3, 0.5],
        ),
        ("macro_f1", lambda truth, found: f1_score(truth, found, average="macro")),
        ("worst_recall", lambda truth, found: recall_score(truth, found, average=None).min()),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_interval_is_that_of_a_plain_stratified_bootstrap(
    name: str, metric: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [150, 60, 25])
    before, after = (np.where(rng.random(235) < p, labels, rng.integers(0, 3, 235))
                     for p in (0.6, 0.7))  # fmt: skip
    objective = Objective(name, GROUPS, np.array([0.2, 0.3, 0.5]))
    found = reach_verdict(before, after, labels, objective, independent=True).gain
    assert found is not None
    assert found.interval is not None
    assert found.before == pytest.approx(metric(labels, before))
    assert found.difference == pytest.approx(metric(labels, after) - metric(labels, before))
    table = confusion_matrix(labels, after)[None]
    assert OF_TABLES[name](table)[0] == pytest.approx(metric(labels, after))
    plain = plain_bootstrap(before, after, labels, name)
    # Each end is a quantile of so many replicates: its rank in others is within 4 errors of it.
    replicates = 2000 if name in ("macro_f1", "worst_recall") else 10_000
    error = 4 * np.sqrt(0.025 * 0.975 * (1 / replicates + 1 / len(plain)))
    for end, rank in zip(found.interval, (0.025, 0.975), strict=True):
        least, most = np.quantile(plain, [rank - error, rank + error])
        assert least - 1e-9 <= end <= most + 1e-9
    gained = int(((after == labels) & (before != labels)).sum())
    lost = int(((after != labels) & (before == labels)).sum())
    if gained + lost <= 25:
        assert found.p == pytest.approx(binomtest(gained, gained + lost).pvalue)


def test_each_verdict_follows_from_its_interval() -> None:
    helps = verdict_of((400, 0, 10, 90), (150, 40, 10, 0), (10, 30, 0, 10))
    assert (helps.kind, helps.why) == ("helps", "interval")
    assert helps.gain is not None
    assert helps.gain.difference == pytest.approx((-10 / 500 + 30 / 200 + 30 / 50) / 3)
    assert helps.gain.interval is not None
    assert helps.gain.interval[0] > 0
    harms = verdict_of((400, 0, 100, 0), (150, 10, 40, 0), (10, 0, 30, 10))
    assert (harms.kind, harms.why) == ("harms", "interval")
    undecided = verdict_of((400, 20, 25, 55), (150, 12, 10, 28), (30, 5, 4, 11))
    assert (undecided.kind, undecided.why) == ("undecided", "interval")
    same = verdict_of((400, 0, 0, 100), (150, 0, 0, 50), (10, 0, 0, 40))
    assert (same.kind, same.why) == ("no-gain", "same-decisions")
    assert same.gain is not None
    assert (same.gain.interval, same.gain.p) == ((0.0, 0.0), 1.0)
    tiny = verdict_of((99_990, 5, 5, 0), (99_990, 5, 5, 0), (99_990, 5, 5, 0))
    assert (tiny.kind, tiny.why) == ("no-gain", "negligible")


def test_what_the_labels_chose_cannot_be_said_to_help_on_the_same_samples() -> None:
    classes = (400, 0, 10, 90), (150, 40, 10, 0), (10, 30, 0, 10)
    found = verdict_of(*classes, independent=False)
    assert (found.kind, found.why) == ("undecided", "same-samples")
    assert found.gain == verdict_of(*classes).gain, "the numbers are shown all the same"
    harms = verdict_of((400, 0, 100, 0), (150, 0, 40, 10), (10, 0, 30, 10), independent=False)
    assert harms.kind == "harms", "even on the samples that it was chosen on"


@pytest.mark.parametrize(
    "rare", [(0, 1, 0, 0), (0, 3, 0, 0), (0, 5, 0, 0)], ids=["one", "three", "five"]
)
def test_a_gain_that_five_samples_account_for_is_undecided(rare: tuple[int, int, int, int]) -> None:
    found = verdict_of((480, 0, 3, 17), (200, 0, 0, 0), rare)
    assert found.gain is not None
    assert found.gain.interval is not None
    assert found.gain.interval[0] > 0, "a class without variation: the bootstrap is too narrow"
    assert (found.kind, found.why) == ("undecided", "few-changes")
    assert found.needed is not None
    assert found.needed > 688
    assert verdict_of((480, 0, 3, 17), (200, 0, 0, 0), (0, 9, 0, 0)).kind == "helps"


def test_samples_of_one_class_do_not_show_what_the_others_lose() -> None:
    found = verdict_of((0, 0, 0, 0), (0, 0, 0, 0), (10, 60, 0, 5))
    assert (found.kind, found.why) == ("undecided", "one-class")


def test_a_metric_without_a_value_is_undecided() -> None:
    found = verdict_of((50, 5, 2, 3), (30, 2, 1, 3), objective=Objective("few", GROUPS))
    assert (found.kind, found.why) == ("undecided", "no-value")
    assert found.gain is not None
    assert (found.gain.before, found.gain.difference, found.gain.interval) == (None, None, None)


def test_a_difference_needs_both_values() -> None:
    ends = [(None, 0.5), (0.5, None), (None, None), (0.25, 0.75)]
    found = [Gain("few", before, after, None, 1.0).difference for before, after in ends]
    assert found == [None, None, None, 0.5]


def test_classes_of_one_sample_are_drawn_together() -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(400)
    before, after = (np.where(rng.random(400) < p, labels, (labels + 1) % 400)
                     for p in (0.5, 0.6))  # fmt: skip
    groups = ClassCounts.of(np.full(400, 50)).groups()
    objective = Objective("balanced_accuracy", groups)
    found = reach_verdict(before, after, labels, objective, independent=True)
    change = (after == labels).astype(float) - (before == labels)
    spread = 1.96 * change.std() / np.sqrt(400)
    assert found.gain is not None
    assert found.gain.interval == (
        pytest.approx(change.mean() - spread, abs=0.1 * spread),
        pytest.approx(change.mean() + spread, abs=0.1 * spread),
    )


@given(st.integers(0, 2**32 - 1))
def test_a_verdict_is_a_function_of_its_seed(seed: int) -> None:
    classes = (400, 20, 25, 55), (150, 12, 10, 28), (30, 9, 4, 7)
    assert verdict_of(*classes, seed=seed) == verdict_of(*classes, seed=seed)


@pytest.mark.parametrize("rare", [(20, 12, 6, 12), (20, 6, 12, 12)])
def test_the_samples_needed_settle_an_open_question(rare: tuple[int, int, int, int]) -> None:
    classes = [(400, 20, 20, 60), (150, 10, 10, 30), rare]
    found = verdict_of(*classes)
    assert (found.kind, found.why) == ("undecided", "interval")
    assert found.needed is not None
    times = -(-found.needed // found.samples)
    many = [tuple(times * n for n in own) for own in classes]
    settled = verdict_of(*many)  # type: ignore[arg-type]
    assert settled.kind == ("helps" if rare[1] > rare[2] else "harms")


def test_the_samples_needed_for_a_difference_of_nothing_show_that_it_is_negligible() -> None:
    classes = [(400, 20, 20, 60), (150, 10, 10, 30), (20, 9, 9, 12)]
    found = verdict_of(*classes)
    assert found.needed is not None
    times = -(-found.needed // found.samples)
    settled = verdict_of(*(tuple(times * n for n in own) for own in classes))  # type: ignore[arg-type]
    assert (settled.kind, settled.why) == ("no-gain", "negligible")
    assert settled.gain is not None
    assert settled.gain.interval is not None
    assert max(map(abs, settled.gain.interval)) <= NEGLIGIBLE


def test_classes_that_lose_much_beside_a_small_gain_are_the_losers() -> None:
    found = verdict_of((600, 0, 200, 200), (300, 50, 60, 90), (100, 120, 0, 20))
    assert found.gain is not None
    assert found.gain.difference == pytest.approx((-0.2 - 0.02 + 0.5) / 3)
    assert found.losers == ()  # a fall of 20 points is less than 5 times the gain of 9.3
    found = verdict_of((600, 0, 200, 200), (300, 50, 60, 90), (100, 60, 0, 80))
    assert found.losers == (0,)
    chance = verdict_of((600, 10, 0, 390), (300, 5, 0, 195), (8, 0, 1, 1))
    assert chance.losers == ()  # 10 points, but of one sample


# End to end


def made(
    tmp_path: Path, logits: Any, labels: Any, counts: list[int], bias: Any = None
) -> list[Any]:
    """The words for a head whose rows are those of a unit matrix."""
    classes = len(counts)
    tensors = {"net.0.weight": np.ones((classes, 3), "float32"),
               "fc.weight": np.eye(classes, dtype="float32")}  # fmt: skip
    if bias is not None:
        tensors["fc.bias"] = np.asarray(bias, "float32")
    save_file(tensors, tmp_path / "m.safetensors")
    np.savez(tmp_path / "val.npz", logits=np.asarray(logits, "float32"), labels=labels)
    (tmp_path / "c.json").write_text(json.dumps(counts))
    return [tmp_path / "m.safetensors", "--counts", tmp_path / "c.json",
            "--logits", tmp_path / "val.npz"]  # fmt: skip


def run(capsys: Capture, *words: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*(str(word) for word in words), "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads(schema_text(str(words[0]))))
    return code, document


def shy(rng: np.random.Generator, labels: Any, gap: float) -> Any:
    """Logits whose last class is too small by a factor, so that re-scaling repairs it."""
    logits = rng.normal(1.0, 0.3, (len(labels), 3)).clip(0.05)
    logits[np.arange(len(labels)), labels] += 1.0
    logits[:, 2] *= gap
    return logits


def two_sentences(capsys: Capture, *words: object) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out.split("\n")[0]


def test_a_model_whose_rare_class_is_too_small_is_helped(capsys: Capture, tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], 200)
    words = made(tmp_path, shy(np.random.default_rng(0), labels, 0.5), labels, [400, 100, 25])
    code, document = run(capsys, "sweep-gamma", *words, "--require-gain")
    result = document["result"]
    assert (code, result["verdict"]) == (0, "helps")
    assert result["gain"]["difference"] > 0.05
    assert result["gain"]["after"] == result["chosen"]["value"]
    assert result["gain"]["before"] == result["at"]["0"]["balanced_accuracy"]
    assert result["apply"].startswith("rescale-cli apply ")
    gain = result["gain"]
    numbers = [f"{100 * gain[name]:.1f} %" for name in ("before", "after")]
    low, high = (f"{100 * end:+.1f}" for end in gain["interval"])
    assert two_sentences(capsys, "sweep-gamma", *words) == (
        "On 300 samples that were not used to choose γ, balanced accuracy rises from "
        f"{numbers[0]} to {numbers[1]} ({100 * gain['difference']:+.1f} points, 95 % interval "
        f"{low} to {high}): re-scaling helps."
    )


def test_a_model_whose_bias_is_needed_is_harmed_by_dropping_it(
    capsys: Capture, tmp_path: Path
) -> None:
    labels, bias = np.repeat([0, 1, 2], 200), np.array([-1.0, 0.0, 1.5])
    scores = np.random.default_rng(0).normal(1.5, 0.3, (600, 3)) - bias
    scores[np.arange(600), labels] += 1.0
    words = made(tmp_path, scores + bias, labels, [400, 390, 380], bias)
    sweep, out = tmp_path / "sweep.json", tmp_path / "out.safetensors"
    words += ["--bias", "drop"]
    _, document = run(capsys, "sweep-gamma", *words, "-o", sweep, "--apply", out)
    result = document["result"]
    assert (result["verdict"], result["apply"]) == ("harms", None)
    assert result["gain"]["interval"][1] < 0
    assert result["explanation"]["losing_classes"]
    assert "left-alone" in [warning["code"] for warning in document["warnings"]]
    before, after = load_file(words[0]), load_file(out)
    assert {name: t.tobytes() for name, t in before.items()} == {
        name: t.tobytes() for name, t in after.items()
    }
    assert run(capsys, "verify", out, "--against", words[0])[0] == 0
    text = two_sentences(capsys, "sweep-gamma", *words)
    assert ": re-scaling harms. But " in text
    code, document = run(capsys, "apply", *words[:3], "--gamma", f"@{sweep}", "--dry-run")
    assert (code, document["error"]["code"]) == (4, "needs-decision")
    number = shlex.split(document["error"]["fix"])[-2:]
    assert run(capsys, "apply", *words[:3], *number, "--bias", "drop", "--dry-run")[0] == 0


@pytest.mark.parametrize("case", ["no errors", "one class predicted"])
def test_a_model_that_no_strength_improves_is_left_alone(
    case: str, capsys: Capture, tmp_path: Path
) -> None:
    labels = np.repeat([0, 1, 2], 50)
    logits = np.random.default_rng(0).normal(0.5, 0.02, (150, 3))
    logits[np.arange(150), 0 if case == "one class predicted" else labels] += 900.0
    words = made(tmp_path, logits, labels, [400, 100, 25])
    code, document = run(capsys, "sweep-gamma", *words)
    result = document["result"]
    assert (code, result["chosen"]["gamma"], result["plateau"][0]) == (0, 0.0, 0.0)
    assert (result["verdict"], result["gain"]["difference"]) == ("no-gain", 0.0)
    code, document = run(capsys, "compare", *words)
    assert {entry["verdict"] for entry in document["result"]["methods"]} == {"no-gain"}
    assert document["result"]["apply"] is None


def test_a_gain_that_chance_could_explain_is_undecided_and_says_what_would_settle_it(
    capsys: Capture, tmp_path: Path
) -> None:
    labels = np.repeat([0, 1, 2], 12)
    words = made(tmp_path, shy(np.random.default_rng(5), labels, 0.75), labels, [400, 100, 25])
    sweep, out = tmp_path / "sweep.json", tmp_path / "out.safetensors"
    outputs = ["-o", sweep, "--apply", out, "--require-gain"]
    code, document = run(capsys, "sweep-gamma", *words, *outputs)
    result = document["result"]
    assert (code, document["error"]["code"]) == (6, "gate-failed")
    assert (result["verdict"], result["apply"]) == ("undecided", None)
    assert result["explanation"]["samples_needed"] > 18
    assert "more labelled samples would settle the question" in result["explanation"]["text"]
    assert load_file(out).keys() == load_file(words[0]).keys()
    assert json.loads(sweep.read_text())["result"]["verdict"] == "undecided"
    assert result["chosen"]["gamma"] > 0
    assert run(capsys, "verify", out, "--against", words[0])[1]["result"]["gamma"] == 0
    code, document = run(capsys, "apply", *words[:3], "--gamma", f"@{sweep}", "--dry-run")
    assert (code, document["result"]["gamma"]) == (0, result["chosen"]["gamma"])
    assert "unproven-strength" in [warning["code"] for warning in document["warnings"]]
    assert main([str(word) for word in ("sweep-gamma", *words)]) == 0
    assert "rescale-cli apply" not in capsys.readouterr().out


def test_choosing_and_reporting_on_the_same_samples_is_never_said_to_help(capsys: Capture) -> None:
    _, document = run(capsys, "sweep-gamma", *BUNDLED, "--holdout", 0)
    result = document["result"]
    assert (result["verdict"], result["explanation"]["why"]) == ("undecided", "same-samples")
    assert result["gain"]["interval"][0] > 0
    assert "--holdout 0.5" in result["explanation"]["text"]


def test_a_choice_without_labels_is_judged_where_labels_are_known(
    capsys: Capture, tmp_path: Path
) -> None:
    for more in ([], ["--holdout", 0]):
        _, document = run(capsys, "sweep-gamma", *BUNDLED, "--unlabeled", *more)
        assert document["result"]["verdict"] == "helps", "no label had a part in the choice"
    with np.load(BUNDLED[-1]) as file:
        np.savez(tmp_path / "bare.npz", logits=file["logits"])
    words = [*BUNDLED[:-1], tmp_path / "bare.npz", "--unlabeled"]
    code, document = run(capsys, "sweep-gamma", *words, "--require-gain")
    result = document["result"]
    assert (code, result["verdict"], result["gain"]) == (6, "undecided", None)
    assert (result["explanation"]["why"], result["apply"]) == ("no-labels", None)


def test_the_verdict_needs_no_other_bootstrap(capsys: Capture) -> None:
    _, document = run(capsys, "sweep-gamma", *BUNDLED, "--bootstrap", 0)
    _, again = run(capsys, "sweep-gamma", *BUNDLED)
    assert document["result"]["gain"] == again["result"]["gain"]
    assert document["result"]["chosen"]["interval"] is None


def test_compare_judges_each_method_and_writes_only_what_helps(capsys: Capture) -> None:
    _, document = run(capsys, "compare", *BUNDLED)
    entries = {entry["name"]: entry for entry in document["result"]["methods"]}
    assert entries["as it is"]["verdict"] == "no-gain"
    assert entries["rescale"]["verdict"] == "helps"
    for entry in entries.values():
        assert (entry["apply"] is not None) == (entry["verdict"] == "helps")
        assert entry["gain"]["before"] == entries["as it is"]["value"]
        assert entry["gain"]["after"] == entry["value"]
    _, sweep = run(capsys, "sweep-gamma", *BUNDLED)
    assert sweep["result"]["gain"] == entries["rescale"]["gain"]


def test_very_few_samples_have_a_verdict(capsys: Capture, tmp_path: Path) -> None:
    for number in (1, 2):
        labels = np.repeat([0, 1, 2], number)
        logits = np.tile([3.0, 1.0, 2.0], (len(labels), 1))
        words = made(tmp_path, logits, labels, [400, 100, 25])
        for holdout in (0, 0.5):
            code, document = run(capsys, "sweep-gamma", *words, "--holdout", holdout)
            if code == 0:
                assert document["result"]["verdict"] in ("undecided", "no-gain")
            else:
                assert (code, document["error"]["code"]) == (3, "bad-input")
