"""Recipes: what they refuse, TOML and back, and the paper's values."""

from __future__ import annotations

import math
import tomllib
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli.commands.train_options import RecipeOptions
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.training.losses import losses
from rescale_cli.training.presets import presets
from rescale_cli.training.recipe import SETTINGS, Recipe, Setting
from rescale_cli.training.recipe_toml import options_in, to_toml
from rescale_cli.training.samplers import samplers

WORDS = st.text(st.characters(codec="utf-8"), max_size=20)
SHARES = st.floats(0, 1)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    channels = draw(st.sampled_from([0, 1, 3]))
    loss = draw(st.sampled_from(list(losses)))
    linear = losses.entry(loss).facts["head"] == "linear"
    wvn = linear and draw(st.booleans())
    batch_size = draw(st.integers(1, 4096))
    few = st.lists(st.floats(0.001, 1), min_size=channels, max_size=channels).map(tuple)
    maybe = st.none() | st.integers(0, 99)
    deferred = draw(maybe)
    weighted = deferred is not None or losses.entry(loss).facts["weights"] != "none"
    return Recipe(
        data=draw(WORDS),
        val_data=draw(WORDS),
        arch=draw(WORDS),
        imbalance=draw(st.sampled_from(["none", "exp:100", "step:1.5"])),
        imbalance_seed=draw(maybe),
        mean=draw(few),
        std=draw(few),
        augment=draw(st.sampled_from(SETTINGS["augment"].choices)),
        wvn=wvn,
        head_bias=not wvn and draw(st.booleans()),
        gamma=draw(st.none() | st.floats(0, 4)) if linear else None,
        loss=loss,
        drw_epoch=deferred,
        sampler=draw(st.sampled_from(["instance"] if weighted else list(samplers))),
        epochs=draw(st.integers(1, 10**6)),
        batch_size=batch_size,
        accumulate=draw(st.integers(1, batch_size)),
        lr=draw(st.floats(1e-12, 1e3)),
        milestones=tuple(sorted(draw(st.sets(st.integers(1, 10**4), max_size=4)))),
        lr_decay=draw(SHARES),
        weight_decay=draw(SHARES),
        amp=draw(st.sampled_from(SETTINGS["amp"].choices)),
        channels_last=draw(st.none() | st.booleans()),
        workers=draw(maybe),
        seed=draw(st.integers(0, 2**63 - 1)),
        tensorboard=draw(st.booleans()),
    )


@given(recipes())
def test_a_recipe_comes_back_from_toml(recipe: Recipe) -> None:
    assert Recipe(**options_in(to_toml(recipe), "a.toml")) == recipe


@pytest.mark.parametrize("name", list(presets))
def test_a_preset_comes_back_from_toml(name: str) -> None:
    assert Recipe(**options_in(to_toml(presets[name]), "a.toml")) == presets[name]


def test_the_print_form_names_every_option() -> None:
    lines = to_toml(Recipe()).splitlines()
    named = [line.removeprefix("# ").split()[0] for line in lines]
    assert named == [field.name for field in fields(Recipe)]
    assert "# gamma is not set" in lines
    assert tomllib.loads(to_toml(Recipe()))["milestones"] == [80, 150]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("lr = ", "a.toml is not valid TOML"),
        ("batch-size = 3", "'batch-size', which is not an option"),
        ("[train]\nlr = 0.1", "'train', which is not an option"),
        ("epochs = 1.5", "epochs must be int"),
        ("epochs = true", "epochs must be int"),
        ("lr = '0.1'", "lr must be float"),
        ("wvn = 1", "wvn must be bool"),
        ("milestones = 80", "milestones must be a list of int"),
        ("milestones = [80, '150']", "milestones must be a list of int"),
        ("arch = ['a']", "arch must be str"),
    ],
)
def test_a_config_that_says_something_else_is_refused(text: str, what: str) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        options_in(text, "a.toml")
    assert caught.value.fix


def test_a_misspelt_option_is_answered_with_the_right_one() -> None:
    with pytest.raises(BadInput) as caught:
        options_in("weight-decay = 0.1", "a.toml")
    assert caught.value.fix == "did you mean weight_decay?"


