"""Whatever happens, an output is complete or missing, and the source is unchanged.

`fault_runner.py` does the same from outside, at every system call, under strace.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rescale_cli import api
from rescale_cli.cli import main
from rescale_cli.commands.console import Screen
from rescale_cli.errors import EnvironmentProblem
from rescale_cli.files import folders, staging
from rescale_cli.patching import patch
from rescale_cli.patching.patch import Target, apply_plan
from rescale_cli.patching.patched_file import write_changed
from rescale_cli.patching.plan import Plan
from rescale_cli.patching.proof import verify

NAMES = {"safetensors": "m.safetensors", "zip": "m.pth", "legacy": "l.pth", "folder": "hf"}

#: Everything that the tool asks of the system for files; each call of each of them fails once.
CALLS = (
    "open", "close", "write", "pwrite", "pread", "preadv", "copy_file_range", "fsync", "fchmod",
    "chmod", "link", "rename", "replace", "mkdir", "stat", "lstat", "fstat", "listdir", "scandir",
)  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "in"
    (folder / "hf" / "sub").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (16, 8, 3, 3), "fc.weight": (10, 64), "fc.bias": (10,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(state, folder / "m.safetensors", metadata={"format": "pt"})
    torch.save(state, folder / "m.pth")
    torch.save(state, folder / "l.pth", _use_new_zipfile_serialization=False)
    shards = {"conv.weight": "model-1.safetensors", "fc.weight": "model-2.safetensors"}
    shards["fc.bias"] = "model-2.safetensors"
    for shard in set(shards.values()):
        part = {name: state[name] for name in shards if shards[name] == shard}
        save_file(part, folder / "hf" / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": shards}
    (folder / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "hf" / "config.json").write_text("{}")
    (folder / "hf" / "sub" / "notes.txt").write_text("notes")
    (folder / "counts.json").write_text(json.dumps([500, 300, 200, 120, 80, 50, 30, 20, 10, 5]))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A folder with the sources in `in` and an empty `out`."""
    shutil.copytree(made, tmp_path / "in")
    (tmp_path / "out").mkdir()
    return tmp_path


def command(source: Path | str, *options: Path | str, gamma: float = 0.5) -> list[str]:
    counts = next(p for p in Path(source).absolute().parents if (p / "counts.json").is_file())
    words = [source, "--counts", counts / "counts.json", "-g", gamma, *options]
    return ["apply", *map(str, words)]


def apply(source: Path | str, *options: Path | str, gamma: float = 0.5) -> int:
    return main(command(source, *options, gamma=gamma))


def plan_for(source: Path) -> Plan:
    return api.apply(source, source.parent / "counts.json", 0.5, dry_run=True).plan


def hashes(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".rescale-cli-*")]


def failing(number: int, error: int, calls: list[str], patch: pytest.MonkeyPatch) -> None:
    """Let the `number`th of the system's calls fail once; `calls` tells which were made."""

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                if name == "close":
                    real(*args)
                raise OSError(error, os.strerror(error))
            return real(*args, **more)

        return call

    for name in CALLS:
        if hasattr(os, name):
            patch.setattr(os, name, wrap(name, getattr(os, name)))


def attempts(make: Callable[[], Plan], target: Target, error: int) -> Iterator[tuple[str, bool]]:
    """Carry a plan out with the first call failing, the second, ... and at last with none.

    Yields:
        which call failed, and whether the run says that it succeeded.
    """
    number, calls, plan = 0, [""], make()
    while len(calls) >= number:
        number, calls, done = number + 1, [], True
        with pytest.MonkeyPatch.context() as patched:
            failing(number, error, calls, patched)
            try:
                apply_plan(plan, target)
            except EnvironmentProblem:
                done = False
        yield f"call {number}: {calls[number - 1 :][:1]}", done
        if target.in_place and done:
            plan = make()
    assert number > 50


