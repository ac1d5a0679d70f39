"""`-` as an output is stdout: exactly one text, or a sentence with exit code 2."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from rescale_cli.cli import COMMANDS, command_of, main
from rescale_cli.commands.demo_report import bundled
from rescale_cli.commands.options import TEXTS, WHOLE

Capture = pytest.CaptureFixture[str]

SWEEP = ("sweep-gamma", "model.safetensors", "--counts", "counts.json", "--bootstrap", "20",
         "--logits", "val_logits.npz")  # fmt: skip
COMPARE = ("compare", *SWEEP[1:])
EVALUATE = ("evaluate", "model.safetensors", "--counts", "counts.json", "--bootstrap", "20",
            "--logits", "val_logits.npz")  # fmt: skip
APPLY = ("apply", "model.safetensors", "--counts", "counts.json", "-g", "0.3")
IMAGES = ("--batch-size", "500", "--data", "npz:val.npz")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundled example, as the working directory."""
    for name in ("model.safetensors", "counts.json", "val_logits.npz", "val.npz", "config.json"):
        shutil.copy(bundled() / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(text: str) -> list[dict[str, str]]:
    found = list(csv.DictReader(io.StringIO(text)))
    assert len(found) > 1
    return found


def of_schema(name: str) -> Callable[[str], object]:
    def check(text: str) -> None:
        assert json.loads(text)["schema"] == f"rescale-cli/{name}@1"

    return check


def is_counts(text: str) -> None:
    assert json.loads(text).items() >= json.loads(Path("counts.json").read_text()).items()


def is_metrics(text: str) -> None:
    assert 0 < json.loads(text)["balanced_accuracy"] < 1


CASES: dict[str, tuple[tuple[str, ...], str, Callable[[str], Any]]] = {
    "counts -o": (("counts", "counts.json"), "-o", is_counts),
    "sweep-gamma -o": (SWEEP, "-o", of_schema("sweep-gamma")),
    "sweep-gamma --csv": (SWEEP, "--csv", rows),
    "compare -o": (COMPARE, "--output", of_schema("compare")),
    "compare --csv": (COMPARE, "--csv", rows),
    "evaluate --csv": (EVALUATE, "--csv", rows),
    "evaluate --metrics-out": (EVALUATE, "--metrics-out", is_metrics),
    "evaluate --predictions-out": (EVALUATE, "--predictions-out", rows),
    "evaluate --junit": ((*EVALUATE, "--fail-under", "accuracy=0.1"), "--junit", ET.fromstring),
    "evaluate --save-preprocessing": (
        (*EVALUATE[:-2], *IMAGES), "--save-preprocessing", json.loads,
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", ["-", "/dev/stdout"])
@pytest.mark.parametrize("case", CASES)
def test_a_text_goes_to_stdout_alone_and_the_table_to_stderr(
    case: str, place: str, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words, option, check = CASES[case]
    before = sorted(work.iterdir())
    assert main([*words, option, place]) == 0
    out, err = capfd.readouterr()
    check(out)
    assert err.count("\n") > 2
    assert sorted(work.iterdir()) == before
    assert main([*words, option, place, "-q"]) == 0
    again, err = capfd.readouterr()
    check(again)
    assert all(line.startswith("warning:") for line in err.splitlines())


@pytest.mark.parametrize("case", ["counts -o", "sweep-gamma --csv", "evaluate --csv"])
def test_stdout_and_a_file_get_the_same_bytes(case: str, work: Path, capsys: Capture) -> None:
    words, option, _ = CASES[case]
    assert main([*words, option, "-"]) == 0
    assert main([*words, option, "file.out"]) == 0
    text = Path("file.out").read_text(encoding="utf-8")
    assert capsys.readouterr().out.startswith(text)


def test_dev_null_takes_every_text(work: Path, capsys: Capture) -> None:
    words = [
        *EVALUATE,
        *(w for o in ("--csv", "--metrics-out", "--junit") for w in (o, os.devnull)),
    ]
    assert main(words) == 0
    assert "balanced accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ((*APPLY, "-o", "-"), "a checkpoint"),
        ((*SWEEP, "--apply", "-"), "a checkpoint"),
        ((*COMPARE, "--apply", "-"), "a checkpoint"),
        (("revert", "model.safetensors", "-o", "-"), "a checkpoint"),
        (("train", "--data", "npz:val.npz", "-o", "-"), "a folder"),
        (("demo", "-o", "-"), "a folder"),
        ((*EVALUATE[:-2], *IMAGES, "--save-logits", "-"), "arrays"),
        ((*EVALUATE[:-2], *IMAGES, "--save-features", "-"), "arrays"),
    ],
)
def test_what_is_not_one_text_cannot_go_to_stdout(
    words: tuple[str, ...], kind: str, work: Path, capsys: Capture
) -> None:
    before = sorted(work.iterdir())
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {kind} cannot be written to stdout" in err
    assert sorted(work.iterdir()) == before


@pytest.mark.parametrize(
    ("more", "both"),
    [
        (("-o", "-", "--csv", "-"), "--csv and --output"),
        (("-o", "-", "--csv", "/dev/stdout"), "--csv and --output"),
        (("-o", "-", "--json"), "--output and --json"),
    ],
)
def test_stdout_takes_one_output(
    more: tuple[str, ...], both: str, work: Path, capsys: Capture
) -> None:
    assert main([*SWEEP, *more]) == 2
    said = "".join(capsys.readouterr())
    assert "only one output can go to stdout" in said
    assert both in said
    assert not Path("-").exists()


def test_the_next_command_of_a_process_prints_its_table_again(work: Path, capsys: Capture) -> None:
    assert main(["counts", "counts.json", "-o", "-"]) == 0
    capsys.readouterr()
    assert main(["counts", "counts.json"]) == 0
    assert "T-shirt" in capsys.readouterr().out


def test_a_full_stdout_is_one_error(work: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        words = [sys.executable, "-m", "rescale_cli", "counts", "counts.json", "-o", "-"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr


#: Options that name what is read.
READ = {
    "model", "patched", "against", "against_logits", "config", "classes", "label_order",
    "preprocessing", "target_prior", "record", "run", "sweep", "counts", "data", "models", "logits",
}  # fmt: skip


def test_every_option_that_names_a_path_is_known_as_read_or_written() -> None:
    for command in map(command_of, COMMANDS):
        for name in inspect.signature(command.callback).parameters:
            kind = str(get_type_hints(command.callback).get(name))
            if "Path" in kind:
                assert name in {*TEXTS, *WHOLE, *READ}, (command.name, name)
