"""Sweep the strengths of post-hoc methods, choose the best one, and measure its effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.floats import Float64
from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import Labels, Predictions
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.files.arrays import row_blocks
from rescale_cli.long_work import long_work
from rescale_cli.measures.calibration import PerSample, measure_logits
from rescale_cli.measures.metrics import Confusion, metrics_of, table_of
from rescale_cli.measures.significance import (
    Interval,
    bootstrap,
    bootstrap_difference,
    drawn_again,
)
from rescale_cli.measures.temperature import fit_temperature
from rescale_cli.sweeping.decisions import DecisionPath, SweptMethod, decisions_of
from rescale_cli.sweeping.selection import (
    OF_PREDICTIONS,
    Choice,
    Objective,
    Selection,
    choose_strength,
    halves,
    metric_to_choose_by,
    standard_error,
)
from rescale_cli.sweeping.verdict import Verdict, reach_verdict, without_labels


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One method at its chosen strength."""

    method: SweptMethod
    choice: Choice
    """Made on the samples to choose on."""
    path: DecisionPath
    """The decisions on all samples."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the strength."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The samples to choose on, and the held-out samples to report on."""

    chosen: NDArray[np.int64]
    reported: NDArray[np.int64]
    apart: bool
    """Whether the two are disjoint; otherwise both are all samples."""


def swept_methods(
    head: Head, counts: ClassCounts, methods: Sequence[Adjustment]
) -> list[SweptMethod]:
    """The methods for this head, without duplicates: policies may differ in name only."""
    kept: dict[tuple[str, bool, str], SweptMethod] = {}
    for adjustment in methods:
        policy = adjustment.bias_policy if head.bias is not None else "none"
        key = (adjustment.method, adjustment.normalize, policy)
        kept.setdefault(key, SweptMethod(adjustment, head, counts))
    return list(kept.values())


def parts_of(labels: Labels | None, samples: int, selection: Selection) -> Parts:
    """Split the samples as `--holdout` requires."""
    everything = np.arange(samples)
    if selection.holdout == 0 or labels is None:
        return Parts(everything, everything, False)
    chosen, reported = halves(labels, selection.holdout, selection.seed)
    if not len(chosen) or not len(reported):
        raise BadInput(
            "there are too few samples to choose on some and report on others",
            saw=f"{samples} samples", fix="give more data, or choose on all of them: --holdout 0",
        )  # fmt: skip
    return Parts(chosen, reported, True)


