"""The post-hoc methods, and the user's choice of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import (
    NO_BIAS,
    Head,
    RowUpdate,
    adjusting_line,
    log_ratio,
    refuse_rescaling,
)
from rescale_cli.errors import BadHead, UsageError
from rescale_cli.registry import Registry

Method = Callable[[Head, ClassCounts, float], RowUpdate]

#: Facts about each: `knob` (the name of its strength), `reference`, `needs_bias`.
METHODS: Registry[Method] = Registry("method")
method = METHODS.register

BIAS_POLICIES = ("keep", "scale", "drop")


@method("rescale", knob="gamma", reference="Kim & Kim 2020, Eq. 7", needs_bias=False)
def rescale(head: Head, counts: ClassCounts, gamma: float) -> RowUpdate:
    """Lengthen the rows of rare classes: w_i <- (n_1 / n_i)^gamma * w_i.

    n_i is the number of training samples of class i and n_1 that of the largest class, so the
    largest class keeps its row and every other row grows. gamma = 0 changes nothing.

    Args:
        head: C rows. Only C is read.
        counts: training samples of each class, (C,), all at least 1. Not rates.
        gamma: the exponent, no unit.

    Returns:
        scale (C,), all at least 1 for gamma >= 0; the bias is left to the policy.

    Example:
        >>> counts = ClassCounts.of([100, 25, 4])
        >>> rescale(Head.of(np.ones((3, 4))), counts, gamma=0.5).scale.tolist()
        [1.0, 2.0, 5.0]
    """
    same = RowUpdate.identity(head.num_classes)
    return replace(same, scale=counts.factors(gamma))


@method("tau-norm", knob="tau", reference="Kang et al. 2020, Eq. 4", needs_bias=False)
def tau_norm(head: Head, counts: ClassCounts, tau: float) -> RowUpdate:
    """Even out the row norms: w_i <- c * w_i / |w_i|^tau, with c so that the mean norm stays.

    The common factor c changes no decision and keeps the scale of the logits. tau = 0 changes
    nothing, tau = 1 makes all rows equally long.

    Args:
        head: its norms (C,) are read.
        counts: only which rows are skipped is read.
        tau: the exponent, no unit.

    Raises:
        BadHead: a row of length 0.

    Example:
        >>> head = Head.of(np.diag([1.0, 3.0]))
        >>> tau_norm(head, ClassCounts.of([9, 1]), tau=1.0).scale.tolist()
        [2.0, 0.6666666666666666]
    """
    norms = _positive_norms(head, counts)
    kept = counts.kept
    common = norms[kept].mean() / (norms[kept] ** (1 - tau)).mean() if tau else 1.0
    return replace(RowUpdate.identity(head.num_classes), scale=common * norms**-tau)


@method("logit-adjust", knob="tau", reference="Menon et al. 2021, Eq. 9", needs_bias=True)
def logit_adjust(head: Head, counts: ClassCounts, tau: float) -> RowUpdate:
    """Subtract the log prior from the logits: b_i <- b_i - tau * log(n_i / N).

    Args:
        head: C rows; to be written into a checkpoint it needs a bias.
        counts: training samples of each class, (C,).
        tau: the strength, no unit; 1 is the Bayes-optimal choice for calibrated logits.

    Returns:
        scale 1, shift (C,), all at least 0 for tau >= 0. For a binary head, which stores row 1
        alone, the shift is [0, tau * log(n_0 / n_1)]: the same decisions.

    Example:
        >>> update = logit_adjust(Head.of(np.ones((2, 2))), ClassCounts.of([3, 1]), tau=1.0)
        >>> update.shift.round(4).tolist()
        [0.2877, 1.3863]
    """
    shift = log_ratio(counts.effective) if head.binary else -np.log(counts.priors)
    return replace(RowUpdate.identity(head.num_classes), shift=tau * shift)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """The choice of a user: the method, its strength, and what happens to the bias.

    Raises:
        UsageError: the options do not go together, or the strength is not from 0 to 4.
    """

    method: str = "rescale"
    strength: float = 0.0
    normalize: bool = False
    """Scale all rows to their mean norm first, so that confidences keep their scale."""
    bias: str = ""
    """keep, scale or drop; empty: drop with normalize, else keep."""
    max_factor: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        knob = METHODS.entry(self.method).facts["knob"]
        if not 0 <= self.strength <= 4:
            raise UsageError(
                f"{knob} must lie between 0 and 4", saw=f"{self.strength}", fix=f"--{knob} 0.2"
            )
        if self.bias not in ("", *BIAS_POLICIES):
            raise UsageError("unknown bias policy", saw=self.bias, fix="--bias keep, scale or drop")
        if self.normalize and self.method != "rescale":
            raise UsageError(
                f"--normalize goes with --method rescale, not {self.method}",
                saw=f"--normalize --method {self.method}",
                fix="leave out one of them",
            )
        most = self.max_factor
        if most is not None and (self.method != "rescale" or not 1 <= most < float("inf")):
            raise UsageError(
                "--max-factor is a number of at least 1 and goes with --method rescale",
                saw=f"{most}, {self.method}",
                fix="--max-factor 10",
            )
        if not (self.temperature > 0 and 0 < 1 / self.temperature < float("inf")):
            raise UsageError(
                "the temperature T must be above 0, with T and 1 / T finite",
                saw=f"{self.temperature}",
                fix="--temperature 1.5",
            )

    @property
    def needs_counts(self) -> bool:
        """Whether it does more than divide all rows by a temperature."""
        return self != Adjustment(temperature=self.temperature)

    @property
    def bias_policy(self) -> str:
        """The policy in effect: a bias learnt with long rows does not fit normalized ones."""
        return self.bias or ("drop" if self.normalize else "keep")

    def update(self, head: Head, counts: ClassCounts) -> RowUpdate:
        """The update of the rows of a head.

        Raises:
            BadHead: a row of length 0 would be normalized; a bias is needed and there is none; or
                a factor is asked for the row of a binary head, which changes no decision.
            UsageError: one of the two classes of a binary head is left out.
        """
        if head.binary and self.needs_counts:
            self._refuse_for_binary(head, counts)
        if METHODS.entry(self.method).facts["needs_bias"] and head.bias is None:
            raise BadHead(
                f"{self.method} changes the bias, and this head has none",
                saw=f"a weight of {head.num_classes} rows alone",
                fix="use --method rescale or tau-norm",
            )
        update = METHODS[self.method](head, counts, self.strength)
        scale = update.scale
        if self.max_factor is not None:
            scale = np.minimum(scale, self.max_factor)
        if self.normalize:
            norms = _positive_norms(head, counts)
            scale = norms[counts.kept].mean() * scale / norms
        scale = np.where(counts.kept, scale, 1.0)
        ones, zeros = np.ones_like(scale), np.zeros_like(scale)
        policy = {"keep": ones, "scale": scale, "drop": zeros}[self.bias_policy]
        bias_scale = np.where(counts.kept, policy, 1.0)
        update = RowUpdate(scale, bias_scale, np.where(counts.kept, update.shift, 0.0))
        return update if self.temperature == 1 else update.over(self.temperature)

    def _refuse_for_binary(self, head: Head, counts: ClassCounts) -> None:
        if self.method != "logit-adjust":
            refuse_rescaling(self.method, adjusting_line())
        if counts.skipped:
            raise UsageError(
                "a binary head has two classes: with one left out there is nothing to balance",
                saw=f"class {counts.skipped[0]} is excluded, or skipped for having no samples",
                fix="leave out --exclude-class; count an empty class as one: --zero-count one",
            )
        if head.bias is None:
            raise BadHead(
                "logit-adjust changes the bias, and this binary head has none",
                saw="a weight of one row alone",
                fix=NO_BIAS,
            )


def _positive_norms(
    head: Head, counts: ClassCounts
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The norms (C,), with 1 for skipped rows, whose norms are not used."""
    empty = np.flatnonzero((head.norms == 0) & counts.kept)
    if len(empty):
        raise BadHead(
            f"row {empty[0]} of the head is all zeros, so it has no direction to normalise",
            saw=f"{len(empty)} such rows of {head.num_classes}",
            fix=f"leave it out: --exclude-class {empty[0]}; or avoid --normalize and tau-norm",
        )
    return np.where(counts.kept, head.norms, 1.0)
