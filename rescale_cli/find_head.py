"""From names, shapes and a config to the final linear layer(s), with reasons, or to candidates.

Every matrix of the file collects evidence in points and words: what its shape says
(`shape_graph`), what its name says (`head_names`), what config.json and the user say. One clear
winner is taken; several are listed; none is said. A wrong head is worse than a question.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rescale_cli.errors import AmbiguousHead, BadHead, BadInput, NoClassifier
from rescale_cli.head_names import opinion, words_of
from rescale_cli.shape_graph import Graph, Matrix, copies, in_model, matrices
from rescale_cli.tensor_info import HEAD_DTYPES, TensorInfo

#: A winner needs so many points, and so many more than the next that is not its partner.
ENOUGH, CLEAR = 4.0, 1.5


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


@dataclass(frozen=True, slots=True)
class Scored:
    """A matrix and the evidence about it."""

    matrix: Matrix
    points: float
    reasons: tuple[str, ...] = field(default=())
    end: bool = False
    """Whether nothing takes its rows."""
    excluded: bool = False
    """Whether its name tells it apart from a final layer."""

    @property
    def why(self) -> str:
        """The evidence in one line."""
        return "; ".join(self.reasons) or "a matrix"


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
        names: what the user calls the head: a tensor, its module, or a unique dotted end of one.

    Returns:
        all final heads: of distilled pairs and ensembles, and of every copy of the model.

    Raises:
        NoClassifier: nothing in the file is a classifier; the reason is in the error.
        AmbiguousHead: several could be, and only the user knows which.
        BadInput: no matrix has `num_classes` rows, or nothing has the name given.
    """
    model = in_model(tensors)
    if names:
        return _named(model, names)
    roots = copies(model)
    leading = [t for t in model if not t.name.startswith(roots[1:])] if roots else model
    graph = Graph(leading)
    scored = [_score(m, graph, config or {}, num_classes) for m in graph.matrices]
    if num_classes is not None:
        scored = _with_rows(scored, num_classes)
    scored.sort(key=lambda s: -s.points)
    winners = _decide(scored)
    others = [s for s in scored if s not in winners][:10]
    heads = [_keys(s) for s in winners]
    heads += _copied(heads, roots, model)
    listed = tuple(Candidate(s.matrix.weight.name, s.matrix.weight.shape, s.why) for s in others)
    return FoundHeads(tuple(heads), listed)


def _score(m: Matrix, graph: Graph, config: Mapping[str, object], k: int | None) -> Scored:
    evidence: list[tuple[float, str]] = []
    if graph.is_unique(m):
        evidence.append((4, f"nothing else in the file has {m.rows} as a size"))
    elif graph.is_end(m):
        evidence.append((2.5, f"no layer takes its {m.rows} rows as input"))
    else:
        evidence.append((-1, f"{m.rows} is also an inner width"))
    if m.bias:
        evidence.append((1, "a bias of that length"))
    said = opinion(m.path)
    evidence.append((said.points, said.reason))
    if not m.bias and said.points <= 0 and not graph.is_last(m):
        evidence.append((-1.5, ""))  # a table more likely than a layer
    if m.weight.name.rpartition(".")[2] not in ("weight", "weight_g", "original0"):
        evidence.append((-2, "a bare parameter"))
    if graph.is_last(m):
        evidence.append((1.5, "the last of its sequence"))
    times = graph.repeats(m)
    if times > 1:
        evidence.append((-1 if times == 2 else -3, f"one of {times} alike"))
    evidence.append((1 if len(m.path) <= 2 else -0.25 * (len(m.path) - 3), ""))
    if k is not None and m.rows == k:
        evidence.append((2, f"{k} rows, as told"))
    evidence += _from_config(m, config)
    # Looking around costs time, and thousands of experts are out of the question already.
    if sum(p for p, _ in evidence) > 0 and (fed := graph.feeds(m)):
        evidence.append((-4, f"its rows go on into {fed}"))
    points = sum(p for p, _ in evidence)
    reasons = tuple(w for p, w in evidence if w)
    return Scored(m, points, reasons, graph.is_end(m), said.excluded)


def _from_config(m: Matrix, config: Mapping[str, object]) -> list[tuple[float, str]]:
    evidence: list[tuple[float, str]] = []
    cfg = config.get("pretrained_cfg")
    named = cfg.get("classifier") if isinstance(cfg, Mapping) else None
    named = [named] if isinstance(named, str) else named
    if isinstance(named, (list, tuple)) and m.module in named:
        evidence.append((5, "config.json names it"))
    if m.rows == config.get("vocab_size"):
        evidence.append((-6, "as many rows as the vocabulary"))
    k = _classes_in(config)
    if k and m.rows == k:
        evidence.append((3, f"config.json has {k} classes"))
    elif k and m.rows == k + 1:
        evidence.append((1.5, f"config.json has {k} classes, and one for nothing"))
    return evidence


