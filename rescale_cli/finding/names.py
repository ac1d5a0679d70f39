"""What the name of a tensor says: is it a classifier, the inside of a network, or no part of it?

A name is evidence, never proof. Only generic words are listed, none of an architecture: libraries
choose freely among a few dozen words for "the last layer" and for what comes before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

#: Segments that wrap a whole model and say nothing of the layer.
WRAPPERS = frozenset(
    {
        "state_dict", "model_state_dict", "model_state", "module", "_orig_mod", "model", "net",
        "_fsdp_wrapped_module", "network", "weights", "params", "ema", "model_ema", "student",
        "state_dict_ema", "current_model_state", "teacher", "encoder_q", "encoder_k", "base_model",
    }
)  # fmt: skip

#: Of the copies of one model, those that follow another: an average, a teacher, a momentum encoder.
FOLLOWERS = re.compile(r"ema|swa|averag|teacher|momentum|current_model_state|shadow|target|_k$")

#: Words for a model at another moment of its training.
VERSIONS = frozenset(
    {
        "best", "last", "latest", "final", "current", "old", "prev", "previous", "init", "initial",
        "raw", "orig", "original", "backup", "snapshot",
    }
)  # fmt: skip

#: Words that only a layer over classes bears.
CLASSES = re.compile(r"^(class|classes|classif\w*|cls|clf|logits?|scores?|labels?)$")

#: A matrix of text embeddings, one for each class, in place of a trained layer.
ZERO_SHOT = re.compile(r"zero_?shot\w*|text_(features|embeds|embeddings|weights)")

#: Words that any last layer may bear.
FINAL = re.compile(
    r"^(heads?|fcs?|last|final|outputs?|out|predict\w*|summary|softmax|linears?"
    r"|cosine|arcface|cosface|arcmargin|normedlinear)$"
)

#: Words of what is in the file but is no layer of the network.
FOREIGN = re.compile(r"^(optim\w*|criterion|loss|losses|metrics?|\w*confmat|confusion|scheduler)$")

#: Words that speak against a final layer: the points they cost, whether a word for classes in the
#: same segment or at the end of the path outweighs them, and the reason to give.
AGAINST: tuple[tuple[re.Pattern[str], float, bool, str], ...] = tuple(
    (re.compile(rf"^({words})$"), points, soft, reason)
    for points, soft, reason, words in (
        (8, False, "part of an adapter", "lora|loha|lokr|adapters?"),
        (8, False, "the copy that fine-tuning left untouched", "original"),
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
    """The words of one segment, in lower case, numbers apart.

    Example:
        >>> words_of("aux_classifier2"), words_of("AuxLogits")
        (['aux', 'classifier', '2'], ['aux', 'logits'])
    """
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", segment)
    return [part.lower() for part in parts]


def is_foreign(name: str) -> bool:
    """Whether a tensor belongs to an optimizer, a loss or a metric, by a word of its path."""
    return any(_foreign_segment(segment) for segment in name.split("."))


@lru_cache(maxsize=4096)
def _foreign_segment(segment: str) -> bool:
    if segment in ("exp_avg", "exp_avg_sq", "momentum_buffer", "max_exp_avg_sq"):
        return True
    return any(FOREIGN.match(word) for word in words_of(segment))


def layer_path(module: str) -> tuple[str, ...]:
    """The segments of a module's name without those that only wrap a model.

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
    """What a name says."""

    points: float
    """Above 0: like a final layer. Below: like another."""
    reason: str
    """Why, in words; empty when the name says nothing."""
    excluded: bool = False
    """Whether a word tells the layer apart from a final one, not merely against it."""


@lru_cache(maxsize=4096)
def _segment(segment: str) -> tuple[bool, float, tuple[tuple[float, bool, str], ...]]:
    """Of one segment: whether it speaks of classes, how final it sounds, what speaks against."""
    words = words_of(segment)
    classes = any(CLASSES.match(word) for word in words)
    final = 3.0 if classes or segment == "l" or any(FINAL.match(w) for w in words) else 0.0
    if final and not classes and (words[0] in ("linear", "linears") or "conv" in words):
        final = 1.5  # any layer may be called linear, and conv_head is the last of the features
    against = tuple(
        (points, soft, reason)
        for pattern, points, soft, reason in AGAINST
        if any(pattern.match(word) for word in words)
        and not (soft and (classes or "head" in words))
    )
    return classes, final, against


@lru_cache(maxsize=65536)
def opinion(path: tuple[str, ...]) -> Opinion:
    """Weigh the words of a layer's path: the last segment most, and the first if it is a branch.

    Args:
        path: from `layer_path`.

    Returns:
        points between about -12 and 4.5.

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
    """Whether a word that only a layer over classes bears, or `head`, is in the path."""
    return any(_segment(step)[0] or "head" in words_of(step) for step in path)


def says_conv(path: tuple[str, ...]) -> bool:
    """Whether the last named segment speaks of a convolution."""
    steps = [step for step in path if not step.isdigit()]
    return bool(steps) and "conv" in words_of(steps[-1])
