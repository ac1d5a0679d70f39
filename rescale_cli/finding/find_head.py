"""Find the final linear layers of a classifier, with reasons; if it is unclear, ask the user.

Each matrix of the file gets points for its shape (`shapes`), its name (`names`), config.json and
what the user says. Return the head if one candidate clearly wins; otherwise raise an error that
lists the candidates. A wrong head is worse than a question.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rescale_cli.errors import BadInput
from rescale_cli.files.contents import TensorInfo
from rescale_cli.finding.evidence import Scored, ambiguous, score, sign_of_no_effect
from rescale_cli.finding.names import opinion, words_of
from rescale_cli.finding.refusals import (
    is_vocabulary,
    refuse_by_config,
    refuse_hidden,
    refuse_parametrized,
    refuse_unfit,
    refuse_without_head,
)
from rescale_cli.finding.shapes import Graph, Matrix, copies, in_model, upright


def named_heads(
    everywhere: Sequence[Matrix], leading: Sequence[Matrix], names: Sequence[str], k: int | None
) -> list[Scored]:
    """Look up the names that the user gave.

    Args:
        everywhere: the matrices of all copies of the model, which are searched for whole names.
        leading: those of the leading copy, which are searched for the end of a name.
        names: the values of --head.
        k: the number of classes, if the user gives it.

    Raises:
        BadInput: no layer has that name, or its number of rows is not k.
        AmbiguousHead: the name is the end of several names.
    """
    chosen = []
    for name in names:
        exact = [m for m in everywhere if name in (m.weight.name, m.module)]
        end = "." + name
        hits = exact or [
            m for m in leading if m.weight.name.endswith(end) or m.module.endswith(end)
        ]
        if not hits:
            known = [m.module or m.weight.name for m in everywhere]
            steps = name.removesuffix(".weight").split(".")
            ends = {".".join(module.split(".")[-len(steps) :]): module for module in known}
            meant = difflib.get_close_matches(".".join(steps), ends, 3, 0.5)
            close = [ends[end] for end in meant] or known[-3:]
            raise BadInput(
                f"no linear layer is named {name}",
                saw=f"layers with similar names: {', '.join(close)}"
                if close
                else "the checkpoint contains no matrix",
                fix=f"--head {close[0]}" if close else "pass a checkpoint with a linear layer",
            )
        if len(hits) > 1:
            raise ambiguous([Scored(m, 0, (f"its name ends in {name}",)) for m in hits])
        m = hits[0]
        if k is not None and m.rows not in (k, 1) and m.width == k and not m.bias:
            layout = "linear" if m.layout == "transposed" else "transposed"
            m = replace(m, layout=layout, rows=m.width, width=m.rows)
        if k is not None and m.rows != k and (m.rows, k) != (1, 2):
            raise BadInput(
                f"{name} has {m.rows} rows, but there are {k} classes",
                saw=f"{m.weight.name} {m.weight.shape}",
                fix="pass the counts of the data this checkpoint was trained on, or another --head",
            )
        chosen.append(Scored(m, 0, (f"named by --head {name}",)))
    return chosen


#: The points that a head needs, and its lead over the next candidate that is not its partner.
ENOUGH, CLEAR = 4.0, 1.5
#: No network has more final heads than this, but a hostile file may.
_MOST = 100


@dataclass(frozen=True, slots=True)
class HeadKeys:
    """The names of a head's parameters, and how they are stored."""

    weight: str
    bias: str | None
    layout: str
    """linear (C, D), conv1x1 (C, D, 1, ...), transposed (D, C), weight_norm (the g tensor)."""
    num_classes: int
    feature_dim: int
    why: str
    direction: str | None = None
    """The v tensor of a weight norm."""
    no_effect: str | None = None
    """The sign that scaling the rows changes no logit; see `sign_of_no_effect`."""
    is_copy: bool = False
    """Whether it belongs to another copy of the model, such as an average of its weights."""

    @property
    def binary(self) -> bool:
        """Whether the head has one row, which decides between two classes through a sigmoid."""
        return self.num_classes == 1

    @property
    def classes(self) -> int:
        """The number of classes: 2 for a single row, otherwise C."""
        return 2 if self.binary else self.num_classes


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that was considered but not chosen."""

    weight: str
    shape: tuple[int, ...]
    why: str


@dataclass(frozen=True, slots=True)
class FoundHeads:
    """The heads of a checkpoint, the main one first."""

    heads: tuple[HeadKeys, ...]
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...] = ()

    @property
    def together(self) -> tuple[HeadKeys, ...]:
        """The heads of one model, without those of its copies."""
        return tuple(head for head in self.heads if not head.is_copy) or self.heads[:1]


def find_heads(
    tensors: Sequence[TensorInfo],
    *,
    config: Mapping[str, object] | None = None,
    num_classes: int | None = None,
    names: Sequence[str] = (),
    only: bool = False,
    owners: Mapping[str, str] | None = None,
) -> FoundHeads:
    """Find the final linear layer(s) of a classifier.

    Args:
        tensors: all tensors of the checkpoint.
        config: config.json beside the weights.
        num_classes: the number of classes, if the user gives it; only matrices with that many rows
            are candidates. For two classes, the head may also be a single row.
        names: the head by name: a tensor, its module, or a unique dotted end of one.
        only: let the names leave out final layers with as many rows as the named ones.
        owners: the full class name of each module by the module's name, as far as the file says.

    Returns:
        all final heads: both of a distilled pair, all of an ensemble, and those of every copy of
        the model.

    Raises:
        NoClassifier: the file contains no classifier; the error says why.
        AmbiguousHead: several layers could be the head, or the names leave some of them out.
        BadInput: no matrix has `num_classes` rows, or no layer has the given name.
    """
    model = in_model(tensors)
    roots = copies(model)
    leading = [t for t in model if not t.name.startswith(roots[1:])] if roots else model
    if names:
        refuse_parametrized(names, model)
        winners = named_heads(upright(model), upright(leading), names, num_classes)
        others: list[Scored] = []
        warnings = _warn_of_left_out(winners, leading, config or {}, only=only)
    else:
        # Checked even if the number of classes is given: a regression may have as many outputs.
        warnings = refuse_by_config(config or {})
        scored = _evidence(leading, config or {}, num_classes)
        winners, others = _decide(scored, leading, num_classes)
        if winners[0].matrix.rows == 1:
            warnings = ()  # a multi-label model with one row is a binary classifier
    for winner in winners:
        refuse_unfit(winner.matrix, leading)
    heads = [_keys(s, model, owners or {}) for s in winners]
    inside = {t.name for t in leading}
    if any(head.weight in inside for head in heads):
        heads = [replace(head, is_copy=head.weight not in inside) for head in heads]
    heads += _copied(heads, roots, model)
    listed = tuple(Candidate(s.matrix.weight.name, s.matrix.weight.shape, s.why) for s in others)
    if len(heads) > len(winners):
        copies_held = f"the file contains {len(heads) // len(winners)} copies of the model"
        warnings = (*warnings, copies_held)
    return FoundHeads(tuple(heads), listed, warnings)


def _evidence(
    tensors: Sequence[TensorInfo], config: Mapping[str, object], k: int | None
) -> list[Scored]:
    scored = _scored(Graph(tensors), config, k)
    straight = [s for s in scored if s.matrix.layout != "transposed" or s.matrix.bias]
    if straight and len(straight) < len(scored) and straight[0].points >= ENOUGH:
        # If an upright matrix is the head, a matrix that could be (D, C) is the first layer.
        return _scored(Graph(tensors, turn=False), config, k)
    return scored


def _scored(graph: Graph, config: Mapping[str, object], k: int | None) -> list[Scored]:
    turned = [m for m in graph.turned(k) if opinion(m.path).points > 0 or m.rows == k]
    scored = [score(m, graph, config, k) for m in [*graph.matrices, *turned]]
    return sorted(scored, key=lambda s: -s.points)


def _warn_of_left_out(
    named: Sequence[Scored],
    tensors: Sequence[TensorInfo],
    config: Mapping[str, object],
    *,
    only: bool,
) -> tuple[str, ...]:
    """Warn of final layers that have as many rows as the named ones; refuse them without `only`.

    Raises:
        AmbiguousHead: the names leave out final layers, and `only` is not set.
    """
    rows = named[0].matrix.rows
    scored = [s for s in _evidence(tensors, config, rows) if s.end]
    weights = {s.matrix.weight.name for s in named}
    likely = [s for s in scored if s.points > ENOUGH - 1 and not s.excluded]
    mine = [s for s in likely if s.matrix.weight.name in weights]
    left_out = [
        s
        for s in scored
        if s.matrix.weight.name not in weights
        and any(s.matrix.rows == m.matrix.rows and (s in likely or _partners(m, s)) for m in mine)
    ]
    if not left_out:
        return ()
    left_out.sort(key=_place)
    if not only:
        what = f"--head leaves out other final layers with {rows} rows"
        raise ambiguous([*named, *left_out], what)
    names = ", ".join(s.matrix.weight.name for s in left_out)
    return (
        f"--only leaves {names} unchanged; if the model adds its logits, they still affect the "
        "predictions",
    )


def _with_rows(scored: list[Scored], k: int) -> list[Scored]:
    """Keep the layers with k rows; raise BadInput if the likely head has another number."""
    fitting = [s for s in scored if s.matrix.rows == k]
    if fitting and (fitting[0].points >= ENOUGH or scored[0].points < ENOUGH):
        return fitting
    if k == 2 and scored[0].matrix.rows == 1 and scored[0].points >= ENOUGH:
        return [s for s in scored if s.matrix.rows == 1]  # one logit for two classes
    best = [s for s in scored if s.points >= ENOUGH][:3] or scored[:3]
    raise BadInput(
        f"no final layer of this network has {k} rows, one for each class",
        saw=", ".join(f"{s.matrix.weight.name} {s.matrix.weight.shape}" for s in best),
        fix="pass the counts of the data this checkpoint was trained on, or --head NAME",
    )


def _decide(
    scored: list[Scored], tensors: Sequence[TensorInfo], k: int | None
) -> tuple[list[Scored], list[Scored]]:
    """Return the heads and up to ten other candidates, or raise AmbiguousHead."""
    fitting = scored if k is None or not scored else _with_rows(scored, k)
    if not fitting or fitting[0].points < ENOUGH:
        saw = "; ".join(f"{s.matrix.weight.name}: {s.why}" for s in fitting[:2])
        raise refuse_without_head(tensors, saw)
    best = fitting[0]
    if best.matrix.rows != k:
        refuse_hidden(best.matrix, tensors)
        tables = [s for s in scored if is_vocabulary(s.matrix, best.matrix)]
        if tables and not best.confirmed:
            raise ambiguous([best, *tables])
    rest = [s for s in fitting[1:] if s.points > ENOUGH - 1 or _auxiliary(s)]
    if len(rest) > _MOST:
        raise ambiguous([best, *rest])
    twins = [s for s in rest if s.end == best.end and s.matrix.rows == best.matrix.rows]
    winners = [best]
    for winner in winners:  # grows in the loop: the partner of a partner is a partner too
        partners = [s for s in twins if _partners(winner, s)]
        winners += partners
        twins = [s for s in twins if s not in partners]
    rivals = [
        s
        for s in rest
        if s not in winners
        and (
            s.points > best.points - CLEAR
            or (s in twins and best.end and s.points > ENOUGH - 1 and not s.excluded)
        )
    ]
    if rivals:
        raise ambiguous([*winners, *rivals])
    others = [s for s in scored[: 10 + len(winners)] if s not in winners][:10]
    # In a distilled pair, the head that was trained on the labels comes first.
    winners.sort(key=_place)
    return winners, others


def _place(s: Scored) -> tuple[bool, list[tuple[int, str]]]:
    """Sort key for the heads of one model: distilled and auxiliary heads last, then by name."""
    path = s.matrix.path
    return any("dist" in step or "aux" in step for step in path), [_numbered(step) for step in path]


def _numbered(step: str) -> tuple[int, str]:
    """Sort key that puts 2 before 10."""
    return (int(step[-18:]), "") if step.isascii() and step.isdigit() else (0, step)


def _auxiliary(s: Scored) -> bool:
    """Whether it is a single layer at the top level that is named as auxiliary."""
    return len(s.matrix.path) == 1 and "aux" in s.matrix.path[0] and s.points > -ENOUGH


def _partners(best: Scored, other: Scored) -> bool:
    """Whether two layers with as many rows are both final heads, judging by their names."""
    a, b = best.matrix, other.matrix
    if len(a.path) != len(b.path):
        return False
    if other.excluded or other.points < ENOUGH - 1:
        # An auxiliary head with more layers is a branch; a single layer reads the same features.
        return _auxiliary(other) and a.weight.shape == b.weight.shape
    differing = [(x, y) for x, y in zip(a.path, b.path, strict=True) if x != y]
    if len(differing) != 1:
        return False
    x, y = differing[0]
    if x.isdigit() and y.isdigit():
        # Numbered 1x1 convolutions are a detector's: one for each level of a feature pyramid.
        return a.layout != "conv1x1"
    # The model combines head and head_dist, and the heads on the class token and the distillation
    # token; color_head and shape_head are two tasks.
    one, two = (set(words_of(step)) - {"cls", "distillation"} for step in (x, y))
    return bool(one and two) and (one <= two or two <= one)


def _keys(s: Scored, tensors: Sequence[TensorInfo], owners: Mapping[str, str]) -> HeadKeys:
    m = s.matrix
    return HeadKeys(
        weight=m.weight.name,
        bias=m.bias.name if m.bias else None,
        layout=m.layout,
        num_classes=m.rows,
        feature_dim=m.width,
        why=s.why,
        direction=m.direction.name if m.direction else None,
        no_effect=sign_of_no_effect(m, tensors, owners),
    )


def _copied(
    heads: Sequence[HeadKeys], roots: tuple[str, ...], model: Sequence[TensorInfo]
) -> list[HeadKeys]:
    """Return the same heads in the other copies of the model."""
    shapes: dict[str | None, tuple[int, ...]] = {t.name: t.shape for t in model}
    found = []
    for root in roots[1:]:
        for head in heads:
            own = (head.weight, head.bias, head.direction)
            twins = [name and root + name.removeprefix(roots[0]) for name in own]
            # A teacher may have other classes or no bias; then its head is not a copy.
            alike = all(shapes.get(a) == shapes.get(b) for a, b in zip(own, twins, strict=True))
            weight, bias, direction = twins
            if weight and weight != head.weight and alike:
                why = f"a copy of {head.weight}"
                found.append(
                    replace(
                        head, weight=weight, bias=bias, direction=direction, why=why, is_copy=True
                    )
                )
    return found
