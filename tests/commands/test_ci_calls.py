"""Calls as CI systems make them: streams, environments, umasks and folders unlike a terminal's.

Most calls run in forks of one process (`forked_calls.py`); those in which Python itself starts in
another way are processes of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import schema_of

import rescale_cli
from rescale_cli.cli import COMMANDS
from rescale_cli.commands import demo_report

HERE = Path(__file__).parent
NEW = "new.safetensors"
LOGITS = ("model.safetensors", "--logits", "val_logits.npz", "--counts", "counts.json")

#: Each quick command, and the files that it writes, the first of which is its main result.
CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "counts": (("counts", "counts.json", "-o", "c.json"), ("c.json",)),
    "inspect": (("inspect", "model.safetensors", "--counts", "counts.json"), ()),
    "apply": (
        ("apply", "model.safetensors", "--counts", "counts.json", "-g", "0.3", "-o", NEW), (NEW,),
    ),
    "verify": (("verify", "done.safetensors", "--against", "model.safetensors"), ()),
    "revert": (("revert", "done.safetensors", "-o", "back.safetensors"), ("back.safetensors",)),
    "schema": (("schema", "apply"), ()),
    "evaluate": (
        ("evaluate", *LOGITS, "--metrics-out", "m.json", "--csv", "e.csv", "--junit", "j.xml",
         "--predictions-out", "p.csv", "--bootstrap", "20"),
        ("m.json", "e.csv", "j.xml", "p.csv"),
    ),
    "sweep-gamma": (
        ("sweep-gamma", *LOGITS, "--bootstrap", "20", "-o", "s.json", "--csv", "s.csv",
         "--apply", NEW),
        ("s.json", "s.csv", NEW),
    ),
    "compare": (
        ("compare", *LOGITS, "--bootstrap", "20", "-o", "s.json", "--csv", "c.csv"),
        ("s.json", "c.csv"),
    ),
}  # fmt: skip

#: Those that can fail to be printed after they have written something.
WRITERS = [name for name, (_, files) in CALLS.items() if files]


@dataclass(frozen=True)
class Around:
    """What a CI system puts around a call."""

    env: dict[str, str] = field(default_factory=dict)
    streams: tuple[str | None, str | None, str | None] = (os.devnull, "out", "err")
    """Files for stdin, stdout and stderr; None is closed, "gone" a pipe that nobody reads."""
    umask: int = 0o022
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Ended:
    """What became of a call."""

    code: int
    out: str
    err: str
    folder: Path
    new: frozenset[str]
    """Names that were not in the folder before."""

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout, which must fit its schema."""
        found: dict[str, Any] = json.loads(self.out)
        command = found["schema"].removeprefix("rescale-cli/").removesuffix("@1")
        jsonschema.validate(found, schema_of(command))
        return found


