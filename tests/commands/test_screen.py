"""What a person sees: where options stand, tables at every width, bars, progress lines, streams."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import child_environment
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from safetensors.numpy import save_file

from rescale_cli import long_work
from rescale_cli.cli import COMMANDS, main
from rescale_cli.commands import console, progress
from rescale_cli.commands.progress import Notes, heartbeat, progress_bar
from rescale_cli.commands.tables import Bar, Grid
from rescale_cli.foreign_code import Detail
from rescale_cli.long_work import Work

Capture = pytest.CaptureFixture[str]

EVERY = progress.EVERY
#: Class names of every kind: long, of several words, wide, and ordinary.
NAMES = (
    "a_class_name_that_is_much_longer_than_sixty_columns_and_has_no_space_anywhere_in_it",
    "the lesser spotted woodpecker of northern and eastern deciduous forests, adult male",
    "日本語のとても長いクラス名は空白を含まない",
    "cat", "dog", "an owl", "x",
)  # fmt: skip
C, D, N = len(NAMES), 12, 400


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model whose classes have long names, its counts, and logits of it."""
    generator = np.random.default_rng(0)
    weight, features = generator.normal(size=(C, D)), generator.normal(size=(N, D))
    tensors = {"stem.weight": generator.normal(size=(D, 5)), "fc.weight": weight}
    save_file(
        {name: t.astype(np.float32) for name, t in tensors.items()}, tmp_path / "m.safetensors"
    )
    labels = np.argmax(features @ weight.T + generator.gumbel(size=(N, C)), axis=1)
    logits = (features @ weight.T).astype(np.float32)
    np.savez(tmp_path / "logits.npz", logits=logits, labels=labels)
    np.savez(tmp_path / "base.npz", logits=logits + generator.normal(size=(N, C)), labels=labels)
    counts = [[3, 40, 500, 9, 12345, 27, 64][i] for i in range(C)]
    (tmp_path / "counts.json").write_text(json.dumps(dict(zip(NAMES, counts, strict=True))))
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_ACTIONS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


HEAD = ("m.safetensors", "--counts", "counts.json", "--classes", "names.txt")
APPLY = ("apply", *HEAD, "-g", "0.3")
ON = ("--logits", "logits.npz", "--bootstrap", "20")
SHOWN: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", *HEAD),
    "apply": (*APPLY, "--dry-run"),
    "shifts": ("apply", *HEAD, "-g", "0.3", "--method", "tau-norm", "--dry-run"),
    "counts": ("counts", "counts.json"),
    "sweep-gamma": ("sweep-gamma", *HEAD, *ON),
    "compare": ("compare", *HEAD, *ON),
    "evaluate": (
        "-v", "evaluate", *HEAD, *ON, "--against", "other.safetensors",
        "--against-logits", "base.npz",
    ),
}  # fmt: skip


# ------------------------------------------------------------------- -q, -v and --json everywhere


@pytest.mark.parametrize(
    "words",
    [("--json", *APPLY, "--dry-run"), (*APPLY, "--dry-run", "--json"),
     ("--json", *APPLY, "--dry-run", "--json")],
    ids=["before", "after", "both"],
)  # fmt: skip
def test_json_stands_before_or_after_the_command(
    words: tuple[str, ...], work: Path, capsys: Capture
) -> None:
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


