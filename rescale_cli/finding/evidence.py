"""Evidence that a matrix is the head, in points, and signs that scaling it has no effect.

Shapes weigh as much as names; config.json and the number of classes that the user gives weigh as
much as either.

A cosine classifier computes z_i = s w_i f / (|w_i| |f|), so the length of w_i has no effect: LDAM's
NormedLinear, ArcFace and its variants, LUCIR's CosineLinear. A checkpoint does not contain the
forward pass, but most of these heads can be recognized by their name or class, by a scale beside
the weight, or by a weight that is stored as (D, C) without a bias. None of these signs is proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rescale_cli.errors import AmbiguousHead
from rescale_cli.files.contents import TensorInfo
from rescale_cli.finding.names import ZERO_SHOT, Opinion, opinion, says_class, says_conv, words_of
from rescale_cli.finding.shapes import WEIGHTS, Graph, Matrix, is_integer

#: Points for or against, and the reason; without a reason, it is not shown.
Evidence = tuple[float, str]


@dataclass(frozen=True, slots=True)
class Scored:
    """A matrix with the evidence about it."""

    matrix: Matrix
    points: float
    reasons: tuple[str, ...] = ()
    end: bool = False
    """Whether no other layer takes its output."""
    excluded: bool = False
    """Whether its name or its place rules out a final layer."""
    confirmed: bool = False
    """Whether the user or config.json gives its number of rows or its name."""

    @property
    def why(self) -> str:
        """The reasons in one line."""
        return "; ".join(self.reasons) or "a matrix"


def score(m: Matrix, graph: Graph, config: Mapping[str, object], k: int | None) -> Scored:
    """Collect the evidence about one matrix.

    Args:
        m: the matrix.
        graph: the widths of its model.
        config: config.json, or an empty mapping.
        k: the number of classes, if the user gives it.

    Returns:
        about 8 points for an ordinary head, and less than 3 for an inner layer.
    """
    name, from_config = opinion(m.path), _from_config(m, config)
    evidence = [
        *_from_width(m, graph),
        *_from_name(m, graph, name),
        *_from_position(m, graph),
        *_from_row_count(m, config, k),
        *from_config,
    ]
    confirmed = m.rows == k or sum(p for p, _ in from_config) > 0
    # The search takes time, so it is skipped for the many layers that are ruled out already.
    fed = graph.feeds(m) if sum(p for p, _ in evidence) > 0 else None
    if fed:
        evidence.append((-4, f"its output feeds {fed}"))
    points = sum(p for p, _ in evidence)
    reasons = tuple(reason for _, reason in evidence if reason)
    return Scored(m, points, reasons, graph.is_end(m), name.excluded or bool(fed), confirmed)


def _from_width(m: Matrix, graph: Graph) -> Iterator[Evidence]:
    if graph.is_unique(m):
        yield 4, f"no other tensor has a dimension of {m.rows}"
    elif graph.is_end(m):
        yield 2.5, f"no layer takes {m.rows} inputs"
    else:
        yield -1, f"{m.rows} is also the width of an inner layer"
    if m.bias:
        yield 1, "a bias of the same length"


def _from_name(m: Matrix, graph: Graph, name: Opinion) -> Iterator[Evidence]:
    leaf = m.weight.name.rpartition(".")[2]
    bare = leaf not in (*WEIGHTS, "weight_g", "original0") and not ZERO_SHOT.fullmatch(leaf)
    yield min(name.points, 0) if bare else name.points, name.reason
    if bare:
        yield -2, "a bare parameter"
    if not m.bias and name.points <= 0 and not graph.is_last(m):
        yield -1.5, ""  # more likely a table than a layer


def _from_position(m: Matrix, graph: Graph) -> Iterator[Evidence]:
    times, sibling = graph.repeats(m), graph.is_sibling(m)
    if sibling:
        yield 1.5, f"one of {times} parallel final layers"
    elif graph.is_last(m):
        yield 1.5, "the last layer of its sequence"
    if times > 1 and not sibling:
        yield -1 if times == 2 else -3, f"one of {times} identical layers"
    yield 1 if len(m.path) <= 2 else -0.25 * (len(m.path) - 3), ""


def _from_row_count(m: Matrix, config: Mapping[str, object], k: int | None) -> Iterator[Evidence]:
    # Inner widths are multiples of 32, and few data sets have 1280 classes.
    if m.rows % 32 == 0 and m.rows not in (k, _classes_in(config)):
        if says_conv(m.path):
            yield -5, f"a convolution with {m.rows} outputs, a multiple of 32"
        elif len(m.path) > 1 and not says_class(m.path):
            yield -2, f"{m.rows} rows, a multiple of 32"
    if m.rows == k:
        yield 2, f"{k} rows, the given number of classes"


def _from_config(m: Matrix, config: Mapping[str, object]) -> list[Evidence]:
    evidence: list[Evidence] = []
    cfg = config.get("pretrained_cfg")
    named = cfg.get("classifier") if isinstance(cfg, Mapping) else None
    named = [named] if isinstance(named, str) else named
    if isinstance(named, (list, tuple)) and m.module in named:
        evidence.append((5, "named in config.json"))
    if m.rows == config.get("vocab_size"):
        evidence.append((-6, "as many rows as the vocabulary"))
    k = _classes_in(config)
    if k and m.rows == k:
        evidence.append((3, f"config.json has {k} classes"))
    elif k and m.rows == k + 1:
        evidence.append((1.5, f"config.json has {k} classes; one more row, for background"))
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
    """Return the error that lists what could be the head, the likeliest first."""
    shown = options[:10]
    first = shown[0].matrix.weight.name
    fix = f"name one: --head {first}"
    if len(options) > 1 and len({s.matrix.rows for s in options}) == 1:
        every = " ".join(f"--head {s.matrix.weight.name}" for s in shown)
        fix = f"if the model combines them: {every}; if it uses one alone: --head {first} --only"
    return AmbiguousHead(
        what or f"{len(options)} tensors could be the head",
        saw=", ".join(f"{s.matrix.weight.name} {s.matrix.weight.shape}" for s in shown),
        fix=fix,
        candidates=tuple(
            {"weight": s.matrix.weight.name, "shape": list(s.matrix.weight.shape), "why": s.why}
            for s in shown
        ),
    )


#: Names of the scalar that turns cosines into logits.
_SCALES = frozenset(
    {
        "sigma", "scale", "scaling", "scale_factor", "logit_scale", "logits_scale", "temperature",
        "temp", "tau", "s", "m", "eta", "alpha", "kappa", "scale_cls", "cls_scale", "log_scale",
    }
)  # fmt: skip

#: Names of cosine heads and of their losses, without underscores.
_NAMES = re.compile(
    r"cosine|cosnorm|cos(linear|class|clf|head|fc|sim|face|layer)|adacos|arc(face|margin|loss|fc)"
    r"|addmargin|marginproduct|(sphere|ada|mag|elastic|curricular|norm)face|amsoftmax"
    r"|normproduct|normlinear|normfc|anglelinear|zeroshot"
    r"|text(features|embeds?|embeddings?|weights)$"
)
#: Whole words that name a cosine head.
_WORDS = re.compile(r"cos|angular|margin|norm(ed|alized|alised)\w*")

#: Layers that multiply by the weight itself.
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
    """Return the sign that scaling the rows of this head has no effect, or None.

    Args:
        m: the head.
        tensors: all tensors of its model.
        owners: the full class name of each module by the module's name, as far as the file says.
    """
    if m.layout == "weight_norm":
        return None  # g is the length of the rows, and g is what is scaled
    owner = owners.get(m.module, "")
    if _named(owner.rpartition(".")[2]):
        return f"its class is {owner.rpartition('.')[2]}"
    for step in m.path[-2:]:
        if _named(step):
            return f"its name contains {step}"
    beside = _scale_beside(m, tensors)
    if beside:
        return f"there is a scale beside it: {beside}"
    if m.layout != "transposed" or m.bias or owner in _PLAIN_CLASSES or _by_input(m, tensors):
        return None
    return "it is stored as (D, C) without a bias, unlike an ordinary linear layer"


def _named(name: str) -> bool:
    joined = re.sub(r"[^a-z0-9]", "", name.lower())
    return bool(_NAMES.search(joined)) or any(_WORDS.fullmatch(w) for w in words_of(name))


def _scale_beside(m: Matrix, tensors: Sequence[TensorInfo]) -> str | None:
    """Return a scalar in the head's module, or in the module above it if the head has no bias."""
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
    """Whether the file stores matrices as (in, out), as Flax, TensorFlow and Conv1D do."""
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
