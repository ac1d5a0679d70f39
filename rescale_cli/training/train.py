"""Train a network and leave a run folder: from the beginning, or from wherever a run stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rescale_cli.core.alignment import Alignment
from rescale_cli.core.counts import ClassCounts
from rescale_cli.errors import Interrupted
from rescale_cli.loading.devices import pick_device
from rescale_cli.predicting.ranks import is_main
from rescale_cli.signals import last_step, undisturbed
from rescale_cli.training.events import event_writer
from rescale_cli.training.images import TrainingImages, open_training_images
from rescale_cli.training.parallel import joined
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run import Run, Watch
from rescale_cli.training.run_folder import RunFolder
from rescale_cli.training.state import RunState

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Trained:
    """A run that reached its end."""

    folder: RunFolder
    recipe: Recipe
    counts: ClassCounts
    lines: list[dict[str, Any]]
    """Of metrics.jsonl."""
    device: str
    images_per_second: float | None
    """Of training alone, in this process; None where nothing was left to do."""
    alignment: Alignment | None = None
    """How the labels of other validation data were joined with the rows."""
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
        recipe: every choice.
        folder: prepared; see `RunFolder.prepare`.
        state: where to go on from; None to begin.
        download: fetch data that are not there.
        watch: who is told how it goes.
        more: whether the command goes on after this run, so that a signal can still stop it.

    Returns:
        the run; None on any rank of torchrun but 0.

    Raises:
        Interrupted: by a signal; the state is kept, and the error says how to go on.
        BadInput: data, network and recipe do not go together, or the loss is no number any more.
        RescaleError: what the data, the network or the system refuse.
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
        run = Run(recipe, folder, data, device, ranks, watch)
        if state is not None:
            run.load(state)
        try:
            run.go()
        except KeyboardInterrupt:
            run.keep()
            raise Interrupted(
                f"interrupted in epoch {run.epoch + 1} of {recipe.epochs}, after {run.step} steps "
                "of it; the state is kept",
                fix=f"go on: rescale-cli train --resume {folder.path}",
            ) from None
        if not ranks.is_main:
            return None
        with undisturbed() if more else last_step():
            folder.write_model(run.stepper.weights())
            run.write_val_logits()
            if recipe.gamma is not None:
                folder.write_rescaled(recipe.gamma, recipe.zero_count)
            else:
                folder.rescaled.unlink(missing_ok=True)  # of a gamma that was taken back
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
    """Leave the random numbers of the program that calls as they were."""
    import torch

    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        yield
