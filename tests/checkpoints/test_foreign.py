"""The errors for files that are not checkpoints name the format, the damage and the next step."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import shlex
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import COUNTS, GAMMA, C, D, Made, child_environment, net
from safetensors.numpy import load_file, save_file

from rescale_cli import api
from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.checkpoints.partial_models import TrainingState
from rescale_cli.errors import BadCheckpoint, BadHead, BadInput, NeedsDecision

Containers = Callable[[str], Made]


def refusal(path: Path) -> BadInput:
    """The error of a file or folder that cannot be opened; it names itself and has a fix."""
    with pytest.raises(BadInput) as caught:
        open_checkpoint(path)
    assert caught.value.fix
    assert "not a checkpoint that this tool reads" not in caught.value.what
    return caught.value


# ---------------------------------------------------------------- DeepSpeed, FSDP, Megatron


def deepspeed(root: Path, stage: int = 2, tag: str = "global_step500") -> Path:
    """A checkpoint as DeepSpeed's engine writes it: the keys and names of its save_checkpoint."""
    folder = root / tag
    folder.mkdir(parents=True)
    state = {k: v.half() for k, v in net().state_dict().items()}
    shapes = [{k: v.shape for k, v in state.items()}]
    if stage == 3:
        state = {k: torch.empty(0, dtype=torch.float16) for k in state}
    model = {
        "module": state, "buffer_names": [], "optimizer": None, "param_shapes": shapes,
        "frozen_param_shapes": None, "shared_params": {}, "lr_scheduler": None,
        "global_steps": 500, "dp_world_size": 1, "mp_world_size": 1, "ds_version": "0.14.0",
        "ds_config": {"zero_optimization": {"stage": stage}},
    }  # fmt: skip
    flat = {
        "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups": [torch.ones(9)]
    }
    inner = {"zero_stage": stage, "partition_count": 1, "base_optimizer_state": {}, **flat}
    name = "zero_pp_rank_0_mp_rank_00" if stage == 3 else "mp_rank_00"
    torch.save(model, folder / f"{name}_model_states.pt")
    torch.save(
        {"optimizer_state_dict": inner, "ds_config": {}, "ds_version": "0.14.0"},
        folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    )
    (root / "latest").write_text(tag)
    return root


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_errors_give_the_command_of_its_documentation(stage: int, tmp_path: Path) -> None:
    root = deepspeed(tmp_path / "run", stage)
    folder = root / "global_step500"
    for path in (root, folder, *folder.iterdir()):
        error = refusal(path)
        assert isinstance(error, TrainingState)
        assert "python zero_to_fp32.py . pytorch_model.bin" in error.fix
        assert f"cd {root}" in error.fix
        assert " -t " not in error.fix


def test_the_deepspeed_error_names_an_older_tag_and_missing_shards(tmp_path: Path) -> None:
    root = deepspeed(tmp_path / "run", tag="global_step400")
    (root / "latest").write_text("global_step500")
    model = root / "global_step400" / "mp_rank_00_model_states.pt"
    assert "pytorch_model.bin -t global_step400" in refusal(model).fix
    for file in model.parent.glob("*optim*"):
        file.unlink()
    assert "fetch the *_optim_states.pt files" in refusal(model).fix


def test_a_converted_deepspeed_folder_is_read_and_its_state_is_mentioned(
    containers: Containers, tmp_path: Path
) -> None:
    root = deepspeed(tmp_path / "run")
    torch.save(net().state_dict(), root / "pytorch_model.bin")
    plan = api.apply(root, COUNTS, GAMMA, dry_run=True).plan
    assert any(entry.name.startswith("global_step") for entry in plan.left_behind)


def test_a_deepspeed_file_without_zero_contains_the_model(tmp_path: Path) -> None:
    value = {
        "module": net().state_dict(), "param_shapes": None, "dp_world_size": 1,
        "mp_world_size": 1, "ds_config": {"zero_optimization": {"stage": 0}}, "ds_version": "1",
    }  # fmt: skip
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save(value, path)
    assert api.inspect(path, COUNTS).found.heads[0].weight == "module.fc.weight"


