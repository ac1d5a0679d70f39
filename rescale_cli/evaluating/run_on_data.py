"""Get the predictions of a model: run it on data, or read its logits from a file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rescale_cli
from rescale_cli.checkpoints.formats.sharded_folder import read_config
from rescale_cli.checkpoints.locate_head import ANY_HEAD, HeadChoice
from rescale_cli.core.alignment import join_labels
from rescale_cli.core.classes import NO_HINTS, HeadRows, RowHints
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import two_columns
from rescale_cli.core.predictions import (
    Classifier,
    DataRead,
    Images,
    Labels,
    Predictions,
    Preprocessing,
    Provenance,
)
from rescale_cli.data.datasets import open_images
from rescale_cli.data.logits_file import read_logits, write_features, write_logits
from rescale_cli.data.spec import Purpose
from rescale_cli.errors import BadInput, RescaleError, UsageError
from rescale_cli.evaluating import ranks
from rescale_cli.evaluating.checks import check_accuracy, check_order, preprocessing_of
from rescale_cli.evaluating.head_input import head_input_of
from rescale_cli.evaluating.predict import RunOptions, predict
from rescale_cli.models.classifiers import load_classifier
from rescale_cli.models.hugging_face import refuse_other_input
from rescale_cli.models.networks import input_channels
from rescale_cli.models.preprocessing import Hints, override
from rescale_cli.models.preprocessing_config import save_preprocessing, to_run
from rescale_cli.patching.head_identity import refuse_other_head

#: The library of a network by the prefix of its `--arch`.
LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}


def versions(*libraries: str | None) -> dict[str, str]:
    """The versions of this tool and of the named libraries that are installed.

    Example:
        >>> list(versions(None))
        ['rescale-cli']
    """
    found = {"rescale-cli": rescale_cli.__version__}
    for name in libraries:
        if name is not None:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found


def check_logits_head(
    predictions: Predictions, model: ModelToRun, notes: Callable[[str], None]
) -> None:
    """Stop if a file of logits is from another model.

    Args:
        predictions: read from the file.
        model: the checkpoint that was given with it.
        notes: called if the file does not identify its model.

    Raises:
        NeedsDecision: the logits were computed with another head.
    """
    if predictions.provenance.head_sha256 is None:
        text = f"{predictions.source} does not say which model its logits are from; assuming "
        text += f"{model.path.name}"
        if model.rescaled:
            text += ", which was re-scaled: logits from before that would give wrong results"
        notes(text)
    refuse_other_head(
        model.path,
        model.head_sha256,
        predictions.provenance.head_sha256,
        what=f"the logits in {predictions.source}",
        fix="name the model that they are from, or compute them again: --data DATA instead of "
        f"--logits {predictions.source}",
        accept=model.accept,
    )


def of_predictions(
    predictions: Predictions, head_sha256: str | None, arch: str, prepared: Preprocessing
) -> Provenance:
    """The provenance of predictions that were just computed.

    Args:
        predictions: of N samples.
        head_sha256: of the model's head, see `head_identity`.
        arch: the network, as `--arch` names it.
        prepared: how its images were preprocessed.
    """
    said = {**to_run(prepared), "source": prepared.source}
    data = {"source": predictions.source, "split": predictions.split,
            "samples": len(predictions.logits)}  # fmt: skip
    library = LIBRARIES.get(arch.partition(":")[0])
    return Provenance(head_sha256, said, data, versions("torch", library))


def of_result(predictions: Predictions, head_sha256: str | None = None) -> Provenance:
    """The provenance of a result that is computed from these predictions.

    Args:
        predictions: with their own provenance.
        head_sha256: of the checkpoint, for logits whose file does not identify their model.
    """
    known, whose = predictions.provenance, head_sha256 or predictions.provenance.head_sha256
    data = known.data or {"source": predictions.source, "split": predictions.split,
                          "samples": len(predictions.logits)}  # fmt: skip
    return Provenance(whose, known.preprocessing, data, {**known.versions, **versions()})


#: Called with the number of images done, their total, and images per second.
Progress = Callable[[int, int, float], None]
Notes = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelToRun:
    """A checkpoint, and what is known about it before it is run."""

    path: Path
    """A file or folder; the file of logits if no checkpoint is given."""
    num_classes: int | None = None
    """Rows of the head; 1 for a binary head."""
    head_sha256: str | None = None
    """SHA-256 of its head, see `head_identity`."""
    counts: ClassCounts | None = None
    """Of the training set."""
    rescaled: bool = False
    """Whether the checkpoint has the record of a re-scaling."""
    said: RowHints = NO_HINTS
    """The user's options about the head's rows."""
    heads: HeadChoice = ANY_HEAD
    """The user's choice of heads, to save the head's inputs."""
    accept: frozenset[str] = frozenset()
    """Full names of pickle globals that may be referred to; they are never called."""


@dataclass(frozen=True, slots=True)
class DataChoice:
    """The data for one model, and how to run it."""

    data: str | None = None
    """As `--data` names it; None if `logits` is given."""
    logits: Path | None = None
    """Saved logits, to use instead of running a model."""
    alone: bool = False
    """Whether logits are given without a checkpoint."""
    arch: str | None = None
    prepared: Preprocessing | None = None
    """Preprocessing from a file that was named, which takes precedence over the checkpoint's."""
    preset: str | None = None
    size: tuple[int, int] | None = None
    """Height and width of the model's input, pixels."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    download: bool = False
    save_logits: Path | None = None
    """Where to save the logits."""
    save_preprocessing: Path | None = None
    """Where to save the preprocessing of the images."""
    save_features: Path | None = None
    """Where to save the inputs of the head."""
    force: bool = False
    """Whether these files may be replaced."""
    run: RunOptions = field(default_factory=RunOptions)
    purpose: Purpose = "measure"
    """What the data are opened for; it decides which split is read, see `data.spec`."""
    accept_order: bool = False
    """Whether to continue if labels and rows seem to be in different class orders."""
    accept_poor: bool = False
    """Whether to continue if the model does not seem to be run as it was trained."""


def predictions_of(
    model: ModelToRun,
    choice: DataChoice,
    *,
    labelled: bool = True,
    progress: Progress | None = None,
    notes: Notes = lambda text: None,
) -> Predictions | None:
    """The logits of a model on the data, with labels as rows of its head.

    Args:
        model: the checkpoint.
        choice: the data, or logits instead.
        labelled: whether data without labels are an error.
        progress: called from time to time while the model runs.
        notes: called with each note for the user.

    Returns:
        None on every rank of torchrun except rank 0.

    Raises:
        BadInput: the number of classes differs, a label is not a row of the head, or there are no
            labels.
        NeedsDecision: the logits are of another model, the preprocessing is unknown, or the
            predictions hardly agree with the labels.
        RescaleError: the model or the data cannot be read, or do not match.
    """
    if choice.logits is None:
        found = _run(model, choice, labelled, progress, notes)
    else:
        found = _read(model, choice, choice.logits, labelled, notes)
    if found is None:
        return None
    if choice.save_logits is not None:
        write_logits(choice.save_logits, found, force=choice.force)
    if choice.save_preprocessing is not None:
        _save_preprocessing(choice.save_preprocessing, found, force=choice.force)
    if choice.save_features is not None:
        write_features(choice.save_features, found, force=choice.force)
    return found


def _read(
    model: ModelToRun, choice: DataChoice, file: Path, labelled: bool, notes: Notes
) -> Predictions:
    """Read the logits from a file, and check that they are those of the model."""
    found = read_logits(file)
    preprocessing_of(found.provenance)  # raises early if it is damaged
    _check(model, found.columns.shape[1], found.source)
    _check_labelled(found.labels, found.source, labelled)
    if not choice.alone:
        check_logits_head(found, model, notes)
    return check_logits(
        found, notes, model.counts, rescaled=model.rescaled, accept_order=choice.accept_order,
        accept_poor=choice.accept_poor,
    )  # fmt: skip


def check_logits(
    found: Predictions, notes: Notes, counts: ClassCounts | None, *, rescaled: bool = False,
    accept_order: bool = False, accept_poor: bool = False,
) -> Predictions:  # fmt: skip
    """Logits that were computed elsewhere, after the checks of `check_order`, `check_accuracy`."""
    if found.binary and 0 <= found.columns.min() <= found.columns.max() <= 1:
        text = "all logits are between 0 and 1: if they are probabilities p, save the logits"
        notes(f"{found.source}: {text} log(p / (1 - p)) instead")
    line = f"the labels of {found.source} are rows of the head"
    found = replace(found, alignment={"by": "index", "evidence": line, "classes": []})
    check_order(found, notes, accept=accept_order)
    check_accuracy(found, notes, counts=counts, rescaled=rescaled, accept=accept_poor)
    return found


def _save_preprocessing(path: Path, predictions: Predictions, *, force: bool) -> None:
    made = preprocessing_of(predictions.provenance)
    if made is None:
        raise UsageError(
            f"{predictions.source} does not contain the preprocessing of its images",
            saw=f"--save-preprocessing {path}",
            fix="run the model on the images instead: --data DATA",
        )
    save_preprocessing(path, made, force=force)


def _aligned(
    images: Images, classifier: Classifier, model: ModelToRun, notes: Notes
) -> tuple[Images, dict[str, Any] | None]:
    """The images with their labels as rows of the head, and how labels and rows were matched."""
    if images.labels is None or images.classes is None:
        return images, None
    c = max(2, classifier.num_classes)
    rows = HeadRows(c, classifier.classes, classifier.tool, model.path.name)
    labels, joined = join_labels(
        images.labels, images.classes, rows, model.said, source=images.source, samples=images.names
    )
    for text in joined.notes if ranks.is_main() else ():
        notes(text)
    return replace(images, labels=labels), joined.as_json()


def _run(
    model: ModelToRun,
    choice: DataChoice,
    labelled: bool,
    progress: Progress | None,
    notes: Notes,
) -> Predictions | None:
    """Open the data, build the model, match the labels with its head, and run it."""
    if choice.arch in (None, "hf"):
        folder = model.path if model.path.is_dir() else model.path.parent
        refuse_other_input(folder, read_config(folder))
    images = open_images(
        str(choice.data),
        purpose=choice.purpose,
        download=choice.download,
        skip_bad=choice.run.skip_bad,
    )
    _check_labelled(images.labels, images.source, labelled)
    classifier = load_classifier(model.path, choice.arch, accept=model.accept)
    if ranks.is_main() and any(word in classifier.why for word in ("weights from", "named by")):
        notes(f"{model.path.name}: {classifier.why}")
    _check(model, classifier.num_classes, classifier.arch)
    shape = _first_shape(images)
    prepared = _prepared(classifier, choice, shape)
    if prepared.source.startswith("mean and std of") and ranks.is_main():
        notes(f"images are {prepared}; --mean and --std replace the values of the library")
    images, aligned = _aligned(images, classifier, model, notes)
    tap = None
    if choice.save_features is not None:
        tap = head_input_of(classifier, model.path, model.heads, model.accept)
    found = predict(classifier, images, prepared, choice.run, progress, notes, tap)
    if found is None:
        return None
    if images.skipped:
        notes(str(DataRead.of(images.source, len(images), images.skipped)))
    found = replace(found, alignment=aligned, split=images.split, no_samples=images.skipped)
    origin = of_predictions(found, model.head_sha256, classifier.arch, prepared)
    found = replace(found, provenance=origin)
    if classifier.num_classes == 1:
        found = replace(found, logits=two_columns(found.logits), binary=True)
    names = model.said.names or classifier.classes
    check_order(found, notes, head_names=names, accept=choice.accept_order)
    check_accuracy(
        found, notes, counts=model.counts, rescaled=model.rescaled,
        image=None if shape is None else (shape[0], shape[1]), accept=choice.accept_poor,
    )  # fmt: skip
    return found


def _first_shape(images: Images) -> tuple[int, ...] | None:
    """Height, width and perhaps channels of the first image, for messages."""
    with suppress(RescaleError):  # an unreadable image is reported later, with the others
        if len(images):
            shape = images.read(0).shape if images.array is None else images.array.shape[1:]
            return tuple(shape)
    return None


def _prepared(
    classifier: Classifier, choice: DataChoice, shape: tuple[int, ...] | None
) -> Preprocessing:
    """The preprocessing by options, a file or the checkpoint."""
    image = None if shape is None else (shape[0], shape[1])
    hints = Hints(classifier.usual, classifier.input_size, image, _channels(classifier, shape))
    return override(
        choice.prepared or classifier.preprocessing, choice.preset, choice.size, choice.mean,
        choice.std, hints,
    )  # fmt: skip


def _channels(classifier: Classifier, shape: tuple[int, ...] | None) -> int | None:
    """The channels of the network's first convolution, or of the images if it has none."""
    first = input_channels(classifier.module)
    if first is None and shape is not None:
        first = shape[2] if len(shape) > 2 else 1
    return first if first in (1, 3) else None


def _check(model: ModelToRun, found: int, source: str) -> None:
    """Stop if the head and the logits have different numbers of classes."""
    known, name = model.num_classes, model.path.name
    if known is None or found == known:
        return
    if 1 in (known, found):
        raise BadInput(
            f"the head of {name} has {_rows(known)}, but {source} has {_logits(found)} per sample",
            saw=f"rows of the head: {known}; columns of logits: {found}",
            fix="save the output of this model with one column per row of its head: --logits FILE",
        )
    raise BadInput(
        f"the head of {name} has {known} rows, but {source} has {found} classes",
        saw=f"{known} and {found} classes",
        fix="name those of this model: --logits FILE, --arch KIND:NAME or --head NAME",
    )


def _rows(number: int) -> str:
    return "one row (one logit for two classes)" if number == 1 else f"{number} rows"


def _logits(number: int) -> str:
    return "one logit" if number == 1 else f"{number} logits"


def _check_labelled(labels: Labels | None, source: str, wanted: bool) -> None:
    if wanted and labels is None:
        raise BadInput(
            f"{source} has no labels, so nothing can be measured on it",
            fix="use data with labels; in a file of logits, they are the array `labels`",
        )
