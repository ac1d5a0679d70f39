"""Which model a result belongs to: the one whose head has these bytes, by any file name."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.checkpoints.tensor_bytes import overlaps_itself
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.tensor_info import HEAD_DTYPES
from rescale_cli.errors import NotProven, OtherCounts, OtherModel, RescaleError
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.json_text import clip
from rescale_cli.patching.find_records import find_records
from rescale_cli.patching.locate_head import ANY_HEAD, HeadChoice, locate
from rescale_cli.patching.record import digest


def head_sha256(checkpoint: Checkpoint, keys: HeadKeys) -> str | None:
    """The SHA-256 of a head: the bytes of its weight, then those of its bias.

    The name and the format of the file, and all other tensors, have no part in it. Of a weight
    norm, the direction stands between the two.

    Returns:
        None for a head of a kind that is never re-scaled, such as one of 8 bits.
    """
    names = [name for name in (keys.weight, keys.direction, keys.bias) if name is not None]
    tensors = [checkpoint.tensor(name) for name in names]
    if any(info.dtype not in HEAD_DTYPES or overlaps_itself(info) for info in tensors):
        return None
    return digest(tensors)


def identity_of(
    model: Path | Checkpoint,
    heads: HeadChoice = ANY_HEAD,
    num_classes: int | None = None,
    accept: frozenset[str] = frozenset(),
) -> str | None:
    """The same where the head is not found yet; None where it is in doubt.

    Args:
        model: a checkpoint file or folder, or one that is open.
        heads: what the user says of the heads.
        num_classes: C, where it is known.
        accept: full names of pickle globals that are let pass, still without being run.
    """
    try:
        checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model, accept)
        return head_sha256(checkpoint, locate(checkpoint, heads, num_classes, None).heads[0])
    except RescaleError:
        return None


def was_rescaled(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has the record of a re-scaling, even a damaged one."""
    try:
        return bool(find_records(checkpoint)[0])
    except NotProven:
        return True


def refuse_other_head(
    model: Path,
    own: str | None,
    wanted: str | None,
    *,
    what: str,
    fix: str,
    accept: frozenset[str] = frozenset(),
) -> None:
    """Stop if a result belongs to another head than that of the model.

    Args:
        model: the checkpoint.
        own: SHA-256 of its head; None: not known, so nothing is compared.
        wanted: SHA-256 of the head that the result belongs to; None: not known.
        what: the result, for the error: `the logits in val.npz`.
        fix: what to type instead.
        accept: full names of pickle globals that are let pass, still without being run.

    Raises:
        OtherModel: the two differ.
    """
    if own is None or wanted is None or own == wanted:
        return
    saw = f"SHA-256 of the head of {model.name}: {own[:16]}…; of the other head: {wanted[:16]}…"
    records, _ = find_records(open_checkpoint(model, accept))
    if records:
        fields = records[0].fields
        how = clip(f"{fields.get('method')}, strength {fields.get('gamma')}", 80)
        saw += f"; {model.name} was re-scaled ({how}), so its head is not that of its original"
    raise OtherModel(
        f"{what} belong{'s' if what.startswith('the strength') else ''} to another model than "
        f"{model.name}",
        saw=saw,
        fix=fix,
    )


@dataclass(frozen=True, slots=True)
class ChosenFor:
    """The model that a sweep chose a strength for."""

    sweep: str
    """The file of the sweep, as it was typed."""
    head_sha256: str | None
    """Of the head; None: the sweep read logits that do not say whose they are."""
    gamma: float
    counts: tuple[int, ...] | None = None
    """Of the rows, as the strength was chosen with them; None: the sweep does not say."""

    def refuse_other_counts(self, counts: ClassCounts) -> None:
        """Stop where the strength was chosen with other counts than these, of the rows.

        Raises:
            OtherCounts: with them the same strength means other factors.
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
        """The same for a checkpoint whose head is not found yet.

        One whose head is in doubt is left to whoever looks for it next.

        Raises:
            OtherModel: the strength was chosen for another head.
        """
        self.refuse_other(model.path, identity_of(model, heads, num_classes), accept)

    def refuse_other(
        self, model: Path, own: str | None, accept: frozenset[str] = frozenset()
    ) -> None:
        """Stop where the strength was chosen for another head than that of the model.

        Raises:
            OtherModel: no strength is right for all models.
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