def decide(
    swept: SweptMethod,
    predictions: Predictions,
    parts: Parts,
    selection: Selection,
    objective: Objective,
) -> Outcome:
    """Choose the strength of one method on the samples to choose on.

    Args:
        swept: the method.
        predictions: of all samples.
        parts: which of them to choose on.
        selection: how to choose.
        objective: the metric to maximize.
    """
    swept.at(1.0)  # raises if the method cannot be applied to this head
    right = right_as_it_is(predictions, parts.chosen) if selection.head_drop is not None else None
    with long_work(f"trying every strength of {swept.adjustment.method}"):
        classes = selection.unlabeled or objective.metric in OF_PREDICTIONS
        path = decisions_of(swept, predictions, selection.limit, classes=classes)
    part = path.of(parts.chosen)
    error = 0.0
    if selection.rule == "one-se" and not selection.unlabeled:
        error = standard_error(part, objective)
    choice = choose_strength(part, selection, objective, right, error=error)
    if selection.unlabeled or not selection.replicates or predictions.labels is None:
        return Outcome(swept, choice, path, None)
    found = [
        choose_strength(part, selection, objective, right, times, error).gamma
        for times in drawn_again(part.labels, selection.replicates, selection.seed)
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return Outcome(swept, choice, path, (float(low), float(high)))


def right_as_it_is(predictions: Predictions, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these samples the unchanged head predicts correctly, (n,)."""
    assert predictions.labels is not None
    blocks = (predictions.logits[block] for block in row_blocks(predictions.logits))
    predicted = np.concatenate([block.argmax(axis=1) for block in blocks])
    right: NDArray[np.bool_] = predicted[rows] == predictions.labels[rows]
    return right


#: Number of points of the curve.
CURVE = 401


@dataclass(frozen=True, slots=True, eq=False)
class At:
    """The metrics at one strength, on the samples to report on."""

    gamma: float
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, Interval | None]
    recall: Float64
    """(C,), NaN for a class without samples."""
    predicted: Labels
    """The predicted classes of these samples."""
    samples: PerSample
    """The contribution of each sample to the metrics of probabilities."""


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """The best of the methods, at its best strength."""

    selection: Selection
    objective: Objective
    best: Outcome
    others: tuple[Outcome, ...]
    parts: Parts
    at: Mapping[str, At]
    """Metrics at `0` (the unchanged head) and at `chosen`; empty without labels."""
    verdict: Verdict
    """Whether the chosen strength is better than the unchanged head."""
    changes: Mapping[str, Interval]
    """The paired change of each metric from the unchanged head. Metrics without an interval are
    missing: those that are n/a and, without a bootstrap, those that are not means of recalls."""
    oracle: Choice | None
    """The strength that is best on the held-out samples themselves."""
    curve: Mapping[str, Float64]
    """Metrics of all samples, (G,) each, and `gamma`, (G,)."""
    breakpoints: int
    """Number of strengths up to the limit at which a decision changes."""
    negative_true: float | None
    """Fraction of samples whose true class has a negative score, which falls as gamma grows."""
    never_right: float | None
    """Fraction of samples that no strength up to the limit makes correct; None without labels."""
    temperature: float | None
    """Fitted at the chosen strength; None if not requested."""


def sweep(
    predictions: Predictions,
    head: Head,
    counts: ClassCounts,
    methods: Sequence[Adjustment],
    selection: Selection,
    *,
    fit: bool = False,
) -> Sweep:
    """Try every strength of the methods on N samples, choose one, and measure its effect.

    Args:
        predictions: of the unchanged head.
        head: of the checkpoint.
        counts: of the training set, with the target prior if there is one.
        methods: to choose among; their strengths are ignored.
        selection: how to choose.
        fit: whether to fit a temperature on the samples to choose on.

    Raises:
        BadInput: labels are needed and missing, or there are too few samples.
        UsageError: the metric is about classes that do not occur.
    """
    labels = predictions.labels
    if labels is None and not selection.unlabeled:
        raise BadInput(
            f"{predictions.source} has no labels to choose with",
            fix="choose by the predicted classes alone: --unlabeled; or give labels",
        )
    objective = objective_of(selection, counts)
    parts = parts_of(labels, len(predictions.logits), selection)
    tried = [
        decide(swept, predictions, parts, selection, objective)
        for swept in swept_methods(head, counts, methods)
    ]
    best = max(tried, key=lambda outcome: outcome.choice.value)
    plain = SweptMethod(Adjustment(), head, counts)
    strengths = (("0", plain, 0.0), ("chosen", best.method, best.choice.gamma))
    curve, oracle, at = _curve(best, selection), None, {}
    if labels is not None:
        curve |= table_of(best.path.tallies(curve["gamma"]), objective.shares)
        at = {
            name: at_strength(swept, gamma, predictions, parts, objective, selection)
            for name, swept, gamma in strengths
        }
        if not selection.unlabeled:
            rows = parts.reported
            right = right_as_it_is(predictions, rows) if selection.head_drop is not None else None
            oracle = choose_strength(best.path.of(rows), selection, objective, right)
    verdict = _verdict(best, at, labels, parts, objective, selection)
    return Sweep(
        selection, objective, best, tuple(o for o in tried if o is not best), parts, at,
        verdict, _changes(at, verdict, labels, parts, objective, selection), oracle, curve,
        len(best.path.breakpoints()) - 1, _negative(best.method, predictions),
        None if labels is None else best.path.never_right,
        _temperature(best, predictions, parts) if fit else None,
    )  # fmt: skip


def _verdict(
    best: Outcome, at: Mapping[str, At], labels: Labels | None, parts: Parts,
    objective: Objective, selection: Selection,
) -> Verdict:  # fmt: skip
    """The verdict on the samples to report on."""
    if labels is None:
        adjustment, bias = best.method.adjustment, best.method.head.bias
        other = adjustment.normalize or (bias is not None and adjustment.bias_policy != "keep")
        return without_labels(changes=other or best.choice.gamma > 0)
    return reach_verdict(
        at["0"].predicted, at["chosen"].predicted, labels[parts.reported], objective,
        independent=parts.apart or selection.unlabeled, seed=selection.seed,
    )  # fmt: skip


def _changes(
    at: Mapping[str, At], verdict: Verdict, labels: Labels | None, parts: Parts,
    objective: Objective, selection: Selection,
) -> dict[str, Interval]:  # fmt: skip
    """The change of every metric, with the interval of the verdict if there is one."""
    if labels is None or verdict.changes is None or verdict.gain is None:
        return {}
    before, after, gain = at["0"], at["chosen"], verdict.gain
    found = bootstrap_difference(
        before.predicted, after.predicted, labels[parts.reported], len(before.recall),
        objective.shares, (before.samples, after.samples),
        replicates=selection.replicates, seed=selection.seed,
    ) if selection.replicates else {}  # fmt: skip
    found |= verdict.changes.means
    if gain.difference is not None and gain.interval is not None:
        found[gain.metric] = Interval(gain.difference, *gain.interval)
    return {name: change for name, change in found.items() if change is not None}


def objective_of(selection: Selection, counts: ClassCounts) -> Objective:
    """The metric to maximize: with a target prior, the expected accuracy under it."""
    metric = metric_to_choose_by(selection.metric)
    groups = counts.groups(*selection.sizes)
    if counts.target is not None and metric == "balanced_accuracy":
        return Objective("target_accuracy", groups, counts.target)
    return Objective(metric, groups)


def _curve(best: Outcome, selection: Selection) -> dict[str, Float64]:
    """The strengths of the curve: evenly spaced ones and the chosen one."""
    even = np.linspace(0, selection.limit, CURVE)
    return {"gamma": np.unique(np.append(even, best.choice.gamma))}


def at_strength(
    swept: SweptMethod,
    gamma: float,
    predictions: Predictions,
    parts: Parts,
    objective: Objective,
    selection: Selection,
) -> At:
    """All metrics at one strength, on the samples to report on."""
    assert predictions.labels is not None
    rows = parts.reported if parts.apart else slice(None)
    labels = predictions.labels[rows]
    measured = measure_logits(
        predictions.logits[rows], labels, lambda logits: swept.scores(logits, gamma)
    )
    classes = predictions.num_classes
    confusion = Confusion.of(measured.predicted, labels, classes)
    intervals = bootstrap(
        measured.predicted, labels, classes, objective.shares, measured.samples,
        replicates=selection.replicates, seed=selection.seed,
    ) if selection.replicates else {}  # fmt: skip
    metrics = metrics_of(confusion, objective.shares, measured)
    recall = confusion.tallies.recall
    return At(gamma, metrics, intervals, recall, measured.predicted, measured.samples)


def _negative(swept: SweptMethod, predictions: Predictions) -> float | None:
    """The fraction of samples whose true class has a negative score."""
    if predictions.labels is None or swept.adjustment.method == "logit-adjust":
        return None
    kept = swept.adjustment.bias_policy == "keep"
    bias = swept.head.bias if kept else None
    negative = 0
    for rows in row_blocks(predictions.logits):
        scores = swept.scores(predictions.logits[rows])
        scores = scores if bias is None else scores - bias
        true = np.take_along_axis(scores, predictions.labels[rows, None], 1)[:, 0]
        negative += int((true < 0).sum())
    return negative / len(predictions.logits)


def _temperature(best: Outcome, predictions: Predictions, parts: Parts) -> float:
    """Fit a temperature on the samples to choose on, at the chosen strength."""
    if predictions.labels is None:
        raise UsageError(
            "a temperature cannot be fitted without labels",
            fix="give data with labels, or leave out --fit-temperature",
        )
    rows = parts.chosen if parts.apart else slice(None)
    swept, gamma = best.method, best.choice.gamma
    return fit_temperature(
        predictions.logits[rows], predictions.labels[rows], lambda z: swept.scores(z, gamma)
    )
