"""What a sweep chose a strength for: the model, the counts, the data and the preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.checkpoints.locate_head import HeadChoice
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.predictions import Preprocessing
from rescale_cli.errors import BadInput, OtherCounts
from rescale_cli.json_text import clip
from rescale_cli.models.preprocessing import differences
from rescale_cli.models.preprocessing_config import from_config
from rescale_cli.patching.head_identity import identity_of, refuse_other_head
from rescale_cli.patching.plan import Warnings


@dataclass(frozen=True, slots=True)
class ChosenFor:
    """What a sweep says of its choice, to compare with what the strength is used for."""

    sweep: str
    """The file of the sweep, as typed."""
    head_sha256: str | None
    """SHA-256 of the head; None if the sweep read logits without one."""
    gamma: float
    counts: tuple[int, ...] | None = None
    """The counts of the rows that the sweep used; None if it does not say."""
    data_sha256: str | None = None
    """See `Predictions.data_sha256`; None if the sweep does not say, or used no labels."""
    chosen_on: str = ""
    """The part of the data that chose the strength, in words."""
    preprocessing: Preprocessing | None = None
    """How the images of the sweep were preprocessed; None if it does not say."""

    def same_data(self, data_sha256: str | None) -> Warnings:
        """A warning if the strength is measured on the data that chose it."""
        if data_sha256 is None or data_sha256 != self.data_sha256:
            return ()
        part = f", {self.chosen_on}" if self.chosen_on else ""
        text = (
            f"the strength in {self.sweep} was chosen on this data{part}: the metrics are "
            "optimistic, so measure on other data: --data DATA"
        )
        return (("chosen-on-this-data", text),)

    def other_preprocessing(self, used: Preprocessing | None, who: str, fix: str) -> Warnings:
        """A warning if images are preprocessed in another way than those of the sweep were.

        Args:
            used: None if it is not known.
            who: where it is used, such as `here`.
            fix: what to type.
        """
        then = self.preprocessing
        differs = () if then is None or used is None else differences(then, used)
        if not differs:
            return ()
        text = (
            f"the strength in {self.sweep} was chosen on images {then}; {who} they are {used}, "
            f"with another {' and '.join(differs)}: {fix}"
        )
        return (("other-preprocessing", text),)

    def applied_to(self, model: Checkpoint) -> Warnings:
        """A warning if the files of a model say that it sees images in another way."""
        try:
            used = from_config(model.contents.config)
        except BadInput:  # only a command that runs the model needs it
            return ()
        fix = f"if the latter is right, sweep with it: rescale-cli sweep-gamma {model.path} ..."
        return self.other_preprocessing(used, f"for {model.path.name}", fix)

    def refuse_other_counts(self, counts: ClassCounts) -> None:
        """Stop if the strength was chosen with other counts of the rows.

        Raises:
            OtherCounts: with these counts the same strength means other factors.
        """
        found = tuple(counts.values.tolist())
        if self.counts is None or self.counts == found:
            return
        pairs = zip_longest(self.counts, found)
        row, (then, now) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        name = f" ({clip(counts.names[row], 40)})" if counts.names and row < len(found) else ""
        raise OtherCounts(
            f"the strength in {self.sweep} was chosen with other counts than those of "
            f"{counts.source}",
            saw=f"row {row}{name}: {then} samples in {self.sweep}, {now} now",
            fix="give the counts of the sweep: --counts FILE; or sweep with these; or insist with "
            f"the number: --gamma {self.gamma!r}",
        )

    def refuse_other_model(
        self,
        model: Checkpoint,
        heads: HeadChoice,
        num_classes: int | None,
        accept: frozenset[str] = frozenset(),
    ) -> None:
        """The same as `refuse_other`, for a checkpoint whose head is still to be found.

        If the head cannot be determined, nothing is refused here.

        Raises:
            OtherModel: the strength was chosen for another head.
        """
        self.refuse_other(model.path, identity_of(model, heads, num_classes), accept)

    def refuse_other(
        self, model: Path, own: str | None, accept: frozenset[str] = frozenset()
    ) -> None:
        """Stop if the strength was chosen for another head than that of the model.

        Raises:
            OtherModel: each model has its own best strength.
        """
        refuse_other_head(
            model,
            own,
            self.head_sha256,
            what=f"the strength in {self.sweep}",
            fix=f"sweep this model: rescale-cli sweep-gamma {model} ...; or insist with the "
            f"number: --gamma {self.gamma!r}",
            accept=accept,
        )
