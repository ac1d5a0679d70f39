"""Nothing in memory is re-scaled twice, tied, or without a way back."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COUNTS, GAMMA, C, D, net
from torch import nn

import rescale_cli as rc
from rescale_cli.library import head_job


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A process of its own for each test, as far as re-scaled heads are remembered."""
    head_job.MADE.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rc.RescaleWarning)
        yield
    head_job.MADE.clear()


def array(value: Any) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value


def bits(module: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in module.state_dict().items()
    }


WAYS = [
    lambda model: model,
    copy.deepcopy,
    lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301 - our own
    nn.DataParallel,
]


@pytest.mark.parametrize("way", WAYS, ids=["itself", "deepcopy", "pickle", "wrapped"])
def test_a_second_call_is_refused_and_the_first_can_be_undone(way: Any) -> None:
    model = net(1)
    before, keys = bits(model), list(model.state_dict())
    rc.rescale_(model, COUNTS, GAMMA, bias="scale")
    head_job.MADE.clear()  # the mark alone remembers
    again = way(model)
    after = bits(again)
    with pytest.raises(rc.AlreadyRescaled, match="compose=True"):
        rc.rescale_(again, COUNTS, GAMMA)
    assert bits(again) == after
    inner = getattr(again, "module", again)
    assert list(inner.state_dict()) == keys
    assert rc.unscale_(again) is again
    assert bits(inner) == before
    with pytest.raises(rc.UsageError, match="nothing to undo"):
        rc.unscale_(again)


def test_compose_allows_a_second_call_and_each_is_undone_in_turn() -> None:
    model = net(2)
    states = [bits(model)]
    for gamma in (0.2, 0.3):
        rc.rescale_(model, COUNTS, gamma, compose=True)
        states.append(bits(model))
    for state in states[1::-1]:
        rc.unscale_(model)
        assert bits(model) == state


def test_a_head_that_was_trained_or_loaded_since_is_a_new_head() -> None:
    model = net(3)
    original = copy.deepcopy(model.state_dict())
    rc.rescale_(model, COUNTS, GAMMA)
    with torch.no_grad():
        model.fc.weight.add_(0.01)
    with pytest.raises(rc.OtherModel):
        rc.unscale_(model)
    rc.rescale_(model, COUNTS, GAMMA)
    model.load_state_dict(original)
    rc.rescale_(model, COUNTS, GAMMA)


def test_a_tied_head_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(C, D)
            self.fc = nn.Linear(D, C)
            self.fc.weight = self.table.weight

    model = Tied()
    before = bits(model)
    with pytest.raises(rc.BadHead, match=r"shares its values with table\.weight"):
        rc.rescale_(model, COUNTS, GAMMA, head="fc", only=True)
    with pytest.raises(rc.BadHead, match=r"shares its values with table\.weight"):
        rc.rescale(model.state_dict(), COUNTS, GAMMA, head="fc", only=True)
    assert bits(model) == before


@pytest.mark.parametrize("numpy", [False, True])
def test_a_state_dict_gives_a_new_one_with_the_bits_of_the_module(numpy: bool) -> None:
    model = net(4)
    state: Any = model.state_dict()
    if numpy:
        state = {name: tensor.numpy() for name, tensor in state.items()}
    before = {name: array(value).copy() for name, value in state.items()}
    new = rc.rescale(state, COUNTS, GAMMA, head="fc")
    assert type(new) is type(state)
    assert list(new) == list(state)
    assert all(np.array_equal(array(state[name]), value) for name, value in before.items())
    assert [name for name in state if new[name] is not state[name]] == ["fc.weight", "fc.bias"]
    if not numpy:
        assert isinstance(new, OrderedDict)
        assert new._metadata == state._metadata  # type: ignore[attr-defined]
    with pytest.raises(rc.AlreadyRescaled):
        rc.rescale(new, COUNTS, GAMMA)
    head_job.MADE.clear()
    rc.rescale_(model, COUNTS, GAMMA)
    for name, tensor in model.state_dict().items():
        assert np.array_equal(array(new[name]), tensor.numpy())


