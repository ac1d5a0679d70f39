"""A checkpoint that names its library runs as that library's network, on its images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models as tv

from rescale_cli.core.predictions import Preprocessing
from rescale_cli.errors import BadInput, NeedsDecision
from rescale_cli.models.classifiers import load_classifier
from rescale_cli.models.mmpretrain import config_of

C = 3
Namespace = argparse.Namespace
IMAGENET = (0.485, 0.456, 0.406)


def save(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return tv.resnet18(num_classes=C).eval()


def timm_file(folder: Path, **args: Any) -> tuple[Path, nn.Module]:
    """What timm's CheckpointSaver writes; the average, as timm loads it."""
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    network = timm.create_model("resnet18", num_classes=C)
    average = timm.utils.ModelEmaV3(network)
    with torch.no_grad():
        for value in average.module.parameters():
            value.mul_(1.01)
    given = Namespace(model="resnet18", num_classes=C, **args)
    saver = timm.utils.CheckpointSaver(
        network, torch.optim.SGD(network.parameters(), 0.1), args=given, model_ema=average,
        checkpoint_dir=str(folder), recovery_dir=str(folder),
    )  # fmt: skip
    saver.save_checkpoint(0, metric=0.5)
    path = folder / "model_best.pth.tar"
    timm.models.load_checkpoint(network, str(path), use_ema=True)
    return path, network.eval()


def timms_own(**args: Any) -> dict[str, Any]:
    import timm

    cfg = timm.get_pretrained_cfg("resnet18").to_dict()
    found: dict[str, Any] = timm.data.resolve_data_config(args, pretrained_cfg=cfg)
    return found


@pytest.mark.parametrize(
    "args",
    [
        {"mean": None, "std": None, "input_size": None, "crop_pct": None},
        {"mean": [0.5, 0.4, 0.3], "std": [0.2], "crop_pct": 0.8, "interpolation": "bilinear"},
        {"input_size": [3, 96, 160], "crop_pct": 0.9},
        {"img_size": 128, "interpolation": ""},
    ],
)
def test_a_file_of_timms_saver_is_timms_network_on_timms_images(
    args: dict[str, Any], tmp_path: Path
) -> None:
    path, network = timm_file(tmp_path, **args)
    found, wanted = load_classifier(path), timms_own(**args)
    assert found.arch == "timm:resnet18"
    assert "weights from state_dict_ema, not from state_dict, as timm chooses" in found.why
    assert "timm's CheckpointSaver" in found.why
    prepared = found.preprocessing
    assert prepared is not None
    assert prepared.size == tuple(wanted["input_size"][1:])
    assert (prepared.mean, prepared.std) == (tuple(wanted["mean"]), tuple(wanted["std"]))
    assert prepared.interpolation == wanted["interpolation"]
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(found.module(x), network(x))


@pytest.mark.parametrize(("height", "width"), [(100, 170), (240, 90), (64, 64)])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_timms_pixels_are_reproduced(
    size: tuple[int, int], height: int, width: int, tmp_path: Path
) -> None:
    import numpy as np
    import timm
    from PIL import Image

    from rescale_cli.models.preprocessing import apply_preprocessing

    args = {"input_size": [3, *size], "crop_pct": 0.8}
    path, _ = timm_file(tmp_path, **args)
    prepared = load_classifier(path).preprocessing
    assert prepared is not None
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), "uint8")
    transform = timm.data.create_transform(**timms_own(**args))
    torch.testing.assert_close(
        apply_preprocessing(pixels, prepared), transform(Image.fromarray(pixels))
    )


def test_a_file_of_timm_without_the_name_of_its_model_asks_for_it(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the extra timm is not installed")
    said = {"epoch": 1, "arch": "resnet", "version": 2, "state_dict": resnet().state_dict()}
    with pytest.raises(NeedsDecision) as caught:
        load_classifier(save(said, tmp_path / "m.pth.tar"))
    assert caught.value.fix == "name the model: --arch timm:NAME"


@pytest.mark.parametrize(
    ("said", "arch", "resize", "crop"),
    [
        ({"args": Namespace(model="resnet18", val_crop_size=96, val_resize_size=100)},
         "torchvision:resnet18", 100, 96),
        ({"args": Namespace(model="resnet18")}, "torchvision:resnet18", 256, 224),
        ({"arch": "resnet18", "best_acc1": 0.5}, "torchvision:resnet18", 256, 224),
        ({"args": Namespace(model="resnet18", nb_classes=3, drop_path=0.1)},
         "timm:resnet18", 235, 224),
        ({"pytorch-lightning_version": "2.5", "hyper_parameters": {"lr": 0.1}},
         "torchvision:resnet18", 256, 224),
        ({"pytorch-lightning_version": "2.5",
          "hyper_parameters": {"model_name": "timm/resnet18", "lr": 0.1}},
         "timm:resnet18", 235, 224),
        ({"pytorch-lightning_version": "2.5",
          "hyper_parameters": {"net": {"_target_": "torchvision.models.resnet18"}}},
         "torchvision:resnet18", 256, 224),
    ],
)  # fmt: skip
def test_only_what_a_layout_stores_prepares_the_images_and_the_rest_is_a_suggestion(
    said: dict[str, Any], arch: str, resize: int, crop: int, tmp_path: Path
) -> None:
    if arch.startswith("timm"):
        pytest.importorskip("timm", reason="the extra timm is not installed")
    network = resnet()
    key = "state_dict" if "args" not in said else "model"
    found = load_classifier(save({key: network.state_dict(), **said}, tmp_path / "m.pth"))
    assert found.arch == arch
    stored = (resize, crop) == (100, 96)
    assert (found.preprocessing is not None) == stored
    prepared = found.preprocessing or found.usual
    assert prepared is not None
    assert (prepared.resize, prepared.size) == (resize, (crop, crop))


# ---- mmpretrain

CFG = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(3, ), style='{style}'),
    head=dict(type='LinearClsHead', num_classes=3, topk=(1, 5)))
