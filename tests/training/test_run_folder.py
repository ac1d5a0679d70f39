"""The folder of a run: one run at a time, and what it records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rescale_cli.cli import main
from rescale_cli.errors import RunInUse
from rescale_cli.training.run_folder import RunFolder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a short training on 200 digits, but for its folder."""
    file = tmp_path_factory.mktemp("digits") / "digits.npz"
    images, labels = load_digits(return_X_y=True)
    np.savez(file, images=(images[:200].reshape(-1, 8, 8) * 15.9).astype(np.uint8),
             labels=labels[:200])  # fmt: skip
    return ["train", "--data", f"npz:{file}", "--arch", "rescale:resnet8", "--epochs", "1",
            "--milestones", "none", "-b", "64", "--device", "cpu"]  # fmt: skip


# ------------------------------------------------------------------------------------------ a lock


def test_a_second_run_in_a_live_folder_is_refused_and_changes_nothing(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    with RunFolder(run).held(create=True):
        for more in (["-o", str(run)], ["-o", str(run), "--force"], ["-o", str(run), "--seeds=0,1"],
                     ["--resume", str(run)]):  # fmt: skip
            line = [*words, *more] if "-o" in more else ["train", *more]
            assert main([*line, "--json"]) == 4
            error = json.loads(capsys.readouterr().out)["error"]
            assert error["code"] == "in-use"
            assert "process" in error["saw"]
        assert [entry.name for entry in run.iterdir()] == [".rescale-cli-run.lock"]
    assert list(run.iterdir()) == []


def test_the_lock_of_a_killed_run_is_taken_over(words: list[str], tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / ".rescale-cli-run.lock").write_text("process 1 on another-host")
    with run.held(create=False):
        with pytest.raises(RunInUse), run.held(create=False):
            raise AssertionError
    assert main([*words, "-o", str(tmp_path)]) == 0


def test_a_folder_that_is_missing_is_not_created_to_be_resumed(tmp_path: Path) -> None:
    assert main(["train", "--resume", str(tmp_path / "missing")]) == 3
    assert list(tmp_path.iterdir()) == []
