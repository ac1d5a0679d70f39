"""What `train` tells: epochs as they go by, and the run at its end, as JSON and for a person."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from rescale_cli.core.summary import spearman
from rescale_cli.reports.progress import Notes, duration, progress_bar
from rescale_cli.reports.screen import Whole, quiet, say, talk
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run import Watch
from rescale_cli.training.run_folder import RunFolder
from rescale_cli.training.train import Trained


def empty_result() -> dict[str, Any]:
    """The JSON result of a command that trained nothing."""
    keys = ("run", "model", "rescaled", "counts", "classes", "alignment", "data", "device",
            "images_per_second", "sweep_gamma")  # fmt: skip
    return {**dict.fromkeys(keys), "epochs": [], "recipe": {}, **NO_SEEDS}


#: What only `--seeds` fills in.
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
        "sweep_gamma": sweep_line(folder, trained.recipe, trained.sweep_data),
        "recipe": asdict(trained.recipe),
        **NO_SEEDS,
    }


def show_trained(trained: Trained) -> None:
    """The run for a person: how good, how long the rows are, and what to type next."""
    folder, recipe = trained.folder, trained.recipe
    if not trained.lines:
        say(f"{folder.path}: done before; its {folder.metrics.name} is gone")
        return
    last = trained.lines[-1]
    speed = trained.images_per_second
    rate = f", {speed:,.0f} images/s" if speed else ""
    say(f"{folder.path}: {recipe.epochs} epochs on {trained.device}{rate}")
    if trained.alignment is not None:
        say(trained.alignment.evidence)
    say(f"training error {_percent(last['error'])}, loss {last['loss']:.4f}")
    if validation := trained.data.get("validation"):
        split = f" (split {validation['split']})" if validation["split"] else ""
        say(f"validated on {validation['source']}{split}, {validation['samples']:,} samples")
    if "val_error" in last:
        named = [f"{name} {_percent(last[name])}" for name in ("many", "medium", "few")]
        say(
            f"validation error {_percent(last['val_error'])}, balanced error "
            f"{_percent(last['val_balanced_error'])}; of the classes: {', '.join(named)}"
        )
    say(_norms(trained))
    kept = f", {folder.rescaled.name} (gamma {recipe.gamma:g})" if recipe.gamma is not None else ""
    kept += f", {folder.val_logits.name}" if folder.val_logits.is_file() else ""
    say(f"written: {folder.model.name}{kept}, {folder.counts.name}, {folder.config.name}")
    if line := sweep_line(folder, recipe, trained.sweep_data or "DATA"):
        known = trained.sweep_data or folder.val_logits.is_file()
        other = "" if known else " on validation data that it was not trained on"
        say(Whole(f"choose a gamma{other}: {line}"))
        on = f"run:{folder.path}" if folder.val_logits.is_file() else trained.sweep_data
        if on:
            line = compare_line(folder, recipe, on)
            say(Whole(f"after `apply`, compare the two models: {line}"))


def compare_line(folder: RunFolder, recipe: Recipe, data: str) -> str:
    """The line to type after `apply RUN`: the re-scaled run beside the run, on validation data."""
    words = ["rescale-cli", "evaluate", f"{folder.path}.rescaled", "--against", str(folder.path)]
    words += ["--counts", str(folder.counts), "--data", data]
    return shlex.join(words + (["--arch", recipe.arch] if _own_code(recipe) else []))


def _own_code(recipe: Recipe) -> bool:
    return recipe.arch.startswith("python:")


def sweep_line(folder: RunFolder, recipe: Recipe, data: str) -> str | None:
    """The line to type to choose a gamma, on the part that was held out or on other data.

    Args:
        folder: of the run.
        recipe: of the run.
        data: what --data names, where no part of the training images was held out.

    Returns:
        None where a gamma would change nothing, or `data` is empty and needed.
    """
    held_out = folder.val_logits.is_file()
    if recipe.cosine_head or not (held_out or data):
        return None
    words = ["rescale-cli", "sweep-gamma", str(folder.path), "--counts", str(folder.counts)]
    words += ["--logits", str(folder.val_logits)] if held_out else ["--data", data]
    if _own_code(recipe) and not held_out:
        words += ["--arch", recipe.arch]
    return shlex.join(words)


def _norms(trained: Trained) -> str:
    norms = np.array(trained.lines[-1]["row_norms"])
    if trained.recipe.wvn:
        return "the rows of the head have length 1, and the head has no bias (--wvn)"
    if trained.recipe.cosine_head:
        return "the head takes its rows as if they had length 1: re-scaling would change nothing"
    rho = spearman(norms, trained.counts.values)
    told = "" if rho is None else f"; rank correlation with the counts {rho:+.2f}"
    return f"row lengths of the head {norms.min():.2f} to {norms.max():.2f}{told}"


@contextmanager
def watching(recipe: Recipe, notes: Notes) -> Iterator[Watch]:
    """Tell how a run goes: a bar where a person looks, a line an epoch, notes."""
    for text in doubts(recipe):
        notes(text)
    begun, first = time.monotonic(), 0

    def epoch(line: dict[str, Any], epochs: int) -> None:
        nonlocal first
        first = first or line["epoch"]
        if quiet.get():
            return
        here = line["epoch"] - first + 1
        left = (time.monotonic() - begun) / here * (epochs - line["epoch"])
        told = f"loss {line['loss']:.4f}, error {_percent(line['error'])}"
        if "val_error" in line:
            told += f", validation error {_percent(line['val_error'])}"
        talk("epoch", f"{line['epoch']}/{epochs}: {told}; {duration(left)} left")

    with progress_bar("", "training") as bar:
        yield Watch(bar or (lambda done, total, per_second: None), epoch, notes)


def doubts(recipe: Recipe) -> list[str]:
    """What in a recipe never takes effect: likely a slip."""
    late = [m for m in recipe.milestones if m >= recipe.epochs]
    found = []
    if recipe.schedule == "step" and late:
        shown = ", ".join(map(str, late))
        found.append(
            f"the rate does not fall at {shown}: the run ends before, --epochs {recipe.epochs}"
        )
    if recipe.drw_epoch is not None and recipe.drw_epoch >= recipe.epochs:
        found.append(f"class weights never set in: --drw-epoch {recipe.drw_epoch} is past the end")
    if recipe.warmup_epochs >= recipe.epochs:
        found.append(
            f"the rate only climbs: --warmup-epochs {recipe.warmup_epochs} is all there is"
        )
    return found


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.2f} %"
