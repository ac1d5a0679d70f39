"""What `train --seeds` tells: which seed is at work, and all of them beside their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any

from rescale_cli.reports.grid import Grid
from rescale_cli.reports.progress import Notes
from rescale_cli.reports.screen import Whole, quiet, say, talk
from rescale_cli.reports.train_report import empty_result, sweep_line, watching
from rescale_cli.training.run import Watch
from rescale_cli.training.run_folder import SEEDS
from rescale_cli.training.seed_runs import SeedRun, SeedRuns

#: Columns of the table, and their titles.
_TITLES = {
    "training_error": "training error",
    "error": "error",
    "balanced_accuracy": "balanced accuracy",
    "many": "many",
    "medium": "medium",
    "few": "few",
}


def seeds_result(series: SeedRuns) -> dict[str, Any]:
    """The JSON result of `train --seeds`; see schemas/train.json."""
    return {
        **empty_result(),
        "run": str(series.path),
        "recipe": asdict(series.recipe),
        "seeds": [run.as_json() for run in series.runs],
        **series.summary(),
    }


def show_seeds(series: SeedRuns) -> None:
    """The runs for a person: each, the mean, its interval, and what to type next."""
    found = series.summary()
    names = [name for name in _TITLES if name in found["mean"]]
    table = Grid(["seed", *(f"{_TITLES[name]}>" for name in names)])
    for run in series.runs:
        metrics = run.metrics or {}
        table.add(str(run.seed), *(_percent(metrics.get(name)) for name in names))
    table.add("mean", *(_percent(found["mean"][name]) for name in names))
    if len(series.runs) > 1:
        for end, title in enumerate(("95 % from", "95 % to")):
            ends = (found["interval"][name] for name in names)
            table.add(title, *(_percent(both and both[end]) for both in ends))
    epochs = "1 epoch" if series.recipe.epochs == 1 else f"{series.recipe.epochs} epochs"
    say(f"{series.path}: {len(series.runs)} seeds, {epochs} each", table)
    if "error" in found["mean"]:
        say("on the validation data; many, medium and few are mean recalls of their classes")
    if len(series.runs) > 1:
        say(f"95 %: Student's t-interval of the mean, {len(series.runs) - 1} degrees of freedom")
    say(f"written: {SEEDS}, and a run for each seed in {series.path}/seed-N")
    if line := sweep_line(series.runs[0].folder, series.recipe, ""):
        say(Whole(f"choose a gamma for one run, here the first: {line}"))


def watching_seeds(
    series: SeedRuns, notes: Notes
) -> Callable[[SeedRun, int], AbstractContextManager[Watch]]:
    """Say which seed is at work; then tell how its run goes, as for one run."""

    @contextmanager
    def watch(run: SeedRun, number: int) -> Iterator[Watch]:
        if not quiet.get():
            of = f"{number + 1} of {len(series.runs)}"
            talk("seed", f"{run.seed} ({of}), in {run.folder.path}")
        with watching(series.recipe, notes) as found:
            yield found

    return watch


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.2f} %"
