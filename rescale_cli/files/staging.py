"""Write outputs completely or not at all: to temporary files that are renamed together."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType

from rescale_cli.errors import BadInput, EnvironmentProblem, OutputExists, RescaleError, UsageError
from rescale_cli.files.folders import exchange, sync_folder
from rescale_cli.files.leftovers import Claim, locked, remove, sync_names
from rescale_cli.files.reading import kind_of
from rescale_cli.signals import committed, undisturbed

#: Errors that mean that there is no such file.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

#: The main targets that the running command has written, in order.
written: ContextVar[tuple[Path, ...]] = ContextVar("written", default=())


class Staging:
    """Temporary files beside their targets; `commit` renames them.

    Use it in a with statement: files that were not committed are removed at the end of the block,
    and those of a killed process by the next run in the folder (see `leftovers`).

    Args:
        folder: the folder of the targets, which must exist.
        replace: whether an existing main target may be replaced.
    """

    def __init__(self, folder: Path, *, replace: bool) -> None:
        self.folder, self.replace = folder, replace
        self._moves: list[tuple[Path, Path]] = []
        self._then: list[tuple[Path, Path]] = []
        self._outdated: list[Path] = []
        self._claim = Claim(folder)

    def __enter__(self) -> Staging:
        if not self.folder.is_dir():
            raise BadInput(
                f"there is no folder {self.folder}",
                saw="it does not exist, or is not a folder",
                fix=f"mkdir -p {self.folder}, or choose another --output",
            )
        return self

    def aside(self, target: Path) -> Path:
        """Return a temporary name for `target`. The last target is the main one.

        The others are files that belong to it. They always replace existing files, which a killed
        run or a deleted output left behind.
        """
        temporary = self._claim.name("tmp")
        # Listed before it is created, so that it is removed after an interrupt at any moment.
        self._moves.append((temporary, target))
        return temporary

    def then(self, target: Path) -> Path:
        """Return a temporary name for a file that replaces `target` after the main target."""
        temporary = self._claim.name("tmp")
        self._then.append((temporary, target))
        return temporary

    def outdate(self, *beside: Path) -> None:
        """Remove these files of the main target's predecessor after the commit, except targets."""
        self._outdated.extend(beside)

    def commit(self, check: Callable[[], None] = lambda: None) -> None:
        """Rename every file to its target, in order, then sync the folder.

        Only one run at a time commits in a folder, so that two runs never mix their files. If a
        step fails, all former files are restored.

        Args:
            check: called while the folder is locked; an exception from it stops the commit.

        Raises:
            OutputExists: the main target exists by now, and may not be replaced.
            OSError: a system call failed.
        """
        with locked(self.folder) as folder_fd, undisturbed():
            check()
            with ExitStack() as way_back:
                moves = [*self._moves, *self._then]
                for temporary, target in moves:
                    folder = temporary.is_dir()
                    replace = self.replace or (temporary, target) != self._moves[-1]
                    refuse_existing(target, replace=replace, folder=folder)
                    if folder:
                        sync_folder(temporary)
                replaced = [self._place(*move, way_back) for move in moves]
                sync_names(folder_fd)
                way_back.pop_all()
                written.set((*written.get(), self._moves[-1][1]))
                committed()
            for old in filter(None, replaced):
                remove(old)
            for file in set(self._outdated) - {target for _, target in self._moves}:
                remove(file)

    def _place(self, temporary: Path, target: Path, way_back: ExitStack) -> Path | None:
        """Rename one file or folder, and return the temporary name of the one it replaced."""
        found = status(target)
        if found is None:
            temporary.rename(target)
            way_back.callback(remove, target)
            return None
        if stat.S_ISDIR(found.st_mode) and exchange(temporary, target):
            way_back.callback(_put_back, temporary, target)
            return temporary
        old = self._claim.name("old")
        way_back.callback(_put_back, old, target)
        try:
            os.link(target, old, follow_symlinks=False)
        except OSError:  # a folder, or a file system without hard links
            target.rename(old)
        temporary.rename(target)
        return old

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with undisturbed():
            for temporary, _ in [*self._moves, *self._then]:
                remove(temporary)
            self._claim.release()