@given(st.text())
def test_any_text_is_options_or_an_error(text: str) -> None:
    with suppress(BadInput, UsageError):
        Recipe(**options_in(text, "a.toml"))


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"momentum": 1.5},
        {"gamma": 5.0}, {"milestones": (150, 80)}, {"milestones": (0, 80)},
        {"milestones": (80, 80)},
        {"amp": "fp8"}, {"augment": "flip"}, {"imbalance": "exp"}, {"loss": "mse"},
        {"sampler": "smote"}, {"schedule": "linear"}, {"mean": (0.5,)}, {"std": (0.5,)},
        {"mean": (0.5, 0.5), "std": (0.5, 0.5)}, {"mean": (0.5,), "std": (0.0,)},
        {"wvn": True, "head_bias": True}, {"loss": "ldam", "wvn": True},
        {"loss": "ldam", "gamma": 0.3}, {"accumulate": 3, "batch_size": 2}, {"seed": -1},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(**options)  # type: ignore[arg-type]
    assert caught.value.fix


def test_the_paper_s_values() -> None:
    # Section IV-A: ResNet-32, 180 epochs, rate 0.1, a tenth at 80 and 150, gamma 0.3 and 0.4.
    for name, gamma in (("cifar10-lt", 0.3), ("cifar100-lt", 0.4)):
        recipe = presets[name]
        assert (recipe.arch, recipe.epochs, recipe.lr) == ("rescale:resnet32", 180, 0.1)
        assert (recipe.milestones, recipe.lr_decay, recipe.gamma) == ((80, 150), 0.1, gamma)
        assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (128, 0.9, 5e-4)
    assert presets["tiny-imagenet-lt"].gamma == 0.1  # Section IV-C
    expected = {
        "cifar10-step-vgg16": ("rescale:vgg16", "step:10"),  # Section IV-B
        "tiny-imagenet-lt": ("torchvision:resnet18", "exp:100"),  # Section IV-C
        "inaturalist2018": ("torchvision:resnet50", "none"),  # Section IV-D
        "imagenet-lt": ("rescale:resnet10", "none"),
        "places-lt": ("torchvision:resnet152", "none"),
        "fashion-lt": ("rescale:resnet8", "exp:100"),
    }
    for name, values in expected.items():
        assert (presets[name].arch, presets[name].imbalance) == values


def test_the_paper_s_presets_are_wvn_without_bias() -> None:
    for name in presets:
        paper = name != "fashion-lt"
        assert (presets[name].wvn, presets[name].head_bias) == (paper, not paper), name


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        presets["cifar-lt"]
    assert "cifar10" in caught.value.fix


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_every_field_is_an_option_that_sets_it(setting: Setting) -> None:
    given = {name: getattr(Recipe(), name) for name in SETTINGS}[setting.name]
    if given is None:
        typed: Any = None if setting.item is bool else "none"
    elif setting.listed:
        typed = ",".join(map(str, given)) or "none"
    else:
        typed = given if setting.item is bool else str(given)
    expected = {} if typed is None else {setting.name: given}
    assert RecipeOptions(**{setting.name: typed}).given() == expected


@pytest.mark.parametrize(
    ("option", "text"),
    [("epochs", "1.5"), ("lr", "fast"), ("milestones", "80,x"), ("mean", ""), ("gamma", "off")],
)
def test_text_where_a_number_is_needed_is_refused(option: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} needs ") as caught:
        RecipeOptions(**{option: text}).given()
    assert f"--{option} " in caught.value.fix


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda setting: setting.name)
def test_numbers_outside_their_range_are_refused(setting: Setting) -> None:
    for bound, beyond in ((setting.low, -1), (setting.high, 1)):
        if setting.item in (int, float) and not setting.listed and math.isfinite(bound):
            bad = bound + beyond * max(1, abs(bound))
            with pytest.raises(UsageError, match=f"{setting.option} must be "):
                replace(Recipe(), **{setting.name: setting.item(bad)})
