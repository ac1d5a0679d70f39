"""Models built and loaded from real files: the same logits as the library that wrote them gives."""

from __future__ import annotations

import json
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision import models as tv

from rescale_cli.core.predictions import Classifier
from rescale_cli.errors import (
    BadCheckpoint,
    BadInput,
    EnvironmentProblem,
    NeedsDecision,
    RescaleError,
    UnsafePickle,
    UsageError,
)
from rescale_cli.files.contents import TensorInfo, row_major
from rescale_cli.foreign_code import library
from rescale_cli.models.classifiers import load_classifier, models
from rescale_cli.models.networks import AUXILIARY, builder_of, networks
from rescale_cli.models.preprocessing import batch_preprocessing
from rescale_cli.models.recognize import recognize
from rescale_cli.models.weights import choose, hollow_shapes, read_tensor

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_lt"
C = 7


def images(n: int = 2, channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def jitter(network: nn.Module) -> nn.Module:
    """Statistics and weights that are none of the initial ones."""
    for value in network.state_dict().values():
        if value.is_floating_point():
            value += 0.01 * torch.rand_like(value)
    return network.eval()


def small() -> nn.Module:
    torch.manual_seed(0)
    return jitter(networks["resnet8"](C, 3, True))


def theirs(name: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    return jitter(tv.get_model(name, weights=None, num_classes=C, **more))


def same_logits(found: Classifier, network: nn.Module, x: torch.Tensor | None = None) -> None:
    x = images() if x is None else x
    with torch.inference_mode():
        theirs = network(x)
        ours = found.module(x)
    assert ours.shape == (len(x), found.num_classes)
    torch.testing.assert_close(ours, getattr(theirs, "logits", theirs), rtol=1e-5, atol=1e-6)


def refused(path: Path, arch: str | None, kind: type[RescaleError], word: str) -> RescaleError:
    with pytest.raises(kind) as caught:
        load_classifier(path, arch)
    error = caught.value
    assert word in f"{error.what} | {error.saw} | {error.fix}"
    assert error.fix
    return error


def save(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


# ---- state


def test_the_bundled_examples_logits_are_reproduced_from_its_folder_alone() -> None:
    found = load_classifier(EXAMPLE)
    assert found.arch == "rescale:resnet8"
    assert found.classes is not None
    assert found.classes[-1] == "Ankle boot"
    assert found.preprocessing is not None
    with np.load(EXAMPLE / "val.npz") as data, np.load(EXAMPLE / "val_logits.npz") as wanted:
        x = batch_preprocessing(data["images"], found.preprocessing)
        with torch.inference_mode():
            logits = found.module(x).numpy()
        np.testing.assert_allclose(logits, wanted["logits"], rtol=1e-4, atol=1e-4)


WRAPPINGS: dict[str, Callable[[nn.Module], Any]] = {
    "bare": lambda n: n.state_dict(),
    "parallel": lambda n: {"epoch": 3, "state_dict": nn.DataParallel(n).state_dict()},
    "compiled": lambda n: {"model": {f"_orig_mod.{k}": v for k, v in n.state_dict().items()}},
    "lightning": lambda n: {
        "state_dict": {f"net.{k}": v for k, v in n.state_dict().items()},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}}],
        "pytorch-lightning_version": "2.5",
    },
    "parts": lambda n: {
        "state_dict": {k.replace("layer2.", "layer2.module."): v for k, v in n.state_dict().items()}
    },
    "half": lambda n: {
        k: v.bfloat16() if v.is_floating_point() else v for k, v in n.state_dict().items()
    },
    "old counters": lambda n: {
        k: v for k, v in n.state_dict().items() if not k.endswith("num_batches_tracked")
    },
    "whole module": lambda n: n,
}


@pytest.mark.parametrize("how", WRAPPINGS)
def test_a_network_is_recognized_however_its_weights_are_wrapped(how: str, tmp_path: Path) -> None:
    network = small()
    path = save(WRAPPINGS[how](network), tmp_path / "model.pth")
    found = load_classifier(path)
    assert (found.arch, found.num_classes) == ("rescale:resnet8", C)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in found.module.parameters())
    if how == "half":
        network.load_state_dict(WRAPPINGS[how](network))
    same_logits(found, network)


