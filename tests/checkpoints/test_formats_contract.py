"""Every format obeys the laws: only the head changes, this is proven, and it can be reverted."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONTAINERS, COUNTS, GAMMA, C, D, Made

from rescale_cli import api
from rescale_cli.checkpoints import read_tensors
from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.checkpoints.formats import all_formats
from rescale_cli.errors import AlreadyRescaled, BadInput, NotProven
from rescale_cli.patching.patch import Target, apply_plan
from rescale_cli.patching.proof import verify
from rescale_cli.patching.revert import revert
from rescale_cli.patching.rewrite import RowScaling

Containers = Callable[[str], Made]

#: dtype -> bits of the significand, exponent of the smallest step.
PRECISION = {
    torch.float64: (53, -1074),
    torch.float32: (24, -149),
    torch.float16: (11, -24),
    torch.bfloat16: (8, -133),
}


@pytest.fixture(params=list(CONTAINERS), ids=lambda name: name.replace(" ", "-"))
def made(request: pytest.FixtureRequest, containers: Containers) -> Made:
    return containers(request.param)


def patched_path(made: Made, tmp_path: Path, name: str = "out") -> Path:
    return tmp_path / (name if made.path.is_dir() else name + made.path.suffix)


def apply(made: Made, output: Path, gamma: float = GAMMA, **more: Any) -> Path:
    counts = more.pop("counts", COUNTS)
    done = api.apply(more.pop("source", made.path), counts, gamma, output=output, **more)
    assert done.patched is not None
    return done.patched.output


def files_of(path: Path) -> dict[str, bytes]:
    """Every file of a checkpoint by its name; a single file by the name ''."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def rounded_once(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The nearest number of that dtype, ties to even: by the definition, in whole numbers."""
    if not value:
        return value
    digits, lowest = PRECISION[dtype]
    exponent = abs(value).numerator.bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** max(exponent - digits + 1, lowest)
    return round(value / step) * step


def scaled(tensor: torch.Tensor, axis: int) -> list[float]:
    """(n_1 / n_i)^gamma times each row: float64, then one rounding."""
    shape = [1] * tensor.dim()
    shape[axis] = C
    factors = torch.tensor([(max(COUNTS) / n) ** GAMMA for n in COUNTS], dtype=torch.float64)
    products = (tensor.double() * factors.view(shape)).flatten().tolist()
    return [float(rounded_once(Fraction(value), tensor.dtype)) for value in products]


