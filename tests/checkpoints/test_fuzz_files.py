"""Damaged files are refused with a clear error or give a proven output, and never hang."""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import COUNTS, Made

from rescale_cli import api
from rescale_cli.errors import AmbiguousHead, BadCheckpoint, NoClassifier, NotProven, RescaleError
from rescale_cli.files.contents import TensorInfo
from rescale_cli.finding.find_head import find_heads
from rescale_cli.patching.proof import verify
from rescale_cli.patching.record import pack
from rescale_cli.patching.revert import revert

Containers = Callable[[str], Made]
SEED, CASES = 20250726, 80

#: Bytes that mean something in one of the formats: braces, pickle opcodes, zip magic, sizes.
TOKENS = (
    b"{", b"}", b'"', b"[", b"]", b"\\", b"\x00", b"\xff", b"\x80\x02", b".", b"(", b"t", b"R",
    b"}q", b"c", b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04", b"PK\x06\x06", b"-1", b"1e99",
    b"NaN", b"\xff" * 8, b"\x00" * 8, b"null", b"BF16", b"\xed\xa0\x80",
)  # fmt: skip


def mutations(data: bytes, rng: random.Random, cases: int) -> Iterator[tuple[str, bytes]]:
    """Damaged copies: flipped bits, lost and doubled stretches, tokens put in, a cut end."""
    # What decides about a file is mostly at its ends; the weights in the middle are many and dull.
    spots = [*range(min(len(data), 600)), *range(max(len(data) - 1200, 0), len(data))]

    def place() -> int:
        return rng.choice(spots) if rng.random() < 0.7 else rng.randrange(len(data))

    for case in range(cases):
        out, at = bytearray(data), place()
        kind = ("flip", "flips", "token", "insert", "delete", "double", "truncate", "append")[
            case % 8
        ]
        if kind == "flip":
            out[at] ^= 1 << rng.randrange(8)
        elif kind == "flips":
            for _ in range(rng.randrange(2, 8)):
                out[place()] = rng.randrange(256)
        elif kind == "token":
            token = rng.choice(TOKENS)
            out[at : at + len(token)] = token
        elif kind == "insert":
            out[at:at] = rng.choice(TOKENS) * rng.randrange(1, 4)
        elif kind == "delete":
            del out[at : at + rng.randrange(1, 40)]
        elif kind == "double":
            out[at:at] = out[at : at + rng.randrange(1, 200)]
        elif kind == "truncate":
            del out[at:]
        else:
            out += rng.randbytes(rng.randrange(1, 60))
        yield f"{kind} at {at}, case {case}", bytes(out)


def refusal(deed: Callable[[], object]) -> RescaleError | None:
    """The error that a deed ends with; any but one of ours goes on."""
    try:
        deed()
    except RescaleError as error:
        return error
    return None


def assert_clear(error: RescaleError, case: str) -> None:
    assert error.exit_code in (3, 4), (case, error.what)
    assert error.what, case
    assert error.fix, case


def refused_or_proven(path: Path, output: Path, case: str) -> bool:
    """Go the whole way; True if the damage was let pass (a weight has another value)."""
    if error := refusal(lambda: api.apply(path, COUNTS, 0.3, output=output)):
        assert_clear(error, case)
        return False
    verify(output, path)
    back = output.with_name("back" + output.suffix)
    revert(output, back)
    if path.is_file():
        assert back.read_bytes() == path.read_bytes(), case
    return True


def inspected(path: Path, case: str) -> None:
    """`inspect` looks further than apply: classes, records, warnings."""
    if error := refusal(lambda: api.inspect(path)):
        assert_clear(error, case)


