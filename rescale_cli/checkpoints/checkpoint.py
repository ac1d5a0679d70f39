"""A checkpoint, opened: its format, the table of its tensors, its config and class names."""

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
    """What one path holds."""

    path: Path
    """As the user gave it."""
    contents: Contents
    stamps: tuple[Stamp, ...] = ()
    """The stamps of its files when they were read."""
    notes: tuple[str, ...] = ()
    """What a user should know of how it was found."""

    def refuse_changed(self) -> None:
        """Stop if a file was replaced or written to since it was read.

        Raises:
            EnvironmentProblem: another program changes the file.
        """
        for file, before in zip(self.contents.files, self.stamps, strict=True):
            if stamp_of(file) != before:
                raise EnvironmentProblem(
                    f"{file} was changed by another program in the meantime",
                    saw="its size or modification time differs from when it was read",
                    fix="wait until no program writes to the file, then run the command again",
                )

    @property
    def is_folder(self) -> bool:
        """Whether the checkpoint, and so a patched copy of it, is a folder."""
        return self.path.is_dir()

    def tensor(self, name: str) -> TensorInfo:
        """The tensor of that name.

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
        """The files and folders of a folder that its re-scaled copy does not get, in order.

        Raises:
            OSError: a folder cannot be listed.
        """
        if not self.is_folder:
            return ()
        return left_behind(self.path, self.contents.files, run=self.tool == "rescale")

    def names_of(self, num_classes: int) -> tuple[str, ...] | None:
        """The class names in the checkpoint, in row order; None without a list of that length."""
        return next((n for n in self.contents.class_names if len(n) == num_classes), None)

    @property
    def tool(self) -> str:
        """What trained it, by its own account: timm, torchvision, rescale (`train`), or ""."""
        config = self.contents.config
        if "arch" in config and "preprocessing" in config:
            return "rescale"
        timm = "architecture" in config and "pretrained_cfg" in config
        return "timm" if timm else self.contents.tool

    def rows(self, num_classes: int, title: str = "") -> HeadRows:
        """The rows of its head, with what it says of their classes."""
        return HeadRows(num_classes, self.names_of(num_classes), self.tool, title)


def open_checkpoint(path: Path, accept: frozenset[str] = frozenset()) -> Checkpoint:
    """Read the headers of a checkpoint file or folder; no tensor is loaded, no code is run.

    A single file is opened once, and so is each shard of a folder. Of a folder that holds exactly
    one model further down, that model is opened, and `notes` says so.

    Args:
        path: a file of any supported format, a folder, or the index of a sharded folder.
        accept: full names of pickle globals that are accepted; they are not run either.

    Raises:
        BadCheckpoint: unknown format, damaged, or not a regular file.
        UnsafePickle: a pickle in it calls or names what no checkpoint needs.
    """
    if os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises where a name is too long)
        refuse_distributed_file(path)
        weights = weights_of(path)
        if weights.parent == path and weights.is_file():
            return _open(path, accept)
        refuse_link_out(path, weights)
        inner = open_checkpoint(weights, accept)
        note = f"{path} holds one model, {weights.relative_to(path)}, which is used"
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
    """Whether a file has a conventional name for a folder's weights, perhaps as `apply` writes it.

    `apply` writes model.rescaled.safetensors beside model.safetensors; it is the same model.
    """
    return f"{path.name.partition('.')[0]}{path.suffix}" in WEIGHTS


def _with_config(contents: Contents, path: Path) -> Contents:
    """The contents with the config.json beside the file: its own, as in a folder."""
    config = read_config(path.parent)
    return replace(
        contents, config=config, class_names=names_in_config(config) + contents.class_names
    )
