"""`evaluate`: metrics of models side by side, and gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.data_options import DataOptions
from rescale_cli.commands.evaluate_outputs import OutputOptions, tell_github
from rescale_cli.commands.help_page import (
    gate_option,
    input_argument,
    input_option,
    method_option,
)
from rescale_cli.commands.options import spread
from rescale_cli.commands.strength import chosen_for, read_adjustment
from rescale_cli.commands.sweep_options import GroupSizes, group_sizes
from rescale_cli.core.counts import few
from rescale_cli.core.methods import METHODS, Adjustment
from rescale_cli.data.spec import paths_of
from rescale_cli.errors import GateFailed, UsageError
from rescale_cli.measures.gates import Gate, GateResult, read_gates, refuse_unjudgeable
from rescale_cli.signals import last_step

if TYPE_CHECKING:
    from rescale_cli.checkpoints.read_tensors import HeadChoice
    from rescale_cli.core.classes import RowHints
    from rescale_cli.evaluating.evaluate_models import Evaluation, ModelAndData, Terms


@dataclass(frozen=True)
class AdjustOptions:
    """See `options.spread`: each field is an option."""

    gamma: Annotated[
        str | None,
        method_option(
            "-g",
            "--gamma",
            "--tau",
            metavar="FLOAT|@FILE",
            help="Measure the models as if apply had been run with this strength, from 0 to 4; or "
            "@sweep.json for the strength that sweep-gamma chose.",
            show_default="the models as they are",
        ),
    ] = None
    method: options.MethodOption = None
    normalize: options.NormalizeOption = None
    bias: options.BiasOption = None
    temperature: Annotated[
        float | None,
        method_option(
            "--temperature",
            metavar="T",
            help="Divide the logits by this temperature, above 0.",
            show_default="the temperature of --gamma @FILE, else 1",
        ),
    ] = None
    zero_count: Annotated[
        options.ZeroPolicy, method_option("--zero-count", help=options.ZERO_COUNT)
    ] = options.ZeroPolicy.ERROR

    @property
    def sweep(self) -> Path | None:
        """The file of the sweep that chose the strength, where one did."""
        return Path(self.gamma[1:]) if self.gamma and self.gamma.startswith("@") else None

    def adjustment(self) -> Adjustment | None:
        """What they say; None where they say nothing.

        Raises:
            UsageError: a method without its strength, or a strength that is none.
        """
        name = "rescale" if self.method is None else self.method.value
        if self.gamma is None and name != "rescale":
            knob = METHODS.entry(name).facts["knob"]
            raise UsageError(f"--method {name} needs its strength", fix=f"--{knob} 0.5")
        said = (self.gamma, self.bias, self.normalize, self.temperature)
        if said == (None,) * len(said):
            return None
        return read_adjustment(
            self.gamma or "0", self.method, self.normalize, self.bias, None, self.temperature
        )


@dataclass(frozen=True)
class GateOptions:
    """See `options.spread`: each field is an option."""

    against: Annotated[
        Path | None,
        input_option(
            "--against",
            metavar="BASE",
            help="Model to compare with: shows the differences, their 95 % intervals and McNemar's "
            "test.",
            show_default="none",
        ),
    ] = None
    against_logits: Annotated[
        Path | None,
        input_option(
            "--against-logits",
            metavar="FILE",
            help="Logits of BASE, where the models are given by --logits.",
            show_default="none",
        ),
    ] = None
    fail_under: Annotated[
        list[str] | None,
        gate_option(
            "--fail-under",
            metavar="NAME=VALUE",
            help="Exit with code 6 if this metric is lower than VALUE, such as 0.85 or 85%. "
            "Repeatable.",
            show_default="none",
        ),
    ] = None
    fail_over: Annotated[
        list[str] | None,
        gate_option(
            "--fail-over",
            metavar="NAME=VALUE",
            help="Exit with code 6 if nll, ece, classwise_ece or brier is higher than VALUE. "
            "Repeatable.",
            show_default="none",
        ),
    ] = None
    fail_drop: Annotated[
        list[str] | None,
        gate_option(
            "--fail-drop",
            metavar="NAME=VALUE",
            help="Exit with code 6 if this metric is worse than that of BASE by more than VALUE. "
            "Repeatable.",
            show_default="none",
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

    def base(self, trials: Sequence[ModelAndData]) -> ModelAndData | None:
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


def judge(gates: Sequence[Gate], found: Evaluation) -> list[GateResult]:
    """Every gate, held against every model."""
    base = found.base.metrics if found.base is not None else {}
    changes = [difference.intervals for difference in found.differences]
    return [
        gate.check(model.name, model.metrics[gate.name], base.get(gate.name), of.get(gate.name))
        for model, of in zip(found.scored, changes or [{}] * len(found.scored), strict=True)
        for gate in gates
    ]


def failure(verdicts: Sequence[GateResult]) -> GateFailed | None:
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


@spread
def evaluate(
    on: DataOptions,
    adjust: AdjustOptions,
    bounds: GateOptions,
    outputs: OutputOptions,
    models: Annotated[
        list[Path] | None,
        input_argument(
            metavar="MODEL",
            help="Checkpoints: files or folders. May be left out with --logits FILE.",
            show_default=False,
        ),
    ] = None,
    counts: options.OptionalCounts = None,
    groups: GroupSizes = "100,20",
    head: options.Heads = None,
    only: options.Only = False,
    plain_head: options.PlainHead = False,
    classes: options.Classes = None,
    label_order: options.LabelOrder = None,
    order: options.Order = None,
    bootstrap: Annotated[
        int,
        method_option(
            "--bootstrap",
            metavar="N",
            min=1,
            help="Number of bootstrap resamples for the 95 % intervals of the metrics.",
        ),
    ] = 1000,
    seed: Annotated[
        int, method_option("--seed", metavar="N", min=0, help="Seed for the bootstrap.")
    ] = 0,
    accept_global: options.AcceptGlobal = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure one or more models on labelled data, and fail if a quality gate is not met.

    Examples:
        # Measure a re-scaled model and show what changed.
        rescale-cli evaluate model.rescaled.safetensors --counts counts.json --data npz:test.npz
            --against model.safetensors
        # Measure from saved logits, and fail in CI if balanced accuracy is below 80 %.
        rescale-cli evaluate --logits val_logits.npz --fail-under balanced-accuracy=0.8
    """
    from rescale_cli.checkpoints.read_tensors import HeadChoice
    from rescale_cli.commands.evaluate_report import evaluate_result, show_evaluate
    from rescale_cli.commands.github import unwritten
    from rescale_cli.commands.progress import Notes, progress_bar
    from rescale_cli.data.labels import row_hints
    from rescale_cli.evaluating.evaluate_models import Feedback, evaluate_models

    gates = bounds.gates(grouped=counts is not None)
    bases = (bounds.against, bounds.against_logits)
    read = paths_of(
        *(models or ()), *bases, counts, classes, label_order, on.data, *(on.logits or ()),
        on.preprocessing, adjust.sweep,
    )  # fmt: skip
    choices = on.choices(len(models) if models else None, force=force, sweep=adjust.sweep)
    outputs.check(len(choices), force=force, inputs=read, other=on.saved)
    trials = list(zip(models or on.logits or (), choices, strict=True))
    heads = HeadChoice(tuple(head or ()), only, plain_head)
    said = row_hints(classes, label_order, order)
    terms = _terms(counts, said, groups, adjust, heads, accept_global or ())
    screen, notes = Screen("evaluate", json), Notes(json)
    found = evaluate_models(
        trials,
        terms,
        bounds.base(trials),
        replicates=bootstrap,
        seed=seed,
        watch=Feedback(progress_bar, notes),
    )
    if found is None:
        return
    verdicts = judge(gates, found)
    with last_step():
        outputs.write(found, verdicts, force=force)
    tell_github(found, verdicts)
    failed = failure(verdicts)
    screen.result(
        evaluate_result(found, verdicts, terms),
        [*notes.kept, *found.warnings, *unwritten()],
        lambda: show_evaluate(found, verdicts, terms),
        failed,
    )
    if failed is not None:
        raise typer.Exit(failed.exit_code)


def _terms(
    counts: str | None,
    said: RowHints,
    groups: str,
    adjust: AdjustOptions,
    heads: HeadChoice,
    accept: Sequence[str],
) -> Terms:
    """How the models are measured, from what was typed."""
    from rescale_cli.data.counts import as_raw_counts
    from rescale_cli.evaluating.evaluate_models import Terms
    from rescale_cli.patching.plan import CountsChoice

    adjustment = adjust.adjustment()
    if adjustment is not None and adjustment.needs_counts and counts is None:
        raise UsageError(
            "an adjustment needs the samples of each class in training", fix="--counts FILE"
        )
    # Only a factor cannot be had from no sample; a class without any is one of the few.
    zero = adjust.zero_count if adjustment is not None else options.ZeroPolicy.ONE
    raw = None
    if counts is not None:
        raw = CountsChoice(as_raw_counts(counts), said, zero.value, checked=True)
    return Terms(
        raw, said, group_sizes(groups), adjustment, heads, frozenset(accept),
        chosen_for(adjust.gamma or ""),
    )  # fmt: skip