def distributed(folder: Path, value: dict[str, Any]) -> Path:
    import torch.distributed.checkpoint as dcp

    dcp.save(value, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_distributed_checkpoint_is_refused_with_commands_that_work(tmp_path: Path) -> None:
    folder = distributed(tmp_path / "dcp", {"model": net().state_dict(), "step": torch.tensor(3)})
    for path in (folder, *folder.iterdir()):
        error = refusal(path)
        assert f"accelerate merge-weights {folder} merged" in error.fix
    command = error.fix.partition(" (for")[0]
    assert command.startswith("python -m torch.distributed.checkpoint.format_utils dcp_to_torch ")
    words = [sys.executable, *shlex.split(command)[1:]]
    environment = child_environment() | {"PYTHONWARNINGS": "ignore"}
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert api.inspect(tmp_path / "model.pt", COUNTS).found.heads[0].weight == "model.fc.weight"


@pytest.mark.filterwarnings("ignore")
def test_the_error_for_an_fsdp_folder_names_the_model_and_never_the_optimizer(
    tmp_path: Path,
) -> None:
    root = tmp_path / "checkpoint-500"
    root.mkdir()
    model = distributed(root / "pytorch_model_fsdp_0", {"model": net().state_dict()})
    moments = {"optimizer": {"state": {"fc.weight": {"exp_avg": torch.zeros(C, D)}}}}
    optimizer = distributed(root / "optimizer_0", moments)
    torch.save({"last_epoch": 1}, root / "scheduler.pt")
    error = refusal(root)
    assert str(model) in error.fix
    assert str(optimizer) not in str(error)
    assert "optimizer" in refusal(optimizer).what


def test_the_fsdp_shard_of_one_rank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model_fsdp_rank0.bin"
    torch.save({"_flat_param": torch.ones(9), "fc._flat_param": torch.ones(4)}, path)
    assert "full_state_dict=True" in refusal(path).fix


def test_the_error_for_megatron_shards_names_the_converter(tmp_path: Path) -> None:
    shards = tmp_path / "run" / "iter_0000100"
    for rank in range(2):
        folder = shards / f"mp_rank_0{rank}"
        folder.mkdir(parents=True)
        value = {
            "args": argparse.Namespace(tensor_model_parallel_size=2), "checkpoint_version": 3.0,
            "iteration": 100, "model": net().state_dict(), "optimizer": {"state": {}},
        }  # fmt: skip
        torch.save(value, folder / "model_optim_rng.pt")
    for path in (shards.parent, shards, folder, folder / "model_optim_rng.pt"):
        error = refusal(path)
        assert "tools/checkpoint/convert.py" in error.fix
        assert f"--load-dir {shards.parent}" in error.fix


# ---------------------------------------------------------------- folders with models


def decision(path: Path) -> NeedsDecision:
    with pytest.raises(NeedsDecision) as caught:
        open_checkpoint(path)
    assert caught.value.exit_code == 4
    return caught.value


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = net(seed).state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def training_files(folder: Path) -> None:
    """What Trainer and accelerate leave beside a model."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save({"last_epoch": 3}, folder / "scheduler.pt")
    torch.save({"torch": torch.zeros(5056, dtype=torch.uint8)}, folder / "rng_state.pth")
    torch.save(argparse.Namespace(lr=0.1), folder / "training_args.bin")
    (folder / "trainer_state.json").write_text("{}")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_error_names_both_models_of_accelerate(name: str, tmp_path: Path) -> None:
    first = put(tmp_path / name)
    stem, _, suffix = name.partition(".")
    second = put(tmp_path / f"{stem}_1.{suffix}")
    error = decision(tmp_path)
    assert error.saw == f"{first.name}, {second.name}"
    assert str(first) in error.fix
    assert open_checkpoint(second).contents.files == (second,)


def test_the_error_lists_the_checkpoints_of_a_training_run_in_order(tmp_path: Path) -> None:
    for step in (1000, 500):
        put(tmp_path / f"checkpoint-{step}" / "model.safetensors")
        training_files(tmp_path / f"checkpoint-{step}")
    training_files(tmp_path)
    error = decision(tmp_path)
    assert error.saw == "checkpoint-500, checkpoint-1000"
    assert "training run" in error.what
    assert error.fix.endswith("checkpoint-1000")
    open_checkpoint(tmp_path / "checkpoint-1000")


@pytest.mark.parametrize(
    ("marker", "model"),
    [
        ("MLmodel", "data/model.pth"),
        ("resnet/config.pbtxt", "resnet/1/model.pt"),
        ("notes.txt", "deep/er/final.ckpt"),
    ],
)
def test_the_only_model_inside_a_folder_is_used_with_a_note(
    marker: str, model: str, tmp_path: Path
) -> None:
    path = put(tmp_path / model)
    (tmp_path / marker).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / marker).write_text("x: y")
    found = open_checkpoint(tmp_path)
    assert found.path == path
    assert found.notes == (f"using {model}, the only model in {tmp_path}",)


def test_the_only_model_inside_a_folder_may_not_be_a_link_out_of_it(tmp_path: Path) -> None:
    path = put(tmp_path / "elsewhere" / "model.pth")
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "model.pth").symlink_to(path)
    with pytest.raises(BadCheckpoint, match="a link that leaves its folder"):
        open_checkpoint(tmp_path / "run")


def test_the_fix_names_the_newest_version_of_a_triton_repository(
    tmp_path: Path,
) -> None:
    for version in (2, 10, 1):
        put(tmp_path / "net" / str(version) / "model.pt")
    (tmp_path / "net" / "config.pbtxt").write_text('name: "net"')
    error = decision(tmp_path)
    assert error.saw == "net/1/model.pt, net/2/model.pt, net/10/model.pt"
    assert error.fix.endswith("net/10/model.pt")


def test_the_error_lists_several_models_but_no_optimizer(tmp_path: Path) -> None:
    put(tmp_path / "a.pth")
    training_files(tmp_path)
    assert open_checkpoint(tmp_path).contents.files == (tmp_path / "a.pth",)
    put(tmp_path / "b.safetensors")
    assert decision(tmp_path).saw == "a.pth, b.safetensors"


def others(path: Path) -> list[str]:
    plan = api.apply(path, COUNTS, GAMMA, dry_run=True).plan
    return [text.split(" also")[0] for code, text in plan.warnings if code == "other-weights"]


def test_apply_mentions_every_other_model_of_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "hf"
    put(root / "model.safetensors")
    put(root / "pytorch_model.bin")
    put(root / "checkpoint-9" / "model.safetensors")
    put(root / "best" / "epoch3.ckpt")
    (root / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    training_files(root)
    wanted = ["pytorch_model.bin", "tf_model.h5", "best/epoch3.ckpt", "checkpoint-9"]
    assert others(root) == wanted
    assert others(root / "model.safetensors") == [], "the file was named"
    done = api.apply(root, COUNTS, GAMMA, output=tmp_path / "out")
    assert done.patched is not None
    put(tmp_path / "alone.pth")
    assert others(tmp_path / "alone.pth") == []


def test_an_index_represents_its_shards(containers: Containers, tmp_path: Path) -> None:
    root = tmp_path / "hf"
    shutil.copytree(containers("Hugging Face shards").path, root)
    assert others(root) == []
    for file in containers("Hugging Face .bin shards").path.glob("*.bin*"):
        shutil.copy(file, root)
    assert others(root) == ["pytorch_model.bin.index.json"]


def test_the_warning_is_printed_and_in_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rescale_cli.cli import main

    put(tmp_path / "hf" / "model.safetensors")
    put(tmp_path / "hf" / "pytorch_model.bin")
    (tmp_path / "c.json").write_text(json.dumps(COUNTS))
    words = ["apply", str(tmp_path / "hf"), "--counts", str(tmp_path / "c.json"), "-g", "0.2"]
    assert main([*words, "--dry-run"]) == 0
    assert "pytorch_model.bin also holds a model" in capsys.readouterr().err.replace("\n", " ")
    assert main([*words, "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert "other-weights" in {warning["code"] for warning in warnings}


# ---------------------------------------------------------------- other frameworks


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"{}")
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("model.pth"))
    return buffer.getvalue()


#: A name, the bytes of the file, a word of the error, a word of the fix.
FOREIGN = [
    ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5", "set_weights"),
    ("m.keras", zipped("config.json", "model.weights.h5"), "Keras", "set_weights"),
    ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(50), "TensorFlow Lite", "convert"),
    ("m.pte", b"\x1c\0\0\0ET12" + bytes(50), "ExecuTorch", "convert"),
    ("m.gguf", b"GGUF\x03\0\0\0" + bytes(99), "GGUF", "convert"),
    ("m.plan", b"ftrt\0\0\0\0" + bytes(99), "TensorRT", "build the engine"),
    ("m.onnx", b"\x08\x08\x12\x07pytorch\x1a\x03" + bytes(50), "ONNX", "export"),
    ("no-suffix", b"\x08\x08\x12\x07pytorch\x1a\x03" + bytes(50), "ONNX", "export"),
    ("m.mlmodel", b"\x08\x04\x12\x20\x0a\x10" + bytes(50), "Core ML", "convert"),
    ("m.xml", b'<?xml version="1.0"?><net name="m" version="11">', "OpenVINO", "convert"),
    ("saved_model.pb", b"\x08\x01\x12\x90\x01\x0a" + bytes(50), "SavedModel", "TensorFlow"),
    ("m.pdparams", pickle.dumps({"StructuredToParameterName@@": {}}), "PaddlePaddle", "paddle"),
    ("m.tar.gz", b"\x1f\x8b\x08" + bytes(30), "gzip", "tar xzf"),
    ("m.nemo", archive(), "tar archive", "tar xf"),
    ("m.mar", zipped("MAR-INF/MANIFEST.json", "model.pth"), "zip", "unpacked/model.pth"),
    ("variables.index", bytes(9) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "TensorFlow", "kernel"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "kind", "fix"), FOREIGN, ids=lambda v: str(v)[:20])
def test_the_error_names_other_formats_and_the_next_step(
    name: str, data: bytes, kind: str, fix: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    error = refusal(path)
    assert kind in error.what
    assert fix in error.fix
    hidden = tmp_path / "renamed.data"
    if name not in ("m.mlmodel", "saved_model.pb"):  # these say no more than a version number
        path.rename(hidden)
        assert kind in refusal(hidden).what, "by its content, not by its suffix"


def flax_array(array: np.ndarray[Any, Any]) -> bytes:
    """An array as flax.serialization packs it: extension 1, of shape, dtype and bytes."""
    raw = array.tobytes()
    name = array.dtype.name.encode()
    body = b"\x93" + bytes([0x90 + array.ndim, *array.shape]) + bytes([0xA0 + len(name)]) + name
    body += b"\xc5" + struct.pack(">H", len(raw)) + raw
    return b"\xc8" + struct.pack(">H", len(body)) + b"\x01" + body


def test_flax_is_recognized_at_any_depth(tmp_path: Path) -> None:
    array = flax_array(np.ones((8, 3), np.float32))
    for data in (b"\x81\xa6kernel", b"\x81\xd9\x06params\xde\x00\x01\xa4head\x81\xa6kernel"):
        path = tmp_path / "flax_model.msgpack"
        path.write_bytes(data + array)
        error = refusal(path)
        assert "Flax" in error.what
        assert "flatten_dict" in error.fix
    (tmp_path / "config.json").write_text("{}")
    assert "from_flax=True" in refusal(tmp_path).fix, "the folder is one of transformers"


def test_the_command_in_the_npz_error_creates_a_checkpoint(tmp_path: Path) -> None:
    arrays = {
        "head/kernel": np.ones((8, 3), np.float32), "head/bias": np.zeros(3, np.float32),
        "embedding/kernel": np.ones((4, 4, 3, 8), np.float32),
    }  # fmt: skip
    path = tmp_path / "vit.npz"
    np.savez(path, **arrays)
    error = refusal(path)
    assert "npz" in error.what
    words = shlex.split(error.fix.partition(", then name")[0])
    subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True, env=child_environment())
    api.apply(tmp_path / "model.safetensors", [16, 4, 1], 0.5, output=tmp_path / "o.safetensors")
    after = load_file(tmp_path / "o.safetensors")["head.kernel"]
    assert after.tolist() == [[1.0, 2.0, 4.0]] * 8


def test_the_error_for_a_file_of_logits_names_its_option(tmp_path: Path) -> None:
    np.savez(tmp_path / "l.npz", logits=np.ones((4, 3)), labels=np.zeros(4, int))
    assert "--logits" in refusal(tmp_path / "l.npz").fix


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3)])
def test_scikit_learn_models_are_recognized(compress: Any, tmp_path: Path) -> None:
    joblib, linear = pytest.importorskip("joblib"), pytest.importorskip("sklearn.linear_model")
    model = linear.LogisticRegression().fit(np.eye(6, 4), np.repeat([0, 1, 2], 2))
    joblib.dump(model, tmp_path / "m.joblib", compress=compress)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(model))
    for name in ("m.joblib", "m.pkl"):
        error = refusal(tmp_path / name)
        assert "scikit-learn" in error.what
        assert "coef_" in error.fix


def test_other_pickles_are_recognized_by_their_contents(tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"fc.weight": torch.ones(3, 4)}))
    assert "torch tensors" in refusal(path).what
    path.write_bytes(pickle.dumps({"model": {"fc.weight": np.ones((3, 4))}}))
    assert "numpy" in refusal(path).what
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "a pickle of plain objects" in refusal(path).what


def test_folders_of_other_frameworks_are_recognized(tmp_path: Path) -> None:
    for name, inside, kind in (
        ("saved", "saved_model.pb", "SavedModel"),
        ("ml.mlpackage", "Data/com.apple.CoreML/model.mlmodel", "Core ML"),
        ("orbax", "_CHECKPOINT_METADATA", "Orbax"),
    ):
        (tmp_path / name / inside).parent.mkdir(parents=True)
        (tmp_path / name / inside).write_bytes(b"\x08\x01\x12\x05")
        assert kind in refusal(tmp_path / name).what
    (tmp_path / "ov").mkdir()
    (tmp_path / "ov" / "m.xml").write_text('<?xml version="1.0"?><net name="m">')
    (tmp_path / "ov" / "m.bin").write_bytes(np.random.default_rng(0).bytes(99))
    assert "OpenVINO" in refusal(tmp_path / "ov").what
    assert "OpenVINO" in refusal(tmp_path / "ov" / "m.bin").what


# ---------------------------------------------------------------- adapters

ROOT = "base_model.model"
LORA = {f"{ROOT}.q.lora_A.weight": (C, D), f"{ROOT}.q.lora_B.weight": (D, C)}


def adapter(folder: Path, shapes: dict[str, tuple[int, ...]], **config: object) -> Path:
    """The two files of PEFT's save_pretrained; the rank is C, as unlucky as can be."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    arrays = {k: generator.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    save_file(arrays, folder / "adapter_model.safetensors", {"format": "pt"})
    told = {"peft_type": "LORA", "base_model_name_or_path": "org/base", **config}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def test_an_adapter_without_the_head_must_be_merged_first(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", LORA, task_type="SEQ_CLS")
    for path in (folder, folder / "adapter_model.safetensors"):
        error = refusal(path)
        assert "org/base" in error.saw
        assert "merge_and_unload()" in error.fix
        assert "AutoPeftModelForSequenceClassification" in error.fix
    on_head = {
        f"{ROOT}.classifier.lora_A.weight": (4, D),
        f"{ROOT}.classifier.lora_B.weight": (C, 4),
    }
    embedding = {f"{ROOT}.embeddings.weight": (C, D)}
    assert "PeftModel" in refusal(adapter(tmp_path / "b", {**LORA, **on_head, **embedding})).fix


def test_an_adapter_that_contains_the_head_is_re_scaled(tmp_path: Path) -> None:
    head = {f"{ROOT}.classifier.weight": (C, D), f"{ROOT}.classifier.bias": (C,)}
    folder = adapter(tmp_path / "a", {**LORA, **head}, modules_to_save=["classifier"])
    api.apply(folder, COUNTS, GAMMA, output=tmp_path / "out")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "out"))
    factors = np.array([(max(COUNTS) / n) ** GAMMA for n in COUNTS])
    for name, old in before.items():
        wanted = old if name != f"{ROOT}.classifier.weight" else old * factors[:, None]
        assert np.array_equal(after[name], wanted.astype(np.float32))


