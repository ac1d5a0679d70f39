"""Stop where the predictions show that labels and rows are in different orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rescale_cli.core.predictions import Predictions
from rescale_cli.errors import UnknownClassOrder
from rescale_cli.files.big_array import row_blocks
from rescale_cli.json_text import clip
from rescale_cli.measures.label_evidence import Moved, label_evidence, swapped

#: Classes that a message names.
_NAMED = 4
#: What mends the order, by how labels and rows were joined.
_FIXES = {
    "index": "give the labels in the order of the rows: --label-order FILE",
    "name": "check the names of the labels and of the rows, in --classes too; or give the labels "
    "in the order of the rows: --label-order FILE",
    "file": "check the file of --label-order",
    "sorted": "give the class names in the order of the rows: --classes FILE, or say how folders "
    "were sorted: --order natural",
    "logits": "write the labels in the order of the columns of the logits",
}


def check_order(
    predictions: Predictions,
    notes: Callable[[str], None],
    *,
    head_names: Sequence[str] | None = None,
    accept: bool = False,
) -> None:
    """Compare the labels with what the model predicts; see `label_evidence`.

    Args:
        predictions: of N samples, with labels in the order of the rows, as they were joined.
        notes: told of two classes that answer under each other's name, and of an accepted order.
        head_names: (C,), where the checkpoint has them.
        accept: go on although the order looks wrong.

    Raises:
        UnknownClassOrder: another order of the classes fits the predictions far better.
    """
    labels, c = predictions.labels, predictions.num_classes
    if labels is None or not len(labels):
        return
    blocks = (predictions.logits[block] for block in row_blocks(predictions.logits))
    predicted = np.concatenate([block.argmax(axis=1) for block in blocks]).astype(np.int64)
    names = _names_of_labels(predictions, c)
    shown = names or [f"class {row}" for row in range(c)]
    found = label_evidence(predicted, labels, c, names=names, head_names=head_names)
    if found is None or not found.wrong:
        pairs = swapped(predicted, labels, c)
        if pairs:
            notes(f"these classes may be exchanged in the labels or in the head: "
                  f"{_listed(pairs, shown)}")  # fmt: skip
        return
    what = (
        f"the labels of {predictions.source} are probably in another order than the rows of the "
        "head"
    )
    saw = _listed(found.moved, shown)
    if found.order:
        saw = f"{found.order}: {saw}"
    saw += (
        f"; the mean recall is {found.diagonal:.0%} with these labels and, in the other order, "
        f"{found.permuted:.0%}, on samples that were not used to find it"
    )
    if accept:
        notes(f"{what}, which --accept-order allows: {saw}")
        return
    joined = predictions.alignment or {}
    by = joined.get("by") if joined.get("classes") else "logits"
    raise UnknownClassOrder(
        what,
        saw=clip(saw, 1000),
        fix=f"{_FIXES.get(str(by), _FIXES['index'])}; if this order is right, go on with "
        "--accept-order",
    )


def _names_of_labels(predictions: Predictions, num_classes: int) -> list[str] | None:
    """The class of each row (C,) as the data calls it, where it has all of them."""
    table = (predictions.alignment or {}).get("classes") or []
    known = {entry["row"]: str(entry["label"]) for entry in table}
    if set(known) != set(range(num_classes)):
        return None
    return [known[row] for row in range(num_classes)]


def _listed(moved: Sequence[Moved], names: Sequence[str]) -> str:
    """What the labels call one class and the model another, the clearest first."""
    parts = [
        f"{clip(names[one.label], 40)!r} is predicted as {clip(names[one.row], 40)!r} in "
        f"{one.rate:.0%} of its samples"
        for one in moved[:_NAMED]
    ]
    more = len(moved) - len(parts)
    return ", ".join(parts) + (f", and {more} more" if more > 0 else "")
