"""`demo`: the main job on the bundled example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen


def demo(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Default: ./rescale-demo, made new.",
            readable=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Repair a real long-tailed classifier: inspect, sweep, apply, evaluate. Offline."""
    from rescale_cli.commands.demo_report import (
        demo_result,
        fresh_folder,
        run_demo,
        show_demo,
        sweep_of,
    )
    from rescale_cli.commands.progress import Notes, progress_bar
    from rescale_cli.commands.sweep_outputs import write_json
    from rescale_cli.evaluating.side_by_side import Feedback

    notes = Notes(json)
    done = run_demo(output or fresh_folder(), Feedback(progress_bar, notes))
    write_json(done.model.parent / "sweep.json", "sweep-gamma", sweep_of(done), force=False)
    warnings = [*notes.kept, *done.inspected.warnings, *done.evaluation.warnings]
    Screen("demo", json).result(demo_result(done), warnings, lambda: show_demo(done))
