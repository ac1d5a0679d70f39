"""The lines of metrics.jsonl as events of TensorBoard, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rescale_cli.loading.libraries import library


def event_writer(folder: Path, epochs: int) -> Callable[[dict[str, Any]], None]:
    """What writes a line as events, at once.

    Args:
        folder: of the event files.
        epochs: done before; what an interrupted run has written of later ones is taken back.

    Raises:
        EnvironmentProblem: the library is not installed.
    """
    library("tensorboard", "tensorboard")
    writer = library("torch.utils.tensorboard", "tensorboard").SummaryWriter(
        str(folder), purge_step=epochs + 1 if epochs else None
    )

    def write(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name not in ("epoch", "row_norms") and value is not None:
                writer.add_scalar(name, value, line["epoch"])
        for row, norm in enumerate(line["row_norms"]):
            writer.add_scalar(f"row_norms/{row:03}", norm, line["epoch"])
        writer.flush()

    return write
