"""What an adjustment will do to a checkpoint, decided in full before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.checkpoints.locate_head import (
    ANY_HEAD,
    HeadChoice,
    locate,
    one_size,
    refuse_no_effect,
)
from rescale_cli.checkpoints.read_tensors import class_axis, read_head, refuse_shared
from rescale_cli.core.alignment import Alignment, in_row_order, join_counts
from rescale_cli.core.classes import NO_HINTS, HeadRows, RawCounts, RowHints, are_generic
from rescale_cli.core.counts import ClassCounts, ZeroPolicy, few, warnings_of
from rescale_cli.core.floats import Float64
from rescale_cli.core.head import (
    NO_BIAS,
    Head,
    RowUpdate,
    adjusting_line,
    one_row,
    refuse_rescaling,
    two_rows,
)
from rescale_cli.core.methods import Adjustment
from rescale_cli.data.counts import CountsLike, as_raw_counts
from rescale_cli.data.labels import Names, names_of
from rescale_cli.errors import AlreadyRescaled, RescaleError
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.reading import opened
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.finding.refusals import JointHead
from rescale_cli.json_text import clip
from rescale_cli.patching.find_records import find_records
from rescale_cli.patching.record import Record
from rescale_cli.patching.rewrite import RowScaling, regions

Warnings = tuple[tuple[str, str], ...]


#: The ratio of the largest to the smallest factor above which a warning is given.
LARGE = 30.0


@dataclass(frozen=True, slots=True)
class CountsChoice:
    """The counts as the user gave them, and how to bring them into the order of the head's rows."""

    raw: RawCounts
    hints: RowHints = NO_HINTS
    """What the user says about the head's rows."""
    zero: ZeroPolicy = "error"
    exclude: tuple[str, ...] = ()
    target_prior: RawCounts | None = None
    typed: str = ""
    """What was typed after --counts, to repeat in the command line of an error; else empty."""
    checked: bool = False
    """Whether predictions will be compared with labels that are joined by the same names."""

    @classmethod
    def read(
        cls,
        counts: CountsLike,
        hints: RowHints = NO_HINTS,
        *,
        zero: ZeroPolicy = "error",
        exclude: Names = (),
        target_prior: CountsLike | None = None,
        checked: bool = False,
    ) -> CountsChoice:
        """The same from counts and a target prior that are still to be read; see the fields."""
        prior = None if target_prior is None else as_raw_counts(target_prior)
        typed = str(counts) if isinstance(counts, str | PathLike) else "FILE"
        raw = as_raw_counts(counts)
        return cls(raw, hints, zero, names_of(exclude), prior, typed, checked)

    def resolve(self, rows: HeadRows) -> tuple[ClassCounts, Alignment]:
        """The counts of a head with these rows, and how they were joined."""
        counts, found = join_counts(
            self.raw, rows, self.hints, zero=self.zero, checked=self.checked
        )
        if self.exclude:
            counts = counts.exclude(self.exclude)
        if self.target_prior is not None:
            shares, _ = in_row_order(self.target_prior, rows, self.hints, checked=self.checked)
            counts = counts.against_target(shares)
        return counts, found

    def refuse_unchecked(self, rows: HeadRows, joined_by: str | None) -> None:
        """Stop if the labels were not joined by the names that gave the counts their order.

        Raises:
            UnknownClassOrder: nothing shows that the order is right.
        """
        if joined_by != "name" and self.checked:
            replace(self, checked=False).resolve(rows)


