"""Locate the heads of a checkpoint: those that the user names, or those that are found."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.errors import AmbiguousHead, BadInput, NoEffect, RescaleError, UsageError
from rescale_cli.finding.find_head import FoundHeads, HeadKeys, find_heads


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """The user's options about the head.

    Raises:
        UsageError: `only` or `plain` without a name.
    """

    names: tuple[str, ...] = ()
    """The values of `--head`; if empty, the head is found."""
    only: bool = False
    """Whether the names may leave out final layers that have the same number of rows."""
    plain: bool = False
    """Whether the named layers are ordinary linear layers even if they look like cosine layers."""

    def __post_init__(self) -> None:
        for option, given in (("--only", self.only), ("--plain-head", self.plain)):
            if given and not self.names:
                raise UsageError(
                    f"{option} needs the name of the head", fix=f"--head NAME {option}"
                )


#: No options: the head is found.
ANY_HEAD = HeadChoice()


def locate(
    checkpoint: Checkpoint, heads: HeadChoice, num_classes: int | None, hint: int | None
) -> FoundHeads:
    """Find the heads of a checkpoint.

    Args:
        checkpoint: an open checkpoint.
        heads: the user's options.
        num_classes: C, if the user gives it.
        hint: the number of classes in the counts. If no layer has that many rows but there is one
            clear head, that head is returned, so that a later check can report the wrong counts.
    """
    try:
        return _find(checkpoint, heads, num_classes or hint)
    except BadInput:
        if num_classes is not None or hint is None:
            raise
        with suppress(RescaleError):
            return _find(checkpoint, heads, None)
        raise


def _find(checkpoint: Checkpoint, heads: HeadChoice, num_classes: int | None) -> FoundHeads:
    contents = checkpoint.contents
    found = find_heads(
        contents.tensors, config=contents.config, num_classes=num_classes, names=heads.names,
        only=heads.only, owners=contents.module_classes,
    )  # fmt: skip
    if heads.plain:
        found = replace(found, heads=tuple(replace(h, no_effect=None) for h in found.heads))
    return replace(found, warnings=(*checkpoint.notes, *found.warnings))


def refuse_no_effect(found: FoundHeads) -> None:
    """Refuse heads that normalize their rows in the forward pass.

    Raises:
        NoEffect: scaling the rows would change no logit.
    """
    for head in found.heads:
        if head.no_effect is not None:
            named = " ".join(f"--head {other.weight}" for other in found.together)
            raise NoEffect(
                "re-scaling has no effect on this head: it looks like a cosine classifier, which "
                "normalizes its rows in the forward pass",
                saw=f"{head.weight} ({head.num_classes} classes, {head.feature_dim} features): "
                f"{head.no_effect}",
                fix=f"if it is an ordinary linear layer: {named} --plain-head; otherwise adjust "
                "the logits where the model is used: z_i - tau * log(n_i / N)",
            )


def one_size(found: FoundHeads) -> HeadKeys:
    """Return the first head, if all heads have the same number of classes.

    Raises:
        AmbiguousHead: they differ, so the user must name one.
    """
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
