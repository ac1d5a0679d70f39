"""The types are precise: a client program passes mypy and pyright, and wrong words do not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = Path(__file__).parent / "client.py"


@pytest.mark.slow
def test_a_client_passes_mypy_and_a_wrong_word_does_not(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy.api")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(CLIENT.read_text("utf-8").replace('bias="keep"', 'bias="kept"'), "utf-8")
    root = str(Path(__file__).parents[2])
    options = ["--strict", "--config-file", "", "--ignore-missing-imports", "--cache-dir",
               str(tmp_path / "cache"), "--follow-imports", "silent"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPYPATH", root)
        out, _, code = mypy.run([*options, "--explicit-package-bases", str(CLIENT)])
        assert code == 0, out
        out, _, code = mypy.run([*options, str(wrong)])
        assert code == 1, out
        assert "bias" in out


@pytest.mark.slow
def test_a_client_passes_strict_pyright_and_a_wrong_word_does_not(tmp_path: Path) -> None:
    pyright = shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed: npm install -g pyright")
    text = CLIENT.read_text("utf-8")
    (tmp_path / "client.py").write_text(text, "utf-8")
    (tmp_path / "wrong.py").write_text(text.replace('bias="keep"', 'bias="kept"'), "utf-8")
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(Path(__file__).parents[2])]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    command = [pyright, "-p", str(tmp_path), "--pythonpath", sys.executable, "--outputjson"]
    found = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
    wrong = [one for one in found["generalDiagnostics"] if one["severity"] == "error"]
    assert {Path(one["file"]).name for one in wrong} == {"wrong.py"}, wrong
    assert any("kept" in one["message"] for one in wrong)
