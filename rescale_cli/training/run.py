"""A training run: its network, the steps and epochs that are left, and its state between two steps.

Everything that is not in the state follows from the recipe and from (seed, epoch, step). So a run
that was killed and resumed ends with the very bits of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.core.counts import ClassCounts
from rescale_cli.data.logits_file import write_logits
from rescale_cli.errors import BadInput, RescaleError, UsageError
from rescale_cli.evaluating.ranks import Ranks
from rescale_cli.evaluating.run_on_data import of_predictions
from rescale_cli.models import networks, timm_models
from rescale_cli.models.networks import HeadKind, build_of, head_name
from rescale_cli.models.weights import Build, choose, differences, read_tensors
from rescale_cli.patching.find_records import identity_of
from rescale_cli.signals import undisturbed
from rescale_cli.training.feed import make_feed
from rescale_cli.training.images import TrainingImages, Validation
from rescale_cli.training.losses import class_weights
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run_folder import RunFolder, RunState, write_state
from rescale_cli.training.samplers import Batches, epoch_order, seed_of
from rescale_cli.training.schedules import learning_rate
from rescale_cli.training.step import Stepper
from rescale_cli.training.wvn import check_rows

if TYPE_CHECKING:
    import torch
    from torch import nn


def build_network(recipe: Recipe, num_classes: int, channels: int) -> tuple[nn.Module, HeadKind]:
    """Build the network of a recipe, with the head that the recipe asks for, on the CPU in float32.

    Args:
        recipe: its arch, head_bias, loss, weights and seed are read.
        num_classes: C.
        channels: channels of the images.

    Raises:
        UsageError: there is no such network.
        BadInput: the network has no head, or --weights does not fit it.
    """
    import torch

    torch.manual_seed(recipe.seed)
    network = _build(recipe)(num_classes, channels).float()
    kind = "cosine" if recipe.cosine_head else "linear"
    name = head_name(network, num_classes, recipe.arch)
    HeadKind(name, kind, recipe.head_bias).give_to(network)
    layer: Any = network.get_submodule(name)
    if recipe.wvn and not layer.weight.any():  # as torchvision's transformers begin
        layer.reset_parameters()
    bias = getattr(layer, "bias", None) is not None
    if recipe.weights:
        _begin_from(network, Path(recipe.weights), name)
    return network.train(), HeadKind(name, kind, bias)


def _build(recipe: Recipe) -> Build:
    source, _, name = recipe.arch.partition(":")
    if source in ("rescale", "torchvision") and name:
        # For torchvision the variant is the auxiliary heads, which training has no loss for.
        return build_of(recipe.arch, source == "rescale" and recipe.head_bias)
    if source == "timm" and name:
        return timm_models.build_of(name, {})
    if source == "python" and name:
        return lambda num_classes, _: networks.build(name, num_classes)
    raise UsageError(
        "this network cannot be trained",
        saw=f"--arch {recipe.arch}",
        fix="--arch rescale:NAME, torchvision:NAME, timm:NAME or python:module:callable",
    )


def _begin_from(network: nn.Module, path: Path, head: str) -> None:
    """Copy every weight except those of the head from a checkpoint."""
    own = {
        name: tuple(value.shape)
        for name, value in network.state_dict().items()
        if not name.startswith(f"{head}.")
    }
    chosen = choose(open_checkpoint(path).contents.tensors, own)
    wrong = [text for text in differences(own, chosen) if "not of this network" not in text]
    if wrong:
        raise BadInput(
            f"{path.name} does not hold the weights of this network",
            saw="; ".join(wrong),
            fix="name a checkpoint of the same network: --weights FILE",
        )
    there = {name: chosen.infos[name] for name in own if name in chosen.infos}
    network.load_state_dict(read_tensors(there), strict=False)


#: Seconds after which a state is also written in the middle of an epoch.
KEEP_EVERY = 600.0
#: Steps between two checks of the loss, each of which waits for the device.
_LOOK = 100


@dataclass(frozen=True, slots=True)
class Watch:
    """Functions that are called as a run makes progress."""

    images: Callable[[int, int, float], None] = lambda done, total, per_second: None
    """Called after each step: images done, images of the whole run, images per second."""
    epoch: Callable[[dict[str, Any], int], None] = lambda line, epochs: None
    """Called after each epoch: its line of metrics.jsonl, and the number of epochs of the run."""
    notes: Callable[[str], None] = lambda text: None
    """Called with what the user should know."""
    begun: Callable[[], None] = lambda: None
    """Called once the first step of a new run has succeeded, before anything is written."""


class Run:
    """A training run of which `epoch` epochs, and `step` steps of the next one, are done."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        data: TrainingImages,
        device: torch.device,
        ranks: Ranks,
        watch: Watch,
    ) -> None:
        import torch

        self.recipe, self.folder, self.data = recipe, folder, data
        self.device, self.ranks, self.watch = device, ranks, watch
        names = data.classes if data.named else None
        self.counts = ClassCounts.of(data.counts, names, data.train.source, recipe.zero_count)
        network, self.head = build_network(recipe, len(data.classes), data.preprocessing.channels)
        counts = torch.from_numpy(self.counts.values.copy())
        self.stepper = Stepper(network, self.head, recipe, counts, device, ranks)
        self.feed = make_feed(data, recipe, device)
        self.validation = None
        if data.validation is not None:
            self.validation = Validation(
                data.validation, data.preprocessing, self.counts.groups(), device, recipe.workers,
                ranks,
            )  # fmt: skip
        self.batches = Batches(len(self._order(0)), recipe.batch_size, ranks.world)
        self.epoch = self.step = 0
        #: Sum of the loss over images, and number of correct images, of this epoch; on the device.
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.lines: list[dict[str, Any]] = []
        self._images, self._seconds, self._kept = 0, 0.0, time.monotonic()
        self._resumed = False
        self.begun = False
        """Whether the folder holds this run, so that it can be resumed."""

    def _order(self, epoch: int) -> NDArray[Any]:
        return epoch_order(self.recipe.sampler, self.data.labels, self.recipe.seed, epoch)

    def load(self, state: RunState) -> None:
        """Continue from a saved state.

        Raises:
            BadInput: the state belongs to other data or to another network.
        """
        counts = state.facts.get("counts")
        if counts != self.data.counts.tolist():
            raise BadInput(
                "the training images are not those that the run began with",
                saw=f"{sum(counts or ())} images then, {len(self.data.labels)} images now",
                fix="restore the data, or train again in another folder: -o RUN",
            )
        self.stepper.load(state)
        self.epoch, self.step = state.epoch, state.step
        if self.ranks.is_main:  # the sums are of all ranks
            self.sums.copy_(state.tensors["progress.sums"])
        self.lines = self.folder.lines(state.epoch)
        self._resumed = True

    def keep(self) -> None:
        """Write the current state. Rank 0 does, and has all of it except the other ranks' sums.

        Their sums are estimated from its own, because they only serve for reporting.
        """
        if not self.ranks.is_main:
            return
        tensors, facts = self.stepper.state()
        tensors["progress.sums"] = self.sums * self.ranks.world if self.step else self.sums
        facts["counts"] = self.data.counts.tolist()
        write_state(self.folder.last, RunState(self.recipe, self.epoch, self.step, tensors, facts))
        self._kept = time.monotonic()

    def go(self) -> None:
        """Take all steps and epochs that are left.

        A new run writes nothing before its first step has succeeded; what is in its folder stays.
        """
        self._try()
        if self._resumed:
            self._begin()
        while self.epoch < self.recipe.epochs:
            self._steps()
            self._end_epoch()
            self.keep()

    def _begin(self) -> None:
        """Take the folder: whatever stops the run from here on, it can be resumed."""
        with undisturbed():
            self.begun = True
            if not self.ranks.is_main:
                return
            if not self._resumed:
                self.watch.begun()
                self.folder.clear()
            self.keep()
            self.folder.describe(self.recipe, self.data, self.head)
            self.folder.write_lines(self.lines)

    def _try(self) -> None:
        """Check that the network accepts the images, before hours are spent."""
        c = len(self.data.classes)
        x, _ = next(iter(self.feed.epoch(0, self._order(0), self.batches, self.ranks.rank, 0)))
        self.stepper.tried(x, c)
        if self.validation is not None:
            self.stepper.tried(self.validation.first(), c)

    def _steps(self) -> None:
        """Take the steps that are left of this epoch."""
        import torch

        recipe, batches, rank = self.recipe, self.batches, self.ranks.rank
        weights = class_weights(recipe.loss, self.counts.values, self.epoch, recipe.drw_epoch)
        on_device = None if weights is None else torch.from_numpy(weights).to(self.device)
        stream = self.feed.epoch(self.epoch, self._order(self.epoch), batches, rank, self.step)
        begun = time.perf_counter()
        for step, (x, y) in enumerate(stream, self.step):
            # A signal waits until the step ends, because there is no state in the middle of one.
            with undisturbed():
                torch.manual_seed(seed_of(recipe.seed, self.epoch, step, rank))  # for dropout
                lr = learning_rate(recipe, self.epoch * batches.steps + step, batches.steps)
                share = batches.weight(step, rank)
                loss, hits = self.stepper.take(x, y, lr, on_device, share)
                size = batches.size_of(step)
                self.sums += torch.stack([loss.double() * (size / self.ranks.world), hits.double()])
                self.step = step + 1
            self._images += size
            self._seconds += time.perf_counter() - begun
            if not self.begun:
                self._begin()
            begun = time.perf_counter()
            self._watch_steps()

    def _watch_steps(self) -> None:
        done = self.epoch * self.batches.total + self.step * self.batches.size
        total = self.recipe.epochs * self.batches.total
        self.watch.images(min(done, total), total, self._images / self._seconds)
        if self.step % _LOOK == 0:
            self._refuse_nan(float(self.ranks.total(self.sums.clone())[0]))
        if time.monotonic() - self._kept > KEEP_EVERY:
            self.keep()

    def _refuse_nan(self, loss: float) -> None:
        if math.isfinite(loss):
            return
        raise BadInput(
            f"the loss is {loss} in epoch {self.epoch + 1}: training has diverged",
            saw=f"learning rate {self.recipe.lr:g}, --amp {self.recipe.amp}",
            fix=f"train again with a smaller --lr {self.recipe.lr / 10:g}, with --warmup-epochs 5, "
            "or with --clip-norm 1",
        )

    def _end_epoch(self) -> None:
        """Check the loss, validate, and write the line of the epoch."""
        sums = self.ranks.total(self.sums.clone()).tolist()
        self._refuse_nan(sums[0])
        weights = self.stepper.weights()
        rows = weights[f"{self.head.name}.weight"].detach().flatten(1)
        if self.recipe.wvn:
            check_rows(rows)
        line: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "lr": learning_rate(
                self.recipe, (self.epoch + 1) * self.batches.steps - 1, self.batches.steps
            ),
            "loss": sums[0] / self.batches.total,
            "error": 1 - sums[1] / self.batches.total,
        }
        if self.validation is not None:
            line |= self._validated(self.validation, weights)
        line["row_norms"] = [round(norm, 6) for norm in rows.double().norm(dim=1).tolist()]
        line["images_per_second"] = round(self._images / self._seconds, 1) if self._images else None
        with undisturbed():  # a state written after the epoch needs its line to be there
            self.lines.append(line)
            if self.ranks.is_main:
                self.folder.add_line(line)
            self.epoch, self.step = self.epoch + 1, 0
            self.sums.zero_()
        self.watch.epoch(line, self.recipe.epochs)

    def _validated(
        self, validation: Validation, weights: dict[str, torch.Tensor]
    ) -> dict[str, float | None]:
        try:
            return validation.errors(self.stepper.network, weights, self.stepper.layout)
        except RescaleError:  # an image cannot be read: do not lose the steps of the epoch
            self.keep()
            raise

    def write_val_logits(self) -> None:
        """Write the logits of the images that --val-split held out, for `sweep-gamma --logits`.

        The weights must be in the folder already, because the logits record their hash.
        """
        if self.validation is not None and self.data.val_split:
            stepper = self.stepper
            found = self.validation.predictions(stepper.network, stepper.weights(), stepper.layout)
            own, prepared = identity_of(self.folder.model), self.data.preprocessing
            prepared = replace(prepared, source=self.folder.config.name)
            known = of_predictions(found, own, self.recipe.arch, prepared)
            write_logits(self.folder.val_logits, replace(found, provenance=known), force=True)

    @property
    def images_per_second(self) -> float | None:
        """Training speed in this process, without validation; None if no step was left to take."""
        return self._images / self._seconds if self._images else None
