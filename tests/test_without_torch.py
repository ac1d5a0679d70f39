"""Without torch and torchvision: what needs them says so and leaves nothing; the rest works."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import child_environment

import rescale_cli
from rescale_cli.commands import demo_report

PACKAGE = Path(rescale_cli.__file__).parent

#: Runs each command line that stdin lists where torch cannot be imported; prints the exit codes.
BLOCKED = """
import contextlib, io, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from rescale_cli.cli import main

found = []
for words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([*words, "--json"])
    found.append([code, json.loads(out.getvalue())])
json.dump(found, sys.stdout)
"""

MODEL = ["model.safetensors", "--counts", "counts.json"]
NEEDING = [
    ["evaluate", *MODEL, "--data", "npz:val.npz", "--csv", "e.csv", "--save-logits", "l.npz"],
    ["sweep-gamma", *MODEL, "--data", "npz:val.npz", "-o", "s.json", "--apply", "a.safetensors"],
    ["compare", *MODEL, "--data", "npz:val.npz", "-o", "c.json"],
    ["train", "--data", "npz:val.npz", "--arch", "rescale:resnet8", "-o", "run"],
    ["train", "--data", "npz:val.npz", "--arch", "rescale:resnet8", "--seeds", "0,1", "-o", "runs"],
    ["demo", "-o", "demo"],
    ["demo"],
]
WORKING = [
    ["counts", "counts.json", "-o", "again.json"],
    ["inspect", *MODEL],
    ["apply", *MODEL, "-g", "0.3", "-o", "new.safetensors"],
    ["verify", "new.safetensors", "--against", "model.safetensors"],
    ["revert", "new.safetensors", "-o", "back.safetensors"],
    ["schema", "apply"],
    ["evaluate", *MODEL, "--logits", "val_logits.npz", "--bootstrap", "20"],
    ["evaluate", *MODEL, "--logits", "val_logits.npz", "-g", "0.3", "--against",
     "model.safetensors", "--bootstrap", "20"],
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in demo_report.EXAMPLE:
        shutil.copy(demo_report.bundled() / name, tmp_path)
    return tmp_path


def run(folder: Path, lines: list[list[str]]) -> list[tuple[int, dict[str, object]]]:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        input=json.dumps(lines), cwd=folder, env=child_environment(PYTHONPATH=str(PACKAGE.parent)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return [(code, document) for code, document in json.loads(done.stdout)]


def test_a_command_that_needs_torch_is_exit_5_with_the_fix_and_leaves_nothing(folder: Path) -> None:
    before = sorted(path.name for path in folder.iterdir())
    for words, (code, document) in zip(NEEDING, run(folder, NEEDING), strict=True):
        error = document["error"]
        assert isinstance(error, dict)
        assert (code, error["code"]) == (5, "environment"), (words, error)
        assert "torch" in error["what"] + error["saw"], (words, error)
        assert "pip install" in error["fix"], (words, error)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_every_other_command_works_without_torch(folder: Path) -> None:
    for words, (code, document) in zip(WORKING, run(folder, WORKING), strict=True):
        assert code == 0, (words, document)
    assert (folder / "back.safetensors").read_bytes() == (folder / MODEL[0]).read_bytes()


def test_no_assert_decides_anything() -> None:
    """Under -O there are none: they may tell the type checker something, and nothing else."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Assert):
                text = ast.unparse(node.test)
                assert text.endswith(" is not None") or text.startswith("isinstance("), (path, text)
