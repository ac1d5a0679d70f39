"""From names, shapes and a config to the final linear layer(s), with reasons, or to candidates.

Every matrix of the file collects evidence in points and words: what its shape says
(`shape_graph`), what its name says (`head_names`), what config.json and the user say. One clear
winner is taken; several are listed; none is said. A wrong head is worse than a question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.errors import BadInput
from rescale_cli.finding.head_checks import (
    is_vocabulary,
    refuse_by_config,
    refuse_hidden,
    refuse_parametrized,
    refuse_unfit,
    refuse_without_head,
)
from rescale_cli.finding.head_evidence import Scored, ambiguous, score
from rescale_cli.finding.head_names import opinion, words_of
from rescale_cli.finding.matrices import matrices
from rescale_cli.finding.model_copies import copies, in_model
from rescale_cli.finding.named_head import named_heads
from rescale_cli.finding.shape_graph import Graph

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


def find_heads(
    tensors: Sequence[TensorInfo],
    *,
    config: Mapping[str, object] | None = None,
    num_classes: int | None = None,
    names: Sequence[str] = (),
) -> FoundHeads:
    """Find the final linear layer(s) of a classifier.

    Args:
        tensors: all tensors of the checkpoint.
        config: config.json beside the weights.
        num_classes: the class count, if the user knows it; only matrices with so many rows remain.
            Of two classes a single row may be the head, too.
        names: what the user calls the head: a tensor, its module, or a unique dotted end of one.

    Returns:
        all final heads: of distilled pairs and ensembles, and of every copy of the model.

    Raises:
        NoClassifier: nothing in the file is a classifier; the reason is in the error.
        AmbiguousHead: several could be, and only the user knows which.
        BadInput: no matrix has `num_classes` rows, or nothing has the name given.
    """
    model = in_model(tensors)
    roots = copies(model)
    leading = [t for t in model if not t.name.startswith(roots[1:])] if roots else model
    if names:
        refuse_parametrized(names, model)
        winners = named_heads(matrices(model), matrices(leading), names, num_classes)
        others: list[Scored] = []
        warnings: tuple[str, ...] = ()
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
    heads = [_keys(s) for s in winners]
    heads += _copied(heads, roots, model)
    listed = tuple(Candidate(s.matrix.weight.name, s.matrix.weight.shape, s.why) for s in others)
    return FoundHeads(tuple(heads), listed, (*warnings, *_warnings(winners, heads)))


def _evidence(
    tensors: Sequence[TensorInfo], config: Mapping[str, object], k: int | None
) -> list[Scored]:
    graph = Graph(tensors)
    turned = [m for m in graph.turned() if opinion(m.path).points > 0 or m.rows == k]
    scored = [score(m, graph, config, k) for m in [*graph.matrices, *turned]]
    return sorted(scored, key=lambda s: -s.points)


def _with_rows(scored: list[Scored], k: int) -> list[Scored]:
    """Keep the layers with k rows; refuse when the likely head has another number."""
    fitting = [s for s in scored if s.matrix.rows == k]
    if fitting and (fitting[0].points >= ENOUGH or scored[0].points < ENOUGH):
        return fitting
    if k == 2 and scored[0].matrix.rows == 1 and scored[0].points >= ENOUGH:
        return [s for s in scored if s.matrix.rows == 1]  # one logit for two classes
    best = [s for s in scored if s.points >= ENOUGH][:3] or scored[:3]
    raise BadInput(
        f"no layer at the end of this network has {k} rows, one for each class",
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
    winners.sort(key=lambda s: any("dist" in step or "aux" in step for step in s.matrix.path))
    return winners, others


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


def _keys(s: Scored) -> HeadKeys:
    m = s.matrix
    return HeadKeys(
        weight=m.weight.name,
        bias=m.bias.name if m.bias else None,
        layout=m.layout,
        num_classes=m.rows,
        feature_dim=m.width,
        why=s.why,
        direction=m.direction.name if m.direction else None,
    )


def _warnings(winners: Sequence[Scored], heads: Sequence[HeadKeys]) -> list[str]:
    found = []
    if any(s.matrix.layout == "transposed" and not s.matrix.bias for s in winners):
        found.append(
            "stored as (D, C) without a bias, as heads are that bring their rows to length 1; on "
            "such a head re-scaling does nothing"
        )
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
                found.append(replace(head, weight=weight, bias=bias, direction=direction, why=why))
    return found
