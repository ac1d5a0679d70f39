"""Results are tied to a model by the bytes of its head, and to the preprocessing that was used."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rescale_cli.cli import main
from rescale_cli.commands.demo_report import bundled
from rescale_cli.core.predictions import Predictions, Provenance
from rescale_cli.data.logits_file import read_logits, write_logits
from rescale_cli.patching.head_identity import identity_of
from rescale_cli.sweeping.selection import halves

Capture = pytest.CaptureFixture[str]
Run = Callable[..., tuple[int, dict[str, Any]]]

KNOWN = Provenance(
    "ab" * 32,
    {"size": [8, 8], "mean": [0.5], "std": [0.2], "source": "preset x"},
    {"source": "folder val/", "split": "val", "samples": 6},
    {"rescale-cli": "1", "torch": "2"},
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundled example as the folder `run`, in the working directory."""
    shutil.copytree(bundled(), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(work: Path, capsys: Capture) -> Run:
    def do(*words: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main([*map(str, words), "--json"])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return code, document.get("error") or document

    return do


SWEEP = ("sweep-gamma", "run", "--counts", "run/counts.json", "--bootstrap", 20)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_logits_carry_where_they_come_from(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"z{suffix}"
    made = Predictions(np.ones((6, 3), np.float32), np.arange(6) % 3, "x", provenance=KNOWN)
    write_logits(path, made)
    assert read_logits(path).provenance == KNOWN


@pytest.mark.parametrize("text", ["made by Bob", "[1]", '{"head_sha256": 5}', '{"a": {"b": 1}}'])
def test_what_another_program_calls_provenance_is_left_alone(text: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "z.npz", logits=np.ones((2, 3)), provenance=np.array(text))
    assert read_logits(tmp_path / "z.npz").provenance == Provenance()


def test_the_head_says_which_model_it_is_whatever_its_file_is_called(work: Path) -> None:
    state = load_file("run/model.safetensors")
    torch.save(state, "other name.pth")
    own = identity_of(Path("run/model.safetensors"))
    assert own is not None
    assert identity_of(Path("run")) == own == identity_of(Path("other name.pth"))
    (head,) = (name for name in state if state[name].dim() == 2)
    state[head][0, 0] += 1
    save_file(state, "run/model.safetensors")
    assert identity_of(Path("run/model.safetensors")) not in (None, own)


def test_a_sweep_says_whose_it_is_and_is_refused_for_another_model(run: Run, work: Path) -> None:
    logits = ("--logits", "run/val_logits.npz")
    code, document = run(*SWEEP, *logits, "-o", "sweep.json")
    assert code == 0
    assert document["warnings"] == [], "the logits say whose they are"
    result = document["result"]
    assert result["head_sha256"] == identity_of(Path("run"))
    assert result["preprocessing"]["mean"] == [0.2983]
    assert "rescale-cli" in result["versions"]
    named = ("--counts", "run/counts.json", "--classes", "run/counts.json")
    apply = ("apply", *named, "--dry-run", "--gamma", "@sweep.json")
    shutil.copyfile("run/model.safetensors", "same bytes.safetensors")
    code, document = run(*apply, "same bytes.safetensors")
    assert code == 0, document
    assert "other-model" not in [warning["code"] for warning in document["warnings"]]
    state = load_file("run/model.safetensors")
    save_file({k: v * 2 if v.dim() == 2 else v for k, v in state.items()}, "model.safetensors")
    code, error = run(*apply, "model.safetensors")
    assert (code, error["code"]) == (4, "other-model")
    number = shlex.split(error["fix"])[-1]
    assert run(*apply[:-1], number, "model.safetensors")[0] == 0


def test_a_strength_is_refused_with_other_counts_than_it_was_chosen_with(run: Run) -> None:
    assert run(*SWEEP, "--logits", "run/val_logits.npz", "-o", "sweep.json")[0] == 0
    counted = json.loads(Path("run/counts.json").read_text())
    counted["counts"][3:5] = reversed(counted["counts"][3:5])
    Path("other.json").write_text(json.dumps(counted))
    for words in (("apply", "--dry-run"), ("evaluate", "--logits", "run/val_logits.npz")):
        typed = (words[0], "run/model.safetensors", *words[1:], "--gamma", "@sweep.json")
        code, error = run(*typed, "--counts", "other.json")
        assert (code, error["code"]) == (4, "other-counts")
        assert error["saw"] == "row 3 (Dress): 1292 samples in sweep.json, 774 now"
        assert run(*typed, "--counts", "run/counts.json")[0] == 0


def test_logits_of_the_original_are_refused_for_the_re_scaled_checkpoint(run: Run) -> None:
    words = ("--counts", "run/counts.json", "--gamma", 0.2, "-o", "patched.safetensors")
    assert run("apply", "run/model.safetensors", *words)[0] == 0
    code, error = run("evaluate", "patched.safetensors", "--logits", "run/val_logits.npz")
    assert (code, error["code"]) == (4, "other-model")
    assert "was re-scaled (rescale, strength 0.2)" in error["saw"]
    with np.load("run/val_logits.npz") as file:
        np.savez("elsewhere.npz", logits=file["logits"], labels=file["labels"])
    code, document = run("evaluate", "run", "--logits", "elsewhere.npz")
    (warning,) = document["warnings"]
    assert (code, warning["code"]) == (0, "note")
    assert "does not say which model" in warning["message"]


def test_predictions_at_chance_stop_with_the_line_that_continues(run: Run, work: Path) -> None:
    with np.load("run/val.npz") as file:
        labels = np.random.default_rng(0).permutation(file["labels"])
        np.savez("shuffled.npz", images=file["images"], labels=labels)
    for words in (("evaluate", "run"), SWEEP, ("compare", *SWEEP[1:])):
        typed = (*words, "--data", "npz:shuffled.npz")
        code, error = run(*typed)
        assert (code, error["code"]) == (4, "poor-accuracy")
        assert "resized to 28 x 28" in error["saw"]
        line = f"rescale-cli {shlex.join(map(str, typed))} --json --accept-poor-accuracy"
        assert error["fix"].endswith(line)
        assert "--size N (N: the size that the network was trained at" in error["fix"]
        assert "--size 28" not in error["fix"], "the size of the images is not that of the training"
    code, document = run("evaluate", "run", "--data", "npz:shuffled.npz", "--accept-poor-accuracy")
    assert code == 0
    assert "--accept-poor-accuracy continues" in document["warnings"][-1]["message"]


def test_preprocessing_that_is_used_is_saved_and_picked_up(run: Run, work: Path) -> None:
    data = ("--data", "npz:run/val.npz", "--mean", 0.3, "--std", 0.35)
    saved = ("-o", "sweep.json", "--save-preprocessing", "p.json", "--save-logits", "z.npz")
    code, document = run(*SWEEP, *data, *saved)
    assert code == 0
    used = document["result"]["preprocessing"]
    assert (used["mean"], used["source"]) == ([0.3], "config.json, changed by options")
    evaluate = ("evaluate", "run", "--data", "npz:run/test.npz", "--counts", "run/counts.json")
    for more in (("--gamma", "@sweep.json"), ("--preprocessing", "p.json")):
        code, document = run(*evaluate, *more)
        assert code == 0
        (model,) = document["result"]["models"]
        assert (model["preprocessing"]["mean"], model["preprocessing"]["source"]) == (
            [0.3], more[1].removeprefix("@"),
        )  # fmt: skip
    _, document = run("evaluate", "run", "--logits", "z.npz", "--save-preprocessing", "again.json")
    assert Path("again.json").read_text("utf-8") == Path("p.json").read_text("utf-8")
    code, error = run(*evaluate, "--preprocessing", "p.json", "--preset", "mnist")
    assert (code, error["code"]) == (2, "usage")
    code, error = run(*evaluate, "--save-preprocessing", "p.json")
    assert (code, error["code"]) == (4, "output-exists")


def test_weights_alone_do_not_say_how_images_are_prepared(run: Run, work: Path) -> None:
    shutil.copyfile("run/model.safetensors", "alone.safetensors")
    words = ("evaluate", "alone.safetensors", "--data", "npz:run/val.npz")
    code, error = run(*words)
    assert (code, error["code"]) == (4, "needs-decision")
    assert "the first image has 28 x 28 pixels" in error["saw"]
    assert "rescale-cli evaluate alone.safetensors" in error["fix"]
    assert run(*words, "--preprocessing", "run/config.json")[0] == 0


CODES = {"chosen-on-this-data", "other-preprocessing", "same-model"}
QUICK = ("--counts", "run/counts.json", "--bootstrap", 5)


@pytest.fixture
def few(work: Path) -> None:
    """val.npz and test.npz with every eighth image of the example."""
    for name in ("val.npz", "test.npz"):
        with np.load(f"run/{name}") as file:
            np.savez(name, **{key: file[key][::8] for key in file})


def warned(document: dict[str, Any]) -> dict[str, str]:
    """The warnings of this file, by code."""
    return {w["code"]: w["message"] for w in document["warnings"] if w["code"] in CODES}


@pytest.mark.usefixtures("few")
def test_data_that_chose_the_strength_are_recognized_by_their_content(run: Run) -> None:
    saved = ("-o", "sweep.json", "--save-logits", "z.npz")
    code, document = run("sweep-gamma", "run", *QUICK, "--data", "npz:val.npz", *saved)
    assert code == 0
    shutil.copyfile("val.npz", "other name.npz")
    evaluate = ("evaluate", "run", *QUICK, "--gamma")
    for words in (("--data", "npz:other name.npz", "-b", 7), ("--logits", "z.npz")):
        found = warned(run(*evaluate, "@sweep.json", *words)[1])
        assert list(found) == ["chosen-on-this-data"]
        assert "chosen on this data, 125 samples, strat" in found["chosen-on-this-data"]
    assert warned(run(*evaluate, "@sweep.json", "--data", "npz:test.npz")[1]) == {}
    number = document["result"]["chosen"]["gamma"]
    assert warned(run(*evaluate, number, "--logits", "z.npz")[1]) == {}


def test_the_samples_that_were_held_out_may_be_measured(run: Run) -> None:
    logits = "run/val_logits.npz"
    assert run("sweep-gamma", "run", *QUICK, "--logits", logits, "-o", "sweep.json")[0] == 0
    with np.load(logits) as file:
        held = halves(file["labels"], 0.5, 0)[1]
        kept = {name: file[name][held] for name in ("logits", "labels")}
        np.savez("held.npz", provenance=file["provenance"], **kept)
    words = ("--gamma", "@sweep.json", "--logits", "held.npz")
    code, document = run("evaluate", "run", *QUICK, *words)
    assert (code, document["warnings"]) == (0, [])


def test_an_older_sweep_or_one_without_labels_says_nothing_of_its_data(run: Run) -> None:
    logits = ("--logits", "run/val_logits.npz")
    sweep = ("sweep-gamma", "run", *QUICK, *logits)
    code, document = run(*sweep, "-o", "sweep.json")
    del document["result"]["data_sha256"], document["result"]["preprocessing"]
    Path("older.json").write_text(json.dumps(document))
    code, document = run(*sweep, "--unlabeled", "-o", "unlabeled.json")
    assert (code, document["result"]["data_sha256"]) == (0, None)
    for name, found in (("older", False), ("unlabeled", False), ("sweep", True)):
        code, document = run("evaluate", "run", *QUICK, *logits, "--gamma", f"@{name}.json")
        assert (code, bool(warned(document))) == (0, found)


@pytest.mark.usefixtures("few")
def test_a_strength_used_with_other_preprocessing_is_warned_about(run: Run) -> None:
    for size in (28, 32):
        words = ("--data", "npz:val.npz", "--size", size, "-o", f"at {size}.json")
        assert run("sweep-gamma", "run", *QUICK, *words)[0] == 0
    evaluate = ("evaluate", "run", "--data", "npz:test.npz", *QUICK, "--gamma", "@at 28.json")
    apply = ("apply", "run", "--dry-run", *QUICK[:2], "--gamma")
    for words, then, now in (
        ((*evaluate, "--size", 32), "28 x 28", "here they are resized to 32 x 32"),
        ((*apply, "@at 32.json"), "32 x 32", "for run they are resized to 28 x 28"),
    ):
        code, document = run(*words)
        assert code == 0
        (text,) = warned(document).values()
        assert f"chosen on images resized to {then}, mean 0.2983" in text
        assert now in text
        assert "with another size:" in text
    for words in (evaluate, (*evaluate, "--size", 28), (*apply, "@at 28.json")):
        assert warned(run(*words)[1]) == {}


@pytest.mark.usefixtures("few")
def test_a_model_that_is_compared_with_itself_is_named(run: Run) -> None:
    shutil.copytree("run", "copy")
    words = ("evaluate", "run", "--data", "npz:val.npz", *QUICK, "--against")
    for base, text in (("run", "run is compared with itself"), ("copy", "run and copy are the sa")):
        assert warned(run(*words, base)[1])["same-model"].startswith(text)
        assert warned(run(*words, base, "--gamma", 0.2)[1]) == {}
    state = load_file("copy/model.safetensors")
    body = next(name for name in state if state[name].dim() == 4)
    save_file({**state, body: state[body] * 1.01}, "copy/model.safetensors")
    assert warned(run(*words, "copy")[1]) == {}, "another body under the same head"
