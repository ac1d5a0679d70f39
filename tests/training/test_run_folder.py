"""The folder of a run: one run at a time, and what it records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from rescale_cli.cli import main
from rescale_cli.errors import RunInUse, UsageError
from rescale_cli.training.build_network import build_network
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run_folder import RunFolder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a short training on 200 digits, but for its folder."""
    file = tmp_path_factory.mktemp("digits") / "digits.npz"
    images, labels = load_digits(return_X_y=True)
    np.savez(file, images=(images[:200].reshape(-1, 8, 8) * 15.9).astype(np.uint8),
             labels=labels[:200])  # fmt: skip
    return ["train", "--data", f"npz:{file}", "--arch", "rescale:resnet8", "--epochs", "1",
            "--milestones", "none", "-b", "64", "--device", "cpu"]  # fmt: skip


# ------------------------------------------------------------------------------------------ a lock


def test_a_second_run_in_a_live_folder_is_refused_and_changes_nothing(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    with RunFolder(run).held(create=True):
        for more in (["-o", str(run)], ["-o", str(run), "--force"], ["-o", str(run), "--seeds=0,1"],
                     ["--resume", str(run)]):  # fmt: skip
            line = [*words, *more] if "-o" in more else ["train", *more]
            assert main([*line, "--json"]) == 4
            error = json.loads(capsys.readouterr().out)["error"]
            assert error["code"] == "in-use"
            assert "process" in error["saw"]
        assert [entry.name for entry in run.iterdir()] == [".rescale-cli-run.lock"]
    assert list(run.iterdir()) == []


def test_the_lock_of_a_killed_run_is_taken_over(words: list[str], tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / ".rescale-cli-run.lock").write_text("process 1 on another-host")
    with run.held(create=False), pytest.raises(RunInUse), run.held(create=False):
        raise AssertionError
    assert main([*words, "-o", str(tmp_path)]) == 0


def test_a_folder_that_is_missing_is_not_created_to_be_resumed(tmp_path: Path) -> None:
    assert main(["train", "--resume", str(tmp_path / "missing")]) == 3
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------ what a run began with


def trained(words: list[str], run: Path, *more: str) -> int:
    return main([*words, "-o", str(run), *more])


def test_a_run_is_not_resumed_on_other_pixels(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run, file = tmp_path / "run", words[2].removeprefix("npz:")
    assert trained(words, run) == 0
    with np.load(file) as data:
        images, labels = data["images"].copy(), data["labels"]
    np.savez(tmp_path / "same.npz", images=images, labels=labels)
    images[7, 0, 0] ^= 255
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    resume = ["train", "--resume", str(run), "--epochs", "2", "--data"]
    assert main([*resume, f"npz:{tmp_path / 'other.npz'}"]) == 3
    assert "other pixels" in capsys.readouterr().err
    assert main([*resume, f"npz:{tmp_path / 'same.npz'}"]) == 0


def test_weights_of_another_network_are_refused_unless_partial(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    large, run = tmp_path / "large", tmp_path / "run"
    assert trained(words, large, "--arch", "rescale:resnet20") == 0
    assert trained(words, run, "--weights", str(large)) == 3
    assert "--weights-partial" in capsys.readouterr().err
    assert not run.exists()
    assert trained(words, run, "--weights", str(large), "--weights-partial") == 0
    note = capsys.readouterr().err
    assert "layer1.0.conv1" in note
    assert "layer1.1.bn1.weight" in note
    # The state has all weights: the file may move, but not be exchanged.
    moved = large.rename(tmp_path / "moved")
    assert main(["train", "--resume", str(run), "--epochs", "2"]) == 0
    again = ["train", "--resume", str(run), "--epochs", "3", "--weights"]
    assert main([*again, str(run)]) == 3
    assert main([*again, str(moved)]) == 0


def test_wvn_is_refused_for_a_network_with_two_final_heads(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    recipe = Recipe(arch="timm:deit_tiny_distilled_patch16_224", wvn=True)
    with pytest.raises(UsageError, match="ends in 2"):
        build_network(recipe, 10, 3)


def test_a_run_is_repeated_by_its_own_folder(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert trained(words, one, "--lr", "0.03", "--imbalance", "exp:5", "--gamma", "0.2") == 0
    capsys.readouterr()
    assert main(["train", "--print-config", str(one), "--json"]) == 0
    config = json.loads((one / "config.json").read_text())
    assert json.loads(capsys.readouterr().out)["result"]["recipe"] == config["recipe"]
    assert config["recipe"]["lr"] == 0.03
    assert {"rescale-cli", "python", "torch", "numpy"} <= config["versions"].keys()
    assert main(["train", "--config", str(one), "-o", str(two)]) == 0
    for name in ("model.safetensors", "model.rs.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert main(["train", "--config", str(tmp_path), "-o", str(two), "--force"]) == 3


# ----------------------------------------------------------------------------------- nothing silent


def test_small_images_are_not_augmented_and_an_imbalance_says_what_remains(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert trained(words, tmp_path / "auto") == 0
    assert "--augment auto is none" in capsys.readouterr().err
    assert trained(words, tmp_path / "none", "--augment", "none") == 0
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("auto", "none")]
    assert models[0] == models[1]
    tail = json.loads((tmp_path / "auto" / "config.json").read_text())["data"]["train"]["samples"]
    with np.load(words[2].removeprefix("npz:")) as data:
        kept = np.concatenate([np.flatnonzero(data["labels"] == c)[: 20 - 2 * c] for c in range(9)])
        np.savez(tmp_path / "tail.npz", images=data["images"][kept], labels=data["labels"][kept])
    assert 0 < len(kept) < tail
    capsys.readouterr()
    again = ["--data", f"npz:{tmp_path / 'tail.npz'}", "--imbalance", "exp:2", "--val-split", "0"]
    assert trained(words, tmp_path / "tail", *again) == 0
    counts = json.loads((tmp_path / "tail" / "counts.json").read_text())
    numbers = counts["counts"] if isinstance(counts, dict) else counts
    assert f"keeps {sum(numbers)} of {len(kept)} images" in capsys.readouterr().err


def test_class_weights_and_a_balanced_sampler_exclude_each_other() -> None:
    for more in ({"loss": "reweight"}, {"loss": "cb"}, {"drw_epoch": 5}):
        for sampler in ("over", "under", "sqrt"):
            with pytest.raises(UsageError, match="both correct"):
                Recipe(sampler=sampler, **more)


@pytest.mark.parametrize("loss", ["balanced-softmax", "reweight", "cb"])
def test_a_loss_that_corrects_the_frequencies_is_not_followed_by_a_sweep(
    loss: str, words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert trained(words, tmp_path / "run", "--loss", loss, "--json") == 0
    assert json.loads(capsys.readouterr().out)["result"]["sweep_gamma"] is None


def test_images_of_different_sizes_need_a_size(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(0, 256, (32 + 8 * (number % 2), 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    data = ["--data", str(tmp_path / "data"), "-b", "4"]
    assert trained(words, tmp_path / "run", *data) == 3
    assert "--size 32" in capsys.readouterr().err
    assert trained(words, tmp_path / "run", *data, "--size", "32") == 0


def test_the_final_metrics_are_those_that_evaluate_measures(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    assert trained(words, run, "--epochs", "2", "--json") == 0
    final = json.loads(capsys.readouterr().out)["result"]["final"]
    line = ["evaluate", str(run), "--data", f"run:{run}", "--counts", f"run:{run}", "--json"]
    assert main([*line, "--accept-poor-accuracy"]) == 0
    model = json.loads(capsys.readouterr().out)["result"]["models"][0]
    for name in ("top_5", "balanced_accuracy", "many", "medium", "few"):
        assert final[name] == pytest.approx(model["metrics"][name]), name
    assert final["error"] == pytest.approx(1 - model["metrics"]["accuracy"])
    assert final["per_class"] == pytest.approx([row["recall"] for row in model["per_class"]])
    assert (final["samples"], final["seed"], final["last_epoch"]) == (20, 0, 2)
    assert final["seconds"] > 0
