"""One logit for two classes: a binary head is found, measured, swept, written and taken back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file
from sklearn import metrics as sk

import rescale_cli
from rescale_cli.cli import main
from rescale_cli.commands.schema import schema_text
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head, two_columns, two_rows
from rescale_cli.core.methods import Adjustment
from rescale_cli.measures.calibration import measure_logits

Run = Callable[..., tuple[int, dict[str, Any]]]


def tensors(rows: int, bias: bool = True) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    made = {"body.weight": torch.randn(16, 8), "fc.weight": torch.randn(rows, 16)}
    return {**made, "fc.bias": torch.randn(rows)} if bias else made


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A binary head, one without a bias, one of two rows; counts, and logits of each shape."""
    save_file(tensors(1), tmp_path / "one.safetensors")
    save_file(tensors(1, bias=False), tmp_path / "bare.safetensors")
    save_file(tensors(2), tmp_path / "two.safetensors")
    (tmp_path / "n.json").write_text("[500, 50]")
    (tmp_path / "named.json").write_text('{"sick": 50, "well": 500}')
    (tmp_path / "keys.json").write_text('{"1": 50, "0": 500}')
    (tmp_path / "classes.json").write_text('["well", "sick"]')
    (tmp_path / "prior.json").write_text("[0.8, 0.2]")
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [400, 200])
    z = (2 * y - 2.5 + rng.normal(size=600)).astype(np.float32).round(2)
    np.savez(tmp_path / "flat.npz", logits=z, labels=y)
    np.savez(tmp_path / "column.npz", logits=z[:, None], labels=y[:, None].astype(np.float32))
    np.savez(tmp_path / "pair.npz", logits=two_columns(z), labels=y)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(work: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """One command with --json: its exit code and its document, checked against the schema."""

    def do(command: str, *words: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main([command, *map(str, words), "--json"])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, json.loads(schema_text(command)))
        return code, document

    return do


def test_inspect_calls_one_row_a_binary_head_and_says_what_is_assumed(run: Run) -> None:
    code, document = run("inspect", "one.safetensors")
    assert code == 0
    head = document["result"]["head"]
    assert head["binary"]
    assert head["num_classes"] == 1
    (said,) = [w["message"] for w in document["warnings"] if w["code"] == "binary-head"]
    assert "regression" in said
    assert "--counts" in said
    _, confirmed = run("inspect", "one.safetensors", "--counts", "n.json")
    assert confirmed["warnings"] == []
    assert confirmed["result"]["counts"] == [500, 50]
    _, two = run("inspect", "two.safetensors")
    assert not two["result"]["head"]["binary"]


@pytest.mark.parametrize("counts", ["n.json", "keys.json"])
def test_logit_adjust_moves_the_bias_by_tau_times_the_log_of_the_ratio(
    counts: str, run: Run, work: Path
) -> None:
    words = ("one.safetensors", "--counts", counts, "--method", "logit-adjust", "--tau", 0.7)
    code, document = run("apply", *words, "-o", "out.safetensors")
    assert code == 0, document
    before, after = load_file(work / "one.safetensors"), load_file(work / "out.safetensors")
    wanted = before["fc.bias"].double() + 0.7 * np.log(500 / 50)
    assert torch.equal(after["fc.bias"], wanted.float())
    assert torch.equal(after["fc.weight"], before["fc.weight"])
    assert document["result"]["shifts"] == pytest.approx([0.7 * np.log(10)])
    assert document["result"]["factors"] == [1.0]
    assert run("verify", "out.safetensors", "--against", "one.safetensors")[0] == 0
    assert run("revert", "out.safetensors", "-o", "back.safetensors")[0] == 0
    assert (work / "back.safetensors").read_bytes() == (work / "one.safetensors").read_bytes()


def test_counts_with_names_need_the_order_of_the_classes(run: Run) -> None:
    words = ("one.safetensors", "--method", "logit-adjust", "--tau", 1, "--dry-run")
    code, document = run("apply", *words, "--counts", "named.json")
    assert (code, document["error"]["code"]) == (4, "class-order")
    code, document = run("apply", *words, "--counts", "named.json", "--classes", "classes.json")
    assert code == 0
    assert document["result"]["shifts"] == pytest.approx([np.log(10)])


def test_target_prior_temperature_and_compose_do_what_the_two_classes_say(
    run: Run, work: Path
) -> None:
    words = ("--counts", "n.json", "--method", "logit-adjust", "--tau", 1, "--temperature", 2)
    more = ("--target-prior", "prior.json", "-o", "a.safetensors")
    code, document = run("apply", "one.safetensors", *words, *more)
    assert code == 0
    shift = (np.log(500 / 50) + np.log(0.2 / 0.8)) / 2
    assert document["result"]["shifts"] == pytest.approx([shift])
    assert document["result"]["factors"] == [0.5]
    assert run("apply", "a.safetensors", *words, "-o", "b.safetensors")[0] == 4
    assert run("apply", "a.safetensors", *words, "-o", "b.safetensors", "--compose")[0] == 0
    assert run("verify", "b.safetensors", "--against", "a.safetensors")[0] == 0
    assert run("revert", "b.safetensors", "-o", "c.safetensors")[0] == 0
    assert (work / "c.safetensors").read_bytes() == (work / "a.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["rescale", "tau-norm"])
def test_a_single_row_is_not_rescaled_and_the_fix_can_be_typed(
    method: str, run: Run, work: Path
) -> None:
    words = ("--counts", work / "n.json", "--method", method)
    code, document = run("apply", "one.safetensors", *words, "--gamma", 1)
    assert code == 3
    assert "sign" in document["error"]["what"]
    fix = document["error"]["fix"].split()
    assert fix[:3] == ["rescale-cli", "apply", "one.safetensors"]
    assert run(*fix[1:], "-o", "typed.safetensors")[0] == 0
    code, document = run("sweep-gamma", "one.safetensors", *words, "--logits", "flat.npz")
    assert code == 3
    assert run(*document["error"]["fix"].split()[1:])[0] == 0
    code, document = run("apply", "bare.safetensors", *words, "--gamma", 1)
    assert (code, "z > -tau" in document["error"]["fix"]) == (3, True)


def test_a_class_that_is_left_out_is_refused(run: Run, work: Path) -> None:
    words = ("one.safetensors", "--method", "logit-adjust", "--tau", 1, "--dry-run", "--counts")
    code, document = run("apply", *words, "n.json", "--exclude-class", 0)
    assert (code, "--exclude-class" in document["error"]["fix"]) == (2, True)
    (work / "zero.json").write_text("[500, 0]")
    assert run("apply", *words, "zero.json")[0] == 3
    assert run("apply", *words, "zero.json", "--zero-count", "skip")[0] == 2
    code, document = run("apply", *words, "zero.json", "--zero-count", "one")
    assert document["result"]["shifts"] == pytest.approx([np.log(500)])


@pytest.mark.parametrize("file", ["flat.npz", "column.npz"])
def test_the_metrics_of_one_logit_are_those_of_scikit_learn(file: str, run: Run) -> None:
    with np.load("flat.npz") as kept:
        z, y = kept["logits"].astype(float), kept["labels"]
    code, document = run("evaluate", "one.safetensors", "--logits", file)
    assert code == 0, document
    (model,) = document["result"]["models"]
    p = 1 / (1 + np.exp(-z))
    wanted = {
        "accuracy": sk.accuracy_score(y, z > 0),
        "balanced_accuracy": sk.balanced_accuracy_score(y, z > 0),
        "macro_f1": sk.f1_score(y, z > 0, average="macro"),
        "nll": sk.log_loss(y, p),
        "brier": 2 * sk.brier_score_loss(y, p),
        "roc_auc": sk.roc_auc_score(y, z),
        "average_precision": sk.average_precision_score(y, z),
    }
    assert {name: model["metrics"][name] for name in wanted} == pytest.approx(wanted, abs=1e-12)
    assert model["confusion"] == sk.confusion_matrix(y, z > 0).tolist()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(z), torch.tensor(y * 1.0)
    )
    assert model["metrics"]["nll"] == pytest.approx(bce.item())


def test_logits_of_another_shape_than_the_head_are_refused(run: Run) -> None:
    assert run("evaluate", "one.safetensors", "--logits", "pair.npz")[0] == 3
    assert run("evaluate", "two.safetensors", "--logits", "flat.npz")[0] == 3
    assert run("evaluate", "two.safetensors", "--logits", "pair.npz")[0] == 0


def test_the_swept_curve_is_that_of_brute_force(run: Run) -> None:
    with np.load("flat.npz") as kept:
        z, y = kept["logits"].astype(float), kept["labels"]
    words = ("one.safetensors", "--counts", "n.json", "--logits", "column.npz", "--bootstrap", 20)
    code, document = run("sweep-gamma", *words, "--method", "logit-adjust")
    assert code == 0, document
    result = document["result"]
    assert result["exact"]
    for tau, value in zip(result["curve"]["gamma"], result["curve"]["accuracy"], strict=True):
        assert value == pytest.approx(np.mean((z + tau * np.log(500 / 50) > 0) == y), abs=1e-12)
    code, document = run("compare", *words)
    assert code == 0
    names = {entry["name"] for entry in document["result"]["methods"]}
    assert names == {"as it is", "logit-adjust"}
    assert set(document["result"]["left_out"]) == {"rescale", "normalize + rescale", "tau-norm"}


def test_saved_logits_of_a_binary_head_have_one_column_and_are_read_again(
    run: Run, work: Path
) -> None:
    for kept in ("kept.npz", "kept.safetensors"):
        words = ("evaluate", "one.safetensors", "--logits")
        code, first = run(*words, "flat.npz", "--save-logits", kept)
        assert code == 0
        _, again = run(*words, kept)
        assert again["result"]["models"][0]["metrics"] == first["result"]["models"][0]["metrics"]
    assert np.load(work / "kept.npz")["logits"].shape == (600, 1)


def test_a_live_layer_of_one_row_is_adjusted_like_a_file() -> None:
    layer = torch.nn.Linear(4, 1)
    before = layer.bias.detach().clone()
    rescale_cli.rescale_(layer, [90, 10], 1.0, method="logit-adjust")
    assert torch.equal(layer.bias.detach(), (before.double() + np.log(9)).float())


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(0, 4))
def test_two_rows_and_one_row_decide_alike(negatives: int, positives: int, tau: float) -> None:
    counts = ClassCounts.of([negatives, positives])
    head = Head.of(np.ones((1, 3)), np.array([0.25]))
    shift = Adjustment("logit-adjust", tau).update(two_rows(head), counts).shift
    full = Adjustment("logit-adjust", tau).update(Head.of(np.ones((2, 3)), np.zeros(2)), counts)
    assert shift[0] == 0
    assert shift[1] == pytest.approx(full.shift[1] - full.shift[0], abs=1e-9)
    if tau == 0 or negatives == positives:
        assert shift[1] == 0


@given(
    hnp.arrays(np.float64, (30, 2), elements=st.integers(-3, 3).map(float)),
    hnp.arrays(np.int64, 30, elements=st.integers(0, 1)),
)
def test_ties_are_ranked_as_scikit_learn_does(logits: np.ndarray, labels: np.ndarray) -> None:
    found, score = measure_logits(logits, labels), logits[:, 1] - logits[:, 0]
    if len(np.unique(labels)) == 1:
        assert found.roc_auc is found.average_precision is None
        return
    assert found.roc_auc == pytest.approx(sk.roc_auc_score(labels, score), abs=1e-12)
    wanted = sk.average_precision_score(labels, score)
    assert found.average_precision == pytest.approx(wanted, abs=1e-12)
    assert found.samples.ranking is not None
    times = np.arange(30) % 3 + 1.0
    weighted = found.samples.ranking.metrics(times[None])
    assert weighted["roc_auc"][0] == pytest.approx(
        sk.roc_auc_score(labels, score, sample_weight=times), abs=1e-12
    )
    assert weighted["average_precision"][0] == pytest.approx(
        sk.average_precision_score(labels, score, sample_weight=times), abs=1e-12
    )
