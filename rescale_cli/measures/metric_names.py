"""The metrics of `evaluate` by name, in the order they are shown, and what each is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ABOUT: Mapping[str, str] = MappingProxyType(
    {
        "balanced_accuracy": "mean recall of the classes",
        "accuracy": "share of samples that are right",
        "top_5": "share of samples whose class is among the five largest logits",
        "many": "mean recall of the classes with many training samples",
        "medium": "mean recall of the classes between many and few training samples",
        "few": "mean recall of the classes with few training samples",
        "worst_recall": "smallest recall of a class",
        "macro_precision": "mean precision of the classes",
        "macro_f1": "mean F1 of the classes",
        "gmean_multiclass": "geometric mean of the recalls",
        "gmean_ovr": "geometric mean of mean sensitivity and mean specificity, one against rest",
        "iba_ovr": "index balanced accuracy, one against rest",
        "roc_auc": "area under the ROC curve, of two classes",
        "average_precision": "mean precision over the recall of class 1, of two classes",
        "nll": "negative log likelihood, nats a sample",
        "ece": "expected calibration error, 15 bins of equal mass",
        "classwise_ece": "mean calibration error of the classes, 15 bins of equal mass",
        "brier": "Brier score, 0 to 2",
    }
)
