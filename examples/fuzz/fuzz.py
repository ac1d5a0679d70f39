"""Fuzz every parser that reads bytes from outside, from files that the real libraries wrote.

    python examples/fuzz/fuzz.py --format torch-zip --inputs 1000000 --seed 0

Each input is a mutated real file. Allowed are a RescaleError with a fix, or a success. For
checkpoints, success means more: `apply` wrote a file, `verify` proves it, and an independent reader
(safetensors, or torch.load with weights_only=True) that can open both files finds exactly the
head changed, by the formula. Not allowed: any other exception, more than 5 seconds, more than
1 GiB of memory beyond the start. The same format, seed and number give the same inputs; a failure
prints its number and keeps its file in --keep. `--first N` starts at input N.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import io
import json
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli import api
from rescale_cli.core.counts import whole_numbers
from rescale_cli.errors import RescaleError
from rescale_cli.files.logits_file import read_logits
from rescale_cli.patching.proof import verify
from rescale_cli.pickles.inert_pickle import load_pickle
from rescale_cli.sources.count_sources import count_data

COUNTS, GAMMA, C, D = [100, 50, 20, 5], 0.3, 4, 6
SECONDS, MEMORY = 5, 1 << 30
TOKENS = (
    b"{", b"}", b'"', b"[", b"]", b"\\", b"\x00", b"\xff", b"\x80\x02", b".", b"(", b"t", b"R",
    b"}q", b"c", b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04", b"PK\x06\x06", b"-1", b"1e99",
    b"NaN", b"\xff" * 8, b"\x00" * 8, b"null", b"BF16", b"\xed\xa0\x80", b"Infinity", b"\n", b",",
    b"cos\nsystem\n", b"\x8c\x02os", b"9" * 40, b"\xef\xbb\xbf", b"\r\n", b"true",
    b"\xff\xff\xff\x7f",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 1.5, 1e308, 10**12, 2**63, 10**30, "", "x", "as_int", "../x", [], [None],
    {}, {"a": 1}, {"as_int": 2**62},
)  # fmt: skip


class TooSlow(BaseException):
    """An input took more than the seconds allowed."""


# ---- mutations


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: bits, stretches, tokens, a cut or longer end; mostly at the ends."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not out:
            break
        near = rng.randrange(min(len(out), 600))
        at = rng.choice((near, len(out) - 1 - near, rng.randrange(len(out))))
        match rng.randrange(9):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                token = rng.choice(TOKENS)
                out[at : at + len(token)] = token
            case 3:
                out[at:at] = rng.choice(TOKENS) * rng.randrange(1, 4)
            case 4:
                del out[at : at + rng.randrange(1, 40)]
            case 5:
                out[at:at] = out[at : at + rng.randrange(1, 200)]
            case 6:
                del out[at:]
            case 7:
                out += rng.randbytes(rng.randrange(1, 60))
            case _:
                number = rng.choice((0, 1, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
                size = rng.choice((2, 4, 8))
                out[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(out)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON text replaced, removed, doubled or renamed; sometimes bytes instead."""
    if rng.random() < 0.3:
        return mutated(data, rng)
    value = json.loads(data)
    here: Any = value
    for _ in range(rng.randrange(1, 12)):
        inner = list(here.values()) if isinstance(here, dict) else here
        inner = [one for one in inner if isinstance(one, dict | list) and one]
        if not inner:
            break
        here = rng.choice(inner)
    key = rng.choice(list(here) if isinstance(here, dict) else range(len(here))) if here else None
    if key is None:
        return mutated(data, rng)
    match rng.randrange(4):
        case 0:
            del here[key]
        case 1 if isinstance(here, dict):
            here[str(rng.choice(VALUES))] = here.pop(key)
        case 1:
            here.append(here[key])
        case 2 if isinstance(here[key], int):
            here[key] = here[key] + rng.choice((-1, 1, 8, 1 << 31))
        case _:
            here[key] = rng.choice(VALUES)
    return json.dumps(value).encode()


