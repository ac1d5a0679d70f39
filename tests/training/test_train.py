"""From `train` to a re-scaled model: validation images are never trained on, nor test images."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from conftest import schema_of
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from rescale_cli.cli import main
from rescale_cli.data.datasets import open_images
from rescale_cli.training.images import open_training_images
from rescale_cli.training.recipe import Recipe

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The fastest for images this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits(per_class: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """So many images of each of scikit-learn's ten digits, (N, 8, 8) uint8, and their labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    rows = [np.flatnonzero(labels == c)[start : start + per_class] for c in range(10)]
    chosen = np.concatenate(rows)
    return images[chosen], labels[chosen]


def npz(root: Path) -> str:
    images, labels = digits(20)
    np.savez(root / "digits.npz", images=images, labels=labels)
    return f"npz:{root / 'digits.npz'}"


def pictures(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = folder / f"digit{label}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def folder(root: Path) -> str:
    pictures(root / "all", *digits(20))
    return f"folder:{root / 'all'}"


def folder_with_test(root: Path) -> str:
    pictures(root / "set" / "train", *digits(20))
    pictures(root / "set" / "test", *digits(4, 20))
    return f"folder:{root / 'set'}"


def folder_with_val(root: Path) -> str:
    pictures(root / "set" / "val", *digits(4, 30))
    return folder_with_test(root)


def csv(root: Path) -> str:
    pictures(root / "images", *digits(20))
    files = sorted((root / "images").rglob("*.png"))
    rows = [f"{file.relative_to(root)},{file.parent.name}\n" for file in files]
    (root / "all.csv").write_text("image,label\n" + "".join(rows))
    return f"csv:{root / 'all.csv'}?image=image&label=label"


def listed(root: Path) -> str:
    pictures(root / "images", *digits(20))
    files = sorted((root / "images").rglob("*.png"))
    rows = [f"{file.relative_to(root)} {file.parent.name[5:]}\n" for file in files]
    (root / "all.txt").write_text("".join(rows))
    return f"list:{root / 'all.txt'}?root={root}"


KINDS: dict[str, Callable[[Path], str]] = {
    "npz": npz, "folder": folder, "folder with test": folder_with_test,
    "folder with val": folder_with_val, "csv": csv, "list": listed,
}  # fmt: skip


def words_for(data: str, run: Path, *more: str) -> list[str]:
    return ["train", "--data", data, "--arch", "rescale:resnet8", "--epochs", "1", "--milestones",
            "none", "-b", "64", "--device", "cpu", "-j", "0", "-o", str(run), *more]  # fmt: skip


def said(capsys: Capture, *words: object, code: int = 0) -> dict[str, Any]:
    """The document that a command prints with --json, checked against its schema."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema_of(str(words[0])))
    return document


def codes(document: dict[str, Any]) -> list[str]:
    return [warning["code"] for warning in document["warnings"]]


def typed(line: str) -> list[str]:
    """The words of a printed command; the networks here are hardly trained."""
    words = shlex.split(line)
    assert words[0] == "rescale-cli"
    return words[1:] if words[1] == "train" else [*words[1:], "--accept-poor-accuracy"]


# --------------------------------------------------------------- what is held out, and what follows


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_commands_run_word_for_word_on_images_that_were_not_trained_on(
    kind: str, tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "a run"
    assert main(words_for(KINDS[kind](tmp_path), run)) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line.partition(": ")[2] for line in lines if ": rescale-cli " in line]
    assert [typed(line)[0] for line in commands] == ["sweep-gamma", "evaluate"]
    assert "test" not in "".join(commands).replace(str(tmp_path), "")
    sweep, compare = map(typed, commands)
    own = kind != "folder with val"
    found = said(capsys, *sweep, "--bootstrap", "5")
    assert found["result"]["data"]["entries"] == (20 if own else 40)
    assert ("training-set" not in codes(found)) or not own  # 4 of each class, and 20: not the same
    assert main(["apply", str(run), "--counts", str(run / "counts.json"), "-g", "0.1"]) == 0
    both = said(capsys, *compare)
    assert both["result"]["data"]["entries"] == (20 if own else 40)
    assert "training-set" not in codes(both)
    shutil.rmtree(tmp_path / "a run.rescaled")


@pytest.mark.parametrize("kind", KINDS)
def test_no_validation_image_is_trained_on(kind: str, tmp_path: Path) -> None:
    data = open_training_images(Recipe(data=KINDS[kind](tmp_path)))
    assert data.validation is not None
    trained = {data.train.read(int(row)).tobytes() for row in data.kept}
    looked_at = {data.validation.read(row).tobytes() for row in range(len(data.validation))}
    assert trained.isdisjoint(looked_at)
    assert data.counts.tolist() == [20 if kind == "folder with val" else 18] * 10


def test_the_part_that_was_held_out_can_be_named_afterwards(
    tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    done = said(capsys, *words_for(npz(tmp_path), run, "--seed", "3", "--imbalance", "exp:2"))
    last, line = done["result"]["epochs"][-1], done["result"]["sweep_gamma"]
    assert typed(line)[:2] == ["sweep-gamma", str(run)]
    found = said(capsys, "evaluate", run, "--data", f"run:{run}", "--device", "cpu")
    metrics = found["result"]["models"][0]["metrics"]
    assert metrics["accuracy"] == pytest.approx(1 - last["val_error"])
    with np.load(run / "val_logits.npz") as kept:
        images = open_images(f"run:{run / 'model.safetensors'}")
        assert kept["labels"].tolist() == images.labels.tolist()
    counts = said(capsys, "counts", f"run:{run}")["result"]["counts"]
    assert counts == done["result"]["counts"]
    assert said(capsys, "train", "--resume", run, "--epochs", "2")["ok"]
    again = open_images(f"run:{run}")
    assert list(again.names) == list(images.names), "the part is the same after --resume"


def test_a_part_that_cannot_be_found_again_is_not_guessed(tmp_path: Path, capsys: Capture) -> None:
    run, data = tmp_path / "run", npz(tmp_path)
    assert main(words_for(data, run)) == 0
    images, labels = digits(19)
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    on = ["evaluate", run, "--device", "cpu", "--data", f"run:{run}"]
    assert "200 images then, 190 now" in said(capsys, *on, code=3)["error"]["saw"]
    (tmp_path / "digits.npz").unlink()
    assert "val_logits.npz" in said(capsys, *on, code=3)["error"]["fix"]
    assert said(capsys, *on[:-1], f"run:{tmp_path}", code=3)["error"]["code"] == "bad-input"
    (tmp_path / "evil.py").write_text("raise SystemExit('run')\n")
    config = json.loads((run / "config.json").read_text())
    for held_out in (None, 3, {"data": "x"}, {**config["held_out"], "data": "python:evil:x"},
                     {**config["held_out"], "data": f"run:{run}"}):  # fmt: skip
        (run / "config.json").write_text(json.dumps({**config, "held_out": held_out}))
        assert said(capsys, *on, code=3)["error"]["code"] == "bad-input"


def test_validation_images_of_a_test_split_are_not_printed_as_data_to_choose_on(
    tmp_path: Path, capsys: Capture
) -> None:
    data = folder_with_test(tmp_path)
    assert main(words_for(data, tmp_path / "run", "--val-data", f"{data}@test")) == 0
    out = capsys.readouterr().out
    assert "on validation data that the run was not trained on" in out
    assert "--data DATA" in out
    assert "compare the two models" not in out


@pytest.mark.parametrize("share", ["1.0", "-0.1", "nan", "2", "0.95"])
def test_a_share_that_leaves_nothing_to_train_on_is_a_usage_error(
    share: str, tmp_path: Path, capsys: Capture
) -> None:
    error = said(
        capsys, *words_for(npz(tmp_path), tmp_path / "run"), f"--val-split={share}", code=2
    )
    assert "must be 0" in error["error"]["what"]


def test_without_a_validation_part_no_made_up_command_is_given(
    tmp_path: Path, capsys: Capture
) -> None:
    done = said(capsys, *words_for(npz(tmp_path), tmp_path / "run"), "--val-split", "0")
    assert done["result"]["sweep_gamma"] is None
    assert any("the run is not validated" in w["message"] for w in done["warnings"])


def test_classes_of_one_image_give_none_away(tmp_path: Path) -> None:
    images, labels = digits(1)
    np.savez(tmp_path / "one.npz", images=images, labels=labels)
    notes: list[str] = []
    data = open_training_images(Recipe(data=f"npz:{tmp_path / 'one.npz'}"), notes=notes.append)
    assert (data.validation, len(data.kept), data.val_split) == (None, 10, 0.0)
    assert "no class has two images" in notes[0]
    assert "--val-split 0.1" not in notes[0], "it is what was asked for"


# --------------------------------------------------------------------------------- the training set


def measured(tmp_path: Path, capsys: Capture, counts: list[int], labels: list[int]) -> Any:
    """The warnings of sweep-gamma, compare and evaluate on logits of three classes."""
    random = np.random.default_rng(0)
    given = np.array(labels)
    logits = (random.normal(size=(len(given), 3)) + 2 * np.eye(3)[given]).astype(np.float32)
    np.savez(tmp_path / "l.npz", logits=logits, labels=given)
    (tmp_path / "counts.json").write_text(json.dumps(counts))
    head = {"fc.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}
    save_file(head, tmp_path / "m.safetensors", metadata={"format": "pt"})
    on = ["--counts", tmp_path / "counts.json", "--logits", tmp_path / "l.npz", "--bootstrap", "5"]
    model = tmp_path / "m.safetensors"
    return [said(capsys, command, model, *on) for command in ("sweep-gamma", "compare", "evaluate")]


@pytest.mark.parametrize(
    ("counts", "sizes", "reason"),
    [
        ([30, 20, 10], [30, 20, 10], "--counts are exactly those of"),
        ([10, 10, 10], [10, 10, 10], "--counts are exactly those of"),
        ([30, 20, 10], [10, 30, 20], "in another order"),
        ([30, 20, 10], [30, 20, 11], None),
        ([300, 200, 100], [30, 20, 10], None),
    ],
)
def test_data_with_the_counts_of_the_training_set_are_reported_as_the_training_set(
    counts: list[int], sizes: list[int], reason: str | None, tmp_path: Path, capsys: Capture
) -> None:
    labels = np.repeat(np.arange(3), sizes).tolist()
    for document in measured(tmp_path, capsys, counts, labels):
        told = [w["message"] for w in document["warnings"] if w["code"] == "training-set"]
        assert len(told) == (reason is not None), document["schema"]
        assert all(reason in text and "--data DATA" in text for text in told if reason)


# -------------------------------------------------------------------- WVN has a head without a bias


def printed(capsys: Capture, *words: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["train", "--print-config", *map(str, words)]) == code
    out, err = capsys.readouterr()
    return out + err


def test_wvn_implies_a_head_without_a_bias(tmp_path: Path, capsys: Capture) -> None:
    biased = tmp_path / "biased.toml"
    biased.write_text("head_bias = true\n")
    wvn = tmp_path / "wvn.toml"
    wvn.write_text("wvn = true\n")
    assert "head_bias = true" in printed(capsys, "--preset", "fashion-lt")
    for words in (
        ["--wvn"], ["--preset", "fashion-lt", "--wvn"], ["--config", biased, "--wvn"],
        ["--preset", "fashion-lt", "--config", wvn],
        ["--preset", "fashion-lt", "--wvn", "--no-head-bias"],
    ):  # fmt: skip
        assert "head_bias = false\n" in printed(capsys, *words), words
    for words in (
        ["--wvn", "--head-bias"], ["--preset", "cifar10-lt", "--head-bias"],
        ["--config", wvn, "--head-bias"],
    ):  # fmt: skip
        text = printed(capsys, *words, code=2)
        assert "--wvn needs a head without bias" in text
        assert "--no-wvn" in text
    both = ["--preset", "cifar10-lt", "--no-wvn", "--head-bias"]
    assert "head_bias = true\n" in printed(capsys, *both)


def test_a_run_with_wvn_has_no_bias_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    more = ["--preset", "fashion-lt", "--wvn", "--val-split", "0.1", "--imbalance", "none"]
    assert main(words_for(npz(tmp_path), run, *more)) == 0
    assert "no bias" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["head"]["bias"] is False
    assert not any("linear.bias" in name for name in load_file(run / "last.ckpt"))
    assert main(["train", "--resume", str(run), "--epochs", "2"]) == 0
    assert main(["train", "--resume", str(run), "--head-bias"]) == 3


# ------------------------------------------------------------------------ a re-scaled model is kept


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    assert main(words_for(npz(tmp_path), path)) == 0
    return path


def changes(how: str, run: Path) -> None:
    model, counts = run / "model.safetensors", str(run / "counts.json")
    if how == "in place":
        assert main(["apply", str(model), "--counts", counts, "-g", "0.2", "--in-place"]) == 0
    elif how == "without a record":
        tensors = load_file(model)
        tensors["linear.weight"] *= 2
        save_file(tensors, model, metadata={"format": "pt"})
    else:
        assert main(["apply", str(model), "--counts", counts, "-g", "0.2", "-o", "o.st"]) == 0
        shutil.move("o.st", model)


@pytest.mark.parametrize("how", ["in place", "without a record", "copied there"])
def test_a_run_does_not_go_on_over_a_re_scaled_model(
    how: str, run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    assert main(["train", "--resume", str(whole), "--epochs", "2"]) == 0
    changes(how, run)
    before = (run / "model.safetensors").read_bytes()
    error = said(capsys, "train", "--resume", run, "--epochs", "2", code=4)["error"]
    assert error["code"] == "already-rescaled"
    assert (run / "model.safetensors").read_bytes() == before
    move, resume = error["fix"].partition("mv ")[2].split(" && ")
    shutil.move(*shlex.split(move))
    assert main([*typed(resume), "--epochs", "2"]) == 0
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_re_scaled_copy_of_a_run_is_not_trained_on(run: Path, capsys: Capture) -> None:
    assert main(["apply", str(run), "--counts", str(run / "counts.json"), "-g", "0.2"]) == 0
    copy = run.with_name("run.rescaled")
    (copy / "last.ckpt").unlink(missing_ok=True)
    error = said(capsys, "train", "--resume", copy, code=4)["error"]
    assert error["code"] == "already-rescaled"
    assert "in the folder that training left" in error["fix"]


@pytest.mark.parametrize("more", [["--ema", "0.9"], ["--ema", "0.9", "--wvn"], ["--wvn"]])
def test_a_model_as_training_left_it_is_no_obstacle(more: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert main(words_for(npz(tmp_path), path, "--gamma", "0.2", *more)) == 0
    assert main(["train", "--resume", str(path)]) == 0
    assert main(["train", "--resume", str(path), "--epochs", "2"]) == 0


def test_force_trains_anew_and_leaves_nothing_of_the_re_scaling(run: Path, tmp_path: Path) -> None:
    changes("in place", run)
    sidecar = run / "model.safetensors.rescale.json"
    sidecar.write_text("{}")
    assert main(words_for(npz(tmp_path), run, "--force")) == 0
    assert not sidecar.exists()
    assert main(["train", "--resume", str(run)]) == 0
