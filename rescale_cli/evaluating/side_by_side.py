"""Models on data, measured side by side and against a base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rescale_cli.core.counts import few
from rescale_cli.errors import UsageError
from rescale_cli.evaluating import ranks
from rescale_cli.evaluating.evaluation import DataChoice, Notes, Progress, predictions_of
from rescale_cli.evaluating.scoring import (
    Difference,
    MeasuredModel,
    Subject,
    Terms,
    compare_with,
    measure_model,
    subject_of,
    subject_of_logits,
)
from rescale_cli.measures.model_evidence import CODE as TRAINING_SET
from rescale_cli.measures.model_evidence import trained_on
from rescale_cli.patching.plan import Warnings

#: A model and what it is tried on.
Trial = tuple[Path, DataChoice]


@dataclass(frozen=True, slots=True)
class Feedback:
    """Who hears how it goes."""

    bar: Callable[[str], AbstractContextManager[Progress | None]] = lambda _: nullcontext()
    """A context for one pass, with what is told how far it is."""
    notes: Notes = lambda _: None


SILENT = Feedback()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out."""

    scored: tuple[MeasuredModel, ...]
    """One a model, in the order they were given."""
    base: MeasuredModel | None
    differences: tuple[Difference, ...]
    """Of each model to the base; none where there is no base."""
    warnings: Warnings


def evaluate_models(
    trials: Sequence[Trial],
    terms: Terms,
    base: Trial | None = None,
    *,
    replicates: int,
    seed: int = 0,
    watch: Feedback = SILENT,
) -> Evaluation | None:
    """Run each model on its data and measure it; each reads its data once.

    Args:
        trials: the models.
        terms: how they are measured; the adjustment is for all of them, and not for the base.
        base: what they are compared with. If it is one of the models on the same data, that one
            is not run again, but measured as it is, without the adjustment.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        watch: who hears how it goes.

    Returns:
        None on the ranks of torchrun that only lend a hand.

    Raises:
        RescaleError: a model, its data or the counts cannot be used.
    """
    _refuse_twice([path for path, _ in trials])
    everything = [*trials, *([base] if base is not None and base not in trials else [])]
    # All of them before the first is run: a mistake is told now, not after an hour.
    subjects = [
        subject_of(
            path,
            terms if (path, choice) in trials else replace(terms, adjustment=None, chosen_for=None),
            must_have_head=choice.logits is not None,
        )
        if not choice.alone
        else subject_of_logits(path, terms)
        for path, choice in everything
    ]
    scored: list[MeasuredModel] = []
    plain: MeasuredModel | None = None
    for subject, trial in zip(subjects, everything, strict=True):
        with watch.bar(trial[0].name) as progress:
            predictions = predictions_of(
                *trial, known=subject.known, said=terms.said, accept=terms.accept,
                heads=terms.heads, progress=progress, notes=watch.notes,
            )  # fmt: skip
        if predictions is None or predictions.labels is None:
            continue  # a rank that lends a hand: where labels are wanted there are some
        if trial[1].alone and terms.chosen_for is not None:
            terms.chosen_for.refuse_other(trial[0], predictions.provenance.head_sha256)
        if trial in trials:
            scored.append(
                measure_model(subject, predictions, predictions.labels, terms, plain=False)
            )
        if trial == base:
            plain = measure_model(subject, predictions, predictions.labels, terms, plain=True)
    if not ranks.is_main():
        return None
    differences = () if plain is None else tuple(
        compare_with(plain, model, replicates=replicates, seed=seed) for model in scored
    )  # fmt: skip
    warnings = _warnings(trials, subjects, scored)
    return Evaluation(tuple(scored), plain, differences, warnings)


def _refuse_twice(paths: Sequence[Path]) -> None:
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise UsageError(f"{path} is given twice", fix="name each MODEL once")


def _warnings(
    trials: Sequence[Trial], subjects: Sequence[Subject], scored: Sequence[MeasuredModel]
) -> Warnings:
    found = [warning for subject in subjects for warning in subject.warnings]
    for (_, choice), model in zip(trials, scored, strict=True):
        support = model.confusion.tallies.support
        missing = int((support == 0).sum())
        if missing and choice.logits is not None:  # of data it is said before the model runs
            text = f"{missing} of {len(support)} classes have no sample in {choice.logits.name}"
            found.append(("classes-without-samples", text))
        source, split = str(model.data.get("source", choice.data)), model.data.get("split")
        if why := trained_on(support, model.counts, source, split):
            text = "the metrics are measured on the data that the model was trained on, where they "
            text += f"are better than on new data ({why}); measure on other data: --data DATA"
            found.append((TRAINING_SET, text))
        if model.skipped:
            text = f"{len(model.skipped)} images could not be read and were left out: "
            found.append(("skipped-images", text + few(model.skipped)))
    return tuple(dict.fromkeys(found))
