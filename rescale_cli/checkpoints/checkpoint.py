"""A checkpoint, opened: its format, the table of its tensors, an adapter's base, files beside it.

An adapter that was trained with the classifier in `modules_to_save` holds the whole head, which
takes the place of the base model's: re-scaling it there is exact. Any other adapter changes a head
(or leaves it alone) that only the merged model has.

Whatever a library reads to run the model (configs, tokenizers, preprocessing, code, licences) and
whatever this tool does not know holds as before. What training wrote about the model as it was does
not: its optimizer and schedule, random states, logs and results, the logits it gave, its other
checkpoints, and a backup of its weights. Training that goes on from them would go on from another
model. Sources: the names that transformers' Trainer, accelerate, DeepSpeed and TensorBoard use.
"""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from rescale_cli.checkpoints import formats
from rescale_cli.checkpoints.foreign import unreadable
from rescale_cli.checkpoints.formats.sharded_folder import (
    WEIGHTS,
    file_format,
    names_in_config,
    read_config,
)
from rescale_cli.checkpoints.models_inside import is_optimizer_entry, refuse_distributed_file
from rescale_cli.core.classes import HeadRows
from rescale_cli.errors import BadCheckpoint, BadHead, BadInput, EnvironmentProblem
from rescale_cli.files.contents import Contents, TensorInfo
from rescale_cli.files.leftovers import MARK
from rescale_cli.files.reading import (
    Stamp,
    opened,
    read_at,
    read_whole,
    refuse_lfs_pointer,
    stamp_of,
)
from rescale_cli.json_text import clip, parse_json

_MAX_CONFIG = 16 << 20
#: Parts of the names that PEFT gives to what it trains.
_PARTS = re.compile(
    r"(^|[._])(lora_|ia3_|vera_|hada_|lokr_|oft_|boft_|hra_|bone_|miss_|vblora|fourierft|shira_"
    r"|adaption_|prompt_embeddings|prompt_encoder)"
)
_EMBEDDING = re.compile(r"(^|[._])(embed\w*|wte|wpe|shared)(\.|$)")


def refuse_bare_adapter(path: Path, tensors: Iterable[TensorInfo]) -> None:
    """Stop at an adapter that does not hold the head.

    Args:
        path: the file of weights.
        tensors: all that it holds.

    Raises:
        BadCheckpoint: with the line of Python that merges adapter and base model.
    """
    matrices = [t.name for t in tensors if len(t.shape) > 1]
    own = [name for name in matrices if _PARTS.search(name)]
    whole = [n for n in matrices if not _PARTS.search(n) and not _EMBEDDING.search(n)]
    if not own or whole:
        return
    config = _config(path.parent)
    base = config.get("base_model_name_or_path")
    raise BadCheckpoint(
        f"{path.name} is a PEFT adapter; the head belongs to its base model, which lies elsewhere",
        saw=clip(f"base model {base}" if base else f"only {own[0]} and its like", 200),
        fix=_merge(path.parent, config),
    )


