"""Models measured on data side by side, and compared with a base model on the same samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.checkpoints.locate_head import ANY_HEAD, HeadChoice, locate, one_size
from rescale_cli.core.classes import NO_HINTS, HeadRows, RowHints, row_names
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.floats import Float64
from rescale_cli.core.head import Head, RowUpdate
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import Labels, Predictions, Provenance
from rescale_cli.errors import AmbiguousHead, BadCheckpoint, BadInput, NoClassifier, UsageError
from rescale_cli.evaluating import ranks
from rescale_cli.evaluating.chosen_for import ChosenFor
from rescale_cli.evaluating.doubts import doubts_about
from rescale_cli.evaluating.run_on_data import (
    DataChoice,
    ModelToRun,
    Notes,
    Progress,
    of_result,
    predictions_of,
)
from rescale_cli.finding.refusals import refuse_multi_label
from rescale_cli.measures.calibration import PerSample, measure_logits
from rescale_cli.measures.metrics import Confusion, Groups, metrics_of
from rescale_cli.measures.significance import Interval, McNemar, bootstrap_difference, mcnemar
from rescale_cli.patching.find_records import was_rescaled
from rescale_cli.patching.head_identity import head_sha256
from rescale_cli.patching.plan import CountsChoice, Warnings, make_plan


@dataclass(frozen=True, slots=True)
class Terms:
    """How all models of one evaluation are measured."""

    counts: CountsChoice | None = None
    """Training samples per class, which define the groups many, medium and few."""
    said: RowHints = NO_HINTS
    """What the user says about the head's rows."""
    groups: tuple[int, int] = (100, 20)
    """Training samples: many is more than the first number, few is less than the second."""
    adjustment: Adjustment | None = None
    """Measured as if this were applied; it needs counts, unless it is only a temperature."""
    heads: HeadChoice = ANY_HEAD
    accept: frozenset[str] = frozenset()
    chosen_for: ChosenFor | None = None
    """What a sweep chose the strength for, if a sweep did."""

    @property
    def rows_said(self) -> int | None:
        """C, as the names or the counts have it: it helps to find the head."""
        said = self.said.names or (self.counts.raw.values if self.counts else ())
        return len(said) if len(said) > 1 else None


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is known of a checkpoint before its model is run."""

    path: Path
    num_classes: int | None = None
    """Rows of the head, 1 for a binary one; None if no head was found."""
    classes: tuple[str, ...] | None = None
    counts: ClassCounts | None = None
    update: RowUpdate | None = None
    """How the adjustment changes the head."""
    bias: Float64 | None = None
    warnings: Warnings = ()
    own: tuple[str, ...] | None = None
    """The class names in the checkpoint itself."""
    tool: str = ""
    """The tool that trained it, if the checkpoint names it."""
    head_sha256: str | None = None
    """See `head_identity`; None if no head was found."""
    rescaled: bool = False
    """Whether the checkpoint has the record of a re-scaling."""

    def to_run(self, terms: Terms) -> ModelToRun:
        """The checkpoint with what is known of it."""
        return ModelToRun(
            self.path, self.num_classes, self.head_sha256, self.counts, self.rescaled,
            terms.said, terms.heads, terms.accept,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredModel:
    """The metrics of one model."""

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
    """What the metrics of probabilities are computed from."""
    names: Sequence[str] | None = None
    """(N,): the file or key of each sample, if it has one."""
    images_per_second: float | None = None
    skipped: tuple[str, ...] = ()
    """Samples that could not be read."""
    classes: tuple[str, ...] | None = None
    counts: ClassCounts | None = None
    groups: Groups = field(default_factory=dict)
    alignment: Mapping[str, Any] | None = None
    """How the labels were matched with the rows of the head."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """See `Predictions.data`."""
    provenance: Provenance = Provenance()  # noqa: RUF009 - frozen
    """Of its logits."""
    data_sha256: str | None = None
    """See `Predictions.data_sha256`."""

    @property
    def confidence(self) -> Float64:
        """The probability of the predicted class, after any adjustment, (N,)."""
        found: Float64 = self.samples.gap + (self.predicted == self.labels)
        return found


def subject_of(path: Path, terms: Terms, *, must_have_head: bool) -> Subject:
    """Open a checkpoint and work out what the terms mean for its head; no model is built.

    Args:
        path: a checkpoint file or folder.
        terms: the counts are checked against the head here, before time is spent on the data.
        must_have_head: whether a missing head is an error. With given logits it is; a model that
            will be run is measured whatever its head is like.

    Raises:
        RescaleError: the checkpoint cannot be read, the counts do not match the head, or the
            adjustment cannot be applied to it.
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
    """The subject for a file of logits without a checkpoint.

    Raises:
        UsageError: an adjustment that reads the rows of the head.
    """
    adjustment = terms.adjustment
    if adjustment is not None and adjustment.needs_counts and adjustment.method != "logit-adjust":
        raise UsageError(
            f"{adjustment.method} needs the weights and the bias of the head, so MODEL is required",
            saw=f"only the logits {path.name}",
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
        text = f"{path.name} was re-scaled before; the adjustment is measured on top of that"
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
    subject: Subject, predictions: Predictions, terms: Terms, *, plain: bool
) -> MeasuredModel:
    """Measure the predictions of one model.

    Args:
        subject: the model.
        predictions: of N samples, with labels.
        terms: the groups, and names and counts that have not yet been checked against C.
        plain: whether to measure the predictions without the adjustment.
    """
    c, counts, labels = predictions.num_classes, subject.counts, predictions.labels
    assert labels is not None
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
        None if terms.chosen_for is None else predictions.data_sha256,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """The metrics of one model minus those of the base, on the same samples."""

    differences: dict[str, float | None]
    """For every metric; None if one of the two is n/a."""
    intervals: dict[str, Interval | None]
    """Paired bootstrap, for every metric; None if a metric is n/a."""
    mcnemar: McNemar
    """The base comes first."""


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
            fix="run both on the same --data; their heads must have the same class order",
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


