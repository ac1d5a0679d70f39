"""The table in CONTRIBUTING.md of everything that opens a user's file is complete."""

from __future__ import annotations

import ast
import json
import pickle
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rescale_cli
from rescale_cli import cli, foreign_code
from rescale_cli.data.counts import count_data
from rescale_cli.data.images import read_image
from rescale_cli.errors import BadImage, BadInput
from rescale_cli.models.classifiers import load_classifier

ROOT = Path(rescale_cli.__file__).parent
CONTRIBUTING = ROOT.parent / "CONTRIBUTING.md"

#: A call of any of these names opens, decodes or runs something from outside.
OPENERS = re.compile(
    r"(.*\.)?(load|loads|from_pretrained|load_dataset|load_dataset_builder|create_model"
    r"|load_from_disk|download_and_prepare|ParquetFile|ZipFile|import_module|fromfile|from_file"
    r"|memmap|safe_open|load_file|read_pickle|Unpickler|load_pickle|yaml_load|InferenceSession"
    r"|load_model|parse_json|read_csv|SummaryWriter|run_path|user_function)"
    r"|(pillow|tarfile|gzip|bz2|lzma|zipfile|webbrowser)\.open|csv\.reader"
    r"|eval|exec|compile|__import__|subprocess\..*|os\.(system|popen|exec.*|spawn.*)"
)


def calls() -> set[tuple[str, str]]:
    """Every such call in the source: the file, and the last two names of what is called."""
    found = set()
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and OPENERS.fullmatch(name := ast.unparse(node.func)):
                short = ".".join(re.sub(r"\(.*\)", "()", name).split(".")[-2:])
                found.add((file.relative_to(ROOT).as_posix(), short))
    return found


def listed() -> set[tuple[str, str]]:
    """What the table says: each row names calls and files in code marks."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    section = text.partition("## Who opens what")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("|")]
    found = set()
    for call, files, reason in rows[2:]:
        assert reason.strip()
        for name in re.findall(r"`([^`]+)`", call):
            found |= {(file, name) for file in re.findall(r"`([^`]+)`", files)}
    return found


def test_the_table_lists_every_call_that_opens_something_and_no_other() -> None:
    there, said = calls(), listed()
    assert there - said == set(), "add a row to CONTRIBUTING.md, or take the call out"
    assert said - there == set(), "these calls are gone: take them out of CONTRIBUTING.md"


# ---- what can run code says so first


class Plain(nn.Module):
    """A network that TorchScript takes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


CODE = """
import sys
import numpy as np
import torch
print("CODE RUNS", file=sys.stderr)
def labels():
    return np.zeros((5, 2, 2), np.uint8), np.array([0, 1, 1, 2, 3])
class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(12, 4)
    def forward(self, x):
        return self.fc(x.flatten(1))
def network():
    return Plain()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (80, 2, 2, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(80) % 4)
    (tmp_path / "counts.json").write_text("[9, 5, 3, 2]", encoding="utf-8")
    (tmp_path / "announced_code.py").write_text(CODE, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "announced_code", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in model repositories
        torch.jit.script(Plain().eval()).save(str(tmp_path / "script.pt"))
    torch.save(Plain().state_dict(), tmp_path / "state.pt")
    return tmp_path


DATA = ["--counts", "counts.json", "--data", "npz:data.npz", "--size", "2"]
DATA += ["--mean", "0,0,0", "--std", "1,1,1", "--accept-poor-accuracy"]


@pytest.mark.parametrize("command", ["evaluate", "sweep-gamma", "compare"])
@pytest.mark.parametrize("as_json", [False, True])
def test_torchscript_is_announced_before_it_runs(
    command: str,
    as_json: bool,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = torch.jit.load

    def loud(*args: object, **options: object) -> object:
        print("CODE RUNS", file=sys.stderr)
        return load(*args, **options)

    monkeypatch.setattr(torch.jit, "load", loud)
    cli.main([command, "script.pt", *DATA, *(["--json"] if as_json else [])])
    out, err = capfd.readouterr()
    told = err.index("script.pt is TorchScript: running the model runs the code in the file")
    assert told < err.index("CODE RUNS")
    assert ('"runs-code"' in out) is as_json


@pytest.mark.parametrize("command", ["evaluate", "sweep-gamma", "compare"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_network_of_the_users_is_announced_before_it_runs(
    command: str, as_json: bool, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arch = "python:announced_code:network"
    cli.main([command, "state.pt", "--arch", arch, *DATA, *(["--json"] if as_json else [])])
    out, err = capfd.readouterr()
    told = err.index("python:announced_code:network runs the Python code of that module")
    assert told < err.index("CODE RUNS")
    assert ('"runs-code"' in out) is as_json


@pytest.mark.parametrize("as_json", [False, True])
def test_code_that_counts_is_announced_before_it_runs(
    as_json: bool, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cli.main(["counts", "python:announced_code:labels", *(["--json"] if as_json else [])])
    out, err = capfd.readouterr()
    told = err.index("python:announced_code:labels runs the Python code of that module")
    assert told < err.index("CODE RUNS")
    assert ('"runs-code"' in out) is as_json


def test_code_that_is_trained_is_announced_before_it_runs(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--data", "npz:data.npz", "--arch", "python:announced_code:network"]
    cli.main([*train, "--epochs", "1", "-o", "run"])
    err = capfd.readouterr().err
    told = err.index("python:announced_code:network runs the Python code of that module")
    assert told < err.index("CODE RUNS")


def test_an_exported_program_announces_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(Plain().eval(), (torch.zeros(2, 3, 2, 2),), dynamic_shapes=shapes)
    torch.export.save(program, "m.pt2")
    capfd.readouterr()
    options = DATA[2:]
    assert cli.main(["evaluate", "m.pt2", *options]) == 0
    assert "runs the" not in capfd.readouterr().err


def test_without_a_command_line_the_log_says_it(caplog: pytest.LogCaptureFixture) -> None:
    import contextvars

    contextvars.Context().run(foreign_code.announce, "x runs code")
    assert "x runs code" in caplog.text


# ---- libraries that would run code


def test_an_image_that_starts_ghostscript_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin, Image

    def never(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(BadImage):
        read_image(tmp_path / "a.png")


def test_a_data_set_of_pickles_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="needs datasets: rescale-cli[hf]")
    marker = tmp_path / "was-run"

    class Evil:
        def __reduce__(self) -> object:
            return (Path.mkdir, (marker,))

    work = tmp_path / "work"
    work.mkdir()
    (work / "train.pkl").write_bytes(pickle.dumps(Evil()))
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for spec in ("hf:pandas", f"hf:{work}"):
        with pytest.raises(BadInput):
            count_data(spec)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_that_names_kernels_to_fetch_is_refused(key: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    said = json.loads(file.read_text(encoding="utf-8")) | {key: "someone/kernel"}
    file.write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(BadInput, match="code to fetch"):
        load_classifier(tmp_path)
