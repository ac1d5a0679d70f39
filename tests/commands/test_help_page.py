"""Help pages: panels, defaults, examples that run, any width, no colours in a pipe; completion."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import child_environment
from rich.cells import cell_len

from rescale_cli import cli
from rescale_cli.cli import COMMANDS, main

Capture = pytest.CaptureFixture[str]
EVERY = pytest.mark.parametrize("command", ["", *COMMANDS])
PLACES = re.MULTILINE | re.DOTALL
PROGRAM = [sys.executable, "-m", "rescale_cli"]
GROUP: Any = typer.main.get_command(cli.app)
BUILT = {name: cli.command_of(name) for name in COMMANDS}


def page(command: str, columns: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*command.split(), "--help"]) == 0
    return capsys.readouterr().out


#: Every option and argument of every command.
OPTIONS = [
    pytest.param(command, parameter, id=f"{name} {parameter.opts[-1]}")
    for name, command in BUILT.items()
    for parameter in command.params
]


def examples(command: str) -> list[str]:
    """The commands at the end of a page."""
    text = BUILT.get(command, GROUP).help.partition("\nExamples:\n")[2]
    lines = re.sub(r"\n {8,}(?=\S)", " ", text).splitlines()
    return [line.strip() for line in lines if line.strip() and "# " not in line]


@EVERY
def test_a_page_fits_every_width_and_shows_the_same_words_at_each(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = set()
    for columns in (60, 72, 80, 100, 140, 200):
        lines = page(command, columns, capsys, monkeypatch).splitlines()
        assert max(map(cell_len, lines)) == columns
        assert not any("…" in line for line in lines)
        shown = re.sub(r"^ +# |[╭╮╰╯─│\\]", " ", "\n".join(lines), flags=re.MULTILINE)
        words.add(" ".join(shown.split()))
    assert len(words) == 1


def test_the_commands_stand_in_their_groups(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = page("", 80, capsys, monkeypatch)
    titles = re.findall(r"^╭─ (\w+) ", shown, re.MULTILINE)
    assert titles == [*dict.fromkeys(COMMANDS.values()), "Output", "Options"]
    for title, box in re.findall(r"^╭─ (\w+) .*?\n(.*?)^╰", shown, PLACES):
        listed = re.findall(r"^│ ([a-z][\w-]*) ", box, re.MULTILINE)
        assert listed == [name for name, group in COMMANDS.items() if group == title]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_panels_of_a_page_have_one_order(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = re.findall(r"^╭─ (\w+) ", page(command, 80, capsys, monkeypatch), re.MULTILINE)
    order = ("Input", "Method", "Training", "Gates", "Output", "Advanced")
    assert titles == [title for title in order if title in titles]
    assert {"Output", "Advanced"} <= set(titles)


@pytest.mark.parametrize(("command", "parameter"), OPTIONS)
def test_every_option_with_a_value_shows_its_default_or_that_it_is_required(
    command: Any, parameter: Any
) -> None:
    context = command.make_context("x", [], resilient_parsing=True)
    about = parameter.get_help_record(context)[1]
    switch = getattr(parameter, "is_flag", False) or getattr(parameter, "count", False)
    may_be_left_out = "left out" in about  # an argument whose text says when
    assert switch or may_be_left_out or re.search(r"required|[Dd]efault: \S", about), about


@pytest.mark.parametrize(("command", "parameter"), OPTIONS)
def test_every_text_is_made_of_sentences(command: Any, parameter: Any) -> None:
    if parameter.name != "help":
        assert re.fullmatch(r"[A-Z].*[^.]\.", parameter.help, re.DOTALL), parameter.help


@EVERY
def test_no_colour_code_goes_into_a_pipe(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.setenv(name, "1")
    assert "\x1b" not in page(command, 80, capsys, monkeypatch)


def on_a_terminal(*words: str, **environment: str) -> str:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    environ = child_environment(TERM="xterm", COLUMNS="80", **environment)
    run = subprocess.Popen([*PROGRAM, *words], stdout=theirs, env=environ)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 1 << 16):
            said += part
    except OSError:  # so Linux says that the other end is closed
        pass
    assert run.wait() == 0
    os.close(ours)
    return said.decode()


def test_a_terminal_gets_colours_unless_no_color_is_set() -> None:
    plain = on_a_terminal("apply", "--help", NO_COLOR="1")
    assert "\x1b" not in plain
    coloured = on_a_terminal("apply", "--help")
    assert "\x1b[1;36m--gamma" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_a_terminal_that_shows_only_ascii_gets_ascii() -> None:
    environ = child_environment(PYTHONIOENCODING="ascii", COLUMNS="80")
    words = [*PROGRAM, "train", "--help"]
    run = subprocess.run(words, env=environ, capture_output=True, check=True)
    assert "+- Input ---" in run.stdout.decode("ascii")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `rescale-cli demo` makes."""
    folder = tmp_path_factory.mktemp("demo") / "rescale-demo"
    assert main(["demo", "-o", str(folder)]) == 0
    return folder


