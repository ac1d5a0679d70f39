"""The bundled real example: a small long-tailed classifier, and what re-scaling does for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rescale_cli import api
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import EnvironmentProblem
from rescale_cli.evaluating.evaluation import DataChoice
from rescale_cli.evaluating.scoring import Terms
from rescale_cli.evaluating.side_by_side import Evaluation, Watch, side_by_side
from rescale_cli.files.output_folder import copy_folder
from rescale_cli.files.staging import Staging, refuse_existing, system_errors
from rescale_cli.loading.libraries import need_torch
from rescale_cli.patching.plan import CountsChoice
from rescale_cli.sweeping.sweep_result import Sweep, sweep
from rescale_cli.sweeping.trial import Trial, try_on
from rescale_cli.sweeping.wanted import Wanted

#: The files of the example. Nothing else that lies in its folder is copied.
EXAMPLE = (
    "LICENSE", "README.md", "config.json", "counts.json", "model.safetensors", "test.npz",
    "val.npz", "val_logits.npz",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Demo:
    """What the demonstration did and found."""

    model: Path
    counts: Path
    validation: Path
    """Images that the strength was chosen on."""
    test: Path
    """Other images, that both models were measured on."""
    inspected: api.Inspected
    trial: Trial
    swept: Sweep
    applied: api.Applied
    rescaled: Path
    terms: Terms
    evaluation: Evaluation


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


def run_demo(folder: Path, watch: Watch) -> Demo:
    """Copy the example, inspect it, choose a strength, apply it, and compare on other images.

    Args:
        folder: made new.
        watch: who hears how it goes.

    Raises:
        OutputExists: the folder is there already.
    """
    need_torch()
    with system_errors(f"writing {folder}"):
        refuse_existing(folder, replace=False, folder=True)
        with Staging(folder.parent, replace=False) as staging:
            place = bundled()
            others = [entry for entry in place.iterdir() if entry.name not in EXAMPLE]
            copy_folder(place, staging.aside(folder), others)
            staging.commit()
    model, counts = folder / "model.safetensors", folder / "counts.json"
    validation, test = folder / "val.npz", folder / "test.npz"
    inspected = api.inspect(model, counts)
    chosen = CountsChoice(api.as_raw_counts(counts))
    with watch.bar(model.name) as progress:
        data = DataChoice(f"npz:{validation}")
        trial = try_on(model, chosen, data, progress=progress, notes=watch.notes)
    if trial is None:
        raise EnvironmentProblem("the demonstration is for one process", fix="leave out torchrun")
    swept = sweep(trial.predictions, trial.head, trial.counts, [Adjustment()], Wanted())
    applied = api.apply(model, counts, swept.best.choice.gamma)
    assert applied.patched is not None
    rescaled, terms, data = applied.patched.output, Terms(chosen), DataChoice(f"npz:{test}")
    base = model, data
    evaluation = side_by_side([(rescaled, data)], terms, base, replicates=1000, watch=watch)
    assert evaluation is not None
    return Demo(
        model, counts, validation, test, inspected, trial, swept, applied, rescaled, terms,
        evaluation,
    )  # fmt: skip
