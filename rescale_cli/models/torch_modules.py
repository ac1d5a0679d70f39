"""Modules of torch: our layers, and models of other forms. Only functions import this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that PyTorch's own pages use)

from rescale_cli.errors import BadInput
from rescale_cli.files.contents import TensorInfo
from rescale_cli.json_text import clip
from rescale_cli.models.export_archive import ExportArchive, Ref, evaluate
from rescale_cli.models.export_graph import GraphReader
from rescale_cli.models.weights import read_tensor


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the new channels: option A of He et al. 2016."""

    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, wide - wide_in

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, wide_in, H, W) to (N, wide, H / stride, W / stride)."""
        half = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, half, self.new_channels - half))


class Block(nn.Module):
    """Two 3x3 convolutions, and a shortcut around them."""

    def __init__(self, wide_in: int, wide: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, wide_in, H, W) to (N, wide, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class CifarResNet(nn.Module):
    """16, 32 and 64 channels, `depth` blocks each, then `linear` (C, 64)."""

    def __init__(self, depth: int, num_classes: int, channels: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _padded_stage(16, 16, depth)
        self.layer2 = _padded_stage(16, 32, depth)
        self.layer3 = _padded_stage(32, 64, depth)
        self.linear = nn.Linear(64, num_classes, bias=bias)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to logits (N, C)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class PooledNetwork(nn.Module):
    """Features, averaged over all pixels, then `fc` (C, 512)."""

    def __init__(self, features: nn.Module, num_classes: int, bias: bool) -> None:
        super().__init__()
        self.features = features
        self.fc = nn.Linear(512, num_classes, bias=bias)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to logits (N, C)."""
        logits: Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return logits


