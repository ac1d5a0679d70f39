"""Open a checkpoint: its format, table of tensors, config and class names."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from rescale_cli.checkpoints.foreign import unreadable
from rescale_cli.checkpoints.formats import all_formats
from rescale_cli.checkpoints.formats.sharded_folder import names_in_config, read_config
from rescale_cli.checkpoints.model_folders import (
    WEIGHTS,
    left_behind,
    other_models,
    refuse_link_out,
    weights_of,
)
from rescale_cli.checkpoints.partial_models import refuse_bare_adapter, refuse_distributed_file
from rescale_cli.core.classes import HeadRows
from rescale_cli.errors import EnvironmentProblem
from rescale_cli.files.contents import Contents, TensorInfo
from rescale_cli.files.reading import (
    Stamp,
    opened_once,
    read_at,
    refuse_lfs_pointer,
    stamp_of,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open checkpoint."""

    path: Path
    """As the user gave it."""
    contents: Contents
    stamps: tuple[Stamp, ...] = ()
    """The stamps of its files when they were read."""
    notes: tuple[str, ...] = ()
    """Notes for the user about how it was found."""

    def refuse_changed(self) -> None:
        """Raise EnvironmentProblem if a file was replaced or written to since it was read."""
        for file, before in zip(self.contents.files, self.stamps, strict=True):
            if stamp_of(file) != before:
                raise EnvironmentProblem(
                    f"another program changed {file} while it was in use",
                    saw="its size or modification time differs from when it was read",
                    fix="wait until no program writes to the file, then run the command again",
                )

    @property
    def is_folder(self) -> bool:
        """Whether the checkpoint, and therefore a patched copy of it, is a folder."""
        return self.path.is_dir()

    def tensor(self, name: str) -> TensorInfo:
        """Return the tensor of that name.

        Raises:
            KeyError: there is no such tensor.
        """
        for info in self.contents.tensors:
            if info.name == name:
                return info
        raise KeyError(name)

    @property
    def other_models(self) -> list[str]:
        """The other models in the folder, as paths below it; none if a file was named."""
        return other_models(self.path, self.contents.files) if self.is_folder else []

    @property
    def left_behind(self) -> tuple[Path, ...]:
        """The files and folders that are not copied with a re-scaled folder, in order.

        Raises:
            OSError: a folder cannot be listed.
        """
        if not self.is_folder:
            return ()
        return tuple(left_behind(self.path, self.contents.files, run=self.tool == "rescale"))

    def names_of(self, num_classes: int) -> tuple[str, ...] | None:
        """Return the class names in row order, or None if no list has that length."""
        return next((n for n in self.contents.class_names if len(n) == num_classes), None)

    @property
    def tool(self) -> str:
        """The library that trained it, if known: timm, torchvision, rescale (`train`), or ""."""
        config = self.contents.config
        if "arch" in config and "preprocessing" in config:
            return "rescale"
        timm = "architecture" in config and "pretrained_cfg" in config
        return "timm" if timm else self.contents.tool

    def rows(self, num_classes: int, title: str = "") -> HeadRows:
        """Return the rows of its head, with their class names if it has them."""
        return HeadRows(num_classes, self.names_of(num_classes), self.tool, title)


def open_checkpoint(path: Path, accept: frozenset[str] = frozenset()) -> Checkpoint:
    """Read the headers of a checkpoint file or folder, without loading tensors or running code.

    A single file is opened once, and so is each shard of a folder. If a folder contains exactly one
    model in its subfolders, that model is opened, and `notes` says so.

    Args:
        path: a file of any supported format, a folder, or the index of a sharded folder.
        accept: full names of pickle globals to accept; they are not run either.

    Raises:
        BadCheckpoint: unknown format, damaged, or not a regular file.
        UnsafePickle: a pickle in it calls or names something that no checkpoint needs.
    """
    if os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises where a name is too long)
        refuse_distributed_file(path)
        weights = weights_of(path)
        if weights.parent == path and weights.is_file():
            return _open(path, accept)
        refuse_link_out(path, weights)
        inner = open_checkpoint(weights, accept)
        note = f"using {weights.relative_to(path)}, the only model in {path}"
        return replace(inner, notes=(note, *inner.notes))
    with opened_once(path) as fd:
        refuse_lfs_pointer(path, read_at(fd, 0, min(256, os.fstat(fd).st_size)))
        refuse_distributed_file(path)
        return _open(path, accept)


def _open(path: Path, accept: frozenset[str]) -> Checkpoint:
    for module in all_formats():
        if module.matches(path):
            contents: Contents = module.list_tensors(path, accept)
            refuse_bare_adapter(contents.files[0], contents.tensors)
            if path.is_file() and path.name.endswith(".json"):
                path = path.parent
            elif path.is_file() and _is_of_folder(path):
                contents = _with_config(contents, path)
            return Checkpoint(path, contents, tuple(map(stamp_of, contents.files)))
    raise unreadable(path)


def _is_of_folder(path: Path) -> bool:
    """Whether a file has a conventional name for the weights of a folder.

    This includes model.rescaled.safetensors, which `apply` writes beside model.safetensors.
    """
    return f"{path.name.partition('.')[0]}{path.suffix}" in WEIGHTS


def _with_config(contents: Contents, path: Path) -> Contents:
    """Add the config.json beside the file, as for a folder."""
    config = read_config(path.parent)
    return replace(
        contents, config=config, class_names=names_in_config(config) + contents.class_names
    )
