"""Fuzz every parser that reads untrusted bytes, from files that the real libraries wrote.

    python examples/fuzz/fuzz.py --format torch-zip --inputs 1000000 --seed 0

Each input is a real file with a change, mostly of its structure (a header field, a JSON value, an
opcode), so that it gets past the first check. Every input goes through the parser. What the parser
accepts goes on to the code that uses it, and a seeded sample of what that accepts goes on to
`apply`, `verify` and an independent reader (safetensors, or torch.load with weights_only=True).

Allowed are a RescaleError with a fix, or a success. Not allowed: any other exception, a
RuntimeWarning, an import by a pickle or a started program, more than 5 seconds, more than 1 GiB of
memory beyond the start, a changed source, or an output that differs from the formula. The same
format, seed and number give the same input. A failure prints its number and keeps its file in
--keep.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutations as change
import numpy as np
import seeds

from rescale_cli import api
from rescale_cli.checkpoints.formats import safetensors_file, torch_legacy, torch_zip
from rescale_cli.checkpoints.pickle_machine import load_pickle
from rescale_cli.core.counts import whole_numbers
from rescale_cli.data.counts import count_data
from rescale_cli.data.logits_file import read_logits
from rescale_cli.errors import RescaleError
from rescale_cli.models.export_archive import read_export_archive
from rescale_cli.patching.proof import verify

COUNTS, GAMMA, C = [100, 50, 20, 5], 0.3, seeds.C
SECONDS, MEMORY = 5, 1 << 30
#: A folder in memory where the system has one: the disk is not under test.
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class TooSlow(BaseException):
    """An input took more than the seconds allowed."""


class CodeRan(BaseException):
    """Something of an input was called."""


#: What Python reports when a pickle imports a name, or a program is started.
_FORBIDDEN = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"}
_watching = False


def _watch(event: str, _: object) -> None:
    """An audit hook, which cannot be removed; it is idle between inputs."""
    if _watching and event in _FORBIDDEN:
        raise CodeRan(event)


sys.addaudithook(_watch)


# ---- what is done with an input: parse, use, apply


def tensors_of(list_tensors: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Parse by a format's own reader; every tensor must lie in the file."""

    def parse(path: Path) -> None:
        size = path.stat().st_size
        for info in list_tensors(path).tensors:
            assert 0 <= info.start <= info.stop <= size, info

    return parse


def inspect(path: Path, _: Any) -> None:
    """Find the head and read its rows, by the content of the file."""
    api.inspect(path)


def patch(path: Path) -> Iterator[str]:
    """Apply, verify, and let the owning library read both files, if it can read the first."""
    output = path.with_name(f"out{path.suffix}")
    api.apply(path, COUNTS, GAMMA, output=output)
    yield "applied"
    verify(output, path)
    try:
        before = read_independently(path)
    except Exception:  # the library may refuse a file of which we need only the table
        return
    after = read_independently(output)
    factors = (max(COUNTS) / np.array(COUNTS, float)) ** GAMMA
    assert before.keys() == after.keys(), "other names"
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    if path.suffix == ".safetensors":  # in the other files, names are paths into a pickle
        heads = {keys.weight for keys in api.inspect(path, COUNTS).found.heads}
        assert changed <= heads, (changed, heads)
    for name in changed:
        was, now = (tensors[name].astype(np.float64) for tensors in (before, after))
        assert C in was.shape[:2], (name, was.shape)
        rows = factors.reshape(-1, *[1] * (was.ndim - 1)) if was.shape[0] == C else factors
        with np.errstate(all="ignore"):
            assert np.allclose(now, was * rows, rtol=1e-2, atol=1e-7, equal_nan=True), name
    yield "compared"


def read_independently(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as its own library reads them."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    import torch

    found: dict[str, np.ndarray] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value.detach().float().numpy().copy()
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}.{key!r}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        walk(torch.load(path, map_location="cpu", weights_only=True), "")
    return found


def read_pickle(path: Path) -> None:
    """Load one pickle by the machine that runs nothing."""
    load_pickle(path.read_bytes(), persistent=lambda value: value)