def _classes_in(config: Mapping[str, object]) -> int | None:
    for key in ("id2label", "label_names", "num_labels", "num_classes"):
        value = config.get(key)
        if isinstance(value, (dict, list)) and value:
            return len(value)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _with_rows(scored: list[Scored], k: int) -> list[Scored]:
    fitting = [s for s in scored if s.matrix.rows == k]
    if not fitting:
        best = sorted(scored, key=lambda s: -s.points)[:3]
        raise BadInput(
            f"no layer of this checkpoint has {k} rows, one for each class",
            saw=", ".join(f"{s.matrix.weight.name} {s.matrix.weight.shape}" for s in best),
            fix="pass the class count of the data this checkpoint was trained on, or --head NAME",
        )
    return fitting


def _decide(scored: Sequence[Scored]) -> list[Scored]:
    if not scored or scored[0].points < ENOUGH:
        saw = "; ".join(f"{s.matrix.weight.name}: {s.why}" for s in scored[:2])
        raise NoClassifier(
            "there is no final linear layer in this checkpoint",
            saw=saw,
            fix="pass a trained classifier, or name the layer: --head NAME",
        )
    best = scored[0]
    winners, rivals = [best], []
    for other in scored[1:]:
        twin = other.end == best.end and other.matrix.rows == best.matrix.rows
        if twin and _partners(best, other):
            winners.append(other)
        elif other.points > best.points - CLEAR:
            rivals.append(other)
        elif twin and best.end and other.points > ENOUGH - 1 and not other.excluded:
            rivals.append(other)
    if rivals:
        raise _ambiguous([*winners, *rivals])
    # Of a distilled pair the one that learned from the labels comes first.
    return sorted(winners, key=lambda s: any("dist" in step for step in s.matrix.path))


def _ambiguous(options: Sequence[Scored]) -> AmbiguousHead:
    shown = options[:10]
    return AmbiguousHead(
        f"{len(options)} tensors could be the head",
        saw=", ".join(f"{s.matrix.weight.name} {s.matrix.weight.shape}" for s in shown),
        fix=f"name one: --head {shown[0].matrix.weight.name}",
        candidates=tuple(
            {"weight": s.matrix.weight.name, "shape": list(s.matrix.weight.shape), "why": s.why}
            for s in shown
        ),
    )


def _partners(best: Scored, other: Scored) -> bool:
    """Whether two layers of as many rows are final heads of one network, by their names."""
    a, b = best.matrix, other.matrix
    if len(a.path) != len(b.path):
        return False
    if other.excluded or other.points < ENOUGH - 1:
        # An auxiliary head with layers of its own is a branch. A bare one reads what the head reads.
        bare = len(b.path) == 1 and a.weight.shape == b.weight.shape and "aux" in b.path[0]
        return bare and other.points > -ENOUGH
    differing = [(x, y) for x, y in zip(a.path, b.path, strict=True) if x != y]
    if len(differing) != 1:
        return False
    x, y = differing[0]
    if x.isdigit() and y.isdigit():
        # Numbered 1x1 convolutions look at a pyramid of maps: a detector's, anchors x classes.
        return a.layout != "conv1x1"
    return bool(set(words_of(x)) & set(words_of(y)))


def _keys(s: Scored) -> HeadKeys:
    m = s.matrix
    if m.weight.dtype not in HEAD_DTYPES:
        raise BadHead(
            f"the head is stored as {m.weight.dtype}, and its rows cannot be re-scaled in that",
            saw=f"{m.weight.name} {m.weight.shape}",
            fix="re-scale the checkpoint from before it was quantised",
        )
    return HeadKeys(
        m.weight.name,
        m.bias.name if m.bias else None,
        m.layout,
        m.rows,
        m.width,
        s.why,
        m.direction.name if m.direction else None,
    )


def _copied(
    heads: Sequence[HeadKeys], roots: tuple[str, ...], model: Sequence[TensorInfo]
) -> list[HeadKeys]:
    """The same heads in the other copies of the model."""
    there = {t.name for t in model}
    found = []
    for root in roots[1:]:
        for head in heads:
            name = root + head.weight.removeprefix(roots[0])
            if name == head.weight or name not in there:
                continue
            bias = head.bias and root + head.bias.removeprefix(roots[0])
            direction = head.direction and root + head.direction.removeprefix(roots[0])
            why = f"a copy of {head.weight}"
            found.append(replace(head, weight=name, bias=bias, direction=direction, why=why))
    return found


def _named(model: Sequence[TensorInfo], names: Sequence[str]) -> FoundHeads:
    found = matrices(model)
    heads = []
    for name in names:
        hits = [m for m in found if name in (m.weight.name, m.module)] or [
            m
            for m in found
            if m.weight.name.endswith("." + name) or m.module.endswith("." + name)
        ]
        if not hits:
            known = [m.module for m in found]
            close = difflib.get_close_matches(name, known, 3, 0.4) or known[-3:]
            raise BadInput(
                f"no linear layer is called {name}",
                saw=", ".join(close),
                fix=f"--head {close[0]}" if close else "pass a checkpoint with a linear layer",
            )
        if len(hits) > 1:
            raise _ambiguous([Scored(m, 0, (f"its name ends in {name}",)) for m in hits])
        heads.append(_keys(Scored(hits[0], 0, (f"named by --head {name}",))))
    return FoundHeads(tuple(heads), ())
