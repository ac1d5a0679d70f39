"""Warnings about the metrics of models: what makes them misleading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from rescale_cli.core.counts import few
from rescale_cli.evaluating.checks import preprocessing_of
from rescale_cli.measures.model_evidence import CODE as TRAINING_SET
from rescale_cli.measures.model_evidence import trained_on
from rescale_cli.patching.plan import Warnings

if TYPE_CHECKING:
    from rescale_cli.evaluating.evaluate_models import MeasuredModel, ModelAndData, Terms


def doubts_about(
    trials: Sequence[ModelAndData],
    scored: Sequence[MeasuredModel],
    base: MeasuredModel | None,
    terms: Terms,
) -> Warnings:
    """What the reader of the metrics should know.

    Args:
        trials: the models and the data that they were measured on.
        scored: the same models, measured.
        base: the model that they are compared with.
        terms: how they were measured.
    """
    found = []
    for (_, choice), model in zip(trials, scored, strict=True):
        support = model.confusion.tallies.support
        missing = int((support == 0).sum())
        if missing and choice.logits is not None:  # data: reported before the model runs
            text = f"{missing} of {len(support)} classes have no sample in {choice.logits.name}"
            found.append(("classes-without-samples", text))
        source, split = str(model.data.get("source", choice.data)), model.data.get("split")
        if why := trained_on(support, model.counts, source, split):
            text = (
                f"{why}; metrics of training data are better than those of new data, so measure on "
            )
            found.append((TRAINING_SET, f"{text}other data: --data DATA"))
        if model.skipped:
            text = f"{len(model.skipped)} images could not be read and were left out: "
            found.append(("skipped-images", text + few(model.skipped)))
        found += _of_sweep(model, terms)
    if terms.adjustment is None:
        found += _same([*scored, *([] if base is None else [base])])
    return tuple(found)


def _of_sweep(model: MeasuredModel, terms: Terms) -> Warnings:
    """Warnings about a strength that a sweep chose."""
    swept = terms.chosen_for
    if swept is None:
        return ()
    used = preprocessing_of(model.provenance)
    fix = f"sweep again with the latter, or use the former: --preprocessing {swept.sweep}"
    return swept.same_data(model.data_sha256) + swept.other_preprocessing(used, "here", fix)


def _same(models: Sequence[MeasuredModel]) -> Iterator[tuple[str, str]]:
    """A warning for each two models that have the same head and the same logits."""
    for one, other in combinations(models, 2):
        sha, before, after = one.provenance.head_sha256, one.samples.means, other.samples.means
        equal = sha is not None and sha == other.provenance.head_sha256
        if equal and all(np.array_equal(before[name], after[name]) for name in ("nll", "brier")):
            what = f"{one.name} is compared with itself"
            if one.name != other.name:
                what = f"{one.name} and {other.name} are the same model (equal heads and logits)"
            yield "same-model", f"{what}, so no metric can differ: name another model"
