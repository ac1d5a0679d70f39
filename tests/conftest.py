"""Real checkpoints by the libraries that own them: every container that the tool reads, tiny.

`CONTAINERS` maps a name to a function that writes one into a folder. The contract tests run over
all of them; a new format is tested the day its container stands here.
"""

from __future__ import annotations

import argparse
import enum
import json
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from rescale_cli.commands import progress

# Two shared cores: a slow moment of the machine is no failure.
settings.register_profile("house", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("house")

# Workers of pytest-xdist set it, and then text that goes to no terminal is wrapped, too.
os.environ.pop("COLUMNS", None)

#: With one worker a core, as in `.ci/run`, each has one thread.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings of the library about tiny made-up heads are expected; `pytest.warns` sees them."""
    config.addinivalue_line("filterwarnings", "ignore::rescale_cli.errors.RescaleWarning")


@pytest.fixture(autouse=True)
def _no_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine any command may take half a minute; only tests of progress print it."""
    monkeypatch.setattr(progress, "EVERY", 3600.0)


#: C, D and the counts of every container.
C, D = 7, 12
COUNTS = [5, 400, 3, 90, 1000, 27, 64]
GAMMA = 0.37

Tensors = dict[str, torch.Tensor]


class Mode(enum.Enum):
    """An enum such as configurations hold; its pickle names this class."""

    FAST = "fast"


class Net(nn.Module):
    """A tiny network with a head of C rows."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, D, 3)
        self.bn = nn.BatchNorm2d(D)
        self.fc = head or nn.Linear(D, C)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(images)).mean((2, 3)))


class ConvNet(Net):
    """The same with a 1x1 convolution for a head."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(D, C, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(images))).mean((2, 3))


@dataclass(frozen=True)
class Made:
    """One checkpoint, and how its own library reads it."""

    path: Path
    weights: dict[str, int]
    """Head weights by the name in `load`'s answer -> the axis of the classes."""
    biases: tuple[str, ...]
    load: Callable[[Path], Tensors]
    """All tensors of a file or folder, by the library that wrote it."""
    use: Callable[[Path], object]
    """The way in which a user opens it."""
    layout: str = "linear"
    named: dict[str, str] = field(default_factory=dict)
    """Where the tool's name of a tensor is not that of `load`: the tool's -> load's."""


def net(seed: int = 0, head: nn.Module | None = None) -> Net:
    """A network with random weights; the same for the same seed."""
    torch.manual_seed(seed)
    made = Net(head)
    return made.eval()


def flat(value: Any, prefix: str = "") -> Tensors:
    """Every tensor of nested containers, by dotted path."""
    if isinstance(value, torch.Tensor):
        return {prefix.rstrip("."): value.detach()}
    if isinstance(value, nn.Module):
        return flat(value.state_dict(), prefix)
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {}
    return {name: t for key, item in items for name, t in flat(item, f"{prefix}{key}.").items()}


def load_safely(path: Path) -> Any:
    """What a careful user runs."""
    classes = [argparse.Namespace, Mode, *_path_classes()]
    with torch.serialization.safe_globals(classes):
        return torch.load(path, weights_only=True, map_location="cpu")


def _path_classes() -> list[Any]:
    import pathlib

    found: list[Any] = [pathlib.PosixPath]
    # Python 3.13 pickles a path by the name of a private module.
    if pathlib.PosixPath.__module__ != "pathlib":
        found.append((pathlib.PosixPath, f"{pathlib.PosixPath.__module__}.PosixPath"))
    return found


