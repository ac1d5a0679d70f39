"""Refuse files that contain only a part of a model: training states and adapters without a head.

DeepSpeed, FSDP and Megatron resume from weights that are in other files or split between ranks, so
patching one shard would have no effect, or change only a part. Each kind is recognized by its
content, and the error gives the command that converts it to a complete checkpoint.

An adapter that was trained with the classifier in `modules_to_save` contains the whole head, which
replaces that of the base model, so re-scaling it is exact. Any other adapter must be merged first.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from rescale_cli.checkpoints.pickle_machine import load_pickle
from rescale_cli.checkpoints.pickle_policy import Built
from rescale_cli.errors import BadCheckpoint, BadHead, BadInput, RescaleError
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.reading import opened, read_at, read_whole
from rescale_cli.json_text import clip, parse_json

_MAX_METADATA = 256 << 20
#: Classes of tensors that are split between ranks.
_SHARDED = re.compile(r"torch\.distributed\..*\.(ShardedTensor|DTensor)|.*\.FlatParameter")
_OPTIMIZER = re.compile(
    r"(^|\.)(optim\w*|state\.\d+|exp_avg\w*|momentum_buffer|param_groups)(\.|$)"
)
_FP32 = {"single_partition_of_fp32_groups", "fp32_flat_groups", "base_optimizer_state"}


class TrainingState(BadCheckpoint):
    """The weights of a training state are in other files or in parts; `fix` converts them."""


def is_optimizer_entry(name: str) -> bool:
    """Whether a tensor of this name belongs to an optimizer, not to a network."""
    return _OPTIMIZER.search(name) is not None


def refuse_training_state(value: object, named: Iterable[str], path: Path) -> None:
    """Refuse a file that is one shard of a training state.

    Args:
        value: the value of its pickle.
        named: the globals that the pickle names.
        path: the file.

    Raises:
        TrainingState: with the command that joins the shards into a checkpoint.
    """
    table = value if type(value) is dict else {}
    inner = table.get("optimizer_state_dict")
    if type(inner) is dict and ("zero_stage" in inner or _FP32 & inner.keys()):
        raise _deepspeed(path, "optimizer state, flattened over all parameters")
    if {"module", "mp_world_size"} <= table.keys() and _is_zero(table, path):
        saw = "a half-precision copy of the weights that DeepSpeed trains"
        module = table["module"]
        if not module or _is_empty(module):
            saw = "the parameters are empty, because they are split between the ranks"
        raise _deepspeed(path, saw)
    if {"args", "checkpoint_version"} <= table.keys() and {"model", "model0"} & table.keys():
        raise megatron(path.parent, path.name)
    flat = [k for k in table if type(k) is str and k.endswith(("flat_param", "_flat_param_0"))]
    sharded = [*flat, *filter(_SHARDED.fullmatch, named)]
    if sharded:
        raise TrainingState(
            f"{path.name} is the FSDP shard of one rank, not the whole model",
            saw=str(sharded[0])[:120],
            fix="in the training script, save the full state dict: get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)) of "
            "torch.distributed.checkpoint.state_dict",
        )


def _is_zero(table: dict[object, object], path: Path) -> bool:
    if table.get("param_shapes"):
        return True
    config = table.get("ds_config")
    zero = config.get("zero_optimization") if type(config) is dict else None
    stage = zero.get("stage") if type(zero) is dict else 0
    return bool(stage) or any(path.parent.glob("*_optim_states.pt"))


def _is_empty(module: object) -> bool:
    """Whether all tensors of a state dict are empty, as in a file of ZeRO-3."""
    values = module.values() if type(module) is dict else ()
    sizes = [v.args[2] for v in values if type(v) is Built and len(v.args) > 2]
    return bool(sizes) and all(type(s) is tuple and 0 in s for s in sizes)


def _deepspeed(path: Path, saw: str) -> TrainingState:
    """Return the error for a file of DeepSpeed ZeRO; its folder is the tag, the parent the root."""
    folder = path.parent.absolute()
    root = folder.parent
    latest = root / "latest"
    newest = read_whole(latest, 4096).decode("utf-8", "replace").strip() if latest.is_file() else ""
    tag = "" if newest == folder.name else f" -t {shlex.quote(folder.name)}"
    script = "" if (root / "zero_to_fp32.py").exists() else (
        " (the script is deepspeed/utils/zero_to_fp32.py; copy it there)"
    )  # fmt: skip
    lost = "" if any(folder.glob("*_optim_states.pt")) else (
        "fetch the *_optim_states.pt files of every rank, then: "
    )  # fmt: skip
    return TrainingState(
        f"{path.name} is a part of a DeepSpeed ZeRO checkpoint, whose fp32 weights are in the "
        "*_optim_states.pt files",
        saw=saw,
        fix=f"{lost}cd {shlex.quote(str(root))} && python zero_to_fp32.py . pytorch_model.bin{tag}"
        f"{script}, then name pytorch_model.bin",
    )


def megatron(folder: Path, name: str) -> TrainingState:
    """Return the error for a Megatron-LM checkpoint, given the folder of one rank."""
    shards = folder.parent if folder.name.startswith("mp_rank_") else folder
    run = shards.parent if re.fullmatch(r"iter_\d+|release", shards.name) else shards
    ranks = len(list(shards.glob("mp_rank_*")))
    return TrainingState(
        f"{name} is the Megatron shard of one rank, not the whole model",
        saw=f"{ranks} folders mp_rank_* in {shards}" if ranks else str(folder),
        fix="in Megatron-LM: python tools/checkpoint/convert.py --model-type BERT --loader core "
        f"--saver core --load-dir {shlex.quote(str(run))} --save-dir MERGED "
        "--target-tensor-parallel-size 1 --target-pipeline-parallel-size 1, then "
        "torch.save({name: tensor}) of its 'model'",
    )


def refuse_distributed_file(path: Path) -> None:
    """Refuse a file in a folder that torch.distributed.checkpoint wrote.

    Raises:
        TrainingState: with the commands that convert the folder to one file.
    """
    if path.suffix == ".distcp" or path.name == ".metadata":
        refuse_distributed(path.parent)
    if path.suffix == ".distcp":
        raise TrainingState(
            f"{path.name} is a part of a distributed checkpoint (DCP, FSDP) without its .metadata",
            saw=f"no .metadata in {path.parent}",
            fix="fetch the whole folder, then name it",
        )


def refuse_distributed(folder: Path) -> None:
    """Refuse a folder that torch.distributed.checkpoint wrote.

    Raises:
        TrainingState: with the commands that convert it to one file.
    """
    if not is_distributed(folder):
        return
    source = shlex.quote(str(folder))
    if holds_optimizer(folder):
        raise TrainingState(
            f"{folder.name} contains the sharded state of an optimizer, and no model",
            saw=f"{folder / '.metadata'}",
            fix="name the folder of the model, such as pytorch_model_fsdp_0",
        )
    raise TrainingState(
        f"{folder.name} is a distributed checkpoint (DCP, FSDP), which must be converted first",
        saw=", ".join(sorted(f.name for f in folder.glob("*.distcp"))[:5]) or str(folder),
        fix="python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
        f"{source} model.pt (for a checkpoint of accelerate or Trainer also: "
        f"accelerate merge-weights {source} merged), then name model.pt (or merged)",
    )


def is_distributed(folder: Path) -> bool:
    """Whether torch.distributed.checkpoint wrote the folder."""
    metadata = folder / ".metadata"
    if not metadata.is_file():
        return False
    with opened(metadata) as fd:
        head = read_at(fd, 0, min(256, metadata.stat().st_size))
    return b"torch.distributed.checkpoint" in head or any(folder.glob("*.distcp"))


def holds_optimizer(folder: Path) -> bool:
    """Whether every tensor of a distributed checkpoint belongs to an optimizer."""
    try:
        value = load_pickle(read_whole(folder / ".metadata", _MAX_METADATA)).value
    except RescaleError:
        return False
    state = value.state if type(value) is Built else None
    names = state.get("state_dict_metadata") if type(state) is dict else None
    if type(names) is not dict or not names:
        return False
    return all(is_optimizer_entry(str(n)) or str(n).startswith("state.") for n in names)


_MAX_CONFIG = 16 << 20
#: Parts of the names that PEFT gives to what it trains.
_PARTS = re.compile(
    r"(^|[._])(lora_|ia3_|vera_|hada_|lokr_|oft_|boft_|hra_|bone_|miss_|vblora|fourierft|shira_"
    r"|adaption_|prompt_embeddings|prompt_encoder)"
)
_EMBEDDING = re.compile(r"(^|[._])(embed\w*|wte|wpe|shared)(\.|$)")


def refuse_bare_adapter(path: Path, tensors: Iterable[TensorInfo]) -> None:
    """Refuse an adapter that does not contain the head.

    Args:
        path: the file of weights.
        tensors: all of its tensors.

    Raises:
        BadCheckpoint: with the line of Python that merges the adapter into its base model.
    """
    matrices = [t.name for t in tensors if len(t.shape) > 1]
    own = [name for name in matrices if _PARTS.search(name)]
    whole = [n for n in matrices if not _PARTS.search(n) and not _EMBEDDING.search(n)]
    if not own or whole:
        return
    config = _config(path.parent)
    base = config.get("base_model_name_or_path")
    raise BadCheckpoint(
        f"{path.name} is a PEFT adapter, and the head is in its base model",
        saw=clip(f"base model {base}" if base else f"only tensors such as {own[0]}", 200),
        fix=_merge(path.parent, config),
    )


def refuse_adapted_head(weight: str, tensors: Iterable[TensorInfo]) -> None:
    """Refuse a head W with an adapter: in W + B A, scaling W alone is not enough.

    Raises:
        BadHead: lists the adapter's tensors.
    """
    layer = weight.removesuffix(".weight")
    if not layer.endswith(".base_layer"):
        return
    root = layer.removesuffix("base_layer")
    added = [t.name for t in tensors if t.name.startswith(root) and _PARTS.search(t.name)]
    if added:
        raise BadHead(
            f"{weight} is only a part of the head: an adapter adds to it",
            saw=clip(", ".join(added)),
            fix="merge the adapter first: model.merge_and_unload(), then save the model",
        )


def _config(folder: Path) -> dict[str, object]:
    path = folder / "adapter_config.json"
    try:
        found = parse_json(read_whole(path, _MAX_CONFIG), path.name)
    except BadInput:
        return {}
    return found if isinstance(found, dict) else {}


def _merge(folder: Path, config: dict[str, object]) -> str:
    """Return the line that merges; for other tasks than text, the user must load the base model."""
    load, first, where = "PeftModel", "base, ", " with base, the base model, loaded"
    if config.get("task_type") == "SEQ_CLS":
        load, first, where = "AutoPeftModelForSequenceClassification", "", ""
    return (
        f"merge it first, in Python{where}: from peft import {load} as A; A.from_pretrained("
        f"{first}{str(folder)!r}).merge_and_unload().save_pretrained('merged'), then name merged"
    )
