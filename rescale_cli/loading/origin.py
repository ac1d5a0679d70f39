"""Which library wrote a checkpoint, and what it says of the network, from plain values alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rescale_cli.errors import BadInput
from rescale_cli.formats._interface import Contents
from rescale_cli.json_text import clip

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
    """The library that wrote a file of torch.save, by its layout; None where nothing says it.

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
    """Networks that Lightning's hyper-parameters name, by the library that they name with it."""
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
    """Where the checkpoint names a network, in words; empty if it names another or none."""
    named = () if origin is None else origin.archs
    if origin is None or not {arch, arch[arch.find(":") :]} & set(named):
        return ""
    return f"named by {origin.where}"


def refuse_unbuilt(origin: Origin, name: str) -> None:
    """Stop where the network belongs to a library that is not run here.

    Raises:
        BadInput: the checkpoint is one of ultralytics or fastai.
    """
    if origin.library not in ("ultralytics", "fastai"):
        return
    raise BadInput(
        f"{name} holds a network of {origin.library}, which this tool does not run",
        saw=clip(origin.where),
        fix=f"write its logits with {origin.library} into an .npz file, logits (N, C) and labels "
        "(N,): --logits FILE; or build the network yourself: --arch python:module:callable",
    )
