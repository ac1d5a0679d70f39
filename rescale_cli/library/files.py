"""What acts on files: counts, inspect, apply, verify, revert."""

from __future__ import annotations

from rescale_cli import api
from rescale_cli.core.classes import RawCounts
from rescale_cli.data.counts import CountsLike, as_raw_counts
from rescale_cli.data.labels import ClassesLike
from rescale_cli.library.words import speaks_python
from rescale_cli.patching import proof
from rescale_cli.patching import revert as reverting


@speaks_python
def counts(
    counts: CountsLike, *, classes: ClassesLike | None = None, order: str | None = None
) -> RawCounts:
    """Read the training samples of each class, whatever holds them.

    Args:
        counts: a list, array or tensor in row order; a dict, Counter or pandas Series, such as
            `df["label"].value_counts()`, whose text keys are class names and whose integer keys are
            rows; a file, or data to count such as `folder:train/`.
        classes: the names of the rows, for counts without names: a list in row order, a dict such
            as `class_to_idx` or `id2label`, or a file.
        order: `imagefolder`, `natural` or `index`: how the class folders were sorted in training.

    Raises:
        BadCounts: these are not counts, or a class is counted twice.
        UnknownClassOrder: the counts have names, and `classes` leaves their rows open.

    Example:
        >>> import rescale_cli
        >>> rescale_cli.counts({"dog": 3, "cat": 5}, classes={"cat": 0, "dog": 1}).values
        (5, 3)
    """
    raw = as_raw_counts(counts, classes)
    return raw if order is None else raw.sorted_by(order)


inspect = speaks_python(api.inspect)
apply = speaks_python(api.apply)
verify = speaks_python(proof.verify)
revert = speaks_python(reverting.revert)