@contextmanager
def script_warnings() -> Iterator[None]:
    """TorchScript is deprecated, and still what many model repositories hold."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        yield


# ---------------------------------------------------------------- torch.save


def _saved(
    folder: Path,
    value: Any,
    heads: dict[str, int] | None = None,
    biases: tuple[str, ...] = ("fc.bias",),
    *,
    legacy: bool = False,
    layout: str = "linear",
    use: Callable[[Path], object] = load_safely,
    load: Callable[[Path], Tensors] | None = None,
    name: str = "model.pth",
) -> Made:
    path = folder / name
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return Made(
        path,
        heads or {"fc.weight": 0},
        biases,
        load or (lambda p: flat(load_safely(p))),
        use,
        layout,
    )


def state_dict(folder: Path, *, legacy: bool = False) -> Made:
    def use(path: Path) -> object:
        return Net().load_state_dict(load_safely(path))

    return _saved(folder, net().state_dict(), legacy=legacy, use=use)


def _with_optimizer() -> dict[str, Any]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, arch="net"),
    }


def nested(folder: Path, *, legacy: bool = False) -> Made:
    prefix = "state_dict.module.fc"
    return _saved(
        folder, _with_optimizer(), {f"{prefix}.weight": 0}, (f"{prefix}.bias",),
        legacy=legacy, name="checkpoint.tar",
    )  # fmt: skip


def lightning(folder: Path) -> Made:
    value = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict((f"model.{k}", v) for k, v in net(1).state_dict().items()),
        "current_model_state": OrderedDict(
            (f"model.{k}", v) for k, v in net(2).state_dict().items()
        ),
        "hyper_parameters": {"lr": 0.1, "classes": C},
        "optimizer_states": [],
    }
    roots = ("state_dict.model.fc", "current_model_state.model.fc")
    heads = {f"{root}.weight": 0 for root in roots}
    return _saved(folder, value, heads, tuple(f"{r}.bias" for r in roots), name="last.ckpt")


def _load_own(path: Path) -> Any:
    # The file was written a moment ago by this very process.
    return torch.load(path, weights_only=False, map_location="cpu")


def whole_module(folder: Path, *, legacy: bool = False) -> Made:
    def load(path: Path) -> Tensors:
        return flat(_load_own(path))

    def use(path: Path) -> object:
        return _load_own(path)(torch.randn(1, 3, 5, 5))

    return _saved(folder, net(), legacy=legacy, load=load, use=use, name="model.pt")


def torchscript(folder: Path) -> Made:
    path = folder / "scripted.pt"
    with script_warnings():
        torch.jit.save(torch.jit.trace(net(), torch.randn(1, 3, 5, 5)), path)

    def load(path: Path) -> Tensors:
        with script_warnings():
            return flat(dict(torch.jit.load(path).state_dict()))

    def use(path: Path) -> object:
        with script_warnings():
            return torch.jit.load(path)(torch.randn(1, 3, 5, 5))

    return Made(path, {"fc.weight": 0}, ("fc.bias",), load, use)


def _with_weight(folder: Path, weight: torch.Tensor, *, legacy: bool = False, **more: Any) -> Made:
    state = net().state_dict()
    return _saved(folder, {**state, "fc.weight": weight}, legacy=legacy, **more)


def transposed_view(folder: Path, *, legacy: bool = False) -> Made:
    torch.manual_seed(3)
    return _with_weight(folder, torch.randn(D, C).t(), legacy=legacy)


def offset_view(folder: Path) -> Made:
    torch.manual_seed(3)
    return _with_weight(folder, torch.randn(1000)[100 : 100 + C * D].view(C, D))


def strided_view(folder: Path, *, legacy: bool = False) -> Made:
    torch.manual_seed(3)
    return _with_weight(folder, torch.randn(3 * C, 2 * D)[1::3, 1::2], legacy=legacy)


def bias_in_a_column(folder: Path, *, legacy: bool = False) -> Made:
    torch.manual_seed(3)
    both = torch.randn(C, D + 1)
    value = {**net().state_dict(), "fc.weight": both[:, :D], "fc.bias": both[:, D]}
    return _saved(folder, value, legacy=legacy)


def stored_transposed(folder: Path) -> Made:
    torch.manual_seed(3)
    state = net().state_dict()
    state["fc.weight"] = torch.randn(D, C)
    return _saved(folder, state, {"fc.weight": 1}, layout="transposed")


def conv1x1(folder: Path) -> Made:
    torch.manual_seed(3)

    def use(path: Path) -> object:
        return ConvNet().load_state_dict(load_safely(path))

    return _saved(folder, ConvNet().state_dict(), use=use, layout="conv1x1")


def weight_norm_names(folder: Path) -> Made:
    """The names g and v of torch's first weight norm."""
    model = _normed()
    state = model.state_dict()
    state["fc.weight_g"] = state.pop("fc.parametrizations.weight.original0")
    state["fc.weight_v"] = state.pop("fc.parametrizations.weight.original1")
    return _saved(folder, state, {"fc.weight_g": 0}, layout="weight_norm")


