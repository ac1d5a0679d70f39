"""Identify a model by the SHA-256 of its head, so that results are not used for another model."""

from __future__ import annotations

from pathlib import Path

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.checkpoints.locate_head import ANY_HEAD, HeadChoice, locate
from rescale_cli.checkpoints.read_tensors import overlaps_itself
from rescale_cli.core.floats import HEAD_DTYPES
from rescale_cli.errors import OtherModel, RescaleError
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.json_text import clip
from rescale_cli.patching.find_records import find_records
from rescale_cli.patching.record import digest


def head_sha256(checkpoint: Checkpoint, keys: HeadKeys) -> str | None:
    """The SHA-256 of a head: the bytes of its weight, then those of its bias.

    It does not depend on the name and the format of the file or on other tensors. With weight
    norm, the direction goes between the two.

    Returns:
        None for a head that is never re-scaled, such as one of 8 bits.
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
    """The SHA-256 of the head of a model; None if the head cannot be determined.

    Args:
        model: a checkpoint file or folder, or one that is open.
        heads: the user's choice of heads.
        num_classes: C, if it is known.
        accept: full names of pickle globals to accept; they are never run.
    """
    try:
        checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model, accept)
        return head_sha256(checkpoint, locate(checkpoint, heads, num_classes, None).heads[0])
    except RescaleError:
        return None


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
        own: SHA-256 of its head; None: unknown, so nothing is compared.
        wanted: SHA-256 of the head that the result belongs to; None: unknown.
        what: the result, for the error, such as `the logits in val.npz`.
        fix: what to type instead.
        accept: full names of pickle globals to accept; they are never run.

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