class Caller:
    """Runs command lines in copies of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source, self.number = folder, folder / "source", 0
        self.source.mkdir()
        for name in demo_report.EXAMPLE:
            shutil.copy(demo_report.bundled() / name, self.source)
        self.process = subprocess.Popen(
            [sys.executable, HERE / "forked_calls.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip

    def ask(self, folder: Path, words: Sequence[str], around: Around, *, here: bool) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {
            "words": words, "env": environment(**around.env), "streams": around.streams,
            "umask": around.umask, "encoding": around.encoding, "cwd": str(folder), "here": here,
        }  # fmt: skip
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def fresh(self) -> Path:
        self.number += 1
        return Path(shutil.copytree(self.source, self.folder / str(self.number)))

    def __call__(self, *words: str, around: Around = Around(), here: bool = False) -> Ended:
        folder = self.fresh()
        code = self.ask(folder, words, around, here=here)
        new = {path.name for path in folder.iterdir()} - {p.name for p in self.source.iterdir()}
        assert "harness-error" not in new, (folder / "harness-error").read_text()
        said = [(folder / f).read_text("utf-8") if f in new else "" for f in ("out", "err")]
        assert "Traceback" not in said[1]
        assert not [name for name in new if name.startswith(".rescale-cli-")]
        return Ended(code, *said, folder, frozenset(new - {"out", "err"}))


def environment(**more: str) -> dict[str, str]:
    """What a bare CI job has."""
    bare = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
    root = str(Path(rescale_cli.__file__).parents[1])
    return {**bare, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, **more}


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    caller = Caller(tmp_path_factory.mktemp("calls"))
    ended = caller(*CALLS["apply"][0], here=True)
    shutil.copy(ended.folder / NEW, caller.source / "done.safetensors")
    for name in CALLS:  # what they import, every fork has imported
        caller(*CALLS[name][0], here=True)
    yield caller
    assert caller.process.stdin is not None
    assert caller.process.stdout is not None
    caller.process.stdin.close()
    assert caller.process.wait(30) == 0
    caller.process.stdout.close()


@pytest.fixture(scope="module")
def plain(call: Caller) -> Callable[[str], Ended]:
    """What each command prints and writes where nothing is unusual."""
    ready: dict[str, Ended] = {}

    def get(name: str) -> Ended:
        if name not in ready:
            ready[name] = call(*CALLS[name][0])
            assert ready[name].code == 0
            assert ready[name].new == set(CALLS[name][1])
        return ready[name]

    return get


def same_files(one: Ended, other: Ended) -> bool:
    return one.new == other.new and all(
        (one.folder / name).read_bytes() == (other.folder / name).read_bytes() for name in one.new
    )


# --------------------------------------------------------------------------- the environment

QUIET = {
    "TERM=dumb": Around({"TERM": "dumb"}),
    "NO_COLOR": Around({"NO_COLOR": "1", "TERM": "xterm-256color"}),
    "CI without GitHub": Around({"CI": "true"}),
    "GITHUB_ACTIONS=false": Around({
        "CI": "true", "GITHUB_ACTIONS": "false", "GITHUB_OUTPUT": "o", "GITHUB_STEP_SUMMARY": "p",
    }),
    "COLUMNS is no number": Around({"COLUMNS": "wide"}),
    "HOME is a device": Around({"HOME": "/dev/null"}),
    "stdin closed": Around(streams=(None, "out", "err")),
    "umask 002": Around(umask=0o002),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("where", QUIET)
def test_the_environment_changes_nothing(
    name: str, where: str, call: Caller, plain: Callable[[str], Ended]
) -> None:
    ended = call(*CALLS[name][0], around=QUIET[where])
    assert (ended.code, ended.out, ended.err) == (0, plain(name).out, plain(name).err)
    assert "\x1b" not in ended.out + ended.err
    assert same_files(ended, plain(name))


@pytest.mark.parametrize("name", CALLS)
def test_stdout_is_one_document_though_colours_are_forced(name: str, call: Caller) -> None:
    around = Around({"FORCE_COLOR": "1", "CI": "true", "COLUMNS": "60"})
    ended = call(*CALLS[name][0], "--json", around=around)
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["ok"]


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("name", [name for name in CALLS if name != "schema"])
def test_tables_fit_the_columns(name: str, columns: int, call: Caller) -> None:
    ended = call(*CALLS[name][0], around=Around({"COLUMNS": str(columns)}))
    assert ended.code == 0
    # A hash, a path or a command that is copied is one word, or stands alone.
    long = [line for line in ended.out.splitlines() if len(line) > columns]
    assert all(re.search(r"[0-9a-f]{64}|rescale-cli |\.safetensors", line) for line in long), long


@pytest.mark.parametrize("name", CALLS)
def test_ascii_is_enough(name: str, call: Caller) -> None:
    ended = call(*CALLS[name][0], around=Around({"LANG": "C"}, encoding="ascii"))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.isascii()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("umask", [0o077, 0o002])
def test_every_output_has_the_permissions_that_the_umask_leaves(
    name: str, umask: int, call: Caller
) -> None:
    ended = call(*CALLS[name][0], around=Around(umask=umask))
    model = (ended.folder / "model.safetensors").stat().st_mode & 0o777
    for file in ended.new:
        mode = (ended.folder / file).stat().st_mode & 0o777
        # A model is as private as the model that it was made of.
        weights = file.endswith(".safetensors")
        assert mode == (model if weights and mode != 0o666 & ~umask else 0o666 & ~umask), file


# ------------------------------------------------------------------------------- the streams


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("stdout", ["gone", None])
@pytest.mark.parametrize("name", CALLS)
def test_nobody_need_read_stdout(
    name: str, stdout: str | None, options: list[str], call: Caller, plain: Callable[[str], Ended]
) -> None:
    around = Around(streams=(os.devnull, stdout, "err"))
    ended = call(*CALLS[name][0], *options, around=around)
    assert (ended.code, ended.err) == (0, "")
    assert same_files(ended, plain(name))


@pytest.mark.parametrize("stderr", ["gone", None, "/dev/full"])
@pytest.mark.parametrize("name", CALLS)
def test_nobody_need_read_stderr(
    name: str, stderr: str | None, call: Caller, plain: Callable[[str], Ended]
) -> None:
    ended = call(*CALLS[name][0], around=Around(streams=(None, "out", stderr)))
    assert (ended.code, ended.out) == (0, plain(name).out)
    assert same_files(ended, plain(name))


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("name", CALLS)
def test_a_full_stdout_is_reported_beside_the_complete_result(
    name: str, options: list[str], call: Caller, plain: Callable[[str], Ended]
) -> None:
    around = Around(streams=(os.devnull, "/dev/full", "err"))
    ended = call(*CALLS[name][0], *options, around=around)
    assert ended.code == 5
    assert "error: the command did its work, but its result could not be printed" in ended.err
    assert ended.err.count("error: ") == 1
    assert "no space left on device" in ended.err
    assert all(file in ended.err for file in CALLS[name][1])
    assert same_files(ended, plain(name))


@pytest.mark.parametrize("stdout", ["gone", "/dev/full", None])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_failed_gate_is_not_hidden_by_a_lost_stdout(
    stdout: str | None, options: list[str], call: Caller
) -> None:
    around = Around(streams=(os.devnull, stdout, "err"))
    gate = ("evaluate", *LOGITS, "--fail-under", "accuracy=0.999", *options)
    assert call(*gate, around=around).code == 6


def test_an_error_that_nobody_reads_keeps_its_exit_code(call: Caller) -> None:
    words = ("evaluate", "model.safetensors", "--counts", "counts.json", "--logits", "x.npz")
    for stderr in ("gone", "/dev/full", None):
        assert call(*words, around=Around(streams=(None, "out", stderr))).code == 3


# ------------------------------------------------------------------------------------ GitHub


@pytest.mark.parametrize("name", CALLS)
def test_files_of_github_that_cannot_be_written_spoil_nothing(
    name: str, call: Caller, plain: Callable[[str], Ended]
) -> None:
    env = {"CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": "/dev/null/o",
           "GITHUB_STEP_SUMMARY": "/dev/full"}  # fmt: skip
    ended = call(*CALLS[name][0], around=Around(env))
    assert (ended.code, ended.out) == (0, plain(name).out)
    assert same_files(ended, plain(name))
    said = [f for f in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY") if f"{f} could not" in ended.err]
    assert len(said) == len(ended.err.splitlines())


@pytest.mark.parametrize("name", ["evaluate", "sweep-gamma"])
def test_on_github_the_step_gets_its_outputs_and_its_page(name: str, call: Caller) -> None:
    env = {"CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": "o", "GITHUB_STEP_SUMMARY": "p"}
    ended = call(*CALLS[name][0], around=Around(env))
    assert ended.code == 0
    lines = (ended.folder / "o").read_text().splitlines()
    assert all(re.fullmatch(r"[\w-]+=.*", line) for line in lines)
    assert lines
    page = ended.folder / "p"
    assert "|" in page.read_text() if name == "evaluate" else True


# ------------------------------------------------------------------------------ paths and pipes


@pytest.mark.parametrize("name", ["a b.json", "häufig 数.json", "-dash.json"])
def test_any_name_is_a_path(name: str, call: Caller) -> None:
    out = f"./{name}" if name.startswith("-") else name
    ended = call("counts", "counts.json", "-o", out)
    assert (ended.code, ended.err, ended.new) == (0, "", {name})
    (call.source / name).write_bytes((ended.folder / name).read_bytes())
    try:
        again = call("counts", "--json", "--", name)
    finally:
        (call.source / name).unlink()
    assert (again.code, again.err) == (0, "")
    kept = json.loads((ended.folder / name).read_text())["counts"]
    assert again.document["result"]["counts"] == kept


@pytest.mark.parametrize("given", ["-", "/dev/stdin", "/dev/fd/0"])
def test_counts_are_read_from_a_pipe(given: str, call: Caller) -> None:
    words = ["apply", "model.safetensors", "--counts", given, "-g", "0.3", "-o", NEW, "--json"]
    folder = call.fresh()
    run = started(folder, *words, input=(folder / "counts.json").read_text())
    assert (run.returncode, run.stderr) == (0, "")
    counts = json.loads((folder / "counts.json").read_text())
    values = counts["counts"] if "counts" in counts else list(counts.values())
    assert json.loads(run.stdout)["result"]["counts"] == values


def test_counts_are_read_from_a_process_substitution(call: Caller) -> None:
    folder = call.fresh()
    line = f"{sys.executable} -m rescale_cli inspect model.safetensors --counts <(cat counts.json)"
    run = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("name", WRITERS)
def test_an_output_that_cannot_be_written_is_one_error_and_nothing_else(
    name: str, call: Caller
) -> None:
    words, files = CALLS[name]
    for file in files:
        for place, codes in ((f"counts.json/{file}", (3, 5)), (f"no/{file}", (3,)), ("-", (2,))):
            ended = call(*(place if word == file else word for word in words), "--json")
            assert ended.code in codes, (place, ended.out)
            assert ended.document["error"]["fix"]
            assert ended.new == frozenset(), (place, ended.document)


@pytest.mark.parametrize("name", ["evaluate", "sweep-gamma", "compare"])
def test_a_folder_that_takes_no_file_is_found_before_the_work(name: str, call: Caller) -> None:
    words, files = CALLS[name]
    for file in files[:2]:
        ended = call(*(f"/proc/{file}" if word == file else word for word in words), "--json")
        assert (ended.code, ended.new) == (5, frozenset())
        assert f"/proc/{file}" in ended.document["error"]["what"]


# ------------------------------------------------------------------- Python started otherwise


def started(folder: Path, *words: str, python: Sequence[str] = (), **more: Any) -> Any:
    env = environment(**more.pop("env", {}))
    return subprocess.run(
        [sys.executable, *python, "-m", "rescale_cli", *words],
        cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120, **more,
    )  # fmt: skip


#: The others start no library that these do not.
@pytest.mark.parametrize("name", ["apply", "verify", "revert", "evaluate", "sweep-gamma"])
def test_optimized_and_with_warnings_as_errors_each_command_says_the_same(
    name: str, call: Caller, plain: Callable[[str], Ended]
) -> None:
    strict = {"PYTHONOPTIMIZE": "2", "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}
    run = started(call.fresh(), *CALLS[name][0], env=strict)
    assert (run.returncode, run.stdout, run.stderr) == (0, plain(name).out, plain(name).err)


def test_help_is_the_same_under_oo(call: Caller) -> None:
    """All of them in one process, as the text of a command is made when the package is imported."""
    script = (
        "import sys; from rescale_cli.cli import COMMANDS, main;"
        "codes = [main(w) for w in (['--help'], *([c, '--help'] for c in COMMANDS))];"
        "sys.exit(any(codes))"
    )
    said = [
        subprocess.run(
            [sys.executable, *how, "-c", script],
            env=environment(), capture_output=True, text=True, check=True,
        ).stdout
        for how in ((), ("-OO",))
    ]  # fmt: skip
    assert said[0] == said[1]
    assert all(f"rescale-cli {name} " in said[0] for name in COMMANDS)


def test_without_home_and_locale_the_command_runs(
    call: Caller, plain: Callable[[str], Ended]
) -> None:
    folder = call.fresh()
    env = {name: value for name, value in environment().items() if name not in ("HOME", "LANG")}
    run = subprocess.run(
        [sys.executable, "-m", "rescale_cli", *CALLS["apply"][0]],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, plain("apply").out, "")


# ------------------------------------------------------------------------------- the long ones


def test_demo_and_train_do_their_work_in_ci(call: Caller) -> None:
    around = Around({"CI": "true", "TERM": "dumb", "FORCE_COLOR": "1"}, (None, "out", "err"), 0o077)
    ended = call("demo", "-o", "d", "--json", around=around)
    assert (ended.code, ended.err, ended.new) == (0, "", {"d"})
    assert ended.document["result"]
    again = call("demo", "-o", "counts.json", "--json", around=around)
    assert (again.code, again.new) == (4, frozenset())
    with np.load(call.source / "val.npz") as whole:
        np.savez(call.source / "few.npz", **{name: whole[name][:40] for name in whole.files})
    words = ("--data", "npz:few.npz", "--arch", "rescale:resnet8", "--epochs", "1", "-b", "20")
    ended = call("train", *words, "-o", "run", "--json", around=around)
    assert (ended.code, ended.new) == (0, {"run"})
    assert ended.document["result"]
    assert "\x1b" not in ended.err


def test_a_training_that_cannot_begin_leaves_no_folder(call: Caller) -> None:
    ended = call("train", "--data", "npz:val.npz", "--arch", "rescale:none", "-o", "run")
    assert (ended.code, ended.new) == (2, frozenset())
