"""README and guide: their commands print what is shown, and what they name exists."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from rescale_cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "examples" / "GUIDE.md").read_text(encoding="utf-8")
BOTH = README + GUIDE
CONSOLE = "\n".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL))


def shown() -> Iterator[tuple[str, list[str]]]:
    """Each command of the console blocks and the lines that stand below it."""
    for block in CONSOLE.split("$ rescale-cli ")[1:]:
        command, *lines = block.splitlines()
        yield command, [line for line in lines if line.strip()]


def skeleton(text: str) -> str:
    """A line without its numbers and blanks, in which machines and libraries may differ."""
    return re.sub(r"[\d.,+-]+|\s+|[▏▎▍▌▋▊▉█]+", "", text)


def test_the_readme_shows_each_command_as_it_really_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "examples" / "fashion_lt", tmp_path / "play")
    monkeypatch.chdir(tmp_path / "play")
    monkeypatch.setenv("COLUMNS", "100")
    for command, lines in shown():
        code = cli.main(shlex.split(command))
        out, err = capsys.readouterr()
        assert code == 0, (command, err)
        printed = iter([skeleton(line) for line in (out + err).splitlines()])
        for line in lines:
            # A line with an ellipsis stands for any number of lines.
            assert line == "…" or skeleton(line) in printed, (command, line, out + err)


def test_the_lines_of_python_run_and_write_the_checkpoint_of_the_state_dict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    shutil.copytree(ROOT / "examples" / "fashion_lt", tmp_path / "play")
    monkeypatch.chdir(tmp_path / "play")
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    written, state = numpy.load_file("fixed.safetensors"), names["new"]
    assert isinstance(state, dict)
    assert all((written[name] == state[name]).all() for name in state)
    assert getattr(names["fit"], "verdict", None) == "helps"


def test_the_example_of_the_library_ends_in_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vl_convert", reason="the extra plot is not installed")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "library.py"))
    assert "Fit: helps" in capsys.readouterr().out
    assert (tmp_path / "library.svg").read_text("utf-8").startswith("<svg")


def test_the_readme_shows_each_command_once() -> None:
    commands = [command.split()[0] for command, _ in shown()]
    assert sorted(commands) == sorted(set(cli.COMMANDS) - {"demo"})


def test_every_option_that_is_named_exists() -> None:
    real = {"--help", "--version", "--install-completion"}
    for command in [typer.main.get_command(cli.app), *map(cli.command_of, cli.COMMANDS)]:
        for option in command.params:
            real |= {*option.opts, *option.secondary_opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", BOTH)) - real == set()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:examples|tests)/[\w/.-]+\w", BOTH))))
def test_every_file_that_is_named_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_readme_is_short_and_nothing_waits_to_be_filled_in() -> None:
    assert len(README.splitlines()) <= 250
    assert re.findall(r"\b(?:[A-Z]*TABLE|TODO|TBD|FIXME)\w*", BOTH) == []
