"""Copy files and folders, by the kernel where possible, and swap or replace folders safely."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rescale_cli.errors import OutputExists
from rescale_cli.files.leftovers import MARK, sync_names
from rescale_cli.files.reading import opened

#: Errors after which another way of copying is tried.
_NO_COPY = {
    errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ENOTTY,
    errno.ETXTBSY, errno.EBADF,
}  # fmt: skip
_STEP = 32 << 20
_FICLONE = 0x40049409


def copy_bytes(
    source: int,
    target: int,
    size: int,
    start: int = 0,
    to: int = 0,
    copied: Callable[[int], None] = lambda _: None,
) -> str:
    """Copy `size` bytes from offset `start` of one descriptor to offset `to` of another.

    A reflink shares the blocks if the file system supports it; otherwise the kernel copies; if it
    cannot, the bytes are copied through a buffer. `copied` receives the number of bytes copied so
    far after each step.

    Returns:
        the way that was used: reflink, copy_file_range, sendfile or buffer.
    """
    if start == to == 0 and os.fstat(source).st_size == size and _reflink(source, target):
        copied(size)
        return "reflink"
    ways: list[tuple[str, Callable[[int, int, int, int, int], int]]] = [("buffer", _buffer)]
    if hasattr(os, "sendfile"):
        ways.insert(0, ("sendfile", _sendfile))
    if hasattr(os, "copy_file_range"):
        ways.insert(0, ("copy_file_range", _copy_file_range))
    done = 0
    for name, step in ways:
        try:
            while done < size:
                count = step(source, target, min(_STEP, size - done), start + done, to + done)
                if not count:
                    break
                done += count
                copied(done)
        except OSError as error:
            if error.errno not in _NO_COPY or name == "buffer":
                raise
        if done == size:
            return name
    raise OSError(errno.EIO, "the source was truncated while it was copied")


def _reflink(source: int, target: int) -> bool:
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, source)
    except (ImportError, OSError):
        return False
    return True


def _copy_file_range(source: int, target: int, size: int, start: int, to: int) -> int:
    while True:  # Python retries other interrupted system calls, but not this one
        with contextlib.suppress(InterruptedError):
            return os.copy_file_range(source, target, size, start, to)


def _sendfile(source: int, target: int, size: int, start: int, to: int) -> int:
    os.lseek(target, to, os.SEEK_SET)
    return os.sendfile(target, source, start, size)


def _buffer(source: int, target: int, size: int, start: int, to: int) -> int:
    return os.pwrite(target, os.pread(source, min(size, 1 << 20), start), to)


_HERE = -100  # AT_FDCWD: relative paths start at the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE


def exchange(one: Path, other: Path) -> bool:
    """Swap two files or folders of one file system atomically.

    Returns:
        False if the system or the file system does not support it; then nothing has changed.

    Raises:
        OSError: the system refused the exchange.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextlib.contextmanager
def removed_if_empty(path: Path) -> Iterator[None]:
    """If the block fails, remove the folder if the block created it and left it empty."""
    fresh = not os.path.lexists(path)
    try:
        yield
    except BaseException:
        if fresh:
            with contextlib.suppress(OSError):  # not empty, or never created
                path.rmdir()
        raise


def copy_folder(
    source: Path, target: Path, skip: Sequence[Path], top: Path | None = None
) -> list[Path]:
    """Copy a folder except the entries in `skip`, and sync the copy.

    A link to a file that `leads_home` is replaced by a copy of the file; any other link stays a
    link. Pipes, devices, sockets and temporary files of killed runs are not copied.

    Args:
        source: the folder.
        target: the copy, which must not exist; its owner may write to it, whatever the source's
            mode.
        skip: entries to leave out, as paths below `source`.
        top: the whole folder to copy, if `source` is a part of it.

    Returns:
        the files and links that were copied, as paths below `top`.

    Raises:
        OSError: a system call failed.
    """
    top, copied = top or source, list[Path]()
    target.mkdir()
    for entry in sorted(source.iterdir()):
        if entry in skip or entry.name.startswith(MARK):
            continue
        copy = target / entry.name
        # Checked first: a link to itself is not a file and cannot be resolved.
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
    """Whether a file, after following links, is in the folder or in the Hugging Face cache.

    The cache stores the files of a repository in `blobs/`, named by their hash, and each revision
    as a folder of links, `snapshots/REV/`. A snapshot may use the blobs of its own repository; any
    other folder may link to the blobs of any repository, as older downloads to a folder did.
    """
    real, home = file.resolve(), folder.resolve()
    if real.is_relative_to(home):
        return True
    for snapshot in (home, *home.parents):
        if snapshot.parent.name == "snapshots":
            return real.parent == snapshot.parent.parent / "blobs"
    return _is_blob(real)


def sha256_in_cache(file: Path) -> str | None:
    """Return the SHA-256 that is a file's name in the Hugging Face cache, or None.

    Only the large files of a repository are named by it; the others are named by git's hash.
    """
    real = file.resolve()
    return real.name if _is_blob(real) and len(real.name) == 64 else None


def _is_blob(real: Path) -> bool:
    repository = re.match(r"(models|datasets|spaces)--", real.parent.parent.name)
    blob = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", real.name)
    return real.parent.name == "blobs" and repository is not None and blob is not None


def refuse_other_tree(source: Path, target: Path) -> None:
    """Refuse to replace a folder that contains more than an earlier copy of the checkpoint.

    Raises:
        OutputExists: `target` contains folders that `source` does not have.
    """
    if target.is_symlink() or not target.is_dir():
        return
    for entry in sorted(target.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and not (source / entry.name).is_dir():
            raise OutputExists(
                f"{target} contains more than a checkpoint, and replacing it would delete that",
                saw=f"the folder {entry}",
                fix="choose another output: --output FOLDER, or remove that folder yourself",
            )


def copy_file(source: Path, target: Path) -> None:
    """Copy one regular file, with its mode, to a new name, and sync it."""
    with opened(source) as src:
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_bytes(src, fd, os.fstat(src).st_size)
            os.fchmod(fd, stat.S_IMODE(os.fstat(src).st_mode) & 0o777)
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync_names(fd)
    finally:
        os.close(fd)
