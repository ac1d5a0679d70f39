"""The post-hoc methods beside one another, each at the strength chosen for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from rescale_cli.errors import BadHead, NeedsDecision
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
from rescale_cli.patching.find_records import head_sha256
from rescale_cli.patching.plan import CountsChoice, Warnings, make_plan
from rescale_cli.sweeping.decisions import SweptMethod
from rescale_cli.sweeping.selection import Objective, Selection
from rescale_cli.sweeping.sweep import (
    At,
    Outcome,
    Parts,
    at_strength,
    decide,
    objective_of,
    parts_of,
)
from rescale_cli.sweeping.verdict import Verdict, reach_verdict


@dataclass(frozen=True, slots=True, eq=False)
class SweepInput:
    """What a sweep works on: one model with its predictions, which need not be computed again."""

    path: Path | None
    """None if only the logits were given."""
    head: Head
    counts: ClassCounts
    predictions: Predictions
    warnings: Warnings
    joint: JointHead
    """Which methods are possible if several heads give the logits together."""
    head_sha256: str | None = None
    """Of the checkpoint's head, see `head_identity`; None if it is not known."""
    checkpoint: Checkpoint | None = None
    """Opened; None where only the logits were given."""

    @property
    def compose(self) -> dict[str, list[str]]:
        """The option that `apply` requires to re-scale a checkpoint for a second time."""
        rescaled = any(code == "rescaled-before" for code, _ in self.warnings)
        return {"--compose": [""]} if rescaled else {}

    @property
    def provenance(self) -> Provenance:
        """The model and the data that results are recorded with."""
        return of_result(self.predictions, self.head_sha256)


def input_of_logits(
    counts: CountsChoice,
    choice: DataChoice,
    *,
    labelled: bool = True,
    notes: Notes = lambda _: None,
) -> SweepInput | None:
    """The given of a file of logits without a checkpoint; the counts give the classes.

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
    warnings = doubts(predictions, resolved)
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
        heads: what the user says about the heads.
        accept: full names of pickle globals that are allowed, still without being run.
        labelled: whether data without labels are an error.
        adjustment: what will be written, so that a head that cannot store it is refused now.
        tried: what will be swept, so that a method that the heads do not allow is refused now.
        leave_out: whether re-scaling a binary head is left out later instead of refused now.
        write: whether a checkpoint will be written; then one that was re-scaled before is refused.
        progress: called as the images go through.
        notes: called with what the user should know.

    Returns:
        None on any rank of torchrun but 0.

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
    warnings += doubts(predictions, plan.counts)
    return SweepInput(
        path, plan.joint.as_one, plan.counts, predictions, tuple(warnings), plan.joint, own,
        checkpoint,
    )  # fmt: skip


def doubts(predictions: Predictions, counts: ClassCounts) -> Warnings:
    """Warnings about samples that are all of one class, or on which the model was trained."""
    found = []
    labels = predictions.labels
    if labels is not None and len(labels) and (labels == labels[0]).all():
        row = int(labels[0])
        name = f"{row} ({counts.names[row]})" if counts.names else f"{row}"
        text = (
            f"all {len(labels):,} samples are of class {name}, so a strength chosen on them says "
        )
        found.append(("one-class", f"{text}nothing about other classes"))
    support = np.bincount(labels, minlength=len(counts.values)) if labels is not None else ()
    if why := trained_on(np.array(support), counts, predictions.source, predictions.split):
        text = f"{why}; in training data rare classes look better than they are, so choose on "
        found.append((TRAINING_SET, f"{text}validation data: --data DATA"))
    return tuple(found)


#: The head without a change.
AS_IT_IS = "as it is"
#: What is compared, by the name that is shown.
METHODS_COMPARED: Mapping[str, Adjustment] = {
    AS_IT_IS: Adjustment(),
    "rescale": Adjustment(),
    "normalize + rescale": Adjustment(normalize=True),
    "tau-norm": Adjustment("tau-norm"),
    "logit-adjust": Adjustment("logit-adjust"),
}


@dataclass(frozen=True, slots=True, eq=False)
class RankedMethod:
    """One method and its place among the others."""

    name: str
    adjustment: Adjustment
    outcome: Outcome | None
    """None for the head as it is."""
    at: At
    """On the samples to report on."""
    behind: Verdict | None
    """Whether the best method is better than this one, on the samples to report on; None for the
    best itself."""
    verdict: Verdict
    """Compared with the head as it is, which itself has no gain."""

    @property
    def level(self) -> bool:
        """Whether it cannot be distinguished from the best.

        The paired interval of the difference contains 0, or five samples account for it.
        """
        if self.behind is None or self.behind.gain is None:
            return False
        interval = self.behind.gain.interval
        return interval is None or interval[0] <= 0 or self.behind.why == "few-changes"

    @property
    def decided(self) -> Adjustment:
        """The method at its own strength."""
        strength = 0.0 if self.outcome is None else self.outcome.choice.gamma
        return replace(self.adjustment, strength=strength)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All methods, the best first."""

    metric: str
    entries: tuple[RankedMethod, ...]
    """The best first; the head as it is is one of them."""
    left_out: Mapping[str, str]
    """Methods that cannot be applied to this head, and why."""
    chosen_on: int
    """Samples."""
    reported_on: int
    """Samples."""
    apart: bool

    @property
    def best(self) -> RankedMethod:
        """The method with the largest metric on the samples to report on."""
        return self.entries[0]

    @property
    def level(self) -> tuple[RankedMethod, ...]:
        """The methods that cannot be distinguished from the best."""
        return tuple(entry for entry in self.entries if entry.level)

    def to_write(self, obstacles: Mapping[str, str]) -> RankedMethod | None:
        """The best method that helps and can be written; None if there is no such method.

        Args:
            obstacles: why a method cannot be written, by its name; see `patching.obstacle`.
        """
        able = (e for e in self.entries if e.verdict.helps and not obstacles.get(e.name))
        return next(able, None)


