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
from rescale_cli.checkpoints.locate_head import ANY_HEAD
from rescale_cli.errors import OtherModel
from rescale_cli.patching.find_records import was_rescaled
from rescale_cli.patching.head_identity import identity_of, refuse_other_head


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
    output = model.with_name("out.safetensors")
    api.apply(model, COUNTS, GAMMA, output=output)
    assert was_rescaled(open_checkpoint(output))
    with pytest.raises(OtherModel) as caught:
        refuse_other_head(output, identity_of(output), own, what="the logits in a.npz", fix="")
    assert f"re-scaled (rescale, strength {GAMMA})" in caught.value.saw
