"""Preprocessing equals torchvision's, timm's and Hugging Face's own, and says what it cannot."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from torchvision import transforms as tv

from rescale_cli import errors
from rescale_cli.cli import main
from rescale_cli.commands.data_options import DataOptions
from rescale_cli.core.predictions import Image, Preprocessing
from rescale_cli.errors import BadInput, NeedsDecision, OutputExists, UsageError
from rescale_cli.models.hugging_face import preprocessing_in
from rescale_cli.models.preprocessing import (
    Hints,
    apply_preprocessing,
    batch_preprocessing,
    needs_no_resize,
    override,
    presets,
)
from rescale_cli.models.preprocessing_config import (
    from_hugging_face,
    from_run,
    from_timm,
    from_torchvision,
    read_preprocessing,
    save_preprocessing,
    to_run,
)

IMAGENET = presets["imagenet"]


def image(height: int, width: int, channels: int = 3, seed: int = 0) -> Image:
    """Smooth enough for resizing to be told apart from cropping, rough enough for every byte."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (5, 5, channels), np.uint8)
    large = [
        np.asarray(
            Pillow.fromarray(coarse[..., c]).resize((width, height), Pillow.Resampling.BICUBIC)
        )
        for c in range(channels)
    ]
    noise = random.integers(-20, 20, (height, width, channels))
    return np.clip(np.stack(large, -1).astype(int) + noise, 0, 255).astype(np.uint8)


def picture(pixels: Image, channels: int) -> Any:
    squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return Pillow.fromarray(squeezed).convert("L" if channels == 1 else "RGB")


def by_torchvision(pixels: Image, p: Preprocessing) -> torch.Tensor:
    resize = p.size if p.resize is None else p.resize
    done = tv.Compose(
        [
            tv.Resize(resize, tv.InterpolationMode(p.interpolation)),
            tv.CenterCrop(p.size),
            tv.ToTensor(),
            tv.Normalize(p.mean, p.std),
        ]
    )
    made: torch.Tensor = done(picture(pixels, p.channels))
    return made


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@settings(max_examples=60)
@given(data=st.data())
def test_one_image_is_prepared_as_torchvision_does_to_the_last_bit(data: st.DataObject) -> None:
    side = st.integers(1, 40)
    pixels = image(data.draw(side), data.draw(side), data.draw(st.sampled_from([1, 3])))
    channels = data.draw(st.sampled_from([1, 3]))
    p = Preprocessing(
        size=(data.draw(side), data.draw(side)),
        mean=(0.485, 0.456, 0.406)[:channels],
        std=(0.229, 0.224, 0.225)[:channels],
        resize=data.draw(st.none() | side | st.tuples(side, side)),
        interpolation=data.draw(st.sampled_from(["nearest", "bilinear", "bicubic"])),
    )
    height, width = pixels.shape[:2]
    if isinstance(p.resize, int) and p.resize * min(height, width) // max(height, width) < 0:
        return
    found = apply_preprocessing(pixels, p)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    same(found, by_torchvision(pixels, p))


@settings(max_examples=60)
@given(data=st.data())
def test_a_batch_in_memory_is_prepared_as_each_of_its_images(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    channels, wanted = (data.draw(st.sampled_from([1, 3])) for _ in range(2))
    p = Preprocessing(
        size=(data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14))),
        mean=(0.2, 0.5, 0.7)[:wanted],
        std=(0.3, 0.2, 0.1)[:wanted],
        resize=data.draw(st.sampled_from([min(height, width), (height, width)])),
        flip_channels=data.draw(st.booleans()),
    )
    assert needs_no_resize(p, height, width)
    images = np.stack([image(height, width, channels, seed) for seed in range(3)])
    each = torch.stack([apply_preprocessing(one, p) for one in images])
    same(batch_preprocessing(images, p), each)
    if channels == 1:
        same(batch_preprocessing(images[..., 0], p), each)
    same(batch_preprocessing(torch.from_numpy(images), p, torch.device("cpu")), each)


def test_images_of_another_size_need_resizing() -> None:
    p = Preprocessing((28, 28), (0.5,), (0.5,))
    assert needs_no_resize(p, 28, 28)
    assert not needs_no_resize(p, 32, 32)
    assert not needs_no_resize(IMAGENET, 256, 100)


def test_every_colour_becomes_the_gray_that_pillow_makes_of_it() -> None:
    values = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(values, values, values), -1).reshape(1, -1, 1, 3)
    p = Preprocessing((colours.shape[1], 1), (0.0,), (1.0,))
    same(batch_preprocessing(colours, p)[0], apply_preprocessing(colours[0], p))