def mutated_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose JSON header was changed and whose length still fits."""
    if rng.random() < 0.4:
        return mutated(data, rng)
    size = int.from_bytes(data[:8], "little")
    header = mutated_json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def mutated_zip(data: bytes, rng: random.Random, inner: Callable[..., bytes] = mutated) -> bytes:
    """A zip in which one record was changed and all checksums fit; sometimes bytes instead."""
    if rng.random() < 0.4:
        return mutated(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(records))
    name, content = records[at]
    match rng.randrange(8):
        case 0:
            del records[at]
        case 1:
            records.append((name + rng.choice(("x", "/x", ".pt", "0")), content))
        case 2:
            renamed = name.replace(rng.choice(list(name)), rng.choice("/.x0\u00e9"))
            records[at] = (renamed.lstrip("/") or "x", content)
        case _:
            short = [i for i, (n, _) in enumerate(records) if n.endswith((".pkl", ".json"))] or [at]
            at = rng.choice(short)
            name, content = records[at]
            change = inner if name.endswith(".json") else mutated
            records[at] = (name, change(content, rng) if content else b"\0")
    packed = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w") as archive:
        warnings.simplefilter("ignore")  # names that repeat are part of the exercise
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def mutated_program(data: bytes, rng: random.Random) -> bytes:
    """An archive of torch.export with one value of one of its JSON records changed."""
    return mutated_zip(data, rng, mutated_json)


def mutated_gzip(data: bytes, rng: random.Random) -> bytes:
    """IDX labels, raw or packed, changed before or after packing."""
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    if plain is data or rng.random() < 0.5:
        return mutated(data, rng)
    return gzip.compress(mutated(plain, rng), mtime=0)


# ---- what is done with an input


def checkpoint(path: Path, original: Path) -> None:
    """Inspect, apply, verify; then let the owning library read both files, if it can."""
    try:
        api.inspect(path)
    except RescaleError as error:
        clear(error)
    output = path.with_name(f"out{path.suffix}")
    api.apply(path, COUNTS, GAMMA, output=output)
    verify(output, path)
    compare_values(path, output)


def compare_values(path: Path, output: Path) -> None:
    """The independent reader sees the head multiplied, and everything else as it was."""
    try:
        before = read_independently(path)
    except Exception:  # the library may refuse a file of which we need only the table
        return
    after = read_independently(output)
    factors = (max(COUNTS) / np.array(COUNTS, float)) ** GAMMA
    assert before.keys() == after.keys(), "other names"
    changed = [name for name in before if not same(before[name], after[name])]
    for name in changed:
        was, now = (x[name].astype(np.float64) for x in (before, after))
        assert was.shape == (C, D), (name, was.shape)
        with np.errstate(all="ignore"):
            assert np.allclose(now, was * factors[:, None], rtol=1e-2, atol=1e-38), name


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays have the same bytes."""
    return (
        one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    )


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


def inert(path: Path, original: Path) -> None:
    """Load one pickle by the machine that runs nothing."""
    load_pickle(path.read_bytes(), persistent=lambda value: value)


def program(path: Path, original: Path) -> None:
    """Read a .pt2 archive and, if it is accepted, compute two images; no canary may appear."""
    import torch

    from rescale_cli.loading.compiled_models import load_exported

    module, classes = load_exported(path)
    try:
        with torch.inference_mode():
            module(torch.zeros(2, 3, 4, 4))
    except RescaleError:
        raise
    except Exception:  # as evaluate does, which reports any failure of a model as bad input
        return
    assert classes > 0


def counts(path: Path, original: Path) -> None:
    """Count, as `counts` and `--counts` do."""
    raw = count_data(str(path))
    values = whole_numbers(raw.values, raw.names, raw.source)
    assert all(type(value) is int and value >= 0 for value in values)


def listed(path: Path, original: Path) -> None:
    """Count the lines of a list."""
    raw = count_data(f"list:{path}")
    assert all(value >= 0 for value in raw.values)


def logits(path: Path, original: Path) -> None:
    """Read a file of logits."""
    found = read_logits(path)
    assert found.logits.ndim == 2
    assert not np.isnan(found.logits).any()


def clear(error: RescaleError) -> None:
    """An error must be one of bad input or of a decision, and say how to go on."""
    assert error.exit_code in (3, 4), (error.exit_code, error.what)
    assert error.what, "no cause"
    assert error.fix, "no fix"


# ---- real files


def seeds_safetensors() -> Iterator[tuple[str, bytes]]:
    """Files of the safetensors library."""
    from safetensors.numpy import save

    tensors = {
        "conv.weight": np.ones((D, 3, 2, 2), np.float32),
        "fc.weight": np.linspace(1, 2, C * D, dtype=np.float32).reshape(C, D),
        "fc.bias": np.zeros(C, np.float32),
    }
    yield "m.safetensors", save(tensors, {"format": "pt"})
    yield "m.safetensors", save({name: t.astype(np.float16) for name, t in tensors.items()})