NAMES = (
    "safetensors float32",
    "safetensors bfloat16",
    "state dict",
    "nested with optimizer and arguments",
    "whole module",
    "TorchScript",
    "legacy nested",
    "legacy strided view",
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_refused_or_proven(
    name: str, containers: Containers, tmp_path: Path
) -> None:
    made = containers(name)
    source, rng = made.path.read_bytes(), random.Random(SEED)
    passed = 0
    for number, (case, data) in enumerate(mutations(source, rng, CASES)):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / made.path.name
        path.write_bytes(data)
        inspected(path, case)
        before = set(folder.iterdir())
        if refused_or_proven(path, folder / f"out{path.suffix}", case):
            passed += 1
        else:
            assert set(folder.iterdir()) == before, f"{case}: something was left behind"
        assert path.read_bytes() == data, f"{case}: the source was touched"
        shutil.rmtree(folder)
    assert passed < CASES / 2, "most damage must be seen"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("file", ["model.safetensors.index.json", "config.json"])
def test_a_damaged_side_file_is_refused_or_proven(
    file: str, containers: Containers, tmp_path: Path
) -> None:
    made = containers("Hugging Face shards")
    folder = tmp_path / "model"
    shutil.copytree(made.path, folder)
    source, rng = (folder / file).read_bytes(), random.Random(SEED)
    for number, (case, data) in enumerate(mutations(source, rng, CASES)):
        (folder / file).write_bytes(data)
        inspected(folder, case)
        if refused_or_proven(folder, tmp_path / f"out{number}", case):
            shutil.rmtree(tmp_path / f"out{number}")
            shutil.rmtree(tmp_path / "back")
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"], case


def wrong_with(output: Path, original: Path, back: Path, intact: bool) -> Iterator[str]:
    """What inspect, verify and revert do that they should not, on an output or record damaged."""
    try:
        api.inspect(output)
    except RescaleError as error:
        if error.exit_code not in (3, 4):
            yield f"inspect: exit {error.exit_code}, {error.what}"
    except Exception as error:
        yield f"inspect: {error!r}"
    try:
        verify(output, original)
    except RescaleError as error:
        if error.exit_code not in (3, 4):
            yield f"verify: exit {error.exit_code}, {error.what}"
    except Exception as error:
        yield f"verify: {error!r}"
    else:
        if not intact:
            yield "verify: proven, though a byte of it is another"
    try:
        revert(output, back)
    except RescaleError as error:
        if error.exit_code not in (3, 4):
            yield f"revert: exit {error.exit_code}, {error.what}"
    except Exception as error:
        yield f"revert: {error!r}"
    if back.exists() and back.read_bytes() != original.read_bytes():
        yield "revert: not the original"
    for left in back.parent.glob("back*"):
        left.unlink()


def says_the_same(one: bytes, other: bytes) -> bool:
    """Whether two patched files differ only in what nothing can prove: who wrote them, when."""
    if one[:9] != other[:9] or other[8:9] != b"{":
        return False
    size = 8 + int.from_bytes(other[:8], "little")
    if one[size:] != other[size:]:
        return False
    try:
        headers = [json.loads(data[8:size]) for data in (one, other)]
        records = [json.loads(header["__metadata__"].pop("rescale_cli")) for header in headers]
        for record in records:
            for free in ("tool", "version", "command", "counts_source", "source"):
                record.pop(free, None)
    except (ValueError, KeyError, AttributeError):
        return False
    return headers[0] == headers[1] and records[0] == records[1]


def summary(problems: dict[str, str]) -> str:
    """One case of each problem."""
    return "\n".join(f"{problem}  [{case}]" for problem, case in problems.items())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["safetensors float32", "state dict", "legacy state dict"])
def test_a_damaged_output_is_never_proven_or_reverted_wrongly(
    name: str, containers: Containers, tmp_path: Path
) -> None:
    made = containers(name)
    output = tmp_path / f"out{made.path.suffix}"
    api.apply(made.path, COUNTS, 0.3, output=output)
    good, back, problems = (
        output.read_bytes(),
        tmp_path / f"back{made.path.suffix}",
        dict[str, str](),
    )
    for case, data in mutations(good, random.Random(SEED), CASES):
        output.write_bytes(data)
        same = data == good or says_the_same(data, good)
        for problem in wrong_with(output, made.path, back, same):
            problems.setdefault(problem, case)
    assert not problems, summary(problems)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["state dict", "legacy state dict"])
def test_a_damaged_record_is_refused_or_harmless(
    name: str, containers: Containers, tmp_path: Path
) -> None:
    made = containers(name)
    output, back, problems = tmp_path / "out.pth", tmp_path / "back.pth", dict[str, str]()
    api.apply(made.path, COUNTS, 0.3, output=output)
    sidecar = tmp_path / "out.pth.rescale.json"
    for case, data in mutations(sidecar.read_bytes(), random.Random(SEED), CASES):
        sidecar.write_bytes(data)
        for problem in wrong_with(output, made.path, back, intact=True):
            problems.setdefault(problem, case)
    assert not problems, summary(problems)


