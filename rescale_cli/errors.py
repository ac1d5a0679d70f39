"""What can go wrong: an error says what happened, what was seen and what to type next.

`RescaleError` and its kinds are raised anywhere and caught once, in `rescale_cli.cli.main`. The
kind decides the exit code; `code` is the stable name that `--json` prints.
"""

from __future__ import annotations

import shlex
from contextvars import ContextVar


class RescaleError(Exception):
    """A deed that cannot be done, in words for the person who asked for it.

    Args:
        what: the failure in one line, without a full stop.
        saw: the names, shapes, values that show it.
        fix: what the user can type or change; always given.
    """

    exit_code = 1
    code = "bug"

    def __init__(self, what: str, *, saw: str = "", fix: str) -> None:
        super().__init__(what)
        self.what, self.saw, self.fix = what, saw, fix

    def __str__(self) -> str:
        """All of it, for a program that lets the exception through."""
        saw = f"; saw: {self.saw}" if self.saw else ""
        return f"{self.what}{saw}; fix: {self.fix}"


class UsageError(RescaleError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = 2
    code = "usage"


class BadInput(RescaleError):
    """A file or a value that cannot be right, whatever is decided about it."""

    exit_code = 3
    code = "bad-input"


class BadCheckpoint(BadInput):
    """The checkpoint is damaged, of an unknown kind, or not a regular file."""

    code = "bad-checkpoint"


class UnsafePickle(BadInput):
    """A pickle calls or names something that no checkpoint needs. Nothing of it was run."""

    code = "unsafe-pickle"


class NoClassifier(BadInput):
    """There is no final linear layer that re-scaling could act on."""

    code = "no-classifier"


class BadHead(BadInput):
    """The head is there, but cannot be re-scaled: NaN, shared bytes, 8-bit rows, overflow."""

    code = "bad-head"


class BadCounts(BadInput):
    """The class counts are not one positive whole number for each row of the head."""

    code = "bad-counts"


class BadImage(BadInput):
    """An image of a data set is missing, damaged, or no image."""

    code = "bad-image"


class NotImages(BadInput):
    """The model takes text, audio or video; `lines` of Python write its logits to a file."""

    code = "not-images"

    def __init__(self, what: str, *, saw: str = "", fix: str, lines: tuple[str, ...] = ()) -> None:
        super().__init__(what, saw=saw, fix=fix)
        self.lines = lines

    def __str__(self) -> str:
        """All of it, with the lines below."""
        return "\n".join([super().__str__(), *self.lines])


class NotDownloaded(BadInput):
    """A public data set is not in the folder that was named."""

    code = "not-downloaded"


class NotProven(BadInput):
    """A patched file is not what its record says it is."""

    code = "not-proven"


class NeedsDecision(RescaleError):
    """Several answers are possible, and only the user knows which one is meant."""

    exit_code = 4
    code = "needs-decision"


class AmbiguousHead(NeedsDecision):
    """More than one layer could be the head; `candidates` says which, and why."""

    code = "ambiguous-head"

    def __init__(
        self, what: str, *, saw: str = "", fix: str, candidates: tuple[dict[str, object], ...] = ()
    ) -> None:
        super().__init__(what, saw=saw, fix=fix)
        self.candidates = candidates


class NoEffect(NeedsDecision):
    """Scaling the rows of this head changes no logit, as far as the checkpoint shows."""

    code = "no-effect"


class UnknownClassOrder(NeedsDecision):
    """Counts carry names, and nothing says which row of the head each name is."""

    code = "class-order"


class PoorAccuracy(NeedsDecision):
    """The predictions have so little to do with the labels that the preprocessing may be wrong."""

    code = "poor-accuracy"


class OtherModel(NeedsDecision):
    """Logits, or a strength that a sweep chose, belong to another head than that of the model."""

    code = "other-model"


class OtherCounts(NeedsDecision):
    """A strength that a sweep chose with other counts than those that are given now."""

    code = "other-counts"


class AlreadyRescaled(NeedsDecision):
    """The checkpoint carries the record of an earlier re-scaling."""

    code = "already-rescaled"


class OutputExists(NeedsDecision):
    """Something already has the name of the output, or the output is the source."""

    code = "output-exists"


class EnvironmentProblem(RescaleError):
    """The machine lacks something: disk space, CUDA, an extra, a permission."""

    exit_code = 5
    code = "environment"


class NotPrinted(EnvironmentProblem):
    """The result could not be written to stdout; all other work of the command is done."""


class GateFailed(RescaleError):
    """A quality gate of the user's was not met."""

    exit_code = 6
    code = "gate-failed"


class Interrupted(RescaleError):
    """A signal asked the tool to stop; it cleaned up and did."""

    exit_code = 130
    code = "interrupted"


#: What was typed behind the program's name; empty where a program calls this package.
typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def again(*more: str, without: tuple[str, ...] = ()) -> str:
    """The command that was typed, with other options, ready to paste.

    Args:
        more: options, each followed by its value if it takes one. They replace the same options of
            the command.
        without: options that take a value and are removed from the command.

    Returns:
        Only the options where no command was typed.

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
