"""A model is known by the hash of its head."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from conftest import COUNTS, GAMMA, net
from safetensors.torch import save_file

from rescale_cli import api
from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.checkpoints.read_tensors import ANY_HEAD
from rescale_cli.core.counts import ClassCounts
from rescale_cli.errors import OtherCounts, OtherModel
from rescale_cli.patching.find_records import (
    ChosenFor,
    identity_of,
    refuse_other_head,
    was_rescaled,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(net().state_dict(), path)
    return path


def own_sha(module: torch.nn.Linear) -> str:
    parts = (tensor.detach().numpy().tobytes() for tensor in (module.weight, module.bias))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_the_identity_is_the_hash_of_weight_and_bias_whatever_the_format(model: Path) -> None:
    wanted, other = own_sha(net().fc), model.with_suffix(".pth")
    torch.save({"state_dict": net().state_dict()}, other)
    assert identity_of(model) == identity_of(other) == identity_of(open_checkpoint(model)) == wanted
    assert identity_of(model, ANY_HEAD, 3) is None, "there is no head of 3 rows"
    assert identity_of(model.with_name("missing")) is None


def test_a_result_of_another_head_is_refused_and_an_unknown_one_is_not(model: Path) -> None:
    own, other = own_sha(net().fc), own_sha(net(1).fc)
    for pair in ((own, own), (None, own), (own, None), (None, None)):
        refuse_other_head(model, *pair, what="the logits in a.npz", fix="--data DATA")
    with pytest.raises(OtherModel, match=r"the logits in a\.npz belong to another model") as caught:
        refuse_other_head(model, own, other, what="the logits in a.npz", fix="--data DATA")
    assert own[:16] in caught.value.saw
    assert other[:16] in caught.value.saw
    assert "re-scaled" not in caught.value.saw
    assert not was_rescaled(open_checkpoint(model))


def test_the_refusal_says_that_the_model_was_re_scaled(model: Path) -> None:
    output = model.with_name("out.safetensors")
    api.apply(model, COUNTS, GAMMA, output=output)
    assert was_rescaled(open_checkpoint(output))
    chosen = ChosenFor("sweep.json", identity_of(model), GAMMA)
    chosen.refuse_other_model(open_checkpoint(model), ANY_HEAD, None)
    with pytest.raises(OtherModel, match=r"the strength in sweep\.json belongs to") as caught:
        chosen.refuse_other_model(open_checkpoint(output), ANY_HEAD, None)
    assert f"re-scaled (rescale, strength {GAMMA})" in caught.value.saw


def test_a_strength_is_refused_with_other_counts_and_the_first_that_differs_is_named() -> None:
    counts = ClassCounts.of([50, 20, 5], ["cat", "dog", "owl"])
    for same in (None, (50, 20, 5)):
        ChosenFor("sweep.json", None, 0.5, same).refuse_other_counts(counts)
    for other, shown in (((50, 21, 6), "row 1 (dog): 21 samples in sweep.json, 20 now"),
                         ((50, 20), "row 2 (owl): None samples in sweep.json, 5 now"),
                         ((50, 20, 5, 1), "row 3: 1 samples in sweep.json, None now")):  # fmt: skip
        with pytest.raises(OtherCounts) as caught:
            ChosenFor("sweep.json", None, 0.5, other).refuse_other_counts(counts)
        assert caught.value.saw == shown
