"""What the row norms say beside the counts, and what they cannot say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rescale_cli.cli import main

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
