"""Whole or nothing: files are written aside, in the target's folder, and renamed all together."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from errno import ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from pathlib import Path
from types import TracebackType

from rescale_cli.errors import BadInput, EnvironmentProblem, OutputExists, RescaleError, UsageError
from rescale_cli.files.folders import exchange, sync_folder
from rescale_cli.files.leftovers import Claim, locked, remove, sync_names
from rescale_cli.files.reading import kind_of
from rescale_cli.signals import committed, undisturbed

#: The main targets that the command line that is running has written, in order.
written: ContextVar[tuple[Path, ...]] = ContextVar("written", default=())


class Staging:
    """New files beside their targets under unique names; `commit` gives them their own.

    Used in a with statement: whatever was not committed is removed, however the block is left.
    What a killed process left in the folder is removed by the next one, see `leftovers`.

    Args:
        folder: where the targets will be; it must exist.
        replace: whether a main target that is there may be replaced.
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
                saw="nothing of that name, or something else",
                fix=f"mkdir -p {self.folder}, or another --output",
            )
        return self

    def aside(self, target: Path) -> Path:
        """A name to write the future `target` under. The last one asked for is the main one.

        The others are files that belong to it: they replace what a killed run, or an output that
        is no more, has left.
        """
        temporary = self._claim.name("tmp")
        # Listed before it is made: there is no moment in which an interrupt could lose it.
        self._moves.append((temporary, target))
        return temporary

    def then(self, target: Path) -> Path:
        """A name for what replaces `target`, a file beside, once the main target has its name."""
        temporary = self._claim.name("tmp")
        self._then.append((temporary, target))
        return temporary

    def outdate(self, *beside: Path) -> None:
        """Once all is done, remove files that spoke of the main target's predecessor.

        Those that are targets themselves stay.
        """
        self._outdated.extend(beside)

    def commit(self, check: Callable[[], None] = lambda: None) -> None:
        """Give every file its name, in order, then make the folder's entries last.

        One run at a time does this in a folder, so that of two runs on one target one wins whole,
        with the files beside it. If a step fails, everything is put back as it was.

        Args:
            check: called when no other run is at work in the folder; what it raises stops all.

        Raises:
            OutputExists: the main target has come into being meanwhile, and may not be replaced.
            OSError: the system refused something.
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
        """Give one file or folder its name; where the one that had it before is kept, if any."""
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
        except OSError:  # a folder, or a file system without second names
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
    """Give a replaced file or folder its name again."""
    with contextlib.suppress(OSError):
        if status(old) is None:
            return
        if not target.is_dir():
            old.replace(target)
        elif not exchange(old, target):
            remove(target)
            old.rename(target)
        remove(old)  # a second name of the file, or the new folder


def write_new(path: Path, data: bytes, like: Path | None = None) -> None:
    """Write a small new file and sync it; with the mode of `like`, or as the umask says."""
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
    """What has this name, links not followed; None if nothing has.

    Raises:
        OSError: the system cannot tell, which `os.path.lexists` would take for nothing.
    """
    try:
        return path.lstat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None


def refuse_existing(target: Path, *, replace: bool, folder: bool = False) -> None:
    """Stop before a name that is taken.

    Only like replaces like: a folder a folder, a file a file, or a link to one; then the link, not
    what it leads to.

    Raises:
        OutputExists: something has that name, and either may not or cannot be replaced.
        UsageError: the name is "-", by which other programs mean stdout.
    """
    if str(target) == "-":
        raise UsageError(
            "an output is written to a file, whole or not at all, and not to stdout",
            saw="-",
            fix="name a file: --output FILE; --json prints the result on stdout",
        )
    found = status(target)
    if found is None:
        return
    if stat.S_ISLNK(found.st_mode):
        # /dev/stdout leads to /proc, and there to whatever the output was sent to.
        leads_well = target.is_dir() if folder else target.is_file()
        alike = leads_well and not target.readlink().is_relative_to("/proc")
        alike = alike or not target.exists()
    else:
        alike = stat.S_ISDIR(found.st_mode) if folder else stat.S_ISREG(found.st_mode)
    if not alike:
        raise OutputExists(
            f"{target} is there and is no {'folder' if folder else 'regular file'}",
            saw=kind_of(found.st_mode),
            fix="name another output: --output",
        )
    if not replace:
        raise OutputExists(
            f"{target} exists already",
            saw=kind_of(found.st_mode),
            fix="--force to replace it, or another --output",
        )


@contextlib.contextmanager
def system_errors(doing: str) -> Iterator[None]:
    """Say what the system refused while `doing` something: a full disk, a missing permission.

    Raises:
        EnvironmentProblem: in place of any OSError.
    """
    fixes = {
        errno.ENOSPC: "free some space, or write elsewhere: --output",
        errno.EDQUOT: "free some of your quota, or write elsewhere: --output",
        errno.EFBIG: "raise the limit on file sizes, or write elsewhere: --output",
        errno.EACCES: "check the permissions of the folder, or write elsewhere: --output",
        errno.EPERM: "check the permissions of the folder, or write elsewhere: --output",
        errno.EROFS: "write elsewhere: --output",
        errno.ENAMETOOLONG: "give a shorter name: --output",
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


#: Where a text may go that is not a file: what users call stdout, and what keeps nothing.
STDOUT, NOWHERE = Path("-"), Path(os.devnull)


def refuse_outputs(
    named: Mapping[str, Path | None], *, force: bool, inputs: Iterable[Path] = ()
) -> None:
    """Stop before the work if two outputs have one name, or one could not be written.

    Args:
        named: option -> where it will go; None where it was not given. `STDOUT` and `NOWHERE`
            are always free.
        force: whether files that are there may be replaced.
        inputs: what the command reads, which none of them may be.

    Raises:
        UsageError: two have one name.
        BadInput, OutputExists: see `refuse_output`.
    """
    given = {option: path for option, path in named.items() if path not in (None, STDOUT, NOWHERE)}
    refuse_one_name(given)
    for option, path in given.items():
        refuse_output(path, option, force=force, inputs=inputs)


def refuse_one_name(given: Mapping[str, Path]) -> None:
    """Stop if two options name one output.

    Raises:
        UsageError: they do.
    """
    seen: set[Path] = set()
    for option, path in given.items():
        if path in seen:
            raise UsageError("two outputs have one name", saw=str(path), fix=f"{option} FILE")
        seen.add(path)


def refuse_output(
    path: Path, option: str, *, force: bool, folder: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Stop before the work if its result could not be written: `write_text` would refuse, too.

    Args:
        path: where it will go.
        option: which option says so, for the error.
        force: whether a file that is there may be replaced.
        folder: whether it will be a folder.
        inputs: what the command reads, which never is.

    Raises:
        BadInput: there is no such folder.
        OutputExists: something has that name, and may not be replaced.
    """
    try:
        with system_errors(f"writing {path} ({option})"):
            refuse_input(path, inputs)
            refuse_existing(path, replace=force, folder=folder)
            with Staging(path.parent, replace=force) as staging:
                write_new(staging.aside(path), b"")  # permissions tell less than a try
    except RescaleError as error:
        error.fix = error.fix.replace("--output", option)
        raise


