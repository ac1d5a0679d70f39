"""What lies at the path of a model: tensors, unread, and the config beside them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.errors import BadInput
from rescale_cli.formats.sharded_folder import read_config
from rescale_cli.formats.torch_zip import is_exported
from rescale_cli.loading.origin import Origin, origin_of


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What lies at the path of a model."""

    path: Path
    checkpoint: Checkpoint | None
    """None for what only torch itself reads: an archive of torch.export."""
    config: Mapping[str, Any]
    """The config.json beside the weights, where there is one."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Every tensor of the checkpoint, unread."""
        return self.checkpoint.contents.tensors if self.checkpoint else ()

    @property
    def origin(self) -> Origin | None:
        """Which library wrote it, where its layout says so."""
        return origin_of(self.checkpoint.contents) if self.checkpoint else None

    @property
    def folder(self) -> Path:
        """Where its side files are."""
        return self.path if self.path.is_dir() else self.path.parent

    def names_of(self, num_classes: int) -> tuple[str, ...] | None:
        """The class names in row order, where the checkpoint or its config has that many.

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
        BadCheckpoint: unknown, damaged, or not a regular file.
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
    """Whether a config.json speaks of the network that `--arch` names."""
    if arch is None or arch in ("run", "hf"):
        return True
    timm = f"timm:{config.get('architecture')}"
    return config.get("arch", timm) in (arch, arch.partition(".")[0])
