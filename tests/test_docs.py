"""The README says what the commands say of themselves, and shows nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rescale_cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MARKS = re.compile(r"<!-- help: begin -->(.*)<!-- help: end -->", re.DOTALL)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_readme_has_the_real_help_of(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_FORCE_DISABLE_TERMINAL", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([command, "--help"]) == 0
    shown = re.search(rf"<summary>{command}</summary>\s*```(.*?)```", README, re.DOTALL)
    assert shown, "run examples/readme_help.py"
    # Libraries break lines in places of their own: the letters count.
    said, real = ("".join(text.split()) for text in (shown[1], capsys.readouterr().out))
    assert said == real, "run examples/readme_help.py"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_table_of_commands_has(command: str) -> None:
    assert f"\n| `{command} " in README


def test_every_option_that_the_readme_speaks_of_exists() -> None:
    real = set(re.findall(r"--[a-z][a-z-]+", MARKS.findall(README)[0])) | {"--version"}
    others = {"--help"}
    spoken = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", MARKS.sub("", README)))
    assert spoken - real - others == set()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"examples/[\w/.-]+\w", README))))
def test_every_file_that_the_readme_names_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_nothing_in_the_readme_waits_to_be_filled_in() -> None:
    assert re.findall(r"\b(?:TABLE|TODO|TBD|FIXME)\w*", README) == []
