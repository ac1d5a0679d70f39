"""What a sweep found: the choice, what it does to every metric and class, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Float64, Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.core.predictions import Labels, Predictions
from rescale_cli.errors import BadInput, UsageError
from rescale_cli.measures.calibration import (
    Adjust,
    PerSample,
    adjusted_blocks,
    centre,
    check_labels,
    measure_logits,
    peaks,
)
from rescale_cli.measures.metrics import Confusion, metrics_of, table_of
from rescale_cli.measures.significance import Interval, bootstrap, bootstrap_difference
from rescale_cli.sweeping.choose import Choice, Objective, Selection, metric_to_choose_by
from rescale_cli.sweeping.curves import SweptMethod
from rescale_cli.sweeping.sweep import (
    Outcome,
    Parts,
    choose_strength,
    decide,
    parts_of,
    right_as_it_is,
    swept_methods,
)
from rescale_cli.sweeping.verdict import Verdict, reach_verdict, without_labels


def fit_temperature(logits: NDArray[Any], labels: Labels, adjust: Adjust | None = None) -> float:
    """T > 0 that minimises the NLL of softmax(z / T); Guo et al. 2017.

    The NLL is convex in b = 1 / T: Newton steps on its slope, mean(E_p[z] - z_y), kept between
    the points where it is known to fall and to rise. Each step reads the blocks once. T is good
    to a relative 1e-6, and the same on every run.

    Args:
        logits: (N, C). A class at -inf is out of the question for its sample.
        labels: (N,), 0 to C - 1.
        adjust: what is done to each block (n, C) first.

    Raises:
        BadInput: there is no such T, because every sample is right (the NLL falls as T goes to
            0), because the true class's logit is no larger than the average one (T goes to
            infinity), or because a true class has probability 0; or as `measure`.

    Example:
        >>> logits = np.log([[0.9, 0.1]] * 4)  # says 9 in 10, and 3 in 4 are right
        >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 6)
        2.0
    """
    check_labels(labels, *logits.shape)
    flat, _, steepest = _slope(logits, labels, adjust, 0.0)
    if steepest == np.inf:
        raise _no_temperature("a true class has probability 0", "a logit of -inf for its own class")
    if steepest == 0:
        raise _no_temperature("every sample is right", f"{len(labels)} of {len(labels)}, so T -> 0")
    if flat >= 0:
        why = "the logits of the true classes are no larger than the average"
        raise _no_temperature(why, f"{-flat:.4g} above it, so T -> infinity")
    low, high, beta = 0.0, np.inf, 1.0
    while 1e-12 < beta < 1e12:
        rise, bend, _ = _slope(logits, labels, adjust, beta)
        low, high = (low, beta) if rise > 0 else (beta, high)
        step = beta - rise / bend if bend > 0 else np.inf
        if abs(step - beta) <= 1e-7 * beta or high - low <= 1e-9 * beta:
            return float(1 / np.clip(step, low, high))
        # A step out of bounds is one too far to trust: by the geometric mean, or a factor of 4.
        if not low < step < high or step > 4 * beta:
            ends = (low or high / 16, high if np.isfinite(high) else 16 * low)
            step = float(np.sqrt(ends[0] * ends[1]))
        beta = step
    raise _no_temperature("T lies outside 1e-12 to 1e12", f"1 / T = {beta:.3g}")


def _slope(
    logits: NDArray[Any], labels: Labels, adjust: Adjust | None, beta: float
) -> tuple[float, float, float]:
    """First and second derivative of the mean NLL by beta, and the first one's limit at infinity.

    Samples whose largest logits are infinite have the same NLL at every beta: nothing is added.
    """
    rise = bend = steepest = 0.0
    for at, z in adjusted_blocks(logits, adjust):
        centre(z, peaks(z))
        own = z[np.arange(len(z)), labels[at]]
        weight = np.exp(beta * z) if beta else np.ones_like(z)
        if np.isinf(z).any():
            weight[np.isinf(z)] = z[np.isinf(z)] = 0.0
        weight /= weight.sum(axis=1)[:, None]
        mean = np.einsum("nc,nc->n", weight, z)
        z *= z
        rise += float((mean - own).sum())
        bend += float((np.einsum("nc,nc->n", weight, z) - mean**2).sum())
        steepest += float(-own.sum())
    n = len(labels)
    return rise / n, bend / n, steepest / n


def _no_temperature(why: str, saw: str) -> BadInput:
    fix = "leave out --fit-temperature, or fit it on more samples"
    return BadInput(f"no temperature minimises the NLL: {why}", saw=saw, fix=fix)


#: Points of the curve that is shown.
CURVE = 401
_HELD = 1 << 22

Metrics = Mapping[str, float | None]


@dataclass(frozen=True, slots=True, eq=False)
class At:
    """One strength, on the samples to report on."""

    gamma: float
    metrics: Metrics
    intervals: Mapping[str, Interval | None]
    recall: Float64
    """(C,), NaN for a class without samples."""
    predicted: Labels
    """Of the samples that are reported on."""
    samples: PerSample
    """What their probabilities add to the metrics."""


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """The best method of those that were tried, at its best strength."""

    selection: Selection
    objective: Objective
    best: Outcome
    others: tuple[Outcome, ...]
    parts: Parts
    at: Mapping[str, At]
    """`0`, the head as it is, and `chosen`; empty without labels."""
    verdict: Verdict
    """Whether the chosen strength is better than the head as it is."""
    changes: Mapping[str, Interval]
    """How much each metric changes from the head as it is, paired; without the metrics that have no
    interval: those that are n/a and, with no bootstrap, those that are no mean of recalls."""
    oracle: Choice | None
    """The best strength on the samples that are reported on."""
    curve: Mapping[str, Float64]
    """Metrics of all samples, (G,) each, and `gamma`, (G,)."""
    breakpoints: int
    """Strengths up to the limit at which a decision changes."""
    negative_true: float | None
    """The share of samples whose true class has a negative score: they sink as gamma grows."""
    never_right: float | None
    """The share of samples that are right at no strength up to the limit; None without labels."""
    temperature: float | None


def sweep(
    predictions: Predictions,
    head: Head,
    counts: ClassCounts,
    methods: Sequence[Adjustment],
    selection: Selection,
    *,
    fit: bool = False,
    device: str = "cpu",
) -> Sweep:
    """Try every strength of the methods on N samples, choose one, and report what it does.

    Args:
        predictions: of the head as it is.
        head: of the checkpoint.
        counts: of its classes; with a target prior they say what the choice is for.
        methods: to choose among; their strengths are of no account.
        selection: how to choose.
        fit: fit a temperature on the samples to choose on.
        device: where the arithmetic is done.

    Raises:
        BadInput: no labels where they are needed, or too few samples.
        UsageError: a metric of classes that do not occur.
    """
    labels = predictions.labels
    if labels is None and not selection.unlabeled:
        raise BadInput(
            f"{predictions.source} has no labels to choose with",
            fix="choose by the predicted classes alone: --unlabeled, or give labels",
        )
    objective = objective_of(selection, counts)
    target = counts.target if counts.target is not None else np.ones(head.num_classes)
    target = target / target.sum()
    parts = parts_of(labels, len(predictions.logits), selection)
    tried = [
        decide(swept, predictions, parts, selection, objective, target, device)
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
            oracle = choose_strength(best.path.of(rows), selection, objective, target, right)
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
    """On the samples to report on."""
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
    """Of every metric; where the verdict has an interval, it is that one."""
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
    """What is to be large: with a target prior, the accuracy to expect under it."""
    metric = metric_to_choose_by(selection.metric)
    groups = counts.groups(*selection.sizes)
    if counts.target is not None and metric == "balanced_accuracy":
        return Objective("target_accuracy", groups, counts.target)
    return Objective(metric, groups)


def _curve(best: Outcome, selection: Selection) -> dict[str, Float64]:
    """The strengths that are shown: evenly spaced ones and the chosen one."""
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
    """Everything that can be measured at one strength, on the samples to report on."""
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
    """The share of samples with a negative true score."""
    if predictions.labels is None or swept.adjustment.method == "logit-adjust":
        return None
    kept = swept.adjustment.bias_policy == "keep"
    bias = swept.head.bias if kept else None
    negative = 0
    step = max(1, _HELD // predictions.num_classes)
    for first in range(0, len(predictions.logits), step):
        rows = slice(first, first + step)
        scores = swept.scores(predictions.logits[rows])
        scores = scores if bias is None else scores - bias
        true = np.take_along_axis(scores, predictions.labels[rows, None], 1)[:, 0]
        negative += int((true < 0).sum())
    return negative / len(predictions.logits)


def _temperature(best: Outcome, predictions: Predictions, parts: Parts) -> float:
    """Fitted on the samples to choose on, at the chosen strength."""
    if predictions.labels is None:
        raise UsageError("a temperature cannot be fitted without labels", fix="give labels")
    rows = parts.chosen if parts.apart else slice(None)
    swept, gamma = best.method, best.choice.gamma
    return fit_temperature(
        predictions.logits[rows], predictions.labels[rows], lambda z: swept.scores(z, gamma)
    )
