"""Which layer of an opened checkpoint is the head, with what the counts say of its size."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.errors import AmbiguousHead, BadInput, RescaleError
from rescale_cli.finding.find_head import FoundHeads, HeadKeys, find_heads


def locate(
    checkpoint: Checkpoint, heads: Sequence[str], num_classes: int | None, hint: int | None
) -> FoundHeads:
    """The heads of a checkpoint.

    Args:
        checkpoint: opened.
        heads: their names, where the user gives them.
        num_classes: C, where the user gives it.
        hint: C, as the counts have it. If no layer fits it, but one is the head without doubt, that
            one is returned: the counts are what is wrong, and whoever compares them can say so.
    """
    contents = checkpoint.contents
    try:
        return find_heads(
            contents.tensors, config=contents.config, num_classes=num_classes or hint, names=heads
        )
    except BadInput:
        if num_classes is not None or hint is None:
            raise
        with suppress(RescaleError):
            return find_heads(contents.tensors, config=contents.config, names=heads)
        raise


def one_size(found: FoundHeads) -> HeadKeys:
    """The first head, if all have as many classes; a user must say which are meant otherwise."""
    sizes = {head.num_classes for head in found.heads}
    if len(sizes) > 1:
        shown = ", ".join(f"{h.weight} ({h.num_classes} classes)" for h in found.heads)
        raise AmbiguousHead(
            "the heads have different numbers of classes",
            saw=shown,
            fix=f"name one: --head {found.heads[0].weight}",
            candidates=tuple(
                {"weight": h.weight, "shape": [h.num_classes, h.feature_dim], "why": h.why}
                for h in found.heads
            ),
        )
    return found.heads[0]
