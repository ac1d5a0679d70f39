"""One model, measured; and two, compared on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.checkpoints.read_tensors import ANY_HEAD, HeadChoice, locate, one_size
from rescale_cli.core.classes import NO_HINTS, HeadRows, RowHints, row_names
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.floats import Float64
from rescale_cli.core.head import Head, RowUpdate
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import Labels, Predictions, Provenance
from rescale_cli.errors import AmbiguousHead, BadCheckpoint, BadInput, NoClassifier, UsageError
from rescale_cli.evaluating.evaluation import Known, of_result
from rescale_cli.finding.refusals import refuse_multi_label
from rescale_cli.measures.calibration import PerSample, measure_logits
from rescale_cli.measures.metrics import Confusion, Groups, metrics_of
from rescale_cli.measures.significance import Interval, McNemar, bootstrap_difference, mcnemar
from rescale_cli.patching.find_records import ChosenFor, head_sha256, was_rescaled
from rescale_cli.patching.plan import CountsChoice, Warnings, make_plan


@dataclass(frozen=True, slots=True)
class Terms:
    """How all models of one evaluation are measured."""

    counts: CountsChoice | None = None
    """Of the training samples: they say which classes are many, medium and few."""
    said: RowHints = NO_HINTS
    """What the user says about the head's rows."""
    groups: tuple[int, int] = (100, 20)
    """Many is more than the first, few is less than the second, training samples."""
    adjustment: Adjustment | None = None
    """Measured as if it had been applied; it needs counts, unless it is only a temperature."""
    heads: HeadChoice = ANY_HEAD
    accept: frozenset[str] = frozenset()
    chosen_for: ChosenFor | None = None
    """The model that the strength was chosen for, where a sweep chose it."""

    @property
    def rows_said(self) -> int | None:
        """C, as the names or the counts have it: it helps to find the head."""
        said = self.said.names or (self.counts.raw.values if self.counts else ())
        return len(said) if len(said) > 1 else None


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What a checkpoint says before its model is run."""

    path: Path
    num_classes: int | None = None
    """Rows of the head, 1 for a binary one; None where no head was found, which only an adjustment
    needs."""
    classes: tuple[str, ...] | None = None
    counts: ClassCounts | None = None
    update: RowUpdate | None = None
    """What the adjustment does to its head."""
    bias: Float64 | None = None
    warnings: Warnings = ()
    own: tuple[str, ...] | None = None
    """The names that the checkpoint itself has."""
    tool: str = ""
    """What trained it, where it says so."""
    head_sha256: str | None = None
    """See `head_identity`; None where no head was found."""
    rescaled: bool = False
    """Whether the checkpoint has the record of a re-scaling."""

    @property
    def known(self) -> Known:
        """What helps to run it."""
        return Known(self.num_classes, self.head_sha256, self.counts, self.rescaled)


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredModel:
    """One model, measured."""

    name: str
    """Its path, as the user gave it."""
    metrics: dict[str, float | None]
    """See `metrics.metrics_of`; None is n/a."""
    confusion: Confusion
    predicted: Labels
    """(N,)."""
    labels: Labels
    """(N,), rows of the head."""
    samples: PerSample
    """What their probabilities add to the metrics."""
    names: Sequence[str] | None = None
    """(N,): the file or key of each sample, where it has one."""
    images_per_second: float | None = None
    skipped: tuple[str, ...] = ()
    """Samples that could not be read."""
    classes: tuple[str, ...] | None = None
    counts: ClassCounts | None = None
    groups: Groups = field(default_factory=dict)
    alignment: Mapping[str, Any] | None = None
    """How its labels were joined with the rows."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """See `Predictions.data`."""
    provenance: Provenance = Provenance()  # noqa: RUF009 - frozen
    """Of its logits."""

    @property
    def confidence(self) -> Float64:
        """The probability of the predicted class, after any adjustment, (N,)."""
        found: Float64 = self.samples.gap + (self.predicted == self.labels)
        return found


def subject_of(path: Path, terms: Terms, *, must_have_head: bool) -> Subject:
    """Open a checkpoint and work out what the terms mean for its head; no model is built.

    Args:
        path: a checkpoint file or folder.
        terms: the counts are held against the head here, before an hour is spent on the data.
        must_have_head: whether it is wrong not to find one: with logits of unknown origin it is; a
            model that will be run is measured whatever its head is like.

    Raises:
        RescaleError: no checkpoint, counts that are not its rows', an adjustment that its head
            cannot take.
    """
    if terms.counts is not None and must_have_head:  # their labels are rows, without names
        terms = replace(terms, counts=replace(terms.counts, checked=False))
    if terms.adjustment is not None and terms.counts is not None:
        return _adjusted(path, terms, terms.counts, terms.adjustment)
    try:
        checkpoint = open_checkpoint(path, terms.accept)
        keys = one_size(locate(checkpoint, terms.heads, None, terms.rows_said))
    except (BadCheckpoint, NoClassifier, AmbiguousHead):
        if must_have_head:
            raise
        return Subject(path, classes=terms.said.names)
    refuse_multi_label(checkpoint.contents.config or {}, terms.heads.names, keys.num_classes)
    label = f"{keys.weight} ({keys.num_classes}, {keys.feature_dim}) in {path.name}"
    rows, choice = checkpoint.rows(keys.classes, label), terms.counts
    names = row_names(rows, terms.said)
    counts = None if choice is None else choice.resolve(rows)[0]
    own = head_sha256(checkpoint, keys)
    if terms.chosen_for is not None:
        terms.chosen_for.refuse_other(path, own, terms.accept)
    return Subject(
        path, keys.num_classes, names, counts, own=rows.own, tool=rows.tool, head_sha256=own,
        rescaled=was_rescaled(checkpoint),
    )  # fmt: skip


def subject_of_logits(path: Path, terms: Terms) -> Subject:
    """A file of logits that stands for its model.

    Raises:
        UsageError: an adjustment that reads the rows of the head.
    """
    adjustment = terms.adjustment
    if adjustment is not None and adjustment.needs_counts and adjustment.method != "logit-adjust":
        raise UsageError(
            f"{adjustment.method} reads the rows and the bias of the head, so it needs the MODEL",
            saw=f"{path.name} alone",
            fix=f"name the checkpoint: MODEL --logits {path}, or adjust the logits: "
            "--method logit-adjust --tau 1",
        )
    return Subject(path, classes=terms.said.names)


def _adjusted(path: Path, terms: Terms, counts: CountsChoice, adjustment: Adjustment) -> Subject:
    checkpoint = open_checkpoint(path, terms.accept)
    plan = make_plan(checkpoint, counts, adjustment, heads=terms.heads, compose=True)
    plan.joint.refuse(adjustment)
    head, warnings = plan.heads[0], list(plan.warnings)
    own = head_sha256(checkpoint, head.keys)
    if terms.chosen_for is not None:
        terms.chosen_for.refuse_other(path, own, terms.accept)
        terms.chosen_for.refuse_other_counts(plan.counts)
    if plan.records:
        text = f"{path.name} was re-scaled before; what is measured is once more, on top of that"
        warnings.append(("rescaled-before", text))
    c = head.keys.num_classes
    refuse_multi_label(checkpoint.contents.config or {}, terms.heads.names, c)
    rows = checkpoint.rows(head.keys.classes)
    names = row_names(rows, terms.said)
    return Subject(
        path, c, names, plan.counts, head.update, plan.joint.as_one.bias, tuple(warnings),
        rows.own, rows.tool, own, bool(plan.records),
    )  # fmt: skip


def measure_model(
    subject: Subject, predictions: Predictions, labels: Labels, terms: Terms, *, plain: bool
) -> MeasuredModel:
    """Measure the predictions of one model.

    Args:
        subject: whose they are.
        predictions: of N samples.
        labels: (N,), rows of its head.
        terms: groups, and what names and counts are still to be held against C.
        plain: measure them as they are, not as the adjustment would make them.
    """
    c, counts = predictions.num_classes, subject.counts
    if terms.counts is not None:
        rows = HeadRows(c, subject.own, subject.tool, f"{c} classes of {subject.path.name}")
        counts = counts if counts is not None else terms.counts.resolve(rows)[0]
        terms.counts.refuse_unchecked(rows, (predictions.alignment or {}).get("by"))
    update = None if plain else subject.update
    if not plain and update is None and terms.adjustment is not None:
        head = Head.of_logits(c, binary=predictions.binary)
        if terms.adjustment.needs_counts and counts is not None:
            update = terms.adjustment.update(head, counts)
        else:
            update = RowUpdate.identity(c).over(terms.adjustment.temperature)
    measured = measure_logits(
        predictions.logits,
        labels,
        None if update is None else lambda logits: update.on_logits(logits, subject.bias),
    )
    confusion = Confusion.of(measured.predicted, labels, c)
    groups = {} if counts is None else counts.groups(*terms.groups)
    metrics = metrics_of(confusion, groups, measured)
    return MeasuredModel(
        str(subject.path), metrics, confusion, measured.predicted, labels, measured.samples,
        predictions.names, predictions.images_per_second, predictions.skipped, subject.classes,
        counts, groups, predictions.alignment, predictions.data,
        of_result(predictions, subject.head_sha256),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """One model less the base, on the same samples."""

    differences: dict[str, float | None]
    """Of every metric; None where one of the two is n/a."""
    intervals: dict[str, Interval | None]
    """Paired bootstrap, of every metric; None where a metric is n/a."""
    mcnemar: McNemar
    """First is the base."""


def compare_with(
    base: MeasuredModel, model: MeasuredModel, *, replicates: int, seed: int
) -> Difference:
    """How much better or worse than the base a model is, and whether that could be chance.

    Raises:
        BadInput: the two were not run on the same samples.
    """
    c = model.confusion.num_classes
    if base.confusion.num_classes != c or not np.array_equal(base.labels, model.labels):
        raise BadInput(
            f"{base.name} and {model.name} were not run on the same samples",
            saw=f"{len(base.labels):,} and {len(model.labels):,} labels, which differ",
            fix="run both on one --data; their heads must have the same class order",
        )
    intervals = bootstrap_difference(
        base.predicted, model.predicted, model.labels, c, model.groups,
        (base.samples, model.samples), replicates=replicates, seed=seed,
    )  # fmt: skip
    differences = {
        name: None if value is None or (old := base.metrics[name]) is None else value - old
        for name, value in model.metrics.items()
    }
    return Difference(
        differences, intervals, mcnemar(base.predicted, model.predicted, model.labels)
    )
