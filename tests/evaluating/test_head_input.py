"""`--save-features`: what goes into the head, so that logits = features @ weight.T + bias."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import child_environment, script_warnings
from safetensors.numpy import load_file
from torch import nn

from rescale_cli.checkpoints.locate_head import ANY_HEAD
from rescale_cli.cli import main
from rescale_cli.core.predictions import Classifier
from rescale_cli.errors import BadInput
from rescale_cli.evaluating.head_input import head_input_of
from rescale_cli.evaluating.predict import RunOptions, predict
from rescale_cli.files import arrays

from test_predict import PREPROCESSING, files, in_memory  # isort: skip

C, D = 5, 8
EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_lt"
CPU = RunOptions(device="cpu", batch_size=4, workers=0)
Capture = pytest.CaptureFixture[str]


class Body(nn.Module):
    """Convolutions and a head; `forward` says how they meet."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, D, 3)
        self.fc = head

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).relu()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images).mean((2, 3)))


class Transposed(nn.Module):
    """A layer that stores its weight as (D, C), as Conv1D of transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, C))
        self.bias = nn.Parameter(torch.randn(C))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Convolved(Body):
    """A 1x1 convolution before the mean over the pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images)).mean((2, 3))


HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Body(nn.Linear(D, C)),
    "no bias": lambda: Body(nn.Linear(D, C, bias=False)),
    "one logit": lambda: Body(nn.Linear(D, 1)),
    "transposed": lambda: Body(Transposed()),
    "1x1 convolution": lambda: Convolved(nn.Conv2d(D, C, 1)),
    "weight norm": lambda: Body(nn.utils.parametrizations.weight_norm(nn.Linear(D, C), dim=0)),
}


def saved(module: nn.Module, folder: Path) -> tuple[Classifier, Path]:
    path = folder / "model.pth"
    torch.save(module.state_dict(), path)
    classes = 1 if getattr(module.fc, "out_features", C) == 1 else C
    return Classifier(module.eval(), classes, "a test's", "it was given"), path


