"""Stop if a model is not run as it was trained, or if labels and rows differ in class order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.predictions import Predictions, Preprocessing, Provenance
from rescale_cli.errors import PoorAccuracy, UnknownClassOrder, again
from rescale_cli.files.arrays import row_blocks
from rescale_cli.json_text import clip, percent
from rescale_cli.measures.label_evidence import Moved, label_evidence, swapped
from rescale_cli.measures.model_evidence import Evidence, model_evidence
from rescale_cli.models.preprocessing import OF_A_PRESET, SMALL, WHAT_N_IS
from rescale_cli.models.preprocessing_config import from_run

#: The option to continue anyway.
ACCEPT = "--accept-poor-accuracy"


class HasProvenance(Protocol):
    """Predictions, or a result that was computed from them."""

    @property
    def provenance(self) -> Provenance:
        """The model, the data and the preprocessing."""


def check_accuracy(
    predictions: Predictions,
    notes: Callable[[str], None],
    *,
    counts: ClassCounts | None = None,
    rescaled: bool = False,
    image: tuple[int, int] | None = None,
    accept: bool = False,
) -> None:
    """Stop if predictions and labels hardly agree; see `model_evidence`.

    Args:
        predictions: of N samples; without labels nothing is checked.
        notes: called if the problem is accepted.
        counts: of the training set, if known.
        rescaled: whether the head was re-scaled before.
        image: height and width of the first image, if images were read.
        accept: whether to continue anyway.

    Raises:
        PoorAccuracy: the accuracy is at chance, or far below the mean confidence.
    """
    if predictions.labels is None or not len(predictions.labels):
        return
    found = model_evidence(predictions.logits, predictions.labels, counts, rescaled=rescaled)
    if not found.poor:
        return
    if found.constant and predictions.images_per_second is None:
        notes(
            f"the logits in {predictions.source} predict the same class for every sample; if the "
            "model does not, check how they were computed"
        )
        return
    why = _words(found, predictions.num_classes)
    refuse_or_note(why, predictions, notes, image=image, accept=accept)


def refuse_or_note(
    why: str,
    predictions: Predictions,
    notes: Callable[[str], None],
    *,
    image: tuple[int, int] | None = None,
    accept: bool,
) -> None:
    """Stop because the model may not be run as it was trained; with `accept`, only print a note.

    Raises:
        PoorAccuracy: unless `accept` is true.
    """
    if accept:
        notes(f"{why}; {ACCEPT} continues")
        return
    used = preprocessing_of(predictions.provenance)
    saw = f"{why}, on {len(predictions.logits):,} samples of {predictions.source}"
    if used is not None:
        saw += f"; images were {used}"
    ran = predictions.images_per_second is not None
    raise PoorAccuracy(
        "the model does not seem to be run the way it was trained: "
        + ("is the preprocessing right?" if ran or used is not None else "are the logits right?"),
        saw=saw,
        fix=_fix(used, image, ran=ran),
    )


#: An interval covers the whole range if at most this fraction is missing at either end.
_LEFT = 0.1
#: A model that reaches this fraction of the attainable accuracy above chance is sound; for it, all
#: strengths may really be equally good.
_SOUND = 0.5


def check_strength(
    interval: tuple[float, float] | None,
    limit: float,
    predictions: Predictions,
    notes: Callable[[str], None],
    *,
    accept: bool = False,
) -> None:
    """Stop if any strength may be the best, and the model hardly works.

    Args:
        interval: 95 % interval of the chosen strength; if None, nothing is checked.
        limit: the largest strength.
        predictions: the samples it was chosen on; without labels nothing is checked.
        notes: called if the problem is accepted.
        accept: whether to continue anyway.

    Raises:
        PoorAccuracy: the model does not seem to be run as it was trained.
    """
    if interval is None or predictions.labels is None:
        return
    low, high = interval
    if low > _LEFT * limit or high < (1 - _LEFT) * limit:
        return
    if model_evidence(predictions.logits, predictions.labels).known < _SOUND:
        why = f"any strength from {low:.3g} to {high:.3g} may be the best, which is the whole range"
        refuse_or_note(why, predictions, notes, accept=accept)


def preprocessing_of(known: Provenance) -> Preprocessing | None:
    """How the images were preprocessed; None if unknown.

    Raises:
        BadInput: the description in a file of logits is invalid.
    """
    said = known.preprocessing
    if said is None:
        return None
    return from_run({"preprocessing": said}, str(said.get("source") or "the file of logits"))


def prepared_line(result: HasProvenance) -> list[str]:
    """One line on how the images were preprocessed; none if unknown."""
    used = preprocessing_of(result.provenance)
    return [] if used is None else [f"images: {used}"]


def _words(found: Evidence, classes: int) -> str:
    if found.poor == "chance":
        return f"accuracy is {percent(found.accuracy)}; guessing gives {percent(found.chance)}"
    return (
        f"accuracy is {percent(found.accuracy)}, but the model claims "
        f"{percent(found.confidence)} (its mean confidence); guessing one of {classes} "
        f"classes gives {percent(found.chance)}"
    )


def _fix(used: Preprocessing | None, image: tuple[int, int] | None, *, ran: bool) -> str:
    if not ran or used is None:
        wrong = "if not, compute the logits again, with the preprocessing used in training"
        wrong += "" if used else " and with the labels in the order of the columns"
    else:
        line = again("--size", "N")
        wrong = f"if the network was trained at another size: {line} ({WHAT_N_IS})"
        if min(used.size) <= SMALL and (image is None or image == used.size):
            line = again("--preset", "imagenet", without=OF_A_PRESET)
            wrong += f"; if it was trained with the usual preprocessing for ImageNet: {line}"
    return f"{wrong}; if this is how the model really performs: {again(ACCEPT)}"


#: Most classes that a message names.
_NAMED = 4
#: How to correct the order, by how labels and rows were matched.
_FIXES = {
    "index": "list the labels in the order of the rows: --label-order FILE",
    "name": "check the names of the labels and of the rows (also in --classes), or list the labels "
    "in the order of the rows: --label-order FILE",
    "file": "check the file of --label-order",
    "sorted": "list the class names in the order of the rows: --classes FILE; or state how the "
    "folders were sorted: --order natural",
    "logits": "number the labels in the order of the columns of the logits",
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
        predictions: of N samples, with labels as rows of the head.
        notes: called if classes seem to be exchanged, or if a suspicious order is accepted.
        head_names: (C,), if the checkpoint has them.
        accept: whether to continue even if the order looks wrong.

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
            notes("these classes may be exchanged in the labels or in the head: "
                  f"{_listed(pairs, shown)}")  # fmt: skip
        return
    what = (
        f"the labels of {predictions.source} are probably in another class order than the rows of "
        "the head"
    )
    saw = _listed(found.moved, shown)
    if found.order:
        saw = f"{found.order}: {saw}"
    saw += (
        f"; the mean recall is {percent(found.diagonal, 0)} with these labels and "
        f"{percent(found.permuted, 0)} in the other order, measured on held-out samples"
    )
    if accept:
        notes(f"{what}, which --accept-order allows: {saw}")
        return
    joined = predictions.alignment or {}
    by = joined.get("by") if joined.get("classes") else "logits"
    raise UnknownClassOrder(
        what,
        saw=clip(saw, 1000),
        fix=f"{_FIXES.get(str(by), _FIXES['index'])}; if this order is right, continue with "
        "--accept-order",
    )


def _names_of_labels(predictions: Predictions, num_classes: int) -> list[str] | None:
    """The data's name for each row, (C,); None if it does not have all rows."""
    table = (predictions.alignment or {}).get("classes") or []
    known = {entry["row"]: str(entry["label"]) for entry in table}
    if set(known) != set(range(num_classes)):
        return None
    return [known[row] for row in range(num_classes)]


def _listed(moved: Sequence[Moved], names: Sequence[str]) -> str:
    """Which class is predicted as which other class, the clearest first."""
    parts = [
        f"{clip(names[one.label], 40)!r} is predicted as {clip(names[one.row], 40)!r} in "
        f"{percent(one.rate, 0)} of its samples"
        for one in moved[:_NAMED]
    ]
    more = len(moved) - len(parts)
    return ", ".join(parts) + (f", and {more} more" if more > 0 else "")
