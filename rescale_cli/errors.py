"""Every kind of error: what is wrong, what was found, how to fix it, and the exit code.

`RescaleError` and its kinds are raised anywhere and caught once, in `rescale_cli.cli.main`. The
kind decides the exit code; `code` is the stable name that `--json` prints.
"""

from __future__ import annotations

import copyreg
import shlex
from contextvars import ContextVar
from typing import Any

#: See the argument `fix` of RescaleError.
FROM_WORKER = "see the last line of the worker's traceback"


class RescaleError(Exception):
    """An error with a message for the user.

    Args:
        what: what is wrong, in one line without a full stop.
        saw: the names, shapes and values that were found.
        fix: what the user can type or change. The default is for torch's DataLoader alone, which
            makes the error of a worker again from its text; a test finds calls that rely on it.
    """

    exit_code = 1
    code = "bug"

    def __init__(self, what: str, *, saw: str = "", fix: str = FROM_WORKER) -> None:
        super().__init__(what)
        self.what, self.saw, self.fix = what, saw, fix

    def __str__(self) -> str:
        """Return all three parts, for programs that do not catch the exception."""
        saw = f"; saw: {self.saw}" if self.saw else ""
        return f"{self.what}{saw}; fix: {self.fix}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the fields: the default would call `__init__` without its keywords."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class RescaleWarning(UserWarning):
    """Something that the user should know of a result in memory; commands print the same."""

    code = ""


class UsageError(RescaleError):
    """The command line names something that does not exist, or options that exclude each other."""

    exit_code = 2
    code = "usage"


class BadInput(RescaleError):
    """A file or value is invalid, and no option could make it valid."""

    exit_code = 3
    code = "bad-input"


class BadCheckpoint(BadInput):
    """The checkpoint is damaged, in an unknown format, or not a regular file."""

    code = "bad-checkpoint"


class UnsafePickle(BadInput):
    """A pickle calls or names something that no checkpoint needs. Nothing in it was run."""

    code = "unsafe-pickle"


class NoClassifier(BadInput):
    """The model has no final linear layer that could be re-scaled."""

    code = "no-classifier"


class BadHead(BadInput):
    """The head cannot be re-scaled: NaN, shared bytes, 8-bit rows, overflow."""

    code = "bad-head"


class BadCounts(BadInput):
    """The class counts are not one positive whole number for each row of the head."""

    code = "bad-counts"


class BadImage(BadInput):
    """An image of a data set is missing, damaged, or not an image."""

    code = "bad-image"


class NotImages(BadInput):
    """The model takes text, audio or video; `lines` is Python code that saves its logits."""

    code = "not-images"

    def __init__(
        self, what: str, *, saw: str = "", fix: str = FROM_WORKER, lines: tuple[str, ...] = ()
    ) -> None:
        super().__init__(what, saw=saw, fix=fix)
        self.lines = lines

    def __str__(self) -> str:
        """Return all three parts and the code below them."""
        return "\n".join([super().__str__(), *self.lines])


class NotDownloaded(BadInput):
    """A public data set is not in the given folder."""

    code = "not-downloaded"


class NotProven(BadInput):
    """A patched file does not match its record."""

    code = "not-proven"


class NeedsDecision(RescaleError):
    """Several choices are possible, and only the user can decide."""

    exit_code = 4
    code = "needs-decision"


class AmbiguousHead(NeedsDecision):
    """Several layers could be the head; `candidates` lists them with reasons."""

    code = "ambiguous-head"

    def __init__(
        self,
        what: str,
        *,
        saw: str = "",
        fix: str = FROM_WORKER,
        candidates: tuple[dict[str, object], ...] = (),
    ) -> None:
        super().__init__(what, saw=saw, fix=fix)
        self.candidates = candidates


class NoEffect(NeedsDecision):
    """Scaling the rows of this head changes no logit, as far as the checkpoint shows."""

    code = "no-effect"


class UnknownClassOrder(NeedsDecision):
    """The counts are by class name, and the row of each name is unknown."""

    code = "class-order"


class PoorAccuracy(NeedsDecision):
    """The accuracy is so low that the preprocessing or the order of the classes may be wrong."""

    code = "poor-accuracy"


class OtherModel(NeedsDecision):
    """The logits, or the strength that a sweep chose, belong to a different head."""

    code = "other-model"


class OtherCounts(NeedsDecision):
    """A sweep chose the strength with different counts."""

    code = "other-counts"


class AlreadyRescaled(NeedsDecision):
    """The checkpoint has already been re-scaled, as its record shows."""

    code = "already-rescaled"


class OutputExists(NeedsDecision):
    """The output already exists, or is one of the inputs."""

    code = "output-exists"


class RunInUse(NeedsDecision):
    """Another process trains in the folder of the run."""

    code = "in-use"


class EnvironmentProblem(RescaleError):
    """Something is missing on this machine: disk space, CUDA, an extra, a permission."""

    exit_code = 5
    code = "environment"


class NotPrinted(EnvironmentProblem):
    """The result could not be written to stdout; the rest of the command has succeeded."""


class GateFailed(RescaleError):
    """The result does not meet one of the user's quality gates."""

    exit_code = 6
    code = "gate-failed"


class Interrupted(RescaleError):
    """A signal stopped the command, which removed its temporary files first."""

    exit_code = 130
    code = "interrupted"


#: The arguments of the command line; empty if the package is used as a library.
typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def again(*more: str, without: tuple[str, ...] = ()) -> str:
    """Return the current command with changed options, ready to paste.

    Args:
        more: options, each followed by its value if it takes one. They replace the same options of
            the command.
        without: options with a value that are removed from the command.

    Returns:
        Only `more` if the package is used as a library.

    Example:
        >>> again("--size", "32")
        '--size 32'
        >>> known = typed.set(("evaluate", "m.pth", "--size", "28", "--mean=0.5"))
        >>> again("--size", "32", without=("--mean",))
        'rescale-cli evaluate m.pth --size 32'
        >>> typed.reset(known)
    """
    if not typed.get():
        return shlex.join(more)
    before = typed.get().index("--") if "--" in typed.get() else len(typed.get())
    words, arguments = list(typed.get()[:before]), typed.get()[before:]
    pairs = zip(more, [*more[1:], "--"], strict=True)
    with_value = {word: not value.startswith("--") for word, value in pairs if word[:2] == "--"}
    for option, has_value in {**dict.fromkeys(without, True), **with_value}.items():
        while option in words:
            at = words.index(option)
            del words[at : at + 1 + has_value]
        words = [word for word in words if not word.startswith(f"{option}=")]
    return shlex.join(["rescale-cli", *words, *more, *arguments])
