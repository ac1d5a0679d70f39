"""A command opens a checkpoint once, and each of its files at most twice."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rescale_cli.cli import main
from tests.conftest import C, Made


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How many times each file was opened for reading, whichever link to it was named."""
    counts: Counter[Path] = Counter()
    real = os.open

    def counting(path: str | Path, flags: int, *args: int, **kwargs: int) -> int:
        fd = real(path, flags, *args, **kwargs)
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            counts[Path(path).resolve()] += 1
        return fd

    monkeypatch.setattr(os, "open", counting)
    return counts


def logits_beside(folder: Path) -> Path:
    """A file of logits of the network in conftest, which need not fit its weights."""
    labels = np.arange(60) % C
    logits = np.random.default_rng(0).normal(size=(60, C)) + 2 * np.eye(C)[labels]
    np.savez(folder / "logits.npz", logits=logits.astype(np.float32), labels=labels)
    return folder / "logits.npz"


COMMANDS = ("inspect", "apply", "evaluate", "compare", "sweep-gamma")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["safetensors float32", "state dict", "Hugging Face shards"])
def test_each_file_of_a_checkpoint_is_opened_at_most_twice(
    command: str, name: str, containers, tmp_path: Path, opened_files: Counter[Path]
) -> None:
    made: Made = containers(name)
    (tmp_path / "counts.json").write_text(json.dumps(list(range(C, 0, -1))))
    words = [command, str(made.path), "--counts", str(tmp_path / "counts.json")]
    if command == "apply":
        words += ["--gamma", "0.5", "--output", str(tmp_path / "out")]
    elif command != "inspect":
        words += ["--logits", str(logits_beside(tmp_path))]
    opened_files.clear()
    assert main(words) == 0
    files = [made.path] if made.path.is_file() else sorted(made.path.glob("*.safetensors"))
    print({file.name: opened_files[file.resolve()] for file in files})
    assert max(opened_files[file.resolve()] for file in files) <= 2
