"""Fail or kill `rescale-cli` at every system call that touches the output, and look what is left.

    python tests/fault_runner.py [--format zip ...] [--mode fresh ...] [--fault EIO ...]

For Linux with strace. Each case runs the command once more, with one fault at one call, and checks:
the source is as it was; the output is absent, or the old one, or the new one, and `verify` proves
it; the exit code; nothing left lying about after an error that could be handled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from rescale_cli.errors import RescaleError
from rescale_cli.proof import verify

FORMATS = {"safetensors": "m.safetensors", "zip": "m.pth", "legacy": "l.pth", "folder": "hf"}
MODES = ("fresh", "force", "in-place", "revert")
FAULTS = {
    "EIO": "error=EIO", "ENOSPC": "error=ENOSPC", "KILL": "signal=SIGKILL", "TERM": "signal=SIGTERM",
}  # fmt: skip
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)")
_RUN = [sys.executable, "-m", "rescale_cli"]


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
            _quietly([*apply, "-g", "0.2", "-o", str(output)])
            return output, [*apply, "-g", "0.5", "-o", str(output), "--force"]
        if self.mode == "revert":
            patched = folder / "in" / f"patched-{name}"
            _quietly([*apply, "-g", "0.2", "-o", str(patched)])
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


def _quietly(words: list[str]) -> int:
    return subprocess.run([*_RUN, *words], capture_output=True, check=False).returncode


def calls_of(case: Case, work: Path, sources: Path) -> Iterator[tuple[str, int]]:
    """Each system call, by name and number within its thread, that touches the output's folder."""
    output, words = case.prepare(work, sources)
    trace = work / "trace"
    subprocess.run(
        ["strace", "-f", "-y", "-s", "4096", "-o", str(trace), *_RUN, *words],
        capture_output=True, check=True,
    )  # fmt: skip
    numbers, seen = Counter[tuple[str, str]](), set()
    for line in trace.read_text(errors="replace").splitlines():
        if not (match := _CALL.match(line)):
            continue
        thread, name, arguments = match.groups()
        numbers[thread, name] += 1
        call = name, numbers[thread, name]
        if name != "execve" and str(output.parent) in arguments and call not in seen:
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
        inject = f"inject={call[0]}:{FAULTS[fault]}:when={call[1]}"
        log = work / "log"
        done = subprocess.run(
            ["strace", "-f", "-y", "--seccomp-bpf", "-o", str(log), "-e", f"trace={call[0]}",
             "-e", inject, *_RUN, *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        struck = "INJECTED" in log.read_text(errors="replace") or "KILL" in fault
        problems = [] if struck else ["the fault did not happen"]
        problems += _problems(case, work, sources, output, before, done, fault)
        if fault == "KILL":
            problems += _second_run(case, work, sources, output, words)
        return f"exit {done.returncode}", problems


def _problems(
    case: Case, work: Path, sources: Path, output: Path, before: dict[str, str],
    done: subprocess.CompletedProcess[str], fault: str,
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
    if done.returncode not in allowed:
        yield f"exit {done.returncode}: {done.stderr[-300:]}"
    if done.returncode == 0 and not new:
        yield "exit 0 without a new output"
    if fault in ("EIO", "ENOSPC") and done.returncode and new:
        yield "an error, yet a new output"
    if "Traceback" in done.stderr:
        yield done.stderr[-300:]
    left = [p.name for p in work.rglob("*") if ".rescale-cli-" in p.name]
    if fault != "KILL" and left:
        yield f"left behind: {left}"
    alone = [p for p in work.rglob("*.rescale.*") if not p.with_name(p.name.split(".rescale.")[0]).exists()]
    if fault != "KILL" and alone:
        yield f"a record without its file: {alone}"


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
    code = _quietly(words)
    done = there and case.mode in ("fresh", "revert", "in-place")
    if code != 0 and not (done and code == 4):
        yield f"the run after a kill: exit {code}"
    yield from _unproven(case, work, sources, output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--jobs", type=int, default=2)
    wanted = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(wanted.jobs) as pool:
        sources = Path(name) / "sources"
        make_sources(sources)
        for mode in wanted.mode:
            for kind in wanted.format:
                case = Case(kind, mode)
                if mode == "in-place" and kind == "folder":
                    continue
                calls = list(calls_of(case, Path(name) / f"{mode}-{kind}", sources))
                jobs = [(call, fault) for fault in wanted.fault for call in calls]
                results = pool.map(lambda job, case=case: run_case(case, sources, *job), jobs)
                codes = Counter[str]()
                for (call, fault), (code, problems) in zip(jobs, results, strict=True):
                    codes[f"{fault} {code}"] += 1
                    for problem in problems:
                        bad += 1
                        print(f"  {mode} {kind}: {fault} at {call[0]} {call[1]}: {problem}")
                print(f"{mode} {kind}: {len(calls)} calls, {dict(sorted(codes.items()))}", flush=True)
    print(f"{bad} problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