def read_graph(path: Path, _: Any) -> None:
    """Read the graph of a .pt2 archive; no operator is run."""
    from rescale_cli.models.exported_network import load_exported

    assert load_exported(path)[1] > 0


def run_graph(path: Path) -> Iterator[str]:
    """Compute two images; any failure of the model is bad input, as `evaluate` reports it."""
    import torch

    from rescale_cli.models.exported_network import load_exported

    try:
        with torch.inference_mode():
            load_exported(path)[0](torch.zeros(2, 3, 4, 4))
    except RescaleError:
        raise
    except Exception:
        return
    yield "applied"


def count(path: Path) -> Any:
    """Count, as `counts` and `--counts` do."""
    return count_data(str(path))


def count_list(path: Path) -> Any:
    """Count the lines of a list."""
    return count_data(f"list:{path}")


def check_counts(_: Path, raw: Any) -> None:
    """What was counted is whole numbers, or refused."""
    values = whole_numbers(raw.values, raw.names, raw.source)
    assert all(type(value) is int and value >= 0 for value in values)
    assert raw.names is None or len(raw.names) == len(values)


def check_logits(_: Path, found: Any) -> None:
    """Logits are (N, C) without a NaN, labels rows of them."""
    assert found.logits.ndim == 2
    assert not np.isnan(found.logits).any()
    assert found.labels is None or (found.labels < found.logits.shape[1]).all()


@dataclass(frozen=True)
class Target:
    """One format: real files of it, how they are changed, and what is done with the result."""

    seeds: Callable[[], Iterator[tuple[str, bytes]]]
    mutate: Callable[[bytes, random.Random], bytes]
    parse: Callable[[Path], Any]
    use: Callable[[Path, Any], None] | None = None
    sample: Callable[[Path], Iterator[str]] | None = None


FORMATS = {
    "safetensors": Target(
        seeds.safetensors, change.changed_header, tensors_of(safetensors_file.list_tensors),
        inspect, patch,
    ),
    "torch-zip": Target(
        lambda: seeds.saved(legacy=False), change.changed_zip, tensors_of(torch_zip.list_tensors),
        inspect, patch,
    ),
    "pickle": Target(seeds.pickles, change.changed_pickle, read_pickle),
    "torch-legacy": Target(
        lambda: seeds.saved(legacy=True), change.changed_pickle,
        tensors_of(torch_legacy.list_tensors), inspect, patch,
    ),
    "pt2": Target(seeds.program, change.changed_zip, read_export_archive, read_graph, run_graph),
    "npz": Target(seeds.npz, change.changed_zip, count, check_counts),
    "npy": Target(seeds.npy, change.changed_npy, count, check_counts),
    "csv": Target(seeds.csv_tables, change.changed_lines, count, check_counts),
    "json": Target(seeds.json_counts, change.changed_json, count, check_counts),
    "idx": Target(seeds.idx, change.changed_idx, count, check_counts),
    "list": Target(seeds.path_list, change.changed_lines, count_list, check_counts),
    "coco": Target(seeds.coco, change.changed_json, count, check_counts),
    "logits": Target(seeds.logits, change.changed_zip, read_logits, check_logits),
}  # fmt: skip


# ---- the loop


