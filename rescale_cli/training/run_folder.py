"""The folder of a run, and the state from which the run can be resumed.

Random numbers follow from (seed, epoch, step), so the state holds no random generators.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli import api
from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.core.classes import Classes, RawCounts
from rescale_cli.core.counts import ZeroPolicy
from rescale_cli.data.counts import write_counts
from rescale_cli.data.datasets import HELD_OUT, describe_part
from rescale_cli.errors import BadCheckpoint, BadInput, OutputExists, RunInUse
from rescale_cli.evaluating.run_on_data import versions
from rescale_cli.files.leftovers import MARK, held
from rescale_cli.files.staging import Staging, system_errors, write_new, write_text
from rescale_cli.json_text import clip, parse_json
from rescale_cli.models.networks import HeadKind
from rescale_cli.models.preprocessing_config import to_run
from rescale_cli.models.weights import read_tensors
from rescale_cli.patching.record import sidecar_of, undo_file_of
from rescale_cli.training.images import TrainingImages
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.recipe_toml import options_from

if TYPE_CHECKING:
    from torch import Tensor


KEY = "rescale_cli_run"
VERSION = 1


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run between two steps."""

    recipe: Recipe
    epoch: int
    """Epochs done."""
    step: int
    """Steps done of the next epoch."""
    tensors: Mapping[str, Tensor]
    """`model.NAME`, `optimizer.momentum_buffer.NAME`, `average.NAME`, `progress.sums`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and texts beside the tensors, such as the state of the gradient scaler."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a prefix, with the prefix removed from their names."""
        dot = f"{prefix}."
        return {k.removeprefix(dot): v for k, v in self.tensors.items() if k.startswith(dot)}