def _normed() -> Net:
    torch.manual_seed(3)
    return net(3, nn.utils.parametrizations.weight_norm(nn.Linear(D, C), dim=0))


def weight_norm_parametrized(folder: Path) -> Made:
    def use(path: Path) -> object:
        return _normed().load_state_dict(load_safely(path))

    head = "fc.parametrizations.weight.original0"
    return _saved(folder, _normed().state_dict(), {head: 0}, use=use, layout="weight_norm")


def objects(folder: Path) -> Made:
    value = {
        "model": net().state_dict(),
        "where": Path("runs/1"),
        "mode": Mode.FAST,
        "options": [argparse.Namespace(mode=Mode.FAST)],
    }
    return _saved(folder, value, {"model.fc.weight": 0}, ("model.fc.bias",))


def torch_dtype(folder: Path, dtype: torch.dtype) -> Made:
    return _saved(folder, net().to(dtype).state_dict())


# ---------------------------------------------------------------- safetensors and folders


def safetensors_file(folder: Path, dtype: torch.dtype) -> Made:
    path = folder / "model.safetensors"
    state = {k: v.contiguous() for k, v in net().to(dtype).state_dict().items()}
    safetensors.torch.save_file(state, path, {"format": "pt", "note": "naïve \x01 {}"})

    def load(path: Path) -> Tensors:
        return safetensors.torch.load_file(path)

    return Made(path, {"fc.weight": 0}, ("fc.bias",), load, load)


def bare_safetensors(folder: Path) -> Made:
    """Without any metadata."""
    made = safetensors_file(folder, torch.float32)
    safetensors.torch.save_file(made.load(made.path), made.path)
    return made


def transformers() -> Any:
    """The library, also where another package brought a torchaudio that fits no torch here."""
    try:
        import torchaudio  # noqa: F401  (transformers imports it wherever it is installed)
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchaudio"] = None  # type: ignore[assignment]
    import transformers

    return transformers


def _vit() -> Any:
    library = transformers()
    torch.manual_seed(4)
    names = {i: f"kind {i}" for i in range(C)}
    config = library.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=8, patch_size=4, id2label=names, label2id={v: k for k, v in names.items()},
    )  # fmt: skip
    return library.ViTForImageClassification(config).eval()


def _load_shards(folder: Path) -> Tensors:
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= safetensors.torch.load_file(file)
    for file in sorted(folder.glob("*.bin")):
        found |= load_safely(file)
    return found


def _use_vit(folder: Path) -> object:
    library = transformers().ViTForImageClassification
    loaded, info = library.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return loaded


def _vit_folder(folder: Path, **how: Any) -> Made:
    path = folder / "vit"
    _vit().save_pretrained(path, **how)
    (path / "preprocessor_config.json").write_text('{"do_resize": true}')
    return Made(path, {"classifier.weight": 0}, ("classifier.bias",), _load_shards, _use_vit)


def hugging_face_folder(folder: Path) -> Made:
    return _vit_folder(folder)


def sharded_folder(folder: Path) -> Made:
    made = _vit_folder(folder, max_shard_size="6KB")
    assert len(list(made.path.glob("*.safetensors"))) > 2
    return made