def attempt(target: Target, path: Path, sampled: bool) -> Iterator[str]:
    """Give the name of each stage that an input passes; a clear error ends it."""
    global _watching
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _watching = True
    try:
        value = target.parse(path)
        yield "parsed"
        if target.use is not None:
            target.use(path, value)
            yield "used"
        if target.sample is not None and sampled:
            yield "sampled"
            yield from target.sample(path)
    except RescaleError as error:
        if error.exit_code not in (3, 4) or not error.what or not error.fix:
            raise AssertionError(f"exit {error.exit_code}, {error.what!r}, {error.fix!r}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _watching = False


def _stop(*_: object) -> None:
    raise TooSlow


def peak() -> int:
    """The most memory that this process has held, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def problem_with(target: Target, path: Path, sampled: bool, result: Counter[str]) -> str:
    """What went wrong with an input, or nothing; the stages that it passed are counted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            result.update(attempt(target, path, sampled))
    except TooSlow:
        return f"more than {SECONDS} s"
    except CodeRan as error:
        return f"the input ran code: {error}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return f"{type(error).__name__} at {where}: {str(error)[:200]}"
    return ""


def fuzz(
    name: str, inputs: int, seed: int = 0, share: float = 0.02, first: int = 0,
    keep: Path | None = None, seconds: float = 1e9,
) -> tuple[Counter[str], list[str]]:  # fmt: skip
    """Try inputs of a format.

    Args:
        name: a key of FORMATS.
        inputs: how many.
        seed: of the changes.
        share: of the inputs that reach the last stage, those that go through it, 0 to 1.
        first: the number of the first input.
        keep: a folder for the inputs that failed.
        seconds: stop after this time.

    Returns:
        how many were tried (`inputs`) and passed each stage; a line for each different failure.
    """
    target, result, failures = FORMATS[name], Counter[str](), dict[str, str]()
    before, tempdir = signal.signal(signal.SIGALRM, _stop), tempfile.tempdir
    tempfile.tempdir = SCRATCH or tempdir  # for the parsers, too
    folder = Path(tempfile.mkdtemp(prefix="rescale-fuzz-"))
    try:
        real = list(target.seeds())
        for file, data in real:  # the files themselves are right
            (folder / file).write_bytes(data)
            passed = Counter(attempt(target, folder / file, sampled=True))
            wanted = {"parsed": True, "used": target.use, "applied": target.sample}
            assert passed.keys() >= {stage for stage, on in wanted.items() if on}, (file, passed)
            _clear(folder)
        end, start = time.monotonic() + seconds, peak()
        for number in range(first, first + inputs):
            rng = random.Random(zlib.crc32(f"{name} {seed} {number}".encode()))
            file, data = rng.choice(real)
            changed, path = target.mutate(data, rng), folder / file
            path.write_bytes(changed)
            sampled, passed = rng.random() < share, Counter[str]()
            problem = problem_with(target, path, sampled, passed)
            result += passed
            result["inputs"] += 1
            if not problem and (held := peak()) - start > MEMORY:
                problem, start = "memory above 1 GiB", held
            if not problem and sampled and passed and path.read_bytes() != changed:
                problem = "the source was changed"
            if problem:
                result["failed"] += 1
                if keep is not None and problem[:80] not in failures:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{number}-{file}").write_bytes(changed)
                failures.setdefault(problem[:80], f"{name} input {number}: {problem}")
            if passed["sampled"] or problem:
                _clear(folder)
            if time.monotonic() > end:
                break
    finally:
        signal.signal(signal.SIGALRM, before)
        tempfile.tempdir = tempdir
        shutil.rmtree(folder)
    return result, list(failures.values())


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        entry.unlink()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--format", choices=[*FORMATS, "all"], default="all")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.02, help="sampled for the last stage")
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that failed")
    parser.add_argument("--seconds", type=float, default=1e9, help="at most, for each format")
    given = parser.parse_args()
    faulthandler.enable()
    bad = 0
    for name in FORMATS if given.format == "all" else [given.format]:
        begun = time.monotonic()
        result, failures = fuzz(
            name, given.inputs, given.seed, given.share, given.first, given.keep, given.seconds
        )
        spent = time.monotonic() - begun
        target = FORMATS[name]
        stages = ["parsed", *["used"] * (target.use is not None)]
        stages += ["sampled", "applied", "compared"] * (target.sample is not None) + ["failed"]
        shown = ", ".join(f"{result[s]:,} {s} ({result[s] / result['inputs']:.1%})" for s in stages)
        print(f"{name}: {result['inputs']:,} inputs in {spent:,.0f} s: {shown}", flush=True)
        for line in failures:
            print(f"  {line}", flush=True)
        bad += len(failures)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
