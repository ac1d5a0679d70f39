"""A strength is used with the model and the counts that it was chosen for."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import GAMMA, net
from safetensors.torch import save_file

from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.checkpoints.locate_head import ANY_HEAD
from rescale_cli.core.counts import ClassCounts
from rescale_cli.errors import OtherCounts, OtherModel
from rescale_cli.evaluating.chosen_for import ChosenFor
from rescale_cli.patching.head_identity import identity_of


def test_a_strength_is_refused_with_another_head(tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    for seed, path in enumerate((one, other)):
        save_file(net(seed).state_dict(), path)
    chosen = ChosenFor("sweep.json", identity_of(one), GAMMA)
    chosen.refuse_other_model(open_checkpoint(one), ANY_HEAD, None)
    with pytest.raises(OtherModel, match=r"the strength in sweep\.json"):
        chosen.refuse_other_model(open_checkpoint(other), ANY_HEAD, None)


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
