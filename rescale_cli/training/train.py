"""Train a network and leave a run folder, unless its model was changed after training."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.core.alignment import Alignment
from rescale_cli.core.counts import ClassCounts
from rescale_cli.errors import AlreadyRescaled, BadCheckpoint, Interrupted, NotProven, RescaleError
from rescale_cli.evaluating.ranks import is_main, joined
from rescale_cli.foreign_code import library, pick_device
from rescale_cli.models.weights import read_tensors
from rescale_cli.patching.find_records import find_records
from rescale_cli.signals import last_step, undisturbed
from rescale_cli.training.images import TrainingImages, open_training_images
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run import Run, Watch
from rescale_cli.training.run_folder import RunFolder, RunState, read_state
from rescale_cli.training.wvn import project_rows_

if TYPE_CHECKING:
    import torch


def event_writer(folder: Path, epochs: int) -> Callable[[dict[str, Any]], None]:
    """A function that writes a line of metrics.jsonl as TensorBoard events.

    Args:
        folder: where the event files are written.
        epochs: epochs done before; events that an interrupted run wrote for later ones are purged.

    Raises:
        EnvironmentProblem: the library is not installed.
    """
    library("tensorboard", "tensorboard")
    writer = library("torch.utils.tensorboard", "tensorboard").SummaryWriter(
        str(folder), purge_step=epochs + 1 if epochs else None
    )

    def write(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, int | float) and name != "epoch":
                writer.add_scalar(name, value, line["epoch"])
        for row, norm in enumerate(line["row_norms"]):
            writer.add_scalar(f"row_norms/{row:03}", norm, line["epoch"])
        writer.flush()

    return write


def read_resumable(folder: RunFolder) -> RunState:
    """The state from which the run of a folder is resumed.

    Raises:
        AlreadyRescaled: the model in the folder was re-scaled, or its head is not the one that
            training ended with.
        BadInput: there is no state, see `read_state`.
    """
    model = _model_of(folder)
    if model is not None and _has_record(model):
        raise _refused(folder, f"{folder.model.name} has the record of a re-scaling")
    state = read_state(folder.last)
    if model is not None and _other_head(model, state):
        raise _refused(
            folder, f"the head in {folder.model.name} is not the one that training ended with"
        )
    return state


def _model_of(folder: RunFolder) -> Checkpoint | None:
    """The model that the run ended with; None if there is none, or it cannot be read."""
    try:
        return open_checkpoint(folder.model) if folder.model.is_file() else None
    except BadCheckpoint:
        return None  # nothing is lost: the run will write it again


def _has_record(model: Checkpoint) -> bool:
    try:
        return bool(find_records(model)[0])
    except NotProven:  # a damaged record is a record, too
        return True


def _other_head(model: Checkpoint, state: RunState) -> bool:
    """Whether the run is complete and the head of the model differs from that of the state.

    While a run is extended with more epochs, the model is still that of its earlier end.
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
        # With WVN the rows of an averaged head are normalised again before they are written.
        averaged = state.recipe.wvn and state.recipe.ema and value.shape == expected.shape
        if not (averaged and torch.equal(value, project_rows_(expected.clone()))):
            return True
    return False


def _refused(folder: RunFolder, saw: str) -> RescaleError:
    fix = "resume in the folder that training left: rescale-cli train --resume RUN"
    if folder.last.is_file():
        aside = _free(folder.path.with_name(f"{folder.path.name}-model.safetensors"))
        move = shlex.join(["mv", str(folder.model), str(aside)])
        resume = shlex.join(["rescale-cli", "train", "--resume", str(folder.path)])
        fix = f"move the model away, then resume: {move} && {resume}"
    what = f"the model in {folder.path} was changed after training, and resuming would replace it"
    return AlreadyRescaled(what, saw=saw, fix=fix)


def _free(path: Path) -> Path:
    """The path, or a similar one that does not exist yet."""
    names = (path, *(path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, 1000)))
    return next((name for name in names if not name.exists()), path)


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that is complete."""

    folder: RunFolder
    recipe: Recipe
    counts: ClassCounts
    lines: list[dict[str, Any]]
    """The lines of metrics.jsonl, one for each epoch."""
    device: str
    images_per_second: float | None
    """Of training alone, in this process; None where nothing was left to do."""
    alignment: Alignment | None = None
    """How the labels of separate validation data were matched with the rows."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """See `TrainingImages.described`."""
    sweep_data: str = ""
    """See `TrainingImages.sweep_data`."""


def train(
    recipe: Recipe,
    folder: RunFolder,
    state: RunState | None = None,
    *,
    download: bool = False,
    watch: Watch = Watch(),  # noqa: B008 - it does not change
    more: bool = False,
) -> Trained | None:
    """Train a network and leave a run folder.

    Args:
        recipe: every choice of the run.
        folder: prepared; see `RunFolder.prepare`.
        state: the state to resume from; None for a new run.
        download: fetch data that are missing.
        watch: called as the run makes progress.
        more: whether other runs follow, so that a signal must still be able to stop the command.

    Returns:
        the run; None on every rank of torchrun except 0.

    Raises:
        Interrupted: a signal arrived; the state is kept, and the error says how to resume.
        BadInput: data, network and recipe do not fit together, or the loss is NaN or infinite.
        RescaleError: any other problem with the data, the network or the system.
    """
    watch = watch if is_main() else Watch()
    device = pick_device(recipe.device, watch.notes)
    with ExitStack() as held:
        ranks = held.enter_context(joined(device))
        held.enter_context(_own_randomness(device))

        def opened() -> TrainingImages:
            return open_training_images(recipe, download=download, notes=watch.notes)

        data = ranks.first_main(opened) if download else opened()
        if recipe.tensorboard and ranks.is_main:
            watch = _with_events(watch, folder, state.epoch if state else 0)
        run = Run(recipe, folder, data, device, ranks, watch, state)
        try:
            run.go()
        except KeyboardInterrupt:
            if not run.begun:
                raise
            run.keep()
            raise Interrupted(
                f"interrupted in epoch {run.epoch + 1} of {recipe.epochs}, after {run.step} steps "
                "of that epoch; the state is kept",
                fix=f"resume the run: rescale-cli train --resume {folder.path}",
            ) from None
        if not ranks.is_main:
            return None
        with undisturbed() if more else last_step():
            folder.write_model(run.stepper.weights())
            run.write_val_logits()
            if recipe.gamma is not None:
                folder.write_rescaled(recipe.gamma, recipe.zero_count)
            else:
                folder.rescaled.unlink(missing_ok=True)  # from a gamma that was removed
        return Trained(
            folder, recipe, run.counts, run.lines, str(device), run.images_per_second,
            run.data.alignment, run.data.described(), run.data.sweep_data,
        )  # fmt: skip


def _with_events(watch: Watch, folder: RunFolder, epochs: int) -> Watch:
    write = event_writer(folder.events, epochs)

    def epoch(line: dict[str, Any], of: int) -> None:
        write(line)
        watch.epoch(line, of)

    return replace(watch, epoch=epoch)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Restore the state of torch's random generators afterwards, for the calling program."""
    import torch

    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        yield
