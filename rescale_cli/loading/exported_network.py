"""The program of a .pt2 archive as a module. Only functions import this file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.json_text import clip
from rescale_cli.loading.export_archive import ExportArchive
from rescale_cli.loading.export_graph import GraphReader
from rescale_cli.loading.export_steps import Ref, evaluate
from rescale_cli.loading.state_tensors import read_tensor

#: Kinds of stored tensors in a signature, and the key of the tensor's full name.
_STATE = {
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}


class ExportedNetwork(nn.Module):
    """Computes an exported program operator by operator; no code of the file is run."""

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
        answers = [at for at in range(len(specs)) if at not in self._updates]
        counts = (len(self._graph.inputs), len(self._graph.outputs))
        if counts != (len(self._sources), len(specs)) or not answers:
            raise self._reader.refused("the signature does not fit the graph")
        self._answer = answers[0]

    def forward(self, images: Tensor) -> Any:
        """The first output for images (n, channels, H, W)."""
        arguments = [
            images if name == "" else name and getattr(self, name) for name in self._sources
        ]
        outputs = evaluate(self._graph, arguments, images.device)
        for at, name in self._updates.items():
            getattr(self, name).copy_(outputs[at])
        return outputs[self._answer]

    def ends(self) -> tuple[list[str], str | None]:
        """The names of the images' inputs, and of the answer, in the graph."""
        answer = self._graph.outputs[self._answer]
        names = zip(self._graph.inputs, self._sources, strict=True)
        images = [name for name, source in names if source == ""]
        return images, answer.name if isinstance(answer, Ref) else None

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
        """The tensor of that name as a buffer of this module."""
        if name not in tensors:
            raise self._reader.refused(f"no tensor is named {clip(name, 80)}")
        if name not in self._own:
            self._own[name] = f"tensor_{len(self._own)}"
            self.register_buffer(self._own[name], read_tensor(tensors[name]), persistent=False)
        return self._own[name]

    def _target(self, spec: Any) -> str | None:
        """The buffer that an output is written to; None if it is an answer."""
        kind, value = self._reader.one(spec)
        if kind == "user_output":
            return None
        if kind != "buffer_mutation":
            raise self._reader.refused(f"an output of the kind {clip(kind, 80)}")
        name = self._reader.member(value, "buffer_name", str)
        if name not in self._own:
            raise self._reader.refused(f"no buffer is named {clip(name, 80)}")
        return self._own[name]
