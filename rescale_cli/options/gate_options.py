"""Gates and the base they compare with, from the command line to the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescale_cli.core.counts import few
from rescale_cli.errors import GateFailed, UsageError
from rescale_cli.measures.gates import Gate, Verdict, read_gates, refuse_unjudgeable

if TYPE_CHECKING:
    from rescale_cli.evaluating.side_by_side import Evaluation, Trial


@dataclass(frozen=True)
class GateOptions:
    """See `option_groups.spread`: each field is an option."""

    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="BASE",
            help="Compare with this model: differences, their intervals, McNemar's test.",
            readable=False,
        ),
    ] = None
    against_logits: Annotated[
        Path | None,
        typer.Option(
            "--against-logits", metavar="FILE", help="The logits of BASE.", readable=False
        ),
    ] = None
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under", metavar="NAME=VALUE", help="Exit 6 if this metric is lower. Repeatable."
        ),
    ] = None
    fail_over: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-over",
            metavar="NAME=VALUE",
            help="Exit 6 if nll, ece, classwise_ece or brier is higher. Repeatable.",
        ),
    ] = None
    fail_drop: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-drop",
            metavar="NAME=VALUE",
            help="Exit 6 if this metric is worse than BASE's by more. Repeatable.",
        ),
    ] = None

    def gates(self, *, grouped: bool) -> list[Gate]:
        """The gates, checked before any model runs."""
        found = [
            *read_gates("fail-under", self.fail_under or ()),
            *read_gates("fail-over", self.fail_over or ()),
            *read_gates("fail-drop", self.fail_drop or ()),
        ]
        based = self.against is not None or self.against_logits is not None
        refuse_unjudgeable(found, grouped=grouped, based=based)
        return found

    def base(self, trials: Sequence[Trial]) -> Trial | None:
        """What the models are compared with: one of them, or another on the same data.

        Raises:
            UsageError: logits of a base where none is named, or data for one and logits for others.
        """
        unsaved = replace(
            trials[0][1], save_logits=None, save_preprocessing=None, save_features=None
        )
        if self.against is None:
            if self.against_logits is not None and unsaved.alone:
                return self.against_logits, replace(unsaved, logits=self.against_logits)
            if self.against_logits is not None:
                what = "--against-logits are those of a base, and none is given"
                raise UsageError(what, fix="--against BASE")
            return None
        same = next((trial for trial in trials if trial[0] == self.against), None)
        if same is not None and self.against_logits is None:
            return same
        given = self.against_logits
        choice = replace(unsaved, logits=given, alone=False)
        if choice.data is None and choice.logits is None:
            raise UsageError(
                "the models are given by their logits, so the base is, too",
                saw=str(self.against),
                fix="--against-logits FILE",
            )
        if choice.data is not None and choice.logits is not None:
            raise UsageError(
                "the base is run on the data of the models",
                saw=str(choice.logits),
                fix="leave out --against-logits",
            )
        return self.against, choice


def judge(gates: Sequence[Gate], found: Evaluation) -> list[Verdict]:
    """Every gate, held against every model."""
    base = found.base.metrics if found.base is not None else {}
    changes = [difference.intervals for difference in found.differences]
    return [
        gate.judge(model.name, model.metrics[gate.name], base.get(gate.name), of.get(gate.name))
        for model, of in zip(found.scored, changes or [{}] * len(found.scored), strict=True)
        for gate in gates
    ]


def failure(verdicts: Sequence[Verdict]) -> GateFailed | None:
    """The error that says which gates were not met."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if not failed:
        return None
    shown = [f"{verdict.model}: {verdict.message}" for verdict in failed]
    return GateFailed(
        f"{len(failed)} of {len(verdicts)} gates failed",
        saw=few(shown, 10),
        fix="use a better model, or another bound: "
        f"--{failed[0].gate.kind} {failed[0].gate.name}=VALUE",
    )
