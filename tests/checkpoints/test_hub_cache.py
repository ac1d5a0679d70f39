"""Snapshots in the Hugging Face cache, which consist of links, are patched like other folders."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COUNTS, GAMMA, Made

from rescale_cli import api
from rescale_cli.errors import BadCheckpoint
from rescale_cli.patching.proof import verify
from rescale_cli.patching.revert import revert

Containers = Callable[[str], Made]
REVISION = "0123456789abcdef0123456789abcdef01234567"


def cached(source: Path, hub: Path, below: str = "", name: str = "models--org--net") -> Path:
    """A folder as huggingface_hub keeps it: blobs by hash, and its own links to them."""
    from huggingface_hub import file_download

    snapshot = hub / name / "snapshots" / REVISION
    for file in sorted(source.iterdir()):
        blob = hub / name / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        pointer = snapshot / below / file.name
        for path in (blob, pointer):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        file_download._create_symlink(str(blob), str(pointer), new_blob=False)
        assert pointer.is_symlink() and not pointer.readlink().is_absolute()  # noqa: PT018
    return snapshot / below


def blobs(hub: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in hub.glob("*/blobs/*")}


@pytest.fixture(params=["Hugging Face folder", "Hugging Face shards", "Hugging Face .bin shards"])
def made(request: pytest.FixtureRequest, containers: Containers) -> Made:
    return containers(request.param)


@pytest.mark.parametrize("below", ["", "onnx/model"])
def test_a_snapshot_is_patched_into_real_files(made: Made, below: str, tmp_path: Path) -> None:
    snapshot = cached(made.path, tmp_path / "hub", below)
    before, output = blobs(tmp_path / "hub"), tmp_path / "out"
    api.apply(snapshot, COUNTS, GAMMA, output=output)
    assert not any(path.is_symlink() for path in output.rglob("*"))
    assert {p.name for p in made.path.iterdir()} <= {p.name for p in output.iterdir()}
    made.use(output)
    verify(output, snapshot)
    verify(output, made.path)
    back = revert(output, tmp_path / "back").output
    assert all((back / p.name).read_bytes() == p.read_bytes() for p in made.path.iterdir())
    assert blobs(tmp_path / "hub") == before


def test_one_file_of_a_snapshot_is_patched(containers: Containers, tmp_path: Path) -> None:
    made = containers("Hugging Face folder")
    snapshot = cached(made.path, tmp_path / "hub")
    before, output = blobs(tmp_path / "hub"), tmp_path / "out.safetensors"
    api.apply(snapshot / "model.safetensors", COUNTS, GAMMA, output=output)
    assert not output.is_symlink()
    verify(output, snapshot / "model.safetensors")
    found = api.inspect(snapshot / "model.safetensors")
    assert found.class_names is not None, "from the config beside it, a link too"
    assert blobs(tmp_path / "hub") == before


def test_a_local_folder_of_links_into_the_cache_is_patched(made: Made, tmp_path: Path) -> None:
    snapshot = cached(made.path, tmp_path / "hub")
    local = tmp_path / "local"
    local.mkdir()
    for file in snapshot.iterdir():
        (local / file.name).symlink_to(file if file.suffix == ".json" else file.resolve())
    before, output = blobs(tmp_path / "hub"), tmp_path / "out"
    api.apply(local, COUNTS, GAMMA, output=output)
    assert not any(path.is_symlink() for path in output.iterdir())
    made.use(output)
    assert blobs(tmp_path / "hub") == before


def test_the_only_snapshot_of_a_cached_repository_is_used(made: Made, tmp_path: Path) -> None:
    snapshot = cached(made.path, tmp_path / "hub")
    found = api.inspect(snapshot.parent.parent, COUNTS)
    assert found.checkpoint.path == snapshot
    assert any("the only model in" in text for _, text in found.warnings)


@pytest.mark.parametrize("where", ["elsewhere", "another repository", "beside the blobs"])
def test_any_other_link_out_of_the_folder_is_refused(
    where: str, containers: Containers, tmp_path: Path
) -> None:
    hub = tmp_path / "hub"
    snapshot = cached(containers("Hugging Face folder").path, hub)
    other = {
        "elsewhere": tmp_path / "secret.safetensors",
        "another repository": hub / "models--a--b" / "blobs" / ("0" * 64),
        "beside the blobs": hub / "models--org--net" / "refs" / "main",
    }[where]
    other.parent.mkdir(parents=True, exist_ok=True)
    link = snapshot / "model.safetensors"
    shutil.copy(link, other)
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(BadCheckpoint, match="a link that leaves its folder"):
        api.apply(snapshot, COUNTS, GAMMA, output=tmp_path / "out")
