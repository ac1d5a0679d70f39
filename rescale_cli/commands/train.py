"""`train`: train a network on long-tailed data, in the ordinary way or with WVN."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.help_page import (
    input_argument,
    input_option,
    method_option,
    output_option,
)
from rescale_cli.commands.options import spread
from rescale_cli.commands.train_options import RecipeOptions, recipe_of, show_config
from rescale_cli.errors import BadInput, EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from rescale_cli.commands.progress import Notes
    from rescale_cli.training.recipe import Recipe
    from rescale_cli.training.train import Trained


@spread
def train(
    typed: RecipeOptions,
    run: Annotated[
        Path | None,
        input_argument(
            metavar="RUN",
            help="Folder of the run to --resume, or whose recipe to --print-config.",
            show_default="run",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        method_option(
            "--preset",
            metavar="NAME",
            help="Recipe of the paper to start from: cifar10-lt, cifar100-lt, cifar10-step-vgg16, "
            "tiny-imagenet-lt, inaturalist2018, imagenet-lt or places-lt; or fashion-lt.",
            show_default="none",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        input_option(
            "--config",
            metavar="FILE|RUN",
            help="TOML file with a recipe, as --print-config prints it, or a run to repeat. "
            "Options take precedence over it.",
            show_default="none",
        ),
    ] = None,
    print_config: Annotated[
        bool,
        output_option(
            "--print-config", help="Print the recipe, or that of RUN, as TOML, and do not train."
        ),
    ] = False,
    seeds: Annotated[
        str | None,
        method_option(
            "--seeds",
            metavar="N,N,...",
            help="Train once for each of these seeds, in RUN/seed-N, and report the mean of the "
            "metrics with a 95 % interval. Cannot be combined with --seed.",
            show_default="one run, with --seed",
        ),
    ] = None,
    resume: Annotated[
        bool, input_option("--resume", help="Continue RUN from its last saved epoch.")
    ] = False,
    download: Annotated[
        bool, input_option("--download", help="Download the data set if it is missing.")
    ] = False,
    output: Annotated[
        Path | None,
        output_option(
            "-o", "--output", metavar="RUN", help="Folder to write the run to.", show_default="run"
        ),
    ] = None,
    force: Annotated[
        bool,
        output_option("--force", help="Start anew in the folder of another run."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a classifier on long-tailed data, as usual or with weight vector normalization.

    The folder that it writes is a MODEL for the other commands. The defaults below are those of
    long-tailed CIFAR; --preset replaces them, --config replaces those of the preset, and options
    replace both.

    Examples:
        # Train a small network for one epoch.
        rescale-cli train --data npz:val.npz --arch rescale:resnet8 --epochs 1 -o run
        # Show every setting of the recipe for long-tailed CIFAR-10, and do not train.
        rescale-cli train --preset cifar10-lt --print-config
    """
    from rescale_cli.commands.progress import Notes
    from rescale_cli.files.folders import removed_if_empty
    from rescale_cli.foreign_code import need_torch
    from rescale_cli.training.run_folder import SEEDS
    from rescale_cli.training.seed_runs import parse_seeds

    given = typed.given()
    several = None if seeds is None else parse_seeds(seeds)
    _refuse_seeds(several, given, print_config)
    if print_config:
        show_config(recipe_of(preset, config or run, given), json)
        return
    need_torch()
    place = _place(run, output, resume=resume)
    if resume and (preset or config or force):
        raise UsageError(
            "a resumed run keeps its own recipe",
            saw=f"--resume beside --{'preset' if preset else 'config' if config else 'force'}",
            fix=f"rescale-cli train --resume {place}",
        )
    recipe = None if resume else _new_recipe(preset, config, given)
    start = _Start(place, recipe, given, several, force, download)
    with removed_if_empty(place):
        if several is not None or (resume and (place / SEEDS).is_file()):
            _train_several(start, json, Notes(json))
        else:
            _train_one(start, json, Notes(json))


@dataclass(frozen=True)
class _Start:
    """What to train, and where."""

    place: Path
    """RUN."""
    recipe: Recipe | None
    """None if a run is resumed, which has its own recipe."""
    given: dict[str, Any]
    """The options of the recipe that were typed."""
    seeds: tuple[int, ...] | None
    force: bool
    download: bool


