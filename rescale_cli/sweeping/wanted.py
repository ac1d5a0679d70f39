"""How a strength is to be chosen, as the user said it."""

from __future__ import annotations

from dataclasses import dataclass

from rescale_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to choose."""

    metric: str = "balanced_accuracy"
    rule: str = "best"
    """best, one-se, or max-head-drop=F."""
    holdout: float = 0.5
    """The share of the samples to report on; 0 chooses and reports on all of them."""
    replicates: int = 200
    """Of the bootstrap; 0 gives no intervals."""
    unlabeled: bool = False
    """By the histogram of predicted classes, without labels."""
    limit: float = 2.0
    """The largest strength."""
    seed: int = 0
    sizes: tuple[int, int] = (100, 20)
    """Many are the classes with more training samples than the first, few those with fewer than the
    second."""

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise UsageError(
                "--holdout is a share of the samples, at least 0 and below 1",
                saw=f"{self.holdout}", fix="--holdout 0.5",
            )  # fmt: skip
        if not 0 < self.limit <= 4:
            raise UsageError(
                "--gamma-max lies above 0, and is at most 4",
                saw=f"{self.limit}", fix="--gamma-max 2",
            )  # fmt: skip
        self.head_drop  # noqa: B018  (says what is wrong with the rule)

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
                "--choose is best, one-se or max-head-drop=F, F a share from 0 to 1",
                saw=self.rule, fix="--choose max-head-drop=0.02",
            )  # fmt: skip
        return drop
