"""Folders: training state spread over files, and the models inside a folder.

DeepSpeed, FSDP and Megatron keep the weights that training continues from in other files, or split
them between ranks. A patched shard would change nothing, or a part. Each kind is recognised by what
it holds and refused with the command that makes a checkpoint of it.

MLflow, Triton, training runs and archives of experiments keep models in folders of folders. A
checkpoint is told by its content: optimizers, random states and arguments hold no matrix of a
network, and are never proposed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rescale_cli.checkpoints.foreign import foreign_file, foreign_folder, names_of
from rescale_cli.checkpoints.formats.sharded_folder import WEIGHTS, file_format
from rescale_cli.checkpoints.pickle_machine import load_pickle
from rescale_cli.checkpoints.pickle_policy import Built
from rescale_cli.errors import BadCheckpoint, BadInput, NeedsDecision, RescaleError
from rescale_cli.files.leftovers import MARK
from rescale_cli.files.reading import opened, read_at, read_whole

_MAX_METADATA = 256 << 20
#: Classes of tensors of which every rank has a part.
_SHARDED = re.compile(r"torch\.distributed\..*\.(ShardedTensor|DTensor)|.*\.FlatParameter")
_OPTIMIZER = re.compile(
    r"(^|\.)(optim\w*|state\.\d+|exp_avg\w*|momentum_buffer|param_groups)(\.|$)"
)
_FP32 = {"single_partition_of_fp32_groups", "fp32_flat_groups", "base_optimizer_state"}


class TrainingState(BadCheckpoint):
    """The weights of this training state live elsewhere, or in parts; `fix` converts them."""


def is_optimizer_entry(name: str) -> bool:
    """Whether a tensor of this name belongs to an optimizer, not to a network."""
    return _OPTIMIZER.search(name) is not None


def refuse_training_state(value: object, named: Iterable[str], path: Path) -> None:
    """Stop at a file that is one shard of a training state.

    Args:
        value: what its pickle holds.
        named: the globals that the pickle names.
        path: the file.

    Raises:
        TrainingState: with the command that makes a checkpoint of all the shards.
    """
    table = value if type(value) is dict else {}
    inner = table.get("optimizer_state_dict")
    if type(inner) is dict and ("zero_stage" in inner or _FP32 & inner.keys()):
        raise _deepspeed(path, "optimizer state, flattened over all parameters")
    if {"module", "mp_world_size"} <= table.keys() and _is_zero(table, path):
        saw = "the half-precision copy beside the weights that DeepSpeed trains"
        module = table["module"]
        if not module or _is_empty(module):
            saw = "the parameters are empty: every rank has a part of them"
        raise _deepspeed(path, saw)
    if {"args", "checkpoint_version"} <= table.keys() and {"model", "model0"} & table.keys():
        raise megatron(path.parent, path.name)
    flat = [k for k in table if type(k) is str and k.endswith(("flat_param", "_flat_param_0"))]
    sharded = [*flat, *filter(_SHARDED.fullmatch, named)]
    if sharded:
        raise TrainingState(
            f"{path.name} is the FSDP shard of one rank: the model is in parts",
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
    """Whether no tensor of a state dict has an element: ZeRO-3 leaves sizes of 0 behind."""
    values = module.values() if type(module) is dict else ()
    sizes = [v.args[2] for v in values if type(v) is Built and len(v.args) > 2]
    return bool(sizes) and all(type(s) is tuple and 0 in s for s in sizes)


def _deepspeed(path: Path, saw: str) -> TrainingState:
    """The error for a file of DeepSpeed's ZeRO; its folder is the tag, the one above the root."""
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
        f"{path.name} is a part of a DeepSpeed ZeRO checkpoint; its fp32 weights lie in the "
        "*_optim_states.pt files",
        saw=saw,
        fix=f"{lost}cd {shlex.quote(str(root))} && python zero_to_fp32.py . pytorch_model.bin{tag}"
        f"{script}, then name pytorch_model.bin",
    )