def test_of_several_copies_the_average_is_taken_and_told(tmp_path: Path) -> None:
    raw, average = small(), small()
    with torch.no_grad():
        next(iter(average.parameters())).mul_(2)
    averaged = torch.optim.swa_utils.AveragedModel(average)
    both = {"model": raw.state_dict(), "model_ema": averaged.state_dict(), "epoch": 1}
    found = load_classifier(save(both, tmp_path / "model.pth"))
    assert "weights from model_ema.module, not from model" in found.why
    assert "timm" in found.why
    same_logits(found, average)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("state_dict", "state_dict_ema"), "state_dict_ema"),
        (("model", "model_ema"), "model_ema"),
        (("current_model_state", "state_dict"), "state_dict"),
        (("teacher", "student"), "student"),
    ],
)
def test_copies_are_chosen_in_the_order_of_timm(names: tuple[str, ...], taken: str) -> None:
    tensors = [info(f"{name}.fc.weight", (2, 3)) for name in names]
    chosen = choose(tensors, ["fc.weight"])
    assert chosen.infos["fc.weight"].name == f"{taken}.fc.weight"
    assert taken in chosen.why


def info(name: str, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(name, shape, row_major(shape), "float32", Path("none"), 0, 4)


DTYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "uint8",
    "bool", "complex64",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tensor_is_read_as_torch_saved_it(dtype: str, tmp_path: Path) -> None:
    from rescale_cli.checkpoints.checkpoint import open_checkpoint

    values = (torch.randn(5, 4, 3) * 3).to(getattr(torch, dtype))
    saved = {
        "plain": values,
        "transposed": values.permute(2, 0, 1),
        "part": values[1:4, ::2],
        "scalar": values[0, 0, 0].clone(),
        "spread": values[:1].expand(3, 4, 3),
        "none": values[:0],
    }
    path = save(saved, tmp_path / "values.pt")
    for read in open_checkpoint(path).contents.tensors:
        found = read_tensor(read)
        assert found.dtype == values.dtype
        assert found.is_contiguous()
        assert found.shape == saved[read.name].shape
        assert raw(found) == raw(saved[read.name])


def raw(tensor: torch.Tensor) -> list[int]:
    flat = tensor.contiguous().flatten().clone()
    return flat.view(torch.uint8).tolist() if flat.numel() else []


def test_a_tensor_of_no_known_kind_is_refused_by_name() -> None:
    odd = TensorInfo("fc.weight", (2,), (1,), "qint8", Path("none"), 0, 2)
    with pytest.raises(BadCheckpoint, match="qint8"):
        read_tensor(odd)


# ---- torchvision and ours, by name and by shape


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("name", AUXILIARY)
def test_auxiliary_heads_may_be_there_or_not(name: str, auxiliary: bool, tmp_path: Path) -> None:
    def count(num_classes: int) -> int:
        shapes = hollow_shapes(
            lambda c, k: builder_of(f"torchvision:{name}", auxiliary)(num_classes, 3)
        )
        return sum(
            int(np.prod(s)) for k, s in shapes.items() if "running" not in k and "batches" not in k
        )

    assert count(1000) == AUXILIARY[name][not auxiliary]
    if name == "inception_v3" or not auxiliary:
        return  # one of the four is run; their names and shapes are told apart below
    network = theirs(name, init_weights=False, aux_logits=auxiliary)
    path = save(network.state_dict(), tmp_path / "model.pth")
    found = load_classifier(path)
    assert found.arch == f"torchvision:{name}"
    same_logits(found, network, images(size=64))


def test_torchvisions_preprocessing_is_suggested_and_not_assumed(tmp_path: Path) -> None:
    network = theirs("squeezenet1_1")
    found = load_classifier(save(network.state_dict(), tmp_path / "m.pth"))
    assert found.arch == "torchvision:squeezenet1_1"
    assert found.preprocessing is None, "weights alone do not say how they were trained"
    assert found.usual is not None
    assert found.usual.size == (224, 224)
    same_logits(found, network)


def test_another_number_of_channels_is_taken_from_the_first_convolution(tmp_path: Path) -> None:
    network = theirs("resnet18")
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    found = load_classifier(save(network.state_dict(), tmp_path / "m.pth"))
    assert found.arch == "torchvision:resnet18"
    assert found.usual is None, "torchvision's mean of three channels does not fit one channel"
    same_logits(found, network, images(channels=1))


@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_our_networks_are_recognized_with_and_without_a_bias(name: str, tmp_path: Path) -> None:
    for bias in (True, False):
        network = networks[name](C, 1, bias).eval()
        path = save(network.state_dict(), tmp_path / "m.pth")
        for arch in (None, f"rescale:{name}"):
            found = load_classifier(path, arch)
            assert (found.arch, found.preprocessing) == (f"rescale:{name}", None)
            same_logits(found, network, images(channels=1))


@pytest.mark.parametrize(
    "name", ["resnet50", "swin_v2_t", "regnet_y_400mf", "vit_b_16", *AUXILIARY]
)
def test_torchvisions_networks_are_told_apart_by_their_shapes(name: str) -> None:
    shapes = hollow_shapes(builder_of(f"torchvision:{name}", False))
    sizes = {7919: 37, 7907: 3}
    tensors = [
        TensorInfo(f"state_dict.module.{k}", s, row_major(s), kind, Path("none"), 0, 4)
        for k, shape in shapes.items()
        for s in [tuple(sizes.get(n, n) for n in shape)]
        for kind in ["int64" if k.endswith(("index", "tracked")) else "float32"]
    ]
    assert recognize(tensors) == f"torchvision:{name}"


def test_networks_with_the_same_names_and_shapes_are_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from rescale_cli.models import recognize as module

    path = save(networks["resnet8"](C, 3, True).state_dict(), tmp_path / "m.pth")
    known = (*module._known(), ("rescale:resnet8", 10, 75_290))
    monkeypatch.setattr(module, "_known", lambda: known)
    monkeypatch.setattr(module, "_of_that_size", lambda _: ["rescale:resnet8", "rescale:resnet8"])
    refused(path, None, NeedsDecision, "--arch rescale:resnet8")


def test_an_unknown_network_is_asked_for(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, C))
    path = save(network.state_dict(), tmp_path / "m.pth")
    refused(path, None, NeedsDecision, "--arch timm:NAME")
    lightning = {"state_dict": network.state_dict(), "pytorch-lightning_version": "2.5",
                 "hyper_parameters": {"lr": 0.1}}  # fmt: skip
    refused(save(lightning, tmp_path / "m.ckpt"), None, NeedsDecision, "--arch timm:NAME")


