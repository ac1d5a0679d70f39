"""A run: unit rows at all times, the same bits again, and no step lost whatever ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import child_environment
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from rescale_cli.cli import main
from rescale_cli.core.counts import spearman
from rescale_cli.errors import BadInput, Interrupted, OutputExists
from rescale_cli.evaluating.ranks import Ranks
from rescale_cli.models.classifiers import load_classifier
from rescale_cli.training import run as run_module
from rescale_cli.training.build_network import build_network
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run import Watch
from rescale_cli.training.run_folder import RunFolder, read_state, resumed
from rescale_cli.training.step import Stepper
from rescale_cli.training.train import Trained, train

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads; one is the fastest for images this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two .npz of scikit-learn's digits, 8 x 8 gray images: to train on, and held out."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    for name, rows in (("train", slice(0, 1300)), ("val", slice(1300, None))):
        np.savez(folder / f"{name}.npz", images=images[rows], labels=labels[rows])
    return folder


@pytest.fixture
def tiny(digits: Path) -> Recipe:
    """About 200 images in 3 epochs of 7 steps."""
    return Recipe(
        data=f"npz:{digits / 'train.npz'}", val_data=f"npz:{digits / 'val.npz'}",
        imbalance="exp:20", imbalance_seed=0, arch="rescale:resnet8", epochs=3, batch_size=64,
        milestones=(2,), device="cpu",
    )  # fmt: skip


def trained(recipe: Recipe, folder: Path, **more: Any) -> Trained:
    run = RunFolder(folder)
    run.prepare(force=True)
    done = train(recipe, run, **more)
    assert done is not None
    return done


def gone_on(folder: Path, **changes: Any) -> Trained:
    run = RunFolder(folder)
    state = read_state(run.last)
    done = train(resumed(state, changes), run, state)
    assert done is not None
    return done


def timeless(run: RunFolder) -> list[dict[str, Any]]:
    lines = run.lines(10**9)
    return [
        {k: v for k, v in line.items() if k not in ("images_per_second", "seconds")}
        for line in lines
    ]


def assert_same(one: Trained, other: Trained) -> None:
    """To the last bit: the weights, the lines, and the state to go on from."""
    assert one.folder.model.read_bytes() == other.folder.model.read_bytes()
    assert timeless(one.folder) == timeless(other.folder)
    mine, theirs = load_file(one.folder.last), load_file(other.folder.last)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def assert_unit(weight: torch.Tensor) -> None:
    norms = weight.double().flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)


class Stop:
    """A person who presses Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, done: int, total: int, per_second: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


# ------------------------------------------------------------------------------------ what it does


def test_ordinary_training_leaves_a_usable_model_whose_norms_follow_the_counts(
    tiny: Recipe, tmp_path: Path
) -> None:
    recipe = replace(tiny, epochs=10, milestones=(6, 8), batch_size=32, augment="none")
    done = trained(recipe, tmp_path / "run")
    last = done.lines[-1]
    assert last["val_error"] < 0.35
    assert last["loss"] < done.lines[0]["loss"]
    rho = spearman(np.array(last["row_norms"]), done.counts.values)
    assert rho is not None
    assert rho > 0.5


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"ema": 0.9},
    "in parts": {"accumulate": 3},
    "bf16": {"amp": "bf16"},
    "clipped, warming up": {"clip_norm": 1.0, "warmup_epochs": 1, "schedule": "cosine"},
    "balanced": {"sampler": "over"},
    "weighted": {"loss": "cb", "drw_epoch": 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_under_wvn_rows_have_length_1_at_all_times_and_in_every_file(
    way: str, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    take = Stepper.take

    def looked_at(self: Stepper, *args: Any) -> Any:
        assert_unit(self.head.weight)
        answer = take(self, *args)
        assert_unit(self.head.weight)
        seen.append(1)
        return answer

    monkeypatch.setattr(Stepper, "take", looked_at)
    done = trained(replace(tiny, wvn=True, gamma=0.2, epochs=2, **WAYS[way]), tmp_path / "run")
    assert len(seen) == 2 * -(-len(seen) // 2)
    assert_unit(load_file(done.folder.model)["linear.weight"])
    assert_unit(load_file(done.folder.last)["model.linear.weight"])
    factors = done.counts.factors(0.2)
    norms = load_file(done.folder.rescaled)["linear.weight"].double().norm(dim=1).numpy()
    np.testing.assert_allclose(norms, factors, rtol=1e-6)


def test_a_step_that_a_gradient_scaler_skips_leaves_unit_rows_as_they_are(tiny: Recipe) -> None:
    network, head = build_network(replace(tiny, wvn=True), 10, 1)
    recipe = replace(tiny, wvn=True, amp="fp16")
    stepper = Stepper(network, head, recipe, torch.ones(10), torch.device("cpu"), Ranks())
    before = stepper.head.weight.detach().clone()
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8)
    stepper.take(x * float("inf"), y, 0.1, None, 1.0)
    assert torch.equal(stepper.head.weight, before), "no step, no change"
    stepper._scaler.update(1.0)
    for group in stepper.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    network.load_state_dict(build_network(replace(tiny, wvn=True), 10, 1)[0].state_dict())
    stepper.take(x, y, 0.1, None, 1.0)
    assert_unit(stepper.head.weight)


def test_parts_of_a_step_give_the_gradient_of_the_whole(tiny: Recipe) -> None:
    x, y = torch.randn(10, 1, 8, 8), torch.arange(10)
    found = []
    for parts in (1, 3):
        # A group of images must not meet in a batch normalization: it is left out.
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False))
        torch.manual_seed(0)
        torch.nn.init.normal_(network[1].weight)
        _, head = build_network(tiny, 10, 1)
        recipe = replace(tiny, accumulate=parts)
        here = replace(head, name="1")
        stepper = Stepper(network, here, recipe, torch.ones(10), torch.device("cpu"), Ranks())
        loss, _ = stepper.take(x, y, 0.1, None, 1.0)
        found.append((loss, network[1].weight))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_the_average_is_what_is_kept(tiny: Recipe, tmp_path: Path) -> None:
    done = trained(replace(tiny, ema=0.9), tmp_path / "run")
    kept, state = load_file(done.folder.model), load_file(done.folder.last)
    name = "conv1.weight"
    assert torch.equal(kept[name], state[f"average.{name}"])
    assert not torch.equal(kept[name], state[f"model.{name}"])