# ---- what files say

TORCHVISION = {
    "resnet18": ((224, 224), 256, "bilinear"),
    "inception_v3": ((299, 299), 342, "bilinear"),
    "efficientnet_b1": ((240, 240), 256, "bicubic"),
    "vit_h_14": ((518, 518), 518, "bicubic"),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_default_is_that_of_its_first_weights(name: str) -> None:
    from torchvision import models

    p = from_torchvision(name)
    assert (p.size, p.resize, p.interpolation) == TORCHVISION[name]
    assert name in p.source
    done = next(iter(models.get_model_weights(name))).transforms()
    pixels = image(70, 90)
    same(apply_preprocessing(pixels, p), done(Pillow.fromarray(pixels)))


@pytest.mark.parametrize("crop_mode", [None, "center", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
def test_timms_config_is_read_as_timm_does(
    crop_mode: str | None, interpolation: str, crop_pct: float
) -> None:
    timm_data = pytest.importorskip("timm.data", reason="the extra timm is not installed")
    cfg = {
        "input_size": (3, 40, 40),
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
    }
    p = from_timm(cfg)
    assert p is not None
    transform = timm_data.create_transform(**timm_data.resolve_data_config(pretrained_cfg=cfg))
    pixels = image(61, 83)
    same(apply_preprocessing(pixels, p), transform(Pillow.fromarray(pixels)))


def test_a_timm_config_that_pads_or_says_too_little_is_not_guessed() -> None:
    full = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert from_timm(full) is not None
    assert from_timm({**full, "crop_mode": "border"}) is None
    assert from_timm({"input_size": (3, 8, 8)}) is None
    gray = from_timm({**full, "input_size": (1, 8, 8)})
    assert gray is not None
    assert gray.mean == (0.5,)


HF = {
    "ViTImageProcessorPil": {"size": {"height": 32, "width": 24}, "do_convert_rgb": True},
    "ConvNextImageProcessorPil": {"size": {"shortest_edge": 28}, "crop_pct": 0.875},
    "BitImageProcessorPil": {
        "size": {"shortest_edge": 34},
        "crop_size": {"height": 30, "width": 30},
    },
    "LevitImageProcessorPil": {
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
    },
    "PoolFormerImageProcessorPil": {
        "size": {"shortest_edge": 28},
        "crop_pct": 0.9,
        "crop_size": {"height": 28, "width": 28},
    },
    "EfficientNetImageProcessorPil": {
        "size": {"height": 30, "width": 30},
        "rescale_offset": False,
        "include_top": True,
    },
    "MobileViTImageProcessorPil": {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "do_flip_channel_order": True,
    },
    "MobileNetV2ImageProcessorPil": {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
    },
}


@pytest.mark.parametrize("kind", HF)
def test_a_hugging_face_processor_is_read_as_it_works(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra transformers is missing")
    made = getattr(transformers, kind, None)
    if made is None:
        pytest.skip(f"this transformers has no {kind}")
    processor = made(**HF[kind])
    processor.save_pretrained(tmp_path)
    p = preprocessing_in(tmp_path, {})
    assert p is not None
    pixels = image(60, 73)
    theirs = processor(Pillow.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(apply_preprocessing(pixels, p), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "size", "resize"),
    [
        ({"size": 224}, (224, 224), (224, 224)),
        ({"size": [192, 224]}, (192, 224), (192, 224)),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224},
            (224, 224),
            256,
        ),
        (
            {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "image_processor_type": "ConvNext"},
            (384, 384),
            (384, 384),
        ),
    ],
)
def test_every_form_of_size_is_read(config: Any, size: Any, resize: Any) -> None:
    p = from_hugging_face({**config, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    assert p is not None
    assert (p.size, p.resize) == (size, resize)


@pytest.mark.parametrize(
    "scale", [{"rescale_factor": 1 / 127.5, "rescale_offset": True}, {"do_rescale": False}]
)
def test_another_scale_of_the_bytes_goes_into_mean_and_std(scale: Any) -> None:
    config = {"size": 4, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, **scale}
    p = from_hugging_face(config)
    assert p is not None
    pixels = image(4, 4)
    factor, offset = (1 / 127.5, 1) if "rescale_factor" in scale else (1, 0)
    wanted = ((pixels.transpose(2, 0, 1) * factor - offset) - 0.5) / 0.25
    np.testing.assert_allclose(apply_preprocessing(pixels, p).numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"shortest_edge": 32}},
        {"size": {"longest_edge": 32}},
        {"do_resize": False, "size": 32},
        {},
    ],
)
def test_a_processor_that_leads_to_no_size_is_not_guessed(config: Any) -> None:
    assert from_hugging_face({**config, "image_mean": [0.5], "image_std": [0.5]}) is None


@given(
    st.builds(
        Preprocessing,
        size=st.tuples(st.integers(1, 999), st.integers(1, 999)),
        mean=st.tuples(*[st.floats(0, 1)] * 3),
        std=st.tuples(*[st.floats(0.01, 1)] * 3),
        resize=st.none() | st.integers(1, 999) | st.tuples(st.integers(1, 9), st.integers(1, 9)),
        interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
        keep_ratio=st.booleans(),
        flip_channels=st.booleans(),
        crop_rounds_down=st.booleans(),
        source=st.just("config.json"),
    )
)
def test_what_a_run_writes_is_read_again(p: Preprocessing) -> None:
    assert from_run(json.loads(json.dumps({"preprocessing": to_run(p)}))) == p


@pytest.mark.parametrize(
    "said",
    [
        [],
        {"size": [28, 28]},
        {"size": [28], "mean": [0.5], "std": [0.5]},
        {"size": [28, 28], "mean": [0.5], "std": [0]},
        {"size": [28, 28], "mean": ["a"], "std": [1]},
        {"size": [0, 28], "mean": [0.5], "std": [0.5]},
        {"size": [28, 28], "mean": [0.5], "std": [0.5], "interpolation": "magic"},
        {"size": [28, 28], "mean": [0.5], "std": [0.5], "keep_ratio": "yes"},
    ],
)
def test_a_config_that_cannot_be_right_is_refused(said: Any) -> None:
    with pytest.raises(BadInput) as caught:
        from_run({"preprocessing": said})
    assert "config.json" in caught.value.what
    assert caught.value.fix


def test_a_config_without_preprocessing_says_nothing() -> None:
    assert from_run({"arch": "rescale:resnet8"}) is None


# ---- options


def test_options_go_before_presets_and_presets_before_the_checkpoint() -> None:
    base = Preprocessing((28, 28), (0.3,), (0.35,), source="config.json")
    assert override(base) == base
    assert override(base, "cifar10") == presets["cifar10"]
    changed = override(base, "imagenet", size=(112, 112), mean=(0.5,))
    assert (changed.size, changed.resize) == ((112, 112), 112), "nothing is cut off"
    assert changed.mean == (0.5, 0.5, 0.5)
    assert changed.std == IMAGENET.std
    assert "imagenet" in changed.source
    assert override(base, size=(32, 32)).resize is None


@pytest.mark.parametrize("base", [IMAGENET, "imagenet"])
def test_a_size_is_what_images_are_resized_to_and_nothing_is_cropped(base: Any) -> None:
    own, preset = (None, base) if isinstance(base, str) else (base, None)
    made = override(own, preset, size=(32, 32))
    done = tv.Compose([tv.Resize((32, 32)), tv.ToTensor(), tv.Normalize(made.mean, made.std)])
    pixels = image(45, 45)
    same(apply_preprocessing(pixels, made), done(Pillow.fromarray(pixels)))


def test_a_size_of_two_sides_is_covered_by_the_image_without_a_border() -> None:
    made = override(None, size=(20, 30), mean=(0.0,) * 3, std=(1.0,) * 3)
    white = np.full((25, 25, 3), 255, np.uint8)
    assert (apply_preprocessing(white, made) == 1).all()


def test_what_resized_both_sides_outright_still_does_for_another_size() -> None:
    made = override(Preprocessing((8, 8), (0.5,), (0.5,), (8, 8)), size=(6, 6))
    assert (made.resize, made.keep_ratio) == ((6, 6), False)


def test_size_mean_and_std_together_are_the_whole_preparation() -> None:
    base = presets["imagenet"]
    said = {"size": (64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    made = override(base, **said)
    assert (made.size, made.resize) == ((64, 64), 64)
    same(
        apply_preprocessing(image(80, 90, 3), made),
        apply_preprocessing(image(80, 90, 3), override(None, **said)),
    )
    assert override(base, size=(112, 112), mean=(0.5,)).std == base.std, "the rest is the base's"
    assert override(None, "imagenet", **said) == replace(
        made, source="preset imagenet, changed by options"
    )


def test_one_value_stands_for_all_channels_that_there_were() -> None:
    made = override(presets["imagenet"], mean=(0.5,), std=(0.2,))
    assert (made.mean, made.std) == ((0.5,) * 3, (0.2,) * 3)


def test_the_preset_none_leaves_values_between_0_and_1() -> None:
    base = Preprocessing((28, 28), (0.3,), (0.35,))
    pixels = image(28, 28, 1)
    same(apply_preprocessing(pixels, override(base, "none")), tv.ToTensor()(pixels))
    assert override(None, "none", size=(28, 28)).channels == 3
    assert override(None, "none", size=(28, 28), hints=Hints(channels=1)).channels == 1
    with pytest.raises(NeedsDecision, match="how images are prepared") as caught:
        override(None, "none")
    assert caught.value.fix == "--size N (N: the size that the network was trained at, in pixels)"


def test_size_mean_and_std_are_enough_without_a_checkpoint() -> None:
    p = override(None, size=(32, 48), mean=(0.5, 0.4, 0.3), std=(0.2,))
    assert (p.size, p.resize, p.std) == ((32, 48), (32, 48), (0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    ("given", "hints", "line"),
    [
        ({}, Hints(), "--preset imagenet"),
        ({}, Hints(image=(500, 375)), "--preset imagenet"),
        ({}, Hints(image=(32, 32)), "--size N --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
        ({}, Hints(IMAGENET, image=(32, 32)), "--size N"),
        ({}, Hints(IMAGENET, image=(500, 375)), "--preset imagenet"),
        ({}, Hints(from_torchvision("efficientnet_b1")), "--preset library"),
        ({"size": (8, 8)}, Hints(), "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
        ({"size": (8, 8), "mean": (0.5,)}, Hints(), "--std 0.229,0.224,0.225"),
        ({"mean": (0.5,), "std": (0.5,)}, Hints(IMAGENET), "--preset imagenet"),
        ({}, Hints(image=(28, 28), channels=1), "--size N --mean 0.5 --std 0.5"),
        ({"mean": (0.3,)}, Hints(image=(28, 28), channels=1), "--size N --std 0.5"),
        ({"size": (28, 28)}, Hints(channels=1), "--mean 0.5 --std 0.5"),
    ],
)
def test_what_nobody_says_is_asked_for_with_the_line_to_type(
    given: Any, hints: Hints, line: str
) -> None:
    with pytest.raises(NeedsDecision) as caught:
        override(None, **given, hints=hints)
    assert "no preprocessing beside the checkpoint" in caught.value.saw
    assert re.search(rf"{re.escape(line)}( \((N: the size that the network was trained|--)|;|$)",
                     caught.value.fix)  # fmt: skip
    invented = "--mean" in line or "--std" in line
    assert invented <= ("placeholders for the values of the training" in caught.value.fix)
    if "N" in line:
        assert caught.value.fix.startswith("--size N"), "the size of the training comes first"
    if hints.image is not None:
        assert str(hints.image[0]) not in caught.value.fix, "the images do not tell it"


def test_the_librarys_own_values_are_used_only_when_they_are_asked_for() -> None:
    usual = from_torchvision("efficientnet_b1")
    hints = Hints(usual)
    assert override(None, "library", hints=hints) == usual
    alone = override(None, size=(32, 32), hints=hints)
    assert (alone.size, alone.resize, alone.mean) == ((32, 32), 32, usual.mean)
    assert "mean and std of torchvision's default" in alone.source
    with pytest.raises(NeedsDecision):
        override(None, "library")


def test_a_program_that_takes_one_size_needs_no_other() -> None:
    hints = Hints(fixed=(28, 28))
    assert override(None, mean=(0.5,), std=(0.2,), hints=hints).size == (28, 28)
    assert override(None, "imagenet", hints=hints).size == (28, 28)
    with pytest.raises(NeedsDecision):
        override(None, hints=hints)


@pytest.mark.parametrize(
    "given",
    [
        {"size": (0, 8)},
        {"mean": (0.1, 0.2)},
        {"std": (0.0,)},
        {"mean": (float("nan"),)},
        {"std": (1.0, 1.0, 1.0, 1.0)},
    ],
)
def test_values_that_prepare_no_image_are_refused(given: Any) -> None:
    with pytest.raises(UsageError) as caught:
        override(Preprocessing((8, 8), (0.5,), (0.5,)), **given)
    assert caught.value.fix


def test_an_unknown_preset_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        override(None, "imagnet")
    assert "imagenet" in caught.value.fix


@pytest.mark.parametrize("name", [name for name in presets if presets[name] is not None])
def test_every_preset_prepares_an_image(name: str) -> None:
    p = override(None, name)
    made = apply_preprocessing(image(37, 53), p)
    assert made.shape == (p.channels, *p.size)
    assert name in p.source


def test_the_help_lists_every_preset() -> None:
    hints = get_type_hints(DataOptions, include_extras=True)
    shown = re.findall(r"[\w-]+", hints["preset"].__metadata__[0].help)
    assert set(presets) <= set(shown)


def test_the_bundled_example_says_its_preprocessing() -> None:
    config = json.loads(
        (Path(__file__).parents[2] / "examples/fashion_lt/config.json").read_text(encoding="utf-8")
    )
    p = from_run(config)
    assert p is not None
    assert (p.size, p.mean, p.std) == ((28, 28), (0.2983,), (0.3551,))


# ---- files of their own


def test_what_is_saved_is_read_again_to_the_last_field(tmp_path: Path) -> None:
    made = Preprocessing(
        (20, 30), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (24, 36), "bicubic", keep_ratio=True,
        flip_channels=True, crop_rounds_down=True, source="p.json",
    )  # fmt: skip
    save_preprocessing(tmp_path / "p.json", made, force=False)
    assert read_preprocessing(tmp_path / "p.json") == made
    with pytest.raises(OutputExists, match=r"p\.json"):
        save_preprocessing(tmp_path / "p.json", made, force=False)


TIMM_CFG = {"input_size": [3, 40, 40], "mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 1.0}
RUN_CFG = {"size": [40, 40], "mean": [0.5] * 3, "std": [0.2] * 3}


@pytest.mark.parametrize(
    "said",
    [
        RUN_CFG,
        {"arch": "rescale:resnet8", "preprocessing": RUN_CFG},
        {"schema": "rescale-cli/sweep-gamma@1", "ok": True, "result": {"preprocessing": RUN_CFG}},
        TIMM_CFG,
        {"architecture": "resnet18", "pretrained_cfg": TIMM_CFG},
        {"image_processor_type": "ViTImageProcessor", "size": 40, "image_mean": [0.5] * 3,
         "image_std": [0.2] * 3},
        {"do_resize": True, "size": {"height": 40, "width": 40}, "image_mean": [0.5] * 3,
         "image_std": [0.2] * 3},
    ],
)  # fmt: skip
def test_every_known_form_of_a_file_is_read(said: Any, tmp_path: Path) -> None:
    path = tmp_path / "said.json"
    path.write_text(json.dumps(said), encoding="utf-8")
    found = read_preprocessing(path)
    assert (found.size, found.mean, found.std) == ((40, 40), (0.5,) * 3, (0.2,) * 3)
    assert found.source == "said.json"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"model_type": "vit"}', '{"result": {"verdict": "helps"}}', '{"size": 40}'],
)
def test_a_file_that_says_nothing_of_images_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "said.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"said\.json"):
        read_preprocessing(path)


def test_the_line_for_a_network_with_one_channel_runs_as_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gray_net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes=3):\n"
        "    layers = nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*layers, nn.Linear(4, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    state = importlib.import_module("gray_net").net().state_dict()
    safetensors.torch.save_file(state, "m.safetensors")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 28, 28), dtype=np.uint8)
    np.savez("d.npz", images=pixels, labels=np.arange(60) % 3)
    words = ["evaluate", "m.safetensors", "--data", "npz:d.npz", "--arch", "python:gray_net:net"]
    assert main([*words, "--json"]) == 4
    fix = json.loads(capsys.readouterr().out)["error"]["fix"]
    line = shlex.split(fix.partition("rescale-cli ")[2].partition(" (N: ")[0])
    assert line == [*words, "--json", "--size", "N", "--mean", "0.5", "--std", "0.5"]
    line[line.index("N")] = "28"
    assert main([*line, "--accept-poor-accuracy"]) == 0


def test_a_line_to_type_replaces_what_was_typed() -> None:
    typed = ("evaluate", "m.pth", "--size", "28", "--mean=0.5", "--std", "0.2", "--", "--size")
    known = errors.typed.set(typed)
    try:
        assert errors.again("--size", "N", "--accept-poor-accuracy") == (
            "rescale-cli evaluate m.pth --mean=0.5 --std 0.2 --size N --accept-poor-accuracy "
            "-- --size"
        )
        line = errors.again("--preset", "imagenet", without=("--size", "--mean", "--std"))
        assert line == "rescale-cli evaluate m.pth --preset imagenet -- --size"
    finally:
        errors.typed.reset(known)
