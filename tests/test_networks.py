"""Our networks: the published numbers of parameters, the shapes, the bundled example's keys."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rescale_cli.errors import UsageError
from rescale_cli.training.networks import networks

EXAMPLE = Path(__file__).parents[1] / "examples" / "fashion_lt"

#: Millions: He et al. 2016, table 6.
PUBLISHED = {
    "resnet20": 0.27,
    "resnet32": 0.46,
    "resnet44": 0.66,
    "resnet56": 0.85,
    "resnet110": 1.7,
}

every = pytest.mark.parametrize("name", list(networks))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@every
def test_a_network_has_the_number_of_parameters_it_states(name: str) -> None:
    assert count(networks[name](10, 3, True)) == networks.entry(name).facts["parameters"]


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_the_cifar_networks_are_as_large_as_published(name: str, millions: float) -> None:
    stated = networks.entry(name).facts["parameters"]
    assert isinstance(stated, int)
    digits = 1 if millions > 1 else 2
    assert round(stated / 1e6, digits) == millions


@every
def test_a_network_takes_any_classes_channels_and_a_head_without_bias(name: str) -> None:
    network = networks[name](7, 1, False).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(2, 1, 32, 32))
    assert logits.shape == (2, 7)
    heads = [key for key, value in network.state_dict().items() if value.shape[:1] == (7,)]
    assert len(heads) == 1
    # Without a bias a head is a product alone.
    weight = network.state_dict()[heads[0]]
    assert weight.shape == (7, 512 if name in ("vgg16", "resnet10") else 64)


@every
def test_a_network_trains(name: str) -> None:
    torch.manual_seed(0)
    network = networks[name](3, 3, True).train()
    torch.nn.functional.cross_entropy(
        network(torch.randn(2, 3, 32, 32)), torch.tensor([0, 2])
    ).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_keys_and_logits_are_those_of_the_bundled_example() -> None:
    spec = importlib.util.spec_from_file_location("fashion_lt_train", EXAMPLE / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    state = safetensors.torch.load_file(EXAMPLE / "model.safetensors")
    theirs, ours = module.ResNet8().eval(), networks["resnet8"](10, 1, True).eval()
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    theirs.load_state_dict(state)
    ours.load_state_dict(state)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_an_unknown_network_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        networks["resnet33"]
    assert "resnet32" in caught.value.saw
    assert caught.value.fix
