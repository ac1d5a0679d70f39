"""What a user installs: the files, the URLs and the description of the wheel."""

from __future__ import annotations

import doctest
import email
import importlib.util
import re
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import rescale_cli
from rescale_cli.commands import demo_report

PACKAGE = Path(rescale_cli.__file__).parent
ROOT = PACKAGE.parent
HOOK = ROOT / ".ci" / "package_metadata.py"
pytestmark = pytest.mark.skipif(
    not HOOK.is_file(), reason="the package is installed, and there is no source to build from"
)


def build(root: Path, out: Path) -> zipfile.ZipFile:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    [built] = wheel.WheelBuilder(str(root)).build(directory=str(out), versions=["standard"])
    return zipfile.ZipFile(built)


def test_the_wheel_has_the_package_its_types_and_the_files_of_the_example(tmp_path: Path) -> None:
    with build(ROOT, tmp_path) as archive:
        names = set(archive.namelist())
    example = {f"rescale_cli/_examples/fashion_lt/{name}" for name in demo_report.EXAMPLE}
    sources = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "rescale_cli/py.typed" in names
    assert {name for name in names if ".dist-info/" not in name} == sources | example


@pytest.mark.parametrize("origin", [None, "https://user:secret@example.org/team/tool.git"])
def test_every_link_of_the_description_is_absolute(origin: str | None, tmp_path: Path) -> None:
    root = tmp_path / "clone"
    subprocess.run(["git", "init", "-q", root], check=True)
    if origin:
        subprocess.run(["git", "-C", root, "remote", "add", "origin", origin], check=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "rescale_cli", "examples", ".ci"):
        (root / name).symlink_to(ROOT / name)
    with build(root, tmp_path) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/METADATA")]
        text = archive.read(name).decode("utf-8")
    urls = dict(
        url.split(", ", 1) for url in email.message_from_string(text).get_all("Project-URL", [])
    )
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    assert all(target.startswith(("https://", "#")) for target in targets)
    assert "secret" not in text
    assert urls["Paper"].startswith("https://doi.org/")
    assert urls.get("Repository") == (origin and "https://example.org/team/tool")
    assert (f"{urls.get('Repository')}/raw/HEAD/examples/demo.svg" in targets) == (
        origin is not None
    )


def hook() -> ModuleType:
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    spec = importlib.util.spec_from_file_location("package_metadata", HOOK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_examples_of_the_hook_are_true() -> None:
    results = doctest.testmod(hook())
    assert results.attempted > 0
    assert results.failed == 0


def test_a_wheel_built_from_a_source_distribution_keeps_the_address(tmp_path: Path) -> None:
    (tmp_path / "PKG-INFO").write_text("Name: x\nProject-URL: Repository, https://example.org/t\n")
    assert hook().repository_url(tmp_path) == "https://example.org/t"
    assert hook().repository_url(ROOT / "tests") is None
