"""A folder beside a folder: every side file as it is, the weights left to others."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from rescale_cli.kernel_copy import copy_bytes
from rescale_cli.regular_file import opened


def copy_folder(source: Path, target: Path, skip: Sequence[Path]) -> None:
    """Copy a folder, all but the files in `skip`, and sync what was copied.

    A link to a file inside the folder, or inside the Hugging Face cache that the folder is part
    of, becomes the file; any other link stays a link. Pipes, devices and sockets are left out.

    Raises:
        OSError: the system refused something.
    """
    home = source.resolve()
    home = home.parent.parent if home.parent.name == "snapshots" else home
    target.mkdir()
    for entry in sorted(source.iterdir()):
        if entry in skip:
            continue
        copy = target / entry.name
        if entry.is_symlink() and not entry.resolve().is_relative_to(home):
            copy.symlink_to(entry.readlink())
        elif entry.is_dir():
            copy_folder(entry, copy, skip)
        elif entry.is_file():
            copy_file(entry, copy)
    target.chmod(stat.S_IMODE(source.stat().st_mode))
    sync_folder(target)


def copy_file(source: Path, target: Path) -> None:
    """Copy one regular file to a new name, with its mode, and sync it."""
    with opened(source) as src:
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_bytes(src, fd, os.fstat(src).st_size)
            os.fchmod(fd, stat.S_IMODE(os.fstat(src).st_mode) & 0o777)
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
