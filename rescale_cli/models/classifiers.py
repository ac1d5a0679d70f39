"""Build and load a classifier from a checkpoint and `--arch`: one function for each source.

A source takes the model file and what follows its name in `--arch`, and returns the Classifier.
Tensors are read by our own reader. Foreign code runs in two cases only, and `why` says so: a
TorchScript file is code, and `python:` names the user's code.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.checkpoints.formats.sharded_folder import read_config
from rescale_cli.checkpoints.formats.torch_zip import is_exported
from rescale_cli.core.predictions import Classifier, Preprocessing
from rescale_cli.errors import BadCheckpoint, BadInput, NeedsDecision, UsageError
from rescale_cli.files.contents import TensorInfo
from rescale_cli.finding.find_head import find_heads
from rescale_cli.foreign_code import announce
from rescale_cli.json_text import clip
from rescale_cli.long_work import long_work
from rescale_cli.models import hugging_face, mmpretrain, networks, timm_models
from rescale_cli.models.evaluation_mode import in_evaluation_mode
from rescale_cli.models.networks import as_trained, builder_of, variant_of
from rescale_cli.models.preprocessing_config import (
    from_config,
    from_references,
    from_timm,
    from_torchvision,
)
from rescale_cli.models.recognize import (
    Origin,
    network_named,
    origin_of,
    recognize,
    refuse_unbuilt,
    says,
)
from rescale_cli.models.weights import CHANNELS, USUAL, Build, choose, fit, load_strictly
from rescale_cli.registry import Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A checkpoint, and the config.json beside it."""

    path: Path
    checkpoint: Checkpoint | None
    """None for an archive of torch.export."""
    config: Mapping[str, Any]
    """The config.json beside the weights; empty if there is none."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor of the checkpoint; their values are not read."""
        return self.checkpoint.contents.tensors if self.checkpoint else ()

    @property
    def origin(self) -> Origin | None:
        """The library that wrote the checkpoint, if its layout shows it."""
        return origin_of(self.checkpoint.contents) if self.checkpoint else None

    @property
    def folder(self) -> Path:
        """The folder of the side files."""
        return self.path if self.path.is_dir() else self.path.parent

    def names_of(self, num_classes: int) -> tuple[str, ...] | None:
        """The class names in row order, if the checkpoint or its config has that many.

        One logit decides between two classes, so a single output has two names.
        """
        num_classes = max(2, num_classes)
        own = self.checkpoint.names_of(num_classes) if self.checkpoint else None
        named = self.config.get("classes")
        if own is None and isinstance(named, list) and len(named) == num_classes:
            return tuple(str(name) for name in named)
        return own


def open_model(
    path: Path, accept: frozenset[str] = frozenset(), arch: str | None = None
) -> ModelFile:
    """Read the headers at a path; a file inside a run folder has the run's config.

    With `arch`, as the user named it, a config.json beside a file counts only if it describes that
    network. Otherwise it belongs to another model, and its names and preprocessing are not used.

    Raises:
        BadCheckpoint: the file is unknown, damaged, or not a regular file.
        UnsafePickle: a pickle in it calls or names what no checkpoint needs.
    """
    if path.is_file() and is_exported(path):
        return ModelFile(path, None, {})
    checkpoint = open_checkpoint(path, accept)
    config = checkpoint.contents.config
    if not config and path.is_file():
        with suppress(*(() if arch is None else (BadInput,))):
            beside = read_config(path.parent)
            config = beside if "arch" in beside else config
    if path.is_file() and not _describes(config, arch):
        config = {}
    return ModelFile(path, checkpoint, config)


def _describes(config: Mapping[str, Any], arch: str | None) -> bool:
    """Whether a config.json describes the network that `--arch` names."""
    if arch is None or arch in ("run", "hf"):
        return True
    timm = f"timm:{config.get('architecture')}"
    return config.get("arch", timm) in (arch, arch.partition(".")[0])


#: Facts: `argument`, what follows the name in `--arch`; empty if nothing does.
Source = Callable[[ModelFile, str], Classifier]
models: Registry[Source] = Registry("source of models")


