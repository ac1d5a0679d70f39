"""From names, shapes and a config to the final linear layer(s), with reasons, or to candidates.

Every matrix of the file collects evidence in points and words: what its shape says
(`shape_graph`), what its name says (`head_names`), what config.json and the user say. One clear
winner is taken; several are listed; none is said. A wrong head is worse than a question.
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
    """Look the names up.

    Args:
        everywhere: the matrices of all copies of the model; a whole name may be in any of them.
        leading: those of the leading copy; the end of a name is looked for here only.
        names: what the user typed after --head.
        k: the class count, if the user told it.

    Raises:
        BadInput: nothing has that name, or it has another number of rows.
        AmbiguousHead: several names end so.
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
                saw=", ".join(close) or "the checkpoint has no matrix",
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


#: A winner needs so many points, and so many more than the next that is not its partner.
ENOUGH, CLEAR = 4.0, 1.5
#: No network has more final heads than this; a file made to keep us busy may.
_MOST = 100


@dataclass(frozen=True, slots=True)
class HeadKeys:
    """Where a head's parameters are, and how they are stored."""

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
    """The sign that scaling the rows changes no logit: see `no_effect`."""
    is_copy: bool = False
    """Whether it is the head of another copy of the model, an average for example."""

    @property
    def binary(self) -> bool:
        """Whether one row, with a sigmoid, stands for two classes."""
        return self.num_classes == 1

    @property
    def classes(self) -> int:
        """The classes that it decides between: two for a single row, else C."""
        return 2 if self.binary else self.num_classes


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tensor that was considered and not taken."""

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
        """The heads of one model: without those of its copies."""
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
        num_classes: the class count, if the user knows it; only matrices with so many rows remain.
            Of two classes a single row may be the head, too.
        names: what the user calls the head: a tensor, its module, or a unique dotted end of one.
        only: let the names leave out final layers that have as many rows as the named ones.
        owners: the full class name of a module by the module's name, where the file has it.

    Returns:
        all final heads: of distilled pairs and ensembles, and of every copy of the model.

    Raises:
        NoClassifier: nothing in the file is a classifier; the reason is in the error.
        AmbiguousHead: several could be, and only the user knows which; or the names leave some out.
        BadInput: no matrix has `num_classes` rows, or nothing has the name given.
    """
    model = in_model(tensors)
    roots = copies(model)
    leading = [t for t in model if not t.name.startswith(roots[1:])] if roots else model
    if names:
        refuse_parametrized(names, model)
        winners = named_heads(upright(model), upright(leading), names, num_classes)
        others: list[Scored] = []
        warnings: tuple[str, ...] = ()
        left_out = _left_out(winners, leading, config or {})
        if left_out and not only:
            raise ambiguous(
                [*winners, *left_out],
                f"--head leaves out final layers that have {winners[0].matrix.rows} rows as well",
            )
        if left_out:
            names_left = ", ".join(s.matrix.weight.name for s in left_out)
            warnings = (
                f"--only leaves {names_left} as it is; if the model adds its logits, "
                "the decisions are not those of the named head alone",
            )
    else:
        # However many classes are told: a regression may well have as many outputs.
        warnings = refuse_by_config(config or {})
        winners, others = _decide(
            _evidence(leading, config or {}, num_classes), leading, num_classes
        )
    for winner in winners:
        refuse_unfit(winner.matrix, leading)
    if winners[0].matrix.rows == 1:
        warnings = ()  # of one row: many labels are no more than two classes
    heads = [_keys(s, model, owners or {}) for s in winners]
    inside = {t.name for t in leading}
    if any(head.weight in inside for head in heads):
        heads = [replace(head, is_copy=head.weight not in inside) for head in heads]
    heads += _copied(heads, roots, model)
    listed = tuple(Candidate(s.matrix.weight.name, s.matrix.weight.shape, s.why) for s in others)
    return FoundHeads(tuple(heads), listed, (*warnings, *_warnings(winners, heads)))


def _evidence(
    tensors: Sequence[TensorInfo], config: Mapping[str, object], k: int | None
) -> list[Scored]:
    scored = _scored(Graph(tensors), config, k)
    straight = [s for s in scored if s.matrix.layout != "transposed" or s.matrix.bias]
    if straight and len(straight) < len(scored) and straight[0].points >= ENOUGH:
        # Beside a head that stands upright, a matrix that reads as (D, C) is the first layer.
        return _scored(Graph(tensors, turn=False), config, k)
    return scored


def _scored(graph: Graph, config: Mapping[str, object], k: int | None) -> list[Scored]:
    turned = [m for m in graph.turned(k) if opinion(m.path).points > 0 or m.rows == k]
    scored = [score(m, graph, config, k) for m in [*graph.matrices, *turned]]
    return sorted(scored, key=lambda s: -s.points)


