"""What speaks for and against a matrix being the head, in points and in words.

The points are a small table, read top to bottom in `score`: shapes weigh as much as names, and
config.json and the class count that the user told weigh as much as either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rescale_cli.errors import AmbiguousHead
from rescale_cli.finding.head_names import ZERO_SHOT, opinion, says_class, says_conv
from rescale_cli.finding.matrices import WEIGHTS, Matrix
from rescale_cli.finding.shape_graph import Graph


@dataclass(frozen=True, slots=True)
class Scored:
    """A matrix and the evidence about it."""

    matrix: Matrix
    points: float
    reasons: tuple[str, ...] = ()
    end: bool = False
    """Whether nothing takes its rows."""
    excluded: bool = False
    """Whether its name tells it apart from a final layer."""
    told: bool = False
    """Whether the user or config.json gives its number of rows, or its name."""

    @property
    def why(self) -> str:
        """The evidence in one line."""
        return "; ".join(self.reasons) or "a matrix"


def score(m: Matrix, graph: Graph, config: Mapping[str, object], k: int | None) -> Scored:
    """Collect the evidence about one matrix.

    Args:
        m: the matrix.
        graph: the widths of the model it is in.
        config: config.json, or nothing.
        k: the class count, if the user told it.

    Returns:
        about 8 points for an ordinary head, and less than 3 for an inner layer.
    """
    evidence: list[tuple[float, str]] = []
    if graph.is_unique(m):
        evidence.append((4, f"nothing else in the file has {m.rows} as a size"))
    elif graph.is_end(m):
        evidence.append((2.5, f"no layer takes its {m.rows} rows as input"))
    else:
        evidence.append((-1, f"{m.rows} is also an inner width"))
    if m.bias:
        evidence.append((1, "a bias of the same length"))
    said = opinion(m.path)
    leaf = m.weight.name.rpartition(".")[2]
    bare = leaf not in (*WEIGHTS, "weight_g", "original0") and not ZERO_SHOT.fullmatch(leaf)
    evidence.append((min(said.points, 0) if bare else said.points, said.reason))
    if bare:
        evidence.append((-2, "a bare parameter"))
    if not m.bias and said.points <= 0 and not graph.is_last(m):
        evidence.append((-1.5, ""))  # a table more likely than a layer
    times, sibling = graph.repeats(m), graph.is_sibling(m)
    if sibling:
        evidence.append((1.5, f"one of {times} final layers side by side"))
    elif graph.is_last(m):
        evidence.append((1.5, "the last of its sequence"))
    if times > 1 and not sibling:
        evidence.append((-1 if times == 2 else -3, f"one of {times} equal layers"))
    evidence.append((1 if len(m.path) <= 2 else -0.25 * (len(m.path) - 3), ""))
    # Widths are round numbers, and hardly a data set has 1280 classes.
    if m.rows % 32 == 0 and m.rows not in (k, _classes_in(config)):
        if says_conv(m.path):
            evidence.append((-5, f"a convolution to {m.rows}, a round number"))
        elif len(m.path) > 1 and not says_class(m.path):
            evidence.append((-2, f"{m.rows} is a round number"))
    if k is not None and m.rows == k:
        evidence.append((2, f"{k} rows, the number of classes given"))
    said_by_config = _from_config(m, config)
    told = m.rows == k or sum(p for p, _ in said_by_config) > 0
    evidence += said_by_config
    # Looking around costs time, and thousands of experts are out of the question already.
    fed = graph.feeds(m) if sum(p for p, _ in evidence) > 0 else None
    if fed:
        evidence.append((-4, f"its rows go on into {fed}"))
    points = sum(p for p, _ in evidence)
    reasons = tuple(w for p, w in evidence if w)
    return Scored(m, points, reasons, graph.is_end(m), said.excluded or bool(fed), told)


def _from_config(m: Matrix, config: Mapping[str, object]) -> list[tuple[float, str]]:
    evidence: list[tuple[float, str]] = []
    cfg = config.get("pretrained_cfg")
    named = cfg.get("classifier") if isinstance(cfg, Mapping) else None
    named = [named] if isinstance(named, str) else named
    if isinstance(named, (list, tuple)) and m.module in named:
        evidence.append((5, "config.json names it"))
    if m.rows == config.get("vocab_size"):
        evidence.append((-6, "as many rows as the vocabulary has words"))
    k = _classes_in(config)
    if k and m.rows == k:
        evidence.append((3, f"config.json has {k} classes"))
    elif k and m.rows == k + 1:
        evidence.append((1.5, f"config.json has {k} classes, and the head one more for background"))
    return evidence


def _classes_in(config: Mapping[str, object]) -> int | None:
    for key in ("id2label", "label_names", "num_labels", "num_classes"):
        value = config.get(key)
        if isinstance(value, (dict, list)) and value:
            return len(value)
        if isinstance(value, int) and value > 0:
            return value
    return None


def ambiguous(options: Sequence[Scored], what: str = "") -> AmbiguousHead:
    """The error that lists what could be the head, the likeliest first."""
    shown = options[:10]
    first = shown[0].matrix.weight.name
    fix = f"name one: --head {first}"
    if len(options) > 1 and len({s.matrix.rows for s in options}) == 1:
        every = " ".join(f"--head {s.matrix.weight.name}" for s in shown)
        fix = f"if they decide together: {every}; if one decides alone: --head {first} --only"
    return AmbiguousHead(
        what or f"{len(options)} tensors could be the head",
        saw=", ".join(f"{s.matrix.weight.name} {s.matrix.weight.shape}" for s in shown),
        fix=fix,
        candidates=tuple(
            {"weight": s.matrix.weight.name, "shape": list(s.matrix.weight.shape), "why": s.why}
            for s in shown
        ),
    )
