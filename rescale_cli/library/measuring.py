"""The metrics of logits and labels in memory."""

from __future__ import annotations

from rescale_cli.core.classes import HeadRows
from rescale_cli.core.counts import ZeroPolicy
from rescale_cli.core.predictions import Predictions
from rescale_cli.data.counts import CountsLike
from rescale_cli.data.labels import ClassesLike, row_hints
from rescale_cli.data.logits_file import given_logits
from rescale_cli.errors import UsageError
from rescale_cli.library.heads import ArrayLike, as_array
from rescale_cli.library.words import speaks_python
from rescale_cli.measures.calibration import measure_logits
from rescale_cli.measures.metrics import Confusion, metrics_of
from rescale_cli.patching.plan import CountsChoice


@speaks_python
def metrics(
    logits: ArrayLike, labels: ArrayLike, counts: CountsLike | None = None, *,
    groups: tuple[int, int] = (100, 20), classes: ClassesLike | None = None,
    zero_count: ZeroPolicy = "error",
) -> dict[str, float | None]:  # fmt: skip
    """The metrics of `evaluate` by the same names; None is n/a.

    Args:
        logits: (N, C), or (N,) of a binary head.
        labels: (N,), rows of the head.
        counts: training samples of each class, for many, medium and few.
        groups: training samples above which a class is among many, and below which among few.
        classes: the names of the rows, for counts with names.
        zero_count: error, one or skip.
    """
    found = predictions_of(logits, labels)
    if found.labels is None:
        raise UsageError("metrics need labels", fix="give labels=, one for each row of logits")
    choice = None if counts is None else CountsChoice.read(
        counts, row_hints(classes), zero=zero_count
    )  # fmt: skip
    rows = HeadRows(found.num_classes)
    shares = {} if choice is None else choice.resolve(rows)[0].groups(*groups)
    measured = measure_logits(found.logits, found.labels)
    confusion = Confusion.of(measured.predicted, found.labels, found.num_classes)
    return metrics_of(confusion, shares, measured)


def predictions_of(logits: ArrayLike, labels: ArrayLike | None) -> Predictions:
    """Logits and labels in memory, checked as those of a file."""
    known = None if labels is None else as_array(labels, "the labels")
    return given_logits(as_array(logits, "the logits"), known, "the logits given")
