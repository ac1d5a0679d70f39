"""The folder of a run: what inspect, sweep-gamma, evaluate and apply take as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli import api
from rescale_cli.core.classes import Classes, RawCounts
from rescale_cli.core.counts import ZeroPolicy
from rescale_cli.errors import BadInput, OutputExists
from rescale_cli.files.leftovers import MARK
from rescale_cli.files.staging import Staging, system_errors, write_new
from rescale_cli.files.text_file import write_text
from rescale_cli.loading.preprocessing_config import to_run
from rescale_cli.patching.record import sidecar_of, undo_file_of
from rescale_cli.sources.count_sources import write_counts
from rescale_cli.sources.run_part import HELD_OUT, describe_part
from rescale_cli.training.heads import HeadKind
from rescale_cli.training.images import TrainingImages
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.state import RunState, read_state, write_state

if TYPE_CHECKING:
    from torch import Tensor

#: The list of the runs of several seeds, beside their folders; see seed_runs.py.
SEEDS = "seeds.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run writes, and what its files are called."""

    path: Path

    @property
    def model(self) -> Path:
        """The weights at the end."""
        return self.path / "model.safetensors"

    @property
    def rescaled(self) -> Path:
        """The same, re-scaled once, where the recipe has a gamma."""
        return self.path / "model.rs.safetensors"

    @property
    def counts(self) -> Path:
        """Training images of each class."""
        return self.path / "counts.json"

    @property
    def config(self) -> Path:
        """Network, classes, preprocessing, head, recipe."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One line of JSON an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        """What the run goes on from."""
        return self.path / "last.ckpt"

    @property
    def val_logits(self) -> Path:
        """Logits of the validation images that --val-split took from the training images."""
        return self.path / "val_logits.npz"

    @property
    def norms(self) -> Path:
        """The row norms at the end, as a picture."""
        return self.path / "norms.svg"

    @property
    def events(self) -> Path:
        """The folder of TensorBoard."""
        return self.path / "tensorboard"

    def prepare(self, *, force: bool, weights: str | None = None) -> None:
        """Make the folder, or take one in which no run has been; nothing in it changes yet.

        Args:
            force: the files of an earlier run may be replaced.
            weights: the checkpoint to begin from, which must not be among them.

        Raises:
            OutputExists: something is there, and may not be replaced.
            EnvironmentProblem: the system refused something.
        """
        with system_errors(f"writing {self.path}"):
            if not self.path.exists() and not self.path.parent.is_dir():
                raise BadInput(
                    f"there is no folder {self.path.parent}", fix=f"mkdir -p {self.path.parent}"
                )
            if self.path.exists() and not self.path.is_dir():
                raise OutputExists(f"{self.path} is no folder", fix="name another: -o RUN")
            self.path.mkdir(exist_ok=True)
            source = Path(weights) if weights else None
            if source and self.path.resolve() in (source.resolve(), source.resolve().parent):
                raise OutputExists(
                    f"{self.path} holds the weights to begin from, and would be replaced",
                    saw=f"--weights {weights}",
                    fix="name another folder: -o RUN",
                )
            there = [entry for entry in self.path.iterdir() if _is_something(entry)]
            if there and not force:
                fix = "--resume to go on with it, --force to train anew, or another folder: -o RUN"
                raise OutputExists(f"{self.path} holds something already", fix=fix)

    def clear(self) -> None:
        """Remove the files of an earlier run, once the new one is known to work; others stay."""
        with system_errors(f"writing {self.path}"):
            told = self.events.glob("events.out.tfevents.*")
            for file in (
                self.model,
                self.rescaled,
                self.metrics,
                self.last,
                self.norms,
                self.val_logits,
                self.path / SEEDS,
                # Of a model that was re-scaled in its place.
                *(of(file) for file in (self.model, self.rescaled) for of in _BESIDE),
                *told,
            ):
                file.unlink(missing_ok=True)

    def describe(self, recipe: Recipe, data: TrainingImages, head: HeadKind) -> None:
        """Write config.json and counts.json, which make the folder a run."""
        names = {"classes": list(data.classes)} if data.named else {}
        config: dict[str, Any] = {
            "arch": recipe.arch,
            "num_classes": len(data.classes),
            **names,
            "preprocessing": to_run(data.preprocessing),
            "head": head.as_json(),
            "data": data.described(),
            **_held_out(recipe, data),
            # As timm says it: where every reader of such folders looks for the head.
            "pretrained_cfg": {"classifier": head.name},
        }
        write_text(self.config, json.dumps(config, indent=2) + "\n", force=True)
        counts = tuple(data.counts.tolist())
        known = Classes(data.classes, None if data.named else tuple(range(len(counts))), "run")
        raw = RawCounts(counts, known, str(self.path))
        write_text(self.counts, json.dumps(write_counts(raw), indent=1) + "\n", force=True)

    def lines(self, epochs: int) -> list[dict[str, Any]]:
        """What metrics.jsonl says of the first epochs; a line that a kill cut short is none."""
        found: list[dict[str, Any]] = []
        for text in self.metrics.read_text("utf-8").splitlines() if self.metrics.is_file() else ():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if len(found) == epochs:
                break
            found.append(line)
        return found

    def write_lines(self, lines: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl anew."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_text(self.metrics, text, force=True)

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Add one to metrics.jsonl."""
        with (
            system_errors(f"writing {self.metrics}"),
            self.metrics.open("a", encoding="utf-8") as f,
        ):
            f.write(json.dumps(line) + "\n")
            f.flush()
            os.fsync(f.fileno())  # as the state is, which says that the line is there

    def read_state(self) -> RunState:
        """See `state.read_state`."""
        return read_state(self.last)

    def write_state(self, state: RunState) -> None:
        """See `state.write_state`."""
        write_state(self.last, state)

    def write_model(self, weights: Mapping[str, Tensor]) -> None:
        """Write the weights, whole or not at all."""
        from safetensors.torch import save

        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        data = save(tensors, metadata={"format": "pt"})
        with system_errors(f"writing {self.model}"), Staging(self.path, replace=True) as staging:
            write_new(staging.aside(self.model), data)
            staging.commit()

    def write_rescaled(self, gamma: float, zero_count: ZeroPolicy = "error") -> None:
        """RS once, after all training (Kim & Kim 2020, Algorithm 1, line 9): a second checkpoint.

        Raises:
            BadHead: a factor is too large for the head's dtype.
        """
        api.apply(
            self.model,
            self.counts,
            gamma,
            output=self.rescaled,
            zero_count=zero_count,
            force=True,
        )


#: What `apply` may leave beside a model.
_BESIDE = (sidecar_of, undo_file_of)


def _held_out(recipe: Recipe, data: TrainingImages) -> dict[str, Any]:
    """What `--data run:RUN` reads the part by that was not trained on, if there is one."""
    if not data.val_split:
        return {}
    samples = len(data.train)
    return {HELD_OUT: describe_part(recipe.data, data.val_split, recipe.seed, samples)}


def _is_something(entry: Path) -> bool:
    """Whether an entry of a folder is more than an empty folder, or a rest of a killed process."""
    empty = entry.is_dir() and not entry.is_symlink() and not any(entry.iterdir())
    return not empty and not entry.name.startswith(MARK)
