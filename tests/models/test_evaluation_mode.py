"""The logits of an image do not depend on its batch, whichever source built the model."""

from __future__ import annotations

import copy
import json
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision import models as tv

from rescale_cli.errors import BadInput
from rescale_cli.evaluating.predict import RunOptions
from rescale_cli.evaluating.run_on_data import DataChoice, ModelToRun, predictions_of
from rescale_cli.models.classifiers import load_classifier, models
from rescale_cli.models.networks import networks

C, N, SIZE = 4, 40, 32

#: The user's own code: networks, wrappers that swallow eval(), and an exported program inside.
CODE = """
    import torch
    from torch import nn

    def body(num_classes):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(.5),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
        )

    class Wrapper(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.model = body(num_classes)
        def forward(self, x):
            return {"logits": self.model(x)}

    class Swallows(Wrapper):
        def train(self, mode=True):
            return self

    class StaysInTraining(Wrapper):
        def eval(self):
            return self.train()

    class NoTraining(Wrapper):
        def train(self, mode=True):
            raise RuntimeError("this network has no training mode")

    class Exported(Wrapper):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            shapes = ({0: torch.export.Dim("n")},)
            program = torch.export.export(
                self.model.train(), (torch.rand(4, 3, 32, 32),), dynamic_shapes=shapes
            )
            self.model = program.module()
"""

Made = tuple[Path, str | None, nn.Module]


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "dropout_nets.py").write_text(textwrap.dedent(CODE), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("dropout_nets", None)


def trained(network: nn.Module) -> nn.Module:
    """Weights and statistics as after some training; still in training mode."""
    torch.manual_seed(1)
    network.train()
    for _ in range(4):
        network(torch.rand(16, 3, SIZE, SIZE) * 3 - 1)
    return network


def plain() -> nn.Module:
    torch.manual_seed(0)
    return trained(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, C),
        )
    )  # fmt: skip


def saved(network: nn.Module, path: Path) -> Path:
    torch.save({"model": network.state_dict(), "epoch": 1}, path)
    return path


def torchvision(folder: Path) -> Made:
    network = trained(tv.mobilenet_v3_small(num_classes=C))
    return saved(network, folder / "m.pth"), "torchvision:mobilenet_v3_small", network


def rescale(folder: Path) -> Made:
    network = trained(networks["resnet8"](C, 3, True))
    return saved(network, folder / "m.pth"), "rescale:resnet8", network


def run(folder: Path) -> Made:
    network = trained(networks["resnet8"](C, 3, True))
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"arch": "rescale:resnet8"}), encoding="utf-8")
    return folder, None, network


def timm(folder: Path) -> Made:
    library = pytest.importorskip("timm", reason="the extra timm is not installed")
    args = {"drop_rate": 0.5, "drop_path_rate": 0.3}
    network = trained(library.create_model("test_efficientnet", num_classes=C, **args))
    library.models.save_for_hf(network, folder, model_args=args, safe_serialization=True)
    return folder, None, network


def hf(folder: Path, *, dropout: bool = False) -> Made:
    library = pytest.importorskip("transformers", reason="the extra transformers is missing")
    torch.manual_seed(0)
    if dropout:
        config = library.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            image_size=SIZE, patch_size=8, hidden_dropout_prob=0.5, num_labels=C,
        )  # fmt: skip
        network = library.ViTForImageClassification(config)
    else:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        network = library.ResNetForImageClassification(library.ResNetConfig(num_labels=C, **sizes))
    trained(network).save_pretrained(folder)
    return folder, "hf", network


def script(folder: Path, how: Callable[[nn.Module], Any]) -> Made:
    network = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in model repositories
        how(network).save(str(folder / "m.pt"))  # tracing in training mode updates its statistics
    return folder / "m.pt", None, network


def scripted(folder: Path) -> Made:
    return script(folder, torch.jit.script)


def traced_in_training_mode(folder: Path) -> Made:
    example = torch.rand(2, 3, SIZE, SIZE)
    return script(folder, lambda n: torch.jit.trace(n.train(), example, check_trace=False))


def exported(folder: Path, *, training: bool, decomposed: bool = False) -> Made:
    network = plain()
    program = torch.export.export(
        copy.deepcopy(network).train(training),
        (torch.rand(4, 3, SIZE, SIZE),),
        dynamic_shapes=({0: torch.export.Dim("n")},),
    )
    torch.export.save(program.run_decompositions() if decomposed else program, folder / "m.pt2")
    return folder / "m.pt2", None, network