def _put_back(old: Path, target: Path) -> None:
    """Restore a replaced file or folder under its name."""
    with contextlib.suppress(OSError):
        if status(old) is None:
            return
        if not target.is_dir():
            old.replace(target)
        elif not exchange(old, target):
            remove(target)
            old.rename(target)
        remove(old)  # a second link to the file, or the new folder


def write_new(path: Path, data: bytes, like: Path | None = None) -> None:
    """Write a small new file and sync it; its mode is that of `like`, or the default."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        if like is not None:
            os.fchmod(fd, stat.S_IMODE(like.stat().st_mode) & 0o666)
        os.fsync(fd)
    finally:
        os.close(fd)


def status(path: Path) -> os.stat_result | None:
    """Return the status of a file, without following links; None if it does not exist.

    Raises:
        OSError: any other failure, which `os.path.lexists` would hide.
    """
    try:
        return path.lstat()
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return None


def refuse_existing(target: Path, *, replace: bool, folder: bool = False) -> None:
    """Refuse an output that already exists, unless it may be replaced.

    A folder replaces only a folder, and a file only a file. A link to one is replaced itself, not
    its target.

    Raises:
        OutputExists: the output exists, and may not or cannot be replaced.
        UsageError: the name is "-", which would mean stdout.
    """
    if str(target) == "-":
        raise UsageError(
            "this output must be a file; it cannot be written to stdout",
            saw="-",
            fix="name a file: --output FILE; --json prints the result on stdout",
        )
    found = status(target)
    if found is None:
        return
    if stat.S_ISLNK(found.st_mode):
        # /dev/stdout is a link to /proc, and from there to a redirected file.
        leads_well = target.is_dir() if folder else target.is_file()
        alike = leads_well and not target.readlink().is_relative_to("/proc")
        alike = alike or not target.exists()
    else:
        alike = stat.S_ISDIR(found.st_mode) if folder else stat.S_ISREG(found.st_mode)
    if not alike:
        raise OutputExists(
            f"{target} already exists and is not a {'folder' if folder else 'regular file'}",
            saw=kind_of(found.st_mode),
            fix=f"choose another output: --output {'FOLDER' if folder else 'FILE'}",
        )
    if not replace:
        raise OutputExists(
            f"{target} already exists",
            saw=kind_of(found.st_mode),
            fix="--force to replace it, or choose another --output",
        )


@contextlib.contextmanager
def system_errors(doing: str) -> Iterator[None]:
    """Turn system errors in the block, such as a full disk, into an error with a fix.

    Args:
        doing: the action that failed, for the error: `writing out.pth`.

    Raises:
        EnvironmentProblem: instead of any OSError.
    """
    fixes = {
        errno.ENOSPC: "free some disk space, or choose another --output",
        errno.EDQUOT: "free some of your quota, or choose another --output",
        errno.EFBIG: "raise the limit on file sizes, or choose another --output",
        errno.EACCES: "check the permissions of the folder, or choose another --output",
        errno.EPERM: "check the permissions of the folder, or choose another --output",
        errno.EROFS: "the file system is read-only: choose another --output",
        errno.ENAMETOOLONG: "choose a shorter --output",
    }
    try:
        yield
    except RescaleError:
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise EnvironmentProblem(
            f"{doing} failed: {reason.lower()}",
            saw=str(error.filename or error),
            fix=fixes.get(error.errno or 0, "check the disk, then run the command again"),
        ) from error


#: Outputs that are not files: stdout, and the null device.
STDOUT, NOWHERE = Path("-"), Path(os.devnull)


def refuse_outputs(
    named: Mapping[str, Path | None], *, force: bool, inputs: Iterable[Path] = ()
) -> None:
    """Check before the work that all outputs can be written and have different names.

    Args:
        named: the output of each option, None if it is not given; `STDOUT` and `NOWHERE` are
            always allowed.
        force: whether existing files may be replaced.
        inputs: the files that the command reads, which must not be outputs.

    Raises:
        UsageError: two outputs have the same name.
        BadInput, OutputExists: see `refuse_output`.
    """
    given = {option: path for option, path in named.items() if path not in (None, STDOUT, NOWHERE)}
    refuse_one_name(given)
    for option, path in given.items():
        refuse_output(path, option, force=force, inputs=inputs)


def refuse_one_name(given: Mapping[str, Path]) -> None:
    """Raise UsageError if two options name the same output."""
    seen: set[Path] = set()
    for option, path in given.items():
        if path in seen:
            raise UsageError(
                "two outputs have the same name", saw=str(path), fix=f"another name: {option} FILE"
            )
        seen.add(path)


def refuse_output(
    path: Path, option: str, *, force: bool, folder: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Check before the work that an output can be written, by writing an empty temporary file.

    Args:
        path: the output.
        option: the option that names it, for errors.
        force: whether an existing file may be replaced.
        folder: whether the output is a folder.
        inputs: the files that the command reads, which must not be the output.

    Raises:
        BadInput: the folder of the output does not exist.
        OutputExists: the output exists, and may not be replaced.
    """
    try:
        with system_errors(f"writing {path} ({option})"):
            refuse_input(path, inputs)
            refuse_existing(path, replace=force, folder=folder)
            with Staging(path.parent, replace=force) as staging:
                write_new(staging.aside(path), b"")  # more reliable than checking permissions
    except RescaleError as error:
        error.fix = error.fix.replace("--output", option)
        raise


