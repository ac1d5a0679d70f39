"""`demo`: the main job on the bundled example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescale_cli import options
from rescale_cli.screen import Screen


def demo(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Default: ./rescale-demo, made new."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Repair a real long-tailed classifier: inspect it, re-scale it, show the gain. Offline."""
    from rescale_cli import report, tables
    from rescale_cli.demo import fresh_folder, run_demo

    done = run_demo(output or fresh_folder())
    result = report.demo_result(done)
    Screen("demo", json).result(result, done.inspected.warnings, lambda: tables.show_demo(done))
