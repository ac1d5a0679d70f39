"""One recipe with several seeds: each a run of its own, their mean, and no work done twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from conftest import child_environment, schema_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import load_digits

from rescale_cli.cli import main
from rescale_cli.measures.significance import mean_and_interval, t_quantile
from rescale_cli.training import seed_runs

Capture = pytest.CaptureFixture[str]
METRICS = {"training_error", "error", "accuracy", "balanced_accuracy", "many", "medium", "few"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The fastest for images this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 of scikit-learn's digits, 8 x 8 gray images."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    file = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(file, images=images[:600], labels=labels[:600])
    return file


@pytest.fixture
def words(data: Path) -> list[str]:
    return ["train", "--data", f"npz:{data}", "--arch", "rescale:resnet8", "--imbalance", "exp:3",
            "--epochs", "1", "--milestones", "none", "-b", "64", "--device", "cpu"]  # fmt: skip


def result(capsys: Capture, *words: object, code: int = 0) -> dict[str, Any]:
    """What the command prints with --json, checked against the schema."""
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema_of("train"))
    return document["result"] if code == 0 else document["error"]


def written(run: Path) -> dict[str, Any]:
    return json.loads((run / "seeds.json").read_text())


# ------------------------------------------------------------------------------------- arithmetic


@given(st.integers(1, 3000), st.floats(0.01, 0.999))
def test_the_quantile_is_that_of_scipy(freedom: int, inside: float) -> None:
    expected = stats.t.ppf((1 + inside) / 2, freedom)
    assert t_quantile(freedom, inside) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_interval_is_that_of_scipy(values: list[float]) -> None:
    mean, interval = mean_and_interval(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    assert interval is not None
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    np.testing.assert_allclose(interval, (mean - half, mean + half), atol=1e-9)


def test_one_value_has_no_interval() -> None:
    assert mean_and_interval([0.5]) == (0.5, None)


# ------------------------------------------------------------------------------------ what it does


def test_each_seed_is_the_run_that_this_seed_gives_alone(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    found = result(capsys, *words, "--seeds", "3,0", "-o", run)
    assert [entry["seed"] for entry in found["seeds"]] == [3, 0]
    alone = result(capsys, *words, "--seed", "3", "-o", tmp_path / "alone")
    model = (run / "seed-3" / "model.safetensors").read_bytes()
    assert model == (tmp_path / "alone" / "model.safetensors").read_bytes()
    assert model != (run / "seed-0" / "model.safetensors").read_bytes()
    last = alone["epochs"][-1]
    of_3 = found["seeds"][0]["metrics"]
    assert of_3["error"] == last["val_error"]
    assert of_3["balanced_accuracy"] == pytest.approx(1 - last["val_balanced_error"])
    assert (alone["seeds"], alone["mean"], alone["interval"]) == ([], None, None)
    for entry in found["seeds"]:
        assert Path(entry["model"]).is_file()
        assert set(entry["metrics"]) == METRICS


def test_the_mean_and_its_interval_are_those_of_the_seeds(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    found = result(capsys, *words, "--seeds", "0,1,2", "-o", run)
    for name in METRICS:
        values = [entry["metrics"][name] for entry in found["seeds"]]
        if None in values:  # a group without classes
            assert (found["mean"][name], found["interval"][name]) == (None, None)
            continue
        mean, interval = mean_and_interval(values)
        assert found["mean"][name] == pytest.approx(mean)
        assert interval is not None
        assert found["interval"][name] == pytest.approx([max(interval[0], 0), min(interval[1], 1)])
    assert written(run)["mean"] == found["mean"]
    assert written(run)["interval"] == found["interval"]
    main(["train", "--resume", str(run)])  # all is done: it shows the table
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:6]] == ["seed", "0", "1", "2", "mean"]
    assert f"{100 * found['mean']['balanced_accuracy']:.2f} %" in out
    assert "Student's t-interval of the mean, 2 degrees of freedom" in out


def test_without_validation_images_the_training_error_is_reported(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    found = result(capsys, *words, "--val-split", "0", "--seeds", "4", "-o", tmp_path / "run")
    assert set(found["mean"]) == {"training_error"}
    assert found["interval"] == {"training_error": None}


def test_the_command_that_is_printed_works_word_for_word(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert main([*words, "--seeds", "0,1", "-o", str(tmp_path / "a run")]) == 0
    line = capsys.readouterr().out.rpartition("rescale-cli sweep-gamma ")[2]
    shell = f"{sys.executable} -m rescale_cli sweep-gamma {line.strip()} --bootstrap 5 "
    shell += "--accept-poor-accuracy"  # one epoch teaches little
    done = subprocess.run(
        shell, shell=True, capture_output=True, text=True, env=child_environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--logits" in line


@pytest.mark.parametrize("seeds", [[], ["--seeds", "0,1"]], ids=["one run", "several seeds"])
def test_a_first_step_that_fails_leaves_the_folder_as_it_was(
    words: list[str], seeds: list[str], tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The network answers in evaluation mode, so that only the first step shows what is wrong."""
    (tmp_path / "failing.py").write_text(
        "import torch\n\n\nclass Network(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n        super().__init__()\n"
        "        self.fc = torch.nn.Linear(1, num_classes)\n\n    def forward(self, x):\n"
        "        if self.training:\n            raise ValueError('no training')\n"
        "        return self.fc(x.mean((1, 2, 3))[:, None])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = [*words, "--arch", "python:failing:Network", *seeds]
    assert main([*words, "-o", str(tmp_path / "run")]) != 0
    assert not (tmp_path / "run").exists()
    old = tmp_path / "old"
    old.mkdir()
    (old / "last.ckpt").write_bytes(b"of an earlier run")
    assert main([*words, "-o", str(old), "--force"]) != 0
    assert [file.name for file in old.iterdir()] == ["last.ckpt"]
    capsys.readouterr()


# ------------------------------------------------------------------------------------- it goes on


def test_a_series_that_was_interrupted_goes_on_and_trains_no_seed_twice(
    words: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = result(capsys, *words, "--seeds", "0,1,2", "-o", tmp_path / "whole")
    run, begun = tmp_path / "run", []
    train = seed_runs.train

    def stop_in_the_second(recipe: Any, *args: Any, **more: Any) -> Any:
        begun.append(recipe.seed)
        if recipe.seed == 1 and begun.count(1) == 1:
            signal.raise_signal(signal.SIGINT)
        return train(recipe, *args, **more)

    monkeypatch.setattr(seed_runs, "train", stop_in_the_second)
    result(capsys, *words, "--seeds", "0,1,2", "-o", run, code=130)
    assert [entry["metrics"] is None for entry in written(run)["seeds"]] == [False, True, True]
    found = result(capsys, "train", "--resume", run)
    assert begun == [0, 1, 1, 2]
    for key in ("mean", "interval"):
        assert found[key] == whole[key]
    assert result(capsys, "train", "--resume", run)["mean"] == whole["mean"]
    assert begun == [0, 1, 1, 2]


@pytest.mark.slow
def test_a_series_that_was_killed_in_its_second_seed_goes_on(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    words[words.index("--epochs") + 1] = "3"
    command = [sys.executable, "-m", "rescale_cli", *words, "--seeds", "0,1", "-o", str(run)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=child_environment(OMP_NUM_THREADS="1"),
    )  # fmt: skip
    end = time.monotonic() + 200
    while not (run / "seed-1" / "last.ckpt").is_file():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    first = (run / "seed-0" / "model.safetensors").stat().st_mtime_ns
    found = result(capsys, "train", "--resume", run)
    assert [entry["metrics"] is None for entry in found["seeds"]] == [False, False]
    assert (run / "seed-0" / "model.safetensors").stat().st_mtime_ns == first
    assert len((run / "seed-1" / "metrics.jsonl").read_text().splitlines()) == 3


def test_seeds_and_epochs_can_be_added(words: list[str], tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    result(capsys, *words, "--seeds", "0", "-o", run)
    more = result(capsys, "train", "--resume", run, "--seeds", "0,7")
    assert [entry["seed"] for entry in more["seeds"]] == [0, 7]
    longer = result(capsys, "train", "--resume", run, "--epochs", "2")
    assert longer["recipe"]["epochs"] == 2
    for seed in (0, 7):
        lines = (run / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert result(capsys, "train", "--resume", run, "--lr", "1", code=3)["what"].startswith("--lr")


def test_one_seed_of_a_series_is_a_run(words: list[str], tmp_path: Path, capsys: Capture) -> None:
    result(capsys, *words, "--seeds", "0,1", "-o", tmp_path / "run")
    found = result(capsys, "train", "--resume", tmp_path / "run" / "seed-1")
    assert found["recipe"]["seed"] == 1


@pytest.mark.slow
def test_two_ranks_train_several_seeds(words: list[str], tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", "-m", "rescale_cli", *words, "--seeds", "0,1",
         "-o", str(tmp_path / "run"), "--json"],
        capture_output=True, text=True, timeout=300, check=False,
        env=child_environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="default"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["result"]
    assert [entry["seed"] for entry in found["seeds"]] == [0, 1]
    assert found["mean"]["balanced_accuracy"] is not None


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("seeds", ["0,0", "a", "", ",", "1,", "-1", "0.5", "9" * 30, "²"])
def test_seeds_that_are_none_are_refused(
    seeds: str, words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    error = result(capsys, *words, f"--seeds={seeds}", "-o", tmp_path / "run", code=2)
    assert error["fix"] == "--seeds 0,1,2"
    assert not (tmp_path / "run").exists()


def test_a_thousand_seeds_are_a_series() -> None:
    text = ",".join(map(str, range(1000)))
    assert seed_runs.parse_seeds(text) == tuple(range(1000))


def test_seeds_exclude_what_they_do_not_go_with(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    both = result(capsys, *words, "--seeds", "0,1", "--seed", "2", "-o", run, code=2)
    assert "exclude each other" in both["what"]
    result(capsys, *words, "--seeds", "0,1", "--print-config", code=2)
    result(capsys, *words, "--seed", "2", "-o", run)
    one = result(capsys, "train", "--resume", run, "--seeds", "0,1", code=3)
    assert "does not contain runs of several seeds" in one["what"]
    error = result(capsys, *words, "--seeds", "0,1", "-o", run, code=4)
    assert error["code"] == "output-exists"


def test_a_series_that_cannot_begin_leaves_the_folder_as_it_was(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    result(capsys, *words, "--seeds", "0", "-o", run)
    files = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    wrong = [*words, "--arch", "rescale:resnet9", "--seeds", "0,1", "-o", run]
    result(capsys, *wrong, "--force", code=2)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == files
    assert not (run / "seed-1").exists()
    result(capsys, *words, "--seed", "5", "--force", "-o", run)
    assert not (run / "seeds.json").exists(), "RUN is one run now"


def test_what_a_failed_start_leaves_is_in_nobodys_way(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    result(capsys, *words, "--arch", "rescale:resnet9", "--seeds", "0", "-o", run, code=2)
    result(capsys, *words, "--seeds", "0", "-o", run)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 2}', '{"version": 1, "recipe": {}, "seeds": [{"seed": "0"}]}']
)
def test_a_damaged_list_of_runs_is_refused(text: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "seeds.json").write_text(text)
    assert result(capsys, "train", "--resume", tmp_path, code=3)["code"]


def test_the_weights_to_begin_from_are_not_among_what_is_replaced(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    result(capsys, *words, "--seeds", "0", "-o", run)
    weights = run / "seed-0" / "model.safetensors"
    again = [*words, "--seeds", "0,1", "--weights", weights, "--force", "-o", run]
    assert result(capsys, *again, code=4)["code"] == "output-exists"
    assert weights.is_file()
