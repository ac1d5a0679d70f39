"""Whose logits and strengths these are, and with which libraries they were made."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rescale_cli
from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.core.images import Preprocessing
from rescale_cli.core.predictions import Predictions
from rescale_cli.core.provenance import Provenance
from rescale_cli.loading.preprocessing_config import to_run
from rescale_cli.patching.find_records import find_records
from rescale_cli.patching.head_identity import refuse_other_head

#: The library of a network, by the first part of its `--arch`.
LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}


def versions(*libraries: str | None) -> dict[str, str]:
    """This tool and the named libraries with their versions; one that is not installed is left out.

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
    predictions: Predictions,
    model: Path,
    head_sha256: str | None,
    notes: Callable[[str], None],
    *,
    accept: frozenset[str] = frozenset(),
) -> None:
    """Stop where a file of logits is that of another model.

    Args:
        predictions: read from the file.
        model: the checkpoint that is named beside it.
        head_sha256: of its head.
        notes: told where the file does not say whose it is.
        accept: full names of pickle globals that are let pass, still without being run.

    Raises:
        NeedsDecision: the file says that its model has another head.
    """
    if predictions.provenance.head_sha256 is None:
        text = f"{predictions.source} does not say which model its logits are from, so they are "
        text += f"taken for those of {model.name}"
        if find_records(open_checkpoint(model, accept))[0]:
            text += ", which was re-scaled: with logits from before that, the results are wrong"
        notes(text)
    refuse_other_head(
        model,
        head_sha256,
        predictions.provenance.head_sha256,
        what=f"the logits in {predictions.source}",
        fix=f"name the model that they are from, or compute them anew: --data DATA in place of "
        f"--logits {predictions.source}",
        accept=accept,
    )


def of_predictions(
    predictions: Predictions, head_sha256: str | None, arch: str, prepared: Preprocessing
) -> Provenance:
    """Where predictions come from that this tool has just made.

    Args:
        predictions: of N samples.
        head_sha256: of the model's head, see `head_identity`.
        arch: the network, as `--arch` names it.
        prepared: how its images were prepared.
    """
    said = {**to_run(prepared), "source": prepared.source}
    data = {"source": predictions.source, "split": predictions.split,
            "samples": len(predictions.logits)}  # fmt: skip
    library = LIBRARIES.get(arch.partition(":")[0])
    return Provenance(head_sha256, said, data, versions("torch", library))


def of_result(predictions: Predictions, head_sha256: str | None = None) -> Provenance:
    """Where a result that is computed from these predictions comes from.

    Args:
        predictions: with what their file, or the run of the model, says.
        head_sha256: of the checkpoint that was named, which logits made elsewhere do not say.
    """
    known, whose = predictions.provenance, head_sha256 or predictions.provenance.head_sha256
    data = known.data or {"source": predictions.source, "split": predictions.split,
                          "samples": len(predictions.logits)}  # fmt: skip
    return Provenance(whose, known.preprocessing, data, {**known.versions, **versions()})
