"""Our networks: the published numbers of parameters, the shapes, the bundled example's keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from rescale_cli.errors import UsageError
from rescale_cli.models.networks import networks

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_lt"

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


def test_the_bundled_example_is_one_of_them() -> None:
    network = networks["resnet8"](10, 1, True).eval()
    network.load_state_dict(safetensors.torch.load_file(EXAMPLE / "model.safetensors"))
    with np.load(EXAMPLE / "val.npz") as file, np.load(EXAMPLE / "val_logits.npz") as kept:
        images, logits = file["images"][:16], kept["logits"][:16]
    pixels = (torch.from_numpy(images)[:, None] / 255 - 0.2983) / 0.3551
    with torch.inference_mode():
        torch.testing.assert_close(network(pixels), torch.from_numpy(logits), rtol=1e-4, atol=1e-4)


def test_an_unknown_network_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        networks["resnet33"]
    assert "resnet32" in caught.value.saw
    assert caught.value.fix