@pytest.mark.parametrize(
    "words", [("--json", "apply"), ("apply", "--json"), ("--json", "nonsense")]
)
def test_an_error_is_json_too_wherever_json_stands(
    words: tuple[str, ...], work: Path, capsys: Capture
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "usage"
    assert err == ""


def test_a_file_may_be_called_json_after_two_dashes(work: Path, capsys: Capture) -> None:
    assert main(["inspect", "--", "--json"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (("inspect",), 0),
        (("-v", "inspect"), 1),
        (("inspect", "-v"), 1),
        (("-v", "inspect", "-v"), 2),
        (("inspect", "-vv"), 2),
        (("-qv", "inspect", "-vv"), 3),
        (("inspect", "--verbose"), 1),
    ],
)
def test_v_counts_wherever_it_stands(words: tuple[str, ...], level: int, work: Path) -> None:
    assert main([*words, "m.safetensors"]) == 0
    assert console.verbosity.get() == level
    assert console.quiet.get() is ("-qv" in words)


def test_one_command_line_says_nothing_about_the_next(work: Path) -> None:
    assert main(["-q", "-vv", "--json", "inspect", "m.safetensors"]) == 0
    assert main(["inspect", "m.safetensors"]) == 0
    assert (console.quiet.get(), console.verbosity.get(), console.as_json.get()) == (
        False,
        0,
        False,
    )


@pytest.mark.parametrize("place", ["before", "after"])
def test_vv_prints_the_traceback_of_a_bug_wherever_it_stands(
    place: str, work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rescale_cli.patching.plan.make_plan", lambda *_, **__: 1 / 0)
    assert main(["-vv", *APPLY] if place == "before" else [*APPLY, "-vv"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_shows_each_global_option_once(command: str, capsys: Capture) -> None:
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("-v, --verbose", "-q, --quiet", "--json"):
        assert len(re.findall(rf"^│ {option} ", out, re.MULTILINE)) == 1


def test_quiet_hides_notes_and_no_warning(work: Path, capsys: Capture) -> None:
    (work / "zero.json").write_text(json.dumps([0, *range(1, C)]))
    assert main(["-q", "counts", "zero.json"]) == 0
    assert capsys.readouterr().err.startswith("warning: ")
    console.quiet.set(True)
    Notes(as_json=False)("nobody reads this")
    console.quiet.set(False)
    assert capsys.readouterr().err == ""


def test_a_detail_is_a_note_only_with_v(capsys: Capture) -> None:
    for level in (0, 1):
        console.verbosity.set(level)
        notes = Notes(as_json=True)
        notes(Detail("no CUDA device is available"))
        assert notes.kept == [("note", "no CUDA device is available")] * level
    console.verbosity.set(0)


# --------------------------------------------------------------------------------- tables and width

#: The words of a text that may stand in a table: runs of what is no space.
texts = st.lists(
    st.text(st.characters(whitelist_categories=["Lu", "Ll", "Nd", "Lo"]), min_size=1, max_size=30),
    min_size=1, max_size=6,
).map(" ".join)  # fmt: skip
numbers = st.floats(0, 1e6).map(lambda x: f"{x:,.4f}")
rows = st.lists(st.tuples(texts, numbers, texts, numbers, st.floats(0, 1)), min_size=1, max_size=5)


def grid_of(table: list[tuple[str, str, str, str, float]]) -> Grid:
    """A table of names, numbers, sentences and bars."""
    grid = Grid(["a name", "number>", "what it says", "other number>", "bar"])
    for *cells, share in table:
        grid.add(*cells, Bar(share, f"{share:.2f}"))
    return grid


@given(rows, st.integers(20, 200))
def test_no_line_of_a_table_is_longer_than_the_width_unless_a_word_is(
    table: list[tuple[str, str, str, str, float]], width: int
) -> None:
    longest = max(cell_len(word) for *cells, _ in table for cell in cells for word in cell.split())
    for line in grid_of(table).lines(width):
        assert cell_len(line.plain) <= max(width, longest + 16)  # beside the title of a record
        assert line.plain == line.plain.rstrip()


@given(rows, st.integers(20, 200))
def test_every_word_of_a_table_is_there_whole(
    table: list[tuple[str, str, str, str, float]], width: int
) -> None:
    shown = [word for line in grid_of(table).lines(width) for word in line.plain.split()]
    for *cells, share in table:
        for word in [*" ".join(cells).split(), f"{share:.2f}"]:
            assert word in shown


def test_a_wide_table_is_not_wrapped() -> None:
    grid = grid_of([("one two three", "1.0", "four five six seven", "2.0", 0.5)])
    assert len(grid.lines(200)) == 2
    assert len(grid.lines(60)) > 2


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", SHOWN)
def test_what_a_command_shows_fits_and_is_whole(
    name: str, width: int, work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "other.safetensors").write_bytes((work / "m.safetensors").read_bytes())
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(SHOWN[name]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "…" not in out.replace("\n…", "")
    words = {word for line in NAMES for word in line.split()}
    for line in out.splitlines():
        alone = len(line.split()) == 1 or "rescale-cli " in line
        assert cell_len(line) <= width or alone, line
    shown = set(re.findall(r"\S+", out))
    if name != "compare":  # it shows methods, not classes
        assert words <= {word.rstrip(":,") for word in shown} | shown


def test_the_width_is_that_of_columns_or_80_and_at_most_200(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for text, wanted in (("60", 60), ("500", 200), ("", 80), ("0", 80), ("x", 80), ("٣", 80)):
        monkeypatch.setenv("COLUMNS", text)
        assert console.width() == wanted
    monkeypatch.delenv("COLUMNS")
    assert console.width() == 80


def test_a_command_to_copy_stays_on_one_line(
    work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    example = Path(__file__).parents[2] / "examples" / "fashion_lt"
    words = [str(example / "model.safetensors"), "--counts", str(example / "counts.json"),
             "--logits", str(example / "val_logits.npz"), "--bootstrap", "0"]  # fmt: skip
    for command in ("sweep-gamma", "compare"):
        assert main([command, *words]) == 0
        (line,) = [x for x in capsys.readouterr().out.splitlines() if "rescale-cli apply" in x]
        assert str(example / "model.safetensors") in line
        assert str(example / "counts.json") in line


# ------------------------------------------------------------------------------ other terminals


@pytest.mark.parametrize("words", SHOWN.values(), ids=SHOWN)
def test_a_terminal_of_ascii_gets_ascii_and_no_traceback(
    words: tuple[str, ...], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "other.safetensors").write_bytes((work / "m.safetensors").read_bytes())
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(words) == 0
    shown = out.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "\\u2588" not in shown
    assert "\\u2581" not in shown
    assert "\\u25b2" not in shown
    assert ("##" in shown) == (words[0] in ("inspect", "sweep-gamma"))


# --------------------------------------------------------------------------------- a bar and notes


class Terminal:
    """What is left on a terminal after all was written to it: the few codes that rich uses."""

    def __init__(self, width: int) -> None:
        self.width, self.rows, self.y, self.x = width, [""], 0, 0

    def feed(self, text: str) -> None:
        """Text with control codes."""
        for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]", text):
            if part == "\r":
                self.x = 0
            elif part == "\n":
                self._down()
            elif part.startswith("\x1b"):
                self._code(part[2:-1], part[-1])
            else:
                self._put(part)

    def _down(self) -> None:
        self.y += 1
        self.rows += [""] * (self.y + 1 - len(self.rows))

    def _put(self, letter: str) -> None:
        if self.x + cell_len(letter) > self.width:
            self.x = 0
            self._down()
        row = self.rows[self.y].ljust(self.x)
        self.rows[self.y] = row[: self.x] + letter + row[self.x + 1 :]
        self.x += 1

    def _code(self, number: str, letter: str) -> None:
        if letter == "A":
            self.y = max(0, self.y - int(number or 1))
        elif letter == "K":
            self.rows[self.y] = "" if number == "2" else self.rows[self.y][: self.x]
        else:
            assert letter in "mhl", f"the code {number}{letter} is not known to this terminal"


BUSY = """
import sys, time, warnings
from rescale_cli.commands import console as screen
from rescale_cli.commands.progress import Notes, progress_bar
notes = Notes(False)
with progress_bar("model.pth") as show:
    for number in range(6):
        show(number, 6, 12.5)
        time.sleep(0.15)
        notes(f"note {number} " + "and so on " * 12 + f"end {number}")
        if number == 2:
            sys.stderr.write("a line of a library\\n")
screen.say("the result")
"""


def on_a_terminal(words: list[str], width: int = 60, **env: str) -> str:
    """All that a process writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = child_environment(**{"TERM": "xterm", "COLUMNS": "", **env})
    process = subprocess.Popen(
        [sys.executable, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    assert process.wait(60) == 0, b"".join(parts)
    os.close(ours)
    return b"".join(parts).decode()


def test_notes_stand_whole_above_a_bar_that_leaves_nothing_behind() -> None:
    written = on_a_terminal(["-c", BUSY])
    assert "images/s" in written, "there was a bar"
    terminal = Terminal(60)
    terminal.feed(written)
    left = "".join(row.ljust(60) for row in terminal.rows if row)
    for number in range(6):
        note = f"note: note {number} " + "and so on " * 12 + f"end {number}"
        assert left.count(note) == 1
    assert left.count("a line of a library") == 1
    assert "images/s" not in left
    assert "━" not in left
    assert left.rstrip().endswith("the result")


def test_a_dumb_terminal_gets_no_bar_and_no_code() -> None:
    written = on_a_terminal(["-c", BUSY], TERM="dumb")
    assert "\x1b" not in written
    assert "images/s" not in written
    assert written.count("note: ") == 6


# ------------------------------------------------------------------------------- plain progress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test sets it."""
    time = [0.0]
    monkeypatch.setattr(long_work, "clock", lambda: time[0])
    monkeypatch.setattr(progress, "EVERY", EVERY)
    return time


def beats(now: list[float], at: list[Any]) -> Any:
    """Waiting that ends at once: before each beat it calls the next of `at`, then it has ended."""
    todo = iter(at)

    def stopped(end: threading.Event, seconds: float) -> bool:
        now[0] += seconds
        step = next(todo, None)
        if step is None:
            end.wait(60)
            return True
        step()
        return False

    return stopped


def run_beats(now: list[float], at: list[Any]) -> None:
    """The block ends when all beats are over."""
    over = threading.Event()
    with heartbeat("evaluate", beats(now, [*at, over.set])):
        assert over.wait(60)


def test_a_line_is_printed_every_half_minute_with_what_is_known(
    now: list[float], capsys: Capture
) -> None:
    assert EVERY < 30
    with progress_bar("a.pth") as show:
        assert show is not None
        run_beats(
            now,
            [lambda: None, lambda: show(12_800, 50_000, 1.0), lambda: show(40_000, 50_000, 1.0)],
        )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[:3] == [
        "evaluating a.pth: 29 s so far",
        "evaluating a.pth: 12,800 of 50,000 images, 25 %, 2 min 49 s left",
        "evaluating a.pth: 40,000 of 50,000 images, 80 %, 22 s left",
    ]


def test_work_that_nobody_named_is_the_command(now: list[float], capsys: Capture) -> None:
    run_beats(now, [lambda: None, lambda: None])
    assert capsys.readouterr().err.splitlines()[:2] == [
        "evaluate: 29 s so far",
        "evaluate: 58 s so far",
    ]


def test_the_innermost_work_is_shown(now: list[float], capsys: Capture) -> None:
    with long_work.long_work("loading"), long_work.long_work("counting", "images"):
        long_work.found("images", 1234)
        long_work.found("bytes", 5)
        run_beats(now, [lambda: None])
    assert capsys.readouterr().err.startswith("counting: 1,234 images, 29 s so far\n")


def test_work_that_begins_anew_measures_its_time_anew(now: list[float]) -> None:
    work = Work("training", "images")
    now[0] = 50.0
    work.tick(100, 100)
    assert progress.progress_line(work, 50.0).endswith("100 %, 0 s left")
    work.tick(1, 100)
    now[0] = 51.0
    assert progress.progress_line(work, 51.0) == "training: 1 of 100 images, 1 %, 1 min 39 s left"


def test_short_work_prints_nothing(capsys: Capture) -> None:
    with heartbeat("evaluate"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("reason", ["quiet", "rank", "bar"])
def test_no_line_is_printed(
    reason: str, now: list[float], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = console.quiet.set(reason == "quiet")
    if reason == "rank":
        monkeypatch.setenv("RANK", "1")
    if reason == "bar":
        monkeypatch.setattr(console, "live", [(lambda: None, lambda: None)])
        run_beats(now, [lambda: None])
    else:
        with heartbeat("evaluate", beats(now, [lambda: None])):
            pass
    console.quiet.reset(token)
    assert capsys.readouterr().err == ""


def test_every_command_runs_under_the_clock_and_json_stays_one_document(
    work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.001)
    assert main(["sweep-gamma", *HEAD, *ON, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] is True
    assert "so far" in err
