"""Record the inputs of the head while a network runs: logits = features @ weight.T + bias."""

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
#: Tolerance of the logits, as a fraction of the sum of the absolute terms: for float32 (including
#: TF32 on CUDA), and for 16-bit floats.
_NEAR, _NEAR_SHORT = 2e-3, 3e-2


class HeadInput:
    """Records the inputs of the layer that computes the logits; `head_input_of` makes it.

    Args:
        layers: the modules that have the head's weight. The first one whose inputs reproduce the
            logits is used.
        weight: (C, D), from the checkpoint.
        bias: (C,), or None.
        name: name of the weight, for messages.
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
        """Discard the inputs of a failed or earlier forward pass."""
        self._caught.clear()

    def keep(self, logits: Tensor, *, short: bool) -> None:
        """Keep the inputs of the last forward pass.

        Args:
            logits: its output, (n, C).
            short: whether it computed in 16 bits.

        Raises:
            BadInput: the inputs of no layer reproduce the logits.
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
            f"the inputs of {self._name} cannot be saved: they do not reproduce the model's logits",
            saw=self._seen(),
            fix=_FIX,
        )

    def take(self) -> Tensor:
        """The inputs kept since the last call, (n, D) float32, on the device."""
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
            return "the network uses the weight, but never calls the module that has it"
        shapes = [
            " and ".join(str(tuple(getattr(value, "shape", ()))) for value in values)
            for values in self._caught.values()
        ]
        return f"input {'; '.join(shapes)}, weight {tuple(self._weight.shape)}"


def head_input_of(
    classifier: Classifier, path: Path, heads: HeadChoice, accept: frozenset[str]
) -> HeadInput:
    """Find the module that has the head of a checkpoint, and record its inputs whenever it runs.

    Args:
        classifier: built from the checkpoint.
        path: the checkpoint.
        heads: the user's choice of heads.
        accept: full names of pickle globals that may be referred to; they are never called.

    Raises:
        BadInput: the layers of the model are not accessible, several layers compute the logits
            together, or no module has the weight of the head.
        RescaleError: the head is not found.
    """
    if classifier.arch in ("torchscript", "pt2"):
        kind = "TorchScript" if classifier.arch == "torchscript" else "torch.export"
        raise BadInput(
            f"the inputs of the head cannot be saved: {path.name} is a {kind} program, whose "
            "layers are not accessible while it runs",
            saw=classifier.why,
            fix=f"{_FIX}; or use the weights as a state dict, with --arch",
        )
    checkpoint = open_checkpoint(path, accept)
    found = locate(checkpoint, heads, None, max(2, classifier.num_classes))
    if len(found.together) > 1:
        raise BadInput(
            "the inputs of the head cannot be saved: several layers compute the logits together",
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
            "the inputs of the head cannot be saved: no module of the network has its weight",
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
    """Whether a parameter or buffer of a module equals the weight (C, D) or its transpose."""
    for tensor in _tensors(part):
        flat = tensor.flatten(1) if math.prod(tensor.shape[2:]) == 1 else tensor
        for rows in (flat, flat.T if flat.dim() == 2 else flat):
            if rows.shape == weight.shape and _alike(rows.detach().float().cpu(), weight):
                return True
    return False


def _tensors(part: Any) -> Iterator[Tensor]:
    """The matrices of a module, including those that weight normalization computes."""
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
