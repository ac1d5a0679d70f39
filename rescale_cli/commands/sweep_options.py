"""The options of the commands that choose a strength: how, for which head, for which prior."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from rescale_cli.commands import options
from rescale_cli.commands.help_page import method_option
from rescale_cli.commands.options import RecordCommand
from rescale_cli.core.methods import BIAS_POLICIES, Adjustment
from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    from rescale_cli.checkpoints.read_tensors import HeadChoice
    from rescale_cli.patching.plan import CountsChoice
    from rescale_cli.sweeping.selection import Selection


class Normalize(StrEnum):
    """Whether rows are brought to equal length first."""

    OFF = "off"
    ON = "on"
    BOTH = "both"


class BiasPolicies(StrEnum):
    """What becomes of the bias; all tries each."""

    KEEP = "keep"
    SCALE = "scale"
    DROP = "drop"
    ALL = "all"


def adjustments(
    method: options.MethodName, normalize: Normalize, bias: BiasPolicies | None
) -> list[Adjustment]:
    """What is tried: one method, with every policy that was asked for."""
    normal = {Normalize.OFF: (False,), Normalize.ON: (True,), Normalize.BOTH: (False, True)}
    policies = BIAS_POLICIES if bias == BiasPolicies.ALL else ("" if bias is None else bias.value,)
    return [
        Adjustment(method.value, 0.0, normalized, policy)
        for normalized in normal[normalize]
        for policy in policies
    ]


GroupSizes = Annotated[
    str,
    method_option(
        "--groups",
        metavar="M,F",
        help="Number of training samples that separates the groups: many have more than M, few "
        "have fewer than F, and medium have from F to M.",
    ),
]


@dataclass(frozen=True)
class ChoiceOptions:
    """See `options.spread`: each field is an option."""

    metric: Annotated[
        str,
        method_option(
            "--metric",
            metavar="NAME",
            help="Metric to maximize: balanced-accuracy, accuracy, macro-f1, gmean, few-recall, "
            "worst-recall, or any other metric of evaluate that depends only on the predicted "
            "classes.",
        ),
    ] = "balanced-accuracy"
    choose: Annotated[
        str,
        method_option(
            "--choose",
            metavar="RULE",
            help="Rule for choosing: best; one-se (the smallest strength within one standard error "
            "of the best); or max-head-drop=F (the best strength at which the frequent classes "
            "lose at most F of their recall, from 0 to 1).",
        ),
    ] = "best"
    holdout: Annotated[
        float,
        method_option(
            "--holdout",
            metavar="SHARE",
            help="Share of the samples, from 0 to below 1, to report on; the strength is chosen on "
            "the others. 0 chooses and reports on all samples, which is optimistic.",
        ),
    ] = 0.5
    bootstrap: Annotated[
        int,
        method_option(
            "--bootstrap",
            metavar="N",
            min=0,
            help="Number of bootstrap resamples for the 95 % intervals of the strength and of the "
            "metrics; 0 prints no intervals. The verdict does not depend on it.",
        ),
    ] = 200
    unlabeled: Annotated[
        bool,
        method_option(
            "--unlabeled",
            help="Choose by how often each class is predicted, without using labels.",
        ),
    ] = False
    gamma_max: Annotated[
        float,
        method_option(
            "--gamma-max", metavar="G", help="Largest strength to try, above 0 and at most 4."
        ),
    ] = 2.0
    seed: Annotated[
        int,
        method_option(
            "--seed",
            metavar="N",
            min=0,
            help="Seed for the split by --holdout and for the bootstrap.",
        ),
    ] = 0
    groups: GroupSizes = "100,20"

    def selection(self) -> Selection:
        """The same, checked.

        Raises:
            UsageError: a rule, a share or a limit that is none, or one that would not be used.
        """
        from rescale_cli.sweeping.selection import Selection, metric_to_choose_by

        metric = metric_to_choose_by(self.metric)
        if self.unlabeled and (self.choose != "best" or metric != "balanced_accuracy"):
            raise UsageError(
                "--unlabeled chooses by what is predicted, and so by no --metric and no --choose",
                saw=f"--metric {self.metric}, --choose {self.choose}",
                fix="leave those two out, or leave out --unlabeled",
            )
        return Selection(
            metric, self.choose, self.holdout, self.bootstrap, self.unlabeled,
            self.gamma_max, self.seed, group_sizes(self.groups),
        )  # fmt: skip


def group_sizes(text: str) -> tuple[int, int]:
    """The two numbers of `--groups`.

    Raises:
        UsageError: they are not two, or overlap.

    Example:
        >>> group_sizes("100,20")
        (100, 20)
    """
    found = re.fullmatch(r"\s*([0-9]{1,15})\s*,\s*([0-9]{1,15})\s*", text)
    if found is None or int(found[2]) > int(found[1]) + 1:
        raise UsageError(
            "--groups takes two numbers of samples: many is above the first, few below the second",
            saw=clip(text, 80),
            fix="--groups 100,20",
        )
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class HeadOptions:
    """See `options.spread`: each field is an option, and also one of `apply`."""

    head: options.Heads = None
    only: options.Only = False
    plain_head: options.PlainHead = False
    classes: options.Classes = None
    label_order: options.LabelOrder = None
    order: options.Order = None
    zero_count: Annotated[
        options.ZeroPolicy, method_option("--zero-count", help=options.ZERO_COUNT)
    ] = options.ZeroPolicy.ERROR
    exclude_class: options.ExcludeClass = None
    target_prior: options.TargetPrior = None
    record_command: RecordCommand = False
    accept_global: options.AcceptGlobal = None

    def named(self) -> HeadChoice:
        """What is said of the head."""
        from rescale_cli.checkpoints.read_tensors import HeadChoice

        return HeadChoice(tuple(self.head or ()), self.only, self.plain_head)

    def choice(self, counts: str) -> CountsChoice:
        """The counts, and how they become those of the head's rows."""
        from rescale_cli.data.labels import row_hints
        from rescale_cli.patching.plan import CountsChoice

        hints = row_hints(self.classes, self.label_order, self.order)
        return CountsChoice.read(
            counts, hints, zero=self.zero_count.value, exclude=self.exclude_class or (),
            target_prior=self.target_prior, checked=True,
        )  # fmt: skip

    def counted_with(self) -> dict[str, object]:
        """What `apply --gamma @sweep.json` has to repeat for the strength to mean the same."""
        return {
            "exclude_class": self.exclude_class or [],
            "target_prior": self.target_prior,
            "zero_count": self.zero_count.value,
            "order": self._row_order(),
        }

    def _row_order(self) -> str | None:
        """`--order`; or that of a counts.json as --classes, which the predictions agreed with."""
        if self.order is not None or self.classes is None:
            return self.order.value if self.order else None
        from rescale_cli.data.labels import row_hints

        return row_hints(self.classes).doubtful or None

    def of_apply(self, counts: str) -> dict[str, Sequence[str]]:
        """The same options for the line of `apply`."""
        zero = [] if self.zero_count == options.ZeroPolicy.ERROR else [self.zero_count.value]
        return {
            "--counts": [counts],
            "--head": self.head or [],
            "--only": [""] if self.only else [],
            "--plain-head": [""] if self.plain_head else [],
            "--classes": [self.classes] if self.classes else [],
            "--label-order": [self.label_order] if self.label_order else [],
            "--order": [order] if (order := self._row_order()) else [],
            "--zero-count": zero,
            "--exclude-class": self.exclude_class or [],
            "--target-prior": [self.target_prior] if self.target_prior else [],
            "--accept-global": self.accept_global or [],
        }
