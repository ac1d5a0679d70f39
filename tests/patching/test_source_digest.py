"""The digest of the source that a record holds: anyone can compute it, and older records count."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import rescale_cli
from rescale_cli.errors import BadCheckpoint, NotProven
from rescale_cli.files.hashing import BLOCK, PLAIN, TREE, Hashing
from rescale_cli.files.reading import opened
from rescale_cli.patching.record import seal, sidecar_of

COUNTS = [100, 50, 20, 10, 5]


def stranger(path: Path) -> str:
    """The tree as CONTRIBUTING describes it, without a line of the package."""
    blocks = []
    with path.open("rb") as file:
        while block := file.read(16 * 1024 * 1024):
            blocks.append(hashlib.sha256(block).digest())
    return "sha256-tree-16MiB:" + hashlib.sha256(b"".join(blocks)).hexdigest()


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"fc.weight": torch.randn(5, 8, generator=generator), "fc.bias": torch.zeros(5)}


def source_of(kind: str, folder: Path) -> Path:
    path = folder / f"model.{kind}"
    if kind == "pth":
        torch.save(state(), path)
    else:
        save_file(state(), path, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_a_stranger_computes_the_same_digests(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes((bytes(range(251)) * (size // 251 + 1))[:size])
    with opened(path) as fd:
        assert Hashing(fd, TREE).result() == stranger(path)
        assert Hashing(fd).result() == PLAIN + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_the_record_holds_the_digest_and_the_result_both_hashes(tmp_path: Path, kind: str) -> None:
    source, output = source_of(kind, tmp_path), tmp_path / f"out.{kind}"
    patched = rescale_cli.apply(source, COUNTS, gamma=0.5, output=output).patched
    (written,) = patched.files.values()
    assert patched.record["source_digest"] == PLAIN + written.source_sha256
    assert written.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert written.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    proof = rescale_cli.verify(output, source)
    assert proof.source_sha256 == written.source_sha256
    assert proof.sha256 == {output.name: written.sha256}
    rescale_cli.revert(output, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("field", ["source_sha256", "source_digest"])
def test_an_older_record_verifies_and_reverts(tmp_path: Path, field: str) -> None:
    source, output = source_of("pth", tmp_path), tmp_path / "out.pth"
    rescale_cli.apply(source, COUNTS, gamma=0.5, output=output)
    record = json.loads(sidecar_of(output).read_text())
    del record["source_digest"], record["record_sha256"]
    plain = hashlib.sha256(source.read_bytes()).hexdigest()
    record[field] = plain if field == "source_sha256" else stranger(source)
    sidecar_of(output).write_text(json.dumps(record | {"record_sha256": seal(record)}))
    rescale_cli.verify(output, source)
    rescale_cli.revert(output, tmp_path / "back.pth")
    assert (tmp_path / "back.pth").read_bytes() == source.read_bytes()


def test_another_original_is_named_as_such(tmp_path: Path) -> None:
    source, output = source_of("safetensors", tmp_path), tmp_path / "out.safetensors"
    rescale_cli.apply(source, COUNTS, gamma=0.5, output=output)
    other = tmp_path / "other.safetensors"
    save_file(state() | {"fc.bias": torch.ones(5)}, other, metadata={"format": "pt"})
    with pytest.raises(NotProven, match="is not the file that was patched"):
        rescale_cli.verify(output, other)


def test_a_file_of_the_hub_cache_is_hashed_and_not_believed(tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--net" / "blobs"
    blobs.mkdir(parents=True)
    blob = source_of("safetensors", tmp_path).rename(blobs / ("0" * 64))
    output = tmp_path / "out.safetensors"
    with pytest.raises(BadCheckpoint, match="is damaged"):
        rescale_cli.apply(blob, COUNTS, gamma=0.5, output=output)
    assert not output.exists()
    blob = blob.rename(blobs / hashlib.sha256(blob.read_bytes()).hexdigest())
    rescale_cli.apply(blob, COUNTS, gamma=0.5, output=output)
