"""A live module gets the bits that a checkpoint gets, on the CPU and on CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COUNTS, GAMMA, C, ConvNet, D, net
from torch import nn

from rescale_cli import api, rescale_
from rescale_cli.errors import BadCounts, BadHead, NoClassifier, UnknownClassOrder

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def by_file(module: nn.Module, folder: Path, **more: Any) -> dict[str, torch.Tensor]:
    """The state after the way through a checkpoint file."""
    source, output = folder / "in.pth", folder / "out.pth"
    torch.save(module.state_dict(), source)
    api.apply(source, COUNTS, GAMMA, output=output, force=True, **more)
    return torch.load(output, weights_only=True)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


def assert_same(module: nn.Module, wanted: dict[str, torch.Tensor]) -> None:
    state = module.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in state.items():
        assert tensor.dtype == wanted[name].dtype
        assert torch.equal(bits(tensor), bits(wanted[name])), name


OPTIONS: list[dict[str, Any]] = [
    {}, {"bias": "scale"}, {"normalize": True}, {"method": "tau-norm"}, {"method": "logit-adjust"},
    {"temperature": 1.3},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_model_equals_its_checkpoint_bit_for_bit(
    dtype: torch.dtype, options: dict[str, Any], tmp_path: Path
) -> None:
    model = net(7).to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = by_file(model, tmp_path, **options)
    assert rescale_(model, COUNTS, GAMMA, **options) is model
    assert_same(model, wanted)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, wanted[name])}
    assert changed
    assert changed <= {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_1x1_convolution_equals_its_checkpoint(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = ConvNet().to(dtype)
    wanted = by_file(model, tmp_path)
    assert_same(rescale_(model, COUNTS, GAMMA), wanted)
    assert model.fc.weight.shape == (C, D, 1, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_layer_alone_gets_what_the_model_gets(dtype: torch.dtype) -> None:
    one, other = net(2).to(dtype), net(2).to(dtype)
    rescale_(one, COUNTS, GAMMA)
    rescale_(other.fc, COUNTS, GAMMA)
    assert torch.equal(one.fc.weight, other.fc.weight)
    assert not torch.equal(one.fc.weight, net(2).to(dtype).fc.weight)
    layer = nn.Conv2d(D, C, 1, dtype=dtype)
    layer.weight.data = net(2).fc.weight.detach().to(dtype)[:, :, None, None]
    assert torch.equal(rescale_(layer, COUNTS, GAMMA).weight[:, :, 0, 0], one.fc.weight)


def test_resnet18_equals_its_checkpoint(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=C)
    wanted = by_file(model, tmp_path)
    assert_same(rescale_(model, COUNTS, GAMMA), wanted)


def test_a_weight_norm_is_rescaled_by_its_lengths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = net(0, nn.utils.parametrizations.weight_norm(nn.Linear(D, C), dim=0))
    before = model.fc.weight.detach().clone()
    wanted = by_file(model, tmp_path)
    assert_same(rescale_(model, COUNTS, GAMMA), wanted)
    factors = torch.tensor([(max(COUNTS) / n) ** GAMMA for n in COUNTS])
    torch.testing.assert_close(model.fc.weight.detach(), before * factors[:, None])


def test_gamma_zero_changes_no_bit() -> None:
    layer = nn.Linear(D, C)
    layer.weight.data[0, 0] = -0.0
    before = bits(layer.weight).clone()
    rescale_(layer, COUNTS, 0.0)
    assert torch.equal(bits(layer.weight), before)


def test_gradients_optimizer_and_identity_of_the_parameters_survive() -> None:
    model = net(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight, place = model.fc.weight, model.fc.weight.data_ptr()
    rescale_(model, COUNTS, GAMMA)
    assert model.fc.weight is weight
    assert model.fc.weight.data_ptr() == place
    assert weight.requires_grad
    assert weight.is_leaf
    assert any(p is weight for group in optimizer.param_groups for p in group["params"])


def test_counts_by_name_need_the_order_of_the_rows() -> None:
    named = {f"kind {i}": n for i, n in reversed(list(enumerate(COUNTS)))}
    with pytest.raises(UnknownClassOrder):
        rescale_(nn.Linear(D, C), named, GAMMA)
    one, other = net(3).fc, net(3).fc
    rescale_(one, named, GAMMA, classes=[f"kind {i}" for i in range(C)])
    rescale_(other, COUNTS, GAMMA)
    assert torch.equal(one.weight, other.weight)


def test_the_head_can_be_named() -> None:
    both = nn.ModuleDict({"left": nn.Linear(D, C), "right": nn.Linear(D, C)})
    left = both["left"].weight.detach().clone()
    rescale_(both, COUNTS, GAMMA, head="right")
    assert torch.equal(both["left"].weight, left)


def test_wrong_counts_are_an_error_and_change_nothing() -> None:
    layer = nn.Linear(D, C)
    before = layer.weight.detach().clone()
    with pytest.raises(BadCounts):
        rescale_(layer, COUNTS[:-1], GAMMA)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("kernel", [3, 2, (1, 3)])
def test_a_large_kernel_is_no_head(kernel: Any) -> None:
    with pytest.raises(NoClassifier, match="kernel"):
        rescale_(nn.Conv2d(D, C, kernel), COUNTS, GAMMA)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 60000.0])
def test_what_does_not_fit_is_refused_before_anything_changes(value: float) -> None:
    model = net(4).half()
    model.fc.weight.data[2, 3] = value
    before = bits(model.fc.weight).clone()
    with pytest.raises(BadHead) as refused:
        rescale_(model, COUNTS, GAMMA)
    assert refused.value.fix
    assert torch.equal(bits(model.fc.weight), before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_gets_the_bits_of_the_cpu(dtype: torch.dtype, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is available")
    for options in OPTIONS:
        model = net(7).to(dtype)
        wanted = by_file(model, tmp_path, **options)
        model.cuda()
        rescale_(model, COUNTS, GAMMA, **options)
        assert model.fc.weight.is_cuda
        assert_same(model, wanted)