def write_state(path: Path, state: RunState) -> None:
    """Write a state atomically: a kill at any time leaves the old file or the new one.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    from safetensors.torch import save

    said = {
        "version": VERSION,
        "epoch": state.epoch,
        "step": state.step,
        "recipe": asdict(state.recipe),
        "facts": dict(state.facts),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
    data = save(tensors, metadata={"format": "pt", KEY: json.dumps(said)})
    with system_errors(f"writing {path}"), Staging(path.parent, replace=True) as staging:
        write_new(staging.aside(path), data)
        staging.commit()


def read_state(path: Path) -> RunState:
    """Read the state that a run left; nothing is unpickled.

    Raises:
        BadInput: the file is missing, damaged, or of another version.
    """
    if not path.is_file():
        raise BadInput(
            f"{path.parent} does not contain a run that can be resumed",
            saw=f"there is no {path.name}",
            fix="name the folder of a run: --resume RUN",
        )
    contents = open_checkpoint(path).contents
    said = parse_json(contents.metadata.get(KEY, "null").encode("utf-8", "replace"), path.name)
    match said:
        case {"version": 1, "epoch": int(epoch), "step": int(step), "recipe": dict(recipe),
              "facts": dict(facts)}:  # fmt: skip
            tensors = read_tensors({info.name: info for info in contents.tensors})
            # Runs of earlier versions trained on all images.
            made = Recipe(**{"val_split": 0.0, **options_from(recipe, path.name)})
            return RunState(made, epoch, step, tensors, facts)
    raise BadCheckpoint(
        f"{path.name} is not a state from which this version can resume a run",
        saw=clip(repr(said), 200),
        fix="train again, in another folder: -o RUN",
    )


def resumed(state: RunState, changes: dict[str, Any]) -> Recipe:
    """The recipe of a resumed run, with the options that may change.

    Raises:
        BadInput: an option is changed that must stay the same.
    """
    fixed = [name for name, value in changes.items()
             if name not in _MAY_CHANGE and value != getattr(state.recipe, name)]  # fmt: skip
    if fixed:
        raise BadInput(
            f"--{fixed[0].replace('_', '-')} cannot change in the middle of a run",
            saw=f"{getattr(state.recipe, fixed[0])!r} then, {changes[fixed[0]]!r} now",
            fix="leave it out, or train again in another folder: -o RUN",
        )
    recipe = replace(state.recipe, **changes)
    if recipe.epochs < state.epoch:
        raise BadInput(
            f"the run has done {state.epoch} epochs already and cannot end after {recipe.epochs}",
            saw=f"--epochs {recipe.epochs}",
            fix=f"--epochs {state.epoch} or more, or train again in another folder: -o RUN",
        )
    return recipe


#: Options that change where and how long a run trains, but not what it computes.
_MAY_CHANGE = frozenset(
    ("data", "val_data", "epochs", "milestones", "gamma", "device", "workers", "compile",
     "channels_last", "tensorboard", "weights")
)  # fmt: skip


#: The list of the runs of several seeds, beside their folders; see seed_runs.py.
SEEDS = "seeds.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run, and the names of its files."""

    path: Path

    @property
    def model(self) -> Path:
        """The weights at the end of the run."""
        return self.path / "model.safetensors"

    @property
    def rescaled(self) -> Path:
        """The same weights, re-scaled once, if the recipe has a gamma."""
        return self.path / "model.rs.safetensors"

    @property
    def counts(self) -> Path:
        """The number of training images of each class."""
        return self.path / "counts.json"

    @property
    def config(self) -> Path:
        """Network, classes, preprocessing, head and data."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One line of JSON for each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        """The state from which the run is resumed."""
        return self.path / "last.ckpt"

    @property
    def val_logits(self) -> Path:
        """Logits of the images that --val-split held out from the training images."""
        return self.path / "val_logits.npz"

    @property
    def norms(self) -> Path:
        """A plot of the row norms at the end of the run."""
        return self.path / "norms.svg"

    @property
    def events(self) -> Path:
        """The folder of the TensorBoard event files."""
        return self.path / "tensorboard"

    @contextmanager
    def held(self, *, create: bool) -> Iterator[None]:
        """Keep other processes from training in the folder while the block runs.

        Args:
            create: whether a missing folder is created; else it is not held.

        Raises:
            RunInUse: another process trains in it.
            OutputExists, BadInput, EnvironmentProblem: it cannot be created.
        """
        if create:
            self._create()
        with ExitStack() as stack:
            if self.path.is_dir():
                note = f"process {os.getpid()} on {platform.node()}"
                with system_errors(f"writing {self.path}"):
                    lock = held(self.path / f"{MARK}run.lock", note)
                    other = stack.enter_context(lock)
                if other is not None:
                    raise RunInUse(
                        f"another process trains in {self.path}",
                        saw=clip(other, 200) or "its lock file is locked",
                        fix="wait until it has ended, or train in another folder: -o RUN",
                    )
            yield

    def _create(self) -> None:
        with system_errors(f"writing {self.path}"):
            if not self.path.exists() and not self.path.parent.is_dir():
                raise BadInput(
                    f"the folder {self.path.parent} does not exist",
                    fix=f"mkdir -p {self.path.parent}",
                )
            if self.path.exists() and not self.path.is_dir():
                raise OutputExists(f"{self.path} is not a folder", fix="name another path: -o RUN")
            self.path.mkdir(exist_ok=True)

    def prepare(self, *, force: bool, weights: str | None = None) -> None:
        """Create the folder, or check that an existing one can be used; nothing in it changes yet.

        Args:
            force: whether the files of an earlier run may be replaced.
            weights: the checkpoint to start from, which must not be in this folder.

        Raises:
            OutputExists: the folder is not empty, and `force` was not given.
            EnvironmentProblem: the folder cannot be created or read.
        """
        self._create()
        with system_errors(f"writing {self.path}"):
            source = Path(weights) if weights else None
            if source and self.path.resolve() in (source.resolve(), source.resolve().parent):
                raise OutputExists(
                    f"{self.path} contains the weights to start from, which would be replaced",
                    saw=f"--weights {weights}",
                    fix="name another folder: -o RUN",
                )
            there = [entry for entry in self.path.iterdir() if _is_something(entry)]
            if there and not force:
                fix = (
                    "--resume to continue its run, --force to replace it, or another folder: -o RUN"
                )
                raise OutputExists(f"{self.path} is not empty", fix=fix)

    def clear(self) -> None:
        """Remove the files of an earlier run; other files stay."""
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
                # Written when a model of the run was re-scaled in place.
                *(of(file) for file in (self.model, self.rescaled) for of in _BESIDE),
                *told,
            ):
                file.unlink(missing_ok=True)

    def describe(
        self, recipe: Recipe, data: TrainingImages, head: HeadKind, digests: Mapping[str, Any]
    ) -> None:
        """Write config.json, which also holds the recipe and the versions, and counts.json."""
        names = {"classes": list(data.classes)} if data.named else {}
        config: dict[str, Any] = {
            "arch": recipe.arch,
            "num_classes": len(data.classes),
            **names,
            "preprocessing": to_run(data.preprocessing),
            "head": head.as_json(),
            "data": data.described(),
            **_held_out(recipe, data),
            # timm's key for the head, which other readers of such folders know as well.
            "pretrained_cfg": {"classifier": head.name},
            "recipe": asdict(recipe),
            "versions": {"python": platform.python_version(), **versions(*_LIBRARIES)},
            **digests,
        }
        write_text(self.config, json.dumps(config, indent=2) + "\n", force=True)
        counts = tuple(data.counts.tolist())
        known = Classes(data.classes, None if data.named else tuple(range(len(counts))), "run")
        raw = RawCounts(counts, known, str(self.path))
        write_text(self.counts, json.dumps(write_counts(raw), indent=1) + "\n", force=True)

    def lines(self, epochs: int) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl for the first epochs, up to one that a kill cut short."""
        found: list[dict[str, Any]] = []
        for text in self.metrics.read_text("utf-8").splitlines() if self.metrics.is_file() else ():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if len(found) == epochs:
                break
            if "many" in line and "val_recalls" not in line:  # of an earlier version: errors
                line |= {k: 1 - line[k] for k in ("many", "medium", "few") if line[k] is not None}
            found.append(line)
        return found

    def write_lines(self, lines: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl with these lines only."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_text(self.metrics, text, force=True)

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with (
            system_errors(f"writing {self.metrics}"),
            self.metrics.open("a", encoding="utf-8") as f,
        ):
            f.write(json.dumps(line) + "\n")
            f.flush()
            os.fsync(f.fileno())  # the state that is written next relies on the line

    def write_model(self, weights: Mapping[str, Tensor]) -> None:
        """Write the weights atomically."""
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


#: The libraries on which the result of a run depends.
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow")

#: Files that `apply` may leave beside a model.
_BESIDE = (sidecar_of, undo_file_of)


def _held_out(recipe: Recipe, data: TrainingImages) -> dict[str, Any]:
    """The description by which `--data run:RUN` finds the held-out images, if there are any."""
    if not data.val_split:
        return {}
    samples = len(data.train)
    return {HELD_OUT: describe_part(recipe.data, data.val_split, recipe.seed, samples)}


def _is_something(entry: Path) -> bool:
    """Whether a folder entry is anything but an empty folder or a file that a kill left behind."""
    empty = entry.is_dir() and not entry.is_symlink() and not any(entry.iterdir())
    return not empty and not entry.name.startswith(MARK)