# ------------------------------------------------------------------------ the same again, and after


@pytest.mark.parametrize("way", ["plain", "averaged", "balanced"])
def test_the_same_seed_gives_the_same_bits(way: str, tiny: Recipe, tmp_path: Path) -> None:
    recipe = replace(tiny, epochs=2, **WAYS[way])
    one, other = (trained(recipe, tmp_path / name) for name in "ab")
    assert_same(one, other)
    third = trained(replace(recipe, seed=1), tmp_path / "c")
    assert third.folder.model.read_bytes() != one.folder.model.read_bytes()


def test_training_leaves_the_random_numbers_of_the_program_alone(
    tiny: Recipe, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(replace(tiny, epochs=1), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("way", "steps"), [("plain", 1), ("averaged", 5), ("bf16", 8), ("balanced", 13)]
)
def test_an_interrupted_run_goes_on_to_the_bits_of_an_unbroken_one(
    way: str, steps: int, tiny: Recipe, tmp_path: Path
) -> None:
    recipe = replace(tiny, wvn=True, **WAYS[way])
    whole = trained(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted) as caught:
        trained(recipe, tmp_path / "broken", watch=Watch(images=Stop(steps)))
    assert f"train --resume {tmp_path / 'broken'}" in caught.value.fix
    assert_same(gone_on(tmp_path / "broken"), whole)
    assert_same(gone_on(tmp_path / "broken"), whole)  # and a run that is done stays as it is


def test_a_state_is_kept_in_the_middle_of_a_long_epoch(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "KEEP_EVERY", 0.0)

    def stop(done: int, total: int, per_second: float) -> None:
        if done >= 3 * tiny.batch_size:
            raise MemoryError  # no clean end

    with pytest.raises(MemoryError):
        trained(tiny, tmp_path / "run", watch=Watch(images=stop))
    state = read_state(tmp_path / "run" / "last.ckpt")
    assert (state.epoch, state.step) == (0, 2)


def test_a_longer_run_may_go_on_but_not_become_another(tiny: Recipe, tmp_path: Path) -> None:
    short = trained(replace(tiny, epochs=2), tmp_path / "run")
    longer = gone_on(tmp_path / "run", epochs=3)
    assert [line["epoch"] for line in longer.lines] == [1, 2, 3]
    assert longer.lines[:2] == short.lines
    with pytest.raises(BadInput, match="cannot change"):
        gone_on(tmp_path / "run", lr=0.5)


def test_a_run_does_not_go_on_with_other_images(tiny: Recipe, digits: Path, tmp_path: Path) -> None:
    trained(replace(tiny, epochs=1), tmp_path / "run")
    with pytest.raises(BadInput, match="are not those that the run began with"):
        gone_on(tmp_path / "run", data=f"npz:{digits / 'val.npz'}")


def test_a_folder_with_a_run_is_not_trained_in_unless_told(tiny: Recipe, tmp_path: Path) -> None:
    done = trained(replace(tiny, epochs=1, gamma=0.1), tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists, match="is not empty"):
        done.folder.prepare(force=False)
    again = trained(replace(tiny, epochs=1), tmp_path / "run")
    assert not again.folder.rescaled.exists(), "it would be another model's"
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


# ------------------------------------------------------------------------------- what goes wrong


def test_what_a_killed_run_left_before_its_first_state_is_in_nobodys_way(
    tiny: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".rescale-cli-1-abc.tmp").write_text("left behind")
    RunFolder(tmp_path / "run").prepare(force=False)
    assert train(replace(tiny, epochs=1), RunFolder(tmp_path / "run")) is not None


def test_a_run_that_cannot_begin_leaves_the_one_before_it_as_it_was(
    tiny: Recipe, tmp_path: Path
) -> None:
    trained(replace(tiny, epochs=1), tmp_path / "run")
    files = {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    for change in ({"data": "npz:typo.npz"}, {"arch": "rescale:resnet9"}):
        words = words_of(replace(tiny, **change), tmp_path / "run")
        assert main([*words, "--force"]) in (2, 3, 5)
        assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir()} == files


def test_a_signal_between_two_epochs_loses_no_line(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(replace(tiny, epochs=2), tmp_path / "whole")
    add = RunFolder.add_line

    def struck(folder: RunFolder, line: dict[str, Any]) -> None:
        if line["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)
        add(folder, line)

    monkeypatch.setattr(RunFolder, "add_line", struck)
    with pytest.raises(Interrupted):
        trained(replace(tiny, epochs=2), tmp_path / "run")
    assert_same(gone_on(tmp_path / "run"), whole)


def test_rows_of_one_length_are_not_taken_for_a_sign(
    tiny: Recipe, tmp_path: Path, capsys: Capture
) -> None:
    folder = trained(replace(tiny, epochs=1, wvn=True, lr=0.02), tmp_path / "run").folder
    words = ["inspect", str(folder.path), "--counts", str(folder.counts), "--json"]
    capsys.readouterr()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []


def test_a_run_cannot_end_before_where_it_stands(tiny: Recipe, tmp_path: Path) -> None:
    trained(replace(tiny, epochs=2), tmp_path / "run")
    with pytest.raises(BadInput, match="has done 2 epochs"):
        gone_on(tmp_path / "run", epochs=1)


def test_the_weights_to_begin_from_are_not_replaced(tiny: Recipe, tmp_path: Path) -> None:
    folder = trained(replace(tiny, epochs=1), tmp_path / "run").folder
    for weights in (folder.path, folder.model):
        with pytest.raises(OutputExists, match="would be replaced"):
            RunFolder(tmp_path / "run").prepare(force=True, weights=str(weights))
    assert folder.model.is_file()


def test_parts_of_a_batch_have_two_images_or_more(tiny: Recipe, tmp_path: Path) -> None:
    small = replace(tiny, arch="torchvision:resnet18", batch_size=16, accumulate=8, epochs=1)
    trained(small, tmp_path / "run")
    with pytest.raises(BadInput, match="batch normalization"):
        trained(replace(small, batch_size=1, accumulate=1), tmp_path / "other")


def test_rows_that_a_library_leaves_at_zero_are_drawn_under_wvn() -> None:
    recipe = Recipe(arch="torchvision:vit_b_32", wvn=True, head_bias=False)
    network, head = build_network(recipe, 5, 3)
    weight = network.get_submodule(head.name).weight
    assert (weight.norm(dim=1) > 0).all()


def test_a_loss_that_is_no_number_ends_the_run_and_says_so(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="diverged") as caught:
        trained(replace(tiny, lr=1e5, momentum=0.99), tmp_path / "run")
    assert "--lr" in caught.value.fix
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_network_that_does_not_take_the_images_is_refused_before_it_is_trained(
    tiny: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="does not accept images"):
        trained(replace(tiny, arch="torchvision:vit_b_32"), tmp_path / "run")
    RunFolder(tmp_path / "run").prepare(force=False)


# ------------------------------------------------------------------------ signals, kills, and ranks


def words_of(recipe: Recipe, folder: Path) -> list[str]:
    words = ["train", "--data", recipe.data, "--val-data", recipe.val_data, "-b", "64"]
    words += ["--imbalance", recipe.imbalance, "--imbalance-seed", "0", "--arch", recipe.arch]
    return [*words, "--epochs", str(recipe.epochs), "--milestones", "2", "--device", "cpu",
            "--wvn", "-o", str(folder)]  # fmt: skip


CHILD = "import torch; torch.set_num_threads(1); from rescale_cli.__main__ import run; run()"


def child(words: list[str], **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=child_environment(), **how,
    )  # fmt: skip


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 100
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bits_of_an_unbroken_one(tiny: Recipe, tmp_path: Path) -> None:
    recipe = replace(tiny, wvn=True, epochs=6)
    whole = trained(recipe, tmp_path / "whole")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    process = child(words_of(recipe, tmp_path / "killed"))
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 2)
    process.kill()
    process.communicate()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert_same(gone_on(tmp_path / "killed"), whole)


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tiny: Recipe, tmp_path: Path) -> None:
    recipe = replace(tiny, epochs=500)
    metrics = tmp_path / "run" / "metrics.jsonl"
    process = child(words_of(recipe, tmp_path / "run"))
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "error: interrupted in epoch" in err
    assert f"rescale-cli train --resume {tmp_path / 'run'}" in err
    state = read_state(tmp_path / "run" / "last.ckpt")
    done = gone_on(tmp_path / "run", epochs=state.epoch + 1)
    assert len(done.lines) == state.epoch + 1
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        "model.safetensors", "counts.json", "config.json", "metrics.jsonl", "last.ckpt",
    }  # fmt: skip


