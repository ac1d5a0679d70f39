"""Tell the files of a folder apart: the model, other models, and the state of its training.

MLflow, Triton, training runs and archives of experiments keep models in nested folders. A
checkpoint is recognized by its content: files of optimizers, random states and arguments contain no
matrix of a network, and are never proposed.

A re-scaled copy of a folder contains every file that a library reads to run the model (configs,
tokenizers, preprocessing, code, licenses) and every unknown file. It does not contain what training
wrote about the model before re-scaling: optimizer and schedule, random states, logs, results and
logits, other checkpoints, and backups of the weights. Training that resumed from them would not
match the re-scaled model. Sources: the names that transformers' Trainer, accelerate, DeepSpeed and
TensorBoard use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rescale_cli.checkpoints.foreign import foreign_file, foreign_folder, names_of
from rescale_cli.checkpoints.formats import file_format
from rescale_cli.checkpoints.partial_models import (
    TrainingState,
    holds_optimizer,
    is_distributed,
    is_optimizer_entry,
    refuse_distributed,
)
from rescale_cli.errors import BadCheckpoint, BadInput, NeedsDecision
from rescale_cli.files.folders import leads_home
from rescale_cli.files.leftovers import MARK

#: The weights of a folder are in the first of these files, in the order of transformers.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


def refuse_link_out(folder: Path, file: Path) -> None:
    """Refuse a link that leads out of a folder; links within the Hugging Face cache are allowed.

    Raises:
        BadCheckpoint: the file is in another place.
    """
    if not leads_home(file, folder):
        raise BadCheckpoint(
            f"{file.name} is a link that leaves its folder",
            saw=f"it leads to {file.resolve()}",
            fix="copy the file itself into the folder",
        )


def weights_of(folder: Path) -> Path:
    """Return the file with a folder's weights, or the index of its shards.

    Raises:
        BadCheckpoint: the folder contains no weights, or none that can be re-scaled.
        NeedsDecision: it contains several models, and no convention selects one.
    """
    for name in WEIGHTS:
        if (folder / name).exists():
            refuse_several(folder, name)
            return folder / name
    return choose_model(folder)


_DEPTH = 4
_MOST_ENTRIES = 5_000
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}(\.\w+)")
#: Files of training that contain no model, by their names in Trainer and accelerate.
_SIDE = re.compile(
    r"(optimizer|scheduler|lr_scheduler|scaler|rng_state|random_states|training_args)"
)


@dataclass(frozen=True, slots=True)
class Inner:
    """A model in a folder."""

    path: Path
    error: BadInput | None = None
    """Why it cannot be re-scaled; None for a checkpoint that can."""


def models_in(folder: Path, depth: int = _DEPTH, left: list[int] | None = None) -> Iterator[Inner]:
    """Yield every model in a folder and its subfolders: files first, in natural order.

    A subfolder with its own weights, such as `checkpoint-500`, counts as one model.

    Args:
        folder: the folder to search.
        depth: the number of levels of folders to search.
        left: the number of entries that may still be examined, in case the folder is a data set.
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
    # In a repository of the Hugging Face cache, the snapshots are links to the blobs.
    beside = beside or (entry.name == "blobs" and entry.with_name("snapshots").is_dir())
    return not beside and not entry.name.startswith((".", MARK))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts checkpoint-500 before checkpoint-1000."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d{1,18})", path.name)]


def _error_of(folder: Path) -> BadInput | None:
    try:
        refuse_distributed(folder)
    except TrainingState as error:
        return error
    return None


def _model_of(file: Path) -> Inner | None:
    """Return a file as a model; None if it contains no matrix of a network."""
    if file.name in WEIGHTS and file.suffix == ".json":
        return Inner(file)
    shard = _SHARD.fullmatch(file.name)
    if shard and (file.parent / f"{shard[1]}{shard[2]}.index.json").exists():
        return None  # the index represents its shards
    try:
        module = file_format(file)
        if module is not None:
            tensors = module.list_tensors(file).tensors
            kept = (t for t in tensors if len(t.shape) > 1 and not is_optimizer_entry(t.name))
            return Inner(file) if any(kept) else None
        other = foreign_file(file)
    except TrainingState as error:
        return Inner(file, error)
    except BadInput:  # damaged or refused; opening it reports why
        return None if _SIDE.match(file.name) else Inner(file)
    if other is not None:
        return Inner(file, other.refusal(file)) if other.is_model else None
    return Inner(file) if file.suffix in _SUFFIXES else None


def choose_model(folder: Path) -> Path:
    """Return the only checkpoint in a folder without conventional names: a file or a subfolder.

    Raises:
        NeedsDecision: the folder contains several models.
        BadCheckpoint: it contains no model, or none that can be re-scaled.
    """
    refuse_distributed(folder)
    found = list(models_in(folder))
    ready = [inner.path for inner in found if inner.error is None]
    files = [path for path in ready if path.parent == folder and path.is_file()]
    if len(files) == 1 or len(ready) == 1:
        return (files or ready)[0]
    if ready:
        raise _several(folder, ready)
    other = foreign_folder(folder)
    if other is not None:
        raise other.refusal(folder)
    errors = [inner.error for inner in found if inner.error is not None]
    if errors:
        # Report shards of DeepSpeed, FSDP and Megatron first: any other file may be beside them.
        raise min(errors, key=lambda error: not isinstance(error, TrainingState))
    names = sorted(entry.name for entry in folder.iterdir())
    raise BadCheckpoint(
        f"{folder} contains no weights",
        saw=names_of([Path(name) for name in names]) or "the folder is empty",
        fix="name a checkpoint file, or a folder with model.safetensors or pytorch_model.bin",
    )


