"""Batched augmentation: torchvision's crop and flip, exactly and in distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional as images_of
from torchvision.transforms import v2

from rescale_cli.errors import BadInput
from rescale_cli.training.feed import ImageStore

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
N, H, W = 7, 12, 9


def pictures(channels: int = 3, n: int = N) -> np.ndarray:
    made = np.random.default_rng(0).integers(0, 256, (n, H, W, channels), np.uint8)
    return made if channels > 1 else made[..., 0]


def by_torchvision(image: np.ndarray, top: int, left: int, mirror: int, pad: int) -> torch.Tensor:
    c = 1 if image.ndim == 2 else 3
    bytes_ = torch.from_numpy(image.reshape(H, W, c)).permute(2, 0, 1)
    cropped = images_of.crop(images_of.pad(bytes_, [pad] * 4), top, left, H, W)
    flipped = images_of.hflip(cropped) if mirror else cropped
    values = v2.functional.to_dtype(flipped, torch.float32, scale=True)
    return images_of.normalize(values, list(MEAN[:c]), list(STD[:c]))


@given(data=st.data(), channels=st.sampled_from([1, 3]), pad=st.integers(0, 4))
def test_a_batch_is_torchvision_s_for_the_same_offsets(
    data: st.DataObject, channels: int, pad: int
) -> None:
    images = pictures(channels)
    store = ImageStore.of(images, MEAN[:channels], STD[:channels], pad=pad)
    offset, which = st.integers(0, 2 * pad), st.integers(0, N - 1)
    chosen = st.tuples(which, offset, offset, st.integers(0, 1 if pad else 0))
    moves = data.draw(st.lists(chosen, min_size=1, max_size=6))
    order, top, left, mirror = torch.tensor(moves).T
    batch = store.batch(store.place(order, top, left, mirror))
    theirs = torch.stack([by_torchvision(images[i], t, x, m, pad) for i, t, x, m in moves])
    torch.testing.assert_close(batch, theirs, rtol=1e-5, atol=2e-6)


def test_whole_images_are_only_normalised() -> None:
    images = pictures()
    store = ImageStore.of(images, MEAN, STD)
    batch = store.batch(store.whole(torch.arange(N)))
    theirs = torch.stack([by_torchvision(image, 4, 4, 0, 4) for image in images])
    torch.testing.assert_close(batch, theirs, rtol=1e-5, atol=2e-6)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_offsets_and_flips_are_drawn_as_torchvision_draws_them() -> None:
    # One image whose padded pixels are all different: a place in `draw` is an offset and a flip.
    store = ImageStore.of(pictures(n=1), MEAN, STD)
    places = store.draw(torch.zeros(20_000, dtype=torch.int64), torch.Generator().manual_seed(0))
    grid = torch.tensor([[t, x, m] for t in range(9) for x in range(9) for m in (0, 1)])
    possible = store.place(torch.zeros(len(grid), dtype=torch.int64), *grid.T)
    assert len(set(possible.tolist())) == 9 * 9 * 2
    found = (places[:, None] == possible).sum(dim=0)
    assert found.sum() == 20_000
    expected = 20_000 / len(grid)
    # chi-square with 161 degrees of freedom: mean 161, standard deviation 18.
    chi_square = ((found - expected) ** 2 / expected).sum()
    assert 161 - 5 * 18 < chi_square < 161 + 5 * 18


def test_a_generator_s_state_decides_and_a_share_is_a_part_of_the_whole() -> None:
    store = ImageStore.of(pictures(), MEAN, STD)
    order = torch.arange(N).repeat(3)
    first, again, other = (
        store.draw(order, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert first.equal(again)
    assert not first.equal(other)
    whole = store.batch(first)
    for rank in (0, 1):
        assert store.batch(first[rank::2]).equal(whole[rank::2])


def test_a_store_without_padding_keeps_one_copy() -> None:
    plain, padded = (ImageStore.of(pictures(), MEAN, STD, pad=pad) for pad in (0, 4))
    assert plain.runs.untyped_storage().nbytes() == N * H * W * 3
    assert padded.runs.untyped_storage().nbytes() == 2 * N * (H + 8) * (W + 8) * 3


@pytest.mark.parametrize(
    ("images", "mean", "std"),
    [
        (pictures().astype(np.float32), MEAN, STD),
        (pictures(), MEAN[:1], STD[:1]),
        (pictures(), MEAN, (0.2, 0.0, 0.2)),
        (pictures()[0, 0], MEAN, STD),
    ],
)
def test_what_is_no_set_of_byte_images_is_refused(
    images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    with pytest.raises(BadInput, match="must be uint8"):
        ImageStore.of(images, mean, std)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_the_same_batch() -> None:
    here, there = (ImageStore.of(pictures(), MEAN, STD, device=d) for d in ("cpu", "cuda"))
    order, generator = torch.arange(N), torch.Generator().manual_seed(0)
    places = here.draw(order, generator)
    assert there.draw(order.cuda(), generator.manual_seed(0)).cpu().equal(places)
    torch.testing.assert_close(there.batch(places.cuda()).cpu(), here.batch(places))
