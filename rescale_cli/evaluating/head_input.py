"""The inputs of the head, caught while a network runs: logits = features @ weight.T + bias."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.checkpoints.locate_head import HeadChoice, locate
from rescale_cli.core.predictions import Classifier
from rescale_cli.errors import BadInput
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.models.weights import read_tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_FIX = "leave out --save-features; --save-logits FILE keeps the logits of any model"
#: How far the logits may be from those of the features, as a share of the sum of the absolute
#: terms: with float32 (and the TF32 of CUDA's convolutions), and with short floats.
_NEAR, _NEAR_SHORT = 2e-3, 3e-2


class HeadInput:
    """Catches what goes into the layer that gives the logits; made by `head_input_of`.

    Args:
        layers: the modules that hold the weight of the head; the first one whose input gives the
            logits is taken.
        weight: (C, D), of the checkpoint.
        bias: (C,), or None.
        name: of the weight, for messages.
    """

    def __init__(
        self, layers: list[torch.nn.Module], weight: Tensor, bias: Tensor | None, name: str
    ) -> None:
        self._weight, self._bias, self._name = weight.double(), bias, name
        self._caught: dict[int, list[Any]] = {}
        self._done: list[Tensor] = []
        self._layer: int | None = None
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._hook(number), with_kwargs=True)

    @property
    def width(self) -> int:
        """D."""
        return int(self._weight.shape[1])

    def _hook(self, number: int) -> Any:
        def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = (*args, *kwargs.values())
            self._caught.setdefault(number, []).append(given[0] if given else None)

        return catch

    def forget(self) -> None:
        """Drop what a failed or earlier run left."""
        self._caught.clear()

    def keep(self, logits: Tensor, *, short: bool) -> None:
        """Keep what the run that gave these logits (n, C) caught.

        Args:
            logits: of the run.
            short: whether it computed in 16 bits.

        Raises:
            BadInput: no layer's input gives the logits.
        """
        numbers = sorted(self._caught) if self._layer is None else [self._layer]
        for number in numbers:
            features = self._features(number, len(logits))
            if features is not None and (self._layer is not None or
                                         self._gives(features, logits, short)):  # fmt: skip
                self._layer = number
                self._done.append(features)
                return
        raise BadInput(
            f"the inputs of {self._name} cannot be kept: they do not give the logits of the model",
            saw=self._seen(),
            fix=_FIX,
        )

    def take(self) -> Tensor:
        """What was kept since the last call, (n, D) float32, on the device."""
        import torch

        parts, self._done = self._done, []
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _features(self, number: int, n: int) -> Tensor | None:
        """The input of a layer as (n, D); the mean over the pixels of a 1x1 convolution."""
        import torch

        caught = self._caught.get(number, [])
        if len(caught) != 1 or not isinstance(caught[0], torch.Tensor):
            return None
        found = caught[0]
        if found.dim() > 2 and found.shape[1] == self.width:
            found = found.flatten(2).mean(2)
        return found.float().clone() if found.shape == (n, self.width) else None

    def _gives(self, features: Tensor, logits: Tensor, short: bool) -> bool:
        rows = features.cpu().double()
        terms = rows.abs() @ self._weight.abs().T
        expected = rows @ self._weight.T
        if self._bias is not None:
            expected, terms = expected + self._bias, terms + self._bias.abs()
        near = _NEAR_SHORT if short else _NEAR
        return bool(((expected - logits.cpu().double()).abs() <= near * terms + 1e-6).all())

    def _seen(self) -> str:
        if not self._caught:
            return "the network computes with the weight, but never calls the module that holds it"
        shapes = [
            " and ".join(str(tuple(getattr(value, "shape", ()))) for value in values)
            for values in self._caught.values()
        ]
        return f"input {'; '.join(shapes)}, weight {tuple(self._weight.shape)}"


def head_input_of(
    classifier: Classifier, path: Path, heads: HeadChoice, accept: frozenset[str]
) -> HeadInput:
    """Find the module that holds the head of a checkpoint, and catch its input whenever it runs.

    Args:
        classifier: built from the checkpoint.
        path: the checkpoint.
        heads: what the user says of the head.
        accept: full names of pickle globals that are let pass, still without being run.

    Raises:
        BadInput: a program whose parts cannot be watched, several layers that give the logits
            together, or a network in which no module holds the weight of the head.
        RescaleError: the head is not found.
    """
    if classifier.arch in ("torchscript", "pt2"):
        kind = "TorchScript" if classifier.arch == "torchscript" else "torch.export"
        raise BadInput(
            f"the inputs of the head cannot be kept: {path.name} is a program of {kind}, whose "
            "layers cannot be watched while it runs",
            saw=classifier.why,
            fix=f"{_FIX}; or give the weights as a state dict, with --arch",
        )
    checkpoint = open_checkpoint(path, accept)
    found = locate(checkpoint, heads, None, max(2, classifier.num_classes))
    if len(found.together) > 1:
        raise BadInput(
            "the inputs of the head cannot be kept: several layers give the logits together",
            saw=", ".join(keys.weight for keys in found.together),
            fix=_FIX,
        )
    keys = found.heads[0]
    weight, bias = _rows(checkpoint, keys), None
    if keys.bias is not None:
        bias = read_tensor(checkpoint.tensor(keys.bias)).flatten().double()
    layers = [part for part in classifier.module.modules() if _holds(part, weight)]
    if not layers:
        raise BadInput(
            "the inputs of the head cannot be kept: no module of the network holds its weight",
            saw=f"{keys.weight} {tuple(weight.shape)}, network {classifier.arch}",
            fix=_FIX,
        )
    return HeadInput(layers, weight, bias, keys.weight)


def _rows(checkpoint: Checkpoint, keys: HeadKeys) -> Tensor:
    """The weight of a head, (C, D) float32."""
    import torch

    weight = read_tensor(checkpoint.tensor(keys.weight)).float()
    if keys.layout == "weight_norm" and keys.direction is not None:
        direction = read_tensor(checkpoint.tensor(keys.direction)).float()
        weight = torch._weight_norm(direction, weight, 0)
    return weight.T if keys.layout == "transposed" else weight.flatten(1)


def _holds(part: Any, weight: Tensor) -> bool:
    """Whether a parameter or buffer of a module is the weight (C, D), transposed or not."""
    for tensor in _tensors(part):
        flat = tensor.flatten(1) if math.prod(tensor.shape[2:]) == 1 else tensor
        for rows in (flat, flat.T if flat.dim() == 2 else flat):
            if rows.shape == weight.shape and _alike(rows.detach().float().cpu(), weight):
                return True
    return False


def _tensors(part: Any) -> Iterator[Tensor]:
    """The matrices that a module holds, and those that a weight norm makes of its parameters."""
    import torch
    from torch.nn.utils import parametrize

    own = {**part._parameters, **part._buffers}
    yield from (tensor for tensor in own.values() if tensor is not None and tensor.dim() > 1)
    if own.get("weight_g") is not None and own.get("weight_v") is not None:
        yield torch._weight_norm(own["weight_v"], own["weight_g"], 0)
    if parametrize.is_parametrized(part):
        yield from (getattr(part, name) for name in part.parametrizations)


def _alike(rows: Tensor, weight: Tensor) -> bool:
    return bool(((rows - weight).abs() <= 1e-5 * weight.abs().max()).all())