data_preprocessor = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb={rgb}, num_classes=3)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=80, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs'),
]
launcher = __import__('os').system('false')
"""


def mm_file(path: Path, network: nn.Module, **meta: Any) -> Path:
    state = {
        ("head." if name.startswith("fc") else "backbone.") + name: value
        for name, value in network.state_dict().items()
    }
    said = {"epoch": 3, "dataset_meta": {"classes": ("cat", "dog", "eel")}, **meta}
    return save({"meta": said, "state_dict": state}, path)


@pytest.mark.parametrize("rgb", [True, False])
def test_mmpretrains_resnet_is_torchvisions_on_mmpretrains_images(
    rgb: bool, tmp_path: Path
) -> None:
    network = resnet()
    cfg = CFG.format(style="pytorch", rgb=rgb)
    found = load_classifier(mm_file(tmp_path / "epoch_3.pth", network, cfg=cfg))
    assert found.arch == "torchvision:resnet18"
    assert found.classes == ("cat", "dog", "eel")
    assert "mmpretrain" in found.why
    prepared = found.preprocessing
    assert isinstance(prepared, Preprocessing)
    assert (prepared.size, prepared.resize, prepared.flip_channels) == ((64, 64), 80, not rgb)
    assert prepared.mean == pytest.approx(IMAGENET)
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(found.module(x), network(x))


def test_mmpretrain_without_its_configuration_is_mapped_all_the_same(tmp_path: Path) -> None:
    found = load_classifier(mm_file(tmp_path / "epoch_3.pth", resnet()))
    assert (found.arch, found.num_classes) == ("torchvision:resnet18", C)


def test_mmpretrains_resnet_with_other_strides_is_refused(tmp_path: Path) -> None:
    cfg = CFG.format(style="caffe", rgb=True)
    with pytest.raises(BadInput, match="caffe"):
        load_classifier(mm_file(tmp_path / "epoch_3.pth", resnet(), cfg=cfg))


@pytest.mark.parametrize("text", ["", "model = (", "-" * 100_000 + "1", "(" * 10_000, "a = \0"])
def test_a_configuration_that_is_no_python_says_nothing(text: str) -> None:
    assert config_of({"cfg": text}) == {}


# ---- networks that are not run here


@pytest.mark.parametrize(
    ("module", "library"),
    [("ultralytics.nn.tasks", "ultralytics"), ("models.yolo", "ultralytics"),
     ("fastai.learner", "fastai")],
)  # fmt: skip
def test_a_pickled_network_of_a_library_that_is_not_run_is_refused_by_name(
    module: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    kind = type("Network", (nn.Sequential,), {"__module__": module})
    for at in range(module.count(".") + 1):
        name = ".".join(module.split(".")[: at + 1])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[module].Network = kind  # type: ignore[attr-defined]
    path = save({"epoch": 1, "ema": kind(nn.Linear(4, C))}, tmp_path / "best.pt")
    for name in [name for name in sys.modules if name.split(".")[0] == module.split(".")[0]]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BadInput, match=library) as caught:
        load_classifier(path)
    assert "--logits FILE" in caught.value.fix


def test_a_file_of_fastais_learner_is_named(tmp_path: Path) -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    network = nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(8, C)))
    optimizer = {"state": [{"grad_avg": torch.zeros(3)}], "hypers": [{"lr": 0.1}]}
    path = save({"model": network.state_dict(), "opt": optimizer}, tmp_path / "m.pth")
    with pytest.raises(BadInput, match="fastai"):
        load_classifier(path)


# ---- the Trainer of transformers


def test_a_checkpoint_of_the_trainer_is_its_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra transformers is missing")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    network = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(num_labels=C, **sizes)
    ).eval()
    folder = tmp_path / "checkpoint-500"
    network.save_pretrained(folder)
    (folder / "trainer_state.json").write_text("{}", encoding="utf-8")
    save({"state": {0: {"exp_avg": torch.zeros(3)}}}, folder / "optimizer.pt")
    save(Namespace(output_dir="out"), folder / "training_args.bin")
    x = torch.rand(2, 3, 64, 64)
    for path in (folder, folder / "model.safetensors"):
        found = load_classifier(path)
        assert found.arch == "hf"
        with torch.inference_mode():
            torch.testing.assert_close(found.module(x), network(x).logits)