def refuse_adapted_head(weight: str, tensors: Iterable[TensorInfo]) -> None:
    """Stop at a head to which an adapter adds: W + B A changes less than W when only W grows.

    Raises:
        BadHead: naming the adapter's matrix.
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
    """The line that merges; the class of a text classifier is known, any other is the user's."""
    load, first, where = "PeftModel", "base, ", " with base, the base model, loaded"
    if config.get("task_type") == "SEQ_CLS":
        load, first, where = "AutoPeftModelForSequenceClassification", "", ""
    return (
        f"merge it first, in Python{where}: from peft import {load} as A; A.from_pretrained("
        f"{first}{str(folder)!r}).merge_and_unload().save_pretrained('merged'), then name merged"
    )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one path holds."""

    path: Path
    """As the user gave it."""
    contents: Contents
    stamps: tuple[Stamp, ...] = ()
    """Of its files, when they were read."""

    def refuse_changed(self) -> None:
        """Stop if a file is not the one that was opened, or was written to since.

        Raises:
            EnvironmentProblem: another program is at work on it.
        """
        for file, before in zip(self.contents.files, self.stamps, strict=True):
            if stamp_of(file) != before:
                raise EnvironmentProblem(
                    f"{file} was changed by another program in the meantime",
                    saw="another size or time than when it was read",
                    fix="wait until nothing writes to it, then run the command again",
                )

    @property
    def is_folder(self) -> bool:
        """Whether a patched copy is a folder, too."""
        return self.path.is_dir()

    def tensor(self, name: str) -> TensorInfo:
        """The tensor of that name.

        Raises:
            KeyError: there is none.
        """
        for info in self.contents.tensors:
            if info.name == name:
                return info
        raise KeyError(name)

    @property
    def other_models(self) -> list[str]:
        """What else in the folder holds a model, and is not the one read here."""
        from rescale_cli.checkpoints.models_inside import other_models

        return other_models(self.path, self.contents.files)

    def names_of(self, num_classes: int) -> tuple[str, ...] | None:
        """The class names that the checkpoint carries, in row order, if it has that many."""
        return next((n for n in self.contents.class_names if len(n) == num_classes), None)

    @property
    def tool(self) -> str:
        """What trained it, as it says itself: timm, torchvision, rescale (a run of ours), or ""."""
        config = self.contents.config
        if "arch" in config and "preprocessing" in config:
            return "rescale"
        timm = "architecture" in config and "pretrained_cfg" in config
        return "timm" if timm else self.contents.tool

    def rows(self, num_classes: int, title: str = "") -> HeadRows:
        """The rows of its head, with what it says of their classes."""
        return HeadRows(num_classes, self.names_of(num_classes), self.tool, title)


def all_formats() -> list[ModuleType]:
    """Every format; the folder is the registry."""
    names = [module.name for module in pkgutil.iter_modules(formats.__path__)]
    return [import_module(f"{formats.__name__}.{n}") for n in sorted(names) if n[0] != "_"]


def open_checkpoint(path: Path, accept: frozenset[str] = frozenset()) -> Checkpoint:
    """Read the headers of a checkpoint file or folder; no tensor is loaded, nothing is run.

    Args:
        path: a file of any supported format, a folder, or the index of a sharded folder.
        accept: full names of pickle globals that are let pass, still without being run.

    Raises:
        BadCheckpoint: unknown, damaged, or not a regular file.
        UnsafePickle: a pickle in it calls or names what no checkpoint needs.
    """
    if not os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises where a name is too long)
        with opened(path) as fd:
            head = read_at(fd, 0, min(256, os.fstat(fd).st_size))
        refuse_lfs_pointer(path, head)
    refuse_distributed_file(path)
    for module in all_formats():
        if module.matches(path):
            contents: Contents = module.list_tensors(path, accept)
            refuse_bare_adapter(contents.files[0], contents.tensors)
            if not path.is_dir() and path.name.endswith(".json"):
                path = path.parent
            elif path.is_file() and _is_of_folder(path):
                contents = _with_config(contents, path)
            return Checkpoint(path, contents, tuple(map(stamp_of, contents.files)))
    raise unreadable(path)


def _is_of_folder(path: Path) -> bool:
    """Whether a file is what holds a folder's weights, or such a file re-scaled.

    `apply` writes model.rescaled.safetensors beside model.safetensors; it is the same model.
    """
    return f"{path.name.partition('.')[0]}{path.suffix}" in WEIGHTS


def _with_config(contents: Contents, path: Path) -> Contents:
    """The weights of a Hugging Face or timm folder, named themselves, still have their config."""
    config = read_config(path.parent)
    return replace(
        contents, config=config, class_names=names_in_config(config) + contents.class_names
    )


#: Files and folders of a run of `train` that speak of the head as it was trained.
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
#: Which of the folders beside it training goes on from (DeepSpeed).
_POINTER = "latest"
_CHECKPOINT = re.compile(r"checkpoint-\d+")
#: How `apply --in-place` names the weights that it replaced.
_BACKUP = ".bak"
_TORCH = (".pt", ".pth", ".ckpt", ".bin", ".tar")


def left_behind(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The files and folders beside a model that its re-scaled copy does not get, in order.

    Raises:
        OSError: a folder cannot be listed.
    """
    if not checkpoint.path.is_dir():
        return ()
    ours = checkpoint.tool == "rescale"
    return tuple(_stale(checkpoint.path, frozenset(checkpoint.contents.files), ours))


def _stale(folder: Path, used: frozenset[Path], ours: bool) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry in used or entry.name.startswith(MARK):
            continue
        if _is_named(entry, ours) or (entry.suffix == _BACKUP and entry.with_suffix("") in used):
            yield entry
        elif entry.is_dir() and not entry.is_symlink():
            inner = list(_stale(entry, used, ours=False))
            is_checkpoint = _CHECKPOINT.fullmatch(entry.name) and inner
            yield from [entry] if is_checkpoint or _is_all(entry, inner) else inner
        elif entry.suffix in _TORCH and entry.is_file() and _holds_optimizer(entry):
            yield entry


def _is_named(entry: Path, ours: bool) -> bool:
    """Whether its name is one that training gives; see the patterns above."""
    if _OF_OTHERS.fullmatch(entry.name) or (ours and _OF_OUR_RUN.fullmatch(entry.name)):
        return True
    return entry.name == _POINTER and any(entry.parent.glob("global_step*"))


def _is_all(folder: Path, stale: list[Path]) -> bool:
    return bool(stale) and set(folder.iterdir()) == set(stale)


def _holds_optimizer(file: Path) -> bool:
    """Whether a torch file holds the state of an optimizer, beside a model or alone."""
    try:
        module = file_format(file)
        tensors = module.list_tensors(file).tensors if module is not None else ()
    except BadInput:  # damaged, or refused: it is copied as it is
        return False
    return any(is_optimizer_entry(info.name) for info in tensors)
