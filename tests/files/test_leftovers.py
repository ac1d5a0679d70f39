"""The next run removes the temporary files of a killed process, and nothing else."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rescale_cli.cli import main
from rescale_cli.files import leftovers
from rescale_cli.files.leftovers import MARK, Claim, remove_leftovers
from rescale_cli.files.staging import Staging

#: Stages a file of 1000 bytes for FOLDER/target, says so, and waits to be killed.
WRITER = """
import sys, time
from pathlib import Path
from rescale_cli.files.staging import Staging, write_new

with Staging(Path(sys.argv[1]), replace=True) as staging:
    write_new(staging.aside(Path(sys.argv[1], "target")), bytes(1000))
    print("written", flush=True)
    time.sleep(600)
"""

#: Runs a command and kills its process after the first call of os.NAME on a temporary file.
KILLED = """
import os, signal, sys
from rescale_cli.cli import main

name = sys.argv[1]
def then_die(*args, _of=getattr(os, name), **named):
    result = _of(*args, **named)
    if any("/out/" in str(arg) and ".rescale-cli-" in str(arg) for arg in args):
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(os, name, then_die)
main(sys.argv[2:])
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing a file into `tmp_path`."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def marked(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(MARK))


def write_counts(folder: Path) -> int:
    """Write a file into the folder by a command."""
    data = folder / "labels.csv"
    data.write_text("label\na\nb\n")
    return main(["counts", str(data), "-o", str(folder / "counts.json"), "--force"])


