"""A training run: its network, the steps and epochs that are left, and its state between two steps.

Everything that is not in the state follows from the recipe and from (seed, epoch, step). So a run
that was killed and resumed ends with the very bits of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rescale_cli.core.counts import ClassCounts
from rescale_cli.data.logits_file import write_logits
from rescale_cli.errors import BadInput, RescaleError
from rescale_cli.evaluating.ranks import Ranks
from rescale_cli.evaluating.run_on_data import of_predictions
from rescale_cli.patching.head_identity import identity_of
from rescale_cli.signals import undisturbed
from rescale_cli.training.build_network import build_network, weights_digest
from rescale_cli.training.feed import make_feed
from rescale_cli.training.images import TrainingImages
from rescale_cli.training.losses import class_weights
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run_folder import RunFolder, RunState, write_state
from rescale_cli.training.samplers import Batches, epoch_order, seed_of
from rescale_cli.training.schedules import learning_rate
from rescale_cli.training.step import Stepper
from rescale_cli.training.validation import Validation
from rescale_cli.training.wvn import check_rows

if TYPE_CHECKING:
    import torch


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
        state: RunState | None = None,
    ) -> None:
        import torch

        self.recipe, self.folder, self.data = recipe, folder, data
        self.device, self.ranks, self.watch = device, ranks, watch
        names = data.classes if data.named else None
        self.counts = ClassCounts.of(data.counts, names, data.train.source, recipe.zero_count)
        # A resumed run has all weights in its state; the file of --weights may have moved.
        begin = recipe if state is None else replace(recipe, weights="")
        c = len(data.classes)
        network, self.head = build_network(begin, c, data.preprocessing.channels, watch.notes)
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
        self._since = time.monotonic()
        self._resumed = state is not None
        self._estimated = False
        """Whether `sums` began with an estimate, after an interruption of several ranks."""
        #: What data and weights the run began with, for the state and config.json.
        self.digests: dict[str, Any] = {}
        if state is not None:
            self._load(state)
        elif ranks.is_main:
            self.digests = {"data_sha256": data.digest(), "weights_sha256": weights_digest(recipe)}
        self.begun = False
        """Whether the folder holds this run, so that it can be resumed."""

    def _order(self, epoch: int) -> NDArray[Any]:
        return epoch_order(self.recipe.sampler, self.data.labels, self.recipe.seed, epoch)

    def _load(self, state: RunState) -> None:
        """Continue from a saved state.

        Raises:
            BadInput: the state belongs to other data or to another network.
        """
        counts, now = state.facts.get("counts"), self.data.counts.tolist()
        saw = f"{sum(counts or ())} images then, {len(self.data.labels)} images now"
        self.digests = {key: state.facts.get(key) for key in ("data_sha256", "weights_sha256")}
        began = self.digests["data_sha256"]  # earlier versions kept only the counts
        if counts == now and began and self.ranks.is_main and began != self.data.digest():
            saw, counts = "as many of each class, but other pixels, labels, names or sizes", None
        if counts != now:
            raise BadInput(
                "the training images are not those that the run began with",
                saw=saw,
                fix="restore the data, or train again in another folder: -o RUN",
            )
        moved = self.recipe.weights != state.recipe.weights
        if moved and weights_digest(self.recipe) != self.digests["weights_sha256"]:
            raise BadInput(
                f"{self.recipe.weights} does not hold the weights that the run began with",
                saw=f"the run began with {state.recipe.weights or 'random weights'}",
                fix="leave out --weights: a resumed run does not need it",
            )
        self.stepper.load(state)
        self.epoch, self.step = state.epoch, state.step
        self._estimated = bool(state.facts.get("estimated"))
        if self.ranks.is_main:  # the sums are of all ranks
            self.sums.copy_(state.tensors["progress.sums"])
        self.lines = self.folder.lines(state.epoch)

    def keep(self) -> None:
        """Write the current state. Rank 0 does, and has all of it except the other ranks' sums.

        Their sums are estimated from its own, and the line of the epoch will say so.
        """
        if not self.ranks.is_main:
            return
        tensors, facts = self.stepper.state()
        tensors["progress.sums"] = self.sums * self.ranks.world if self.step else self.sums
        facts["estimated"] = self._estimated or (self.step > 0 and self.ranks.world > 1)
        facts |= {"counts": self.data.counts.tolist(), **self.digests}
        write_state(self.folder.last, RunState(self.recipe, self.epoch, self.step, tensors, facts))
        self._kept = time.monotonic()

    def go(self) -> None:
        """Take all steps and epochs that are left.

        A new run writes nothing before its first step has succeeded; what is in its folder stays.
        """
        self._try()
        self._since = time.monotonic()
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
            self.folder.describe(self.recipe, self.data, self.head, self.digests)
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

    def _refuse_nan(self, loss: float, of: str = "") -> None:
        if math.isfinite(loss):
            return
        raise BadInput(
            f"the {of}loss is {loss} in epoch {self.epoch + 1}: training has diverged",
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
            check_rows(rows, "train with a smaller --lr, with --warmup-epochs 5, or with --no-wvn")
        line: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "lr": learning_rate(
                self.recipe, (self.epoch + 1) * self.batches.steps - 1, self.batches.steps
            ),
            "loss": sums[0] / self.batches.total,
            "error": 1 - sums[1] / self.batches.total,
        }
        if self._estimated:
            line["estimated"] = True
        if self.validation is not None:
            line |= self._validated(self.validation, weights)
            self._refuse_nan(
                math.nan if line["val_loss"] is None else line["val_loss"], "validation "
            )
        line["row_norms"] = [round(norm, 6) for norm in rows.double().norm(dim=1).tolist()]
        line["images_per_second"] = round(self._images / self._seconds, 1) if self._images else None
        line["seconds"], self._since = round(time.monotonic() - self._since, 3), time.monotonic()
        with undisturbed():  # a state written after the epoch needs its line to be there
            self.lines.append(line)
            if self.ranks.is_main:
                self.folder.add_line(line)
            self.epoch, self.step, self._estimated = self.epoch + 1, 0, False
            self.sums.zero_()
        self.watch.epoch(line, self.recipe.epochs)

    def _validated(
        self, validation: Validation, weights: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
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
