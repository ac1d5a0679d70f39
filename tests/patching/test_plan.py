"""What will be done is decided before anything is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COUNTS, GAMMA, C, net
from safetensors.torch import save_file

from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.checkpoints.locate_head import ANY_HEAD
from rescale_cli.core.classes import HeadRows, RowHints
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import BadCounts, UnknownClassOrder
from rescale_cli.patching import plan
from rescale_cli.patching.plan import LARGE, CountsChoice, Plan, make_plan, obstacle


def saved(folder: Path, state: dict[str, Any]) -> Path:
    path = folder / "model.pth"
    torch.save(state, path)
    return path


def planned(path: Path, counts: Any, adjustment: Any = None, **hints: Any) -> Plan:
    choice = CountsChoice.read(counts, RowHints(**hints))
    return make_plan(open_checkpoint(path), choice, adjustment or Adjustment())


def test_names_in_the_order_of_folders_must_have_joined_the_labels_too() -> None:
    names = ("a1", "a10", "a2")  # timm would sort them otherwise
    hints = RowHints(names=names, order="imagefolder")
    choice = CountsChoice.read(dict(zip(names, (5, 7, 9), strict=True)), hints, checked=True)
    rows = HeadRows(3)
    assert choice.resolve(rows)[0].values.tolist() == [5, 7, 9]
    choice.refuse_unchecked(rows, "name")
    for other in ("index", None):
        with pytest.raises(UnknownClassOrder):
            choice.refuse_unchecked(rows, other)
    CountsChoice.read([5, 7, 9]).refuse_unchecked(rows, None)


def test_the_classes_of_a_bias_lie_on_its_longest_axis(tmp_path: Path) -> None:
    path = saved(tmp_path, net().state_dict())
    weight, bias = planned(path, COUNTS, Adjustment("logit-adjust", GAMMA)).heads[0].edits
    assert (weight.factor == 1).all()
    prior = np.array(COUNTS) / sum(COUNTS)
    np.testing.assert_allclose(bias.shift, -GAMMA * np.log(prior))
    for shape in ((C,), (1, C), (C, 1, 1)):
        assert plan._bias_axis(replace(bias.info, shape=shape)) == shape.index(C)


def test_a_bias_is_edited_only_if_it_changes(tmp_path: Path) -> None:
    path = saved(tmp_path, net().state_dict())
    kept, scaled = (
        planned(path, COUNTS, Adjustment(strength=GAMMA, bias=b)) for b in ("", "scale")
    )
    assert [edit.info.name for edit in kept.heads[0].edits] == ["fc.weight"]
    assert [edit.info.name for edit in scaled.heads[0].edits] == ["fc.weight", "fc.bias"]
    assert kept.edits_of(path) == list(kept.heads[0].edits)
    assert kept.edits_of(path.with_name("other")) == []
    norms = net().fc.weight.detach().double().norm(dim=1).numpy()
    factors = (max(COUNTS) / np.array(COUNTS)) ** GAMMA
    np.testing.assert_allclose(kept.heads[0].norms_after, norms * factors)


def test_factors_of_more_than_thirty_to_one_are_warned_of(tmp_path: Path) -> None:
    path = saved(tmp_path, net().state_dict())
    for most, warned in ((LARGE, False), (LARGE + 1, True)):
        made = planned(path, [int(most), *[1] * (C - 1)], Adjustment(strength=1.0))
        assert ("large-factors" in dict(made.warnings)) == warned


def test_names_that_differ_from_the_checkpoints_are_warned_of(tmp_path: Path) -> None:
    own = [f"kind {i}" for i in range(C)]
    path = tmp_path / "model.safetensors"
    save_file(net().state_dict(), path)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(own))}))
    other = (*own[:2], "new", *own[3:])
    assert "classes-differ" not in dict(planned(tmp_path, COUNTS, names=(*own,)).warnings)
    warnings = dict(planned(tmp_path, COUNTS, names=other).warnings)
    assert "row 2 new" in warnings["classes-differ"]


def test_the_number_of_names_or_counts_is_that_of_the_rows(tmp_path: Path) -> None:
    path = saved(tmp_path, {**net().state_dict(), "aux.weight": torch.ones(C + 2, 12)})
    assert planned(path, COUNTS, Adjustment()).heads[0].keys.weight == "fc.weight"
    with pytest.raises(BadCounts):
        planned(path, [5], Adjustment())


def test_what_a_dtype_cannot_hold_is_an_obstacle_and_an_earlier_re_scaling_is_none(
    tmp_path: Path,
) -> None:
    state = net().half().state_dict()
    state["fc.weight"][2, 3] = 60000.0
    checkpoint, counts = open_checkpoint(saved(tmp_path, state)), CountsChoice.read(COUNTS)
    assert "fc.weight" in obstacle(checkpoint, counts, Adjustment(strength=1.0), ANY_HEAD)
    assert obstacle(checkpoint, counts, Adjustment(strength=0.0), ANY_HEAD) == ""
