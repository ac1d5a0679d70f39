"""What a run needs to go on where it was: tensors and a little JSON in one safetensors file.

What is drawn at random follows from (seed, epoch, step), so no random state is among it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.errors import BadCheckpoint, BadInput
from rescale_cli.files.staging import Staging, system_errors, write_new
from rescale_cli.json_text import clip, parse_json
from rescale_cli.loading.state_tensors import read_tensors
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.recipe_toml import options_from

if TYPE_CHECKING:
    from torch import Tensor

KEY = "rescale_cli_run"
VERSION = 1


@dataclass(frozen=True, slots=True)
class RunState:
    """A moment between two steps of a run."""

    recipe: Recipe
    epoch: int
    """Epochs done."""
    step: int
    """Steps done of the next one."""
    tensors: Mapping[str, Tensor]
    """`model.NAME`, `optimizer.momentum_buffer.NAME`, `average.NAME`, `progress.losses`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the parts want to know: numbers and texts."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a prefix, without it."""
        dot = f"{prefix}."
        return {k.removeprefix(dot): v for k, v in self.tensors.items() if k.startswith(dot)}


def write_state(path: Path, state: RunState) -> None:
    """Write it aside, sync it, and give it its name: a kill at any time leaves the old or the new.

    Raises:
        EnvironmentProblem: the system refused something.
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
    """The state that a run left; nothing is unpickled.

    Raises:
        BadInput: there is none, it is damaged, or of another version.
    """
    if not path.is_file():
        raise BadInput(
            f"there is no run to resume in {path.parent}",
            saw=f"no {path.name}",
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
        f"{path.name} is no state of a run that this version can go on from",
        saw=clip(repr(said), 200),
        fix="train again, in another folder: -o RUN",
    )


def resumed(state: RunState, changes: dict[str, Any]) -> Recipe:
    """The recipe of a run, with what may change when it goes on.

    Raises:
        BadInput: a change after which it would be another run.
    """
    fixed = [name for name, value in changes.items()
             if name not in _MAY_CHANGE and value != getattr(state.recipe, name)]  # fmt: skip
    if fixed:
        raise BadInput(
            f"--{fixed[0].replace('_', '-')} cannot change in the middle of a run",
            saw=f"{getattr(state.recipe, fixed[0])!r} at its beginning, {changes[fixed[0]]!r} now",
            fix="leave it out, or train anew in another folder: -o RUN",
        )
    recipe = replace(state.recipe, **changes)
    if recipe.epochs < state.epoch:
        raise BadInput(
            f"the run has {state.epoch} epochs behind it, and cannot end after {recipe.epochs}",
            saw=f"--epochs {recipe.epochs}",
            fix=f"--epochs {state.epoch} or more, or train anew in another folder: -o RUN",
        )
    return recipe


#: What says where and how long, not what.
_MAY_CHANGE = frozenset(
    ("data", "val_data", "epochs", "milestones", "gamma", "device", "workers", "compile",
     "channels_last", "tensorboard")
)  # fmt: skip