def test_weights_of_another_network_are_refused_with_what_differs(tmp_path: Path) -> None:
    path = save(theirs("resnet18").state_dict(), tmp_path / "m.pth")
    error = refused(path, "torchvision:resnet34", BadInput, "missing")
    assert "layer1.2.conv1.weight" in error.saw
    refused(path, "torchvision:resnet50", BadInput, "another shape")
    extra = {**theirs("resnet18").state_dict(), "extra.weight": torch.zeros(3)}
    refused(
        save(extra, path), "torchvision:resnet18", BadInput, "1 not of this network: extra.weight"
    )


def test_a_torchvision_that_does_not_fit_torch_is_a_problem_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rescale_cli import foreign_code

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(foreign_code, "import_module", broken)
    with pytest.raises(EnvironmentProblem) as caught:
        foreign_code.torchvision()
    assert "one index" in caught.value.fix
    assert "nms" in caught.value.saw


def test_a_missing_extra_is_named_with_the_line_to_type() -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        library("no_such_library_at_all.part", "timm")
    assert caught.value.fix == "pip install 'rescale-cli[timm]'"


# ---- patched files


def test_a_patched_checkpoint_loads_as_its_source_does(tmp_path: Path) -> None:
    import rescale_cli

    network = small()
    for name, path in {
        "torch": save({"model": network.state_dict()}, tmp_path / "model.pth"),
        "safetensors": tmp_path / "model.safetensors",
    }.items():
        if name == "safetensors":
            safetensors.torch.save_file(network.state_dict(), path)
        out = tmp_path / f"{name}.out"
        rescale_cli.apply(path, list(range(1, C + 1)), gamma=0.5, output=out)
        found = load_classifier(out)
        factors = (C / torch.arange(1, C + 1)) ** 0.5
        with torch.inference_mode():
            plain = network(images()) - network.linear.bias
            wanted = plain * factors + network.linear.bias
            torch.testing.assert_close(found.module(images()), wanted, rtol=1e-4, atol=1e-4)