def vgg_features(widths: Sequence[int], channels: int) -> nn.Sequential:
    """A 3x3 convolution a width, each with batch normalization; 0 stands for halving the size."""
    layers: list[nn.Module] = []
    for wide in widths:
        if not wide:
            layers.append(nn.MaxPool2d(2))
            continue
        conv = nn.Conv2d(channels, wide, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
        channels = wide
    return nn.Sequential(*layers)


def initialize(network: nn.Module) -> None:
    """Draw every weight matrix as He et al. 2015 do, for layers that ReLU follows."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def set_channels_(network: nn.Module, channels: int) -> None:
    """Change the number of input channels of a network's first convolution, in place."""
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if conv.in_channels == channels:
        return
    shape = (conv.out_channels, channels, *conv.kernel_size)
    conv.in_channels, conv.weight = channels, nn.Parameter(conv.weight.new_empty(shape))
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _padded_stage(wide_in: int, wide: int, depth: int) -> nn.Sequential:
    stride = 1 if wide == wide_in else 2
    shortcut = nn.Identity() if wide == wide_in else PadShortcut(wide_in, wide, stride)
    first = Block(wide_in, wide, stride, shortcut)
    return nn.Sequential(first, *(Block(wide, wide, 1, nn.Identity()) for _ in range(depth - 1)))


class CosineHead(nn.Module):
    """z_i = s cos(w_i, f): rows and features to unit length (Cao et al. 2019).

    The authors store the weight as (D, C) and leave s to the loss; here it is (C, D), as in every
    linear layer, and s is in the logits, so that probabilities come out right.
    """

    def __init__(self, feature_dim: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        self.scale: Tensor
        # As part of the weights it also shows that the head is not a linear one.
        self.register_buffer("scale", torch.tensor(scale))
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim).uniform_(-1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (N, D) to logits (N, C), from -s to s."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def give_cosine_head(network: nn.Module, name: str, scale: float = 30.0) -> CosineHead:
    """Put a cosine head in the place of the linear layer of that name, and return it.

    Args:
        network: changed in place.
        name: the dotted name of its last linear layer, such as `fc`.
        scale: s.
    """
    above, _, last = name.rpartition(".")
    old = network.get_submodule(name)
    assert isinstance(old, nn.Linear), name
    made = CosineHead(old.in_features, old.out_features, scale).to(old.weight)
    setattr(network.get_submodule(above), last, made)
    return made


def normalize_together(network: nn.Module, device: torch.device) -> nn.Module:
    """Let batch normalization use the batches of all ranks, so that ranks do not change the result.

    On CUDA it is torch's SyncBatchNorm, which does not run on CPUs; there it is ours.
    """
    if device.type == "cuda":
        convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
        synced: nn.Module = convert(network)
        return synced
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(module, name, RankedBatchNorm(child))
    return network


class RankedBatchNorm(nn.Module):
    """Our SyncBatchNorm for CPUs, with the same parameters, buffers and names as BatchNorm."""

    def __init__(self, old: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = old.eps, old.momentum
        self.weight, self.bias = old.weight, old.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(old, name))
        self.train(old.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, c, ...) to the same shape."""
        mean, var = cast("tuple[Tensor, Tensor]", (self.running_mean, self.running_var))
        if not self.training:
            return nn.functional.batch_norm(
                x, mean, var, self.weight, self.bias, False, 0, self.eps
            )
        y, batch_mean, batch_var, n = _Normalize.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[operator]
            share = self.momentum
            if share is None:
                share = 1 / float(self.num_batches_tracked)  # type: ignore[arg-type]
            mean.lerp_(batch_mean, share)
            var.lerp_(batch_var * (n / max(n - 1, 1)), share)
        return cast("Tensor", y)


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, mean and variance over all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        axes = [0, *range(2, x.dim())]
        own_var, own_mean = torch.var_mean(x.float(), axes, correction=0)
        own, square = own_mean.double(), own_var.double() + own_mean.double().square()
        size = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
        # In float64 the difference of squares keeps its digits: one message, not two.
        sums = torch.cat([own * size, square * size, size])
        dist.all_reduce(sums)
        n, c = float(sums[-1]), x.shape[1]
        mean = sums[:c] / n
        var = (sums[c : 2 * c] / n - mean.square()).clamp_min_(0)
        scale = (var + eps).rsqrt()
        mean, var, scale = mean.to(_wide(x)), var.to(_wide(x)), scale.float()
        shape = (1, c, *[1] * (x.dim() - 2))
        ctx.save_for_backward(x, mean, scale, weight)
        ctx.n, ctx.shape, ctx.axes = n, shape, axes
        y = (x - mean.view(shape)) * scale.view(shape)
        if weight is not None and bias is not None:
            y = y * weight.view(shape) + bias.view(shape)
        ctx.mark_non_differentiable(mean, var)
        return y.to(x.dtype), mean, var, n

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        x, mean, scale, weight = ctx.saved_tensors
        shape, axes = ctx.shape, ctx.axes
        grad = grad.float()
        centred = x - mean.view(shape)
        total, along = grad.sum(axes), (grad * centred).sum(axes)
        sums = torch.cat([total, along])
        dist.all_reduce(sums)
        mean_grad, mean_along = (part / ctx.n for part in sums.chunk(2))
        inner = grad - mean_grad.view(shape)
        inner = inner - centred * (mean_along * scale.square()).view(shape)
        factor = scale if weight is None else scale * weight
        back = (inner * factor.view(shape)).to(x.dtype)
        if weight is None:
            return back, None, None, None
        return back, along * scale, total, None


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of the statistics, float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


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


class LogitsOnly(nn.Module):
    """Takes (n, C) logits out of what a model answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, H, W) to (n, C).

        Raises:
            BadInput: the answer is no matrix of one row an image.
        """
        return logits_of(self.model(images), len(images))


def logits_of(answer: Any, n: int) -> Tensor:
    """The logits (n, C) in an answer: a tensor, the first of a tuple, or `logits` by name.

    Raises:
        BadInput: there is no such tensor in it.
    """
    found = answer
    if isinstance(answer, dict):
        found = answer.get("logits")
    elif isinstance(answer, tuple | list) and answer:
        found = answer[0]
    found = getattr(found, "logits", found)
    if isinstance(found, Tensor) and found.dim() == 1:
        found = found[:, None]  # one logit an image, for two classes
    if isinstance(found, Tensor) and found.dim() > 2 and found.shape[2:].numel() == 1:
        found = found.flatten(1)
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != n:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(answer).__name__
        raise BadInput(
            "the model does not answer with one row of logits an image",
            saw=clip(f"{shape} for {n} images"),
            fix="wrap it in a function that returns (n, C) logits: --arch python:module:callable",
        )
    return found