@EVERY
def test_the_examples_at_the_end_of_a_page_run(
    command: str, demo_folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_folder)
    lines = examples(command)
    assert len(lines) >= 2
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "rescale-cli"
        assert not command or words[0] == command
        assert main(words) == 0, (line, capsys.readouterr().err)


def test_an_example_can_be_copied_from_a_narrow_page(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = page("sweep-gamma", 60, capsys, monkeypatch).replace("\\\n", "")
    commands = [line for line in shown.splitlines() if line.startswith("  rescale-cli ")]
    assert list(map(shlex.split, commands)) == list(map(shlex.split, examples("sweep-gamma")))


# ---------------------------------------------------------------------------------- completion


def completed(*words: str, shell: str = "bash") -> list[str]:
    """What a shell is offered for the last of these words."""
    typed = shlex.join(["rescale-cli", *words])
    environ = child_environment(
        _RESCALE_CLI_COMPLETE=f"complete_{shell}", COMP_WORDS=typed, COMP_CWORD=str(len(words)),
        _TYPER_COMPLETE_ARGS=typed,
    )  # fmt: skip
    run = subprocess.run(PROGRAM, env=environ, capture_output=True, text=True, check=True)
    return run.stdout.split("\n")


def test_commands_options_and_choices_are_completed() -> None:
    assert completed("sw") == ["sweep-gamma", ""]
    assert completed("apply", "--max") == ["--max-factor", ""]
    assert completed("apply", "--zero-count", "s") == ["skip", ""]
    assert '"--max-factor":"Largest factor' in "\n".join(completed("apply", "--max", shell="zsh"))


@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete -o default"), ("zsh", "compdef")])
def test_the_script_of_a_shell_calls_the_program(shell: str, mark: str) -> None:
    environ = child_environment(_RESCALE_CLI_COMPLETE=f"source_{shell}")
    run = subprocess.run(PROGRAM, env=environ, capture_output=True, text=True, check=True)
    assert mark in run.stdout
    assert f"_RESCALE_CLI_COMPLETE=complete_{shell}" in run.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=run.stdout, text=True, check=True)


def test_completion_is_installed_for_bash_and_works_there(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "rescale-cli"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m rescale_cli "$@"\n')
    program.chmod(0o755)
    environ = child_environment(
        HOME=str(tmp_path), PATH=f"{program.parent}:{os.environ['PATH']}", SHELL="/bin/bash"
    )

    def bash(script: str) -> str:
        run = subprocess.run(
            ["bash", "-c", script], env=environ, capture_output=True, text=True, check=True
        )
        return run.stdout

    assert "bash completion installed" in bash("rescale-cli --install-completion; exit $?")
    (script,) = (tmp_path / ".bash_completions").iterdir()
    found = bash(
        f"source {script}; COMP_WORDS=(rescale-cli ver); COMP_CWORD=1; "
        "_rescale_cli_completion rescale-cli; echo ${COMPREPLY[@]}"
    )
    assert found == "verify\n"
