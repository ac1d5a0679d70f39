"""A checkpoint, opened: which format it is, and the table of its tensors."""

from __future__ import annotations

import os
import pkgutil
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from rescale_cli import formats
from rescale_cli.checkpoints.adapter import refuse_bare_adapter
from rescale_cli.checkpoints.damage import unreadable
from rescale_cli.checkpoints.training_state import refuse_distributed_file
from rescale_cli.core.row_names import HeadRows
from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.errors import EnvironmentProblem
from rescale_cli.files.regular_file import (
    Stamp,
    opened,
    read_at,
    refuse_lfs_pointer,
    stamp_of,
)
from rescale_cli.formats._interface import Contents
from rescale_cli.formats.sharded_folder import WEIGHTS, names_in_config, read_config


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one path holds."""

    path: Path
    """As the user gave it."""
    contents: Contents
    stamps: tuple[Stamp, ...] = ()
    """Of its files, when they were read."""

    def refuse_changed(self) -> None:
        """Stop if a file is not the one that was opened, or was written to since.

        Raises:
            EnvironmentProblem: another program is at work on it.
        """
        for file, before in zip(self.contents.files, self.stamps, strict=True):
            if stamp_of(file) != before:
                raise EnvironmentProblem(
                    f"{file} was changed by another program in the meantime",
                    saw="another size or time than when it was read",
                    fix="wait until nothing writes to it, then run the command again",
                )

    @property
    def is_folder(self) -> bool:
        """Whether a patched copy is a folder, too."""
        return self.path.is_dir()

    def tensor(self, name: str) -> TensorInfo:
        """The tensor of that name.

        Raises:
            KeyError: there is none.
        """
        for info in self.contents.tensors:
            if info.name == name:
                return info
        raise KeyError(name)

    @property
    def other_models(self) -> list[str]:
        """What else in the folder holds a model, and is not the one read here."""
        from rescale_cli.checkpoints.models_inside import other_models

        return other_models(self.path, self.contents.files)

    def names_of(self, num_classes: int) -> tuple[str, ...] | None:
        """The class names that the checkpoint carries, in row order, if it has that many."""
        return next((n for n in self.contents.class_names if len(n) == num_classes), None)

    @property
    def tool(self) -> str:
        """What trained it, as it says itself: timm, torchvision, rescale (a run of ours), or ""."""
        config = self.contents.config
        if "arch" in config and "preprocessing" in config:
            return "rescale"
        timm = "architecture" in config and "pretrained_cfg" in config
        return "timm" if timm else self.contents.tool

    def rows(self, num_classes: int, title: str = "") -> HeadRows:
        """The rows of its head, with what it says of their classes."""
        return HeadRows(num_classes, self.names_of(num_classes), self.tool, title)


def all_formats() -> list[ModuleType]:
    """Every format; the folder is the registry."""
    names = [module.name for module in pkgutil.iter_modules(formats.__path__)]
    return [import_module(f"{formats.__name__}.{n}") for n in sorted(names) if n[0] != "_"]


def open_checkpoint(path: Path, accept: frozenset[str] = frozenset()) -> Checkpoint:
    """Read the headers of a checkpoint file or folder; no tensor is loaded, nothing is run.

    Args:
        path: a file of any supported format, a folder, or the index of a sharded folder.
        accept: full names of pickle globals that are let pass, still without being run.

    Raises:
        BadCheckpoint: unknown, damaged, or not a regular file.
        UnsafePickle: a pickle in it calls or names what no checkpoint needs.
    """
    if not os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises where a name is too long)
        with opened(path) as fd:
            head = read_at(fd, 0, min(256, os.fstat(fd).st_size))
        refuse_lfs_pointer(path, head)
    refuse_distributed_file(path)
    for module in all_formats():
        if module.matches(path):
            contents: Contents = module.list_tensors(path, accept)
            refuse_bare_adapter(contents.files[0], contents.tensors)
            if not path.is_dir() and path.name.endswith(".json"):
                path = path.parent
            elif path.is_file() and _is_of_folder(path):
                contents = _with_config(contents, path)
            return Checkpoint(path, contents, tuple(map(stamp_of, contents.files)))
    raise unreadable(path)


def _is_of_folder(path: Path) -> bool:
    """Whether a file is what holds a folder's weights, or such a file re-scaled.

    `apply` writes model.rescaled.safetensors beside model.safetensors; it is the same model.
    """
    return f"{path.name.partition('.')[0]}{path.suffix}" in WEIGHTS


def _with_config(contents: Contents, path: Path) -> Contents:
    """The weights of a Hugging Face or timm folder, named themselves, still have their config."""
    config = read_config(path.parent)
    return replace(
        contents, config=config, class_names=names_in_config(config) + contents.class_names
    )
