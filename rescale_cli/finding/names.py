"""Judge a tensor by its name: a classifier, an inner layer, or not part of the network.

A name is evidence, never proof. The lists contain generic words only, no names of architectures:
libraries use a few dozen words for the last layer and for the layers before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

#: Segments that wrap a whole model and say nothing about the layer.
WRAPPERS = frozenset(
    {
        "state_dict", "model_state_dict", "model_state", "module", "_orig_mod", "model", "net",
        "_fsdp_wrapped_module", "network", "weights", "params", "ema", "model_ema", "student",
        "state_dict_ema", "current_model_state", "teacher", "encoder_q", "encoder_k", "base_model",
    }
)  # fmt: skip

#: Copies that are derived from the trained model: an average, a teacher, a momentum encoder.
FOLLOWERS = re.compile(r"ema|swa|averag|teacher|momentum|current_model_state|shadow|target|_k$")

#: Words for a snapshot of the model from another time in training.
VERSIONS = frozenset(
    {
        "best", "last", "latest", "final", "current", "old", "prev", "previous", "init", "initial",
        "raw", "orig", "original", "backup", "snapshot",
    }
)  # fmt: skip

#: Words that are used only for a layer over classes.
CLASSES = re.compile(r"^(class|classes|classif\w*|cls|clf|logits?|scores?|labels?)$")

#: A matrix of text embeddings, one per class, instead of a trained layer.
ZERO_SHOT = re.compile(r"zero_?shot\w*|text_(features|embeds|embeddings|weights)")

#: Words that are used for any last layer.
FINAL = re.compile(
    r"^(heads?|fcs?|last|final|outputs?|out|predict\w*|summary|softmax|linears?"
    r"|cosine|arcface|cosface|arcmargin|normedlinear)$"
)

#: Words for parts of the file that are not layers of the network.
FOREIGN = re.compile(r"^(optim\w*|criterion|loss|losses|metrics?|\w*confmat|confusion|scheduler)$")

#: Words that are evidence against a final layer: the points they cost, whether a word for classes
#: in the same segment or at the end of the path outweighs them, and the reason to show.
AGAINST: tuple[tuple[re.Pattern[str], float, bool, str], ...] = tuple(
    (re.compile(rf"^({words})$"), points, soft, reason)
    for points, soft, reason, words in (
        (8, False, "part of an adapter", "lora|loha|lokr|adapters?"),
        (8, False, "the original weight, kept unchanged by fine-tuning", "original"),
        (6, False, "an auxiliary head", "aux|auxiliary"),
        (5, False, "a branch for regions, masks or points",
         "bbox|mask|masks|rpn|anchors?|keypoints?|centerness|regression|reg|bboxes"),
        (5, True, "a branch for boxes", "r?box|boxes|loc"),
        (4, False, "a layer before the logits", "pre|pooler|transform"),
        (5, True, "a table or embedding",
         "embed|embeds|embedding|embeddings|wte|wpe|position|positions|pos|relative|rel|table|tokens?"
         "|queue|prototypes|codebook|shared|patch|stem|vocab|latents?|probe"),
        (5, False, "part of an attention",
         "attn|attention|attend|cross|query|key|value|qkv|kv|queries|keys|values"),
        (5, False, "part of a recurrent cell", "hh|ih|rnns?|lstm|gru"),
        (5, False, "a projection of features",
         "projection|projector|aligner|neck|adaptor|merger|connector|resampler"),
        (3, True, "inside a block",
         "gate|gating|router|se|squeeze|excitation|mlp|ffn|moe|reduction|downsample"
         "|shortcut|skip|norm|bn|ln"),
        (1, True, "in an expert", "experts?"),
        (1, True, "inside the network",
         "dense|layers?|blocks?|stages?|encoder|decoder|features?|transformer|backbone"),
    )
)  # fmt: skip


def words_of(segment: str) -> list[str]:
    """Split a segment into words and numbers, in lower case.

    Example:
        >>> words_of("aux_classifier2"), words_of("AuxLogits")
        (['aux', 'classifier', '2'], ['aux', 'logits'])
    """
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", segment)
    return [part.lower() for part in parts]


def is_foreign(name: str) -> bool:
    """Whether a word in the path shows that a tensor belongs to an optimizer, loss or metric."""
    return any(_foreign_segment(segment) for segment in name.split("."))


@lru_cache(maxsize=4096)
def _foreign_segment(segment: str) -> bool:
    if segment in ("exp_avg", "exp_avg_sq", "momentum_buffer", "max_exp_avg_sq"):
        return True
    return any(FOREIGN.match(word) for word in words_of(segment))


def layer_path(module: str) -> tuple[str, ...]:
    """Split a module's name into segments, without the leading ones that only wrap a model.

    Example:
        >>> layer_path("state_dict.module.head.fc")
        ('head', 'fc')
    """
    segments = module.split(".") if module else []
    while len(segments) > 1 and segments[0].lower() in WRAPPERS:
        segments = segments[1:]
    return tuple(segments)


@dataclass(frozen=True, slots=True)
class Opinion:
    """The evidence of a name."""

    points: float
    """Positive for a final layer, negative for any other."""
    reason: str
    """The reason in words; empty if the name says nothing."""
    excluded: bool = False
    """Whether a word rules out a final layer."""


@lru_cache(maxsize=4096)
def _segment(segment: str) -> tuple[bool, float, tuple[tuple[float, bool, str], ...]]:
    """Judge one segment: whether it names classes, points for a final layer, evidence against."""
    words = words_of(segment)
    classes = any(CLASSES.match(word) for word in words)
    final = 3.0 if classes or segment == "l" or any(FINAL.match(w) for w in words) else 0.0
    if final and not classes and (words[0] in ("linear", "linears") or "conv" in words):
        final = 1.5  # any layer may be called linear, and conv_head precedes the head
    against = tuple(
        (points, soft, reason)
        for pattern, points, soft, reason in AGAINST
        if any(pattern.match(word) for word in words)
        and not (soft and (classes or "head" in words))
    )
    return classes, final, against


@lru_cache(maxsize=65536)
def opinion(path: tuple[str, ...]) -> Opinion:
    """Weigh the words of a layer's path; the last segment counts most, then the first.

    Args:
        path: from `layer_path`.

    Returns:
        an opinion with points between about -12 and 4.5.

    Example:
        >>> opinion(("head", "fc")).points > 0 > opinion(("blocks", "3", "attn", "proj")).points
        True
    """
    if path and ZERO_SHOT.fullmatch(path[-1]):
        return Opinion(3.0, f"named {path[-1]}")
    named = [_segment(segment) for segment in path if not segment.isdigit()]
    if not named:
        return Opinion(0.0, "")
    decided = named[-1][0]
    against = {
        reason: cost
        for _, _, found in named
        for cost, soft, reason in found
        if not (soft and decided)
    }
    above = 2.5 if any(classes for classes, _, _ in named) else 2.0
    points = max(named[-1][1], above if any(final for _, final, _ in named) else 0.0)
    if named[0][1] and not path[0].isdigit():
        points += named[0][1] / 2
    points -= sum(against.values())
    if against:
        reason = max(against, key=lambda reason: against[reason])
        return Opinion(points, reason, against[reason] >= 4)
    return Opinion(points, f"named {'.'.join(path[-2:])}" if points > 0 else "")


def says_class(path: tuple[str, ...]) -> bool:
    """Whether the path contains `head` or a word that is used only for a layer over classes."""
    return any(_segment(step)[0] or "head" in words_of(step) for step in path)


def says_conv(path: tuple[str, ...]) -> bool:
    """Whether the last segment that is not a number names a convolution."""
    steps = [step for step in path if not step.isdigit()]
    return bool(steps) and "conv" in words_of(steps[-1])