@dataclass(frozen=True, slots=True)
class PlannedHead:
    """One head, and how it will change."""

    keys: HeadKeys
    before: Head
    update: RowUpdate
    edits: tuple[RowScaling, ...]
    """The edit of its weight, and that of its bias if it changes."""

    @property
    def row_update(self) -> RowUpdate:
        """The update of the stored rows; a binary head stores only one of its two."""
        return one_row(self.update) if self.keys.binary else self.update

    @property
    def norms_after(self) -> Float64:
        """Row norms (C,) of the re-scaled head."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.before.norms * np.abs(self.update.scale)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that `apply` will do, and the warnings about it."""

    checkpoint: Checkpoint
    heads: tuple[PlannedHead, ...]
    counts: ClassCounts
    adjustment: Adjustment
    warnings: Warnings = ()
    records: tuple[Record, ...] = ()
    """The records of earlier re-scalings."""
    alignment: Alignment | None = None
    """How the counts were joined with the rows."""
    left_behind: tuple[Path, ...] = ()
    """What a patched folder will not contain: training state of the original model."""

    def edits_of(self, file: Path) -> list[RowScaling]:
        """The changes in one file; a tensor with two names changes once."""
        found: dict[tuple[object, ...], RowScaling] = {}
        for head in self.heads:
            for edit in head.edits:
                if edit.info.file == file:
                    found.setdefault((edit.info.start, edit.info.shape, edit.info.strides), edit)
        return list(found.values())

    @property
    def joint(self) -> JointHead:
        """The heads whose logits the model combines."""
        mine = [h for h in self.heads if not h.keys.is_copy] or list(self.heads[:1])
        return JointHead(tuple(h.keys.weight for h in mine), tuple(h.before for h in mine))

    @property
    def files(self) -> list[Path]:
        """The files that change, that of the first head first."""
        return list(dict.fromkeys(edit.info.file for head in self.heads for edit in head.edits))


def make_plan(
    checkpoint: Checkpoint,
    choice: CountsChoice,
    adjustment: Adjustment,
    *,
    heads: HeadChoice = ANY_HEAD,
    num_classes: int | None = None,
    compose: bool = False,
    record: Path | None = None,
) -> Plan:
    """Find the head, join the counts with its rows, and compute every factor.

    Args:
        checkpoint: opened.
        choice: the counts.
        adjustment: the method and its strength.
        heads: the user's choice of heads.
        num_classes: C, if the user knows it; by default the number of counts.
        compose: whether a checkpoint that was re-scaled before may be re-scaled again.
        record: the record of an earlier re-scaling, if it is not beside the checkpoint.

    Raises:
        AmbiguousHead, NoClassifier, BadHead: there is no single head that can be re-scaled.
        NoEffect: a head that normalises its rows when the model runs.
        BadCounts, UnknownClassOrder: the counts do not fit its rows.
        AlreadyRescaled: it was re-scaled before, and `compose` is false.
    """
    found = locate(checkpoint, heads, num_classes, _rows_said(choice))
    first = one_size(found)
    refuse_no_effect(found)
    own = checkpoint.names_of(first.classes)
    label = f"{first.weight} ({first.num_classes}, {first.feature_dim}) in {checkpoint.path.name}"
    counts, aligned = choice.resolve(checkpoint.rows(first.classes, label))
    records, odd = find_records(checkpoint, record)
    if records and not compose:
        raise _already(checkpoint, records)
    if first.binary and adjustment.needs_counts and adjustment.method != "logit-adjust":
        line = adjusting_line("apply" if choice.typed else "", checkpoint.path, choice.typed)
        refuse_rescaling(adjustment.method, line if first.bias else NO_BIAS)
    planned = [plan_head(checkpoint, keys, counts, adjustment) for keys in found.heads]
    refuse_shared(checkpoint, [edit.info for head in planned for edit in head.edits])
    notes = about_choice(choice, own, planned[0])
    notes += [("class-order", text) for text in aligned.notes]
    notes += [("head", text) for text in found.warnings] + [("record", text) for text in odd]
    left = checkpoint.left_behind
    notes += _about_others(checkpoint, left)
    # The rows of a head that was re-scaled before are as long as that made them.
    norms = [] if records else warnings_of(planned[0].before, counts, named=aligned.named)
    plan = Plan(
        checkpoint,
        tuple(planned),
        counts,
        adjustment,
        (*notes, *norms),
        tuple(records),
        aligned,
        left,
    )
    plan.joint.refuse(adjustment, written=True)
    return plan