def compare_methods(given: SweepInput, selection: Selection, bias: str = "") -> Comparison:
    """Choose each method's strength on some samples, and compare them on the others.

    The best method is compared with each of the others by the paired bootstrap of a verdict; these
    intervals do not include that the best was picked on the same samples, which favours it.

    Args:
        given: the model on N labelled samples.
        selection: how to choose.
        bias: keep, scale or drop; each method's own default if empty.

    Raises:
        UsageError, BadInput: as `sweep`.
    """
    labels = given.predictions.labels
    assert labels is not None
    objective = objective_of(selection, given.counts)
    parts = parts_of(labels, len(labels), selection)
    found, left_out = _choose_each(given, selection, objective, parts, bias)
    ats = {
        name: at_strength(
            swept, outcome.choice.gamma if outcome else 0.0, given.predictions, parts, objective,
            selection,
        )
        for name, (swept, outcome) in found.items()
    }  # fmt: skip
    order = sorted(ats, key=lambda name: -(ats[name].metrics[objective.metric] or 0.0))

    def against(before: str, after: str, *, independent: bool) -> Verdict:
        shown, seed = labels[parts.reported], selection.seed
        one, two = ats[before].predicted, ats[after].predicted
        return reach_verdict(one, two, shown, objective, independent=independent, seed=seed)

    entries = tuple(
        RankedMethod(
            name, found[name][0].adjustment, found[name][1], ats[name],
            None if name == order[0] else against(name, order[0], independent=True),
            against(AS_IT_IS, name, independent=parts.apart),
        )
        for name in order
    )  # fmt: skip
    samples = len(parts.chosen), len(parts.reported)
    return Comparison(objective.metric, entries, left_out, *samples, parts.apart)


def _choose_each(
    given: SweepInput,
    selection: Selection,
    objective: Objective,
    parts: Parts,
    bias: str,
) -> tuple[dict[str, tuple[SweptMethod, Outcome | None]], dict[str, str]]:
    """Each method at the strength chosen for it, and why the others are left out."""
    found: dict[str, tuple[SweptMethod, Outcome | None]] = {}
    left_out: dict[str, str] = {}
    for name, adjustment in METHODS_COMPARED.items():
        policy = bias if name != AS_IT_IS and adjustment.method == "rescale" else ""
        swept = SweptMethod(_with_bias(adjustment, policy), given.head, given.counts)
        if name == AS_IT_IS:
            found[name] = swept, None
            continue
        try:
            if given.head.binary and adjustment.method != "logit-adjust":
                refuse_rescaling(adjustment.method, adjusting_line())
            given.joint.refuse(swept.adjustment)
            outcome = decide(swept, given.predictions, parts, selection, objective)
        except (BadHead, NeedsDecision) as error:
            left_out[name] = error.what
        else:
            found[name] = swept, outcome
    return found, left_out


def _with_bias(adjustment: Adjustment, bias: str) -> Adjustment:
    return Adjustment(adjustment.method, 0.0, adjustment.normalize, bias)