def bin_folder(folder: Path) -> Made:
    made = _vit_folder(folder)
    weights = made.path / "model.safetensors"
    torch.save(safetensors.torch.load_file(weights), made.path / "pytorch_model.bin")
    weights.unlink()
    return made


def sharded_bin_folder(folder: Path) -> Made:
    made = _vit_folder(folder)
    weights = made.path / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    weights.unlink()
    files = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    head = {k: v for k, v in state.items() if k.startswith("classifier")}
    rest = {k: v for k, v in state.items() if k not in head}
    for name, part in zip(files, (rest, head), strict=True):
        torch.save(part, made.path / name)
    table = {k: files[k in head] for k in state}
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    (made.path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return made


def timm_folder(folder: Path) -> Made:
    import timm

    path = folder / "timm"
    torch.manual_seed(5)
    model = timm.create_model("test_vit", num_classes=C)
    timm.models.save_for_hf(model, path, safe_serialization="both")
    (path / "pytorch_model.bin").unlink()

    def use(folder: Path) -> object:
        return timm.create_model(f"local-dir:{folder}", pretrained=True)

    return Made(path, {"head.weight": 0}, ("head.bias",), _load_shards, use)


CONTAINERS: dict[str, Callable[[Path], Made]] = {
    "safetensors float64": lambda f: safetensors_file(f, torch.float64),
    "safetensors float32": lambda f: safetensors_file(f, torch.float32),
    "safetensors float16": lambda f: safetensors_file(f, torch.float16),
    "safetensors bfloat16": lambda f: safetensors_file(f, torch.bfloat16),
    "safetensors without metadata": bare_safetensors,
    "Hugging Face folder": hugging_face_folder,
    "Hugging Face shards": sharded_folder,
    "Hugging Face .bin folder": bin_folder,
    "Hugging Face .bin shards": sharded_bin_folder,
    "timm folder": timm_folder,
    "state dict": state_dict,
    "state dict float64": lambda f: torch_dtype(f, torch.float64),
    "state dict float16": lambda f: torch_dtype(f, torch.float16),
    "state dict bfloat16": lambda f: torch_dtype(f, torch.bfloat16),
    "nested with optimizer and arguments": nested,
    "Lightning with an averaged copy": lightning,
    "whole module": whole_module,
    "paths and enums": objects,
    "TorchScript": torchscript,
    "transposed view": transposed_view,
    "offset view": offset_view,
    "strided view": strided_view,
    "bias in a column of the weight": bias_in_a_column,
    "stored as (D, C)": stored_transposed,
    "1x1 convolution": conv1x1,
    "weight norm, g and v": weight_norm_names,
    "weight norm, parametrized": weight_norm_parametrized,
    "legacy state dict": lambda f: state_dict(f, legacy=True),
    "legacy nested": lambda f: nested(f, legacy=True),
    "legacy whole module": lambda f: whole_module(f, legacy=True),
    "legacy transposed view": lambda f: transposed_view(f, legacy=True),
    "legacy strided view": lambda f: strided_view(f, legacy=True),
    "legacy bias in a column": lambda f: bias_in_a_column(f, legacy=True),
}

#: One of each format, for tests that are about something else.
FORMATS = ("safetensors float32", "state dict", "legacy state dict")


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Each container, written once a session; tests read it and write elsewhere."""
    ready: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in ready:
            ready[name] = CONTAINERS[name](tmp_path_factory.mktemp("made"))
        return ready[name]

    return get


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI systems and terminals change what rich prints; the tests see neither."""
    for name in ("GITHUB_ACTIONS", "FORCE_COLOR", "CI", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("_TYPER_FORCE_DISABLE_TERMINAL", "1")


def child_environment(**more: str) -> dict[str, str]:
    """For subprocesses: this one's, and what a test sets."""
    return {**os.environ, "PYTHONWARNINGS": "error", **more}


def schema_of(command: str) -> dict[str, Any]:
    """The JSON Schema of a command's document."""
    text = (resources.files("rescale_cli") / "schemas" / f"{command}.json").read_text("utf-8")
    return json.loads(text)
