"""Select a strength: the metric, the rule, and the samples to choose on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.floats import Float64
from rescale_cli.errors import UsageError
from rescale_cli.measures.metric_names import metric_name, unknown_metric
from rescale_cli.measures.metrics import GROUPS, METRICS, Groups, Shares
from rescale_cli.measures.significance import drawn_again
from rescale_cli.sweeping.decisions import DecisionPath


@dataclass(frozen=True, slots=True)
class Selection:
    """How a strength is chosen."""

    metric: str = "balanced_accuracy"
    rule: str = "best"
    """best, one-se, or max-head-drop=F."""
    holdout: float = 0.5
    """Fraction of the samples to hold out for the report; 0 chooses and reports on all of them."""
    replicates: int = 200
    """Bootstrap replicates; 0 for no intervals."""
    unlabeled: bool = False
    """Whether to choose by the histogram of predicted classes, without labels."""
    limit: float = 2.0
    """The largest strength."""
    seed: int = 0
    sizes: tuple[int, int] = (100, 20)
    """Training samples: many is more than the first number, few is less than the second."""

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise UsageError(
                "--holdout must be a share of the samples, at least 0 and below 1",
                saw=f"{self.holdout}", fix="--holdout 0.5",
            )  # fmt: skip
        if not 0 < self.limit <= 4:
            raise UsageError(
                "--gamma-max must be above 0 and at most 4",
                saw=f"{self.limit}", fix="--gamma-max 2",
            )  # fmt: skip
        self.head_drop  # noqa: B018  (raises if the rule is invalid)

    @property
    def head_drop(self) -> float | None:
        """F of max-head-drop=F, else None."""
        name, _, text = self.rule.partition("=")
        try:
            drop = float(text) if name == "max-head-drop" else None
        except ValueError:
            drop = -1.0
        if (drop is None and self.rule not in ("best", "one-se")) or not 0 <= (drop or 0) <= 1:
            raise UsageError(
                "--choose must be best, one-se or max-head-drop=F, with F from 0 to 1",
                saw=self.rule, fix="--choose max-head-drop=0.02",
            )  # fmt: skip
        return drop


#: The metrics that a strength can be chosen by: all that need only the predicted classes.
CHOICES = (*METRICS, *GROUPS)
#: Those that depend on which wrong class is predicted, not only on which samples are correct.
OF_PREDICTIONS = ("macro_precision", "macro_f1", "gmean_ovr", "iba_ovr")
#: The metrics of only some of the classes, and what these classes have.
_ABOUT = {
    "few": "few training samples",
    "medium": "between few and many training samples",
    "many": "many training samples",
    "target_accuracy": "a share in the target prior",
}
#: Values that differ by less are equal, since they are sums of N fractions.
_EQUAL = 1e-9
#: Bootstrap replicates for the standard error of one-se.
_ERROR_REPLICATES = 100
#: Strengths times C at which a metric that is not a sum over samples is computed; and the same for
#: each bootstrap replicate.
_TRIED, _TRIED_AGAIN = 1 << 24, 1 << 19


@dataclass(frozen=True, slots=True)
class Objective:
    """The metric to maximize."""

    metric: str
    """One of CHOICES, or target_accuracy."""
    groups: Groups
    """Masks (C,)."""
    target: Float64 | None = None
    """Class frequencies (C,) where the model will be used, for target_accuracy."""

    @property
    def shares(self) -> Shares:
        """Weights for averaging recalls in `metrics.table_of`: the groups, and the target."""
        if self.target is None:
            return self.groups
        return {**self.groups, "target_accuracy": self.target}

    @property
    def prior(self) -> Float64:
        """The frequencies (C,) that predictions should have: the target's, or equal ones."""
        shares = np.ones(len(self.groups["few"])) if self.target is None else self.target
        prior: Float64 = shares / shares.sum()
        return prior

    def weights(self, labels: NDArray[np.int64], times: Float64) -> Float64 | None:
        """Weights (N,) whose sum over the correct samples is the metric; None if there are none.

        Args:
            labels: (N,).
            times: (N,), how many times each sample counts.
        """
        if self.metric == "accuracy":
            return np.asarray(times / times.sum())
        num_classes = len(next(iter(self.groups.values())))
        support = np.bincount(labels, times, num_classes)
        shares = {
            "balanced_accuracy": np.ones(num_classes),
            **{name: mask.astype(np.float64) for name, mask in self.groups.items()},
            "target_accuracy": self.target,
        }.get(self.metric)
        if shares is None:
            return None
        shares = np.where(support > 0, shares, 0.0)
        if not shares.any():
            raise UsageError(
                f"no sample belongs to a class with {_ABOUT[self.metric]}",
                saw=f"{len(labels):,} samples of {int((support > 0).sum())} classes",
                fix="give samples of such classes, or choose by all classes: --metric accuracy",
            )
        per_class = np.divide(shares / shares.sum(), support, where=support > 0, out=shares * 0)
        weights: Float64 = times * per_class[labels]
        return weights

    def along(self, path: DecisionPath, times: Float64 | None = None) -> tuple[Float64, Float64]:
        """Strengths (B,), and the metric from each of them up to the next, (B,).

        Args:
            path: of N samples.
            times: (N,), how many times each counts in a bootstrap replicate. For these, a metric
                that is not a sum over samples is computed at fewer strengths.
        """
        tried = _TRIED if times is None else _TRIED_AGAIN
        times = np.ones(len(path.labels)) if times is None else times
        weights = self.weights(path.labels, times)
        if weights is not None:
            first = weights[path.start == path.labels].sum()
            steps = np.concatenate([[first], weights[path.sample] * path.change])
            at = np.concatenate([[0.0], path.gamma])
            last = np.concatenate([at[1:] != at[:-1], [True]])
            return at[last], steps.cumsum()[last]
        gammas = thinned(path.breakpoints(), max(64, tried // path.num_classes))
        return gammas, METRICS[self.metric](path.tallies(gammas, times))


@dataclass(frozen=True, slots=True)
class Choice:
    """A strength, and the plateau of the metric that it lies on."""

    gamma: float
    """0 if the plateau begins there, else its middle."""
    value: float
    """The metric on the samples that it was chosen on."""
    plateau: tuple[float, float]


Rule = Callable[[Float64, Float64], NDArray[np.bool_]]


def metric_to_choose_by(typed: str) -> str:
    """The JSON name of the metric that `--metric` names.

    Raises:
        UsageError: no such metric, or one that depends on more than the predicted classes.

    Example:
        >>> metric_to_choose_by("few-recall")
        'few'
    """
    name = metric_name(typed)
    if name is None:
        raise unknown_metric(typed, "--metric {}")
    if name not in CHOICES:
        raise UsageError(
            f"a strength cannot be chosen by {name}, only by a metric of the predicted classes",
            saw=f"--metric {typed}",
            fix=f"name one of: {', '.join(CHOICES)}",
        )
    return name


def widest_plateau(
    gammas: Float64, values: Float64, limit: float, allowed: NDArray[np.bool_] | None = None
) -> Choice:
    """0 if no strength has a larger value, else the middle of the widest plateau of the maximum.

    0 is preferred because a change that does not affect the metric still changes probabilities and
    single classes.

    Args:
        gammas: (B,), ascending, the first of them 0.
        values: (B,), the metric from each strength to the next; the last one up to the limit.
        limit: the largest strength.
        allowed: (B,), which strengths may be chosen; all if None.

    Example:
        >>> widest_plateau(np.array([0.0, 0.2, 0.6]), np.array([0.5, 0.9, 0.7]), limit=2.0)
        Choice(gamma=0.4, value=0.9, plateau=(0.2, 0.6))
        >>> widest_plateau(np.array([0.0, 0.2, 0.6]), np.array([0.9, 0.5, 0.9]), limit=2.0)
        Choice(gamma=0.0, value=0.9, plateau=(0.0, 0.2))
    """
    values = values if allowed is None else np.where(allowed, values, -np.inf)
    best = float(np.nanmax(values))
    high = values >= best - _EQUAL
    edges = np.flatnonzero(np.diff(np.concatenate([[False], high, [False]])))
    begins, ends = edges[::2], edges[1::2]
    ends_at = np.append(gammas, limit)[ends]
    widest = 0 if high[0] else int(np.argmax(ends_at - gammas[begins]))
    low, top = float(gammas[begins[widest]]), float(ends_at[widest])
    return Choice(0.0 if high[0] else _rounded(low, top), best, (low, top))


def _rounded(low: float, high: float) -> float:
    """The middle, rounded to as few decimals as stay well inside, since people will type it."""
    middle = (low + high) / 2
    for decimals in range(2, 17):
        short = round(middle, decimals)
        if abs(short - middle) <= (high - low) / 4:
            return short
    return middle


def first_within(gammas: Float64, values: Float64, limit: float, allowance: float) -> Choice:
    """The smallest strength whose value is within `allowance` of the maximum."""
    near = values >= np.nanmax(values) - allowance - _EQUAL
    first = int(np.argmax(near))
    after = np.flatnonzero(~near[first:])
    end = float(gammas[first + after[0]]) if len(after) else limit
    nearest = float(np.append(gammas, limit)[first + 1])
    gamma = _rounded(float(gammas[first]), nearest) if first else 0.0
    return Choice(gamma, float(values[first]), (float(gammas[first]), end))


def distance_to(path: DecisionPath, target: Float64) -> tuple[Float64, Float64]:
    """Strengths (B,), and the KL divergence of the predictions from a prior at each, (B,).

    It is sum_c h_c log(h_c / target_c), where h_c is the fraction of samples that are predicted as
    c. No label is needed.

    Args:
        path: one that has the predicted classes.
        target: the prior, (C,), all above 0.
    """
    gammas = thinned(path.breakpoints(), max(64, _TRIED // path.num_classes))
    shares = path.histogram(gammas) / len(path.start)
    logs = np.log(np.where(shares > 0, shares, 1.0) / target)
    divergence: Float64 = (shares * logs).sum(axis=1)
    return gammas, divergence


def thinned(gammas: Float64, most: int) -> Float64:
    """At most `most` of the strengths, evenly picked, including the first."""
    if len(gammas) <= most:
        return gammas
    return gammas[np.linspace(0, len(gammas) - 1, most).astype(np.int64)]


def halves(
    labels: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the samples at random, by class, into those to choose on and those to report on.

    Args:
        labels: (N,).
        share: fraction to report on, above 0 and below 1.
        seed: the same seed and labels give the same split.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.arange(len(labels)) - firsts
    # A random offset for each class, so that a class of one sample may fall on either side.
    offset = np.repeat(generator.random(len(counts)), counts)
    reported = np.floor((rank + 1) * share + offset) > np.floor(rank * share + offset)
    return np.sort(order[~reported]), np.sort(order[reported])


def choose_strength(
    path: DecisionPath,
    selection: Selection,
    objective: Objective,
    right: NDArray[np.bool_] | None = None,
    times: Float64 | None = None,
    error: float = 0.0,
) -> Choice:
    """Choose the strength by the user's rule.

    Args:
        path: of N samples.
        selection: the rule.
        objective: the metric to maximize.
        right: (N,), which samples the unchanged head predicts correctly; needed for max-head-drop.
        times: (N,), how many times each sample counts in a bootstrap replicate.
        error: the standard error for one-se.

    Raises:
        UsageError: every strength lowers the recall of the frequent classes by more than allowed.
    """
    if selection.unlabeled:
        gammas, divergence = distance_to(path, objective.prior)
        return widest_plateau(gammas, -divergence, path.limit)
    gammas, values = objective.along(path, times)
    if selection.rule == "one-se":
        return first_within(gammas, values, path.limit, error)
    drop = selection.head_drop
    if drop is None or right is None:
        return widest_plateau(gammas, values, path.limit)
    left = _head_left(path, objective, right, times, gammas)
    allowed = left >= -drop - 1e-12
    if not allowed.any() and times is None:
        raise UsageError(
            f"every strength lowers the recall of the frequent classes by more than {drop:g}",
            saw=f"the smallest loss is {-left.max():.4f}, with these settings for rows and bias",
            fix="--choose max-head-drop=F with a larger F, or another --bias",
        )
    return widest_plateau(
        gammas, values if allowed.any() else left, path.limit, allowed | ~allowed.any()
    )


def _head_left(
    path: DecisionPath,
    objective: Objective,
    right: NDArray[np.bool_],
    times: Float64 | None,
    gammas: Float64,
) -> Float64:
    """The change of the frequent classes' recall at each strength, (B,)."""
    many = replace(objective, metric="many")
    if not objective.groups["many"].any():
        raise UsageError(
            "max-head-drop limits the loss of the frequent classes, but no class is frequent",
            fix="set the sizes of the groups: --groups 100,20, or --choose best",
        )
    weights = many.weights(path.labels, np.ones(len(right)) if times is None else times)
    assert weights is not None
    at, recall = many.along(path, times)
    left: Float64 = recall[np.searchsorted(at, gammas, side="right") - 1] - weights[right].sum()
    return left


def standard_error(path: DecisionPath, objective: Objective) -> float:
    """The bootstrap standard error of the metric at its best strength."""
    best = widest_plateau(*objective.along(path), path.limit).gamma
    values = []
    for times in drawn_again(path.labels, _ERROR_REPLICATES, 1):
        gammas, along = objective.along(path, times)
        values.append(along[np.searchsorted(gammas, best, side="right") - 1])
    return float(np.std(values))