@pytest.mark.slow
def test_two_ranks_train_as_one_does(tiny: Recipe, tmp_path: Path) -> None:
    # A small rate, and noise instead of images with large black parts: there, a difference in the
    # last digit turns many equal pixels from one side of a ReLU to the other, all at once.
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (300, 8, 8), np.uint8), random.integers(0, 10, 300)
    np.savez(tmp_path / "noise.npz", images=images, labels=labels)
    recipe = replace(
        tiny, data=f"npz:{tmp_path / 'noise.npz'}", imbalance="exp:3", epochs=2, wvn=True, lr=0.01,
        sampler="over", batch_size=61, augment="none",
    )  # fmt: skip
    words = [*words_of(recipe, tmp_path / "both"), "--lr", "0.01", "--sampler", "over", "-b", "61"]
    words += ["--augment", "none"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", "-m", "rescale_cli", *words, "--json"],
        capture_output=True, text=True, timeout=200, check=False,
        env=child_environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="default"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)["result"]
    alone = trained(recipe, tmp_path / "alone")
    for mine, theirs in zip(alone.lines, both["epochs"], strict=True):
        for name in ("loss", "val_loss", "row_norms", "lr"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
    one, two = load_file(alone.folder.model), load_file(tmp_path / "both" / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)
    assert_unit(two["linear.weight"])


@pytest.mark.slow
def test_an_error_of_one_rank_is_told_by_rank_0(tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other").touch()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", "-m", "rescale_cli",
         *words_of(tiny, tmp_path / "run")],
        capture_output=True, text=True, timeout=200, check=False,
        env=child_environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="default"),
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("is not empty") == 1


