"""The types are precise: a client program passes mypy --strict, and wrong words do not."""

from __future__ import annotations

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
