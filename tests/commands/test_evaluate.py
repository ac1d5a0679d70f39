"""`evaluate`: its numbers, its gates, and everything it leaves behind."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from conftest import child_environment
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from sklearn import metrics as sk

from rescale_cli.cli import main
from rescale_cli.commands.schema import schema_text
from rescale_cli.measures.calibration import measure_logits
from rescale_cli.measures.metric_names import ABOUT

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_lt"
LOGITS = ("evaluate", "model.safetensors", "--logits", "val_logits.npz")
with np.load(EXAMPLE / "val_logits.npz") as _kept:
    #: The share that the bundled model has right; its classes have 200 images each.
    RIGHT = float((_kept["logits"].argmax(axis=1) == _kept["labels"]).mean())
#: The first images alone, and what the network says of them.
IMAGES = ("evaluate", "model.safetensors", "--data", "npz:few.npz", "-j", "0")
SOME = 200
COUNTED = ("--counts", "counts.json")
HOSTILE = 'a|b"\n::error::x\x1b[31m<&>,\u202e.safetensors'

Capture = pytest.CaptureFixture[str]
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundled example, and the process in it; no CI system around."""
    for name in ("config.json", "counts.json", "model.safetensors", "val_logits.npz"):
        shutil.copy(EXAMPLE / name, tmp_path)
    with np.load(EXAMPLE / "val.npz") as file:
        np.savez(tmp_path / "few.npz", **{name: file[name][:SOME] for name in file})
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(work: Path, capsys: Capture) -> Run:
    """One command with --json: its exit code and its document, held against the schema."""

    def do(*words: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main([*map(str, words), "--json"])
        out, err = capsys.readouterr()
        document: dict[str, Any] = json.loads(out)
        jsonschema.validate(document, json.loads(schema_text("evaluate")))
        assert document["ok"] == (code == 0)
        assert all(line.startswith("::error") for line in err.splitlines())
        return code, document

    return do


def example() -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) in float64, and labels (N,)."""
    with np.load(EXAMPLE / "val_logits.npz") as file:
        return file["logits"].astype(np.float64), file["labels"]


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------- numbers


def held_against_scikit(model: dict[str, Any], logits: np.ndarray, labels: np.ndarray) -> None:
    predicted, shares = logits.argmax(axis=1), softmax(logits)
    found, every = model["metrics"], range(logits.shape[1])
    wanted = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "top_5": sk.top_k_accuracy_score(labels, logits, k=5),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "macro_precision": sk.precision_score(labels, predicted, average="macro"),
        "worst_recall": sk.recall_score(labels, predicted, average=None).min(),
        "nll": sk.log_loss(labels, shares, labels=every),
        "brier": float(((shares - np.eye(len(every))[labels]) ** 2).sum(axis=1).mean()),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-12)
    assert model["confusion"] == sk.confusion_matrix(labels, predicted, labels=every).tolist()
    precision, recall, f1, support = sk.precision_recall_fscore_support(labels, predicted)
    columns = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    for name, column in columns.items():
        assert [entry[name] for entry in model["per_class"]] == pytest.approx(column.tolist())


def test_the_numbers_are_those_of_scikit_learn(run: Run) -> None:
    code, document = run(*LOGITS)
    (model,) = document["result"]["models"]
    assert (code, model["path"], model["samples"]) == (0, "model.safetensors", 2000)
    assert set(model["metrics"]) == set(ABOUT)
    held_against_scikit(model, *example())


def test_counts_give_the_groups(run: Run) -> None:
    _, document = run(*LOGITS, *COUNTED, "--groups", "1000,200")
    (model,) = document["result"]["models"]
    counts = np.array(json.loads(Path("counts.json").read_text())["counts"])
    recall = np.array([entry["recall"] for entry in model["per_class"]])
    masks = {"many": counts > 1000, "medium": (counts >= 200) & (counts <= 1000)}
    masks["few"] = counts < 200
    for name, mask in masks.items():
        assert model["metrics"][name] == pytest.approx(recall[mask].mean())
        assert [entry["group"] == name for entry in model["per_class"]] == mask.tolist()
    assert [entry["count"] for entry in model["per_class"]] == counts.tolist()
    assert model["per_class"][0]["name"] == "T-shirt/top"
    assert document["result"]["groups"] == {"many_above": 1000, "few_below": 200}


def test_an_empty_group_is_na_and_never_zero(run: Run, capsys: Capture) -> None:
    _, document = run(*LOGITS, *COUNTED)
    assert document["result"]["models"][0]["metrics"]["few"] is None
    _, document = run(*LOGITS)
    assert document["result"]["models"][0]["metrics"]["many"] is None
    assert document["result"]["groups"] is None
    assert main([*LOGITS, *COUNTED]) == 0
    out = capsys.readouterr().out
    assert "balanced accuracy" in out
    assert "few" not in out


@pytest.mark.parametrize(
    ("words", "scale", "bias"),
    [
        (("-g", "0.15"), 0.15, "keep"),
        (("--gamma", "0.15", "--bias", "drop"), 0.15, "drop"),
        (("--tau", "0.15", "--bias", "scale"), 0.15, "scale"),
        (("-g", "0", "--temperature", "2"), None, "keep"),
    ],
)
def test_an_adjustment_is_measured_without_a_file(
    words: tuple[str, ...], scale: float | None, bias: str, run: Run, work: Path
) -> None:
    before = sorted(work.iterdir())
    logits, labels = example()
    own = safetensors.numpy.load_file("model.safetensors")["linear.bias"].astype(np.float64)
    counts = np.array(json.loads(Path("counts.json").read_text())["counts"])
    if scale is None:
        logits = logits / 2
    else:
        factor = (counts.max() / counts) ** scale
        kept = {"keep": own, "drop": 0 * own, "scale": factor * own}[bias]
        logits = factor * (logits - own) + kept
    _, document = run(*LOGITS, *COUNTED, *words)
    held_against_scikit(document["result"]["models"][0], logits, labels)
    assert document["result"]["adjustment"]["bias_policy"] == bias
    assert sorted(work.iterdir()) == before


def test_large_matrices_are_written_by_their_cells(run: Run) -> None:
    c, n = 250, 400
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(n, c)).astype(np.float32), rng.integers(0, c, n)
    np.savez("large.npz", logits=logits, labels=labels)
    state = {"stem.weight": rng.normal(size=(6, 5)), "fc.weight": rng.normal(size=(c, 6))}
    safetensors.numpy.save_file(state, "large.safetensors")
    code, document = run("evaluate", "large.safetensors", "--logits", "large.npz")
    (model,) = document["result"]["models"]
    assert (code, model["confusion"]) == (0, None)
    cells = model["confusion_cells"]
    matrix = np.zeros((c, c), int)
    matrix[cells["actual"], cells["predicted"]] = cells["count"]
    assert (matrix == sk.confusion_matrix(labels, logits.argmax(axis=1), labels=range(c))).all()
    assert [w["code"] for w in document["warnings"]] == ["note", "classes-without-samples"]


def test_images_give_what_their_logits_give(run: Run, work: Path) -> None:
    logits, labels = example()
    np.savez("few_logits.npz", logits=logits[:SOME].astype(np.float32), labels=labels[:SOME])
    _, of_logits = run(*LOGITS[:-1], "few_logits.npz")
    code, of_images = run(*IMAGES, "--save-logits", "saved.npz", "-v")
    assert code == 0
    one, two = (document["result"]["models"][0] for document in (of_logits, of_images))
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    assert two["images_per_second"] > 0
    _, again = run(*LOGITS[:-1], "saved.npz")
    assert again["result"]["models"][0]["metrics"] == two["metrics"]
    assert any("CPU" in warning["message"] for warning in of_images["warnings"])


def test_what_is_measured_is_what_apply_writes(run: Run) -> None:
    assert main(["apply", "model.safetensors", *COUNTED, "-g", "0.15"]) == 0
    _, planned = run(*IMAGES, *COUNTED, "-g", "0.15")
    code, written = run("evaluate", "model.rescaled.safetensors", *IMAGES[2:], *COUNTED)
    assert code == 0, written
    one, two = (document["result"]["models"][0]["metrics"] for document in (planned, written))
    assert two == pytest.approx(one, abs=1e-5)


# ---------------------------------------------------------------------------- several, and a base


def shifted(file: str, by: float) -> None:
    """Logits that take more samples for the last class."""
    logits, labels = example()
    logits[:, -1] += by
    np.savez(file, logits=logits.astype(np.float32), labels=labels)


def test_models_stand_side_by_side(run: Run, capsys: Capture) -> None:
    shutil.copy("model.safetensors", "other.safetensors")
    shifted("other.npz", 1.0)
    words = ["evaluate", "model.safetensors", "other.safetensors", "--logits", "val_logits.npz"]
    words += ["--logits", "other.npz"]
    _, document = run(*words)
    first, second = document["result"]["models"]
    assert (first["path"], second["path"]) == ("model.safetensors", "other.safetensors")
    assert first["metrics"]["accuracy"] != second["metrics"]["accuracy"]
    assert main(words) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("balanced accuracy"))
    shown = [f"{model['metrics']['balanced_accuracy']:.4f}" for model in (first, second)]
    assert row.split()[2:] == shown


def test_a_temperature_alone_needs_no_counts(run: Run) -> None:
    code, document = run(*LOGITS, "--temperature", "1.5")
    assert code == 0
    logits, labels = example()
    (model,) = document["result"]["models"]
    assert model["metrics"]["nll"] == pytest.approx(measure_logits(logits / 1.5, labels).nll)
    _, counted = run(*LOGITS, *COUNTED, "--temperature", "1.5")
    expected = counted["result"]["models"][0]["metrics"]["nll"]
    assert model["metrics"]["nll"] == pytest.approx(expected, rel=1e-12)
    code, document = run(*LOGITS, "--temperature", "1.5", "--gamma", "0.1")
    assert (code, document["error"]["fix"]) == (2, "--counts FILE")


def test_a_base_gives_differences_intervals_and_a_test(run: Run) -> None:
    words = (*LOGITS, *COUNTED, "-g", "0.15", "--against", "model.safetensors")
    code, document = run(*words)
    (model,), against = document["result"]["models"], document["result"]["against"]
    assert (code, against["path"]) == (0, "model.safetensors")
    logits, labels = example()
    assert against["metrics"]["accuracy"] == (logits.argmax(axis=1) == labels).mean()
    (found,) = against["models"]
    for name, difference in found["differences"].items():
        new, old = model["metrics"][name], against["metrics"][name]
        assert difference["difference"] == (None if new is None else new - old)
    entry = found["differences"]["balanced_accuracy"]
    assert entry["interval"][0] < entry["difference"] < entry["interval"][1]
    for name in ("nll", "brier", "top_5", "ece", "classwise_ece"):
        low, high = found["differences"][name]["interval"]
        assert low <= found["differences"][name]["difference"] <= high
    for name, difference in found["differences"].items():
        assert (difference["interval"] is None) == (difference["difference"] is None), name
    test = found["mcnemar"]
    gain = test["only_model_right"] - test["only_base_right"]
    assert gain / 2000 == pytest.approx(found["differences"]["accuracy"]["difference"])
    assert test["p"] < 1e-6


def test_a_base_of_its_own_logits(run: Run) -> None:
    shutil.copy("model.safetensors", "base.safetensors")
    shifted("base.npz", 9.0)
    words = (*LOGITS, "--against", "base.safetensors")
    _, document = run(*words, "--against-logits", "base.npz")
    (found,) = document["result"]["against"]["models"]
    assert found["differences"]["accuracy"]["difference"] > 0
    code, document = run(*words)
    assert (code, document["error"]["fix"]) == (2, "--against-logits FILE")
    np.savez("base.npz", logits=example()[0][::2], labels=example()[1][::2])
    code, document = run(*words, "--against-logits", "base.npz")
    assert (code, document["error"]["code"]) == (3, "bad-input")
    assert "same samples" in document["error"]["what"]


def test_the_same_seed_gives_the_same_intervals(run: Run) -> None:
    words = (*LOGITS, *COUNTED, "-g", "0.1", "--against", "model.safetensors", "--bootstrap", "50")
    one, same, other = (run(*words, "--seed", seed)[1]["result"] for seed in (1, 1, 2))
    assert one == same
    assert one["against"]["models"] != other["against"]["models"]


# ------------------------------------------------------------------------------------------ gates


def test_a_gate_that_is_kept_lets_pass(run: Run) -> None:
    code, document = run(*LOGITS, "--fail-under", "balanced_accuracy=0.8", "--fail-over", "nll=1")
    assert code == 0
    assert [gate["passed"] for gate in document["result"]["gates"]] == [True, True]


def test_a_gate_that_is_not_kept_fails_and_the_result_stands_beside_it(run: Run) -> None:
    gates = ("--fail-under", "balanced_accuracy=0.9", "--fail-under", "accuracy=0.5")
    code, document = run(*LOGITS, *gates)
    assert (code, document["error"]["code"]) == (6, "gate-failed")
    assert document["error"]["what"] == "1 of 2 gates failed"
    assert [gate["passed"] for gate in document["result"]["gates"]] == [False, True]
    assert document["result"]["models"][0]["metrics"]["accuracy"] == RIGHT


def test_a_person_sees_table_gates_and_error(work: Path, capsys: Capture) -> None:
    assert main([*LOGITS, "--fail-under", "balanced-accuracy=0.9"]) == 6
    out, err = capsys.readouterr()
    assert f"FAILED fail-under balanced_accuracy=0.9: balanced_accuracy is {RIGHT:.4f}" in out
    assert err.splitlines()[0] == "error: 1 of 1 gates failed"
    assert main(["-v", *LOGITS, *COUNTED, "--against", "model.safetensors", "-g", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "Ankle boot" in out
    assert "McNemar p" in out
    assert "as if by rescale, strength 0.1, bias keep" in out


def test_a_drop_is_held_against_the_base(run: Run) -> None:
    words = (*LOGITS, *COUNTED, "-g", "0.3", "--against", "model.safetensors")
    code, document = run(*words, "--fail-drop", "many=0.5", "--fail-drop", "worst_recall=0.01")
    kept, lost = document["result"]["gates"]
    base, model = document["result"]["against"], document["result"]["models"][0]
    assert (kept["passed"], kept["kind"]) == (True, "fail-drop")
    fall = base["metrics"]["worst_recall"] - model["metrics"]["worst_recall"]
    assert lost["value"] == pytest.approx(fall)
    assert lost["passed"] == (fall <= 0.01)
    low, high = base["models"][0]["differences"]["worst_recall"]["interval"]
    assert lost["interval"] == [-high, -low]
    assert f"{low:+.4f} to {high:+.4f}" in lost["message"]
    assert code == (0 if lost["passed"] else 6)


def test_a_gate_on_an_empty_group_fails(run: Run) -> None:
    code, document = run(*LOGITS, *COUNTED, "--fail-under", "few=0.1")
    assert code == 6
    assert document["result"]["gates"][0]["value"] is None
    assert "n/a" in document["error"]["saw"]


# ---------------------------------------------------------------------------------------- outputs


def test_every_output_says_the_same(run: Run, work: Path) -> None:
    files = ("--predictions-out", "p.csv", "--junit", "j.xml", "--metrics-out")
    gates = ("--fail-under", "accuracy=0.9", "--fail-under", "accuracy=0.1")
    code, document = run(*LOGITS, *files, "m.json", *gates)
    assert code == 6, "files are written, too, where a gate fails"
    metrics = document["result"]["models"][0]["metrics"]
    assert json.loads((work / "m.json").read_text()) == metrics
    assert run(*LOGITS, "--metrics-out", "m.prom")[0] == 0
    families = text_string_to_metric_families((work / "m.prom").read_text())
    found = {family.name: family.samples for family in families}
    for name, (sample,) in found.items():
        assert sample.value == metrics[name.removeprefix("rescale_")]
        assert sample.labels == {"model": "model.safetensors"}
    assert len(found) == sum(value is not None for value in metrics.values())
    with (work / "p.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    logits, labels = example()
    assert rows[0] == ["actual", "predicted", "actual_name", "predicted_name", "score", "name"]
    columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
    assert np.array(columns["actual"], int).tolist() == labels.tolist()
    assert np.array(columns["predicted"], int).tolist() == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(
        np.array(columns["score"], float), softmax(logits).max(axis=1), rtol=1e-12
    )
    names = json.loads(Path("config.json").read_text())["classes"]
    assert list(columns["actual_name"]) == [names[row] for row in labels]
    assert set(columns["name"]) == {""}
    (suite,) = ElementTree.parse(work / "j.xml").getroot()
    assert [len(case.findall("failure")) for case in suite] == [1, 0]


def test_the_score_of_a_prediction_is_that_after_the_adjustment(run: Run, work: Path) -> None:
    words = (*LOGITS, *COUNTED, "-g", "0", "--temperature", "3")
    assert run(*words, "--predictions-out", "p.jsonl")[0] == 0
    table = pd.read_json(work / "p.jsonl", lines=True)
    logits, labels = example()
    np.testing.assert_allclose(table.score, softmax(logits / 3).max(axis=1), rtol=1e-9)
    assert table.actual.tolist() == labels.tolist()
    assert run(*words, "--predictions-out", "p.json")[0] == 0
    pd.testing.assert_frame_equal(pd.read_json(work / "p.json"), table)


def test_predictions_of_an_unknown_format_are_refused_before_the_work(run: Run) -> None:
    code, document = run("evaluate", "no.pth", "--data", "no", "--predictions-out", "p.xlsx")
    assert (code, document["error"]["code"]) == (2, "usage")
    assert ".csv, .json, .jsonl" in document["error"]["what"]
    assert document["error"]["fix"] == "--predictions-out p.csv"


def test_the_csv_has_a_row_for_each_model_and_one_for_each_class_of_it(
    run: Run, work: Path
) -> None:
    shutil.copy("model.safetensors", "b.safetensors")
    words = ["evaluate", "model.safetensors", "b.safetensors", *LOGITS[2:], *LOGITS[2:], *COUNTED]
    words += [
        "-g",
        "0.15",
        "--against",
        "model.safetensors",
        "--csv",
        "e.csv",
        "--classes",
        "counts.json",
    ]
    code, document = run(*words)
    result = document["result"]
    assert code == 0
    table = pd.read_csv(work / "e.csv")
    whole, classes = table[table["class"].isna()], table[table["class"].notna()]
    assert whole[["model", "role"]].to_numpy().tolist() == [
        ["model.safetensors", "base"], ["model.safetensors", "model"], ["b.safetensors", "model"]
    ]  # fmt: skip
    base, *models = [{k: None if pd.isna(v) else v for k, v in row.items()}
                     for row in whole.to_dict("records")]  # fmt: skip
    assert {name: base[name] for name in ABOUT} == result["against"]["metrics"]
    for row, model, against in zip(
        models, result["models"], result["against"]["models"], strict=True
    ):
        assert {name: row[name] for name in ABOUT} == model["metrics"]
        for name, change in against["differences"].items():
            low, high = change["interval"] or (None, None)
            found = [row[f"{name}_{end}"] for end in ("change", "change_low", "change_high")]
            assert found == [change["difference"], low, high]
    mine = classes[(classes.model == "b.safetensors") & (classes.role == "model")]
    for row, entry in zip(mine.to_dict("records"), result["models"][1]["per_class"], strict=True):
        assert {name: row[name] for name in entry} == entry


def test_metrics_of_several_models_stand_under_their_names(run: Run, work: Path) -> None:
    shutil.copy("model.safetensors", "b.safetensors")
    words = ["evaluate", "model.safetensors", "b.safetensors", *LOGITS[2:], *LOGITS[2:]]
    assert run(*words, "--metrics-out", "m.json")[0] == 0
    found = json.loads((work / "m.json").read_text())
    assert found["model.safetensors"] == found["b.safetensors"]


def test_an_output_that_exists_is_kept_and_told_before_the_work(run: Run, work: Path) -> None:
    (work / "m.json").write_text("mine")
    code, document = run("evaluate", "no.pth", "--data", "no", "--metrics-out", "m.json")
    assert (code, document["error"]["code"]) == (4, "output-exists")
    assert (work / "m.json").read_text() == "mine"
    assert run(*LOGITS, "--metrics-out", "m.json", "--force")[0] == 0
    assert json.loads((work / "m.json").read_text())["accuracy"] == RIGHT


@pytest.mark.parametrize("read", ["model.safetensors", "val_logits.npz", "counts.json"])
def test_no_output_is_a_file_that_is_read(read: str, work: Path, capsys: Capture) -> None:
    before = (work / read).read_bytes()
    assert main([*LOGITS, *COUNTED, "--predictions-out", read, "--force"]) == 4
    assert "--predictions-out" in capsys.readouterr().err
    words = ["sweep-gamma", "model.safetensors", *LOGITS[2:], *COUNTED]
    assert main([*words, "--csv", f"../{work.name}/{read}", "--force"]) == 4
    assert (work / read).read_bytes() == before


def test_github_gets_a_page_outputs_and_annotations(
    work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(work / "page.md"))
    monkeypatch.setenv("GITHUB_OUTPUT", str(work / "output"))
    gates = ("--fail-under", "accuracy=0.9", "--fail-under", "macro_f1=0.1")
    assert main([*LOGITS, *gates, "--json"]) == 6
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "gate-failed"
    (line,) = err.splitlines()
    assert line.startswith("::error title=gate fail-under accuracy=0.9::model.safetensors: ")
    page = (work / "page.md").read_text()
    assert f"| balanced_accuracy | {RIGHT:.4f} |" in page
    assert "**failed**" in page
    assert f"accuracy={RIGHT}" in (work / "output").read_text().splitlines()


def test_no_name_breaks_an_output(
    work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move("model.safetensors", HOSTILE)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(work / "page.md"))
    words = ["evaluate", HOSTILE, *LOGITS[2:], "--fail-under", "accuracy=0.9", "--junit", "j.xml"]
    assert main([*words, "--metrics-out", "m.prom"]) == 6
    out, err = capsys.readouterr()
    commands = [line for line in (out + err).splitlines() if line.startswith("::error")]
    assert len(commands) == 1
    assert not set("\x1b\u202e") & set(out + err)
    families = list(text_string_to_metric_families((work / "m.prom").read_text()))
    assert {sample.labels["model"] for family in families for sample in family.samples} == {HOSTILE}
    assert ElementTree.parse(work / "j.xml").getroot()[0].attrib["failures"] == "1"
    page = (work / "page.md").read_text()
    assert "\x1b" not in page
    assert "a\\|b" in page


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "code", "fix"),
    [
        (("evaluate",), 2, "--logits FILE"),
        (("evaluate", "model.safetensors"), 2, "--data DATA, or --logits FILE"),
        ((*LOGITS, "--data", "npz:few.npz"), 2, "--data DATA, or --logits FILE"),
        ((*LOGITS, "--logits", "val_logits.npz"), 2, "--logits FILE for each MODEL"),
        (("evaluate", "model.safetensors", *LOGITS[1:], *LOGITS[2:]), 2, "name each MODEL once"),
        ((*LOGITS, "-g", "0.1"), 2, "--counts FILE"),
        ((*LOGITS, *COUNTED, "--method", "tau-norm"), 2, "--tau 0.5"),
        ((*LOGITS, *COUNTED, "-g", "5"), 2, "--gamma 0.2"),
        ((*LOGITS, *COUNTED, "--groups", "20,100"), 2, "--groups 100,20"),
        ((*LOGITS, *COUNTED, "--groups", "100"), 2, "--groups 100,20"),
        ((*LOGITS, "--fail-under", "acuracy=0.7"), 2, "--fail-under accuracy=0.7"),
        ((*LOGITS, "--fail-drop", "accuracy=0.1"), 2, "--against BASE"),
        ((*LOGITS, "--fail-under", "few=0.1"), 2, "--counts FILE"),
        ((*LOGITS, "--against-logits", "val_logits.npz"), 2, "--against BASE"),
        ((*LOGITS, "--metrics-out", "m.txt"), 2, "--metrics-out m.json"),
        ((*LOGITS, "--metrics-out", "m.json", "--junit", "m.json"), 2, "--junit FILE"),
        ((*LOGITS, "--save-logits", "a.pth"), 2, "--save-logits a.npz"),
        ((*IMAGES, "--size", "big"), 2, "--size 224"),
        ((*IMAGES, "--mean", "a,b,c"), 2, "--mean 0.5"),
        ((*IMAGES, "--std", "0"), 2, "--std 0.5"),
        ((*IMAGES, "--device", "tpu"), 2, "cpu"),
        ((*IMAGES, "--against", "x", "--against-logits", "y"), 2, "leave out --against-logits"),
        (("evaluate", "no.pth", *LOGITS[2:]), 3, None),
        ((*LOGITS[:-1], "no.npz"), 3, None),
        ((*LOGITS[:-1], "few.npz"), 3, None),
        (("evaluate", "model.safetensors", "--data", "no-such"), 3, None),
        ((*LOGITS, "--metrics-out", "no/folder/m.json"), 3, "mkdir"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, tuple) else None,
)
def test_a_mistake_is_an_error_with_a_fix(
    words: Sequence[str], code: int, fix: str | None, run: Run, work: Path
) -> None:
    before = sorted(work.iterdir())
    found, document = run(*words)
    assert found == code, document
    assert fix is None or fix in document["error"]["fix"]
    assert sorted(work.iterdir()) == before


def test_logits_of_another_head_are_refused(run: Run) -> None:
    np.savez("nine.npz", logits=example()[0][:, :9], labels=example()[1] % 9)
    code, document = run(*LOGITS[:-1], "nine.npz")
    assert (code, document["error"]["code"]) == (3, "bad-input")
    assert "10 rows" in document["error"]["what"]
    assert "9 classes" in document["error"]["what"]


def test_logits_without_labels_are_refused(run: Run) -> None:
    np.savez("bare.npz", logits=example()[0])
    code, document = run(*LOGITS[:-1], "bare.npz")
    assert (code, document["error"]["code"]) == (3, "bad-input")
    assert "labels" in document["error"]["fix"]


def test_logits_need_no_torch(work: Path) -> None:
    code = (
        "import sys; from rescale_cli.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'timm', 'transformers', 'PIL'} & set(sys.modules);"
        "sys.exit(code or ' '.join(heavy) or 0)"
    )
    words = [*LOGITS, *COUNTED, "-g", "0.1", "--against", "model.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, text=True, env=child_environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_under_torchrun_rank_0_alone_speaks_and_writes(run: Run, work: Path) -> None:
    _, single = run(*IMAGES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "-m", "rescale_cli"]
    done = subprocess.run(
        [*launcher, *IMAGES, "--junit", "j.xml", "--json"],
        capture_output=True, text=True, timeout=200, check=False,
        env=child_environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="default"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)["result"]["models"][0]
    assert both["metrics"] == single["result"]["models"][0]["metrics"]
    assert (work / "j.xml").is_file()