def whole_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of the storage that a tensor is a view into."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def spots(tensor: torch.Tensor) -> list[int]:
    """Which bytes of its storage a tensor touches."""
    size = tensor.element_size()
    places = torch.arange(len(whole_storage(tensor)) // size)
    taken = places.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return [int(place) * size + i for place in taken.flatten() for i in range(size)]


def head_bytes(made: Made, name: str, tensors: list[torch.Tensor]) -> set[int]:
    """The offsets at which a file may differ: the head's bytes and the checksums over them.

    Found without the tool's own readers: by searching the file for the storage's bytes.
    """
    path = made.path / name if name else made.path
    data = path.read_bytes()
    found: set[int] = set()
    starts = []
    for tensor in tensors:
        storage = whole_storage(tensor).numpy().tobytes()
        if data.count(storage) != 1:
            continue  # in another shard
        start = data.find(storage)
        starts.append(start)
        found |= {start + spot for spot in spots(tensor)}
    if zipfile.is_zipfile(path):
        central = data.rfind(b"PK\x01\x02", 0)
        for info in zipfile.ZipFile(path).infolist():
            fixed = data[info.header_offset : info.header_offset + 30]
            names = int.from_bytes(fixed[26:28], "little") + int.from_bytes(fixed[28:30], "little")
            begin = info.header_offset + 30 + names
            if any(begin <= start < begin + info.file_size for start in starts):
                central = data.find(b"PK\x01\x02")
                while (
                    data[central + 46 : central + 46 + len(info.filename)] != info.filename.encode()
                ):
                    central = data.find(b"PK\x01\x02", central + 1)
                crc_places = [info.header_offset + 14, central + 16]
                if not int.from_bytes(data[crc_places[0] : crc_places[0] + 4], "little"):
                    # A streamed entry has its checksum behind the data.
                    end = begin + info.file_size
                    crc_places[0] = end + (4 if data[end : end + 4] == b"PK\x07\x08" else 0)
                found |= {at + i for at in crc_places for i in range(4)}
    return found


def without_header(data: bytes) -> bytes:
    return data[8 + int.from_bytes(data[:8], "little") :]


def header(data: bytes) -> Any:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def has_metadata(data: bytes) -> bool:
    """Whether it is a safetensors file with metadata, into which the record goes."""
    return data[8:9] == b"{" and "__metadata__" in header(data)


def differing(before: bytes, after: bytes) -> set[int]:
    assert len(before) == len(after)
    return {i for i, (x, y) in enumerate(zip(before, after, strict=True)) if x != y}


def same_but_for_the_record(before: bytes, after: bytes) -> bool:
    """Whether two files are equal, the record in a safetensors header aside."""
    if not has_metadata(before):
        return before == after
    old, new = header(before), header(after)
    record = new["__metadata__"].pop("rescale_cli", None)
    return old == new and without_header(before) == without_header(after) and record != ""


def test_exactly_one_format_claims_it(made: Made) -> None:
    claiming = [module.__name__ for module in all_formats() if module.matches(made.path)]
    assert len(claiming) == 1, claiming


def test_sizes_and_dtypes_agree_with_the_owning_library(made: Made) -> None:
    contents = open_checkpoint(made.path).contents
    mine = {t.name: (tuple(t.shape), f"torch.{t.dtype}") for t in contents.tensors}
    theirs = {name: (tuple(t.shape), str(t.dtype)) for name, t in made.load(made.path).items()}
    assert theirs.items() <= mine.items()


def test_the_head_is_found_with_every_copy(made: Made) -> None:
    found = api.inspect(made.path, COUNTS)
    heads = found.found.heads
    assert [head.weight for head in heads] == list(made.weights)
    assert tuple(head.bias for head in heads if head.bias) == made.biases
    assert {head.layout for head in heads} == {made.layout}
    weight = made.load(made.path)[heads[0].weight].double()
    axis = made.weights[heads[0].weight]
    norms = weight.movedim(axis, 0).reshape(C, -1).norm(dim=1)
    torch.testing.assert_close(torch.from_numpy(found.head.norms), norms)
    width = 1 if made.layout == "weight_norm" else weight.numel() // C
    assert (heads[0].num_classes, heads[0].feature_dim) == (
        C,
        width,
    ) or made.layout == "weight_norm"


@pytest.mark.parametrize(
    ("gamma", "counts"), [(0.0, COUNTS), (0.8, [30] * C)], ids=["gamma zero", "equal counts"]
)
def test_a_method_that_changes_no_row_changes_no_byte(
    made: Made, tmp_path: Path, gamma: float, counts: list[int]
) -> None:
    output = apply(made, patched_path(made, tmp_path), gamma, counts=counts)
    before, after = files_of(made.path), files_of(output)
    assert all(same_but_for_the_record(before[name], after[name]) for name in before)
    assert all(name.endswith(".rescale.json") for name in after.keys() - before.keys())


def test_head_is_rescaled_with_one_rounding_and_all_other_tensors_are_equal(
    made: Made, tmp_path: Path
) -> None:
    output = apply(made, patched_path(made, tmp_path))
    before, after = made.load(made.path), made.load(output)
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        assert (old.dtype, old.shape, old.stride()) == (new.dtype, new.shape, new.stride())
        if name in made.weights:
            assert new.double().flatten().tolist() == scaled(old, made.weights[name])
            assert not torch.equal(old, new)
        else:
            assert torch.equal(old.contiguous().view(-1).view(torch.uint8),
                               new.contiguous().view(-1).view(torch.uint8)), name  # fmt: skip


def test_every_byte_outside_the_head_is_equal(made: Made, tmp_path: Path) -> None:
    output = apply(made, patched_path(made, tmp_path))
    before, after = files_of(made.path), files_of(output)
    assert all(name.endswith(".rescale.json") for name in after.keys() - before.keys())
    tensors = made.load(made.path)
    heads = [tensors[name] for name in made.weights]
    touched = 0
    for name, old in before.items():
        new = after[name]
        allowed = head_bytes(made, name, heads)
        if has_metadata(old) and allowed:
            shift = len(new) - len(old)
            assert shift % 4096 == 0
            record = json.loads(header(new)["__metadata__"]["rescale_cli"])
            assert record["gamma"] == GAMMA
            stripped = header(new)
            stripped["__metadata__"].pop("rescale_cli")
            assert header(old) == stripped
            base = len(old) - len(without_header(old))
            changed = {at + base for at in differing(without_header(old), without_header(new))}
        else:
            changed = differing(old, new)
        assert changed <= allowed, name
        touched += bool(changed)
    # The first spot of every head is somewhere in the files.
    assert touched >= 1


def test_checksums_of_a_zip_are_right_afterwards(made: Made, tmp_path: Path) -> None:
    output = apply(made, patched_path(made, tmp_path))
    for file in [output] if output.is_file() else output.rglob("*"):
        if file.is_file() and zipfile.is_zipfile(file):
            assert zipfile.ZipFile(file).testzip() is None


def test_the_owning_library_opens_it(made: Made, tmp_path: Path) -> None:
    made.use(apply(made, patched_path(made, tmp_path)))


@pytest.mark.parametrize(
    "more",
    [{}, {"bias": "scale"}, {"normalize": True}, {"undo": False}, {"temperature": 1.7}],
    ids=["plain", "bias scaled", "normalized", "without undo", "temperature"],
)
def test_the_output_is_proven_and_reverted_bit_for_bit(
    made: Made, tmp_path: Path, more: dict[str, Any]
) -> None:
    output = apply(made, patched_path(made, tmp_path), **more)
    proof = verify(output, made.path)
    assert proof.bytes_compared > 0
    against = made.path if "undo" in more else None
    if against is not None:
        with pytest.raises(BadInput, match="--no-undo"):
            revert(output, patched_path(made, tmp_path, "no"))
    back = revert(output, patched_path(made, tmp_path, "back"), against=against)
    assert files_of(back.output) == files_of(made.path)
    for file, sha256 in back.sha256.items():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("size", [1, 100])
def test_a_head_of_many_blocks_gives_the_same_result(
    made: Made, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = apply(made, patched_path(made, tmp_path, "whole"), bias="scale")
    norms = api.inspect(made.path).head.norms
    monkeypatch.setattr(read_tensors, "BLOCK_BYTES", size)
    assert api.inspect(made.path).head.norms == pytest.approx(norms, rel=1e-12)
    pieces = apply(made, patched_path(made, tmp_path, "pieces"), bias="scale")
    both = [files_of(path) for path in (whole, pieces)]
    sidecars = [name for name in both[0] if name.endswith(".rescale.json")]
    assert {**both[0], **dict.fromkeys(sidecars)} == {**both[1], **dict.fromkeys(sidecars)}
    verify(pieces, made.path)
    back = revert(pieces, patched_path(made, tmp_path, "back"))
    assert files_of(back.output) == files_of(made.path)


def test_a_second_apply_is_refused_unless_compose_is_given(made: Made, tmp_path: Path) -> None:
    once = apply(made, patched_path(made, tmp_path, "once"))
    with pytest.raises(AlreadyRescaled) as refused:
        apply(made, patched_path(made, tmp_path, "twice"), 0.2, source=once)
    assert refused.value.exit_code == 4
    twice = apply(made, patched_path(made, tmp_path, "twice"), 0.2, source=once, compose=True)
    verify(twice, once)
    steps = [record.fields["gamma"] for record in api.inspect(twice).records]
    assert set(steps) == {0.2}
    back = revert(twice, patched_path(made, tmp_path, "back"))
    assert files_of(back.output) == files_of(once)
    if not once.is_dir():
        assert api.inspect(back.output).records, "the first record came back with it"
    first = revert(back.output, patched_path(made, tmp_path, "first"))
    assert files_of(first.output) == files_of(made.path)


def test_a_flipped_bit_outside_the_head_is_not_proven(made: Made, tmp_path: Path) -> None:
    output = apply(made, patched_path(made, tmp_path))
    file = output
    if output.is_dir():
        file = next(f for f in sorted(output.iterdir()) if f.name == "preprocessor_config.json"
                    or f.name == "config.json")  # fmt: skip
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadInput) as refused:
        verify(output, made.path)
    assert refused.value.fix


def test_another_original_proves_nothing(made: Made, tmp_path: Path) -> None:
    output = apply(made, patched_path(made, tmp_path, "one"))
    other = apply(made, patched_path(made, tmp_path, "other"), 0.1)
    with pytest.raises(NotProven):
        verify(output, other)


def test_the_source_is_not_touched(made: Made, tmp_path: Path) -> None:
    before = files_of(made.path)
    apply(made, patched_path(made, tmp_path))
    assert files_of(made.path) == before


def test_every_format_module_has_a_fixture(containers: Containers) -> None:
    met = {
        module.__name__
        for name in CONTAINERS
        for module in all_formats()
        if module.matches(containers(name).path)
    }
    assert met == {module.__name__ for module in all_formats()}


def test_the_dimensions_are_distinguished() -> None:
    assert C != D


@pytest.mark.parametrize("what", ["another tensor", "other factors", "the bias"])
@pytest.mark.parametrize("name", ["safetensors float32", "state dict", "legacy state dict"])
def test_a_record_that_admits_other_changes_is_not_proven(
    name: str, what: str, containers: Containers, tmp_path: Path
) -> None:
    """Only the head may change, and only by the method: whatever else the record may say."""
    made = containers(name)
    plan = api.apply(made.path, COUNTS, GAMMA, dry_run=True).plan
    (head,) = plan.heads
    (edit,) = head.edits
    zeros = np.zeros(C)
    if what == "another tensor":
        conv = plan.checkpoint.tensor("conv.weight")
        edits = (edit, RowScaling(conv, 0, np.full(D, 2.0), np.zeros(D)))
    elif what == "the bias":
        bias = plan.checkpoint.tensor("fc.bias")
        edits = (edit, RowScaling(bias, 0, np.full(C, 2.0), zeros))
    else:
        edits = (RowScaling(edit.info, 0, edit.factor * np.arange(1.0, C + 1), zeros),)
    forged = replace(plan, heads=(replace(head, edits=edits),))
    output = patched_path(made, tmp_path)
    apply_plan(forged, Target(output))
    with pytest.raises(NotProven):
        verify(output, made.path)
