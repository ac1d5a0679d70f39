"""Signs that scaling the rows of a head has no effect: the model normalises them when it runs.

A cosine classifier computes z_i = s w_i f / (|w_i| |f|), so the length of w_i is never seen: LDAM's
NormedLinear, ArcFace and its relatives, LUCIR's CosineLinear. A checkpoint does not hold the
forward pass, but most of these heads show themselves by a name, by a class, by a scale beside the
weight, or by a weight that is stored as (D, C) without a bias. No sign is a proof.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.finding.head_names import words_of
from rescale_cli.finding.matrices import Matrix, is_integer

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