#: A checkpoint and the data to measure it on.
ModelAndData = tuple[Path, DataChoice]


@dataclass(frozen=True, slots=True)
class Feedback:
    """How progress and notes are reported."""

    bar: Callable[[str], AbstractContextManager[Progress | None]] = lambda _: nullcontext()
    """Gives a context for one pass over the data, in which progress is reported."""
    notes: Notes = lambda _: None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measured models."""

    scored: tuple[MeasuredModel, ...]
    """One per model, in the order given."""
    base: MeasuredModel | None
    differences: tuple[Difference, ...]
    """From each model to the base; empty without a base."""
    warnings: Warnings


def evaluate_models(
    trials: Sequence[ModelAndData],
    terms: Terms,
    base: ModelAndData | None = None,
    *,
    replicates: int,
    seed: int = 0,
    watch: Feedback = Feedback(),
) -> Evaluation | None:
    """Run each model on its data and measure it; each reads its data once.

    Args:
        trials: the models.
        terms: how they are measured. The adjustment applies to all models, but not to the base.
        base: the model to compare with. If it is one of the models on the same data, it is not run
            again, but measured without the adjustment.
        replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.
        watch: how progress and notes are reported.

    Returns:
        None on any rank of torchrun but 0.

    Raises:
        RescaleError: a model, its data or the counts cannot be used.
    """
    paths = [path for path, _ in trials]
    if twice := [path for number, path in enumerate(paths) if path in paths[:number]]:
        raise UsageError(f"{twice[0]} is given twice", fix="name each MODEL once")
    everything = [*trials, *([base] if base is not None and base not in trials else [])]
    # All are opened before the first one runs, so that a mistake is reported at once.
    subjects = [
        subject_of(
            path,
            terms if (path, choice) in trials else replace(terms, adjustment=None, chosen_for=None),
            must_have_head=choice.logits is not None,
        )
        if not choice.alone
        else subject_of_logits(path, terms)
        for path, choice in everything
    ]
    scored: list[MeasuredModel] = []
    plain: MeasuredModel | None = None
    for subject, trial in zip(subjects, everything, strict=True):
        with watch.bar(trial[0].name) as progress:
            predictions = predictions_of(
                subject.to_run(terms), trial[1], progress=progress, notes=watch.notes
            )
        if predictions is None or predictions.labels is None:
            continue  # not rank 0: labels are required, so they are there
        if trial[1].alone and terms.chosen_for is not None:
            terms.chosen_for.refuse_other(trial[0], predictions.provenance.head_sha256)
        if trial in trials:
            scored.append(measure_model(subject, predictions, terms, plain=False))
        if trial == base:
            plain = measure_model(subject, predictions, terms, plain=True)
    if not ranks.is_main():
        return None
    differences = () if plain is None else tuple(
        compare_with(plain, model, replicates=replicates, seed=seed) for model in scored
    )  # fmt: skip
    doubts = [warning for subject in subjects for warning in subject.warnings]
    doubts += doubts_about(trials, scored, plain, terms)
    return Evaluation(tuple(scored), plain, differences, tuple(dict.fromkeys(doubts)))
