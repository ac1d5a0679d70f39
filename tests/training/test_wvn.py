"""Weight vector normalization: Algorithm 1 of the paper, whatever drives the optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from rescale_cli.errors import BadHead
from rescale_cli.models.layers import CosineHead, give_cosine_head
from rescale_cli.training import wvn

C, D = 5, 8


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, C, bias=False))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(12, D, generator=generator), torch.randint(C, (12,), generator=generator))
        for _ in range(steps)
    ]


def assert_unit(weight: torch.Tensor, within: float = 1e-6) -> None:
    lengths = weight.detach().double().flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=within)


def test_training_is_algorithm_1_step_by_step() -> None:
    model, plain = network(), network()
    optimizer = sgd(model)
    wvn.WVN(model[2]).attach(optimizer)
    with torch.no_grad():
        plain[2].weight.copy_(functional.normalize(plain[2].weight))
    reference = sgd(plain)
    for images, labels in batches(20):
        for net, opt in ((model, optimizer), (plain, reference)):
            opt.zero_grad()
            functional.cross_entropy(net(images), labels).backward()
            opt.step()  # lines 6 and 7
        with torch.no_grad():
            plain[2].weight.copy_(functional.normalize(plain[2].weight))  # line 8
        assert_unit(model[2].weight)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "within"),
    [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 0.01), (torch.float16, 1e-3)],
)
@given(rows=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_rows_are_unit_and_point_where_they_did(
    dtype: torch.dtype, within: float, rows: list[float], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(len(rows), 300, generator=generator, dtype=torch.float64)
    lengths = torch.tensor(rows, dtype=torch.float64)[:, None]
    weight = (functional.normalize(wide) * lengths).to(dtype)
    before = functional.normalize(weight.double())
    assert wvn.project_rows_(weight) is weight
    assert weight.dtype == dtype
    assert_unit(weight, within)
    torch.testing.assert_close(weight.double(), before, rtol=within * 8, atol=1e-4)
    again = weight.clone()
    torch.testing.assert_close(wvn.project_rows_(again), weight, rtol=within * 2, atol=0)


def test_a_long_half_precision_row_does_not_overflow_on_the_way() -> None:
    weight = torch.full((2, 512), 6e4, dtype=torch.float16)
    assert_unit(wvn.project_rows_(weight), 1e-3)


def test_a_convolution_is_projected_over_all_its_inputs() -> None:
    head = nn.Conv2d(D, C, 1, bias=False)
    wvn.WVN(head).attach(sgd(head))
    assert_unit(head.weight)


def test_the_rows_are_unit_from_the_start_and_the_handle_ends_it() -> None:
    model = network()
    optimizer = sgd(model)
    handle = wvn.WVN(model[2]).attach(optimizer)
    assert_unit(model[2].weight)
    handle.remove()
    images, labels = batches(1)[0]
    functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    assert not torch.allclose(model[2].weight.norm(dim=1), torch.ones(C), atol=1e-5)


def test_a_step_that_the_scaler_skips_leaves_every_bit() -> None:
    model = network()
    optimizer = sgd(model)
    wvn.WVN(model[2]).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for images, labels, overflows in [(*b, i == 1) for i, b in enumerate(batches(3))]:
        optimizer.zero_grad()
        scaler.scale(functional.cross_entropy(model(images), labels)).backward()
        if overflows:
            model[0].weight.grad[0, 0] = float("inf")
        before = copy.deepcopy(model.state_dict())
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert same == overflows
        assert_unit(model[2].weight)


def test_accumulated_gradients_are_one_step() -> None:
    whole, parts = network(), network()
    (images, labels) = batches(1)[0]
    for model, chunks in ((whole, 1), (parts, 3)):
        optimizer = sgd(model)
        wvn.WVN(model[2]).attach(optimizer)
        for x, y in zip(images.chunk(chunks), labels.chunk(chunks), strict=True):
            (functional.cross_entropy(model(x), y) / chunks).backward()
        optimizer.step()
    torch.testing.assert_close(whole[2].weight, parts[2].weight)
    assert_unit(parts[2].weight)


def test_a_resumed_run_ends_in_the_same_bits() -> None:
    def run(model: nn.Sequential, optimizer: torch.optim.Optimizer, part: slice) -> None:
        for images, labels in batches(10)[part]:
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    unbroken, first, second = network(), network(), network(seed=7)
    optimizers = [sgd(m) for m in (unbroken, first, second)]
    for model, optimizer in zip((unbroken, first, second), optimizers, strict=True):
        wvn.WVN(model[2]).attach(optimizer)
    run(unbroken, optimizers[0], slice(None))
    run(first, optimizers[1], slice(4))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    optimizers[2].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    run(second, optimizers[2], slice(4, None))
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in unbroken.state_dict().items())


def test_an_average_of_unit_rows_is_short_until_it_is_projected() -> None:
    model = network()
    optimizer = sgd(model, lr=1.0)
    wvn.WVN(model[2]).attach(optimizer)
    average = torch.optim.swa_utils.AveragedModel(model)
    for images, labels in batches(8):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        average.update_parameters(model)
    weight = average.module[2].weight.detach().clone()
    assert weight.norm(dim=1).max() < 0.9999
    assert_unit(wvn.project_rows_(weight))


@pytest.mark.parametrize(
    ("model", "head", "fix"),
    [
        (nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, C)), None, "model[2].bias = None"),
        (nn.Sequential(nn.Linear(D, D), nn.Linear(D, C)), "1", f"nn.Linear({D}, {C}, bias=False)"),
        (nn.Linear(D, C), None, f"nn.Linear({D}, {C}, bias=False)"),
        (nn.Conv2d(D, C, 1), None, f"nn.Conv2d({D}, {C}, 1, bias=False)"),
    ],
)
def test_a_head_with_a_bias_is_refused_with_the_line_that_removes_it(
    model: nn.Module, head: str | None, fix: str
) -> None:
    with pytest.raises(BadHead, match="without bias") as caught:
        wvn.WVN(model, head)
    assert fix in caught.value.fix
    assert "--" not in str(caught.value)


def test_a_bias_that_is_removed_in_memory_is_gone() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, C))
    model[2].bias = None
    optimizer = sgd(model)
    with wvn.WVN(model).attach(optimizer):
        assert_unit(model[2].weight)
    assert "2.bias" not in model.state_dict()


def test_a_head_that_is_not_trained_is_refused() -> None:
    with pytest.raises(BadHead, match="does not update the weight"):
        wvn.WVN(nn.Linear(D, C, bias=False)).attach(sgd(network()))


@pytest.mark.parametrize(("value", "word"), [(0.0, "all zeros"), (float("nan"), "not finite")])
def test_a_row_without_direction_is_named(value: float, word: str) -> None:
    head = nn.Linear(D, C, bias=False)
    with torch.no_grad():
        head.weight[3] = value
    with pytest.raises(BadHead, match=f"row 3 of the head is {word}"):
        wvn.WVN(head).attach(sgd(head))


def test_a_row_of_zeros_does_not_become_nan() -> None:
    weight = wvn.project_rows_(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert weight[0].tolist() == [0.0, 0.0]
    assert_unit(weight[1:])


def test_a_cosine_head_answers_with_scaled_cosines_whatever_the_lengths() -> None:
    model = network()
    head = give_cosine_head(model, "2")
    assert model[2] is head
    assert isinstance(head, CosineHead)
    features = torch.randn(4, D)
    cosines = functional.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(features), 30 * cosines)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([1.0, 2, 3, 4, 5])[:, None])
    torch.testing.assert_close(head(3 * features), 30 * cosines)
