"""Make `rescale-cli` fail at every system call on its output, and check what is left.

    python tests/fault_runner.py [--format zip ...] [--mode fresh ...] [--fault EIO ...]

Needs Linux and strace. Each case runs the command again with one fault at one system call, and
checks that the source is unchanged, that the output is absent, the old one, or a new one that
`verify` proves, that the exit code is right, and that no temporary file is left after an error that
the program could handle. `patching/test_faults.py` runs a short form, with `--points`, in the gate.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from rescale_cli import cli
from rescale_cli.errors import OutputExists, RescaleError
from rescale_cli.patching.proof import verify
from rescale_cli.signals import hold_back

FORMATS = {"safetensors": "m.safetensors", "zip": "m.pth", "legacy": "l.pth", "folder": "hf"}
MODES = ("fresh", "force", "in-place", "revert")
FAULTS = {
    "EIO": "error=EIO",
    "ENOSPC": "error=ENOSPC",
    "KILL": "signal=SIGKILL",
    "TERM": "signal=SIGTERM",
}
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)")


@dataclass(frozen=True)
class Case:
    """One command in a folder of its own, made new for each fault."""

    format: str
    mode: str

    def prepare(self, folder: Path, sources: Path) -> tuple[Path, list[str]]:
        """Make source and output folders; where the output goes, and the command."""
        name = FORMATS[self.format]
        source, output = folder / "in" / name, folder / "out" / name
        shutil.copytree(sources, folder / "in")
        (folder / "out").mkdir()
        apply = ["apply", str(source), "--counts", str(folder / "in" / "counts.json")]
        if self.mode == "in-place":
            return source, [*apply, "-g", "0.5", "--in-place"]
        if self.mode == "force":
            run([*apply, "-g", "0.2", "-o", str(output)])
            return output, [*apply, "-g", "0.5", "-o", str(output), "--force"]
        if self.mode == "revert":
            patched = folder / "in" / f"patched-{name}"
            run([*apply, "-g", "0.2", "-o", str(patched)])
            return output, ["revert", str(patched), "-o", str(output)]
        return output, [*apply, "-g", "0.5", "-o", str(output)]


def make_sources(folder: Path) -> None:
    torch.manual_seed(0)
    state = {
        "conv.weight": torch.randn(16, 8, 3, 3),
        "fc.weight": torch.randn(10, 64),
        "fc.bias": torch.randn(10),
    }
    folder.mkdir()
    save_file(state, folder / "m.safetensors", metadata={"format": "pt"})
    torch.save(state, folder / "m.pth")
    torch.save(state, folder / "l.pth", _use_new_zipfile_serialization=False)
    shards = {"conv.weight": "model-1.safetensors", "fc.weight": "model-2.safetensors"}
    shards["fc.bias"] = "model-2.safetensors"
    (folder / "hf" / "sub").mkdir(parents=True)
    for shard in set(shards.values()):
        part = {name: state[name] for name in shards if shards[name] == shard}
        save_file(part, folder / "hf" / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": shards}
    (folder / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "hf" / "config.json").write_text("{}")
    (folder / "hf" / "sub" / "notes.txt").write_text("notes")
    (folder / "counts.json").write_text(json.dumps([500, 300, 200, 120, 80, 50, 30, 20, 10, 5]))


def run(words: list[str], strace: list[str] = [], heard: Path = Path(os.devnull)) -> int:  # noqa: B006
    """The exit code of a command in a fork of this process, which has everything imported."""
    start, go = os.pipe()
    child = os.fork()
    if not child:
        hold_back()
        for stream in (1, 2):
            os.dup2(os.open(heard, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)
        os.read(start, 1)
        code = cli.main(words)
        sys.stderr.flush()
        os._exit(code)
    tracer = None
    if strace:
        command = ["strace", "-f", "-y", "-s", "4096", "-p", str(child), *strace]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
    os.write(go, b"x")
    _, status = os.waitpid(child, 0)
    if tracer is not None:
        tracer.communicate()
    os.close(start)
    os.close(go)
    return os.waitstatus_to_exitcode(status)


def warm_up(folder: Path, sources: Path) -> None:
    """Import all that is imported late: in a fork, that would be done again and again."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        output, words = Case("zip", "revert").prepare(folder, sources)
        assert cli.main(words) == 0
        assert cli.main([*words[:-1], str(output)]) == OutputExists.exit_code
        words = [str(folder / "in" / "m.pth"), "--counts", str(folder / "in" / "counts.json")]
        assert cli.main(["apply", *words, "-g", "0.5", "-o", str(folder / "b.pth")]) == 0