# ---- runs


def make_run(folder: Path, **config: Any) -> nn.Module:
    network = networks["resnet8"](C, 3, False).eval()
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    said = {
        "arch": "rescale:resnet8",
        "classes": [f"class {i}" for i in range(C)],
        "preprocessing": {"size": [32, 32], "mean": [0.5] * 3, "std": [0.2] * 3},
        **config,
    }
    (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
    return network


def test_a_run_folder_and_every_file_in_it_say_all(tmp_path: Path) -> None:
    network = make_run(tmp_path / "run")
    save({"epoch": 1, "model": network.state_dict()}, tmp_path / "run" / "last.ckpt")
    for name in ("", "model.safetensors", "last.ckpt"):
        found = load_classifier(tmp_path / "run" / name)
        assert found.arch == "rescale:resnet8"
        assert found.classes == tuple(f"class {i}" for i in range(C))
        assert found.preprocessing is not None
        assert found.preprocessing.mean == (0.5, 0.5, 0.5)
        assert "config.json" in found.why
        same_logits(found, network)


def test_a_config_that_names_code_does_not_run_it(tmp_path: Path) -> None:
    make_run(tmp_path / "run", arch="python:os:getcwd")
    refused(tmp_path / "run", None, NeedsDecision, "--arch python:os:getcwd")
    for arch in ("run", "elsewhere:net", 3, "hf"):
        make_run(tmp_path / "run", arch=arch)
        refused(tmp_path / "run", None, BadInput, "arch in config.json")


# ---- timm


def make_timm(folder: Path, name: str = "test_resnet", **arguments: Any) -> Any:
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=C, **arguments).eval()
    folder.mkdir(exist_ok=True)
    timm.models.save_for_hf(
        network,
        folder,
        model_config={"label_names": [f"c{i}" for i in range(C)]},
        model_args=arguments or None,
        safe_serialization=True,
    )
    return network


def test_a_timm_folder_says_all(tmp_path: Path) -> None:
    network = make_timm(tmp_path / "m")
    found = load_classifier(tmp_path / "m")
    assert found.arch == "timm:test_resnet"
    assert found.classes == tuple(f"c{i}" for i in range(C))
    assert found.preprocessing is not None
    assert found.preprocessing.size == tuple(network.pretrained_cfg["input_size"][1:])
    same_logits(found, network, images(size=160))


def test_arguments_in_a_timm_config_build_but_never_fetch(tmp_path: Path) -> None:
    network = make_timm(tmp_path / "m", "test_resnet", output_stride=16)
    config = tmp_path / "m" / "config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    said["model_args"] = {
        "output_stride": 16,
        "checkpoint_path": "/nowhere.pth",
        "pretrained": True,
    }
    config.write_text(json.dumps(said), encoding="utf-8")
    same_logits(load_classifier(tmp_path / "m"), network, images(size=160))
    said["model_args"] = {"no_such_argument": 1}
    config.write_text(json.dumps(said), encoding="utf-8")
    refused(tmp_path / "m", None, BadInput, "model_args")


