"""The names and definitions of the metrics, in the order of the tables, and their aliases."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip

ABOUT: Mapping[str, str] = MappingProxyType(
    {
        "balanced_accuracy": "mean recall of the classes",
        "accuracy": "fraction of samples that are predicted correctly",
        "top_5": "fraction of samples whose class has one of the five largest logits",
        "many": "mean recall of the classes with many training samples",
        "medium": "mean recall of the classes with a medium number of training samples",
        "few": "mean recall of the classes with few training samples",
        "worst_recall": "smallest recall of a class",
        "macro_precision": "mean precision of the classes",
        "macro_f1": "mean F1 of the classes",
        "gmean_multiclass": "geometric mean of the recalls",
        "gmean_ovr": "geometric mean of mean sensitivity and mean specificity, one against rest",
        "iba_ovr": "index balanced accuracy, one against rest: gmean_ovr squared, times "
        "1 + 0.1 (mean sensitivity - mean specificity)",
        "roc_auc": "area under the ROC curve, of two classes",
        "average_precision": "mean precision over the recall of class 1, of two classes",
        "nll": "negative log likelihood, nats per sample",
        "ece": "expected calibration error, 15 bins of equal mass",
        "classwise_ece": "mean calibration error of the classes, 15 bins of equal mass",
        "brier": "Brier score, 0 to 2",
    }
)

#: From an alias to the name in JSON.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "many_recall": "many",
        "medium_recall": "medium",
        "few_recall": "few",
        "gmean": "gmean_multiclass",
        "g_mean": "gmean_multiclass",
        "top5": "top_5",
        "acc": "accuracy",
        "top_1": "accuracy",
        "top1": "accuracy",
        "bacc": "balanced_accuracy",
        "macro_recall": "balanced_accuracy",
        "class_wise_ece": "classwise_ece",
        "auc": "roc_auc",
        "roc": "roc_auc",
    }
)


def metric_name(typed: str) -> str | None:
    """The JSON name of a metric that was typed in any case, with `-`, `_` or spaces.

    Example:
        >>> [metric_name(text) for text in ("few-recall", "Top-5", "balanced_accuracy", "speed")]
        ['few', 'top_5', 'balanced_accuracy', None]
    """
    name = re.sub(r"[\s_-]+", "_", typed.strip().lower())
    name = ALIASES.get(name, name)
    return name if name in ABOUT else None


def unknown_metric(typed: str, fix: str) -> UsageError:
    """The error for an unknown metric.

    Args:
        typed: the name as typed.
        fix: what to type instead, with `{}` for the name of a similar metric.
    """
    name = re.sub(r"[\s_-]+", "_", clip(typed.strip().lower(), 80))
    known = [*ABOUT, *ALIASES]
    part = [other for other in known if name and name in other]
    near = [*difflib.get_close_matches(name, known, n=3), *part]
    near = list(dict.fromkeys(ALIASES.get(other, other) for other in near))[:3]
    options = [fix.format(other) for other in near]
    return UsageError(
        f"unknown metric {clip(typed.strip(), 80)!r}",
        saw=f"known: {', '.join(sorted(ABOUT))}",
        fix=", or ".join(options) or f"name one of: {', '.join(sorted(ABOUT))}",
    )


def definitions(names: Iterable[str]) -> list[str]:
    """One line for each of these metrics that has a definition.

    Example:
        >>> definitions(["worst_recall"])
        ['worst recall: smallest recall of a class']
    """
    return [f"{name.replace('_', ' ')}: {ABOUT[name]}" for name in names if name in ABOUT]