def test_a_checkpoint_with_a_state_dict_inside_is_an_error_that_names_it() -> None:
    with pytest.raises(rc.UsageError, match="state_dict") as refused:
        rc.rescale({"state_dict": net(0).state_dict(), "epoch": 3}, COUNTS, GAMMA)
    assert refused.value.fix == "pass state_dict['state_dict']"


ALL: list[dict[str, Any]] = [
    {"max_factor": 1.5}, {"exclude_class": "1"}, {"target_prior": list(range(1, C + 1))},
    {"normalize": True, "bias": "drop"}, {"method": "tau-norm"}, {"temperature": 1.7},
]  # fmt: skip


@pytest.mark.parametrize("options", ALL, ids=str)
def test_what_apply_decides_is_decided_in_memory(options: dict[str, Any], tmp_path: Path) -> None:
    model = net(5)
    torch.save(model.state_dict(), tmp_path / "in.pth")
    rc.apply(tmp_path / "in.pth", COUNTS, GAMMA, output=tmp_path / "out.pth", **options)
    rc.rescale_(model, COUNTS, GAMMA, **options)
    wanted = torch.load(tmp_path / "out.pth", weights_only=True)
    assert all(torch.equal(tensor, wanted[n]) for n, tensor in model.state_dict().items())


def test_the_head_can_be_the_layer_or_one_name() -> None:
    one, other, third = net(6), net(6), net(6)
    rc.rescale_(one, COUNTS, GAMMA, head=one.fc)
    head_job.MADE.clear()
    rc.rescale_(other, COUNTS, GAMMA, head="fc")
    head_job.MADE.clear()
    rc.rescale_(third.fc, COUNTS, GAMMA)
    assert bits(one) == bits(other) == bits(third)
    with pytest.raises(rc.UsageError, match="not a layer"):
        rc.rescale_(one, COUNTS, GAMMA, head=nn.Linear(2, 2))


def test_it_warns_as_apply_does() -> None:
    model = net(7)
    with pytest.warns(rc.RescaleWarning, match="largest factor is") as seen:
        rc.rescale_(model, [10**6, *[1] * (C - 1)], 2.0)
    assert seen[0].filename == __file__


@pytest.mark.parametrize("bad", [True, None, [0.2], "no-such-file.json"])
def test_a_wrong_strength_is_an_error(bad: Any) -> None:
    with pytest.raises(rc.RescaleError):
        rc.rescale_(net(0), COUNTS, bad)


def test_what_is_no_plain_module_is_refused() -> None:
    for module in (nn.LazyLinear(C), nn.Linear(D, C, device="meta"), "fc", {"fc": 3}):
        with pytest.raises(rc.RescaleError) as refused:
            rc.rescale_(module, COUNTS, GAMMA)  # type: ignore[type-var]
        assert refused.value.fix


def test_a_module_made_in_inference_mode_is_re_scaled() -> None:
    with torch.inference_mode():
        model = net(8)
    other = net(8)
    rc.rescale_(model, COUNTS, GAMMA)
    head_job.MADE.clear()
    rc.rescale_(other, COUNTS, GAMMA)
    assert bits(model) == bits(other)


def test_a_fit_carries_its_counts_its_strength_and_its_head() -> None:
    generator = torch.Generator().manual_seed(0)
    model = net(9)
    features = torch.randn(600, D, generator=generator)
    with torch.no_grad():
        logits = model.fc(features)
    labels = logits.argmax(dim=1)
    fit = rc.sweep(logits, labels, COUNTS, head=model.fc, accept_poor_accuracy=True)
    if fit.verdict == "harms":
        pytest.fail("labels that are the predictions leave nothing to harm")
    with pytest.raises(rc.OtherModel, match="another head"):
        rc.rescale_(net(10), fit)
    with pytest.raises(rc.OtherCounts):
        rc.rescale_(model, [n + 1 for n in COUNTS], fit)
    rc.rescale_(model, fit)


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.double, nn.Module.bfloat16])
def test_a_converted_module_is_still_re_scaled(convert: Any) -> None:
    model = net(7)
    state = copy.deepcopy(model.state_dict())
    rc.rescale_(model, COUNTS, 0.2)
    convert(model)
    with pytest.raises(rc.AlreadyRescaled):
        rc.rescale_(model, COUNTS, 0.2)
    model.float().load_state_dict(state)
    rc.rescale_(model, COUNTS, 0.2)
