"""What the row norms say beside the counts, and what they cannot say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy.stats import spearmanr

from rescale_cli.cli import main
from rescale_cli.core.counts import ClassCounts, spearman, warnings_of
from rescale_cli.core.head import Head, two_rows

COUNTS = [2 ** (12 - i) for i in range(12)]


def against(folder: Path, named: bool) -> list[str]:
    """The words for a head whose rare classes have the longer rows."""
    rows = np.random.default_rng(0).normal(size=(12, 32))
    rows *= np.linspace(1, 3, 12)[:, None] / np.linalg.norm(rows, axis=1, keepdims=True)
    (folder / "m").mkdir()
    save_file({"fc.weight": rows.astype(np.float32)}, folder / "m" / "model.safetensors")
    names = [f"kind {chr(97 + i)}" for i in range(12)]
    config = {"id2label": dict(enumerate(names))} if named else {}
    (folder / "m" / "config.json").write_text(json.dumps(config))
    counts = dict(zip(names, COUNTS, strict=True)) if named else COUNTS
    (folder / "counts.json").write_text(json.dumps(counts))
    return [str(folder / "m"), "--counts", str(folder / "counts.json")]


@pytest.mark.parametrize("command", ["inspect", "apply"])
@pytest.mark.parametrize("named", [False, True])
def test_longer_rows_of_rare_classes_are_a_wrong_order_only_without_names(
    command: str, named: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["-g", "0.3", "--dry-run"] if command == "apply" else []
    assert main([command, *against(tmp_path, named), *more, "--json"]) == 0
    said = {w["code"]: w["message"] for w in json.loads(capsys.readouterr().out)["warnings"]}
    message = said["norms-run-against-counts"]
    assert "AdamW" in message
    assert "evaluate before you trust the result" in message
    assert ("another order" in message) is not named
    assert ("--classes FILE" in message) is not named
    assert "class-order" not in said


VALUES = st.lists(st.integers(1, 6), min_size=2, max_size=12)


@given(VALUES, st.data())
def test_the_rank_correlation_is_scipys(one: list[int], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.integers(1, 6), min_size=len(one), max_size=len(one)))
    found = spearman(np.array(one), np.array(other))
    if len({*one}) == 1 or len({*other}) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(one, other).statistic)


@given(VALUES, st.data())
def test_a_correlation_is_clear_beyond_1_645_standard_errors(
    norms: list[int], data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(1, 6), min_size=len(norms), max_size=len(norms)))
    rows = np.diag(norms).astype(float)
    left_out = ["0"] if len(norms) > 2 and data.draw(st.booleans()) else []
    kept = slice(len(left_out), None)
    found = warnings_of(Head.of(rows), ClassCounts.of(counts).exclude(left_out))
    codes = [code for code, _ in found if code != "gauge"]
    if len({*norms[kept]}) == 1 or len({*counts[kept]}) == 1:
        assert codes == []
        return
    rho = spearmanr(norms[kept], counts[kept]).statistic
    clear = 1.645 / np.sqrt(len(norms[kept]) - 1)
    if rho < -max(clear, 0.2):
        assert codes == ["norms-run-against-counts"]
    else:
        assert codes == (["norms-do-not-follow-counts"] if rho < clear else [])


def test_a_common_part_is_warned_of_where_there_are_two_rows_or_more() -> None:
    def codes(rows: list[list[float]], *, binary: bool = False) -> list[str]:
        head = Head.of(np.array(rows))
        return [code for code, _ in warnings_of(two_rows(head) if binary else head, None)]

    assert codes([[1.0, 0.1], [1.0, -0.1]]) == ["gauge"]
    assert codes([[3.0, 0.0], [-1.0, 0.0]]) == []  # exactly half of the lengths is common
    assert codes([[1.0, 0.1]]) == []
    assert codes([[1.0, 0.1]], binary=True) == []
