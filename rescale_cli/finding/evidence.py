"""What speaks for and against a matrix being the head, and signs that scaling has no effect.

The points are a small table, read top to bottom in `score`: shapes weigh as much as names, and
config.json and the class count that the user told weigh as much as either.

A cosine classifier computes z_i = s w_i f / (|w_i| |f|), so the length of w_i is never seen: LDAM's
NormedLinear, ArcFace and its relatives, LUCIR's CosineLinear. A checkpoint does not hold the
forward pass, but most of these heads show themselves by a name, by a class, by a scale beside the
weight, or by a weight that is stored as (D, C) without a bias. No sign is a proof.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rescale_cli.errors import AmbiguousHead
from rescale_cli.files.contents import TensorInfo
from rescale_cli.finding.names import ZERO_SHOT, opinion, says_class, says_conv, words_of
from rescale_cli.finding.shapes import WEIGHTS, Graph, Matrix, is_integer


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


#: Scalars that stretch cosines to logits, by the names that such heads give them.
_SCALES = frozenset(
    {
        "sigma", "scale", "scaling", "scale_factor", "logit_scale", "logits_scale", "temperature",
        "temp", "tau", "s", "m", "eta", "alpha", "kappa", "scale_cls", "cls_scale", "log_scale",
    }
)  # fmt: skip

#: Names of such heads and of the losses that need them, with underscores left out.
_NAMES = re.compile(
    r"cosine|cosnorm|cos(linear|class|clf|head|fc|sim|face|layer)|adacos|arc(face|margin|loss|fc)"
    r"|addmargin|marginproduct|(sphere|ada|mag|elastic|curricular|norm)face|amsoftmax"
    r"|normproduct|normlinear|normfc|anglelinear|zeroshot"
    r"|text(features|embeds?|embeddings?|weights)$"
)
#: Words that say it when they stand alone.
_WORDS = re.compile(r"cos|angular|margin|norm(ed|alized|alised)\w*")

#: Layers that multiply by their weight as it is.
_PLAIN_CLASSES = frozenset(
    {
        "torch.nn.modules.linear.Linear", "__torch__.torch.nn.modules.linear.Linear",
        "torch.nn.modules.linear.NonDynamicallyQuantizableLinear",
        "transformers.pytorch_utils.Conv1D",
    }
)  # fmt: skip


def sign_of_no_effect(
    m: Matrix, tensors: Sequence[TensorInfo], owners: Mapping[str, str]
) -> str | None:
    """The sign that scaling the rows of this head has no effect, in words; None without one.

    Args:
        m: the head.
        tensors: all tensors of its model.
        owners: the full class name of a module by the module's name, where the file has it.
    """
    if m.layout == "weight_norm":
        return None  # g is the length, and it is g that is scaled
    owner = owners.get(m.module, "")
    if _named(owner.rpartition(".")[2]):
        return f"its class is {owner.rpartition('.')[2]}"
    for step in m.path[-2:]:
        if _named(step):
            return f"it is named {step}"
    beside = _scale_beside(m, tensors)
    if beside:
        return f"there is a scale beside it, {beside}"
    if m.layout != "transposed" or m.bias or owner in _PLAIN_CLASSES or _by_input(m, tensors):
        return None
    return "it is stored as (D, C) without a bias, unlike an ordinary linear layer"


def _named(name: str) -> bool:
    joined = re.sub(r"[^a-z0-9]", "", name.lower())
    return bool(_NAMES.search(joined)) or any(_WORDS.fullmatch(w) for w in words_of(name))


def _scale_beside(m: Matrix, tensors: Sequence[TensorInfo]) -> str | None:
    """A scalar in the head's own module, or, if the head has no bias, in the module above it."""
    above = m.module.rpartition(".")[0]
    for tensor in tensors:
        place, _, leaf = tensor.name.rpartition(".")
        if tensor.numel != 1 or is_integer(tensor) or tensor is m.bias or tensor is m.weight:
            continue
        own = place == m.module and (leaf.lower() in _SCALES or bool(m.module))
        if own or (not m.bias and place == above and leaf.lower() in _SCALES):
            return tensor.name
    return None


def _by_input(m: Matrix, tensors: Sequence[TensorInfo]) -> bool:
    """Whether the file stores every matrix as (in, out), as Flax, TensorFlow and Conv1D do."""
    sizes = {t.name: t.shape[0] for t in tensors if len(t.shape) == 1}
    votes = 0
    for tensor in tensors:
        module, _, leaf = tensor.name.rpartition(".")
        if tensor is m.weight or len(tensor.shape) < 2:
            continue
        if leaf == "kernel":
            votes += 1
        elif leaf == "weight" and len(tensor.shape) == 2 and tensor.shape[0] != tensor.shape[1]:
            length = sizes.get(f"{module}.bias")
            votes += (length == tensor.shape[1]) - (length == tensor.shape[0])
    return votes > 0