def refuse_input(output: Path, inputs: Iterable[Path]) -> None:
    """Stop if writing `output` would replace a file that the command reads, by any name of it.

    Args:
        output: a file, or a folder that will be replaced whole.
        inputs: files or folders; those that are not there are let pass.

    Raises:
        OutputExists: one of them is the output, by this or another name, or lies in it.
        OSError: the system cannot tell.
    """
    # realpath, as Path.resolve fails where a link leads to itself.
    place, taken = Path(os.path.realpath(output.parent), output.name), identities([output])
    for path in inputs:
        if identities([path]) & taken or Path(os.path.realpath(path)).is_relative_to(place):
            raise OutputExists(
                "the output is what the command reads",
                saw=f"{output} is {path}, by this or another name, or holds it",
                fix="name another output: --output FILE",
            )


def identities(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """Device and number of each file that is there."""
    found = set()
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:  # unlike exists(), a failing disk is not taken for "not there"
            if error.errno not in (ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP):
                raise
        else:
            found.add((status.st_dev, status.st_ino))
    return found


def write_text(path: Path, text: str, *, force: bool) -> None:
    """`write_texts` of one."""
    write_texts({path: text}, force=force)


def write_texts(texts: Mapping[Path, str], *, force: bool) -> None:
    """Write texts as UTF-8, with the permissions that the umask leaves.

    All of them are on the disk before the first one has its name, and that for `STDOUT` is written
    last. A character that UTF-8 does not
    have (half of one, in a file's name) is written as its escape.

    Raises:
        OutputExists: one is there, and may not be replaced.
        EnvironmentProblem: the system refused something.
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
