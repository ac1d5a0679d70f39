"""A checkpoint's head, its counts, and what the model says of data: what a sweep starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.core.binary import adjusting_line, refuse_rescaling
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import Predictions
from rescale_cli.core.provenance import Provenance
from rescale_cli.core.row_names import HeadRows
from rescale_cli.evaluating.evaluation import (
    DataChoice,
    Known,
    Notes,
    Progress,
    predictions_of,
)
from rescale_cli.evaluating.whose import of_result
from rescale_cli.finding.head_checks import refuse_multi_label
from rescale_cli.measures.training_set import CODE as TRAINING_SET
from rescale_cli.measures.training_set import trained_on
from rescale_cli.patching.head_identity import head_sha256
from rescale_cli.patching.joint_head import JointHead
from rescale_cli.patching.locate_head import ANY_HEAD, HeadChoice
from rescale_cli.patching.plan import CountsChoice, Warnings, make_plan


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One model, ready to be adjusted without being run again."""

    path: Path | None
    """None where only the logits were given."""
    head: Head
    counts: ClassCounts
    predictions: Predictions
    warnings: Warnings
    joint: JointHead
    """Says which methods the logits of several heads allow."""
    head_sha256: str | None = None
    """Of the checkpoint's head, see `head_identity`; None where it is not known."""

    @property
    def compose(self) -> dict[str, list[str]]:
        """What `apply` asks for beside a strength: a second re-scaling is to be meant."""
        rescaled = any(code == "rescaled-before" for code, _ in self.warnings)
        return {"--compose": [""]} if rescaled else {}

    @property
    def provenance(self) -> Provenance:
        """What results of it are tied to."""
        return of_result(self.predictions, self.head_sha256)


def logits_alone(
    counts: CountsChoice,
    choice: DataChoice,
    *,
    labelled: bool = True,
    notes: Notes = lambda _: None,
) -> Trial | None:
    """The trial of a file of logits without a checkpoint; the counts give the classes.

    Raises:
        RescaleError: logits that cannot be read, or counts that are not those of their columns.
    """
    assert choice.logits is not None
    file, choice = choice.logits, replace(choice, alone=True)
    predictions = predictions_of(file, choice, labelled=labelled, notes=notes)
    if predictions is None:
        return None
    c = predictions.num_classes
    title = f"logits ({len(predictions.logits)}, {c}) in {file.name}"
    resolved, _ = replace(counts, checked=False).resolve(HeadRows(c, title=title))
    head = Head.of_logits(c, binary=predictions.binary)
    warnings = doubts(predictions, resolved)
    return Trial(None, head, resolved, predictions, warnings, JointHead((file.name,), (head,)))


def try_on(
    path: Path,
    counts: CountsChoice,
    choice: DataChoice,
    *,
    heads: HeadChoice = ANY_HEAD,
    accept: frozenset[str] = frozenset(),
    labelled: bool = True,
    adjustment: Adjustment | None = None,
    tried: Sequence[Adjustment] = (),
    leave_out: bool = False,
    write: bool = False,
    progress: Progress | None = None,
    notes: Notes = lambda _: None,
) -> Trial | None:
    """Find the head, hold the counts against it, and only then run the model on the data.

    Args:
        path: a checkpoint file or folder.
        counts: of the training set.
        choice: the data, or logits that were computed before.
        heads: what the user says of the heads.
        accept: full names of pickle globals that are let pass, still without being run.
        labelled: whether it is an error that nobody knows the labels.
        adjustment: of what will be written, so that a head which cannot hold it is refused now.
        tried: what will be swept, so that what the heads do not allow is refused now.
        leave_out: whether the re-scalings of a binary head are left out later, not refused now.
        write: whether a checkpoint is written, too; one that was re-scaled before is refused then.
        progress: called as the images go through.
        notes: told what the user should know.

    Returns:
        None on any rank of torchrun but 0.

    Raises:
        RescaleError: no head that can be re-scaled, counts that are not its rows', data that do not
            go with the model.
    """
    checkpoint = open_checkpoint(path, accept)
    if choice.logits is not None or not labelled:
        counts = replace(counts, checked=False)
    plan = make_plan(checkpoint, counts, adjustment or Adjustment(), heads=heads, compose=not write)
    warnings = list(plan.warnings)
    if plan.records:
        text = f"{path.name} was re-scaled before; what is chosen here would come on top of that"
        warnings.append(("rescaled-before", text))
    for one in tried:
        plan.joint.refuse(one)
    first = plan.heads[0]
    refuse_multi_label(checkpoint.contents.config or {}, heads.names, first.keys.num_classes)
    for method in (a.method for a in tried if a.method != "logit-adjust"):
        if first.keys.binary and not leave_out:
            data = ("--data", choice.data) if choice.logits is None else ("--logits", choice.logits)
            refuse_rescaling(method, adjusting_line("sweep-gamma", path, counts.typed, *data))
    choice, own = replace(choice, purpose="choose"), head_sha256(checkpoint, first.keys)
    known = Known(first.keys.num_classes, own, plan.counts, bool(plan.records))
    predictions = predictions_of(
        path, choice, known=known, said=counts.said, accept=accept, heads=heads,
        labelled=labelled, progress=progress, notes=notes,
    )  # fmt: skip
    if predictions is None:
        return None
    rows = checkpoint.rows(first.keys.classes, path.name)
    counts.refuse_unchecked(rows, (predictions.alignment or {}).get("by"))
    warnings += doubts(predictions, plan.counts)
    return Trial(
        path, plan.joint.as_one, plan.counts, predictions, tuple(warnings), plan.joint, own
    )


def doubts(predictions: Predictions, counts: ClassCounts) -> Warnings:
    """What speaks against choosing on these samples: they are of one class, or trained on."""
    found = []
    labels = predictions.labels
    if labels is not None and len(labels) and (labels == labels[0]).all():
        row = int(labels[0])
        name = f"{row} ({counts.names[row]})" if counts.names else f"{row}"
        text = f"all {len(labels):,} samples are of class {name}: what is chosen on them says "
        found.append(("one-class", f"{text}nothing about the other classes"))
    support = np.bincount(labels, minlength=len(counts.values)) if labels is not None else ()
    if why := trained_on(np.array(support), counts, predictions.source, predictions.split):
        text = "the strength is chosen on the data that the model was trained on, where rare "
        text += f"classes look better than they are ({why}); choose on validation data: --data DATA"
        found.append((TRAINING_SET, text))
    return tuple(found)