@pytest.mark.parametrize("data", [files(), in_memory()], ids=["decoded", "in memory"])
@pytest.mark.parametrize("kind", HEADS)
def test_the_head_of_the_features_gives_the_logits(kind: str, data: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = HEADS[kind]()
    classifier, path = saved(module, tmp_path)
    tap = head_input_of(classifier, path, ANY_HEAD, frozenset())
    found = predict(classifier, data, PREPROCESSING, CPU, head_input=tap)
    assert found is not None
    assert found.features is not None
    assert (found.features.shape, found.features.dtype) == ((len(data), D), np.float32)
    layer: Any = module.fc
    weight = layer.weight.detach().numpy()
    weight = weight if kind == "transposed" else weight.reshape(len(weight), D).T
    bias = 0 if layer.bias is None else layer.bias.detach().numpy()
    np.testing.assert_allclose(found.features @ weight + bias, found.logits, rtol=1e-4, atol=1e-5)


def test_features_without_unreadable_images_lie_beside_their_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = HEADS["linear"]()
    classifier, path = saved(module, tmp_path)
    monkeypatch.setattr(arrays, "IN_MEMORY", 10)
    tap = head_input_of(classifier, path, ANY_HEAD, frozenset())
    options = RunOptions(device="cpu", batch_size=4, workers=0, skip_bad=True)
    found = predict(classifier, files(damaged=(0, 9, 22)), PREPROCESSING, options, head_input=tap)
    assert found is not None
    assert found.features is not None
    layer: Any = module.fc
    again = found.features @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    np.testing.assert_allclose(again, found.logits, rtol=1e-4, atol=1e-5)
    assert len(found.features) == 20


class Squeezed(Convolved):
    """Like SqueezeNet: after the 1x1 convolution comes a ReLU, so the logits are not linear."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images)).relu().mean((2, 3))


class Bypassed(Body):
    """Computes with the weight of the head, and never calls it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        layer: Any = self.fc
        features = self.features(images).mean((2, 3))
        return nn.functional.linear(features, layer.weight, layer.bias)


@pytest.mark.parametrize(
    ("module", "saw"),
    [(Squeezed(nn.Conv2d(D, C, 1)), "input"), (Bypassed(nn.Linear(D, C)), "never calls")],
)
def test_a_layer_whose_input_does_not_give_the_logits_is_refused(
    module: nn.Module, saw: str, tmp_path: Path
) -> None:
    classifier, path = saved(module, tmp_path)
    tap = head_input_of(classifier, path, ANY_HEAD, frozenset())
    with pytest.raises(BadInput, match="do not reproduce the model") as caught:
        predict(classifier, files(), PREPROCESSING, CPU, head_input=tap)
    assert saw in caught.value.saw
    assert "--save-logits" in caught.value.fix


def test_a_network_without_the_weight_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    _, path = saved(Body(nn.Linear(D, C)), tmp_path)
    other = Classifier(Body(nn.Linear(D, C)).eval(), C, "a test's", "it was given")
    with pytest.raises(BadInput, match="no module of the network has its weight"):
        head_input_of(other, path, ANY_HEAD, frozenset())


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundled model and its first images, and the process in their folder."""
    for name in ("config.json", "counts.json", "model.safetensors"):
        (tmp_path / name).write_bytes((EXAMPLE / name).read_bytes())
    with np.load(EXAMPLE / "val.npz") as file:
        np.savez(tmp_path / "few.npz", **{name: file[name][:100] for name in file})
    monkeypatch.chdir(tmp_path)
    return tmp_path


ON = ("--data", "npz:few.npz", "-j", "0", "--device", "cpu", "--json")


@pytest.mark.parametrize("command", ["evaluate", "sweep-gamma", "compare"])
def test_every_command_that_runs_a_model_keeps_the_features(
    command: str, work: Path, capsys: Capture
) -> None:
    words = [command, "model.safetensors", "--counts", "counts.json", *ON]
    suffix = ".npz" if command == "evaluate" else ".safetensors"
    files = ["--save-features", f"f{suffix}", "--save-logits", f"l{suffix}"]
    assert main([*words, *files]) == 0, capsys.readouterr().out
    load: Any = np.load if suffix == ".npz" else load_file
    features, logits, model = load(f"f{suffix}"), load(f"l{suffix}"), load_file(words[1])
    again = features["features"] @ model["linear.weight"].T + model["linear.bias"]
    np.testing.assert_allclose(again, logits["logits"], rtol=1e-4, atol=1e-4)
    assert features["labels"].tolist() == logits["labels"].tolist()
    if suffix == ".npz":
        assert features["names"].tolist() == logits["names"].tolist()
    capsys.readouterr()
    assert main([*words, *files]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "output-exists"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--save-features", "f.csv"], "suffix"),
        (["--save-features", "f.npz", "--save-logits", "f.npz"], "the same name"),
        (["--save-features", "f.npz", "--compile"], "compiled"),
    ],
)
def test_features_that_could_not_be_kept_are_refused_before_the_work(
    words: list[str], what: str, work: Path, capsys: Capture
) -> None:
    assert main(["evaluate", "model.safetensors", *ON, *words]) == 2
    assert what in json.loads(capsys.readouterr().out)["error"]["what"]


def test_features_of_logits_alone_are_refused(work: Path, capsys: Capture) -> None:
    words = ["--logits", str(EXAMPLE / "val_logits.npz"), "--save-features", "f.npz", "--json"]
    assert main(["evaluate", "model.safetensors", *words]) == 2
    assert "--data" in json.loads(capsys.readouterr().out)["error"]["fix"]


def test_the_layers_of_a_torchscript_file_cannot_be_watched(work: Path) -> None:
    with script_warnings():
        module = torch.jit.trace(Body(nn.Linear(D, C)).eval(), torch.randn(1, 3, 9, 9))
        torch.jit.save(module, "scripted.pt")
    script = Classifier(module, C, "torchscript", "a TorchScript file")
    with pytest.raises(BadInput, match="TorchScript program, whose layers are not accessible"):
        head_input_of(script, Path("scripted.pt"), ANY_HEAD, frozenset())


def test_two_processes_keep_what_one_keeps(work: Path, capsys: Capture) -> None:
    words = ["evaluate", "model.safetensors", *ON, "-b", "16", "--save-features"]
    assert main([*words, "one.npz"]) == 0
    run = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
           "--nproc-per-node", "2", "-m", "rescale_cli", *words, "two.npz"]  # fmt: skip
    environment = child_environment(PYTHONWARNINGS="ignore")
    done = subprocess.run(
        run, env=environment, timeout=300, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two = np.load("one.npz"), np.load("two.npz")
    assert {name: one[name].tobytes() for name in one} == {n: two[n].tobytes() for n in two}