def calls_of(case: Case, work: Path, sources: Path) -> Iterator[tuple[str, int]]:
    """Each system call, by name and number within its thread, that touches the output's folder."""
    output, words = case.prepare(work, sources)
    trace = work / "trace"
    assert run(words, ["-o", str(trace)]) == 0
    numbers, seen = Counter[tuple[str, str]](), set()
    for line in trace.read_text(errors="replace").splitlines():
        if not (match := _CALL.match(line)):
            continue
        thread, name, arguments = match.groups()
        numbers[thread, name] += 1
        call = name, numbers[thread, name]
        ours = str(output.parent) in arguments and not arguments.startswith(("1<", "2<"))
        if ours and call not in seen:
            seen.add(call)
            yield call


def hashes(path: Path) -> dict[str, str]:
    """The SHA-256 of a file, or of each file in a folder, by name."""
    files = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def run_case(case: Case, sources: Path, call: tuple[str, int], fault: str) -> tuple[str, list[str]]:
    """Run a command with one fault; what became of it, and what is wrong with that."""
    with tempfile.TemporaryDirectory(prefix="fault-") as name:
        work = Path(name) / "w"
        output, words = case.prepare(work, sources)
        before = hashes(output) if output.exists() else {}
        log, heard = work / "log", work / "heard"
        inject = f"inject={call[0]}:{FAULTS[fault]}:when={call[1]}"
        code = run(words, ["-o", str(log), "-e", f"trace={call[0]}", "-e", inject], heard)
        happened = re.search("INJECTED|SIGTERM|SIGKILL", log.read_text(errors="replace"))
        problems = [] if happened else ["the fault did not happen"]
        problems += _problems(case, work, sources, output, before, code, heard.read_text(), fault)
        if fault == "KILL":
            problems += _second_run(case, work, sources, output, words)
        return f"exit {code}", problems


def _problems(
    case: Case, work: Path, sources: Path, output: Path, before: dict[str, str],
    code: int, heard: str, fault: str,
) -> Iterator[str]:  # fmt: skip
    name = FORMATS[case.format]
    if case.mode != "in-place" and hashes(work / "in" / name) != hashes(sources / name):
        yield "the source changed"
    now = hashes(output) if output.exists() else {}
    new = bool(now) and now != before
    if before and not now:
        yield "the old output is gone"
    if now and (case.mode != "in-place" or new):
        yield from _unproven(case, work, sources, output)
    if case.mode == "in-place" and new and hashes(_bak(output)) != hashes(sources / name):
        yield "the backup is not the original"
    allowed = {"KILL": (-9, 137), "TERM": (130, 0)}.get(fault, (5, 0))
    if code not in allowed:
        yield f"exit {code}: {heard[-300:]}"
    if code == 0 and not new:
        yield "exit 0 without a new output"
    if fault != "KILL" and code and new:
        yield "an error, yet a new output"
    if "Traceback" in heard:
        yield heard[-300:]
    left = [p.name for p in work.rglob("*") if ".rescale-cli-" in p.name]
    if fault != "KILL" and left:
        yield f"left behind: {left}"
    for beside in work.rglob("*.rescale.*"):
        if fault != "KILL" and not beside.with_name(beside.name.split(".rescale.")[0]).exists():
            yield f"a record without its file: {beside.name}"


def _bak(output: Path) -> Path:
    return output.with_name(output.name + ".bak")


def _unproven(case: Case, work: Path, sources: Path, output: Path) -> Iterator[str]:
    name = FORMATS[case.format]
    if case.mode == "revert":
        if hashes(output) != hashes(sources / name):
            yield "what was reverted is not the original"
        return
    try:
        verify(output, sources / name)
    except RescaleError as error:
        yield f"not proven: {error.what}: {error.saw}"


def _second_run(
    case: Case, work: Path, sources: Path, output: Path, words: list[str]
) -> Iterator[str]:
    """After a kill, the same command does its work, or finds it done."""
    there = output.exists()
    code = run(words)
    done = there and case.mode in ("fresh", "revert", "in-place")
    if code != 0 and not (done and code == 4):
        yield f"the run after a kill: exit {code}"
    yield from _unproven(case, work, sources, output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument(
        "--points", type=int, help="inject each fault at this many calls only, evenly spread"
    )
    given = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        sources = Path(name) / "sources"
        make_sources(sources)
        warm_up(Path(name) / "warm", sources)
        for mode in given.mode:
            for kind in given.format:
                case = Case(kind, mode)
                if mode == "in-place" and kind == "folder":
                    continue
                calls = list(calls_of(case, Path(name) / f"{mode}-{kind}", sources))
                calls = calls[:: -(-len(calls) // (given.points or len(calls)))]
                jobs = [(call, fault) for fault in given.fault for call in calls]
                results = [run_case(case, sources, *job) for job in jobs]
                codes = Counter[str]()
                for (call, fault), (code, problems) in zip(jobs, results, strict=True):
                    codes[f"{fault} {code}"] += 1
                    for problem in problems:
                        bad += 1
                        print(f"  {mode} {kind}: {fault} at {call[0]} {call[1]}: {problem}")
                counted = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
                print(f"{mode} {kind}: {len(calls)} calls; {counted}", flush=True)
    print(f"{bad} problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