def load_classifier(
    path: Path, arch: str | None = None, *, accept: frozenset[str] = frozenset()
) -> Classifier:
    """Build the network of a checkpoint and load its weights, all of them or none.

    Args:
        path: a checkpoint file or folder.
        arch: the value of `--arch`; None if the checkpoint says it, or if exactly one known network
            has these names and shapes.
        accept: full names of pickle globals that are accepted; they are never run.

    Returns:
        the classifier, in evaluation mode, on the CPU, in float32.

    Raises:
        BadInput: not this network's weights.
        NeedsDecision: no known network has these names and shapes, or several have.
        UsageError: there is no source or no network of that name.
        EnvironmentProblem: a library is missing, or torchvision does not match torch.
    """
    file = open_model(path, accept, arch)
    name, _, rest = (_arch_of(file) if arch is None else arch).partition(":")
    entry = models.entry(name)
    argument = entry.facts["argument"]
    if bool(rest) != bool(argument):
        usage = f"--arch {name}:{argument}" if argument else f"--arch {name}"
        raise UsageError(
            f"--arch {name} needs the name of a network"
            if argument
            else f"--arch {name} does not take the name of a network",
            saw=f"--arch {clip(f'{name}:{rest}', 80)}",
            fix=usage,
        )
    with long_work(f"loading {path.name}"):
        found = entry.run(file, rest)
    in_evaluation_mode(found.module).requires_grad_(False)
    return replace(found, tool=file.checkpoint.tool) if file.checkpoint else found


def _arch_of(file: ModelFile) -> str:
    """The value of `--arch` from the checkpoint itself, or from its names and shapes."""
    if file.checkpoint is None:
        return "pt2"
    if file.checkpoint.contents.format == "torchscript":
        return "torchscript"
    if "arch" in file.config:
        return "run"
    if "model_type" in file.config:
        return "hf"
    named = file.config.get("architecture")
    if isinstance(named, str) and named:
        return f"timm:{named}"
    origin = file.origin
    if origin is None:
        return recognize(file.tensors)
    refuse_unbuilt(origin, file.path.name)
    try:
        return network_named(origin, file.tensors) or recognize(file.tensors)
    except NeedsDecision as error:
        if origin.library == "mmpretrain":
            error.saw += "; mmpretrain wrote the file, and only its ResNets are recognized"
        raise


@models.register("torchvision", argument="NAME")
def torchvision_classifier(file: ModelFile, name: str) -> Classifier:
    """An image classifier of torchvision, with as many classes and channels as the weights have."""
    arch = f"torchvision:{name}"
    build = builder_of(arch, variant_of(arch, file.tensors))
    usual, origin = from_torchvision(name), file.origin
    said = None
    if origin is not None and origin.library == "mmpretrain":
        mmpretrain.refuse_unlike(origin.args, arch)
        said = mmpretrain.mmpretrain_preprocessing(origin.args)
    elif origin is not None and origin.library == "torchvision":
        said = from_references(origin.args)
    return _fitted(file, build, arch, said, usual)


@models.register("rescale", argument="NAME")
def rescale_classifier(file: ModelFile, name: str) -> Classifier:
    """One of our networks, which has no preprocessing of its own."""
    arch = f"rescale:{name}"
    return _fitted(file, builder_of(arch, variant_of(arch, file.tensors)), arch)


@models.register("timm", argument="NAME")
def timm_classifier(file: ModelFile, name: str) -> Classifier:
    """A model of timm, by name; the arguments in a config.json are passed on."""
    origin = file.origin
    args = origin.args if origin is not None and origin.library == "timm" else {}
    given = file.config.get("model_args") or timm_models.model_args(name, args)
    cfg, source = timm_models.data_config(name, args)
    found = from_timm(cfg, source)
    said = found if timm_models.sets_preprocessing(args) else None
    return _fitted(file, timm_models.timm_builder(name, given), f"timm:{name}", said, found)


def _fitted(
    file: ModelFile,
    build: Build,
    arch: str,
    said: Preprocessing | None = None,
    usual: Preprocessing | None = None,
) -> Classifier:
    """The network with its weights.

    Args:
        file: the checkpoint.
        build: makes the network.
        arch: its name.
        said: the preprocessing in the checkpoint itself, for a config.json without one.
        usual: the library's preprocessing for its own weights of this network.
    """
    fitted = fit(as_trained(build, file.config), file.tensors, arch)
    said, where = from_config(file.config) or said, says(file.origin, arch)
    own, suggested = (
        p if p is not None and p.channels == fitted.channels else None for p in (said, usual)
    )
    return Classifier(
        fitted.module,
        fitted.num_classes,
        arch,
        "; ".join(filter(None, (f"{arch} fits every name and shape", where, fitted.why))),
        file.names_of(fitted.num_classes),
        own,
        usual=suggested,
    )


