"""The command line keeps its contract: streams, exit codes, JSON, help, and no torch."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import COUNTS, C, D, Made, child_environment

import rescale_cli
from rescale_cli import api
from rescale_cli.cli import COMMANDS, command_of, main
from rescale_cli.commands import options

Containers = Callable[[str], Made]
Capture = pytest.CaptureFixture[str]

#: Of every command that runs a model.
ON = (
    "--data", "--logits", "--arch", "--preset", "--size", "--mean", "--std", "--save-logits",
    "--save-features", "--download", "--device", "-b", "--batch-size", "-j", "--workers", "--amp",
    "--channels-last", "--no-channels-last", "--compile", "--skip-bad",
)  # fmt: skip

#: What the command line promises that each command takes; more is welcome.
OPTIONS = {
    "": ("-h", "--help", "--version", "-v", "-q"),
    "demo": ("-o", "--json"),
    "inspect": ("--counts", "--num-classes", "--head", "--accept-global", "--json"),
    "counts": ("-o", "--json"),
    "apply": (
        "--counts", "-g", "--gamma", "--tau", "--method", "-n", "--normalize", "--bias", "-o",
        "--output", "--head", "--classes", "--zero-count", "--max-factor", "--exclude-class",
        "--target-prior", "--temperature", "--compose", "--in-place", "--force", "--dry-run",
        "--no-undo", "--accept-global", "--json",
    ),
    "evaluate": (
        *ON, "--counts", "--groups",
        "--method", "-g", "--gamma", "--tau", "-n", "--normalize", "--bias", "--against",
        "--fail-under", "--fail-over", "--fail-drop", "--metrics-out", "--predictions-out",
        "--csv", "--junit", "--json",
    ),
    "sweep-gamma": (
        "--counts", *ON, "--metric", "--choose", "--normalize", "--bias", "--holdout",
        "--bootstrap", "--unlabeled", "--target-prior", "--gamma-max", "--fit-temperature",
        "--seed", "-o", "--csv", "--apply", "--method", "--head", "--classes", "--json",
    ),
    "compare": (
        "--counts", *ON, "--metric", "--choose", "--holdout", "--bootstrap", "--target-prior",
        "--gamma-max", "--seed", "-o", "--csv", "--apply", "--require-gain", "--json",
    ),
    "train": (
        "--data", "--val-data", "--arch", "--imbalance", "--wvn", "--no-wvn", "--gamma", "--epochs",
        "-b", "--lr", "--milestones", "--lr-decay", "--momentum", "--weight-decay",
        "--warmup-epochs", "--loss", "--drw-epoch", "--sampler", "--amp", "--compile", "--seed",
        "--resume", "--preset", "--config", "--print-config", "-o", "--tensorboard", "--download",
        "--force", "--json",
    ),
    "verify": ("--against", "--accept-global", "--json"),
    "revert": ("-o", "--output", "--against", "--force", "--json"),
    "schema": ("--json",),
}  # fmt: skip

#: A tensor's name as an attacker would choose it.
NASTY = "\x1b[31mfc\x07[/red][bold]::error::\u202eevil\r\n##vso[task]"


@pytest.fixture
def work(tmp_path: Path, containers: Containers, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint and its counts, and the process in it."""
    shutil.copy(containers("state dict").path, tmp_path / "model.pth")
    (tmp_path / "counts.json").write_text(json.dumps(COUNTS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def child(words: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    environment = child_environment(**more.pop("env", {}))
    return subprocess.run(
        [sys.executable, "-m", "rescale_cli", *words],
        capture_output=True, text=True, timeout=120, env=environment, check=False, **more,
    )  # fmt: skip


def document(capsys: Capture) -> tuple[dict[str, Any], str]:
    """The one JSON document on stdout, and what is on stderr."""
    out, err = capsys.readouterr()
    found, end = json.JSONDecoder().raw_decode(out)
    assert out[end:] == "\n"
    assert isinstance(found, dict)
    return found, err


APPLY = ("apply", "model.pth", "--counts", "counts.json", "-g", "0.3")


# ------------------------------------------------------------------------------- help and version


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_names_every_option_of_the_contract(command: str, word: str, capsys: Capture) -> None:
    assert main([*command.split(), word]) == 0
    out, err = capsys.readouterr()
    shown = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", out))
    assert set(OPTIONS[command]) <= shown
    assert err == ""


def test_every_option_and_argument_has_a_help_text_and_every_command_too() -> None:
    for name, command in zip(COMMANDS, map(command_of, COMMANDS), strict=True):
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None) or parameter.name == "help", (name, parameter)


def test_help_lists_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^│ {name} ", out, re.MULTILINE) for name in COMMANDS)


def test_the_version_is_printed(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rescale-cli {rescale_cli.__version__}\n"


def test_python_dash_m_and_the_installed_command_are_the_same(work: Path) -> None:
    script = Path(sys.executable).with_name("rescale-cli")
    run = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert child(["--version"]).stdout == run.stdout
    assert child(list(APPLY)).returncode == 0
    assert (work / "model.rescaled.pth").is_file()


# ------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("words", "code", "name"),
    [
        (("nonsense",), 2, "usage"),
        (("--nonsense",), 2, "usage"),
        (("apply", "model.pth"), 2, "usage"),
        (("apply", "model.pth", "--counts", "counts.json", "-g", "x"), 2, "usage"),
        ((*APPLY, "--method", "magic"), 2, "usage"),
        ((*APPLY, "--bias", "half"), 2, "usage"),
        ((*APPLY[:-1], "-0.1"), 2, "usage"),
        ((*APPLY[:-1], "5"), 2, "usage"),
        ((*APPLY[:-1], "nan"), 2, "usage"),
        ((*APPLY, "--temperature", "0"), 2, "usage"),
        ((*APPLY, "--max-factor", "0.5"), 2, "usage"),
        ((*APPLY, "-n", "--method", "tau-norm"), 2, "usage"),
        ((*APPLY, "--in-place", "-o", "x.pth"), 2, "usage"),
        ((*APPLY, "--exclude-class", "unicorn"), 2, "usage"),
        (("inspect", "model.pth", "--num-classes", "0"), 2, "usage"),
        (("inspect", "no.pth"), 3, "bad-checkpoint"),
        (("inspect", "n" * 300), 3, "bad-checkpoint"),
        (("verify", "n" * 300, "--against", "model.pth"), 3, "bad-checkpoint"),
        ((*APPLY, "--temperature", "1e-320"), 2, "usage"),
        (("inspect", "counts.json"), 3, "bad-checkpoint"),
        (("inspect", "model.pth", "--num-classes", "9"), 3, "bad-input"),
        (("inspect", "model.pth", "--head", "no.such"), 3, "bad-input"),
        (("apply", "model.pth", "--counts", "no.json", "-g", "1"), 3, None),
        ((*APPLY[:-1], "@no.json"), 3, None),
        (("verify", "model.pth", "--against", "model.pth"), 3, "not-proven"),
        (("revert", "model.pth", "-o", "x.pth"), 3, "not-proven"),
        ((*APPLY, "-o", "-"), 2, "usage"),
        ((*APPLY, "-o", "model.pth"), 4, "output-exists"),
        ((*APPLY, "-o", "model.pth", "--force"), 4, "output-exists"),
        ((*APPLY, "-o", "counts.json"), 4, "output-exists"),
        ((*APPLY, "-o", "missing/folder/x.pth"), 3, "bad-input"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_failures_have_their_exit_code_in_words_and_in_json(
    words: tuple[str, ...], code: int, name: str | None, work: Path, capsys: Capture
) -> None:
    before = sorted(work.iterdir())
    assert main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("  fix: ")
    assert "Traceback" not in err
    assert main([*words, "--json"]) == code
    said, err = document(capsys)
    assert err == ""
    assert said["ok"] is False
    assert all(said["error"][key] for key in ("code", "what", "saw", "fix"))
    assert said["error"]["code"] == name or name is None
    assert sorted(work.iterdir()) == before


def test_whether_a_file_can_be_read_is_told_by_reading_it(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """access() may fail where open() does not, and its failure has no exit code of its own."""
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert main(["inspect", "model.pth"]) == 0
    for _ in range(2):  # the second time the output is there
        assert main([*APPLY, "-o", "out.pth", "--force"]) == 0
        assert main(["verify", "out.pth", "--against", "model.pth"]) == 0
        assert main(["revert", "out.pth", "-o", "back.pth", "--force"]) == 0
        assert main(["counts", "counts.json", "-o", "again.json", "--force"]) == 0


def test_a_second_rescaling_needs_a_decision(work: Path, capsys: Capture) -> None:
    assert main(APPLY) == 0
    again = ["apply", "model.rescaled.pth", *APPLY[2:]]
    assert main([*again, "--json"]) == 4
    capsys.readouterr()
    assert main([*again, "--compose"]) == 0
    assert main(APPLY) == 4, "the output exists"
    assert main([*APPLY, "--force"]) == 0
    assert main(["verify", "model.rescaled.pth", "--against", "model.pth"]) == 0


@pytest.mark.parametrize(
    ("raised", "code", "name"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 5, "environment"),
        (PermissionError(errno.EACCES, "Permission denied"), 5, "environment"),
        (MemoryError(), 5, "environment"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError(), 1, "bug"),
        (EOFError(), 1, "bug"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_whatever_else_happens_is_one_clear_error(
    raised: BaseException, code: int, name: str, work: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("rescale_cli.patching.plan.make_plan", fail)
    assert main([*APPLY, "--json"]) == code
    said, err = document(capsys)
    assert said["error"]["code"] == name
    assert all(said["error"][key] for key in ("what", "saw", "fix"))
    assert "Traceback" not in err
    assert main(APPLY) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.lstrip().startswith("error: ")
    assert main(["-vv", *APPLY]) == code
    if code == 1:
        assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_failure(work: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(
        [sys.executable, "-m", "rescale_cli", "inspect", "model.pth"],
        stdout=write, stderr=subprocess.PIPE, text=True, env=child_environment(), check=False,
    )  # fmt: skip
    os.close(write)
    assert (run.returncode, run.stderr) == (0, "")


# ---------------------------------------------------------------------------- streams and torch


LIGHT = (
    ("--help",), ("--version",), ("apply", "--help"), ("schema", "apply"),
    ("inspect", "model.pth", "--counts", "counts.json"), ("counts", "data"), APPLY,
    ("verify", "done.pth", "--against", "model.pth"), ("revert", "done.pth", "-o", "back.pth"),
    ("apply", "model.pth", "--counts", "no.json", "-g", "1"),
    ("inspect", "model.safetensors"), ("evaluate", "--help"),
    ("sweep-gamma", "--help"), ("compare", "--help"),
)  # fmt: skip

#: Runs command lines in turn, and stops at the first that imports what a light one must not.
IN_TURN = """
import json, sys
from rescale_cli.cli import main
for words in json.loads(sys.argv[1]):
    main(words)
    heavy = {"torch", "torchvision", "timm", "transformers", "pandas", "scipy", "PIL"}
    if found := heavy & {*sys.modules}:
        sys.exit(f"{words} imports {found}")
"""


def test_torch_is_not_imported(work: Path, containers: Containers) -> None:
    shutil.copy(containers("safetensors float32").path, work)
    for name in ("cat", "dog"):
        (work / "data" / name).mkdir(parents=True)
        (work / "data" / name / "1.png").touch()
    api.apply("model.pth", COUNTS, 0.3, output="done.pth")
    run = subprocess.run(
        [sys.executable, "-c", IN_TURN, json.dumps(LIGHT)],
        capture_output=True, text=True, env=child_environment(), check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_results_are_on_stdout_and_warnings_on_stderr(work: Path, capsys: Capture) -> None:
    assert main(["inspect", "model.pth", "--counts", "counts.json"]) == 0
    out, err = capsys.readouterr()
    assert "fc.weight" in out
    assert "why:" in out
    assert all(line.startswith(("warning: ", "note: ")) for line in err.splitlines())
    assert main(["inspect", "model.pth", "--counts", "counts.json", "--json"]) == 0
    said, json_err = document(capsys)
    assert json_err == ""
    assert [w["message"] for w in said["warnings"]] == [
        line.removeprefix("warning: ") for line in err.splitlines()
    ]


def test_apply_says_head_factors_norms_place_and_hash(work: Path, capsys: Capture) -> None:
    assert main([*APPLY, "--json"]) == 0
    said, _ = document(capsys)
    (work / "model.rescaled.pth").unlink()
    (work / "model.rescaled.pth.rescale.json").unlink()
    assert main(APPLY) == 0
    out = capsys.readouterr().out
    assert "head fc.weight" in out
    assert "model.rescaled.pth" in out
    assert said["result"]["sha256"] in out
    assert f"{max(said['result']['factors']):.4g}" in out


def test_a_dry_run_writes_nothing(work: Path, capsys: Capture) -> None:
    before = sorted(work.iterdir())
    assert main([*APPLY, "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert sorted(work.iterdir()) == before


@pytest.mark.parametrize("option", [[], ["--record-command"]])
def test_the_record_names_the_command_only_if_asked(option: list[str], work: Path) -> None:
    words = [*APPLY, *option]
    assert child(words).returncode == 0
    record = json.loads((work / "model.rescaled.pth.rescale.json").read_text())
    assert record.get("command") == ("rescale-cli " + " ".join(words) if option else None)


def test_counts_come_from_standard_input(work: Path) -> None:
    words = ["apply", "model.pth", "--counts", "-", "-g", "0.3", "--json"]
    run = child(words, input=json.dumps(COUNTS))
    assert run.returncode == 0
    assert json.loads(run.stdout)["result"]["counts"] == COUNTS


def test_gamma_comes_from_a_sweep(work: Path, capsys: Capture) -> None:
    for sweep in ({"chosen": {"gamma": 0.25}}, {"result": {"chosen": {"gamma": 0.25}}}):
        (work / "sweep.json").write_text(json.dumps(sweep))
        assert main([*APPLY[:-1], "@sweep.json", "--dry-run", "--json"]) == 0
        assert document(capsys)[0]["result"]["gamma"] == 0.25


@pytest.mark.parametrize(
    "text",
    [
        "[]", "{}", '{"chosen": null}', '{"chosen": {"gamma": "a"}}', "[",
        '{"chosen": {"gamma": 1' + "0" * 400 + "}}",
        '{"chosen": {"gamma": 0.3}, "temperature": "abc"}',
        '{"chosen": {"gamma": 0.3}, "temperature": [1]}',
        '{"chosen": {"gamma": 0.3}, "temperature": 1' + "0" * 400 + "}",
    ],
)  # fmt: skip
def test_a_sweep_that_chose_nothing_is_an_error_with_a_fix(
    text: str, work: Path, capsys: Capture
) -> None:
    (work / "sweep.json").write_text(text)
    assert main([*APPLY[:-1], "@sweep.json", "--json"]) in (2, 3)
    assert document(capsys)[0]["error"]["fix"]


@pytest.mark.parametrize(
    "name",
    ["--tau", "--gamma", "-g"],
)
def test_tau_is_another_name_of_gamma(name: str, work: Path, capsys: Capture) -> None:
    words = ["apply", "model.pth", "--counts", "counts.json", "--method", "tau-norm", name, "0.5"]
    assert main([*words, "--dry-run", "--json"]) == 0
    said, _ = document(capsys)
    assert (said["result"]["method"], said["result"]["gamma"]) == ("tau-norm", 0.5)


def test_options_reach_the_result(work: Path, capsys: Capture) -> None:
    (work / "counts.json").write_text(json.dumps([0, *COUNTS[1:]]))
    (work / "prior.json").write_text(json.dumps([1] * C))
    (work / "names.txt").write_text("\n".join("abcdefg"))
    words = [*APPLY, "--dry-run", "--json"]
    assert main(words) == 3
    assert document(capsys)[0]["error"]["code"] == "bad-counts"
    assert main([*words, "--zero-count", "skip"]) == 0
    assert document(capsys)[0]["result"]["factors"][0] == 1
    assert main([*words, "--zero-count", "one", "--max-factor", "2", "--classes", "names.txt",
                 "--exclude-class", "e", "--target-prior", "prior.json", "--bias", "scale",
                 "--temperature", "2", "--head", "fc"]) == 0  # fmt: skip
    result = document(capsys)[0]["result"]
    assert result["counts"][0] == 1
    assert result["classes"] == list("abcdefg")
    assert result["bias_policy"] == "scale"
    assert result["temperature"] == 2
    assert max(result["factors"]) == 1.0, "2 / 2"


# ------------------------------------------------------------------------ the terminal, and names


def test_nothing_is_coloured_or_animated_where_no_person_looks(work: Path) -> None:
    for words in (["inspect", "model.pth"], ["inspect", "no.pth"], ["--help"], list(APPLY)):
        run = child(words)
        assert "\x1b" not in run.stdout + run.stderr
        assert "\r" not in run.stdout + run.stderr


def test_no_color_is_honoured_on_a_terminal(work: Path) -> None:
    def on_a_terminal(**env: str) -> bytes:
        import pty

        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "rescale_cli", "inspect", "no.pth"],
            stdout=theirs, stderr=theirs, stdin=theirs, env=child_environment(TERM="xterm", **env),
        )  # fmt: skip
        process.wait(60)
        os.close(theirs)
        data = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:
                break
            if not part:
                break
            data += part
        os.close(ours)
        return data

    assert b"\x1b[" in on_a_terminal()
    plain = on_a_terminal(NO_COLOR="1")
    assert b"no.pth" in plain
    assert re.search(rb"\x1b\[[0-9;]*3[0-7]m", plain) is None


def unsafe(text: str) -> list[str]:
    """What must not reach a terminal or a CI log as it is."""
    found = re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    return found + re.findall(r"::error|##vso|##\[", text)


@pytest.fixture
def nasty(work: Path) -> Path:
    torch.save(
        {
            "stem.weight": torch.randn(D, 5),
            NASTY + ".weight": torch.randn(C, D),
            "classes": [f"{NASTY}{i}" for i in range(C)],
        },
        "nasty.pth",
    )
    return work


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "nasty.pth"),
        ("inspect", "nasty.pth", "--counts", "counts.json"),
        ("inspect", "nasty.pth", "--head", NASTY),
        ("inspect", "nasty.pth", "--head", NASTY + "x"),
        ("inspect", NASTY),
        ("counts", NASTY),
        ("apply", "nasty.pth", "--counts", "counts.json", "-g", "0.3", "--head", NASTY),
        ("apply", "nasty.pth", "--counts", "counts.json", "-g", NASTY),
        ("apply", "nasty.pth", "--counts", "[/red]", "-g", "1", "--bias", NASTY),
        ("apply", "nasty.pth", "--counts", "counts.json", "-g", "1", "--exclude-class", NASTY),
        ("verify", "nasty.pth", "--against", NASTY),
        ("schema", NASTY),
        (NASTY,),
        ("--" + NASTY,),
    ],
    ids=lambda words: " ".join(words).encode("unicode_escape").decode(),
)  # fmt: skip
def test_no_name_reaches_the_terminal_raw(
    words: tuple[str, ...], nasty: Path, capsys: Capture
) -> None:
    code = main(words)
    out, err = capsys.readouterr()
    assert code in (0, 2, 3, 4), err
    assert unsafe(out) == []
    assert unsafe(err) == []
    json_code = main([*words, *(["--force"] if words[0] == "apply" else []), "--json"])
    assert json_code == code
    said, err = document(capsys)
    assert said["ok"] == (code == 0)
    assert unsafe(err) == []


def test_rich_markup_in_names_is_shown_as_it_is(work: Path, capsys: Capture) -> None:
    state = {"stem.weight": np.ones((D, 5)), "fc[/red].weight": np.eye(C, D)}
    safetensors.numpy.save_file(state, "markup.safetensors")
    assert main(["inspect", "markup.safetensors", "--head", "fc[/red]"]) == 0
    assert "fc[/red].weight" in capsys.readouterr().out


def test_names_that_the_terminal_cannot_show_stop_nothing(work: Path) -> None:
    torch.save({"stem.weight": torch.randn(D, 5), "clé.weight": torch.randn(C, D)}, "accent.pth")
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    run = child(["inspect", "accent.pth", "--head", "cl\u00e9"], env=env)
    assert run.returncode in (0, 3), run.stderr
    run = child(["inspect", "accent.pth", "--num-classes", str(C)], env=env)
    assert run.returncode == 0, run.stderr
    assert "cl\\xe9" in run.stdout


def test_the_values_of_choices_are_listed_in_the_help(capsys: Capture) -> None:
    main(["apply", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for choice in (options.BiasPolicy, options.ZeroPolicy, options.MethodName):
        assert all(value in out for value in choice)


# --------------------------------------------------------------------------- a damaged record


@pytest.mark.parametrize("key", ["gamma", "method", "source_digest", "version"])
@pytest.mark.parametrize("command", ["inspect", "revert", "verify"])
def test_a_record_that_lacks_a_field_never_is_a_bug_of_ours(
    key: str, command: str, work: Path, capsys: Capture
) -> None:
    api.apply("model.pth", COUNTS, 0.3, output="done.pth")
    sidecar = work / "done.pth.rescale.json"
    record = json.loads(sidecar.read_text())
    del record[key]
    sidecar.write_text(json.dumps(record))
    more = {"inspect": [], "revert": ["-o", "back.pth"], "verify": ["--against", "model.pth"]}
    assert main([command, "done.pth", *more[command]]) in (0, 3), capsys.readouterr().err
