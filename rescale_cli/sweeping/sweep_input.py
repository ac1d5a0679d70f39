"""What a sweep starts from: a model, its predictions on the data, and its class counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.checkpoints.locate_head import ANY_HEAD, HeadChoice
from rescale_cli.core.classes import HeadRows
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head, adjusting_line, refuse_rescaling
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import Predictions, Provenance
from rescale_cli.evaluating.run_on_data import (
    DataChoice,
    ModelToRun,
    Notes,
    Progress,
    of_result,
    predictions_of,
)
from rescale_cli.finding.refusals import JointHead, refuse_multi_label
from rescale_cli.measures.model_evidence import CODE as TRAINING_SET
from rescale_cli.measures.model_evidence import trained_on
from rescale_cli.patching.head_identity import head_sha256
from rescale_cli.patching.plan import CountsChoice, Warnings, make_plan


@dataclass(frozen=True, slots=True, eq=False)
class SweepInput:
    """A model with its predictions and class counts. Methods are tried without running it again."""

    path: Path | None
    """None if only the logits are given."""
    head: Head
    counts: ClassCounts
    predictions: Predictions
    warnings: Warnings
    joint: JointHead
    """All heads, if the logits are computed from several together. Some methods then refuse."""
    head_sha256: str | None = None
    """SHA-256 of the checkpoint's head, see `head_identity.head_sha256`; None if unknown."""
    checkpoint: Checkpoint | None = None
    """None if only the logits are given."""

    @property
    def compose(self) -> dict[str, list[str]]:
        """The option that `apply` needs if the checkpoint was re-scaled before."""
        rescaled = any(code == "rescaled-before" for code, _ in self.warnings)
        return {"--compose": [""]} if rescaled else {}

    @property
    def provenance(self) -> Provenance:
        """The model and the data that are recorded with the results."""
        return of_result(self.predictions, self.head_sha256)


def input_of_logits(
    counts: CountsChoice,
    choice: DataChoice,
    *,
    labelled: bool = True,
    notes: Notes = lambda _: None,
) -> SweepInput | None:
    """The input from a file of logits without a checkpoint; the counts name the classes.

    Raises:
        RescaleError: the logits cannot be read, or the counts do not match their columns.
    """
    assert choice.logits is not None
    file, choice = choice.logits, replace(choice, alone=True)
    predictions = predictions_of(ModelToRun(file), choice, labelled=labelled, notes=notes)
    if predictions is None:
        return None
    c = predictions.num_classes
    title = f"logits ({len(predictions.logits)}, {c}) in {file.name}"
    resolved, _ = replace(counts, checked=False).resolve(HeadRows(c, title=title))
    head = Head.of_logits(c, binary=predictions.binary)
    warnings = sample_warnings(predictions, resolved)
    return SweepInput(None, head, resolved, predictions, warnings, JointHead((file.name,), (head,)))


def sweep_input(
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
) -> SweepInput | None:
    """Find the head, check the counts against it, and only then run the model on the data.

    Args:
        path: a checkpoint file or folder.
        counts: of the training set.
        choice: the data, or logits that were computed before.
        heads: the user's options about the heads.
        accept: full names of pickle globals that may be referred to; they are never called.
        labelled: whether data without labels are an error.
        adjustment: what will be written. A head that cannot store it is refused before the run.
        tried: the methods to sweep. One that the heads do not allow is refused before the run.
        leave_out: for a binary head, leave out the methods that re-scale rows instead of refusing.
        write: whether a checkpoint will be written; then one that was re-scaled before is refused.
        progress: called with the number of images done.
        notes: called with each note for the user.

    Returns:
        None on every rank of torchrun except rank 0.

    Raises:
        RescaleError: no head can be re-scaled, the counts do not match it, or the data do not match
            the model.
    """
    checkpoint = open_checkpoint(path, accept)
    if choice.logits is not None or not labelled:
        counts = replace(counts, checked=False)
    plan = make_plan(checkpoint, counts, adjustment or Adjustment(), heads=heads, compose=not write)
    warnings = list(plan.warnings)
    if plan.records:
        text = f"{path.name} was re-scaled before; the strength chosen here would be applied on top"
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
    to_run = ModelToRun(
        path, first.keys.num_classes, own, plan.counts, bool(plan.records),
        counts.hints, heads, accept,
    )  # fmt: skip
    predictions = predictions_of(to_run, choice, labelled=labelled, progress=progress, notes=notes)
    if predictions is None:
        return None
    rows = checkpoint.rows(first.keys.classes, path.name)
    counts.refuse_unchecked(rows, (predictions.alignment or {}).get("by"))
    warnings += sample_warnings(predictions, plan.counts)
    return SweepInput(
        path, plan.joint.as_one, plan.counts, predictions, tuple(warnings), plan.joint, own,
        checkpoint,
    )  # fmt: skip


def sample_warnings(predictions: Predictions, counts: ClassCounts) -> Warnings:
    """Warnings about samples that are all of one class, or that the model was trained on."""
    found = []
    labels = predictions.labels
    if labels is not None and len(labels) and (labels == labels[0]).all():
        row = int(labels[0])
        name = f"{row} ({counts.names[row]})" if counts.names else f"{row}"
        text = (
            f"all {len(labels):,} samples are of class {name}, so a strength chosen on them ignores"
        )
        found.append(("one-class", f"{text} all other classes"))
    support = np.bincount(labels, minlength=len(counts.values)) if labels is not None else ()
    if why := trained_on(np.array(support), counts, predictions.source, predictions.split):
        text = f"{why}; rare classes do better on training data than on new data, so choose on "
        found.append((TRAINING_SET, f"{text}validation data: --data DATA"))
    return tuple(found)
