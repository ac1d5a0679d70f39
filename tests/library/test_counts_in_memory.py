"""Counts in memory mean what they mean in a file, whatever object holds them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COUNTS, GAMMA, C, D, child_environment
from torch import nn

import rescale_cli as rc
from rescale_cli.core.alignment import join_counts
from rescale_cli.core.classes import HeadRows

NAMES = tuple(f"kind {i}" for i in range(C))


def rows(counts: Any, names: tuple[str, ...] | None = None, **more: Any) -> list[int]:
    """The counts in the order of a head's rows."""
    return join_counts(rc.counts(counts, **more), HeadRows(C, names))[0].values.tolist()


SAME: list[Any] = [
    COUNTS,
    tuple(COUNTS),
    np.array(COUNTS),
    np.array(COUNTS, np.float32),
    [np.int64(n) for n in COUNTS],
    [torch.tensor(n) for n in COUNTS],
    torch.tensor(COUNTS),
    torch.tensor(COUNTS, dtype=torch.float64, requires_grad=True),
    dict(enumerate(COUNTS)),
    dict(reversed(list(enumerate(COUNTS)))),
    {np.int64(i): np.int64(n) for i, n in enumerate(COUNTS)},
    Counter([i for i, n in enumerate(COUNTS) for _ in range(n)]),
]


@pytest.mark.parametrize("counts", SAME, ids=lambda counts: type(counts).__name__)
def test_every_container_gives_the_counts_of_the_rows(counts: Any) -> None:
    assert rows(counts) == COUNTS
    assert rows(counts, NAMES) == COUNTS


def test_a_series_is_read_by_its_index() -> None:
    pandas = pytest.importorskip("pandas")
    labels = np.repeat(np.arange(C), COUNTS)
    assert rows(pandas.Series(labels).value_counts()) == COUNTS
    assert rows(pandas.Series(labels).value_counts(ascending=True)) == COUNTS
    named = pandas.Series([NAMES[i] for i in labels])
    assert rows(named.value_counts(), NAMES) == COUNTS
    assert rows(named.astype("category").value_counts(), NAMES) == COUNTS
    assert rows(named.groupby(named).size(), NAMES) == COUNTS
    with pytest.raises(rc.UnknownClassOrder):
        rows(named.value_counts())
    with pytest.raises(rc.BadCounts, match="twice"):
        rc.counts(pandas.Series([1, 2], index=["a", "a"]))
    with pytest.raises(rc.BadCounts, match="known form"):
        rc.counts(pandas.DataFrame({"label": labels}))


def test_integer_keys_are_rows_although_the_head_has_numbers_as_names() -> None:
    names = tuple(str(C - 1 - i) for i in range(C))
    assert rows(dict(enumerate(COUNTS)), names) == COUNTS
    assert rows({str(i): n for i, n in enumerate(COUNTS)}, names) == COUNTS[::-1]


def test_text_keys_are_read_as_those_of_a_file(tmp_path: Path) -> None:
    table = dict(sorted(zip(NAMES, COUNTS, strict=True), reverse=True))
    (tmp_path / "counts.json").write_text(json.dumps(table))
    assert rows(table, NAMES) == rows(tmp_path / "counts.json", NAMES) == COUNTS
    for counts in (table, tmp_path / "counts.json"):
        with pytest.raises(rc.UnknownClassOrder):
            rows(counts)


MAPS: list[Any] = [
    NAMES,
    list(NAMES),
    np.array(NAMES),
    {name: i for i, name in reversed(list(enumerate(NAMES)))},
    {name: np.int64(i) for i, name in enumerate(NAMES)},
    dict(reversed(list(enumerate(NAMES)))),
    {str(i): name for i, name in reversed(list(enumerate(NAMES)))},
]


@pytest.mark.parametrize("classes", MAPS, ids=str)
def test_a_label_map_is_recognised_by_its_types(classes: Any, tmp_path: Path) -> None:
    table = dict(sorted(zip(NAMES, COUNTS, strict=True), reverse=True))
    assert rows(table, classes=classes) == COUNTS
    assert rows(COUNTS, NAMES, classes=classes) == COUNTS
    one, other = nn.Linear(D, C), nn.Linear(D, C)
    other.load_state_dict(one.state_dict())
    rc.rescale_(one, COUNTS, GAMMA)
    rc.rescale_(other, table, GAMMA, classes=classes)
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize(
    "bad",
    [5, None, b"12", {1, 2}, {"a": 3}.values(), {"a": 1, 2: 3}, {(1,): 2, (0,): 3}, {True: 3, 0: 1},
     {}, {-1: 3, 0: 2}],
    ids=repr,
)  # fmt: skip
def test_what_are_no_counts_is_an_error_that_says_what_to_give(bad: Any) -> None:
    with pytest.raises(rc.BadCounts) as refused:
        rc.counts(bad)
    assert refused.value.fix


@pytest.mark.parametrize("bad", [{"a": 0, "b": 2}, {0: "a", 2: "b"}, {0: 1, 1: 0}, 5, {"a": "b"}])
def test_a_label_map_without_a_name_for_each_row_is_refused(bad: Any) -> None:
    with pytest.raises(rc.BadInput, match="do not name the rows"):
        rc.counts([1, 2], classes=bad)


def test_a_text_is_one_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, 13))
    torch.save(model.state_dict(), tmp_path / "in.pth")
    counts = [1000 // (i + 1) for i in range(13)]
    for name in ("12", 12, ["12"]):
        plan = rc.apply(tmp_path / "in.pth", counts, 0.5, exclude_class=name, dry_run=True).plan
        assert plan.counts.skipped == (12,)
    assert rc.inspect(tmp_path / "in.pth", heads="2").found.heads[0].weight == "2.weight"
    with pytest.raises(rc.BadInput, match="named fc"):
        rc.inspect(tmp_path / "in.pth", heads="fc")


def test_counts_import_neither_torch_nor_pandas() -> None:
    line = (
        "import sys, rescale_cli as rc\n"
        "assert not {'torch', 'numpy'} & {*sys.modules}\n"
        "rc.counts({'a': 1, 'b': 2}); rc.counts([1, 2], classes={'a': 0, 'b': 1})\n"
        "assert not {'torch', 'pandas'} & {*sys.modules}\n"
    )
    root = str(Path(rc.__file__).parent.parent)
    environment = child_environment(PYTHONPATH=root)
    done = subprocess.run([sys.executable, "-c", line], env=environment, check=False)
    assert done.returncode == 0
