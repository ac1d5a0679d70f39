"""Whether a checkpoint can hold an adjustment, found out without writing anything."""

from __future__ import annotations

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import RescaleError
from rescale_cli.files.regular_file import opened
from rescale_cli.patching.locate_head import HeadChoice
from rescale_cli.patching.plan import CountsChoice, make_plan
from rescale_cli.patching.rewrite import regions


def obstacle(
    checkpoint: Checkpoint, counts: CountsChoice, adjustment: Adjustment, heads: HeadChoice
) -> str:
    """Why `apply` cannot write an adjustment to this checkpoint; empty if it can.

    The new values of the head are computed, so a row that its dtype cannot hold is noticed. A
    checkpoint that was re-scaled before is no obstacle here.

    Args:
        checkpoint: opened.
        counts: of the training set.
        adjustment: the method at its strength.
        heads: what the user says of the heads.
    """
    try:
        plan = make_plan(checkpoint, counts, adjustment, heads=heads, compose=True)
        for file in plan.files:
            with opened(file) as source:
                for region in regions(plan.edits_of(file)):
                    region.rewritten(source)
    except RescaleError as error:
        return error.what
    return ""
