"""What acts on files: counts, inspect, apply, verify, revert."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from rescale_cli import api
from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.checkpoints.locate_head import HeadChoice
from rescale_cli.core.classes import RawCounts
from rescale_cli.data.counts import CountsLike, as_raw_counts
from rescale_cli.data.labels import ClassesLike, Names, names_of
from rescale_cli.library.fit import Fit
from rescale_cli.library.head_job import Gamma, Options, asked
from rescale_cli.library.words import speaks_python, warn
from rescale_cli.patching import proof
from rescale_cli.patching import revert as reverting
from rescale_cli.patching.patch import Applied


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
verify = speaks_python(proof.verify)
revert = speaks_python(reverting.revert)


class FileOptions(Options, total=False):
    """What `apply` decides about files, besides the options of `rescale`."""

    output: str | PathLike[str] | None
    in_place: bool
    force: bool
    dry_run: bool
    undo: bool
    record: str | PathLike[str] | None
    accept_global: Names
    command: str


@speaks_python
def apply(
    path: str | PathLike[str], counts: CountsLike | Fit, gamma: Gamma | None = None, *,
    head: Names = None, **options: Unpack[FileOptions],
) -> Applied:  # fmt: skip
    """Write a checkpoint in which the head is adjusted and nothing else changes.

    Args:
        path: a checkpoint file or folder, opened read-only.
        counts: training samples of each class, see `counts`; or a Fit, which has them.
        gamma: the strength, 0 to 4; a Fit; or the path of a sweep.json. A Fit or sweep also decides
            the method and its policies, and is refused for another head or other counts.
        head: the name of the head, or several; found if left out.
        options: where to write it: output (beside the checkpoint if left out), in_place, force,
            dry_run, undo, record, accept_global, command. What to do: method, normalize, bias,
            max_factor, temperature, heads, only, plain_head, num_classes, classes, label_order,
            order, zero_count, exclude_class, target_prior, compose. All are those of the command.

    Raises:
        RescaleError: as the command; nothing is written then.
    """
    strength, choice = asked(counts, gamma, options)
    adjustment = strength.adjustment(
        options.get("method"), options.get("normalize"), options.get("bias"),
        options.get("max_factor"), options.get("temperature"),
    )  # fmt: skip
    names = (*names_of(head), *names_of(options.get("heads")))
    hints, unproven, swept = choice.hints, strength.warnings(), strength.chosen_for
    given: dict[str, Any] = {
        **options, "method": adjustment.method, "normalize": adjustment.normalize,
        "bias": adjustment.bias, "temperature": adjustment.temperature, "heads": names,
        "zero_count": choice.zero, "exclude_class": choice.exclude,
        "target_prior": choice.target_prior, "order": hints.sort or None,
    }  # fmt: skip
    if isinstance(counts, Fit):
        given |= {"classes": hints.names, "label_order": hints.listed or hints.by or None}
    # The path of the counts guards it from being the output.
    source = counts if isinstance(counts, str | PathLike) else choice.raw
    if swept is not None:
        only, plain = options.get("only", False), options.get("plain_head", False)
        accept, size = frozenset(names_of(options.get("accept_global"))), options.get("num_classes")
        checkpoint = open_checkpoint(Path(path), accept)
        swept.refuse_other_model(checkpoint, HeadChoice(names, only, plain), size, accept)
        given["approve"] = lambda plan: swept.refuse_other_counts(plan.counts)
    applied = api.apply(path, source, adjustment.strength, **given)
    warn([*applied.plan.warnings, *unproven])
    return applied
