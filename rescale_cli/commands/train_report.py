"""What `train` prints: its epochs, the result of a run or of several seeds, and the plot."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import numpy as np

from rescale_cli.commands.console import Whole, quiet, say, talk
from rescale_cli.commands.progress import Notes, duration, progress_bar
from rescale_cli.commands.tables import Grid
from rescale_cli.core.counts import spearman
from rescale_cli.files.staging import write_text
from rescale_cli.foreign_code import library
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run import Watch
from rescale_cli.training.run_folder import SEEDS, RunFolder
from rescale_cli.training.seed_runs import SeedRun, SeedRuns
from rescale_cli.training.train import Trained

#: The most classes that are drawn; if there are more, evenly spaced ones.
MOST = 1000


def can_draw() -> bool:
    """Whether the libraries of the extra `plot` are installed."""
    # Altair builds itself from its docstrings, which python -OO removes.
    here = all(find_spec(name) is not None for name in ("altair", "vl_convert"))
    return here and sys.flags.optimize < 2


def write_norms(trained: Trained) -> None:
    """Draw the row norms of a run's head and its counts into norms.svg, in its folder.

    Raises:
        EnvironmentProblem: the extra `plot` is missing, or the file cannot be written.
    """
    counts, names = trained.counts.values, trained.counts.names
    norms = np.array(trained.lines[-1]["row_norms"])
    order = np.argsort(-counts, kind="stable")
    shown = np.unique(np.linspace(1, len(order), MOST).round().astype(int))
    rows = [
        {
            "rank": rank,
            "class": names[row] if names else f"class {row}",
            "norm": float(norms[row]),
            "count": int(counts[row]),
        }
        for rank, row in zip(shown.tolist(), order[shown - 1].tolist(), strict=True)
    ]
    write_text(trained.folder.norms, norms_svg(rows), force=True)


def norms_svg(rows: list[dict[str, object]]) -> str:
    """Row norms as bars, and training samples as points on a logarithmic axis, as SVG.

    Args:
        rows: one for each class, the most frequent first: rank from 1, class, norm, count.
    """
    alt, convert = library("altair", "plot"), library("vl_convert", "plot")
    title, red = "class, the most frequent first", "#e45756"
    if len(rows) <= 40:  # names of more cannot be read
        across = alt.X("class:N", sort=None, title=title, axis=alt.Axis(labelAngle=-40))
    else:
        across = alt.X("rank:Q", title=title, scale=alt.Scale(domain=[0, len(rows) + 1]))
    base = alt.Chart(alt.Data(values=rows)).encode(x=across)
    bars = base.mark_bar(color="#9ecae9").encode(y=alt.Y("norm:Q", title="row norm |w_i|"))
    counts = alt.Y("count:Q", title="training samples n_i", scale=alt.Scale(type="log"))
    points = base.mark_line(color=red, point={"color": red}).encode(
        y=counts.axis(titleColor=red, labelColor=red)
    )
    chart = alt.layer(bars, points).resolve_scale(y="independent").properties(width=480, height=240)
    svg: str = convert.vegalite_to_svg(chart.to_json())
    return svg


def empty_result() -> dict[str, Any]:
    """The JSON result if nothing was trained."""
    keys = ("run", "model", "rescaled", "counts", "classes", "alignment", "data", "device",
            "images_per_second", "final", "sweep_gamma")  # fmt: skip
    return {**dict.fromkeys(keys), "epochs": [], "recipe": {}, **NO_SEEDS}


#: The fields that only `--seeds` fills in.
NO_SEEDS: dict[str, Any] = {"seeds": [], "mean": None, "interval": None}


def train_result(trained: Trained) -> dict[str, Any]:
    """The JSON result; see schemas/train.json."""
    folder, counts = trained.folder, trained.counts
    return {
        "run": str(folder.path),
        "model": str(folder.model),
        "rescaled": str(folder.rescaled) if trained.recipe.gamma is not None else None,
        "counts": counts.values.tolist(),
        "classes": list(counts.names) if counts.names else None,
        "alignment": trained.alignment.as_json() if trained.alignment else None,
        "data": dict(trained.data),
        "device": trained.device,
        "images_per_second": trained.images_per_second,
        "epochs": trained.lines,
        "final": final_of(trained),
        "sweep_gamma": sweep_line(folder, trained.recipe, trained.sweep_data),
        "recipe": asdict(trained.recipe),
        **NO_SEEDS,
    }


def final_of(trained: Trained) -> dict[str, Any] | None:
    """What a table of results needs of a run; shares are 0 to 1. None without any epoch."""
    if not trained.lines:
        return None
    last, val = trained.lines[-1], trained.data.get("validation") or {}
    validated = [line for line in trained.lines if line.get("val_error") is not None]
    best = min(validated, key=lambda line: line["val_error"], default=None)
    balanced = last.get("val_balanced_error")
    return {
        "samples": val.get("samples"), "source": val.get("source"), "split": val.get("split"),
        "training_error": last["error"], "error": last.get("val_error"),
        "top_5": last.get("val_top_5"),
        "balanced_accuracy": None if balanced is None else 1 - balanced,
        **{name: last.get(name) for name in ("many", "medium", "few")},
        "per_class": last.get("val_recalls"), "last_epoch": last["epoch"],
        "best_epoch": best and best["epoch"], "best_error": best and best["val_error"],
        "seed": trained.recipe.seed,
        "seconds": round(sum(line.get("seconds", 0) for line in trained.lines), 3),
    }  # fmt: skip


def show_trained(trained: Trained) -> None:
    """Print the result of a run: its errors, the row norms, and the next commands."""
    folder, recipe = trained.folder, trained.recipe
    if not trained.lines:
        say(
            f"{folder.path}: the run was complete already, and its {folder.metrics.name} is missing"
        )
        return
    last = trained.lines[-1]
    speed = trained.images_per_second
    rate = f", {speed:,.0f} images/s" if speed else ""
    say(f"{folder.path}: {_epochs(recipe)} on {trained.device}{rate}")
    if trained.alignment is not None:
        say(trained.alignment.evidence)
    say(f"training error {_percent(last['error'])}, loss {last['loss']:.4f}")
    if validation := trained.data.get("validation"):
        split = f" (split {validation['split']})" if validation["split"] else ""
        say(f"validated on {validation['source']}{split}, {validation['samples']:,} samples")
    _show_validation(last)
    if final := final_of(trained):
        best = f", best epoch {final['best_epoch']} ({_percent(final['best_error'])} error)"
        say(
            f"seed {final['seed']}, last epoch {final['last_epoch']}"
            f"{best if final['best_epoch'] else ''}, {duration(final['seconds'])}"
        )
    say(_norms(trained))
    say(f"written: {', '.join(_written(folder, recipe))}")
    if recipe.corrected and not recipe.cosine_head:
        say("no sweep-gamma: the loss corrects the class frequencies already")
    if line := sweep_line(folder, recipe, trained.sweep_data or "DATA"):
        known = trained.sweep_data or folder.val_logits.is_file()
        other = "" if known else " on validation data that the run was not trained on"
        say(Whole(f"choose a gamma{other}: {line}"))
        on = f"run:{folder.path}" if folder.val_logits.is_file() else trained.sweep_data
        if on:
            line = compare_line(folder, recipe, on)
            say(Whole(f"after `apply`, compare the two models: {line}"))


def _show_validation(last: Mapping[str, Any]) -> None:
    """The errors and recalls on the validation images, if there are any."""
    if "val_error" not in last:
        return
    named = [f"{name} {_percent(last[name])}" for name in ("many", "medium", "few")]
    say(
        f"validation error {_percent(last['val_error'])}, balanced error "
        f"{_percent(last['val_balanced_error'])}, top-5 accuracy "
        f"{_percent(last.get('val_top_5'))}; recalls by class frequency: {', '.join(named)}"
    )
    recalls = [_percent(share) for share in last.get("val_recalls", ())]
    if 0 < len(recalls) <= 20:
        say(f"recall of each class: {', '.join(recalls)}")


def _written(folder: RunFolder, recipe: Recipe) -> list[str]:
    """The files of the run, and what is special about one."""
    files = (folder.model, folder.rescaled, folder.counts, folder.config, folder.metrics,
             folder.norms, folder.val_logits, folder.last, folder.events)  # fmt: skip
    about = {folder.rescaled: f" (gamma {recipe.gamma})", folder.last: " (to resume the run)"}
    return [f"{file.name}{about.get(file, '')}" for file in files if file.exists()]


def compare_line(folder: RunFolder, recipe: Recipe, data: str) -> str:
    """The command that compares a run with its re-scaled copy on validation data."""
    words = ["rescale-cli", "evaluate", f"{folder.path}.rescaled", "--against", str(folder.path)]
    words += ["--counts", str(folder.counts), "--data", data]
    return shlex.join(words + (["--arch", recipe.arch] if _own_code(recipe) else []))


def _own_code(recipe: Recipe) -> bool:
    return recipe.arch.startswith("python:")


def sweep_line(folder: RunFolder, recipe: Recipe, data: str) -> str | None:
    """The command that chooses a gamma, on the held-out images or on other data.

    Args:
        folder: the folder of the run.
        recipe: the recipe of the run.
        data: the value of --data if no training images were held out.

    Returns:
        None if a gamma would change nothing or correct the class frequencies a second time, or if
        `data` is needed and empty.
    """
    held_out = folder.val_logits.is_file()
    if recipe.cosine_head or recipe.corrected or not (held_out or data):
        return None
    words = ["rescale-cli", "sweep-gamma", str(folder.path), "--counts", str(folder.counts)]
    words += ["--logits", str(folder.val_logits)] if held_out else ["--data", data]
    if _own_code(recipe) and not held_out:
        words += ["--arch", recipe.arch]
    return shlex.join(words)


def _norms(trained: Trained) -> str:
    norms = np.array(trained.lines[-1]["row_norms"])
    if trained.recipe.wvn:
        return "all rows of the head have length 1, and the head has no bias (--wvn)"
    if trained.recipe.cosine_head:
        return "the head normalises its rows itself, so re-scaling would change nothing"
    rho = spearman(norms, trained.counts.values)
    with_counts = "" if rho is None else f"; rank correlation with the counts {rho:+.2f}"
    return f"row norms of the head {norms.min():.2f} to {norms.max():.2f}{with_counts}"


@contextmanager
def watching(recipe: Recipe, notes: Notes) -> Iterator[Watch]:
    """Show the progress of a run: a bar on a terminal, a line for each epoch, and notes."""
    for text in recipe_warnings(recipe):
        notes(text)
    begun, first = time.monotonic(), 0

    def epoch(line: dict[str, Any], epochs: int) -> None:
        nonlocal first
        first = first or line["epoch"]
        if quiet.get():
            return
        here = line["epoch"] - first + 1
        left = (time.monotonic() - begun) / here * (epochs - line["epoch"])
        shown = f"loss {line['loss']:.4f}, error {_percent(line['error'])}"
        if "val_error" in line:
            shown += f", validation error {_percent(line['val_error'])}"
        talk("epoch", f"{line['epoch']}/{epochs}: {shown}; {duration(left)} left")

    with progress_bar("", "training") as bar:
        yield Watch(bar or (lambda done, total, per_second: None), epoch, notes)


def recipe_warnings(recipe: Recipe) -> list[str]:
    """Warnings about choices of a recipe that never take effect, probably by mistake."""
    late = [m for m in recipe.milestones if m >= recipe.epochs]
    found = []
    if recipe.schedule == "step" and late:
        shown = f"milestone {late[0]} is"
        if len(late) > 1:
            shown = f"milestones {', '.join(map(str, late[:-1]))} and {late[-1]} are"
        found.append(
            f"with --epochs {recipe.epochs} the {shown} never reached, so the learning rate does "
            "not fall there"
        )
    if recipe.drw_epoch is not None and recipe.drw_epoch >= recipe.epochs:
        found.append(
            f"with --epochs {recipe.epochs} the epoch {recipe.drw_epoch} of --drw-epoch is never "
            "reached, so classes are not weighted"
        )
    if recipe.warmup_epochs >= recipe.epochs:
        found.append(
            f"--warmup-epochs {recipe.warmup_epochs} covers all of --epochs {recipe.epochs}, so "
            "the learning rate only rises"
        )
    return found


def _epochs(recipe: Recipe) -> str:
    return "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.2f} %"


#: Metrics in the table of several seeds, and their titles.
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
    """Print the runs of several seeds: each run, the mean, its interval, and the next command."""
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
    seeds = "1 seed" if len(series.runs) == 1 else f"{len(series.runs)} seeds"
    say(f"{series.path}: {seeds}, {_epochs(series.recipe)} each", table)
    if "error" in found["mean"]:
        say("on the validation data; many, medium and few are mean recalls of their classes")
    if len(series.runs) > 1:
        say(f"95 %: Student's t-interval of the mean, {len(series.runs) - 1} degrees of freedom")
    say(f"written: {SEEDS}, and the run of each seed in {series.path}/seed-N")
    if line := sweep_line(series.runs[0].folder, series.recipe, ""):
        say(Whole(f"choose a gamma for one run, here the first: {line}"))


def watching_seeds(
    series: SeedRuns, notes: Notes
) -> Callable[[SeedRun, int], AbstractContextManager[Watch]]:
    """Print which seed is being trained, and the progress of its run."""

    @contextmanager
    def watch(run: SeedRun, number: int) -> Iterator[Watch]:
        if not quiet.get():
            of = f"{number + 1} of {len(series.runs)}"
            talk("seed", f"{run.seed} ({of}), in {run.folder.path}")
        with watching(series.recipe, notes) as found:
            yield found

    return watch