def megatron(folder: Path, name: str) -> TrainingState:
    """The error for a Megatron-LM checkpoint, by the folder of one rank."""
    shards = folder.parent if folder.name.startswith("mp_rank_") else folder
    run = shards.parent if re.fullmatch(r"iter_\d+|release", shards.name) else shards
    ranks = len(list(shards.glob("mp_rank_*")))
    return TrainingState(
        f"{name} is the Megatron shard of one rank: the model is in parts",
        saw=f"{ranks} folders mp_rank_* in {shards}" if ranks else str(folder),
        fix="in Megatron-LM: python tools/checkpoint/convert.py --model-type BERT --loader core "
        f"--saver core --load-dir {shlex.quote(str(run))} --save-dir MERGED "
        "--target-tensor-parallel-size 1 --target-pipeline-parallel-size 1, then "
        "torch.save({name: tensor}) of its 'model'",
    )


def refuse_distributed_file(path: Path) -> None:
    """Stop at a file of a folder that torch.distributed.checkpoint wrote.

    Raises:
        TrainingState: with the commands that make one file of the folder.
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
    """Stop at a folder that torch.distributed.checkpoint wrote.

    Raises:
        TrainingState: with the commands that make one file of it.
    """
    if not is_distributed(folder):
        return
    source = shlex.quote(str(folder))
    if holds_optimizer(folder):
        raise TrainingState(
            f"{folder.name} holds the state of an optimizer, in parts, and no model",
            saw=f"{folder / '.metadata'}",
            fix="name the folder of the model, such as pytorch_model_fsdp_0",
        )
    raise TrainingState(
        f"{folder.name} is a distributed checkpoint (DCP, FSDP): the model is in parts",
        saw=", ".join(sorted(f.name for f in folder.glob("*.distcp"))[:5]) or str(folder),
        fix="python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
        f"{source} model.pt (for a checkpoint of accelerate or Trainer also: "
        f"accelerate merge-weights {source} merged), then name model.pt (or merged)",
    )


def is_distributed(folder: Path) -> bool:
    """Whether a folder is a checkpoint of torch.distributed.checkpoint."""
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


_DEPTH = 4
_MOST_ENTRIES = 5_000
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}(\.\w+)")
#: Files of training that hold no model, by the names that Trainer and accelerate give them.
_SIDE = re.compile(
    r"(optimizer|scheduler|lr_scheduler|scaler|rng_state|random_states|training_args)"
)


@dataclass(frozen=True, slots=True)
class Inner:
    """A model in a folder."""

    path: Path
    error: BadInput | None = None
    """Why it cannot be re-scaled as it is; None for a checkpoint that can be named."""


def models_in(folder: Path, depth: int = _DEPTH, left: list[int] | None = None) -> Iterator[Inner]:
    """Every model in a folder and the folders in it, in natural order: files first.

    A folder with weights of its own, such as `checkpoint-500`, counts as one model.

    Args:
        folder: where to look.
        depth: how many levels of folders to enter.
        left: how many entries may still be looked at; a data set by mistake ends soon.
    """
    left = left or [_MOST_ENTRIES]
    entries = sorted((e for e in folder.iterdir() if _is_visible(e)), key=_natural)
    for entry in [e for e in entries if e.is_file()]:
        left[0] -= 1
        if left[0] < 0:
            return
        found = _model_of(entry)
        if found is not None:
            yield found
    for entry in [e for e in entries if e.is_dir() and not e.is_symlink()]:
        other = foreign_folder(entry)
        if any((entry / name).is_file() for name in WEIGHTS):
            yield Inner(entry)
        elif is_distributed(entry):
            if not holds_optimizer(entry):
                yield Inner(entry, _error_of(entry))
        elif other is not None:
            yield Inner(entry, other.refusal(entry))
        elif depth > 1:
            yield from models_in(entry, depth - 1, left)


def _is_visible(entry: Path) -> bool:
    beside = entry.name.endswith((".bak", ".rescale.json", ".rescale.undo"))
    # A repository in the Hugging Face cache: the snapshots are links to these.
    beside = beside or (entry.name == "blobs" and entry.with_name("snapshots").is_dir())
    return not beside and not entry.name.startswith((".", MARK))


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that puts checkpoint-500 before checkpoint-1000."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d{1,18})", path.name)]


def _error_of(folder: Path) -> BadInput | None:
    try:
        refuse_distributed(folder)
    except TrainingState as error:
        return error
    return None


def _model_of(file: Path) -> Inner | None:
    """A file as a model; None if it holds no matrix of a network."""
    if file.name in WEIGHTS and file.suffix == ".json":
        return Inner(file)
    shard = _SHARD.fullmatch(file.name)
    if shard and (file.parent / f"{shard[1]}{shard[2]}.index.json").exists():
        return None  # the index stands for its shards
    try:
        module = file_format(file)
        if module is not None:
            tensors = module.list_tensors(file).tensors
            kept = (t for t in tensors if len(t.shape) > 1 and not is_optimizer_entry(t.name))
            return Inner(file) if any(kept) else None
        other = foreign_file(file)
    except TrainingState as error:
        return Inner(file, error)
    except BadInput:  # damaged, or refused: whoever opens it says why
        return None if _SIDE.match(file.name) else Inner(file)
    if other is not None:
        return Inner(file, other.refusal(file)) if other.is_model else None
    return Inner(file) if file.suffix in _SUFFIXES else None


def choose_model(folder: Path) -> Path:
    """The one checkpoint file of a folder that follows no convention.

    Raises:
        NeedsDecision: it holds several models, or holds them in folders of their own.
        BadCheckpoint: it holds a model that cannot be re-scaled as it is, or none.
    """
    refuse_distributed(folder)
    found = list(models_in(folder))
    ready = [inner.path for inner in found if inner.error is None]
    files = [path for path in ready if path.parent == folder and path.is_file()]
    if len(files) == 1:
        return files[0]
    if ready:
        raise _which(folder, ready)
    other = foreign_folder(folder)
    if other is not None:
        raise other.refusal(folder)
    errors = [inner.error for inner in found if inner.error is not None]
    # DeepSpeed, FSDP and Megatron first: beside their shards there may be anything.
    for error in sorted(errors, key=lambda error: not isinstance(error, TrainingState)):
        raise error
    names = sorted(entry.name for entry in folder.iterdir())
    raise BadCheckpoint(
        f"{folder} holds no weights",
        saw=names_of([Path(name) for name in names]) or "an empty folder",
        fix="name a checkpoint file, or a folder with model.safetensors or pytorch_model.bin",
    )


def _which(folder: Path, ready: list[Path]) -> NeedsDecision:
    kind, last = "a folder", False
    if (folder / "MLmodel").is_file():
        kind = "an MLflow model"
    elif any(folder.glob("config.pbtxt")) or any(folder.glob("*/config.pbtxt")):
        kind, last = "a Triton model repository", True
    elif any(re.fullmatch(r"checkpoint-\d+", path.name) for path in ready):
        kind, last = "the folder of a training run", True
    many = f"with {len(ready)} models in it" if len(ready) > 1 else "with one model in it"
    return NeedsDecision(
        f"{folder} is {kind} {many}; name the one to re-scale",
        saw=names_of([path.relative_to(folder) for path in ready]),
        fix=f"{'name one, such as' if len(ready) > 1 else 'name it:'} {ready[-1 if last else 0]}",
    )


def refuse_several(folder: Path, name: str) -> None:
    """Stop where accelerate saved two models: model.safetensors and model_1.safetensors.

    Raises:
        NeedsDecision: with the names of all of them.
    """
    stem, _, rest = name.partition(".")
    pattern = re.compile(rf"{re.escape(stem)}_\d+\.{re.escape(rest)}")
    more = sorted((f for f in folder.iterdir() if pattern.fullmatch(f.name)), key=_natural)
    if more:
        raise _which(folder, [folder / name, *more])


def other_models(path: Path, used: tuple[Path, ...]) -> list[str]:
    """What else in a folder holds a model, as paths below it.

    Args:
        path: the checkpoint: a folder; or the file that holds a folder's weights, beside which only
            the other conventional names count.
        used: the files that were opened.
    """
    if path.is_dir():
        # Where an index led to the shards, it is the first conventional name in the folder.
        index = next((path / n for n in WEIGHTS if (path / n).exists()), None)
        found = [i.path for i in models_in(path) if i.path not in (*used, index)]
        return [str(other.relative_to(path)) for other in found]
    if path.name not in WEIGHTS:
        return []
    return [n for n in WEIGHTS if n != path.name and (path.parent / n).exists()]