@pytest.mark.parametrize(
    ("kind", "force", "error"),
    [
        ("safetensors", False, errno.EIO),
        ("safetensors", True, errno.EIO),
        ("zip", False, errno.ENOSPC),
        ("zip", True, errno.EIO),
        ("legacy", False, errno.EIO),
        ("folder", False, errno.EIO),
        ("folder", True, errno.EIO),
    ],
)
def test_whichever_call_fails_the_output_is_complete_or_unchanged(
    place: Path, kind: str, force: bool, error: int
) -> None:
    source, output = place / "in" / NAMES[kind], place / "out" / NAMES[kind]
    if force:
        assert apply(source, "-o", output, gamma=0.2) == 0
    start, original, before = place / "start", hashes(source), hashes(place / "out")
    shutil.copytree(place / "out", start)
    for where, done in attempts(lambda: plan_for(source), Target(output, force), error):
        assert not leftovers(place), where
        assert hashes(source) == original, where
        if done:
            verify(output, source)
            shutil.rmtree(place / "out")
            shutil.copytree(start, place / "out")
        else:
            assert hashes(place / "out") == before, where


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_whichever_call_fails_in_place_the_file_is_the_old_or_the_new_one(
    place: Path, kind: str
) -> None:
    source = place / "in" / NAMES[kind]
    original = shutil.copy2(source, place / "out" / NAMES[kind])
    before, target = hashes(place / "in"), Target(source, in_place=True)
    for where, done in attempts(lambda: plan_for(source), target, errno.EIO):
        assert not leftovers(place), where
        if done:
            verify(source, original)
            backup = source.with_name(source.name + ".bak")
            assert hashes(backup) == hashes(original)
            for path in [source, backup, *source.parent.glob("*.rescale.json")]:
                path.unlink()
            shutil.copy2(original, source)
        assert hashes(place / "in") == before, where


def run_alone(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)


#: Forks runs of apply and sends each a signal after a random time; all is imported before.
STRIKE = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from rescale_cli.cli import main
from rescale_cli.patching.proof import verify
from rescale_cli.signals import hold_back

hold_back()  # inherited: a child that is struck before main() is ready waits with it until then
place, number, rounds, force = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
source, output, random = place / "in/m.pth", place / "out/m.pth", random.Random(number)
words = ["apply", str(source), "--counts", str(place / "in/counts.json"), "-o", str(output), "-g"]

