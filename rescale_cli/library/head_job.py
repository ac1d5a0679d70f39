"""One re-scaling of named tensors in memory: find the heads, then compute their new values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

import rescale_cli
from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.checkpoints.formats.sharded_folder import names_in_config
from rescale_cli.checkpoints.locate_head import HeadChoice, locate, one_size, refuse_no_effect
from rescale_cli.checkpoints.read_tensors import share_bytes
from rescale_cli.core.classes import HeadRows
from rescale_cli.core.counts import ClassCounts, ZeroPolicy, warnings_of
from rescale_cli.core.floats import ITEM_SIZES, Float64, to_bits, to_float64
from rescale_cli.core.head import NO_BIAS, adjusting_line, one_row, refuse_rescaling
from rescale_cli.core.methods import Adjustment
from rescale_cli.data.counts import CountsLike
from rescale_cli.data.labels import ClassesLike, Names, names_of, row_hints
from rescale_cli.errors import AlreadyRescaled, BadHead, NoClassifier, OtherModel, UsageError
from rescale_cli.evaluating.strength import Strength
from rescale_cli.files.contents import Contents, TensorInfo, row_major
from rescale_cli.finding.find_head import FoundHeads, HeadKeys
from rescale_cli.finding.refusals import JointHead
from rescale_cli.library.fit import Bias, Fit, Method
from rescale_cli.library.heads import bits_of, head_of, sha256_of
from rescale_cli.library.words import warn
from rescale_cli.patching.plan import CountsChoice, PlannedHead, about_choice

#: A strength: a number, a Fit, or the path of a sweep.json.
Gamma = float | Fit | str | PathLike[str]
#: SHA-256 of the heads that this process re-scaled, and how: a dict cannot carry a mark.
MADE: dict[str, str] = {}


class Options(TypedDict, total=False):
    """The options of `rescale_` and `rescale`, which mean what they mean for `apply`."""

    method: Method | None
    normalize: bool | None
    bias: Bias | None
    max_factor: float | None
    temperature: float | None
    heads: Names
    only: bool
    plain_head: bool
    num_classes: int | None
    classes: ClassesLike | None
    label_order: str | None
    order: str | None
    zero_count: ZeroPolicy | None
    exclude_class: Names
    target_prior: CountsLike | None
    compose: bool


class HeadJob:
    """One re-scaling of named tensors: find the heads, then compute their new values."""

    def __init__(
        self, title: str, tensors: Mapping[str, Any], owners: Mapping[str, str],
        config: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.title, self.tensors, self.owners, self.config = title, tensors, owners, config
        self.done: dict[str, str] = {}
        self.found = FoundHeads((), ())
        self.infos = {name: _info(name, tensor) for name, tensor in tensors.items()}

    def find(
        self, counts: CountsLike | Fit, gamma: Gamma | None, head: Any, options: Options
    ) -> tuple[HeadKeys, ...]:
        """The heads, none of which is refused."""
        self.strength, self.choice = asked(counts, gamma, options)
        raw, hints = self.choice.raw, self.choice.hints
        said = len(hints.names or raw.values)
        names = (*names_of(head), *names_of(options.get("heads")))
        # A program that names a layer knows its model; `apply` asks about other final layers.
        only = options.get("only", bool(names))
        chosen = HeadChoice(names, only, options.get("plain_head", False))
        contents = Contents(
            "memory", tuple(self.infos.values()), (), config=self.config,
            module_classes=self.owners,
        )  # fmt: skip
        found = locate(
            Checkpoint(Path(self.title), contents), chosen, options.get("num_classes"),
            said if said > 1 else None,
        )  # fmt: skip
        refuse_no_effect(found)
        self.found = found
        for keys in found.heads:
            if keys.layout == "transposed":
                raise NoClassifier(
                    f"{keys.weight} is stored as {keys.layout}, which is re-scaled in files only",
                    fix="save the model and re-scale the file with rescale_cli.apply",
                )
            if (how := MADE.get(self.sha256_of(keys))) is not None:
                self.done[keys.weight] = how
        self._refuse_shared()
        return found.heads

    def sha256_of(self, keys: HeadKeys) -> str:
        """The SHA-256 of a head."""
        return sha256_of(*(self.tensors[name] for name in place_of(keys)[1]))

    def _refuse_shared(self) -> None:
        """Refuse a head that cannot change alone."""
        edited = {name for keys in self.found.heads for name in place_of(keys)[1]}
        for name in edited:
            for other, info in self.infos.items():
                if other not in edited and share_bytes(self.infos[name], info):
                    raise BadHead(
                        f"{name} shares its values with {other}, which would change too",
                        saw=f"tied tensors in {self.title}: {name} and {other}",
                        fix="untie them first: give the head a .clone() of its weight",
                    )

    def new_values(self, options: Options) -> tuple[dict[str, Float64], str]:
        """The new values of each tensor that changes, and the re-scaling in words."""
        if self.done and not options.get("compose", False):
            raise AlreadyRescaled(
                f"{self.title} was re-scaled before; doing it again would over-correct it",
                saw=f"{next(iter(self.done))}: {next(iter(self.done.values()))}",
                fix="undo it first (rescale_cli.unscale_), or insist: --compose",
            )
        adjustment = self.strength.adjustment(
            options.get("method"), options.get("normalize"), options.get("bias"),
            options.get("max_factor"), options.get("temperature"),
        )  # fmt: skip
        first = one_size(self.found)
        own = next((n for n in names_in_config(self.config) if len(n) == first.classes), None)
        title = f"{first.weight} ({first.num_classes}, {first.feature_dim}) of {self.title}"
        resolved, aligned = self.choice.resolve(HeadRows(first.classes, own, "", title))
        unproven = self.strength.warnings()
        self._refuse_other(first, resolved)
        if first.binary and adjustment.needs_counts and adjustment.method != "logit-adjust":
            refuse_rescaling(adjustment.method, adjusting_line() if first.bias else NO_BIAS)
        new, planned = self._changed(adjustment, resolved)
        for name, values in new.items():
            _refuse_overflow(name, values, str(self.tensors[name].dtype))
        JointHead(tuple(p.keys.weight for p in planned if not p.keys.is_copy),
                  tuple(p.before for p in planned if not p.keys.is_copy)).refuse(
                      adjustment, written=True)  # fmt: skip
        norms = [] if self.done else warnings_of(planned[0].before, resolved, named=aligned.named)
        notes = [*about_choice(self.choice, own, planned[0]), *unproven, *norms]
        notes += [("class-order", text) for text in aligned.notes]
        notes += [("head", text) for text in self.found.warnings]
        warn(notes)
        return new, _how(adjustment)

    def _refuse_other(self, first: HeadKeys, resolved: ClassCounts) -> None:
        """Stop if a sweep chose the strength for another head or with other counts."""
        swept = self.strength.chosen_for
        if swept is None:
            return
        if swept.head_sha256 not in (None, self.sha256_of(first)):
            raise OtherModel(
                f"the strength in {swept.sweep} belongs to another head than {first.weight} "
                f"of {self.title}",
                saw="the SHA-256 of the two heads differ",
                fix="sweep the logits of this head; or insist with the number: "
                f"--gamma {swept.gamma!r}",
            )
        swept.refuse_other_counts(resolved)

    def _changed(
        self, adjustment: Adjustment, resolved: ClassCounts
    ) -> tuple[dict[str, Float64], list[PlannedHead]]:
        """The new values of the tensors, and what was planned for each head."""
        new, planned = dict[str, Float64](), []
        for keys in self.found.heads:
            weight = self.tensors[keys.weight]
            bias = None if keys.bias is None else self.tensors[keys.bias]
            before = head_of(weight, bias)
            update = adjustment.update(before, resolved)
            planned.append(PlannedHead(keys, before, update, ()))
            rows = one_row(update) if keys.binary else update
            values = to_float64(*bits_of(weight))
            new[keys.weight] = values * rows.scale.reshape(-1, *[1] * (values.ndim - 1))
            if keys.bias is not None:
                shift = to_float64(*bits_of(bias))
                new[keys.bias] = rows.on_bias(shift.reshape(-1)).reshape(shift.shape)
        return new, planned


def asked(
    counts: CountsLike | Fit, gamma: Gamma | None, options: Options
) -> tuple[Strength, CountsChoice]:
    """The strength and the counts; a Fit has both."""
    fit = gamma if isinstance(gamma, Fit) else counts if isinstance(counts, Fit) else None
    if fit is not None and (gamma is None or isinstance(gamma, Fit)):
        strength = Strength.of_result("the Fit", fit.result)
    elif isinstance(gamma, str | PathLike):
        strength = Strength.read(f"@{str(gamma).removeprefix('@')}")
    elif isinstance(gamma, int | float | np.floating) and not isinstance(gamma, bool):
        strength = Strength("", {"gamma": float(gamma)})
    else:
        raise UsageError(
            "gamma must be a number from 0 to 4, a Fit, or the path of a sweep.json",
            saw=f"{type(gamma).__name__}", fix="--gamma 0.2",
        )  # fmt: skip
    prior, zero = options.get("target_prior"), options.get("zero_count")
    if isinstance(counts, Fit):
        choice = counts.fitted.choice
        zero, exclude = zero or choice.zero, names_of(options.get("exclude_class"))
        return strength, replace(choice, zero=zero, exclude=exclude or choice.exclude)
    known = strength.counted(names_of(options.get("exclude_class")), None, zero)
    hints = row_hints(options.get("classes"), options.get("label_order"),
                      options.get("order") or known.order)  # fmt: skip
    return strength, CountsChoice.read(
        counts, hints, zero=known.zero_count, exclude=known.exclude_class,
        target_prior=known.target_prior if prior is None else prior,
    )  # fmt: skip


def place_of(keys: HeadKeys) -> tuple[str, dict[str, str]]:
    """The module of a head, and its tensors in the order of the hash: full name -> name in it."""
    names = [name for name in (keys.weight, keys.direction, keys.bias) if name is not None]
    common = [steps[0] for steps in zip(*(n.split(".")[:-1] for n in names), strict=False)
              if len({*steps}) == 1]  # fmt: skip
    if len(names) == 1:
        common = keys.weight.split(".parametrizations.")[0].split(".")
        common = common if "parametrizations" in keys.weight else common[:-1]
    place = ".".join(common)
    return place, {name: name.removeprefix(f"{place}.") if place else name for name in names}


def _info(name: str, tensor: Any) -> TensorInfo:
    """A tensor as if it lay in a file, at its address in memory."""
    if type(tensor).__name__.startswith("Uninitialized"):
        raise BadHead(
            f"{name} has no shape yet", saw=type(tensor).__name__,
            fix="run the model on one batch first, which initializes lazy layers",
        )  # fmt: skip
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape, item = tuple(tensor.shape), ITEM_SIZES.get(dtype, 1)
    try:
        if hasattr(tensor, "detach"):
            start, strides, place = tensor.data_ptr(), tuple(tensor.stride()), str(tensor.device)
        else:
            start = tensor.__array_interface__["data"][0]
            strides, place = tuple(s // tensor.itemsize for s in tensor.strides), "cpu"
    except (RuntimeError, ValueError, NotImplementedError, AttributeError):  # lazy or sharded
        start, strides, place = 0, row_major(shape), name
    span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1 if all(shape) else 0
    return TensorInfo(name, shape, strides, dtype, Path(place), start, start + span * item)


def _refuse_overflow(name: str, values: Float64, dtype: str) -> None:
    kind = dtype.removeprefix("torch.")
    if not np.isfinite(to_float64(to_bits(values, kind), kind)).all():
        raise BadHead(
            f"a row of {name} does not fit into {kind} after re-scaling",
            saw=f"the largest value is {np.abs(values).max():.6g}",
            fix="use a smaller --gamma, or --max-factor, or a model in a wider dtype",
        )


def _how(adjustment: Adjustment) -> str:
    return f"{adjustment.method}, strength {adjustment.strength:g}, {rescale_cli.__version__}"