def test_a_timm_model_by_name_takes_classes_and_channels_of_its_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    for name, size in (("test_resnet", 160), ("test_vit", 160)):
        network = timm.create_model(name, num_classes=C, in_chans=1).eval()
        path = save({"state_dict": network.state_dict()}, tmp_path / "m.pth.tar")
        found = load_classifier(path, f"timm:{name}")
        assert found.preprocessing is None
        same_logits(found, network, images(channels=1, size=size))
    refused(path, "timm:test_resnex", UsageError, "test_resnet")
    refused(path, "timm:hf-hub:someone/model", UsageError, "timm has no model")


# ---- Hugging Face


def make_hf(folder: Path, **save_options: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="the extra transformers is missing")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        id2label={i: f"c{i}" for i in range(C)},
        label2id={f"c{i}": i for i in range(C)},
    )
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(folder, **save_options)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "size": {"height": 32, "width": 32},
                "image_mean": [0.4] * 3,
                "image_std": [0.3] * 3,
            }
        ),
        encoding="utf-8",
    )
    return network


@pytest.mark.parametrize("shards", [False, True])
def test_a_hugging_face_folder_says_all(shards: bool, tmp_path: Path) -> None:
    network = make_hf(tmp_path / "m", **({"max_shard_size": "5KB"} if shards else {}))
    found = load_classifier(tmp_path / "m")
    assert found.arch == "hf"
    assert found.classes == tuple(f"c{i}" for i in range(C))
    assert found.preprocessing is not None
    assert (found.preprocessing.size, found.preprocessing.mean) == ((32, 32), (0.4,) * 3)
    same_logits(found, network)


