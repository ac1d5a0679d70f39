"""From logits and labels to a strength, a verdict and a curve; and to metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack

import numpy as np

from rescale_cli.core.classes import HeadRows
from rescale_cli.core.counts import ZeroPolicy, warnings_of
from rescale_cli.core.floats import Float64
from rescale_cli.core.head import Head, adjusting_line, refuse_rescaling
from rescale_cli.core.methods import BIAS_POLICIES, Adjustment
from rescale_cli.core.predictions import Predictions
from rescale_cli.data.counts import CountsLike
from rescale_cli.data.labels import ClassesLike, Names, row_hints
from rescale_cli.errors import UsageError
from rescale_cli.evaluating.checks import check_strength
from rescale_cli.evaluating.run_on_data import check_logits
from rescale_cli.files.staging import write_texts
from rescale_cli.finding.refusals import JointHead
from rescale_cli.library.display import page, sketch
from rescale_cli.library.heads import ArrayLike, head_of, parts_of_module, sha256_of
from rescale_cli.library.measuring import predictions_of
from rescale_cli.library.words import speaks_python, warn
from rescale_cli.patching.plan import CountsChoice
from rescale_cli.sweeping.decisions import SweptMethod
from rescale_cli.sweeping.selection import Selection, metric_to_choose_by
from rescale_cli.sweeping.sweep import sweep as sweep_predictions
from rescale_cli.sweeping.sweep_input import SweepInput, sample_warnings
from rescale_cli.sweeping.sweep_result import document, sweep_result
from rescale_cli.sweeping.verdict import VerdictKind

if TYPE_CHECKING:
    import torch

Method = Literal["rescale", "tau-norm", "logit-adjust"]
Bias = Literal["keep", "scale", "drop"]
Metric = Literal[
    "balanced-accuracy", "accuracy", "macro-f1", "gmean", "few-recall", "worst-recall",
    "balanced_accuracy", "macro_f1", "macro_precision", "gmean_multiclass", "gmean_ovr", "iba_ovr",
    "worst_recall", "many", "medium", "few",
]  # fmt: skip


class FitOptions(TypedDict, total=False):
    """The options of `Fit`, for `sweep`."""

    head: torch.nn.Module | tuple[Any, Any] | None
    method: Method
    normalize: bool | Literal["both"]
    bias: Bias | Literal["all"] | None
    metric: Metric
    choose: str
    holdout: float
    bootstrap: int
    gamma_max: float
    seed: int
    groups: tuple[int, int]
    classes: ClassesLike | None
    label_order: str | PathLike[str] | Sequence[str] | None
    order: str | None
    zero_count: ZeroPolicy
    exclude_class: Names
    target_prior: CountsLike | None
    fit_temperature: bool
    accept_order: bool
    accept_poor_accuracy: bool


@dataclass(eq=False, repr=False)
class Fit:
    """Choose the strength of a method on logits; an estimator in the manner of scikit-learn.

    The arguments are those of `sweep-gamma`, and so are the results, to the last bit. Without
    labels the strength is chosen by how often each class is predicted.

    Args:
        counts: training samples of each class; see `rescale_cli.counts`.
        head: the final layer that made the logits: a module, or (weight, bias). `logit-adjust`
            alone works without it.
        method: rescale, tau-norm or logit-adjust.
        normalize: scale all rows to equal length first; "both" tries both.
        bias: keep, scale or drop; "all" tries each.
        metric: the metric to maximize.
        choose: best, one-se or max-head-drop=F.
        holdout: the share of the samples to report on; 0 chooses and reports on all.
        bootstrap: resamples for the intervals.
        gamma_max: the largest strength to try.
        seed: of the split and the bootstrap.
        groups: training samples above which a class is among many, and below which among few.
        classes, label_order, order, zero_count, exclude_class, target_prior: as in `apply`.
        fit_temperature: also fit a temperature that calibrates the confidences.
        accept_order, accept_poor_accuracy: continue although the labels, or the accuracy, look
            wrong.
    """

    counts: CountsLike | None = None
    _: KW_ONLY
    head: torch.nn.Module | tuple[Any, Any] | None = None
    method: Method = "rescale"
    normalize: bool | Literal["both"] = False
    bias: Bias | Literal["all"] | None = None
    metric: Metric = "balanced-accuracy"
    choose: str = "best"
    holdout: float = 0.5
    bootstrap: int = 200
    gamma_max: float = 2.0
    seed: int = 0
    groups: tuple[int, int] = (100, 20)
    classes: ClassesLike | None = None
    label_order: str | PathLike[str] | Sequence[str] | None = None
    order: str | None = None
    zero_count: ZeroPolicy = "error"
    exclude_class: Names = None
    target_prior: CountsLike | None = None
    fit_temperature: bool = False
    accept_order: bool = False
    accept_poor_accuracy: bool = False
    fitted_: Fitted | None = field(default=None, init=False)
    """What `fit` found; None before."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments as they were given; `deep` has no effect."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init}

    @speaks_python
    def set_params(self, **params: Any) -> Self:
        """Replace arguments, for the next `fit`."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                what, names = f"Fit has no argument {name}", ", ".join(known)
                raise UsageError(what, fix=f"use one of {names}")
            setattr(self, name, value)
        return self

    @speaks_python
    def fit(self, logits: ArrayLike, labels: ArrayLike | None = None) -> Self:
        """Choose the strength on N samples, and judge it on those that did not choose it.

        Args:
            logits: (N, C), or (N,) of a binary head: an array, a tensor on any device, or lists.
            labels: (N,), rows of the head; None: choose by how often each class is predicted.

        Raises:
            RescaleError: as `sweep-gamma`.
        """
        found, notes = predictions_of(logits, labels), list[tuple[str, str]]()
        tell = _notes_to(notes)
        choice, tried, selection = self._choice(), self._tried(), self._selection(labels is None)
        c = found.num_classes
        title = f"logits ({len(found.logits)}, {c})"
        counts, aligned = choice.resolve(HeadRows(c, None, "", title))
        head, sha = self._head(found, tried)
        check_logits(
            found, tell, counts, accept_order=self.accept_order,
            accept_poor=self.accept_poor_accuracy,
        )  # fmt: skip
        found = replace(found, alignment={"by": "index", "classes": [], "evidence": (
            f"the labels of {found.source} are rows of the head")})  # fmt: skip
        warnings = [*(("class-order", text) for text in aligned.notes)]
        if self.head is not None:
            warnings += warnings_of(head, counts, named=aligned.named)
        warnings += sample_warnings(found, counts)
        joint = JointHead(("the head",), (head,))
        given = SweepInput(None, head, counts, found, tuple(warnings), joint, sha)
        swept = sweep_predictions(found, head, counts, tried, selection, fit=self.fit_temperature)
        check_strength(
            swept.best.interval, selection.limit, found, tell, accept=self.accept_poor_accuracy
        )
        best = swept.best.method
        chosen = replace(
            best.adjustment, strength=swept.best.choice.gamma, temperature=swept.temperature or 1.0
        )
        prior = self.target_prior
        counted = {
            "exclude_class": list(choice.exclude), "zero_count": self.zero_count,
            "target_prior": None if prior is None else str(prior), "order": self.order,
        }  # fmt: skip
        method = replace(best, adjustment=chosen)
        result = sweep_result(given, swept, counted)
        self.fitted_ = Fitted(result, method, choice, dict(swept.curve))
        warn([*notes, *warnings])
        return self

    @speaks_python
    def transform(self, logits: ArrayLike) -> Any:
        """The logits of the head at the chosen strength, float64; a tensor if given a tensor."""
        method = self.fitted.method
        given = predictions_of(logits, None)
        scores = method.scores(given.logits, method.adjustment.strength)
        scores = (scores[:, 1:] if given.binary else scores).reshape(np.shape(logits))
        device: Any = getattr(logits, "device", None)
        if not hasattr(logits, "detach"):
            return scores
        import torch

        return torch.from_numpy(scores).to(device)

    def fit_transform(self, logits: ArrayLike, labels: ArrayLike | None = None) -> Any:
        """`fit`, then `transform` of the same logits."""
        return self.fit(logits, labels).transform(logits)

    def __sklearn_tags__(self) -> Any:
        """What a scikit-learn Pipeline asks for."""
        from sklearn.utils import Tags, TargetTags, TransformerTags  # type: ignore[import-untyped]

        return Tags(None, TargetTags(required=False), transformer_tags=TransformerTags())

    @property
    def fitted(self) -> Fitted:
        """The result, with what `rescale_` and `apply` need."""
        if self.fitted_ is None:
            raise UsageError(
                "this Fit has no result yet", fix="call fit(logits, labels), or rescale_cli.sweep"
            )
        return self.fitted_

    @property
    def result(self) -> dict[str, Any]:
        """Everything that `sweep-gamma --json` prints, but the command that applies it."""
        return self.fitted.result

    @property
    def verdict(self) -> VerdictKind:
        """helps, no-gain, undecided or harms."""
        kind: VerdictKind = self.result["verdict"]
        return kind

    @property
    def gamma(self) -> float:
        """The chosen strength."""
        return float(self.result["chosen"]["gamma"])

    @property
    def value(self) -> float | None:
        """The metric at the chosen strength, on the samples to report on."""
        value: float | None = self.result["chosen"]["value"]
        return value

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of `value`: `chosen.interval` of `sweep-gamma --json`."""
        return _pair(self.result["chosen"]["interval"])

    @property
    def gamma_interval(self) -> tuple[float, float] | None:
        """95 % interval of `gamma`: `chosen.gamma_interval` of `sweep-gamma --json`."""
        return _pair(self.result["chosen"]["gamma_interval"])

    @property
    def metrics(self) -> dict[str, float | None]:
        """The metrics at the chosen strength, on the samples to report on; {} without labels."""
        return dict(list(self.result["at"].values())[-1]) if self.result["at"] else {}

    @property
    def explanation(self) -> str:
        """The verdict in sentences."""
        return str(self.result["explanation"]["text"])

    @property
    def curve(self) -> dict[str, Float64]:
        """`gamma` and the metrics of all samples at it, (G,) each."""
        return dict(self.fitted.curve)

    @speaks_python
    def to_frame(self) -> Any:
        """The curve as a pandas DataFrame; as a dict of arrays where pandas is not installed."""
        try:
            import pandas  # type: ignore[import-untyped]
        except ImportError:
            return self.curve
        return pandas.DataFrame(self.curve)

    @speaks_python
    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Write sweep.json, as `sweep-gamma -o` does, for `apply --gamma @FILE`.

        Raises:
            UsageError: the target prior is not a file, and so the file could not name it.
            OutputExists: the file exists, and `force` is false.
        """
        prior = self.target_prior
        if prior is not None and not isinstance(prior, str | PathLike):
            raise UsageError(
                "sweep.json can only name a target prior that is a file",
                fix="write the target prior to a file, and give its path: --target-prior FILE",
            )
        write_texts({Path(path): document("sweep-gamma", {**self.result, "apply": None})},
                    force=force)  # fmt: skip

    def __repr__(self) -> str:
        """The verdict, or the arguments before there is one."""
        if self.fitted_ is None:
            given = ((one.name, getattr(self, one.name), one.default) for one in fields(self))
            said = (f"{name}={type(x).__name__ if name in ('counts', 'head') else repr(x)}"
                    for name, x, usual in given if x is not usual and x != usual)  # fmt: skip
            return f"Fit({', '.join(said)})"
        return f"Fit: {self.verdict}, gamma {self.gamma:g}\n{self.explanation}"

    def _repr_html_(self) -> str:
        """A table of the metrics before and after, and the curve."""
        if self.fitted_ is None:
            return page(repr(self), {}, "")
        name = self.result["chosen"]["metric"]
        curve = self.fitted.curve
        svg = sketch(curve["gamma"], curve[name], self.gamma, name) if name in curve else ""
        return page(repr(self), self.result["at"], svg)

    def _choice(self) -> CountsChoice:
        if self.counts is None:
            raise UsageError("counts are missing", fix="give the training samples: --counts FILE")
        hints = row_hints(self.classes, self.label_order, self.order)
        return CountsChoice.read(
            self.counts, hints, zero=self.zero_count, exclude=self.exclude_class,
            target_prior=self.target_prior,
        )  # fmt: skip

    def _tried(self) -> list[Adjustment]:
        bias = BIAS_POLICIES if self.bias == "all" else (self.bias or "",)
        both = (False, True) if self.normalize == "both" else (bool(self.normalize),)
        return [Adjustment(self.method, 0.0, one, policy) for one in both for policy in bias]

    def _selection(self, unlabeled: bool) -> Selection:
        metric = metric_to_choose_by(self.metric)
        return Selection(metric, self.choose, self.holdout, self.bootstrap, unlabeled,
                         self.gamma_max, self.seed, self.groups)  # fmt: skip

    def _head(self, found: Predictions, tried: Sequence[Adjustment]) -> tuple[Head, str | None]:
        """The numbers of the head and its SHA-256."""
        if self.head is None:
            if self.method != "logit-adjust":
                raise UsageError(
                    f"{self.method} reads the rows and the bias of the head",
                    fix="give the final layer: head=model.fc, or head=(weight, bias); or "
                    "--method logit-adjust",
                )
            return Head.of_logits(found.num_classes, binary=found.binary), None
        if found.binary and tried[0].method != "logit-adjust":
            refuse_rescaling(tried[0].method, adjusting_line())
        pair = self.head if isinstance(self.head, tuple) else parts_of_module(self.head)
        head = head_of(*pair)
        if head.num_classes != found.num_classes:
            raise UsageError(
                f"the head has {head.num_classes} rows, but the logits have {found.num_classes} "
                "columns",
                fix="give the logits of this head, or the head of these logits: head=model.fc",
            )
        return head, sha256_of(*pair)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What `Fit.fit` found."""

    result: dict[str, Any]
    """The JSON of `sweep-gamma`."""
    method: SweptMethod
    """At the chosen strength."""
    choice: CountsChoice
    """The counts as they were given."""
    curve: Mapping[str, Float64]
    """`gamma` and metrics, (G,) each."""


@speaks_python
def sweep(
    logits: ArrayLike, labels: ArrayLike | None, counts: CountsLike, **options: Unpack[FitOptions]
) -> Fit:
    """Choose the strength on logits, and judge whether it helps: `Fit(counts, ...).fit(...)`.

    Args:
        logits: (N, C), or (N,) of a binary head: an array, a tensor on any device, or lists.
        labels: (N,), rows of the head; None: choose without labels.
        counts: training samples of each class; see `rescale_cli.counts`.
        options: those of `Fit`, such as `head=model.fc`.
    """
    return Fit(counts, **options).fit(logits, labels)


def _pair(ends: Sequence[float] | None) -> tuple[float, float] | None:
    return None if ends is None else (ends[0], ends[1])


def _notes_to(notes: list[tuple[str, str]]) -> Callable[[str], None]:
    return lambda text: notes.append(("note", text))