VALUES: tuple[object, ...] = (
    None, True, 0, -1, 1e308, 10**12, 10**14, 10**30, 10**400, "", "x", "\ud800", [], [None],
    [math.inf], {}, {"a": 1}, "0" * 64,
)  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["safetensors float32", "state dict"])
def test_a_record_with_a_field_of_another_kind_is_refused_or_harmless(
    name: str, containers: Containers, tmp_path: Path
) -> None:
    """Each field in turn gets every value; only a clear error or a right result comes out."""
    made = containers(name)
    output, back = tmp_path / f"out{made.path.suffix}", tmp_path / f"back{made.path.suffix}"
    api.apply(made.path, COUNTS, 0.3, output=output)
    data = output.read_bytes()
    sidecar = output.with_name(output.name + ".rescale.json")
    inside = not sidecar.exists()
    size = 8 + int.from_bytes(data[:8], "little") if inside else 0
    header = json.loads(data[8:size]) if inside else {}
    record = json.loads(header["__metadata__"]["rescale_cli"] if inside else sidecar.read_text())
    places = [(record, key) for key in record]
    places += [
        (entry, key) for part in ("head", "edits") for entry in record[part] for key in entry
    ]
    places += [(record["header"], key) for key in record.get("header", {})]
    problems = dict[str, str]()
    for table, key in places:
        kept = table[key]
        for value in VALUES:
            table[key] = value
            if inside:
                header["__metadata__"]["rescale_cli"] = json.dumps(record)
                packed = json.dumps(header).encode()
                output.write_bytes(len(packed).to_bytes(8, "little") + packed + data[size:])
            else:
                sidecar.write_text(json.dumps(record))
            for problem in wrong_with(output, made.path, back, intact=True):
                problems.setdefault(problem, f"{key} = {value!r}")
        table[key] = kept
    assert not problems, summary(problems)


@pytest.mark.parametrize(("kind", "bits"), [("F4", 4), ("F6_E2M3", 6), ("I64", 64), ("C64", 64)])
def test_a_record_that_names_a_tensor_of_another_kind_is_refused_or_harmless(
    kind: str, bits: int, containers: Containers, tmp_path: Path
) -> None:
    made = containers("safetensors float32")
    data = made.path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    header, end = json.loads(data[8:size]), len(data) - size
    more = bytes(4 * bits // 8)
    header["zz"] = {"dtype": kind, "shape": [4], "data_offsets": [end, end + len(more)]}
    for edits in ([{"tensor": "zz"}], [{"tensor": "zz", "axis": 0, "vectors": pack(bytes(64))}]):
        record = {"edits": edits, "source_sha256": "0" * 64, "undo": ""}
        header["__metadata__"] = {"rescale_cli": json.dumps(record)}
        text = json.dumps(header).encode()
        path = safetensors_of(text, data[size:] + more, tmp_path / "m.safetensors")
        back = tmp_path / "back.safetensors"
        assert not list(wrong_with(path, made.path, back, intact=True))


def test_a_record_that_is_not_text_is_refused(containers: Containers, tmp_path: Path) -> None:
    made = containers("safetensors float32")
    data = made.path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size]) | {"__metadata__": {"rescale_cli": "\ud800"}}
    text = json.dumps(header).encode()
    path = safetensors_of(text, data[size:], tmp_path / "m.safetensors")
    for deed in (api.inspect, lambda p: api.apply(p, COUNTS, 0.3), lambda p: revert(p, "back")):
        with pytest.raises(NotProven, match="record"):
            deed(path)


def safetensors_of(header: bytes, data: bytes, path: Path) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("shape", "data"), [([2**63 - 1] * 300_000, b"1234"), ([0] + [2**63 - 1] * 300_000, b"")]
)
def test_a_shape_with_too_many_dimensions_is_refused_quickly(
    shape: list[int], data: bytes, tmp_path: Path
) -> None:
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}
    path = safetensors_of(json.dumps({"a": entry}).encode(), data, tmp_path / "m.safetensors")
    with pytest.raises(BadCheckpoint, match="malformed"):
        api.inspect(path)


@pytest.mark.timeout(20)
def test_a_header_of_millions_of_lists_is_refused_before_parsing(tmp_path: Path) -> None:
    header = b'{"a":[' + b"[]," * 10_000_000 + b"[]]}"
    path = safetensors_of(header, b"", tmp_path / "m.safetensors")
    with pytest.raises(BadCheckpoint, match="too many values"):
        api.inspect(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["head{}", "a.head{}x", "classifier.{}", "a.{}" + "0" * 5000])
def test_fifty_thousand_candidate_layers_take_seconds(name: str) -> None:
    count = 50_000 if len(name) < 100 else 50
    infos = [
        TensorInfo(f"{name.format(k)}.weight", (2, 2), (2, 1), "float32", Path("m"), 0, 16)
        for k in range(count)
    ]
    with pytest.raises((NoClassifier, AmbiguousHead)):
        find_heads(infos)