def state() -> dict[str, Any]:
    """The state of a small network."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, D, 2), torch.nn.BatchNorm2d(D), torch.nn.Linear(D, C)]
    return dict(torch.nn.Sequential(*layers).state_dict())


def saved(value: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def seeds_torch() -> Iterator[tuple[str, bytes]]:
    """Zip files of torch.save."""
    yield "m.pth", saved(state())
    nested = {"state_dict": state(), "epoch": 3, "names": ["a", "b", "c", "d"], "lr": 0.1}
    yield "m.pth", saved(nested)


def seeds_legacy() -> Iterator[tuple[str, bytes]]:
    """Files of torch.save as before 1.6."""
    yield "m.pth", saved(state(), _use_new_zipfile_serialization=False)
    nested = {"model": state(), "best": {"acc": 0.9}}
    yield "m.pth", saved(nested, _use_new_zipfile_serialization=False)


def seeds_pickle() -> Iterator[tuple[str, bytes]]:
    """Pickles of each protocol, and that of a checkpoint."""
    value = {
        "a": [1, 2.5, "x", b"y", None, True, (1, 2), {3}, frozenset({4}), 10**30, {"z": [[]]}],
        "path": Path("x"), "array": np.arange(3), "complex": 1j, "counter": Counter("aab"),
    }  # fmt: skip
    for protocol in range(6):
        yield "m.pkl", pickle.dumps(value, protocol)
    with zipfile.ZipFile(io.BytesIO(saved(state()))) as archive:
        yield "m.pkl", archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def seeds_program() -> Iterator[tuple[str, bytes]]:
    """An archive of torch.export."""
    import torch

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(3, D, 2), torch.nn.Linear(D, C)

        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                y = self.conv(x).relu()
            first, second = y.reshape(x.shape[0], D, -1).mean(2).chunk(2, 1)
            return self.fc(torch.cat([second, first + torch.tensor([0.5])], 1))

    exported = torch.export.export(
        Small().eval(), (torch.randn(2, 3, 4, 4),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    yield "m.pt2", buffer.getvalue()


def seeds_json() -> Iterator[tuple[str, bytes]]:
    """Counts in each form of JSON."""
    named = {"counts": [3, 5], "classes": ["dog", "cat"]}
    for value in ([3, 5, 7], {"dog": 3, "cat": 5}, {"0": 3, "1": 5}, named):
        yield "c.json", json.dumps(value).encode()
    document = {"schema": "rescale-cli/counts@1", "ok": True, "result": named}
    yield "c.json", json.dumps(document).encode()


def seeds_csv() -> Iterator[tuple[str, bytes]]:
    """Tables of counts and of labels."""
    yield "c.csv", b"class,count\ndog,3\ncat,5\n"
    yield "c.csv", b'image;label\na.png;"a;b"\nb.png;cat\nc.png;cat\n'
    yield "c.csv", b"\xef\xbb\xbf0\t3\r\n1\t5\r\n"
    yield "c.csv", b"path,label\nx/a.png,0\nx/b.png,1\n"


def seeds_npy() -> Iterator[tuple[str, bytes]]:
    """Arrays of counts."""
    for array in (np.array([3, 5, 7]), np.array([3.0, 5.0]), np.array([3, 5], ">i2")):
        buffer = io.BytesIO()
        np.save(buffer, array)
        yield "c.npy", buffer.getvalue()


def seeds_npz() -> Iterator[tuple[str, bytes]]:
    """Images and labels, stored and packed."""
    arrays = {"labels": np.array([0, 1, 1, 2]), "images": np.zeros((4, 2, 2), np.uint8)}
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **arrays)
        yield "c.npz", buffer.getvalue()


def seeds_coco() -> Iterator[tuple[str, bytes]]:
    """An annotation file of iNaturalist's kind."""
    value = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)],
        "annotations": [{"id": i, "image_id": i, "category_id": i % 2} for i in range(3)],
        "categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}],
    }
    yield "c.json", json.dumps(value).encode()


def seeds_list() -> Iterator[tuple[str, bytes]]:
    """Lists of paths and labels."""
    yield "c.txt", b"train/a b.jpg 0\ntrain/c.jpg 1\ntrain/d.jpg 1\n"


def seeds_idx() -> Iterator[tuple[str, bytes]]:
    """Labels in MNIST's form, raw and packed."""
    plain = struct.pack(">2I", 2049, 6) + bytes([0, 1, 1, 2, 2, 2])
    yield "train-labels-idx1-ubyte", plain
    yield "train-labels-idx1-ubyte.gz", gzip.compress(plain, mtime=0)