def _several(folder: Path, ready: list[Path]) -> NeedsDecision:
    kind, last = "a folder", False
    if (folder / "MLmodel").is_file():
        kind = "an MLflow model"
    elif any(folder.glob("config.pbtxt")) or any(folder.glob("*/config.pbtxt")):
        kind, last = "a Triton model repository", True
    elif any(re.fullmatch(r"checkpoint-\d+", path.name) for path in ready):
        kind, last = "the folder of a training run", True
    return NeedsDecision(
        f"{folder} is {kind} that contains {len(ready)} models",
        saw=names_of([path.relative_to(folder) for path in ready]),
        fix=f"name one of them, such as {ready[-1 if last else 0]}",
    )


def refuse_several(folder: Path, name: str) -> None:
    """Refuse a folder in which accelerate saved several models, such as model_1.safetensors.

    Raises:
        NeedsDecision: lists all of them.
    """
    stem, _, rest = name.partition(".")
    pattern = re.compile(rf"{re.escape(stem)}_\d+\.{re.escape(rest)}")
    more = sorted((f for f in folder.iterdir() if pattern.fullmatch(f.name)), key=_natural)
    if more:
        raise _several(folder, [folder / name, *more])


def other_models(folder: Path, used: tuple[Path, ...]) -> list[str]:
    """Return the other models in the folder of a checkpoint, as paths below it.

    Args:
        folder: the folder.
        used: the files that were opened.
    """
    # The index of the shards, if there is one, is the first conventional name in the folder.
    index = next((folder / n for n in WEIGHTS if (folder / n).exists()), None)
    found = [i.path for i in models_in(folder) if i.path not in (*used, index)]
    return [str(other.relative_to(folder)) for other in found]


#: Files and folders of a run of `train` that describe the head before re-scaling.
_OF_OUR_RUN = re.compile(
    r"last\.ckpt|model\.rs\.safetensors|norms\.svg|metrics\.jsonl|val_logits\.npz|tensorboard"
)
_OF_OTHERS = re.compile(
    r"(optimizer|scheduler|lr_scheduler|scaler|sampler)(_\d+)?\.(pt|pth|bin)"
    r"|rng_state(_\d+)?\.pth|random_states_\d+\.pkl|dl_state_dict(_\d+)?\.bin"
    r"|custom_checkpoint_\d+\.pkl|trainer_state\.json|training_args\.(bin|json)"
    r"|(all|train|eval|test|predict)_results\.json"
    r"|events\.out\.tfevents\..*|global_step\d+|zero_to_fp32\.py|optimizer_\d+"
)
#: The file that names the folder from which DeepSpeed resumes.
_POINTER = "latest"
_CHECKPOINT = re.compile(r"checkpoint-\d+")
#: The suffix of the weights that `apply --in-place` replaced.
_BACKUP = ".bak"
_TORCH = (".pt", ".pth", ".ckpt", ".bin", ".tar")


def left_behind(folder: Path, used: tuple[Path, ...], *, run: bool) -> Iterator[Path]:
    """Yield the files and folders that are not copied with a re-scaled model, in order.

    Args:
        folder: the folder of the model.
        used: the files that contain its tensors.
        run: whether it is a run of `train`.

    Raises:
        OSError: a folder cannot be listed.
    """
    for entry in sorted(folder.iterdir()):
        if entry in used or entry.name.startswith(MARK):
            continue
        if _is_named(entry, run) or (entry.suffix == _BACKUP and entry.with_suffix("") in used):
            yield entry
        elif entry.is_dir() and not entry.is_symlink():
            inner = list(left_behind(entry, used, run=False))
            whole = _CHECKPOINT.fullmatch(entry.name) or set(entry.iterdir()) == set(inner)
            yield from [entry] if inner and whole else inner
        elif entry.suffix in _TORCH and entry.is_file() and _holds_optimizer(entry):
            yield entry


def _is_named(entry: Path, run: bool) -> bool:
    """Whether its name matches a pattern above, for files that training writes."""
    if _OF_OTHERS.fullmatch(entry.name) or (run and _OF_OUR_RUN.fullmatch(entry.name)):
        return True
    return entry.name == _POINTER and any(entry.parent.glob("global_step*"))


def _holds_optimizer(file: Path) -> bool:
    """Whether a torch file contains the state of an optimizer, with or without a model."""
    try:
        module = file_format(file)
        tensors = module.list_tensors(file).tensors if module is not None else ()
    except BadInput:  # damaged or refused; it is copied unchanged
        return False
    return any(is_optimizer_entry(info.name) for info in tensors)