def test_a_hugging_face_folder_whose_weights_are_pickled_is_read_by_us(tmp_path: Path) -> None:
    network = make_hf(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    save(safetensors.torch.load_file(weights), tmp_path / "m" / "pytorch_model.bin")
    weights.unlink()
    same_logits(load_classifier(tmp_path / "m"), network)


def test_a_hugging_face_folder_with_other_weights_is_refused(tmp_path: Path) -> None:
    make_hf(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    del state["vit.layernorm.weight"]
    safetensors.torch.save_file({**state, "odd": torch.zeros(2)}, weights, {"format": "pt"})
    error = refused(tmp_path / "m", None, BadInput, "1 missing: vit.layernorm.weight")
    assert "odd" in error.saw
    config = tmp_path / "m" / "config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**said, "model_type": "gpt2"}), encoding="utf-8")
    refused(tmp_path / "m", None, BadInput, "gpt2")
    config.write_text(
        json.dumps({**said, "model_type": "own", "auto_map": {"AutoConfig": "code.Own"}}),
        encoding="utf-8",
    )
    refused(tmp_path / "m", None, BadInput, "transformers cannot build")


# ---- TorchScript and torch.export


class Plain(nn.Module):
    """A network that every exporter takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def make_script(path: Path) -> nn.Module:
    network = Plain().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in model repositories
        torch.jit.script(network).save(str(path))
    return network


def make_exported(
    path: Path, *, dynamic: bool = True, network: nn.Module | None = None
) -> nn.Module:
    network = network or Plain().eval()
    shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    program = torch.export.export(network, (images(),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return network


def test_a_torchscript_file_is_told_by_its_content(tmp_path: Path) -> None:
    network = make_script(tmp_path / "model.pth")
    for arch in (None, "torchscript"):
        found = load_classifier(tmp_path / "model.pth", arch)
        assert found.arch == "torchscript"
        assert "its own graph code" in found.why.replace("whose", "its")
        same_logits(found, network, images(5))


def test_an_exported_program_is_told_by_its_content(tmp_path: Path) -> None:
    network = make_exported(tmp_path / "model.pt2")
    found = load_classifier(tmp_path / "model.pt2")
    assert found.arch == "pt2"
    assert "none of its code is run" in found.why
    for n in (1, 5):
        same_logits(found, network, images(n))


def test_an_exported_program_for_one_size_of_batch_is_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    make_exported(tmp_path / "model.pt2", dynamic=False)
    refused(tmp_path / "model.pt2", None, BadInput, "dynamic_shapes")


def test_an_exported_program_that_is_no_classifier_is_refused(tmp_path: Path) -> None:
    make_exported(tmp_path / "model.pt2", network=nn.Conv2d(3, 8, 3).eval())
    refused(tmp_path / "model.pt2", None, BadInput, "not an image classifier")


def test_a_pickle_hidden_in_an_exported_program_is_refused_unrun(tmp_path: Path) -> None:
    import io
    import zipfile

    make_exported(tmp_path / "good.pt2")
    marker = tmp_path / "was-run"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    for hidden in (buffer.getvalue(), b"\x80\x02N."):
        with (
            zipfile.ZipFile(tmp_path / "good.pt2") as good,
            zipfile.ZipFile(tmp_path / "bad.pt2", "w") as bad,
        ):
            for entry in good.infolist():
                inputs = "/sample_inputs/" in entry.filename
                bad.writestr(entry.filename, hidden if inputs else good.read(entry))
        with pytest.raises((UnsafePickle, BadCheckpoint)) as caught:
            load_classifier(tmp_path / "bad.pt2")
        assert caught.value.fix
        assert not marker.exists()


# ---- the user's code


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    code = """
        from torch import nn
        class Net(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes)
            def forward(self, x):
                return {"logits": self.fc(self.conv(x).relu().mean((2, 3)))}
        def fixed():
            return Net(7)
        def broken():
            raise ValueError("out of cheese")
        def number():
            return 3
        def images():
            class Pixels(Net):
                def forward(self, x):
                    return x
            return Pixels(7)
    """
    (tmp_path / "user_net.py").write_text(textwrap.dedent(code), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "python:user_net"
    sys.modules.pop("user_net", None)


def test_the_users_own_network_is_built_where_it_is_named(user_code: str, tmp_path: Path) -> None:
    network = Plain().eval()
    path = save({"model": network.state_dict()}, tmp_path / "m.pth")
    for name in ("Net", "fixed"):
        found = load_classifier(path, f"{user_code}:{name}")
        assert "running the code" in found.why
        assert found.num_classes == C
        same_logits(found, network)


def test_what_goes_wrong_in_the_users_code_is_told(user_code: str, tmp_path: Path) -> None:
    path = save(Plain().state_dict(), tmp_path / "m.pth")
    for name, word in (
        ("broken", "out of cheese"),
        ("number", "type int"),
        ("nothing", "cannot be imported"),
    ):
        refused(path, f"{user_code}:{name}", BadInput, word)
    refused(path, "python:no_such_module:Net", BadInput, "no_such_module")
    refused(path, user_code, BadInput, "MODULE:FUNCTION")
    found = load_classifier(path, f"{user_code}:images")
    with pytest.raises(BadInput, match="one row of logits"):
        found.module(images())


# ---- the contract of a source


@pytest.mark.parametrize("name", list(models))
def test_a_bad_argument_of_any_source_is_an_error_with_a_fix(name: str, tmp_path: Path) -> None:
    path = save(Plain().state_dict(), tmp_path / "m.pth")
    argument = models.entry(name).facts["argument"]
    refused(path, name if argument else f"{name}:extra", UsageError, f"--arch {name}")
    # What the source asks for is not in this checkpoint, or does not exist.
    refused(path, f"{name}:no_such_thing" if argument else name, RescaleError, "")
    assert models[name].__doc__


def test_an_unknown_source_is_answered_with_those_there_are(tmp_path: Path) -> None:
    path = save(Plain().state_dict(), tmp_path / "m.pth")
    error = refused(path, "torchvison:resnet18", UsageError, "torchvision")
    assert "timm" in error.saw


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.pth", None, BadInput, "nothing.pth")
    (tmp_path / "text.pth").write_text("hello", encoding="utf-8")
    refused(tmp_path / "text.pth", None, BadCheckpoint, "text.pth")
