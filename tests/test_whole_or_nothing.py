"""An output is there whole or not at all, and the source stays as it was, whatever happens.

`fault_runner.py` does the same from outside, at every system call, under strace.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rescale_cli import kernel_copy, patch, staging
from rescale_cli.cli import main
from rescale_cli.patched_file import write_changed
from rescale_cli.proof import verify

NAMES = {"safetensors": "m.safetensors", "zip": "m.pth", "legacy": "l.pth", "folder": "hf"}

#: Everything that the tool asks of the system for files; each call of each of them fails once.
CALLS = (
    "open", "close", "write", "pwrite", "pread", "preadv", "copy_file_range", "fsync", "fchmod",
    "chmod", "link", "rename", "replace", "mkdir", "stat", "lstat", "fstat", "listdir", "scandir",
)  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "in"
    (folder / "hf" / "sub").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (16, 8, 3, 3), "fc.weight": (10, 64), "fc.bias": (10,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(state, folder / "m.safetensors", metadata={"format": "pt"})
    torch.save(state, folder / "m.pth")
    torch.save(state, folder / "l.pth", _use_new_zipfile_serialization=False)
    shards = {"conv.weight": "model-1.safetensors", "fc.weight": "model-2.safetensors"}
    shards["fc.bias"] = "model-2.safetensors"
    for shard in set(shards.values()):
        part = {name: state[name] for name in shards if shards[name] == shard}
        save_file(part, folder / "hf" / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": shards}
    (folder / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "hf" / "config.json").write_text("{}")
    (folder / "hf" / "sub" / "notes.txt").write_text("notes")
    (folder / "counts.json").write_text(json.dumps([500, 300, 200, 120, 80, 50, 30, 20, 10, 5]))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A folder with the sources in `in` and an empty `out`."""
    shutil.copytree(made, tmp_path / "in")
    (tmp_path / "out").mkdir()
    return tmp_path


def apply(source: Path | str, *options: Path | str, gamma: float = 0.5) -> int:
    counts = next(p for p in Path(source).absolute().parents if (p / "counts.json").is_file())
    words = [source, "--counts", counts / "counts.json", "-g", gamma, *options]
    return main(["apply", *map(str, words)])


def hashes(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".rescale-cli-*")]


def failing(number: int, error: int, calls: list[str], patch: pytest.MonkeyPatch) -> None:
    """Let the `number`th of the system's calls fail once; `calls` tells which were made."""

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                if name == "close":
                    real(*args)
                raise OSError(error, os.strerror(error))
            return real(*args, **more)

        return call

    for name in CALLS:
        if hasattr(os, name):
            patch.setattr(os, name, wrap(name, getattr(os, name)))


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
@pytest.mark.parametrize("kind", NAMES)
def test_whichever_call_fails_the_output_is_whole_or_as_before(
    place: Path, kind: str, force: bool, error: int
) -> None:
    if error == errno.ENOSPC and kind != "zip":
        pytest.skip("one format is enough for the second error")
    source, output = place / "in" / NAMES[kind], place / "out" / NAMES[kind]
    original, options = hashes(source), ["--force"] if force else []
    if force:
        assert apply(source, "-o", output, gamma=0.2) == 0
    start = place / "start"
    shutil.copytree(place / "out", start)
    before, number, calls = hashes(place / "out"), 0, [""]
    while number < len(calls):  # past the last call of a run, nothing is left to fail
        number, calls = number + 1, []
        with pytest.MonkeyPatch.context() as patched:
            failing(number, error, calls, patched)
            code = apply(source, "-o", output, *options)
        where = f"call {number}: {calls[number - 1 :][:1]}"
        assert not leftovers(place), where
        assert hashes(source) == original, where
        if code == 0:
            verify(output, source)
            shutil.rmtree(place / "out")
            shutil.copytree(start, place / "out")
        else:
            assert code in (3, 5), where
            assert hashes(place / "out") == before, where
    assert number > 50