def forked(gamma, *options):
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(os.open(place / "heard", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os._exit(main([*words, gamma, *options]))
    return child

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert wait(forked("0.1")) == 0
(place / "out/m.pth").unlink()
began = time.perf_counter()
assert wait(forked("0.1")) == 0  # the record without its file did not stand in the way
whole = time.perf_counter() - began
codes = set()
for turn in range(rounds):
    if not force:
        output.unlink(missing_ok=True)
    child = forked("0.5", *(["--force"] if force else []))
    time.sleep(random.uniform(0, whole))
    os.kill(child, number)
    code = wait(child)
    codes.add(code)
    if force or output.exists():
        verify(output, source)
    assert force or number == signal.SIGKILL or output.exists() == (code == 0), code
    left = [p for p in output.parent.iterdir() if p.name.startswith(".rescale-cli-")]
    assert number == signal.SIGKILL or not left, left
assert wait(forked("0.6", "--force")) == 0
verify(output, source)
print(sorted(codes))
"""


@pytest.mark.parametrize(
    ("name", "force"),
    [("SIGKILL", ""), ("SIGKILL", "--force"), ("SIGTERM", ""), ("SIGINT", "--force")],
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_signal_at_any_time_leaves_no_file_or_a_complete_one(
    place: Path, name: str, force: str
) -> None:

    number = getattr(signal, name)
    original = hashes(place / "in")
    done = run_alone(STRIKE, place, int(number), 15, force)
    assert done.returncode == 0, done.stderr
    codes = set(json.loads(done.stdout))
    assert codes <= ({0, -9} if name == "SIGKILL" else {0, 130}), codes
    assert hashes(place / "in") == original
    assert "bug of ours" not in (place / "heard").read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_after_the_output_is_renamed_is_ignored(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename, output = Path.rename, place / "out" / "m.pth"

    def struck(path: Path, target: Path) -> Path:
        renamed = rename(path, target)
        if target == output:
            signal.raise_signal(getattr(signal, name))
        return renamed

    monkeypatch.setattr(Path, "rename", struck)
    assert apply(place / "in" / "m.pth", "-o", output, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    verify(output, place / "in" / "m.pth")
    assert not leftovers(place)


def test_a_signal_while_the_result_is_printed_causes_no_second_document(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = Screen._document

    def struck(screen: Screen, content: dict[str, object]) -> None:
        document(screen, content)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Screen, "_document", struck)
    assert main(["inspect", str(place / "in" / "m.pth"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_output_that_cannot_be_written_is_one_clear_error(
    place: Path, options: list[str]
) -> None:
    words = [sys.executable, "-m", "rescale_cli", "inspect", str(place / "in" / "m.pth"), *options]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_killed_run_left_in_a_folder_is_not_copied(place: Path) -> None:
    source = place / "in" / NAMES["folder"]
    (source / ".rescale-cli-1-abc.tmp").write_text("left behind")
    assert apply(source, "-o", place / "out" / "new") == 0
    assert not leftovers(place / "out" / "new")


#: Forks eight runs on one target, which start at one moment; prints their exit codes.
RACE = """
import json, os, sys
from rescale_cli.cli import main

start, go = os.pipe()
children = []
for number in range(8):
    child = os.fork()
    if not child:
        os.close(go)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        os.read(start, 1)  # until the other end is closed
        os._exit(main([*sys.argv[1:], "-g", f"0.{number + 1}"]))
    children.append(child)
os.close(go)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


@pytest.mark.parametrize(
    ("kind", "force"), [("zip", False), ("zip", True), ("safetensors", True), ("folder", False)]
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_of_several_runs_on_one_target_one_wins_completely(
    place: Path, kind: str, force: bool
) -> None:
    source, output = place / "in" / NAMES[kind], place / "out" / NAMES[kind]
    options = ["-o", str(output), *(["--force"] if force else [])]
    words = ["apply", source, "--counts", place / "in" / "counts.json", *options]
    done = run_alone(RACE, *words)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    assert sorted(codes) == ([0] * 8 if force else [0] + [4] * 7)
    (record,) = verify(output, source).records
    if not force:
        assert record.fields["gamma"] == pytest.approx((codes.index(0) + 1) / 10)
    assert not leftovers(place)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_runs_in_place_at_once_keep_the_original_as_backup(place: Path) -> None:
    source = place / "in" / "m.pth"
    original = hashes(source)
    words = ["apply", source, "--counts", place / "in" / "counts.json", "--in-place"]
    done = run_alone(RACE, *words)
    codes = json.loads(done.stdout)
    assert 0 in codes
    assert set(codes) <= {0, 4, 5}
    shutil.move(f"{source}.bak", place / "out" / "m.pth")
    assert hashes(place / "out" / "m.pth") == original
    verify(source, place / "out" / "m.pth")


def spellings(place: Path, source: Path) -> Iterator[Path | str]:
    """Names of the source: other spellings, links, second names, through linked folders."""
    yield source
    yield f"{source.parent}/./{source.name}"
    yield f"{source.parent}/../in/{source.name}"
    yield os.path.relpath(source)
    (place / "linked").symlink_to(source.parent)
    yield place / "linked" / source.name
    yield place / "in" / "sub" / ".." / source.name
    (place / "out" / "link").symlink_to(source)
    yield place / "out" / "link"
    if source.is_file():
        os.link(source, place / "out" / "second")
        yield place / "out" / "second"
        # The record of this output would have the name of the source.
        os.link(source, place / "out" / "third.rescale.json")
        yield place / "out" / "third"
    else:
        yield source / "inside"
        yield source.parent


@pytest.mark.parametrize("kind", NAMES)
def test_an_output_that_is_the_source_by_any_name_is_refused(place: Path, kind: str) -> None:
    (place / "in" / "sub").mkdir()
    source = place / "in" / NAMES[kind]
    before = hashes(place / "in")
    for name in spellings(place, source):
        assert apply(source, "-o", name, "--force") == 4, name
        assert hashes(place / "in") == before, name
    assert not leftovers(place)


def test_an_output_that_is_another_input_by_any_name_is_refused(place: Path) -> None:
    (place / "in" / "sub").mkdir()
    source, counts = place / "in" / "m.pth", place / "in" / "counts.json"
    before = hashes(place / "in")
    for name in spellings(place, counts):
        assert apply(source, "-o", name, "--force") == 4, name
        # Only a checkpoint has a record beside it.
        wanted = 0 if Path(name).name == "third" else 4
        assert main(["counts", str(counts), "-o", str(name), "--force"]) == wanted, name
        assert hashes(place / "in") == before, name
    assert not leftovers(place)


@pytest.mark.parametrize("option", ["--classes", "--target-prior", "--gamma"])
def test_every_file_that_apply_reads_is_safe_from_it(place: Path, option: str) -> None:
    file, source = place / "read.json", place / "in" / "m.pth"
    said = {"classes": [f"class {i}" for i in range(10)], "chosen": {"gamma": 0.5}}
    file.write_text(json.dumps([1] * 10 if option == "--target-prior" else said))
    before = file.read_bytes()
    words = command(source, option, f"@{file}" if option == "--gamma" else file)
    assert main([*words, "-o", str(place / "out" / "m.pth")]) == 0
    assert main([*words, "-o", str(file), "--force"]) == 4
    assert file.read_bytes() == before


def test_the_record_is_safe_from_the_revert_that_reads_it(place: Path) -> None:
    output, back = place / "out" / "m.pth", place / "out" / "back.pth"
    assert apply(place / "in" / "m.pth", "-o", output) == 0
    os.link(f"{output}.rescale.json", back)
    assert main(["revert", str(output), "-o", str(back), "--force"]) == 4
    back.unlink()
    assert main(["revert", str(output), "-o", str(back)]) == 0


def test_a_folder_that_contains_the_counts_is_not_replaced(place: Path) -> None:
    source, output = place / "in" / "hf", place / "out" / "hf"
    shutil.copytree(source, output)
    shutil.copy(place / "in" / "counts.json", output / "c.json")
    assert main(command(source, "--counts", output / "c.json", "-o", output, "--force")) == 4
    assert (output / "c.json").exists()


def test_a_linked_output_is_replaced_but_its_target_is_not(place: Path) -> None:
    source, output = place / "in" / "m.pth", place / "out" / "m.pth"
    other = place / "other"
    for content in ("of others", None):
        if content:
            other.write_text(content)
        output.symlink_to(other)
        assert apply(source, "-o", output) == 4
        assert apply(source, "-o", output, "--force") == 0
        assert not output.is_symlink()
        assert not content or other.read_text() == content
        verify(output, source)
        output.unlink()
        other.unlink(missing_ok=True)


def test_only_files_and_folders_are_replaced(place: Path) -> None:
    source = place / "in" / "m.pth"
    os.mkfifo(place / "out" / "pipe")
    (place / "out" / "folder").mkdir()
    (place / "out" / "stdout").symlink_to("/proc/self/fd/1")
    (place / "out" / "device").symlink_to("/dev/null")
    (place / "out" / "file").write_text("a file")
    (place / "out" / "to-folder").symlink_to("folder")
    for name in ("pipe", "folder", "folder/", "stdout", "device", "to-folder"):
        assert apply(source, "-o", f"{place}/out/{name}", "--force") == 4, name
    for name in ("pipe", "file", "stdout"):
        assert apply(place / "in" / "hf", "-o", place / "out" / name, "--force") == 4, name
    for name in ("/dev/null", "/dev/stdout"):
        assert apply(source, "-o", name, "--force") == 4, name
    assert apply(source, "-o", place / "none" / "m.pth") == 3
    os.mkfifo(place / "in" / "pipe.pth")
    assert apply(place / "in" / "pipe.pth", "-o", place / "out" / "m.pth") == 3
    assert not leftovers(place)


def test_a_folder_with_unrelated_folders_is_not_replaced(place: Path) -> None:
    source, output = place / "in" / "hf", place / "out" / "hf"
    (output / "another-model").mkdir(parents=True)
    (output / "another-model" / "weights").write_text("precious")
    assert apply(source, "-o", output, "--force") == 4
    assert (output / "another-model" / "weights").read_text() == "precious"
    shutil.rmtree(output / "another-model")
    (output / "old.txt").write_text("old")
    assert apply(source, "-o", output, "--force") == 0
    assert not (output / "old.txt").exists()
    verify(output, source)


@pytest.fixture
def cache(place: Path) -> Path:
    """A snapshot in a Hugging Face cache: links to files that are named by their hash."""
    snapshot = place / "models--a--b" / "snapshots" / "rev"
    blobs = place / "models--a--b" / "blobs"
    (snapshot / "sub").mkdir(parents=True)
    blobs.mkdir()
    shutil.copy(place / "in" / "counts.json", place)
    for file in (p for p in (place / "in" / "hf").rglob("*") if p.is_file()):
        name = file.relative_to(place / "in" / "hf")
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    (snapshot / "loop").symlink_to(".")
    return snapshot


def test_the_hugging_face_cache_is_not_written_through(cache: Path, place: Path) -> None:
    before = hashes(cache.parent.parent / "blobs")
    weights = cache / "model-2.safetensors"
    assert apply(cache, "-o", place / "out" / "hf") == 0
    assert apply(weights, "-o", place / "out" / "one.safetensors") == 0
    assert apply(weights, "--in-place") == 4
    assert apply(cache, "--in-place") == 4
    assert apply(weights, "-o", weights.resolve(), "--force") == 4
    assert hashes(cache.parent.parent / "blobs") == before
    verify(place / "out" / "one.safetensors", weights)
    copied = [p for p in (place / "out" / "hf").rglob("*") if p.is_symlink()]
    assert [p.name for p in copied] == ["loop"]
    assert (place / "out" / "hf" / "sub" / "notes.txt").read_text() == "notes"


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o750])
@pytest.mark.parametrize("kind", ["safetensors", "zip"])
def test_the_mode_of_the_source_is_kept(place: Path, kind: str, mode: int) -> None:
    source, output = place / "in" / NAMES[kind], place / "out" / NAMES[kind]
    source.chmod(mode)
    before = os.umask(0o077)
    try:
        assert apply(source, "-o", output) == 0
        assert apply(source, "--in-place") == 0
    finally:
        os.umask(before)
    for file in (output, source, source.with_name(source.name + ".bak")):
        assert stat.S_IMODE(file.stat().st_mode) == mode
    if kind == "zip":
        record = place / "out" / "m.pth.rescale.json"
        assert stat.S_IMODE(record.stat().st_mode) == mode & 0o666


def test_a_folder_that_may_not_be_written_to_is_copied_and_cleaned_up(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = place / "in" / "hf"
    (source / "sub").chmod(0o555)
    source.chmod(0o555)
    assert apply(source, "-o", place / "out" / "hf") == 0
    assert os.access(place / "out" / "hf" / "sub", os.W_OK)


def test_a_link_to_itself_is_copied_unchanged(place: Path) -> None:
    source = place / "in" / "hf"
    (source / "loop").symlink_to("loop")
    assert apply(source, "-o", place / "out" / "hf") == 0
    assert (place / "out" / "hf" / "loop").readlink() == Path("loop")
    assert apply(place / "in" / "m.pth", "-o", source / "loop" / "m.pth") == 3


def test_an_index_that_is_a_link_out_of_its_folder_is_refused(place: Path) -> None:
    index = place / "in" / "hf" / "model.safetensors.index.json"
    index.rename(place / "o.json")
    index.symlink_to("../../o.json")
    assert apply(place / "in" / "hf", "-o", place / "out" / "hf") == 3
    assert apply(index, "-o", place / "out" / "hf") == 3


def test_an_index_with_a_very_long_shard_name_is_refused(place: Path) -> None:
    index = place / "in" / "hf" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc.weight": "n" * 5000}}))
    assert apply(place / "in" / "hf", "-o", place / "out" / "hf") == 3


def test_long_names_and_names_that_are_not_text_are_handled(place: Path) -> None:
    source, odd = place / "in" / "m.pth", os.fsdecode(b"caf\xe9.pth")
    assert apply(source, "-o", place / "out" / odd) == 0
    verify(place / "out" / odd, source)
    assert apply(source, "-o", place / "out" / ("n" * 250)) == 5
    assert sorted(p.name for p in (place / "out").iterdir()) == [odd, f"{odd}.rescale.json"]
    weights = place / "in" / "m.safetensors"
    assert apply(weights, "-o", place / "out" / ("n" * 238 + ".safetensors")) == 0


def test_a_limit_on_file_sizes_is_an_error_with_a_fix(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, before[1]))
    try:
        code = apply(place / "in" / "m.pth", "-o", place / "out" / "m.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 5
    assert "file too large" in capsys.readouterr().err
    assert not list((place / "out").iterdir())


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    disk = place / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=96k", "none", str(disk)]
    with contextlib.suppress(OSError):
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            try:
                yield disk
            finally:
                subprocess.run(["umount", str(disk)], check=True)
            return
    pytest.skip("mounting a small file system needs root")


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_a_full_disk_leaves_existing_files_unchanged(
    place: Path, small_disk: Path, kind: str, force: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = place / "in" / NAMES[kind], small_disk / NAMES[kind]
    if force:
        assert apply(source, "-o", output, gamma=0.2) == 0
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(free - 4096))
    before = hashes(small_disk)
    assert apply(source, "-o", output, *(["--force"] if force else [])) == 5
    assert "free some disk space" in capsys.readouterr().err
    assert hashes(small_disk) == before
    assert not leftovers(small_disk)


def test_a_change_to_the_source_during_apply_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = place / "in" / "m.safetensors"

    def write(*args: Any) -> Any:
        other = place / "in" / "other"
        shutil.copy(source, other)
        other.replace(source)  # what a training run does when it saves again
        return write_changed(*args)

    monkeypatch.setattr(patch, "write_changed", write)
    assert apply(source, "-o", place / "out" / "m.safetensors") == 5
    assert apply(source, "--in-place") == 5
    assert not list((place / "out").iterdir())


def test_a_forced_output_loses_the_record_of_its_predecessor(place: Path) -> None:
    output = place / "out" / "m.pth"
    assert apply(place / "in" / "m.pth", "-o", output) == 0
    patched = place / "in" / "m.rescaled.pth"
    assert apply(place / "in" / "m.pth") == 0
    assert main(["revert", str(patched), "-o", str(output), "--force"]) == 0
    assert hashes(output) == hashes(place / "in" / "m.pth")
    assert [p.name for p in (place / "out").iterdir()] == ["m.pth"]


def test_files_and_folders_are_replaced_without_exchange_and_hard_links_too(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*args: object, **more: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    monkeypatch.setattr(os, "link", no_links)
    for kind in NAMES:
        source, output = place / "in" / NAMES[kind], place / "out" / NAMES[kind]
        assert apply(source, "-o", output, gamma=0.2) == 0
        assert apply(source, "-o", output, "--force") == 0
        verify(output, source)
    assert apply(place / "in" / "m.pth", "--in-place") == 0
    assert hashes(place / "in" / "m.pth.bak") != hashes(place / "in" / "m.pth")
    assert not leftovers(place)


@pytest.mark.parametrize("unable", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
def test_every_way_of_copying_gives_the_same_bytes(
    place: Path, unable: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EXDEV, "not across these two")

    for name in unable:
        monkeypatch.setattr(os, name, refuse, raising=False)
    monkeypatch.setattr(folders, "_STEP", 1000)
    for name in ("m.pth", "m.safetensors"):
        assert apply(place / "in" / name, "-o", place / "out" / name) == 0
        verify(place / "out" / name, place / "in" / name)
