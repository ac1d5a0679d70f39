"""A checkpoint, opened: which format it is, and the table of its tensors."""

from __future__ import annotations

import os
import pkgutil
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from rescale_cli import formats
from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.errors import BadCheckpoint, EnvironmentProblem
from rescale_cli.files.regular_file import (
    Stamp,
    opened,
    read_at,
    refuse_lfs_pointer,
    stamp_of,
)
from rescale_cli.formats import torch_zip
from rescale_cli.formats._interface import Contents
from rescale_cli.formats.sharded_folder import WEIGHTS, names_in_config, read_config

#: First bytes of files that are models, but not of a kind that is read here.
FOREIGN = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (Keras)",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x93NUMPY": "a NumPy array",
    b"TFL3": "a TensorFlow Lite model",
    b"PK\x03\x04": "a zip archive that torch.save did not write",
    b"\x80": "a plain pickle, or a torch file that lacks its beginning",
}


#: What to do about a model whose weights another runtime keeps in a form of its own.
_EXPORTED = "re-scale the checkpoint that it was exported from, and export that again"


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
    def other_weights(self) -> tuple[str, ...]:
        """Files of a folder that hold weights, too, and are not the ones read here."""
        if not self.is_folder:
            return ()
        used = {file.name for file in self.contents.files}
        there = (name for name in WEIGHTS if not name.endswith(".json"))
        return tuple(n for n in there if n not in used and (self.path / n).exists())

    def names_of(self, num_classes: int) -> tuple[str, ...] | None:
        """The class names that the checkpoint carries, in row order, if it has that many."""
        return next((n for n in self.contents.class_names if len(n) == num_classes), None)


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
    for module in all_formats():
        if module.matches(path):
            contents: Contents = module.list_tensors(path, accept)
            if not path.is_dir() and path.name.endswith(".json"):
                path = path.parent
            elif path.is_file() and _is_of_folder(path):
                contents = _with_config(contents, path)
            return Checkpoint(path, contents, tuple(map(stamp_of, contents.files)))
    raise _unclaimed(path, head)


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


def _unclaimed(path: Path, head: bytes) -> BadCheckpoint:
    kind = next((kind for magic, kind in FOREIGN.items() if head.startswith(magic)), None)
    fix = "name a safetensors file, a file of torch.save, or a Hugging Face or timm folder"
    if not head:
        kind = "an empty file"
    elif torch_zip.is_exported(path):
        kind, fix = "an archive of torch.export", _EXPORTED
    elif head[0] == 8 and path.suffix == ".onnx":  # the tag of ir_version, the first field
        kind, fix = "an ONNX model", _EXPORTED
    return BadCheckpoint(
        f"{path.name} is not a checkpoint that this tool reads",
        saw=kind or f"the first bytes {head[:8]!r}",
        fix=fix,
    )