def _train_one(start: _Start, json: bool, notes: Notes) -> None:
    from rescale_cli.commands.train_report import show_trained, train_result, watching
    from rescale_cli.evaluating import ranks
    from rescale_cli.training.run_folder import RunFolder, resumed
    from rescale_cli.training.train import read_resumable
    from rescale_cli.training.train import train as train_

    folder, recipe, state = RunFolder(start.place), start.recipe, None
    with folder.held(create=recipe is not None) if ranks.is_main() else nullcontext():
        if recipe is None:
            state = read_resumable(folder)
            recipe = resumed(state, start.given)
        elif ranks.is_main():
            folder.prepare(force=start.force, weights=recipe.weights)
        with watching(recipe, notes) as watch:
            trained = train_(recipe, folder, state, download=start.download, watch=watch)
        if trained is not None:
            _draw(trained, notes)
    if trained is not None:
        Screen("train", json).result(
            train_result(trained), notes.kept, lambda: show_trained(trained)
        )


def _train_several(start: _Start, json: bool, notes: Notes) -> None:
    from rescale_cli.commands.train_report import seeds_result, show_seeds, watching_seeds
    from rescale_cli.evaluating import ranks
    from rescale_cli.training.run_folder import RunFolder
    from rescale_cli.training.seed_runs import SeedRuns, read_seed_runs, train_seeds

    folder, fresh = RunFolder(start.place), start.recipe is not None
    with folder.held(create=fresh) if ranks.is_main() else nullcontext():
        if start.recipe is None:
            series = read_seed_runs(start.place)
            if series is None:
                raise BadInput(
                    f"{start.place} does not contain runs of several seeds",
                    fix=f"resume the one run: rescale-cli train --resume {start.place}; or train "
                    "several seeds in another folder: --seeds 0,1,2 -o RUN",
                )
            series = series.changed(start.given, start.seeds or ())
        else:
            series = SeedRuns.of(start.place, start.recipe, start.seeds or ())
            if ranks.is_main():
                folder.prepare(force=start.force)
        ended = train_seeds(
            series, fresh=fresh, force=start.force, download=start.download,
            watching=watching_seeds(series, notes), done=lambda trained: _draw(trained, notes),
        )  # fmt: skip
    if ended is not None:
        Screen("train", json).result(seeds_result(ended), notes.kept, lambda: show_seeds(ended))


def _draw(trained: Trained, notes: Notes) -> None:
    """Write norms.svg if the extra `plot` is installed; a failure is only a note."""
    from rescale_cli.commands import train_report

    if train_report.can_draw() and trained.lines:
        try:
            train_report.write_norms(trained)
        except (OSError, ValueError, EnvironmentProblem) as error:
            notes(f"the run is complete, but norms.svg could not be drawn: {error}")


def _place(run: Path | None, output: Path | None, *, resume: bool) -> Path:
    """The folder of the run."""
    if run is not None and (not resume or output not in (None, run)):
        fix = f"-o {run} for a new run, --resume {run} to resume one"
        raise UsageError("the argument RUN needs --resume", saw=str(run), fix=fix)
    return run or output or Path("run")


def _new_recipe(preset: str | None, config: Path | None, given: dict[str, Any]) -> Recipe:
    recipe = recipe_of(preset, config, given)
    if not recipe.data:
        raise UsageError("--data is missing: there are no training images", fix="--data DATA")
    return recipe


def _refuse_seeds(seeds: tuple[int, ...] | None, given: dict[str, Any], print_config: bool) -> None:
    """Refuse --seeds together with an option that excludes it."""
    if seeds is None:
        return
    typed = ",".join(map(str, seeds))
    if "seed" in given:
        saw = f"--seed {given['seed']} --seeds {typed}"
        raise UsageError("--seed and --seeds exclude each other", saw=saw, fix=f"--seeds {typed}")
    if print_config:
        raise UsageError(
            "--print-config prints one recipe, and --seeds is not part of a recipe",
            saw=f"--print-config --seeds {typed}",
            fix=f"leave out --seeds {typed}, and add it when you train",
        )
