"""The Python API: `inspect` and `apply` for programs, from plain arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.checkpoints.locate_head import HeadChoice, locate, one_size
from rescale_cli.checkpoints.read_tensors import read_head, refuse_shared
from rescale_cli.core.alignment import Alignment
from rescale_cli.core.classes import row_names
from rescale_cli.core.counts import ClassCounts, ZeroPolicy, warnings_of
from rescale_cli.core.head import ASSUMED, Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.data.counts import CountsLike, as_raw_counts
from rescale_cli.data.labels import ClassesLike, Names, names_of, row_hints
from rescale_cli.data.spec import paths_of
from rescale_cli.errors import BadHead, RescaleError
from rescale_cli.finding.find_head import FoundHeads
from rescale_cli.patching.find_records import find_records
from rescale_cli.patching.patch import Applied, Target, apply_plan, default_output
from rescale_cli.patching.plan import CountsChoice, Plan, make_plan
from rescale_cli.patching.record import Record


@dataclass(frozen=True, slots=True, repr=False)
class Inspected:
    """What a checkpoint contains, and how its head compares with the counts."""

    checkpoint: Checkpoint
    found: FoundHeads
    head: Head
    """The first head."""
    class_names: tuple[str, ...] | None
    counts: ClassCounts | None
    records: tuple[Record, ...]
    warnings: tuple[tuple[str, str], ...]
    alignment: Alignment | None = None
    """How the counts were joined with the rows."""

    def __repr__(self) -> str:
        """The file, its heads and the number of warnings."""
        heads = ", ".join(
            f"{keys.weight} ({keys.num_classes}, {keys.feature_dim})" for keys in self.found.heads
        )
        file = f"{self.checkpoint.path} ({self.checkpoint.contents.format})"
        return f"<Inspected: {file}\n  head {heads}; {len(self.warnings)} warnings>"


def inspect(
    path: str | PathLike[str],
    counts: CountsLike | None = None,
    *,
    num_classes: int | None = None,
    heads: Names = (),
    only: bool = False,
    plain_head: bool = False,
    classes: ClassesLike | None = None,
    label_order: str | PathLike[str] | Sequence[str] | None = None,
    order: str | None = None,
    record: str | PathLike[str] | None = None,
    accept_global: Names = (),
) -> Inspected:
    """Open a checkpoint, find its head and read its row norms. Nothing is run or written.

    Args:
        path: a checkpoint file or folder.
        counts: training samples of each class; they help to find the head, and are compared with
            the row norms.
        num_classes: C, if it is known.
        heads: names of the heads, if they are known.
        only: change only `heads`, although other final layers have as many rows.
        plain_head: the named heads are ordinary linear layers, whatever they look like.
        classes: names in head order, or a file of them.
        label_order: `name`, `index`, a file, or the labels in row order: how to join the classes of
            the counts with the rows, if there are two ways.
        order: `imagefolder`, `natural` or `index`: how the class folders were sorted in training.
        record: the record of an earlier re-scaling, if it is not beside the checkpoint.
        accept_global: full names of pickle globals to accept; they are never run.

    Raises:
        BadCheckpoint, UnsafePickle: the file cannot be read, or is not safe to read.
        NoClassifier, AmbiguousHead, BadHead: no head, several, or one that cannot be re-scaled.
        BadCounts, UnknownClassOrder: the counts do not fit its rows.
    """
    checkpoint = open_checkpoint(Path(path), frozenset(names_of(accept_global)))
    rows = row_hints(classes, label_order, order)
    names = rows.names
    raw = None if counts is None else as_raw_counts(counts)
    said = len(names) if names else len(raw.values) if raw and len(raw.values) > 1 else None
    found = locate(checkpoint, HeadChoice(names_of(heads), only, plain_head), num_classes, said)
    first = one_size(found)
    head_rows = checkpoint.rows(first.classes, first.weight)
    own = row_names(head_rows, rows, checked=False)
    matched = aligned = None
    if raw is not None:
        matched, aligned = CountsChoice(raw, rows, zero="one").resolve(head_rows)
    head = read_head(checkpoint, first)
    records, odd = find_records(checkpoint, _path(record))
    notes = [("head", text) for text in found.warnings] + [("record", text) for text in odd]
    notes += [("class-order", text) for text in (aligned.notes if aligned else ())]
    if first.binary and raw is None:
        notes.append(("binary-head", ASSUMED))
    notes += [
        ("no-effect", f"re-scaling {keys.weight} probably has no effect: {keys.no_effect}")
        for keys in found.together
        if keys.no_effect is not None
    ]
    weights = [checkpoint.tensor(keys.weight) for keys in found.heads]
    biases = [checkpoint.tensor(keys.bias) for keys in found.heads if keys.bias is not None]
    try:
        refuse_shared(checkpoint, weights + biases)
    except BadHead as error:
        notes.append(("shared-bytes", error.what))
    named = aligned is not None and aligned.named
    warnings = (*notes, *warnings_of(head, matched, named=named))
    return Inspected(checkpoint, found, head, own, matched, tuple(records), warnings, aligned)


def apply(
    path: str | PathLike[str],
    counts: CountsLike,
    gamma: float,
    *,
    output: str | PathLike[str] | None = None,
    method: str = "rescale",
    normalize: bool = False,
    bias: str = "",
    heads: Names = (),
    only: bool = False,
    plain_head: bool = False,
    num_classes: int | None = None,
    classes: ClassesLike | None = None,
    label_order: str | PathLike[str] | Sequence[str] | None = None,
    order: str | None = None,
    zero_count: ZeroPolicy = "error",
    max_factor: float | None = None,
    exclude_class: Names = (),
    target_prior: CountsLike | None = None,
    temperature: float = 1.0,
    compose: bool = False,
    in_place: bool = False,
    force: bool = False,
    dry_run: bool = False,
    undo: bool = True,
    record: str | PathLike[str] | None = None,
    accept_global: Names = (),
    command: str = "",
    approve: Callable[[Plan], None] = lambda plan: None,
) -> Applied:
    """Write a checkpoint in which the head is adjusted and nothing else changes.

    Args:
        path: a checkpoint file or folder, opened read-only.
        counts: training samples of each class.
        gamma: the strength of the method, 0 to 4; 0 changes nothing.
        output: where to write it; `default_output(path)` by default.
        method: rescale, tau-norm or logit-adjust.
        normalize: scale all rows to equal length first.
        bias: keep, scale or drop; by default keep, and drop with `normalize`.
        heads: names of the heads, if they cannot be found.
        only: change only `heads`, although other final layers have as many rows.
        plain_head: the named heads are ordinary linear layers, whatever they look like.
        num_classes: C, if it is not the number of counts.
        classes: names in head order, or a file of them.
        label_order: `name`, `index`, a file, or the labels in row order: how to join the classes of
            the counts with the rows, if there are two ways.
        order: `imagefolder`, `natural` or `index`: how the class folders were sorted in training.
        zero_count: how to count a class without samples: error, one (as one sample), or skip (its
            row does not change).
        max_factor: the largest factor of a row.
        exclude_class: rows that do not change and are never n_1.
        target_prior: shares of the classes where the model is used.
        temperature: T > 0; W and b are divided by it.
        compose: re-scale a checkpoint that was re-scaled before.
        in_place: replace the file and keep the old one as `FILE.bak`.
        force: replace an existing output.
        dry_run: write nothing.
        undo: store what `revert` needs.
        record: the record of an earlier re-scaling, if it is not beside the checkpoint.
        accept_global: full names of pickle globals to accept; they are never run.
        command: a command line to store in the record, which otherwise does not say who made the
            change, where and when.
        approve: called with the plan before anything is written; it may raise.

    Raises:
        RescaleError: one of its kinds; see `inspect`, `patch.apply_plan` and `plan.make_plan`.
    """
    adjustment = Adjustment(method, gamma, normalize, bias, max_factor, temperature)
    choice = CountsChoice.read(
        counts, row_hints(classes, label_order, order), zero=zero_count,
        exclude=exclude_class, target_prior=target_prior,
    )  # fmt: skip
    checkpoint = open_checkpoint(Path(path), frozenset(names_of(accept_global)))
    plan = make_plan(
        checkpoint, choice, adjustment, heads=HeadChoice(names_of(heads), only, plain_head),
        num_classes=num_classes, compose=compose, record=_path(record),
    )  # fmt: skip
    approve(plan)
    if dry_run:
        return Applied(plan, None)
    target = Target(
        default_output(checkpoint.path) if output is None else Path(output),
        force, in_place, undo, command,
        paths_of(counts, classes, label_order, target_prior, record),
    )  # fmt: skip
    return Applied(plan, apply_plan(plan, target))


def _path(given: str | PathLike[str] | None) -> Path | None:
    return None if given is None else Path(given)


__all__ = ["Applied", "CountsLike", "Inspected", "RescaleError", "apply", "inspect"]
