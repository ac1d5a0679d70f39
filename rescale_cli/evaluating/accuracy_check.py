"""Stop where a model does not seem to be run the way it was trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rescale_cli.command_line import again
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.images import Preprocessing
from rescale_cli.core.predictions import Predictions
from rescale_cli.core.provenance import Provenance
from rescale_cli.errors import PoorAccuracy
from rescale_cli.loading.preprocessing import SMALL
from rescale_cli.loading.preprocessing_config import from_run
from rescale_cli.measures.model_evidence import Evidence, model_evidence

#: What goes on in spite of it.
ACCEPT = "--accept-poor-accuracy"


class HasProvenance(Protocol):
    """Predictions, or what was computed from them."""

    @property
    def provenance(self) -> Provenance:
        """Where it comes from."""


def check_accuracy(
    predictions: Predictions,
    notes: Callable[[str], None],
    *,
    counts: ClassCounts | None = None,
    rescaled: bool = False,
    image: tuple[int, int] | None = None,
    accept: bool = False,
) -> None:
    """Stop if predictions and labels have little to do with each other; see `model_evidence`.

    Args:
        predictions: of N samples; without labels nothing is checked.
        notes: told of what was accepted.
        counts: of the training set, where they are known.
        rescaled: whether the head was re-scaled before.
        image: height and width of the first image, where images were read.
        accept: go on all the same.

    Raises:
        PoorAccuracy: the accuracy is that of chance, or far below what the confidences claim.
    """
    if predictions.labels is None or not len(predictions.labels):
        return
    found = model_evidence(predictions.logits, predictions.labels, counts, rescaled=rescaled)
    if not found.poor:
        return
    if found.constant and predictions.images_per_second is None:
        notes(
            f"{predictions.source} predicts one class for every sample: if that is not what the "
            "model does, look at how the logits were computed"
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
    """Stop and ask whether the model is run as it was trained; with `accept` only say so.

    Raises:
        PoorAccuracy: unless that is accepted.
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


def preprocessing_of(known: Provenance) -> Preprocessing | None:
    """How the images were prepared; None where that is not known.

    Raises:
        BadInput: a file of logits has something else in its place.
    """
    said = known.preprocessing
    if said is None:
        return None
    return from_run({"preprocessing": said}, str(said.get("source") or "the file of logits"))


def prepared_line(result: HasProvenance) -> list[str]:
    """The same as a line for a person; none where it is not known."""
    used = preprocessing_of(result.provenance)
    return [] if used is None else [f"images: {used}"]


def _words(found: Evidence, classes: int) -> str:
    if found.poor == "chance":
        return f"accuracy is {found.accuracy:.1%}; guessing gives {found.chance:.1%}"
    return (
        f"accuracy is {found.accuracy:.1%}, but the model claims {found.confidence:.1%} (its mean "
        f"confidence); guessing one of {classes} classes gives {found.chance:.1%}"
    )


def _fix(used: Preprocessing | None, image: tuple[int, int] | None, *, ran: bool) -> str:
    if not ran or used is None:
        wrong = "if not, compute the logits again, with the preprocessing of the training"
        wrong += "" if used else " and with the labels in the order of the columns"
    elif image is not None and image[0] == image[1] and image != used.size:
        line = again("--size", str(image[0]))
        wrong = f"if the network was trained at the size of these images: {line}"
    elif min(used.size) > SMALL:
        wrong = f"if the network was trained at another size, such as 32: {again('--size', '32')}"
    else:
        wrong = f"if it was trained as is usual for ImageNet: {again('--preset', 'imagenet')}"
    return f"{wrong}; if this is what the model does: {again(ACCEPT)}"
