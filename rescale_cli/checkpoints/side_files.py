"""The files beside a model: which of them still hold once its head is re-scaled.

Whatever a library reads to run the model (configs, tokenizers, preprocessing, code, licences) and
whatever this tool does not know holds as before. What training wrote about the model as it was does
not: its optimizer and schedule, random states, logs and results, the logits it gave, its other
checkpoints, and a backup of its weights. Training that goes on from them would go on from another
model. Sources: the names that transformers' Trainer, accelerate, DeepSpeed and TensorBoard use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.checkpoints.training_state import is_optimizer_entry
from rescale_cli.errors import BadInput
from rescale_cli.files.leftovers import MARK
from rescale_cli.formats.sharded_folder import file_format

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