def _left_out(
    named: Sequence[Scored], tensors: Sequence[TensorInfo], config: Mapping[str, object]
) -> list[Scored]:
    """The final layers with as many rows as the named ones, if those are final layers as well."""
    scored = [s for s in _evidence(tensors, config, named[0].matrix.rows) if s.end]
    weights = {s.matrix.weight.name for s in named}
    likely = [s for s in scored if s.points > ENOUGH - 1 and not s.excluded]
    mine = [s for s in likely if s.matrix.weight.name in weights]
    left = [
        s
        for s in scored
        if s.matrix.weight.name not in weights
        and any(s.matrix.rows == m.matrix.rows and (s in likely or _partners(m, s)) for m in mine)
    ]
    return sorted(left, key=_place)


def _with_rows(scored: list[Scored], k: int) -> list[Scored]:
    """Keep the layers with k rows; refuse when the likely head has another number."""
    fitting = [s for s in scored if s.matrix.rows == k]
    if fitting and (fitting[0].points >= ENOUGH or scored[0].points < ENOUGH):
        return fitting
    if k == 2 and scored[0].matrix.rows == 1 and scored[0].points >= ENOUGH:
        return [s for s in scored if s.matrix.rows == 1]  # one logit for two classes
    best = [s for s in scored if s.points >= ENOUGH][:3] or scored[:3]
    raise BadInput(
        f"no final layer of this network has {k} rows, one for each class",
        saw=", ".join(f"{s.matrix.weight.name} {s.matrix.weight.shape}" for s in best),
        fix="pass the class count of the data this checkpoint was trained on, or --head NAME",
    )


def _decide(
    scored: list[Scored], tensors: Sequence[TensorInfo], k: int | None
) -> tuple[list[Scored], list[Scored]]:
    """The winners, and up to ten others; AmbiguousHead if the others are as likely."""
    fitting = scored if k is None or not scored else _with_rows(scored, k)
    if not fitting or fitting[0].points < ENOUGH:
        saw = "; ".join(f"{s.matrix.weight.name}: {s.why}" for s in fitting[:2])
        raise refuse_without_head(tensors, saw)
    best = fitting[0]
    if best.matrix.rows != k:
        refuse_hidden(best.matrix, tensors)
        tables = [s for s in scored if is_vocabulary(s.matrix, best.matrix)]
        if tables and not best.told:
            raise ambiguous([best, *tables])
    rest = [s for s in fitting[1:] if s.points > ENOUGH - 1 or _auxiliary(s)]
    if len(rest) > _MOST:
        raise ambiguous([best, *rest])
    twins = [s for s in rest if s.end == best.end and s.matrix.rows == best.matrix.rows]
    winners = [best]
    for winner in winners:  # grows while it is walked: a partner of a partner is one as well
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
    # Of a distilled pair the one that learned from the labels comes first.
    winners.sort(key=_place)
    return winners, others


def _place(s: Scored) -> tuple[bool, list[tuple[int, str]]]:
    """A key that sorts the heads of one model: those beside the labelled one last, then by name."""
    path = s.matrix.path
    return any("dist" in step or "aux" in step for step in path), [_numbered(step) for step in path]


def _numbered(step: str) -> tuple[int, str]:
    """Numbers in the order of their size."""
    return (int(step[-18:]), "") if step.isascii() and step.isdigit() else (0, step)


def _auxiliary(s: Scored) -> bool:
    """Whether it is one bare layer, called auxiliary, at the top of the network."""
    return len(s.matrix.path) == 1 and "aux" in s.matrix.path[0] and s.points > -ENOUGH


def _partners(best: Scored, other: Scored) -> bool:
    """Whether two layers of as many rows are final heads of one network, by their names."""
    a, b = best.matrix, other.matrix
    if len(a.path) != len(b.path):
        return False
    if other.excluded or other.points < ENOUGH - 1:
        # An auxiliary head with layers of its own is a branch; a bare one reads what the head does.
        return _auxiliary(other) and a.weight.shape == b.weight.shape
    differing = [(x, y) for x, y in zip(a.path, b.path, strict=True) if x != y]
    if len(differing) != 1:
        return False
    x, y = differing[0]
    if x.isdigit() and y.isdigit():
        # Numbered 1x1 convolutions look at a pyramid of maps: a detector's, anchors x classes.
        return a.layout != "conv1x1"
    # head and head_dist decide together, and so do the heads on the class token and on that of
    # distillation; color_head and shape_head are two tasks.
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


def _warnings(winners: Sequence[Scored], heads: Sequence[HeadKeys]) -> list[str]:
    found = []
    if len(heads) > len(winners):
        found.append(f"the file holds {len(heads) // len(winners)} copies of the model")
    return found


def _copied(
    heads: Sequence[HeadKeys], roots: tuple[str, ...], model: Sequence[TensorInfo]
) -> list[HeadKeys]:
    """The same heads in the other copies of the model."""
    shapes: dict[str | None, tuple[int, ...]] = {t.name: t.shape for t in model}
    found = []
    for root in roots[1:]:
        for head in heads:
            own = (head.weight, head.bias, head.direction)
            twins = [name and root + name.removeprefix(roots[0]) for name in own]
            # A teacher may have other classes, or no bias: then its head is one of its own.
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
