"""Turns a .pt2 archive of torch.export into a network, without running code of the archive.

Only functions import this file, because it imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rescale_cli.errors import BadCheckpoint, BadInput
from rescale_cli.files.contents import TensorInfo
from rescale_cli.json_text import clip
from rescale_cli.models.export_archive import EXPORT, ExportArchive, read_export_archive
from rescale_cli.models.export_graph import GraphReader
from rescale_cli.models.export_steps import Ref, run_program
from rescale_cli.models.weights import read_tensor


def load_exported(path: Path) -> tuple[nn.Module, int]:
    """The network in a .pt2 file, on the CPU, and its number of classes.

    Raises:
        BadCheckpoint: it has a record, an operator or a value that this tool does not support.
        UnsafePickle: the example inputs call or name what no checkpoint needs.
        BadInput: it does not map images (n, channels, H, W), for any n, to (n, C).
    """
    archive = read_export_archive(path)
    try:
        network = ExportedNetwork(archive)
    except RecursionError:
        saw = "graphs nested too deeply"
        raise BadCheckpoint(f"{path.name} is damaged", saw=saw, fix=EXPORT) from None
    images, logits = network.ends()
    shapes = [_shape(archive, name) for name in (*images, logits)]
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
            else f"{path.name} does not fix the size of its images",
            saw=f"input {shapes[0]}, output {shapes[1]}",
            fix="export it with dynamic_shapes=({0: torch.export.Dim('n')},)",
        )
    network.input_size = shapes[0][2], shapes[0][3]  # type: ignore[assignment]  # neither is None
    return network.eval(), classes


def _shape(archive: ExportArchive, name: str | None) -> tuple[int | None, ...]:
    """The shape of a value, with None for each dynamic size."""
    values = archive.graph["graph"].get("tensor_values")
    value = values.get(name) if isinstance(values, dict) else None
    sizes = value.get("sizes") if isinstance(value, dict) else None
    if not isinstance(sizes, list):
        return ()
    found = [size.get("as_int") if isinstance(size, dict) else None for size in sizes]
    return tuple(size if type(size) is int else None for size in found)


#: The kinds of stored tensors in a signature, and the key of each kind that holds the full name.
_STATE = {
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}


class ExportedNetwork(nn.Module):
    """Computes an exported program operator by operator, without running code of the file."""

    input_size: tuple[int, int] | None = None
    """Height and width of its images, once they are known."""

    def __init__(self, archive: ExportArchive) -> None:
        super().__init__()
        self._reader = GraphReader(archive.path)
        self._graph = self._reader.graph(self._reader.member(archive.graph, "graph", dict))
        signature = self._reader.member(archive.graph, "signature", dict)
        self._sources: list[str | None] = []
        self._own: dict[str, str] = {}
        for spec in self._reader.member(signature, "input_specs", list):
            self._sources.append(self._source(spec, archive))
        specs = self._reader.member(signature, "output_specs", list)
        self._updates = {at: name for at, spec in enumerate(specs) if (name := self._target(spec))}
        returned = [at for at in range(len(specs)) if at not in self._updates]
        counts = (len(self._graph.inputs), len(self._graph.outputs))
        if counts != (len(self._sources), len(specs)) or not returned:
            raise self._reader.refused("the signature does not fit the graph")
        self._logits = returned[0]

    def forward(self, images: Tensor) -> Any:
        """The first output for images (n, channels, H, W)."""
        arguments = [
            images if name == "" else name and getattr(self, name) for name in self._sources
        ]
        outputs = run_program(self._graph, arguments, images.device)
        for at, name in self._updates.items():
            getattr(self, name).copy_(outputs[at])
        return outputs[self._logits]

    def ends(self) -> tuple[list[str], str | None]:
        """The names in the graph: of the inputs that are images, and of the logits."""
        logits = self._graph.outputs[self._logits]
        names = zip(self._graph.inputs, self._sources, strict=True)
        images = [name for name, source in names if source == ""]
        return images, logits.name if isinstance(logits, Ref) else None

    def _source(self, spec: Any, archive: ExportArchive) -> str | None:
        """Where an input comes from: a buffer's name, "" for the images, None for a constant."""
        kind, value = self._reader.one(spec)
        if kind == "user_input":
            return "" if "as_tensor" in self._reader.member(value, "arg", dict) else None
        if kind == "constant_input":
            return None
        if kind not in _STATE:
            raise self._reader.refused(f"an input of the kind {clip(kind, 80)}")
        name = self._reader.member(value, _STATE[kind], str)
        loose = kind == "tensor_constant" or value.get("persistent") is False
        return self._kept(name, archive.constants if loose else archive.weights)

    def _kept(self, name: str, tensors: Mapping[str, TensorInfo]) -> str:
        """The name of the buffer that holds the tensor; it is registered the first time."""
        if name not in tensors:
            raise self._reader.refused(f"no tensor is named {clip(name, 80)}")
        if name not in self._own:
            self._own[name] = f"tensor_{len(self._own)}"
            self.register_buffer(self._own[name], read_tensor(tensors[name]), persistent=False)
        return self._own[name]

    def _target(self, spec: Any) -> str | None:
        """The buffer that an output is written to; None if the output is returned."""
        kind, value = self._reader.one(spec)
        if kind == "user_output":
            return None
        if kind != "buffer_mutation":
            raise self._reader.refused(f"an output of the kind {clip(kind, 80)}")
        name = self._reader.member(value, "buffer_name", str)
        if name not in self._own:
            raise self._reader.refused(f"no buffer is named {clip(name, 80)}")
        return self._own[name]