def refuse_input(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that would replace a file that the command reads, under any name.

    Args:
        output: a file, or a folder that would be replaced.
        inputs: files or folders; missing ones are ignored.

    Raises:
        OutputExists: an input is the output, under this or another name, or is inside it.
        OSError: the system call failed.
    """
    # realpath, because Path.resolve fails for a link to itself.
    place, taken = Path(os.path.realpath(output.parent), output.name), identities([output])
    for path in inputs:
        if identities([path]) & taken or Path(os.path.realpath(path)).is_relative_to(place):
            raise OutputExists(
                "the output is one of the inputs",
                saw=f"{output} is the same as {path}, or contains it",
                fix="choose another output: --output FILE",
            )


def identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """Return the device and inode of each existing file."""
    found = set()
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:  # unlike with exists(), a failing disk is an error
            if error.errno not in (*_ABSENT, errno.ENAMETOOLONG):
                raise
        else:
            found.add((status.st_dev, status.st_ino))
    return found


def write_text(path: Path, text: str, *, force: bool) -> None:
    """Write one text; see `write_texts`."""
    write_texts({path: text}, force=force)


def write_texts(texts: Mapping[Path, str], *, force: bool) -> None:
    """Write texts as UTF-8, with the default permissions.

    All of them are on the disk before the first one is renamed, and the text for `STDOUT` is
    written last. Lone surrogates (from file names) are written as escapes.

    Raises:
        OutputExists: an output exists, and may not be replaced.
        EnvironmentProblem: a system call failed.
    """
    encoded = {path: text.encode("utf-8", "backslashreplace") for path, text in texts.items()}
    with ExitStack() as held:
        made = []
        for path, data in encoded.items():
            if path in (STDOUT, NOWHERE):
                continue
            with system_errors(f"writing {path}"):
                refuse_existing(path, replace=force)
                staging = held.enter_context(Staging(path.parent, replace=force))
                write_new(staging.aside(path), data)
            made.append((path, staging))
        for path, staging in made:
            with system_errors(f"writing {path}"):
                staging.commit()
    if STDOUT in encoded:
        sys.stdout.flush()
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(encoded[STDOUT])
        else:  # a notebook
            sys.stdout.write(texts[STDOUT])
        sys.stdout.flush()