def test_a_head_with_an_adapter_is_refused(tmp_path: Path) -> None:
    state = {f"m.{k}": v for k, v in net().state_dict().items() if not k.startswith("fc")}
    state |= {"m.fc.base_layer.weight": torch.randn(C, D), "m.fc.base_layer.bias": torch.randn(C)}
    state |= {"m.fc.lora_A.default.weight": torch.randn(2, D)}
    state |= {"m.fc.lora_B.default.weight": torch.randn(C, 2)}
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(BadHead, match="an adapter adds to it") as refused:
        api.inspect(tmp_path / "m.pt", COUNTS, heads=["m.fc.base_layer.weight"])
    assert "merge_and_unload()" in refused.value.fix


# ---------------------------------------------------------------- damage


def good(suffix: str, tmp_path: Path) -> bytes:
    return put(tmp_path / f"good{suffix}").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.004, 0.01, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_called_truncated(suffix: str, share: float, tmp_path: Path) -> None:
    data = good(suffix, tmp_path)
    cut = data[: int(len(data) * share)]
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(cut)
    error = refusal(path)
    assert isinstance(error, BadCheckpoint)
    if not cut:
        assert "empty file" in error.what
    elif suffix == ".pt":
        assert "incomplete zip" in error.what
        assert "end of central directory" in error.saw
        assert f"{len(cut):,} bytes" in error.saw
    elif share > 0.4:
        assert error.what == f"cut.safetensors: truncated after {len(cut):,} of {len(data):,} bytes"
    else:
        assert "truncated" in error.what


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (struct.pack("<Q", 1 << 50) + bytes(90), "invalid header length 1,125,899,906,842,624"),
        (struct.pack("<Q", 1) + b"{}" + bytes(90), "invalid header length 1 in a file of 100 b"),
        (struct.pack("<Q", 10) + b'{"a": 1,,}', "not valid JSON"),
        (struct.pack("<Q", 10) + b"0123456789", "safetensors"),
        (struct.pack("<Q", 10) + b"\xff" * 10, "not valid UTF-8"),
        (struct.pack("<Q", 2) + b"{}" + bytes(5), "5 bytes too many"),
        (b"\x07" * 400, "invalid header length"),
    ],
)  # fmt: skip
def test_a_damaged_safetensors_header_gets_a_diagnosis(
    data: bytes, what: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    assert what in refusal(path).what


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_the_result_of_a_failed_download_is_recognized(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    for data, word in (
        (b"", "empty"),
        (bytes(5000), "zeros"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page"),
        (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "web page"),
        (b"Entry not found", "text file"),
        (b'{"error":"Repository not found"}', "text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs"),
        (b"\x07\xfe" * 400, "invalid header" if suffix == ".safetensors" else "damaged"),
    ):
        path.write_bytes(data)
        assert word in refusal(path).what
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        inside = folder / f"m{suffix}"
        path.replace(inside)
        assert word in refusal(folder).what, "the same in a folder"


def test_a_truncated_legacy_file_is_called_truncated(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "m.pt").read_bytes()
    for size in (3, 10, 300, len(data) - 9):
        (tmp_path / "m.pt").write_bytes(data[:size])
        assert "damaged" in refusal(tmp_path / "m.pt").what


def test_the_error_for_a_text_file_names_the_folder_of_the_model(tmp_path: Path) -> None:
    put(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert refusal(tmp_path / "config.json").fix == f"name the folder of the model: {tmp_path}"
