"""The bundled real example: a small long-tailed classifier, and what re-scaling does for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rescale_cli import api
from rescale_cli.errors import EnvironmentProblem
from rescale_cli.floats import Float64
from rescale_cli.metrics import Labels, recalls
from rescale_cli.output_folder import copy_folder
from rescale_cli.staging import Staging, refuse_existing, system_errors

#: Strengths that are tried, 0 to 1.
_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demonstration did and found."""

    folder: Path
    inspected: api.Inspected
    applied: api.Applied
    before: Float64
    """Recall of each class, (C,), on the half of the images that gamma was not chosen on."""
    after: Float64
    images: int
    """How many images that half has."""


def bundled() -> Path:
    """Where the example lies: in the installed package, or in the checkout.

    Raises:
        EnvironmentProblem: it was left out of this installation.
    """
    here = Path(__file__).parent
    for place in (here / "_examples" / "fashion_lt", here.parent / "examples" / "fashion_lt"):
        if (place / "model.safetensors").is_file():
            return place
    raise EnvironmentProblem(
        "the bundled example is missing from this installation",
        saw=str(here),
        fix="pip install --force-reinstall rescale-cli",
    )


def fresh_folder(name: str = "rescale-demo") -> Path:
    """A folder name in the working directory that is not taken yet."""
    numbers = (f"{name}-{n}" if n > 1 else name for n in range(1, 10_000))
    return next(Path(n) for n in numbers if not Path(n).exists())


def run_demo(folder: Path) -> Demo:
    """Copy the example, inspect it, choose gamma on one half of its images, apply, and compare.

    Only logits that were computed before are read: numpy is enough.

    Args:
        folder: made new.

    Raises:
        OutputExists: the folder is there already.
    """
    with system_errors(f"writing {folder}"):
        refuse_existing(folder, replace=False, folder=True)
        with Staging(folder.parent, replace=False) as staging:
            copy_folder(bundled(), staging.aside(folder), [])
            staging.commit()
    model, counts = folder / "model.safetensors", folder / "counts.json"
    inspected = api.inspect(model, counts)
    with np.load(folder / "val_logits.npz") as file:
        logits, labels = file["logits"].astype(np.float64), file["labels"].astype(np.int64)
    chosen_on = np.arange(len(labels)) % 2 == 0
    scores = [
        np.nanmean(_recalls(model, counts, gamma, logits[chosen_on], labels[chosen_on]))
        for gamma in _GRID
    ]
    gamma = float(_GRID[int(np.argmax(scores))])
    applied = api.apply(model, counts, gamma)
    rest = ~chosen_on
    before, after = (
        _recalls(model, counts, strength, logits[rest], labels[rest]) for strength in (0.0, gamma)
    )
    return Demo(folder, inspected, applied, before, after, int(rest.sum()))


def _recalls(model: Path, counts: Path, gamma: float, logits: Float64, labels: Labels) -> Float64:
    plan = api.apply(model, counts, gamma, dry_run=True).plan
    head = plan.heads[0]
    adjusted = head.update.on_logits(logits, head.before.bias)
    return recalls(adjusted.argmax(axis=1), labels, logits.shape[1])