@models.register("run", argument="")
def run_classifier(file: ModelFile, _: str) -> Classifier:
    """A run of `rescale-cli train`, or a file in it; config.json describes the model."""
    arch = file.config.get("arch")
    name = arch.partition(":")[0] if isinstance(arch, str) else ""
    if name == "python":
        raise NeedsDecision(
            "config.json names code, which runs only if you name it yourself",
            saw=clip(f"arch: {arch}"),
            fix=f"--arch {arch}",
        )
    if name not in ("torchvision", "timm", "rescale"):
        raise BadInput(
            f"{file.path.name} is not a run of rescale-cli train",
            saw=clip(f"arch in config.json: {arch!r}"),
            fix="name the network: --arch torchvision:NAME, timm:NAME or rescale:NAME",
        )
    found = models[name](file, str(arch).partition(":")[2])
    return replace(found, why=f"config.json says {found.why}")


@models.register("hf", argument="")
def hugging_face_classifier(file: ModelFile, _: str) -> Classifier:
    """A Hugging Face folder; nothing is fetched, and no code in it is run."""
    if not isinstance(file.config.get("model_type"), str):
        raise BadInput(
            f"{file.path.name} is not a Hugging Face folder",
            saw="config.json has no model_type",
            fix="name the folder with config.json and the weights, or use another --arch",
        )
    from rescale_cli.models.layers import LogitsOnly

    module = hugging_face.load_hugging_face(file.folder, file.tensors)
    num_classes = int(module.config.num_labels)  # type: ignore[union-attr,arg-type]
    return Classifier(
        LogitsOnly(module),
        num_classes,
        "hf",
        f"config.json says {file.config['model_type']}, which transformers builds",
        file.names_of(num_classes),
        hugging_face.preprocessing_in(file.folder, file.config),
    )


@models.register("torchscript", argument="")
def torchscript_classifier(file: ModelFile, _: str) -> Classifier:
    """A TorchScript file, which holds a network and its code."""
    if file.checkpoint is None or file.checkpoint.contents.format != "torchscript":
        raise _wrong_kind(file, "TorchScript", "torch.jit.save")
    from rescale_cli.models.layers import LogitsOnly

    num_classes = find_heads(file.tensors).heads[0].num_classes
    module = LogitsOnly(_load_script(file.path))
    why = "a TorchScript file, whose own graph code is run"
    return Classifier(module, num_classes, "torchscript", why, file.names_of(num_classes))


def _load_script(path: Path) -> nn.Module:
    """The model of a TorchScript file, on the CPU. Running it runs the code in the file.

    Raises:
        BadCheckpoint: torch cannot load it.
    """
    import torch

    announce(
        f"{clip(path.name, 80)} is TorchScript: running the model runs the code in the file, "
        "without a sandbox"
    )
    with warnings.catch_warnings():
        # torch advises model authors to use torch.export; a user who has only the file cannot.
        warnings.filterwarnings("ignore", message="`?torch.jit")
        try:
            module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise BadCheckpoint(
                f"torch cannot load {path.name}", saw=clip(first, 300), fix="export the model again"
            ) from None
    return module.float().eval()


@models.register("pt2", argument="")
def exported_classifier(file: ModelFile, _: str) -> Classifier:
    """An archive of torch.export: a network as a graph, which this tool computes itself."""
    if file.checkpoint is not None:
        raise _wrong_kind(file, "torch.export", "torch.export.save")
    from rescale_cli.models.exported_network import load_exported
    from rescale_cli.models.layers import LogitsOnly

    module, num_classes = load_exported(file.path)
    why = "an archive of torch.export; its graph is computed here, and none of its code is run"
    size = getattr(module, "input_size", None)
    return Classifier(LogitsOnly(module), num_classes, "pt2", why, input_size=size)


def _wrong_kind(file: ModelFile, kind: str, writer: str) -> BadCheckpoint:
    seen = "an archive of torch.export"
    if file.checkpoint is not None:
        seen = f"a checkpoint of the format {file.checkpoint.contents.format}"
    return BadCheckpoint(
        f"{file.path.name} was not written by {kind}",
        saw=seen,
        fix=f"name a file that {writer} wrote, or leave out --arch",
    )


@models.register("python", argument="module:callable")
def python_classifier(file: ModelFile, name: str) -> Classifier:
    """The user's own network, built by running the user's code."""
    from rescale_cli.models.layers import LogitsOnly

    num_classes = file.config.get("num_classes")
    if "arch" not in file.config or not isinstance(num_classes, int):
        num_classes = find_heads(file.tensors, config=file.config).heads[0].num_classes
    build = as_trained(lambda c, _: networks.build_users_network(name, c), file.config)
    module = build(num_classes, USUAL[CHANNELS])
    chosen = choose(file.tensors, module.state_dict())
    load_strictly(module, chosen, f"python:{name}")
    return Classifier(
        LogitsOnly(module.float()),
        num_classes,
        f"python:{name}",
        "; ".join(filter(None, ("built by running the code that --arch names", chosen.why))),
        file.names_of(num_classes),
        from_config(file.config),
    )
