"""Which known network has these names and shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import cast

from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.errors import BadInput, NeedsDecision
from rescale_cli.finding.model_copies import copies, in_model
from rescale_cli.json_text import clip
from rescale_cli.loading import timm_models
from rescale_cli.loading.fit_weights import (
    CHANNELS,
    CLASSES,
    Shapes,
    differences,
    hollow_shapes,
    measure,
)
from rescale_cli.loading.known_networks import AUXILIARY, build_of, torchvision_names, variant_of
from rescale_cli.loading.libraries import torchvision
from rescale_cli.loading.origin import Origin
from rescale_cli.loading.state_tensors import choose
from rescale_cli.training.networks import networks

#: Parameters by which a network with other channels or another image size may differ, as a share
#: and at least: only a first sieve.
SHARE, LEAST = 0.01, 1 << 15


def recognize(tensors: Sequence[TensorInfo]) -> str:
    """The network, as `--arch` names it, whose state has exactly these names and shapes.

    The number of classes and of channels may be any. Only networks with about as many parameters
    are built, and without memory.

    Raises:
        BadInput: no network of torchvision's or ours has them.
        NeedsDecision: several have.
    """
    kept = in_model(tensors)
    first = next(iter(copies(kept)), "")
    model = [info for info in kept if info.name.startswith(first)]
    found = [arch for arch in _of_that_size(model) if _has(arch, model)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NeedsDecision(
            f"{len(found)} networks have exactly these names and shapes",
            saw=", ".join(found),
            fix=f"name one: --arch {found[0]}",
        )
    shown = ", ".join(f"{info.name} {info.shape}" for info in model[:3])
    raise BadInput(
        "no network of torchvision has these names and shapes",
        saw=f"{len(model)} tensors: {clip(shown)}",
        fix="name the network: --arch timm:NAME, torchvision:NAME or python:module:callable",
    )


def network_named(origin: Origin, tensors: Sequence[TensorInfo]) -> str | None:
    """The network that a checkpoint names, if the weights fit it; None if it names none that does.

    Raises:
        NeedsDecision: timm wrote the file without the name of its model.
        EnvironmentProblem: timm is needed and not installed.
    """
    if origin.library == "timm":
        arch = origin.archs[0]
        if timm_models.is_model(arch.partition(":")[2]):
            return arch
        raise NeedsDecision(
            "timm wrote this file and does not say which of its models it is",
            saw=clip(f"{origin.where}: {arch}"),
            fix="name the model: --arch timm:NAME",
        )
    known = set(torchvision_names())
    for named in origin.archs:
        library, _, name = named.partition(":")
        if library != "timm" and name in known and _fits(f"torchvision:{name}", tensors):
            return f"torchvision:{name}"
        wanted = library == "timm" or (not library and find_spec("timm") is not None)
        if wanted and timm_models.is_model(name) and _fits(f"timm:{name}", tensors):
            return f"timm:{name}"
    return None


def _fits(arch: str, tensors: Sequence[TensorInfo]) -> bool:
    """Whether a network has exactly the names and shapes of the weights."""
    source, _, name = arch.partition(":")
    if source != "timm":
        return _has(arch, tensors)
    return _same(hollow_shapes(timm_models.build_of(name, {})), tensors)


def _of_that_size(model: Sequence[TensorInfo]) -> Iterator[str]:
    """Networks that would have as many parameters, had they as many classes."""
    sizes: dict[int, set[int]] = {}
    seen: set[str] = set()
    for arch, classes, parameters in _known():
        there = sizes.setdefault(classes, _sizes(model, classes))
        if arch not in seen and any(
            abs(size - parameters) <= max(LEAST, SHARE * parameters) for size in there
        ):
            seen.add(arch)
            yield arch


@cache
def _known() -> tuple[tuple[str, int, int], ...]:
    """Every network: its name, and how many parameters it has with how many classes."""
    weights = torchvision().models.get_model_weights
    theirs = [
        (f"torchvision:{name}", 1000, next(iter(weights(name))).meta["num_params"])
        for name in torchvision_names()
    ]
    # Of these, the published number is that of one variant.
    theirs += [(f"torchvision:{name}", 1000, n) for name, both in AUXILIARY.items() for n in both]
    ours = [
        (f"rescale:{name}", 10, cast("int", networks.entry(name).facts["parameters"]))
        for name in networks
    ]
    return (*theirs, *ours)


def _sizes(model: Sequence[TensorInfo], classes: int) -> set[int]:
    """Parameters of the model if it had that many classes, whichever of its layers are heads."""
    parameters = [i for i in model if "float" in i.dtype and "running_" not in i.name]
    total = sum(info.numel for info in parameters)
    found, widths = {total}, Counter[int]()
    for info in parameters:
        if len(info.shape) == 2 or info.shape[2:] == (1, 1):
            rows, width = info.shape[0], info.shape[1] + 1
            found.add(total + (classes - rows) * width)
            widths[rows] += width
    return found | {total + (classes - rows) * width for rows, width in widths.items()}


def _has(arch: str, model: Sequence[TensorInfo]) -> bool:
    return _same(_shapes_of(arch, variant_of(arch, model)), model)


def _same(shapes: Shapes, model: Sequence[TensorInfo]) -> bool:
    chosen = choose(model, shapes)
    sizes = {mark: measure(shapes, chosen, mark) for mark in (CLASSES, CHANNELS)}
    own = {name: tuple(sizes.get(n, n) for n in shape) for name, shape in shapes.items()}
    return not differences(own, chosen)


@cache
def _shapes_of(arch: str, variant: bool) -> Shapes:
    return hollow_shapes(build_of(arch, variant))
