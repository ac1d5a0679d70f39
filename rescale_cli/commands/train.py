"""`train`: a network on long-tailed data, in the ordinary way or by WVN."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rescale_cli import options
from rescale_cli.errors import UsageError
from rescale_cli.options.optimizer_options import HowOptions
from rescale_cli.options.option_groups import spread
from rescale_cli.options.train_options import WhatOptions, recipe_of, show_config
from rescale_cli.reports.screen import Screen

if TYPE_CHECKING:
    from rescale_cli.training.recipe import Recipe
    from rescale_cli.training.run_folder import RunFolder
    from rescale_cli.training.state import RunState


@spread
def train(
    what: WhatOptions,
    how: HowOptions,
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="With --resume: the run to go on with.", readable=False),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME",
            help="The paper's recipe: cifar10-lt, cifar100-lt, cifar10-step-vgg16, "
            "tiny-imagenet-lt, inaturalist2018, imagenet-lt, places-lt; fashion-lt.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="A recipe in TOML; options go before it.",
            readable=False,
        ),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the recipe, and train nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with RUN where it stands.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Let the data be downloaded if they are not there.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="RUN",
            help="The folder of the run. Default: run.",
            readable=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train anew in the folder of another run.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a classifier on long-tailed data; the other commands take the folder it leaves."""
    from rescale_cli.reports import figures
    from rescale_cli.reports.progress import Notes
    from rescale_cli.reports.train_report import show_trained, train_result, watching
    from rescale_cli.training.train import train as train_

    given = {**what.given(), **how.given()}
    if print_config:
        show_config(recipe_of(preset, config, given), json)
        return
    folder, recipe, state = _start(run, output, preset, config, given, resume=resume, force=force)
    notes = Notes(json)
    with watching(recipe, notes) as watch:
        trained = train_(recipe, folder, state, download=download, watch=watch)
    if trained is not None:
        if figures.can_draw() and trained.lines:
            figures.write_norms(trained)
        Screen("train", json).result(
            train_result(trained), notes.kept, lambda: show_trained(trained)
        )


def _start(
    run: Path | None,
    output: Path | None,
    preset: str | None,
    config: Path | None,
    given: dict[str, Any],
    *,
    resume: bool,
    force: bool,
) -> tuple[RunFolder, Recipe, RunState | None]:
    """Where the run is, what it does, and where it stands."""
    from rescale_cli.predicting import ranks
    from rescale_cli.training.run_folder import RunFolder
    from rescale_cli.training.state import resumed

    if run is not None and (not resume or output not in (None, run)):
        fix = f"-o {run} for a new run, --resume {run} to go on with one"
        raise UsageError("RUN without an option goes with --resume", saw=str(run), fix=fix)
    folder = RunFolder(run or output or Path("run"))
    if resume:
        if preset or config or force:
            raise UsageError(
                "a run goes on with its own recipe",
                saw=f"--resume beside --{'preset' if preset else 'config' if config else 'force'}",
                fix=f"rescale-cli train --resume {folder.path}",
            )
        state = folder.read_state()
        return folder, resumed(state, given), state
    recipe = recipe_of(preset, config, given)
    if not recipe.data:
        raise UsageError("there is nothing to train on", fix="--data DATA")
    if ranks.is_main():
        folder.prepare(force=force, weights=recipe.weights)
    return folder, recipe, None