def seeds_logits() -> Iterator[tuple[str, bytes]]:
    """Logits and labels, as NumPy and as safetensors write them."""
    from safetensors.numpy import save

    arrays = {"logits": np.ones((5, C), np.float32), "labels": np.array([0, 1, 2, 3, 0])}
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **arrays)
        yield "l.npz", buffer.getvalue()
    yield "l.safetensors", save(arrays)


@dataclass(frozen=True)
class Target:
    """One format: real files of it, how they are changed, and what is done with the result."""

    seeds: Callable[[], Iterator[tuple[str, bytes]]]
    mutate: Callable[[bytes, random.Random], bytes]
    run: Callable[[Path, Path], None]


FORMATS = {
    "safetensors": Target(seeds_safetensors, mutated_header, checkpoint),
    "torch-zip": Target(seeds_torch, mutated_zip, checkpoint),
    "torch-legacy": Target(seeds_legacy, mutated, checkpoint),
    "pickle": Target(seeds_pickle, mutated, inert),
    "pt2": Target(seeds_program, mutated_program, program),
    "json": Target(seeds_json, mutated_json, counts),
    "csv": Target(seeds_csv, mutated, counts),
    "npy": Target(seeds_npy, mutated, counts),
    "npz": Target(seeds_npz, mutated_zip, counts),
    "coco": Target(seeds_coco, mutated_json, counts),
    "list": Target(seeds_list, mutated, listed),
    "idx": Target(seeds_idx, mutated_gzip, counts),
    "logits": Target(seeds_logits, mutated_zip, logits),
}


def mutate(target: Target, data: bytes, rng: random.Random) -> bytes:
    """A changed copy; a file that is no zip is changed as bytes, or by its header."""
    if target.mutate is mutated_zip and data[:2] != b"PK":
        return mutated_header(data, rng)
    return target.mutate(data, rng)


def attempt(target: Target, path: Path) -> str:
    """`refused` or `accepted`; anything else is raised."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        target.run(path, path)
    except RescaleError as error:
        clear(error)
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "accepted"


def _stop(*_: object) -> None:
    raise TooSlow


def peak() -> int:
    """The most memory that this process has held, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def fuzz(
    name: str, inputs: int, seed: int = 0, keep: Path | None = None, first: int = 0
) -> tuple[Counter[str], list[str]]:
    """Try that many inputs of a format.

    Returns:
        how many were refused and accepted; a line for each different failure.
    """
    target = FORMATS[name]
    seeds = list(target.seeds())
    result, failures = Counter[str](), dict[str, str]()
    before = signal.signal(signal.SIGALRM, _stop)
    folder = Path(tempfile.mkdtemp(prefix="rescale-fuzz-"))
    try:
        for file, data in seeds:  # the files themselves are right
            (folder / file).write_bytes(data)
            assert attempt(target, folder / file) == "accepted" or target.run is inert, file
            _clear_folder(folder)
        start = peak()
        for number in range(first, first + inputs):
            rng = random.Random(zlib.crc32(f"{name} {seed} {number}".encode()))
            file, data = rng.choice(seeds)
            changed = mutate(target, data, rng)
            path = folder / file
            path.write_bytes(changed)
            try:
                result[attempt(target, path)] += 1
                problem = "" if peak() - start < MEMORY else "memory above 1 GiB"
                start = start if not problem else peak()
            except TooSlow:
                problem = f"more than {SECONDS} s"
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(last.filename).name}:{last.lineno}"
                problem = f"{type(error).__name__} at {where}: {str(error)[:200]}"
            if path.exists() and path.read_bytes() != changed:
                problem = problem or "the source was changed"
            if problem:
                result["failed"] += 1
                key = problem[:80]
                if key not in failures and keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{number}-{file}").write_bytes(changed)
                failures.setdefault(key, f"{name} input {number}: {problem}")
            _clear_folder(folder)
    finally:
        signal.signal(signal.SIGALRM, before)
        shutil.rmtree(folder)
    return result, list(failures.values())


def _clear_folder(folder: Path) -> None:
    for entry in folder.iterdir():
        entry.unlink()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--format", choices=[*FORMATS, "all"], default="all")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that failed")
    given = parser.parse_args()
    faulthandler.enable()
    bad = 0
    for name in FORMATS if given.format == "all" else [given.format]:
        begun = time.monotonic()
        result, failures = fuzz(name, given.inputs, given.seed, given.keep, given.first)
        seconds = time.monotonic() - begun
        shown = ", ".join(f"{result[key]:,} {key}" for key in ("refused", "accepted", "failed"))
        print(f"{name}: {given.inputs:,} inputs in {seconds:,.0f} s: {shown}", flush=True)
        for line in failures:
            print(f"  {line}", flush=True)
        bad += len(failures)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
