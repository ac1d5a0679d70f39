"""Models that bring their own code: TorchScript, and the .pt2 archives of torch.export."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import BadCheckpoint, BadInput
from rescale_cli.files.zip_table import ZipTable, read_record, read_zip_table
from rescale_cli.formats import torch_zip
from rescale_cli.json_text import clip, parse_json

if TYPE_CHECKING:
    from torch import nn

#: Bytes of one pickled record, at most.
MAX_PICKLED = 1 << 30
_EXPORT = "export it again: torch.export.save(torch.export.export(model, ...), 'model.pt2')"


def load_script(path: Path) -> nn.Module:
    """The model of a TorchScript file, on the CPU. Its graph is the file's own code.

    Raises:
        BadCheckpoint: torch cannot load it.
    """
    import torch

    with warnings.catch_warnings():
        # torch tells authors of models to move on; whoever has only the file cannot.
        warnings.filterwarnings("ignore", message="`?torch.jit")
        try:
            module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise _unloadable(path, error, "export the model again") from None
    return module.float().eval()


def load_exported(path: Path) -> tuple[nn.Module, int]:
    """The program of a .pt2 file, on the CPU: the module and C.

    Its graph is the file's own code. What is pickled in it is looked at first, and refused if it
    is more than tensors.

    Raises:
        BadCheckpoint: torch cannot load it, or it is compiled for one machine.
        UnsafePickle: a pickle in it calls or names what no checkpoint needs.
        BadInput: it does not take (n, channels, H, W) of any n, and give (n, C).
    """
    import torch

    _refuse_pickled_code(path)
    try:
        program = torch.export.load(path)
        module: nn.Module = program.module()
    except (RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
        raise _unloadable(path, error, _EXPORT) from None
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = [nodes[str(name)] for name in program.graph_signature.user_inputs]
    outputs = [nodes.get(str(name)) for name in program.graph_signature.user_outputs]
    shapes = [tuple(getattr(value, "shape", ())) for value in (*inputs, *outputs)]
    if len(inputs) != 1 or len(shapes) < 2 or len(shapes[0]) != 4 or len(shapes[1]) != 2:
        raise BadInput(
            f"{path.name} is no image classifier",
            saw=clip(f"shapes of input and output: {shapes}"),
            fix=_EXPORT,
        )
    batch, channels, height, width = shapes[0]
    fixed = [n for n in (channels, height, width, shapes[1][1]) if not isinstance(n, int)]
    if isinstance(batch, int) or fixed:
        raise BadInput(
            f"{path.name} takes batches of {batch} only"
            if isinstance(batch, int)
            else f"{path.name} does not say the size of its images",
            saw=f"input {shapes[0]}, output {shapes[1]}",
            fix="export it with dynamic_shapes=({0: torch.export.Dim('n')},)",
        )
    return module, int(shapes[1][1])


def _refuse_pickled_code(path: Path) -> None:
    """Read the pickles of the archive as inert values: torch itself would run them."""
    table = read_zip_table(path)
    pickled = set[str]()
    for name in table.entries:
        if "/data/aotinductor/" in name:
            saw = clip(name)
            raise BadCheckpoint(f"{path.name} is compiled for one machine", saw=saw, fix=_EXPORT)
        if "/data/sample_inputs/" in name or "custom_obj" in name:
            pickled.add(name)
        if name.endswith("_config.json"):
            pickled |= _said_to_be_pickled(table, name)
    for name in pickled:
        _refuse_globals(path, name, read_record(table, name, MAX_PICKLED))


def _said_to_be_pickled(table: ZipTable, name: str) -> set[str]:
    """The records that a table of weights or constants has torch unpickle."""
    said = parse_json(read_record(table, name, MAX_PICKLED), name)
    folder = name.rpartition("/")[0]
    entries = said.get("config", said).values() if isinstance(said, dict) else ()
    return {
        f"{folder}/{entry.get('path_name')}"
        for entry in entries
        if isinstance(entry, dict) and entry.get("use_pickle") is not False
    }


def _refuse_globals(path: Path, name: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="rescale-cli-") as folder:
        inner = Path(folder) / "inner.pt"
        inner.write_bytes(data)
        if not torch_zip.matches(inner):
            raise _foreign_object(path, name)
        contents = torch_zip.list_tensors(inner)
    if contents.format != "torch-zip" or contents.globals:
        raise _foreign_object(path, f"{name}: {', '.join(contents.globals[:3])}")


def _foreign_object(path: Path, saw: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path.name} holds a pickled object that is no tensor", saw=clip(saw), fix=_EXPORT
    )


def _unloadable(path: Path, error: Any, fix: str) -> BadCheckpoint:
    first = str(error).strip().partition("\n")[0]
    return BadCheckpoint(f"torch cannot load {path.name}", saw=clip(first, 300), fix=fix)
