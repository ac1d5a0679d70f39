"""Options and outputs of the commands that choose a strength; those for the head, of `evaluate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rescale_cli.commands import options
from rescale_cli.commands.help_page import method_option
from rescale_cli.commands.options import RecordCommand, recorded_command
from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    from rescale_cli.checkpoints.checkpoint import Checkpoint
    from rescale_cli.checkpoints.locate_head import HeadChoice
    from rescale_cli.commands.choice_report import ChoiceReport
    from rescale_cli.commands.data_options import DataOptions
    from rescale_cli.core.classes import RowHints
    from rescale_cli.patching.patch import Patched
    from rescale_cli.patching.plan import CountsChoice
    from rescale_cli.sweeping.selection import Selection


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
    """How a strength is chosen."""

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
            UsageError: a rule, share or limit is invalid, or would have no effect.
        """
        from rescale_cli.sweeping.selection import Selection, metric_to_choose_by

        metric = metric_to_choose_by(self.metric)
        if self.unlabeled and (self.choose != "best" or metric != "balanced_accuracy"):
            raise UsageError(
                "--unlabeled cannot be combined with --metric or --choose",
                saw=f"--metric {self.metric}, --choose {self.choose}",
                fix="leave out --metric and --choose, or leave out --unlabeled",
            )
        return Selection(
            metric, self.choose, self.holdout, self.bootstrap, self.unlabeled,
            self.gamma_max, self.seed, group_sizes(self.groups),
        )  # fmt: skip


def group_sizes(text: str) -> tuple[int, int]:
    """The two numbers of `--groups`.

    Raises:
        UsageError: there are not two numbers, or the groups overlap.

    Example:
        >>> group_sizes("100,20")
        (100, 20)
    """
    found = re.fullmatch(r"\s*([0-9]{1,15})\s*,\s*([0-9]{1,15})\s*", text)
    if found is None or int(found[2]) > int(found[1]) + 1:
        raise UsageError(
            "--groups must be two numbers of samples M,F, with F at most M + 1",
            saw=clip(text, 80),
            fix="--groups 100,20",
        )
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class RowOptions:
    """Options that say which layer is the head, and which class each of its rows is."""

    head: options.Heads = None
    only: options.Only = False
    plain_head: options.PlainHead = False
    classes: options.Classes = None
    label_order: options.LabelOrder = None
    order: options.Order = None
    accept_global: options.AcceptGlobal = None

    @property
    def heads(self) -> HeadChoice:
        """Which layers are the head."""
        from rescale_cli.checkpoints.locate_head import HeadChoice

        return HeadChoice(tuple(self.head or ()), self.only, self.plain_head)

    @property
    def hints(self) -> RowHints:
        """Which class each row is."""
        from rescale_cli.data.labels import row_hints

        return row_hints(self.classes, self.label_order, self.order)

    @property
    def accept(self) -> frozenset[str]:
        """Pickle globals that do not stop the reading of a checkpoint."""
        return frozenset(self.accept_global or ())


@dataclass(frozen=True)
class HeadOptions(RowOptions):
    """The options above and those for the counts, all of which `apply` has, too."""

    zero_count: Annotated[
        options.ZeroPolicy, method_option("--zero-count", help=options.ZERO_COUNT)
    ] = options.ZeroPolicy.ERROR
    exclude_class: options.ExcludeClass = None
    target_prior: options.TargetPrior = None
    record_command: RecordCommand = False

    def choice(self, counts: str) -> CountsChoice:
        """The counts, and how they become those of the head's rows."""
        from rescale_cli.patching.plan import CountsChoice

        return CountsChoice.read(
            counts, self.hints, zero=self.zero_count.value, exclude=self.exclude_class or (),
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
        """The same options as words of an `apply` command; a flag has an empty value."""
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


@dataclass(frozen=True)
class Outputs:
    """What a command that chooses a strength writes; each command declares these as options."""

    output: Path | None = None
    """The JSON of the result."""
    csv: Path | None = None
    apply: Path | None = None
    """The checkpoint with the chosen strength."""
    require_gain: bool = False
    """Whether it is an error that there is nothing to apply."""
    force: options.Force = False

    def check(self, model: Path | None, counts: str, on: DataOptions, of: HeadOptions) -> None:
        """Stop before the work if an output could not be written, or is an input.

        Raises:
            UsageError: two outputs have the same name.
            BadInput, OutputExists: see `refuse_output`.
        """
        from rescale_cli.data.spec import paths_of
        from rescale_cli.files.staging import (
            NOWHERE,
            STDOUT,
            refuse_one_name,
            refuse_output,
            refuse_outputs,
        )
        from rescale_cli.patching.patch import refuse_source

        read = paths_of(
            model, counts, on.data, *(on.logits or ()), of.classes, of.label_order,
            of.target_prior, on.preprocessing,
        )  # fmt: skip
        texts = {"--output": self.output, "--csv": self.csv, **on.saved}
        refuse_outputs(texts, force=self.force, inputs=read)
        if self.apply is not None and model is not None:
            files = {o: path for o, path in texts.items() if path not in (None, STDOUT, NOWHERE)}
            refuse_one_name({**files, "--apply": self.apply})
            refuse_source(model, (), self.apply)
            folder = model.is_dir()
            refuse_output(self.apply, "--apply", force=self.force, folder=folder, inputs=read)

    def write(
        self,
        checkpoint: Checkpoint | None,
        choice: CountsChoice,
        of: HeadOptions,
        report: ChoiceReport,
    ) -> Patched | None:
        """Write them; return what became of the checkpoint, if it was asked for.

        Raises:
            RescaleError: see `patch.apply_plan`.
        """
        from rescale_cli.files.staging import write_texts
        from rescale_cli.patching.patch import Target, apply_plan
        from rescale_cli.patching.plan import make_plan

        patched = None
        if self.apply is not None and checkpoint is not None:  # first: it may still be refused
            plan = make_plan(checkpoint, choice, report.to_write, heads=of.heads)
            command = recorded_command(of.record_command)
            patched = apply_plan(plan, Target(self.apply, self.force, command=command))
        texts = {self.output: report.document(), self.csv: report.csv()}
        asked = {path: text for path, text in texts.items() if path is not None}
        write_texts(asked, force=self.force)
        return patched
