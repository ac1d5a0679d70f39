"""`demo`: the main job on the bundled example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.help_page import output_option


def demo(
    output: Annotated[
        Path | None,
        output_option(
            "-o",
            "--output",
            metavar="DIR",
            help="New folder to work in.",
            show_default="./rescale-demo, or ./rescale-demo-2 and so on if it exists",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Repair a bundled long-tailed classifier, step by step and offline.

    Runs inspect, sweep-gamma, apply and evaluate on a small network for Fashion-MNIST and shows
    the gain. Takes less than a minute on two CPU cores.

    Examples:
        # Run the demonstration in ./rescale-demo.
        rescale-cli demo
        # Run it in another folder, and print the results as JSON.
        rescale-cli demo -o my-demo --json
    """
    from rescale_cli.commands.demo_report import (
        demo_result,
        fresh_folder,
        run_demo,
        show_demo,
        sweep_of,
    )
    from rescale_cli.commands.progress import Notes, progress_bar
    from rescale_cli.evaluating.evaluate_models import Feedback
    from rescale_cli.files.staging import write_texts

    notes = Notes(json)
    done = run_demo(output or fresh_folder(), Feedback(progress_bar, notes))
    write_texts({done.model.parent / "sweep.json": sweep_of(done).document()}, force=False)
    warnings = [*notes.kept, *done.inspected.warnings, *done.evaluation.warnings]
    Screen("demo", json).result(demo_result(done), warnings, lambda: show_demo(done))
