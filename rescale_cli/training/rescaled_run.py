"""A run whose model was changed after training does not go on: it would overwrite that model."""

from __future__ import annotations

import shlex
from pathlib import Path

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.errors import AlreadyRescaled, BadCheckpoint, NotProven, RescaleError
from rescale_cli.loading.state_tensors import read_tensors
from rescale_cli.patching.find_records import find_records
from rescale_cli.training.run_folder import RunFolder
from rescale_cli.training.state import RunState
from rescale_cli.training.wvn import project_rows_


def read_resumable(folder: RunFolder) -> RunState:
    """The state that a run goes on from.

    Raises:
        AlreadyRescaled: the model in the folder was re-scaled, or has another head than the run
            that ended there.
        BadInput: there is no state, see `RunFolder.read_state`.
    """
    model = _model_of(folder)
    if model is not None and _has_record(model):
        raise _refused(folder, f"{folder.model.name} has the record of a re-scaling")
    state = folder.read_state()
    if model is not None and _other_head(model, state):
        raise _refused(
            folder, f"the head in {folder.model.name} is not the one that training ended with"
        )
    return state


def _model_of(folder: RunFolder) -> Checkpoint | None:
    """The model at the end of the run; None if there is none that can be read."""
    try:
        return open_checkpoint(folder.model) if folder.model.is_file() else None
    except BadCheckpoint:
        return None  # there is nothing to lose, and the run writes it anew


def _has_record(model: Checkpoint) -> bool:
    try:
        return bool(find_records(model)[0])
    except NotProven:  # damaged, but a record
        return True


def _other_head(model: Checkpoint, state: RunState) -> bool:
    """Whether the run is at its end, and the model has not the head that the state has.

    While a run goes on for more epochs, the model is still that of its first end.
    """
    import torch

    if state.epoch < state.recipe.epochs or state.step:
        return False
    kept = state.part("average") or state.part("model")
    infos = {info.name: info for info in model.contents.tensors}
    if kept.keys() != infos.keys():
        return True
    matrices = [name for name, value in kept.items() if value.ndim > 1]
    for name, value in read_tensors({name: infos[name] for name in matrices}).items():
        expected = kept[name]
        if torch.equal(value, expected):
            continue
        # Under WVN the rows of an averaged head are made 1 long again before they are written.
        averaged = state.recipe.wvn and state.recipe.ema and value.shape == expected.shape
        if not (averaged and torch.equal(value, project_rows_(expected.clone()))):
            return True
    return False


def _refused(folder: RunFolder, saw: str) -> RescaleError:
    fix = "go on in the folder that training left: rescale-cli train --resume RUN"
    if folder.last.is_file():
        aside = _free(folder.path.with_name(f"{folder.path.name}-model.safetensors"))
        move = shlex.join(["mv", str(folder.model), str(aside)])
        resume = shlex.join(["rescale-cli", "train", "--resume", str(folder.path)])
        fix = f"move the model away, and go on without it: {move} && {resume}"
    what = f"{folder.path} holds a model that was changed after training, and would be replaced"
    return AlreadyRescaled(what, saw=saw, fix=fix)


def _free(path: Path) -> Path:
    """The path, or one like it under which nothing lies."""
    names = (path, *(path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, 1000)))
    return next((name for name in names if not name.exists()), path)