def _about_others(checkpoint: Checkpoint, left: Sequence[Path]) -> list[tuple[str, str]]:
    """Warnings about the other models of a folder; none if a file was named."""
    used, folder = few([file.name for file in checkpoint.contents.files], 1), checkpoint.path
    return [
        (
            "other-weights",
            f"{name} also holds a model, but {used} is used: whoever loads {name} does not get the "
            f"re-scaled head; remove {name}, or re-scale it as well",
        )
        for name in checkpoint.other_models
        if not any((folder / name).is_relative_to(entry) for entry in left)
    ]


def about_choice(
    choice: CountsChoice, own: tuple[str, ...] | None, head: PlannedHead
) -> list[tuple[str, str]]:
    """Warnings about class names that differ and about very large factors."""
    notes = []
    names = choice.hints.names
    if names and own and names != own and not are_generic(own):
        row = next(i for i, pair in enumerate(zip(names, own, strict=True)) if len({*pair}) > 1)
        notes.append((
            "classes-differ",
            f"--classes calls row {row} {clip(names[row], 40)}, the checkpoint calls it "
            f"{clip(own[row], 40)}; --classes was followed",
        ))  # fmt: skip
    largest = float(head.update.scale.max() / head.update.scale.min())
    if largest > LARGE:
        notes.append((
            "large-factors",
            f"the largest factor is {largest:.3g} times the smallest: so large a correction nearly "
            "always harms; compare a smaller strength on held-out data",
        ))  # fmt: skip
    return notes


def _rows_said(choice: CountsChoice) -> int | None:
    """The number of rows that the names or counts imply."""
    if choice.hints.names is not None:
        return len(choice.hints.names)
    return len(choice.raw.values) if len(choice.raw.values) > 1 else None


def plan_head(
    checkpoint: Checkpoint, keys: HeadKeys, counts: ClassCounts, adjustment: Adjustment
) -> PlannedHead:
    """Read one head and compute what the adjustment does to it.

    Raises:
        BadHead: it cannot be re-scaled.
    """
    before = read_head(checkpoint, keys)
    labels = counts.names or ()
    if keys.binary:
        before, labels = two_rows(before), labels[1:]
    both = adjustment.update(before, counts)
    update = one_row(both) if keys.binary else both
    none = np.zeros(keys.num_classes)
    weight = checkpoint.tensor(keys.weight)
    edits = [RowScaling(weight, class_axis(keys), update.scale, none, labels)]
    if keys.bias is not None:
        bias = checkpoint.tensor(keys.bias)
        kept = bool((update.bias_scale == 1).all() and (update.shift == 0).all())
        if not kept:
            axis = _bias_axis(bias)
            edits.append(RowScaling(bias, axis, update.bias_scale, update.shift, labels))
    return PlannedHead(keys, before, both, tuple(edits))


def _bias_axis(bias: TensorInfo) -> int:
    """The axis of the classes: a bias may be stored as (C,), (1, C) or (C, 1, 1)."""
    return max(range(len(bias.shape)), key=lambda axis: bias.shape[axis])


def _already(checkpoint: Checkpoint, records: Sequence[Record]) -> AlreadyRescaled:
    fields, sidecar = records[0].fields, records[0].sidecar
    how = f"{fields.get('method')}, gamma {fields.get('gamma')}, version {fields.get('version')}"
    return AlreadyRescaled(
        f"{checkpoint.path.name} was re-scaled before; doing it again would over-correct it",
        saw=clip(f"{how}, recorded in {sidecar.name if sidecar else 'the file itself'}", 300),
        fix="start from the original (rescale-cli revert restores it), or insist: --compose",
    )


def obstacle(
    checkpoint: Checkpoint, counts: CountsChoice, adjustment: Adjustment, heads: HeadChoice
) -> str:
    """Why `apply` cannot write an adjustment to this checkpoint; empty if it can.

    The new values of the head are computed, so a value that its dtype cannot hold counts as an
    obstacle. An earlier re-scaling does not.

    Args:
        checkpoint: opened.
        counts: those of the training set.
        adjustment: the method and its strength.
        heads: the user's choice of heads.
    """
    try:
        plan = make_plan(checkpoint, counts, adjustment, heads=heads, compose=True)
        for file in plan.files:
            with opened(file) as source:
                for region in regions(plan.edits_of(file)):
                    region.rewritten(source)
    except RescaleError as error:
        return error.what
    return ""
