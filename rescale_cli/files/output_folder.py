"""A folder beside a folder: every side file as it is, the weights left to others."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from rescale_cli.errors import OutputExists
from rescale_cli.files.folder_lock import sync_names
from rescale_cli.files.kernel_copy import copy_bytes
from rescale_cli.files.leftovers import MARK
from rescale_cli.files.regular_file import opened


@contextlib.contextmanager
def removed_if_empty(path: Path) -> Iterator[None]:
    """If the block fails, remove a folder that it made and left empty."""
    fresh = not os.path.lexists(path)
    try:
        yield
    except BaseException:
        if fresh:
            with contextlib.suppress(OSError):  # it holds something, or was never made
                path.rmdir()
        raise


def copy_folder(
    source: Path, target: Path, skip: Sequence[Path], top: Path | None = None
) -> list[Path]:
    """Copy a folder, all but the files in `skip`, and sync what was copied.

    A link that `leads_home` becomes the file; any other link stays a link. Pipes, devices and
    sockets are left out, and so is what a killed run has left.

    Args:
        source: the folder.
        target: must not exist. It has the mode of `source`, but its owner may write to it.
        skip: entries left out, as paths below `source`.
        top: the whole folder that is copied, where `source` is a part of it.

    Returns:
        What was copied, as paths below `top`: files and links.

    Raises:
        OSError: the system refused something.
    """
    top, copied = top or source, list[Path]()
    target.mkdir()
    for entry in sorted(source.iterdir()):
        if entry in skip or entry.name.startswith(MARK):
            continue
        copy = target / entry.name
        # Asked first: a link that leads to itself is no file, and cannot be resolved.
        if entry.is_symlink() and not (entry.is_file() and leads_home(entry, top)):
            copy.symlink_to(entry.readlink())
        elif entry.is_dir():
            copied += copy_folder(entry, copy, skip, top)
            continue
        elif entry.is_file():
            copy_file(entry, copy)
        else:
            continue
        copied.append(entry.relative_to(top))
    target.chmod(stat.S_IMODE(source.stat().st_mode) | stat.S_IRWXU)
    sync_folder(target)
    return copied


def leads_home(file: Path, folder: Path) -> bool:
    """Whether a file, its links followed, lies in the folder or in the Hugging Face cache.

    The cache keeps the files of a repository in `blobs/`, named by their hash, and each revision
    as a folder of links, `snapshots/REV/`. A snapshot may use the blobs of its own repository; a
    folder elsewhere may link to blobs of any, as downloads into a local folder did.
    """
    real, home = file.resolve(), folder.resolve()
    if real.is_relative_to(home):
        return True
    for snapshot in (home, *home.parents):
        if snapshot.parent.name == "snapshots":
            return real.parent == snapshot.parent.parent / "blobs"
    return _is_blob(real)


def sha256_in_cache(file: Path) -> str | None:
    """The SHA-256 by which the Hugging Face cache names a file; None for any other file.

    Only the large files of a repository have such a name; the others are named by git's hash.
    """
    real = file.resolve()
    return real.name if _is_blob(real) and len(real.name) == 64 else None


def _is_blob(real: Path) -> bool:
    repository = re.match(r"(models|datasets|spaces)--", real.parent.parent.name)
    blob = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", real.name)
    return real.parent.name == "blobs" and repository is not None and blob is not None


def refuse_other_tree(source: Path, target: Path) -> None:
    """Replace one folder by another, but never a whole tree that happens to have its name.

    Raises:
        OutputExists: the folder to be replaced has folders inside that `source` does not have.
    """
    if target.is_symlink() or not target.is_dir():
        return
    for entry in sorted(target.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and not (source / entry.name).is_dir():
            raise OutputExists(
                f"{target} holds more than such a checkpoint, and all of it would be removed",
                saw=f"the folder {entry}",
                fix="name another output: --output, or remove the folder yourself",
            )


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
        sync_names(fd)
    finally:
        os.close(fd)
