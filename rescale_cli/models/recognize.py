"""Which library wrote a checkpoint, and which known network has these names and shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

from rescale_cli.errors import BadInput, NeedsDecision
from rescale_cli.files.contents import Contents, TensorInfo
from rescale_cli.finding.shapes import copies, in_model
from rescale_cli.foreign_code import torchvision
from rescale_cli.json_text import clip
from rescale_cli.models import timm_models
from rescale_cli.models.networks import (
    AUXILIARY,
    builder_of,
    networks,
    torchvision_names,
    variant_of,
)
from rescale_cli.models.weights import (
    CHANNELS,
    CLASSES,
    Shapes,
    choose,
    differences,
    hollow_shapes,
    measure,
)

#: Arguments that only the training scripts of one library have.
_TIMM_ARGS = frozenset({"gp", "crop_pct", "nb_classes", "drop_path", "model_ema_decay", "aa"})
_TORCHVISION_ARGS = frozenset({"val_crop_size", "val_resize_size", "lr_step_size", "test_only"})
#: Keys under which programs write the name of their network.
_NAMES = (
    "model_name", "arch", "architecture", "model", "model_arch", "backbone", "backbone_name",
    "encoder", "encoder_name", "net", "network", "network_name", "base_model", "variant",
    "_target_",
)  # fmt: skip
#: Modules of a pickle that belong to libraries whose networks are not built here.
_NOT_BUILT = {"ultralytics": "ultralytics", "models": "ultralytics", "fastai": "fastai"}


@dataclass(frozen=True, slots=True)
class Origin:
    """What the layout of a checkpoint says about its network."""

    library: str
    """timm, torchvision, lightning, mmpretrain, ultralytics, fastai, or unknown."""
    where: str
    """The entry that names the library, for messages."""
    archs: tuple[str, ...] = ()
    """Networks as `--arch` names them; without a library before the colon, of any library."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of its training program."""


def origin_of(contents: Contents) -> Origin | None:
    """The library that wrote a file of torch.save, by its layout; None if it cannot be recognized.

    Example:
        >>> facts = {"arch": "resnet18", "version": 2, "epoch": 1, "args": {"model": "resnet18"}}
        >>> origin_of(Contents("torch-zip", (), (), facts=facts)).archs
        ('timm:resnet18',)
    """
    foreign = _not_built(contents)
    if foreign is not None:
        return foreign
    facts = contents.facts
    args = facts.get("args")
    args = args if isinstance(args, dict) else {}
    meta, hyper = facts.get("meta"), facts.get("hyper_parameters") or facts.get("hparams")
    if isinstance(meta, dict) and meta.keys() & {
        "cfg", "config", "dataset_meta", "CLASSES", "mmengine_version", "mmcls_version",
    }:  # fmt: skip
        return Origin("mmpretrain", "meta", args=meta)
    if "pytorch-lightning_version" in facts and isinstance(hyper, dict):
        return Origin("lightning", "hyper_parameters", _in_parameters(hyper), hyper)
    name = args.get("model") or facts.get("arch") or args.get("arch")
    if not isinstance(name, str) or not name:
        return None
    if "arch" in facts and {"version", "epoch"} <= facts.keys():
        return Origin("timm", "arch and args of timm's CheckpointSaver", (f"timm:{name}",), args)
    if args.keys() & _TORCHVISION_ARGS:
        return Origin("torchvision", "args of torchvision's references", (_bare(name),), args)
    if args.keys() & _TIMM_ARGS:
        return Origin("timm", "args of a training script on timm", (f"timm:{name}",), args)
    return Origin("unknown", "arch" if "arch" in facts else "args", (_bare(name),), args)


def _not_built(contents: Contents) -> Origin | None:
    for full in contents.globals:
        root = full.partition(".")[0]
        if root == "models" and not full.startswith("models.yolo."):  # YOLOv5's own repository
            continue
        if root in _NOT_BUILT:
            return Origin(_NOT_BUILT[root], f"the class {full}")
    names = [info.name for info in contents.tensors]
    sides = {".".join(name.split(".")[:2]) for name in names if name.startswith("model.")}
    if sides == {"model.0", "model.1"} and any(name.startswith("opt.") for name in names):
        return Origin("fastai", "the keys model and opt of fastai's Learner.save")
    return None


