"""Which images are trained on, in which order, at which rate: all pure functions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rescale_cli.errors import BadInput, UsageError
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.samplers import Batches, Imbalance, epoch_order, samplers
from rescale_cli.training.schedules import learning_rate

CIFAR_10, CIFAR_100 = [5000] * 10, [500] * 100
SIZES = st.lists(st.integers(0, 40), min_size=2, max_size=8).filter(any)


def labels_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(labels)


# ---------------------------------------------------------------- the long tail


@pytest.mark.parametrize(
    ("available", "ratio", "total"),
    [
        (CIFAR_10, 200, 11_203), (CIFAR_10, 100, 12_406), (CIFAR_10, 50, 13_996),
        (CIFAR_10, 20, 17_023), (CIFAR_10, 10, 20_431), (CIFAR_10, 1, 50_000),
        (CIFAR_100, 200, 9_502), (CIFAR_100, 100, 10_847), (CIFAR_100, 50, 12_608),
        (CIFAR_100, 20, 15_907), (CIFAR_100, 10, 19_573), (CIFAR_100, 1, 50_000),
        ([6000] * 10, 100, 14_886),
    ],
)  # fmt: skip
def test_the_published_totals(available: list[int], ratio: int, total: int) -> None:
    assert Imbalance("exp", ratio).sizes(available).sum() == total


def test_step_halves_the_classes() -> None:
    assert Imbalance.parse("step:10").sizes(CIFAR_10).tolist() == [5000] * 5 + [500] * 5
    assert Imbalance.parse("step:10").sizes([100] * 5).tolist() == [100] * 2 + [10] * 3


def test_a_ratio_that_float_division_just_misses_keeps_its_image() -> None:
    assert 49 * (1 / 49) < 1
    for kind in ("exp", "step"):
        assert Imbalance(kind, 49).sizes([49, 49]).tolist() == [49, 1]


@given(
    sizes=st.lists(st.integers(1, 900), min_size=2, max_size=30),
    kind=st.sampled_from(["exp", "step"]),
    ratio=st.floats(1, 300),
    seed=st.none() | st.integers(0, 9),
)
def test_each_class_keeps_what_it_has_at_the_ratio_asked_for(
    sizes: list[int], kind: str, ratio: float, seed: int | None
) -> None:
    imbalance, labels = Imbalance(kind, ratio), labels_of(sizes)
    try:
        wanted = imbalance.sizes(sizes)
    except BadInput:
        assume(False)
    kept = imbalance.choose(labels, len(sizes), seed)
    assert (np.diff(kept) > 0).all()
    assert np.bincount(labels[kept], minlength=len(sizes)).tolist() == wanted.tolist()
    assert (wanted <= sizes).all()
    assert (np.diff(wanted) <= 0).all()
    # Rounding down moves both ends by less than one image.
    assert wanted[0] / (wanted[-1] + 1) <= ratio * 1.001
    if seed is None:
        firsts = [np.flatnonzero(labels == c)[:n] for c, n in enumerate(wanted)]
        assert kept.tolist() == np.sort(np.concatenate(firsts)).tolist()


def test_a_seed_draws_the_same_images_again_and_another_one_others() -> None:
    labels = labels_of([300] * 4)
    first, again, other = (Imbalance("exp", 10).choose(labels, 4, seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


def test_none_keeps_everything() -> None:
    assert Imbalance.parse("none").choose(labels_of([3, 0, 1]), 3).tolist() == [0, 1, 2, 3]


def test_a_class_that_would_vanish_is_named() -> None:
    with pytest.raises(BadInput, match="exp:100 leaves class 3 without images"):
        Imbalance("exp", 100).sizes([60] * 4)


@given(st.sampled_from(["exp", "step"]), st.floats(1, 1e6).map(lambda x: round(x, 6)))
def test_an_imbalance_reads_what_it_prints(kind: str, ratio: float) -> None:
    made = Imbalance(kind, ratio)
    assert Imbalance.parse(f"{kind}:{ratio:.6f}") == made
    assert Imbalance.parse("none") == Imbalance()


@pytest.mark.parametrize("text", ["", "exp", "exp:", "exp:0.5", "exp:nan", "none:2", "long:10"])
def test_what_is_no_imbalance_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--imbalance is invalid"):
        Imbalance.parse(text)


# ---------------------------------------------------------------- samplers


@pytest.mark.parametrize("name", list(samplers))
@given(sizes=SIZES, seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_an_order_follows_from_seed_and_epoch(
    name: str, sizes: list[int], seed: int, epoch: int
) -> None:
    labels = labels_of(sizes)
    order = epoch_order(name, labels, seed, epoch)
    assert order.dtype == np.int64
    assert 0 <= order.min() <= order.max() < len(labels)
    assert order.tolist() == epoch_order(name, labels, seed, epoch).tolist()
    if len(labels) > 30 and name != "under":
        assert order.tolist() != epoch_order(name, labels, seed, epoch + 1).tolist()
        assert order.tolist() != epoch_order(name, labels, seed + 1, epoch).tolist()


@given(sizes=SIZES)
def test_instance_shows_every_image_once(sizes: list[int]) -> None:
    order = epoch_order("instance", labels_of(sizes), 0, 0)
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@given(sizes=SIZES)
def test_under_shows_as_many_of_each_class_and_none_twice(sizes: list[int]) -> None:
    labels = labels_of(sizes)
    order = epoch_order("under", labels, 0, 0)
    assert len(set(order.tolist())) == len(order)
    rarest = min(n for n in sizes if n)
    assert np.bincount(labels[order], minlength=len(sizes)).tolist() == [
        rarest if n else 0 for n in sizes
    ]


@pytest.mark.parametrize(("name", "power"), [("over", 0.0), ("sqrt", 0.5)])
def test_classes_come_as_often_as_the_formula_says(name: str, power: float) -> None:
    sizes = [9000, 900, 90, 9, 0, 1]
    labels = labels_of(sizes)
    shown = labels[epoch_order(name, labels, seed=0, epoch=0)]
    assert len(shown) == 10_000
    weights = np.array([n**power if n else 0.0 for n in sizes])
    expected = 10_000 * weights / weights.sum()
    found = np.bincount(shown, minlength=6)
    assert found[4] == 0
    # Five standard deviations of a binomial count.
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected) + 1).all()


def test_within_a_class_every_image_is_as_likely() -> None:
    labels = labels_of([500, 5])
    order = epoch_order("over", labels, 0, 0)
    drawn = np.concatenate([epoch_order("over", labels, 0, epoch) for epoch in range(40)])
    counts = np.bincount(drawn[labels[drawn] == 1], minlength=len(labels))[labels == 1]
    assert len(order) == 505
    assert (np.abs(counts - counts.mean()) <= 5 * math.sqrt(counts.mean())).all()


# ---------------------------------------------------------------- steps and ranks


@given(total=st.integers(1, 400), size=st.integers(1, 60), world=st.integers(1, 8))
def test_ranks_share_every_batch_and_lose_nothing(total: int, size: int, world: int) -> None:
    assume(min(total, size // 2 or 1) >= world)
    alone, many = Batches(total, size), Batches(total, size, world)
    order = np.arange(total) ** 2
    assert alone.steps == many.steps
    assert np.concatenate([order[alone.share(s)] for s in range(alone.steps)]).tolist() == [*order]
    for step in range(many.steps):
        whole = order[alone.share(step)]
        parts = [order[many.share(step, rank)] for rank in range(world)]
        assert sorted(np.concatenate(parts).tolist()) == whole.tolist()
        lengths = [len(part) for part in parts]
        assert min(lengths) >= 1
        assert max(lengths) - min(lengths) <= 1
        assert len(whole) == size or step == many.steps - 1
        assert size / 2 <= len(whole) <= 1.5 * size or many.steps == 1
        # Means of the ranks, weighted, have the global mean for their mean.
        weighted = [many.weight(step, r) * part.mean() for r, part in enumerate(parts)]
        assert np.mean(weighted) == pytest.approx(whole.mean())


def test_the_paper_s_epoch_has_the_plain_loader_s_steps() -> None:
    assert Batches(total=12_406, size=128).steps == math.ceil(12_406 / 128)


def test_more_ranks_than_images_are_refused() -> None:
    with pytest.raises(UsageError, match="an image for every rank"):
        Batches(total=100, size=4, world=3)


# ---------------------------------------------------------------- learning rates


@given(
    lr=st.floats(1e-3, 1),
    decay=st.floats(0.05, 1),
    milestones=st.sets(st.integers(1, 11), max_size=3),
    steps=st.integers(1, 5),
)
def test_milestones_are_pytorch_s(
    lr: float, decay: float, milestones: set[int], steps: int
) -> None:
    ascending = tuple(sorted(milestones))
    recipe = Recipe(lr=lr, lr_decay=decay, milestones=ascending, epochs=12)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(ascending), decay)
    for epoch in range(12):
        for step in range(steps):
            rate = learning_rate(recipe, epoch * steps + step, steps)
            assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_cosine_is_pytorch_s_at_every_step() -> None:
    recipe = Recipe(lr=0.3, schedule="cosine", epochs=7)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7 * 5)
    for at in range(7 * 5):
        assert learning_rate(recipe, at, 5) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_the_warm_up_climbs_in_a_line_to_the_whole_rate(schedule: str) -> None:
    recipe = Recipe(lr=0.8, schedule=schedule, warmup_epochs=2, epochs=9, milestones=(5,))
    climb = [learning_rate(recipe, at, 4) for at in range(9)]
    assert climb == pytest.approx([0.1 * k for k in range(1, 9)] + [0.8])


def test_the_paper_s_rates() -> None:
    recipe = replace(Recipe(), epochs=180)
    epochs = (0, 79, 80, 149, 150, 179)
    rates = [learning_rate(recipe, epoch * 97 + 96, 97) for epoch in epochs]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
