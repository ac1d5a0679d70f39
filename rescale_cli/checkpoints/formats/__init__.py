"""The checkpoint formats, one module each; `files.contents` describes what a module provides."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

#: The one format that is a folder of files, each in one of the other formats.
_FOLDER = "sharded_folder"


def all_formats() -> list[ModuleType]:
    """Return every format; this folder is the registry."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [named_format(name) for name in names]


def named_format(name: str) -> ModuleType:
    """Return the format with that module name, such as `torch_zip`."""
    return import_module(f"{__name__}.{name}")


def file_format(path: Path) -> ModuleType | None:
    """Return the format of a file, by its content; None if no format claims it."""
    modules = (m for m in all_formats() if m.__name__.rpartition(".")[2] != _FOLDER)
    return next((module for module in modules if module.matches(path)), None)