def python(folder: Path, name: str) -> Made:
    network = plain()
    state = {f"model.{key}": value for key, value in network.state_dict().items()}
    torch.save(state if name != "body" else network.state_dict(), folder / "m.pth")
    return folder / "m.pth", f"python:dropout_nets:{name}", network


SOURCES: dict[str, Callable[[Path], Made]] = {
    "torchvision": torchvision,
    "rescale": rescale,
    "run": run,
    "timm": timm,
    "hf": hf,
    "hf, with dropout": lambda f: hf(f, dropout=True),
    "torchscript": scripted,
    "torchscript, traced in training mode": traced_in_training_mode,
    "pt2": lambda f: exported(f, training=False),
    "pt2, exported in training mode": lambda f: exported(f, training=True),
    "pt2, decomposed in training mode": lambda f: exported(f, training=True, decomposed=True),
    "python": lambda f: python(f, "body"),
    "python, in a wrapper": lambda f: python(f, "Wrapper"),
    "python, eval() swallowed": lambda f: python(f, "Swallows"),
    "python, eval() means training": lambda f: python(f, "StaysInTraining"),
    "python, an exported program inside": lambda f: python(f, "Exported"),
}


def test_every_source_is_tried() -> None:
    assert {name.partition(",")[0] for name in SOURCES} == set(models)


@pytest.mark.parametrize("source", SOURCES)
def test_logits_are_those_of_evaluation_mode_at_every_batch_size(
    source: str, tmp_path: Path, user_code: None
) -> None:
    path, arch, network = SOURCES[source](tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (N, SIZE, SIZE, 3), "uint8")
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(N) % C)
    with torch.no_grad():
        wanted = network.eval()(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    wanted = getattr(wanted, "logits", wanted).numpy()
    for size in (1, 7, N):
        choice = DataChoice(
            data=f"npz:{tmp_path / 'data.npz'}", arch=arch, size=(SIZE, SIZE), mean=(0.0,) * 3,
            std=(1.0,) * 3, run=RunOptions(batch_size=size, workers=0), accept_poor=True,
        )  # fmt: skip
        found = predictions_of(ModelToRun(path), choice)
        assert found is not None
        np.testing.assert_allclose(found.logits, wanted, rtol=1e-4, atol=1e-5)


def test_every_part_of_a_model_is_in_evaluation_mode(tmp_path: Path, user_code: None) -> None:
    for name in ("Swallows", "StaysInTraining"):
        path, arch, _ = python(tmp_path, name)
        assert not any(part.training for part in load_classifier(path, arch).module.modules())


def test_a_program_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(288, C))
    program = torch.export.export(
        network.train(), (torch.rand(4, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    torch.export.save(program.run_decompositions(), tmp_path / "m.pt2")
    with pytest.raises(BadInput, match="training mode") as caught:
        load_classifier(tmp_path / "m.pt2")
    assert "model.eval()" in caught.value.fix


@pytest.mark.parametrize("how", [torch.jit.trace, torch.jit.script])
def test_a_trace_that_draws_random_numbers_is_refused_and_a_script_is_not(
    how: Callable[..., Any], tmp_path: Path
) -> None:
    block = tv.efficientnet.MBConvConfig(1, 3, 1, 8, 8, 1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        tv.efficientnet.MBConv(block, stochastic_depth_prob=0.5, norm_layer=nn.BatchNorm2d),
        nn.Flatten(),
        nn.Linear(288, C),
    )
    example = torch.rand(4, 3, 8, 8)
    given = (example,) if how is torch.jit.trace else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated; and a second trace would draw other numbers
        how(network.train(), *given).save(str(tmp_path / "m.pt"))
    if how is torch.jit.trace:
        with pytest.raises(BadInput, match="traced in training mode") as caught:
            load_classifier(tmp_path / "m.pt")
        assert "torch.jit.trace(model.eval(), ...)" in caught.value.fix
    else:
        with torch.no_grad():
            found = load_classifier(tmp_path / "m.pt").module(example)
            torch.testing.assert_close(found, network.eval()(example))


def test_a_network_whose_train_fails_is_an_error_of_the_input(
    tmp_path: Path, user_code: None
) -> None:
    path, arch, _ = python(tmp_path, "NoTraining")
    with pytest.raises(BadInput, match="cannot be set to evaluation mode") as caught:
        load_classifier(path, arch)
    assert "this network has no training mode" in caught.value.saw