def test_the_file_of_a_killed_process_is_removed_and_named_with_its_size(
    tmp_path: Path, writer: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (left,) = [name for name in marked(tmp_path) if name.endswith(".tmp")]
    writer.kill()
    writer.wait()
    assert left in marked(tmp_path)
    assert write_counts(tmp_path) == 0
    assert marked(tmp_path) == []
    said = capsys.readouterr().err
    assert said.count("note: removed temporary files of a killed process") == 1
    assert f"{left} (1,000 bytes)" in said


def test_the_file_of_a_running_process_is_kept(
    tmp_path: Path, writer: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = marked(tmp_path)
    assert write_counts(tmp_path) == 0
    assert writer.poll() is None
    assert marked(tmp_path) == before
    assert "removed" not in capsys.readouterr().err


def test_a_reused_process_id_does_not_protect_a_file(tmp_path: Path) -> None:
    claim = Claim(tmp_path)
    claim.name("tmp").write_bytes(b"x")  # by this process, which lives
    assert claim._lock is not None
    os.close(claim._lock)  # what the system does when a process is killed
    remove_leftovers(tmp_path)
    assert marked(tmp_path) == []


def test_a_lock_protects_a_file_whose_process_id_is_unknown_here(tmp_path: Path) -> None:
    stem = f"{MARK}999999999-{leftovers._machine()}abc"
    (tmp_path / f"{stem}-1.tmp").write_bytes(b"x")
    with (tmp_path / f"{stem}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_leftovers(tmp_path)
        assert marked(tmp_path) == [f"{stem}-1.tmp", f"{stem}.lock"]
    remove_leftovers(tmp_path)
    assert marked(tmp_path) == []


def test_a_file_of_another_machine_is_kept_for_a_day(tmp_path: Path) -> None:
    files = [tmp_path / f"{MARK}999999999-00000000abc{end}" for end in ("-1.tmp", ".lock")]
    for file in files:
        file.write_bytes(b"x")
    remove_leftovers(tmp_path)
    assert len(marked(tmp_path)) == 2
    for file in files:
        os.utime(file, (time.time() - 2 * 86_400,) * 2)
    remove_leftovers(tmp_path)
    assert marked(tmp_path) == []


def test_without_a_lock_file_the_process_id_decides(tmp_path: Path) -> None:
    gone, alive = f"{MARK}999999999-abcdef.tmp", f"{MARK}{os.getpid()}-abcdef.tmp"
    for name in (gone, alive, f"{MARK}notes.tmp"):
        (tmp_path / name).write_bytes(b"x")
    remove_leftovers(tmp_path)
    assert marked(tmp_path) == sorted([alive, f"{MARK}notes.tmp"])


def test_a_replaced_file_is_removed_only_if_it_has_another_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = tmp_path / "original"
    original.write_bytes(b"x")
    (tmp_path / f"{MARK}999999999-aa-1.old").hardlink_to(original)
    only = tmp_path / f"{MARK}999999999-bb-1.old"
    only.write_bytes(b"the only copy")
    folder = tmp_path / f"{MARK}999999999-cc-1.old"
    folder.mkdir()
    assert write_counts(tmp_path) == 0
    assert marked(tmp_path) == [only.name, folder.name]
    assert only.read_bytes() == b"the only copy"
    assert f"rename or remove it yourself: {only}, {folder}" in capsys.readouterr().err


def test_of_two_last_links_to_a_replaced_file_one_is_kept(tmp_path: Path) -> None:
    one, other = (tmp_path / f"{MARK}999999999-{n}-1.old" for n in ("aa", "bb"))
    one.write_bytes(b"x")
    other.hardlink_to(one)
    remove_leftovers(tmp_path)
    assert marked(tmp_path) == [other.name]


def test_the_target_of_a_link_with_a_temporary_name_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x")
    (tmp_path / f"{MARK}999999999-aa-1.tmp").symlink_to(tmp_path / "folder")
    (tmp_path / f"{MARK}999999999-bb.lock").symlink_to(tmp_path / "folder" / "file")
    (tmp_path / f"{MARK}999999999-bb-1.tmp").write_bytes(b"x")
    remove_leftovers(tmp_path)
    assert (tmp_path / "folder" / "file").read_bytes() == b"x"
    assert not (tmp_path / f"{MARK}999999999-aa-1.tmp").is_symlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove every file")
def test_files_that_cannot_be_removed_are_silently_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{MARK}999999999-aa-1.tmp").write_bytes(b"x")
    tmp_path.chmod(0o500)
    remove_leftovers(tmp_path)
    tmp_path.chmod(0o700)
    assert capsys.readouterr().err == ""


def test_a_folder_left_half_copied_is_removed_with_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"{MARK}999999999-aa-1.tmp"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").write_bytes(bytes(1234))
    assert write_counts(tmp_path) == 0
    assert marked(tmp_path) == []
    assert f"{folder} (1,234 bytes)" in capsys.readouterr().err


def test_staging_leaves_no_lock_behind(tmp_path: Path) -> None:
    with Staging(tmp_path, replace=True) as staging:
        staging.aside(tmp_path / "a").write_bytes(b"x")
        assert len(marked(tmp_path)) == 2
    assert marked(tmp_path) == []
    with Staging(tmp_path, replace=True) as staging:
        staging.aside(tmp_path / "a").write_bytes(b"x")
        staging.commit()
    assert marked(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("call", ["open", "link", "rename", "unlink"])
@pytest.mark.parametrize("form", ["file", "in place"])
def test_apply_killed_at_any_step_is_cleaned_up_and_loses_nothing(
    tmp_path: Path, call: str, form: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    source, output = out / "m.safetensors", out / "new.safetensors"
    generator = np.random.default_rng(0)
    weights = {"fc.weight": generator.normal(size=(3, 8)).astype("f4")}
    save_file(weights, source)
    output.write_bytes(b"the old output")
    before = source.read_bytes()
    counts = tmp_path / "counts.json"
    counts.write_text("[9, 4, 1]")
    where = ["--in-place"] if form == "in place" else ["-o", str(output), "--force"]
    words = ["apply", str(source), "--counts", str(counts), "-g", "0.5", *where]
    done = subprocess.run([sys.executable, "-c", KILLED, call, *words], check=False)
    assert done.returncode == -signal.SIGKILL
    held = [path.read_bytes() for path in out.iterdir()]
    assert write_counts(out) == 0
    assert not [name for name in marked(out) if not name.endswith(".old")]
    after = [path.read_bytes() for path in out.iterdir()]
    for content in (before, b"the old output"):
        assert (content in after) == (content in held)
