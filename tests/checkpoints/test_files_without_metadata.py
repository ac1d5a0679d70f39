"""A safetensors file without metadata gets none: its record is a file beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import COUNTS, GAMMA, Made, transformers
from safetensors import safe_open

from rescale_cli import api
from rescale_cli.cli import main
from rescale_cli.errors import AlreadyRescaled
from rescale_cli.patching.proof import verify
from rescale_cli.patching.revert import revert

Containers = Callable[[str], Made]


def metadata_of(file: Path) -> dict[str, str] | None:
    """The metadata of a file, read by safetensors itself."""
    with safe_open(file, "pt") as opened:
        found: dict[str, str] | None = opened.metadata()
    return found


def head_of(file: Path) -> torch.Tensor:
    return safetensors.torch.load_file(file)["fc.weight"]


@pytest.fixture
def bare(containers: Containers, tmp_path: Path) -> Path:
    path = tmp_path / "bare.safetensors"
    path.write_bytes(containers("safetensors without metadata").path.read_bytes())
    assert metadata_of(path) is None
    return path


def sidecar(file: Path) -> Path:
    return file.with_name(file.name + ".rescale.json")


def test_the_record_is_beside_the_file_and_the_size_does_not_change(
    bare: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.safetensors"
    api.apply(bare, COUNTS, GAMMA, output=output)
    assert metadata_of(output) is None
    assert output.stat().st_size == bare.stat().st_size
    assert json.loads(sidecar(output).read_text())["gamma"] == GAMMA
    factors = torch.tensor([(max(COUNTS) / n) ** GAMMA for n in COUNTS], dtype=torch.float64)
    wanted = (head_of(bare).double() * factors[:, None]).float()
    assert torch.equal(head_of(output), wanted)


def test_verify_revert_and_compose_use_the_record_beside_the_file(
    bare: Path, tmp_path: Path
) -> None:
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    api.apply(bare, COUNTS, GAMMA, output=once)
    verify(once, bare)
    with pytest.raises(AlreadyRescaled):
        api.apply(once, COUNTS, 0.1, output=twice)
    api.apply(once, COUNTS, 0.1, output=twice, compose=True)
    verify(twice, once)
    assert metadata_of(twice) is None
    back = revert(twice, tmp_path / "back.safetensors").output
    assert back.read_bytes() == once.read_bytes()
    first = revert(back, tmp_path / "first.safetensors").output
    assert first.read_bytes() == bare.read_bytes()
    assert not sidecar(first).exists()


def test_in_place_and_force_keep_the_file_and_its_record_together(
    bare: Path, tmp_path: Path
) -> None:
    before = bare.read_bytes()
    api.apply(bare, COUNTS, GAMMA, in_place=True)
    assert metadata_of(bare) is None
    backup = bare.with_name(bare.name + ".bak")
    assert backup.read_bytes() == before
    verify(bare, backup)
    backup.unlink()
    with pytest.raises(AlreadyRescaled):
        api.apply(bare, COUNTS, GAMMA, in_place=True)
    api.apply(bare, COUNTS, 0.2, in_place=True, compose=True)
    original = revert(revert(bare, tmp_path / "a.safetensors").output, tmp_path / "b.safetensors")
    assert original.output.read_bytes() == before
    api.apply(original.output, COUNTS, 0.3, output=bare, force=True)
    verify(bare, original.output)
    assert json.loads(sidecar(bare).read_text())["gamma"] == 0.3


def test_a_forced_output_with_metadata_loses_the_record_of_one_without(
    bare: Path, containers: Containers, tmp_path: Path
) -> None:
    output = tmp_path / "out.safetensors"
    api.apply(bare, COUNTS, GAMMA, output=output)
    api.apply(containers("safetensors float32").path, COUNTS, 0.1, output=output, force=True)
    assert not sidecar(output).exists()
    verify(output, containers("safetensors float32").path)


def test_metadata_is_kept_with_one_more_key(containers: Containers, tmp_path: Path) -> None:
    source, output = containers("safetensors float32").path, tmp_path / "out.safetensors"
    api.apply(source, COUNTS, GAMMA, output=output)
    after = metadata_of(output) or {}
    assert json.loads(after.pop("rescale_cli"))["gamma"] == GAMMA
    assert after == metadata_of(source)
    assert not sidecar(output).exists()


def test_empty_metadata_stays_empty(bare: Path, tmp_path: Path) -> None:
    data = bare.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = b'{"__metadata__":{},' + data[9 : 8 + size]
    source, output = tmp_path / "empty.safetensors", tmp_path / "out.safetensors"
    source.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    api.apply(source, COUNTS, GAMMA, output=output)
    assert metadata_of(output) == {} == metadata_of(source)
    verify(output, source)
    assert revert(output, tmp_path / "back.safetensors").output.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", ["Hugging Face folder", "Hugging Face shards"])
def test_a_folder_without_metadata_loads_before_and_after(
    name: str, containers: Containers, tmp_path: Path
) -> None:
    library = transformers().ViTForImageClassification
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for file in containers(name).path.iterdir():
        if file.suffix == ".safetensors":
            safetensors.torch.save_file(safetensors.torch.load_file(file), source / file.name)
        else:
            (source / file.name).write_bytes(file.read_bytes())
    before = library.from_pretrained(source)
    api.apply(source, COUNTS, GAMMA, output=output)
    after = library.from_pretrained(output)
    factors = torch.tensor([(max(COUNTS) / n) ** GAMMA for n in COUNTS], dtype=torch.float64)
    wanted = (before.classifier.weight.double() * factors[:, None]).float()
    assert torch.equal(after.classifier.weight, wanted)
    assert all(metadata_of(file) is None for file in output.glob("*.safetensors"))
    verify(output, source)
    with pytest.raises(AlreadyRescaled):
        api.apply(output, COUNTS, 0.1, output=tmp_path / "twice")
    revert(output, tmp_path / "back")
    names = {file.name for file in source.iterdir()}
    assert {file.name for file in (tmp_path / "back").iterdir()} == names
    assert all((tmp_path / "back" / n).read_bytes() == (source / n).read_bytes() for n in names)


def test_the_command_prints_where_the_record_is(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts, output = tmp_path / "counts.json", tmp_path / "out.safetensors"
    counts.write_text(json.dumps(COUNTS))
    words = ["apply", str(bare), "--counts", str(counts), "-g", "0.3", "-o", str(output), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["result"]["record"]["gamma"] == 0.3
    assert main(["inspect", str(output), "--json"]) == 0
    (step,) = json.loads(capsys.readouterr().out)["result"]["rescalings"]
    assert step["gamma"] == 0.3