def _in_parameters(hyper: Mapping[str, Any]) -> tuple[str, ...]:
    """The networks that Lightning's hyper-parameters name, with their libraries."""
    said = list(_texts(hyper))
    words = " ".join(f"{key} {text}" for key, text in said).lower()
    libraries = [library for library in ("timm", "torchvision") if library in words]
    names = (_bare(text) for key, text in said if key in _NAMES)
    listed = (name for name in names if name.replace("_", "").replace(".", "")[1:].isalnum())
    return tuple(
        dict.fromkeys(f"{library}{name}" for name in listed for library in libraries or ("",))
    )


def _bare(text: str) -> str:
    """The name of a network behind a colon, without the library before it."""
    for before in (
        "hf-hub:",
        "hf_hub:",
        "timm/",
        "timm:",
        "timm.",
        "torchvision:",
        "torchvision.",
        "models.",
    ):
        text = text.removeprefix(before)
    return f":{text}"


def _texts(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            yield from _texts(value)


def says(origin: Origin | None, arch: str) -> str:
    """The entry in which the checkpoint names a network, in words; empty if it does not."""
    named = () if origin is None else origin.archs
    if origin is None or not {arch, arch[arch.find(":") :]} & set(named):
        return ""
    return f"named by {origin.where}"


def refuse_unbuilt(origin: Origin, name: str) -> None:
    """Refuse checkpoints of libraries whose networks this tool does not run.

    Raises:
        BadInput: ultralytics or fastai wrote the checkpoint.
    """
    if origin.library not in ("ultralytics", "fastai"):
        return
    raise BadInput(
        f"{name} holds a network of {origin.library}, which this tool does not run",
        saw=clip(origin.where),
        fix=f"write its logits with {origin.library} into an .npz file, logits (N, C) and labels "
        "(N,): --logits FILE; or build the network yourself: --arch python:module:callable",
    )


#: How much the number of parameters may differ for other channels or image sizes, as a share and
#: at least: only a first filter.
SHARE, LEAST = 0.01, 1 << 15


def recognize(tensors: Sequence[TensorInfo]) -> str:
    """The network, as `--arch` names it, whose state has exactly these names and shapes.

    The number of classes and of channels is free. Only networks with about as many parameters are
    built, on the meta device.

    Raises:
        NeedsDecision: no network of torchvision's or ours has them, or several have.
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
    raise NeedsDecision(
        "the network of this checkpoint is not known: no network of torchvision has these names "
        "and shapes",
        saw=f"{len(model)} tensors: {clip(shown)}",
        fix="name the network: --arch timm:NAME, torchvision:NAME or python:module:callable",
    )


def network_named(origin: Origin, tensors: Sequence[TensorInfo]) -> str | None:
    """The network that a checkpoint names, if the weights fit it; otherwise None.

    Raises:
        NeedsDecision: timm wrote the file, but not the name of the model.
        EnvironmentProblem: timm is needed and not installed.
    """
    if origin.library == "timm":
        arch = origin.archs[0]
        if timm_models.is_model(arch.partition(":")[2]):
            return arch
        raise NeedsDecision(
            "timm wrote this file, but it does not say which of its models it is",
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
    return _same(hollow_shapes(timm_models.timm_builder(name, {})), tensors)


def _of_that_size(model: Sequence[TensorInfo]) -> Iterator[str]:
    """Networks that would have about as many parameters with the same number of classes."""
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
    """Every network: its name, a number of classes, and its number of parameters for them."""
    weights = torchvision().models.get_model_weights
    theirs = [
        (f"torchvision:{name}", 1000, next(iter(weights(name))).meta["num_params"])
        for name in torchvision_names()
    ]
    # For these, the published number is that of one variant only.
    theirs += [(f"torchvision:{name}", 1000, n) for name, both in AUXILIARY.items() for n in both]
    ours = [
        (f"rescale:{name}", 10, cast("int", networks.entry(name).facts["parameters"]))
        for name in networks
    ]
    return (*theirs, *ours)


def _sizes(model: Sequence[TensorInfo], classes: int) -> set[int]:
    """The possible numbers of parameters with that many classes, whichever layers are heads."""
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
    return hollow_shapes(builder_of(arch, variant))