# ------------------------------------------------------------ what the other commands make of it


@pytest.mark.parametrize(
    "arch", ["rescale:resnet8", "torchvision:shufflenet_v2_x0_5", "timm:test_resnet.r160_in1k"]
)
def test_every_command_takes_the_folder_as_it_is(
    arch: str, tiny: Recipe, tmp_path: Path, capsys: Capture
) -> None:
    recipe = replace(tiny, arch=arch, wvn=True, gamma=0.3, epochs=1, milestones=())
    folder = trained(recipe, tmp_path / "run").folder
    on = ["--data", recipe.val_data, "--device", "cpu", "--accept-poor-accuracy"]
    counts = ["--counts", str(folder.counts)]
    run = str(folder.path)
    for words in (
        ["inspect", run, *counts],
        ["evaluate", run, str(folder.rescaled), *on, *counts],
        ["sweep-gamma", run, *counts, *on, "--bootstrap", "5"],
        ["apply", run, *counts, "-g", "0.3"],
        ["verify", str(folder.rescaled), "--against", str(folder.model)],
    ):
        assert main([*words, "--json"]) == 0, (words, capsys.readouterr().out)
        said = json.loads(capsys.readouterr().out)
        if words[0] == "evaluate":
            error = 1 - said["result"]["models"][0]["metrics"]["accuracy"]
            assert error == pytest.approx(RunFolder(folder.path).lines(9)[-1]["val_error"])
    applied = load_file(tmp_path / "run.rescaled" / "model.safetensors")
    for name, value in load_file(folder.rescaled).items():
        assert torch.equal(value, applied[name])


