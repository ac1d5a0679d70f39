"""Repair trained classifiers that ignore their rare classes, without retraining.

counts      read the training samples of each class: a Series, dict, tensor, list or file
sweep       choose the strength on logits, and judge whether it helps
Fit         the same as an estimator with fit, transform and get_params
metrics     the metrics of `evaluate` from logits and labels
rescale_    re-scale the head of a live torch module, in place
unscale_    undo that, bit for bit
rescale     re-scale the head in a state dict; the result is a new one
apply       re-scale the head of a checkpoint file or folder; the result is a new file
inspect     the head of a checkpoint, its row norms, and warnings
verify      prove that only the head of a file changed
revert      the original file again, from the record of a re-scaling
WVN         keep the rows of a head at length 1 while you train it
WVNCallback the same in the trainers of Lightning and Hugging Face

Errors are RescaleError and its kinds; each says what is wrong (`what`), what was found (`saw`) and
what to do (`fix`). Warnings are RescaleWarning. Everything is imported on first use, and torch only
by what needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Where each name is; errors are in `errors`.
_HOMES = {
    **dict.fromkeys(("apply", "counts", "inspect", "revert", "verify"), "library.files"),
    **dict.fromkeys(("Fit", "sweep"), "library.fit"),
    "metrics": "library.measuring",
    **dict.fromkeys(("rescale", "rescale_", "unscale_"), "library.in_memory"),
    "WVN": "training.wvn",
    "WVNCallback": "training.wvn_callback",
}

__all__ = [
    "WVN", "AlreadyRescaled", "AmbiguousHead", "BadCheckpoint", "BadCounts", "BadHead", "BadImage",
    "BadInput", "EnvironmentProblem", "Fit", "GateFailed", "Interrupted", "NeedsDecision",
    "NoClassifier", "NoEffect", "NotDownloaded", "NotImages", "NotPrinted", "NotProven",
    "OtherCounts", "OtherModel", "OutputExists", "PoorAccuracy", "RescaleError", "RescaleWarning",
    "RunInUse",
    "UnknownClassOrder", "UnsafePickle", "UsageError", "WVNCallback", "__version__", "apply",
    "counts", "inspect", "metrics", "rescale", "rescale_", "revert", "sweep", "unscale_", "verify",
]  # fmt: skip

if TYPE_CHECKING:
    from rescale_cli.errors import (
        AlreadyRescaled,
        AmbiguousHead,
        BadCheckpoint,
        BadCounts,
        BadHead,
        BadImage,
        BadInput,
        EnvironmentProblem,
        GateFailed,
        Interrupted,
        NeedsDecision,
        NoClassifier,
        NoEffect,
        NotDownloaded,
        NotImages,
        NotPrinted,
        NotProven,
        OtherCounts,
        OtherModel,
        OutputExists,
        PoorAccuracy,
        RescaleError,
        RescaleWarning,
        RunInUse,
        UnknownClassOrder,
        UnsafePickle,
        UsageError,
    )
    from rescale_cli.library.files import apply, counts, inspect, revert, verify
    from rescale_cli.library.fit import Fit, sweep
    from rescale_cli.library.in_memory import rescale, rescale_, unscale_
    from rescale_cli.library.measuring import metrics
    from rescale_cli.training.wvn import WVN
    from rescale_cli.training.wvn_callback import WVNCallback


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
