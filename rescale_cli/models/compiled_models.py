"""Models that bring their own graph: TorchScript, and the .pt2 archives of torch.export.

TorchScript is code that torch runs. The program of a .pt2 archive is data here.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import BadCheckpoint, BadInput
from rescale_cli.foreign_code import announce
from rescale_cli.json_text import clip
from rescale_cli.models.export_archive import EXPORT, ExportArchive, read_export_archive

if TYPE_CHECKING:
    from torch import nn


def load_script(path: Path) -> nn.Module:
    """The model of a TorchScript file, on the CPU. Its graph is the file's own code.

    Raises:
        BadCheckpoint: torch cannot load it.
    """
    import torch

    announce(
        f"{clip(path.name, 80)} is TorchScript: running the model runs the code in the file, "
        "without a sandbox"
    )
    with warnings.catch_warnings():
        # torch tells authors of models to move on; whoever has only the file cannot.
        warnings.filterwarnings("ignore", message="`?torch.jit")
        try:
            module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise _unloadable(path, error, "export the model again") from None
    return module.float().eval()


def load_exported(path: Path) -> tuple[nn.Module, int]:
    """The program of a .pt2 file, on the CPU: the module and C. No code of the file is run.

    Raises:
        BadCheckpoint: a record, an operator or a value that this tool does not know.
        UnsafePickle: the example inputs call or name what no checkpoint needs.
        BadInput: it does not take (n, channels, H, W) of any n, and give (n, C).
    """
    from rescale_cli.models.torch_modules import ExportedNetwork

    archive = read_export_archive(path)
    try:
        network = ExportedNetwork(archive)
    except RecursionError:
        saw = "graphs nested too deeply"
        raise BadCheckpoint(f"{path.name} is damaged", saw=saw, fix=EXPORT) from None
    images, answer = network.ends()
    shapes = [_shape(archive, name) for name in (*images, answer)]
    if len(images) != 1 or len(shapes[0]) != 4 or len(shapes[1]) != 2:
        raise BadInput(
            f"{path.name} is not an image classifier",
            saw=clip(f"shapes of input and output: {shapes}"),
            fix=EXPORT,
        )
    batch, *sizes = shapes[0]
    classes = shapes[1][1]
    if batch is not None or None in sizes or classes is None:
        raise BadInput(
            f"{path.name} takes only batches of {batch}"
            if batch is not None
            else f"{path.name} does not give the size of its images",
            saw=f"input {shapes[0]}, output {shapes[1]}",
            fix="export it with dynamic_shapes=({0: torch.export.Dim('n')},)",
        )
    network.input_size = shapes[0][2], shapes[0][3]  # type: ignore[assignment]  # none is None
    return network.eval(), classes


def _shape(archive: ExportArchive, name: str | None) -> tuple[int | None, ...]:
    """The shape of a value, None for each size that the graph leaves open."""
    values = archive.graph["graph"].get("tensor_values")
    said = values.get(name) if isinstance(values, dict) else None
    sizes = said.get("sizes") if isinstance(said, dict) else None
    if not isinstance(sizes, list):
        return ()
    found = [size.get("as_int") if isinstance(size, dict) else None for size in sizes]
    return tuple(size if type(size) is int else None for size in found)


def _unloadable(path: Path, error: Any, fix: str) -> BadCheckpoint:
    first = str(error).strip().partition("\n")[0]
    return BadCheckpoint(f"torch cannot load {path.name}", saw=clip(first, 300), fix=fix)