def test_a_cosine_head_is_built_again_and_told_from_one_that_can_be_re_scaled(
    tiny: Recipe, tmp_path: Path, capsys: Capture
) -> None:
    recipe = replace(tiny, loss="ldam", drw_epoch=1, epochs=2)
    folder = trained(recipe, tmp_path / "run").folder
    found = load_classifier(folder.path)
    head = found.module.get_submodule("linear")
    assert type(head).__name__ == "CosineHead"
    words = ["evaluate", str(folder.path), "--data", recipe.val_data, "--device", "cpu"]
    assert main([*words, "--accept-poor-accuracy"]) == 0
    assert main(["inspect", str(folder.path)]) == 0
    assert "probably has no effect" in capsys.readouterr().err
    words = ["--counts", str(folder.path / "counts.json"), "-g", "0.3"]
    assert main(["apply", str(folder.path), *words]) == 4
    assert "cosine classifier" in capsys.readouterr().err


def test_a_users_own_network_is_trained_and_run_only_when_named(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    code = "from torch import nn\ndef make(num_classes):\n"
    code += "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    (tmp_path / "mine_for_training.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    arch = "python:mine_for_training:make"
    recipe = replace(tiny, arch=arch, wvn=True, epochs=1, milestones=(), augment="none")
    folder = trained(recipe, tmp_path / "run").folder
    words = ["evaluate", str(folder.path), "--data", recipe.val_data, "--device", "cpu"]
    assert main(words) == 4
    assert f"--arch {arch}" in capsys.readouterr().err
    assert main([*words, "--arch", arch]) == 0


def test_training_begins_from_a_checkpoint_but_for_its_head(tiny: Recipe, tmp_path: Path) -> None:
    first = trained(replace(tiny, epochs=1, milestones=()), tmp_path / "first")
    recipe = replace(tiny, weights=str(first.folder.model), seed=3)
    network, _ = build_network(recipe, 10, 1)
    kept = load_file(first.folder.model)
    for name, value in network.state_dict().items():
        assert torch.equal(value, kept[name]) != name.startswith("linear."), name


def test_events_go_beside_the_lines(tiny: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    trained(replace(tiny, epochs=1, milestones=(), tensorboard=True), tmp_path / "run")
    assert any((tmp_path / "run" / "tensorboard").iterdir())


# -------------------------------------------------------------------------------- the command line


def test_the_norms_of_a_run_are_drawn_beside_its_counts(
    tiny: Recipe, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("vl_convert", reason="the extra `plot` is not installed")
    assert main(words_of(replace(tiny, epochs=1), tmp_path / "run")) == 0
    texts = set(ElementTree.parse(tmp_path / "run" / "norms.svg").getroot().itertext())
    assert {"row norm |w_i|", "training samples n_i", "class 0", "class 9"} <= texts


def test_options_go_before_the_file_and_the_file_before_the_preset(
    tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "a.toml").write_text("lr = 0.05\nepochs = 7\nmean = [0.5]\nstd = [0.5]\n")
    words = ["train", "--preset", "cifar10-lt", "--config", str(tmp_path / "a.toml")]
    assert main([*words, "--epochs", "9", "--gamma", "none", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "lr = 0.05\n" in printed
    assert "epochs = 9\n" in printed
    assert "# gamma is not set\n" in printed
    assert 'arch = "rescale:resnet32"\n' in printed
    (tmp_path / "b.toml").write_text(printed)
    assert main(["train", "--config", str(tmp_path / "b.toml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


def test_one_epoch_warns_of_its_milestones_and_lists_every_file(
    digits: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["train", "--data", f"npz:{digits / 'val.npz'}", "--arch", "rescale:resnet8"]
    words += ["--epochs", "1", "-b", "128", "--device", "cpu", "-o", str(tmp_path / "run")]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "with --epochs 1 the milestones 80 and 150 are never reached" in err
    assert "held out for validation (--val-split 0.1)" in err
    assert "epoch: 1/1" in err
    assert "choose a gamma: rescale-cli sweep-gamma" in out
    assert "run: 1 epoch on cpu" in out
    listed = out.partition("written: ")[2].partition("\n")[0].replace(" (to resume the run)", "")
    assert sorted(listed.split(", ")) == sorted(file.name for file in (tmp_path / "run").iterdir())
