"""Refuse heads that cannot be re-scaled and models without one; joint heads of one model.

Rows stored in 8 bits cannot be multiplied, spectral norm divides the rows again, and a vocabulary
is not a list of classes. Each error shows the sign in the file from which it was recognized.

Joint heads are experts (RIDE, SADE), a distilled pair or LRASPP's two classifiers: the model
returns the sum or the mean of z_e = W_e f_e + b_e. Row factors that all layers share also scale the
sum and the mean, so `rescale` is exact on the combined logits if their bias is known: the sum or
the mean of the b_e. Factors that differ between the layers, or a shift, are not exact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rescale_cli.core.floats import HEAD_DTYPES
from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import BadHead, NeedsDecision, NoClassifier
from rescale_cli.files.contents import TensorInfo
from rescale_cli.finding.names import layer_path, opinion, words_of
from rescale_cli.finding.shapes import Matrix

#: Tensors that quantizers store beside a weight or instead of it.
_QUANTISED = re.compile(
    r"(^|\.)(SCB|qweight|qzeros|scales|weight_scale(_inv)?|_packed_params.*|weight\.absmax"
    r"|weight\.quant_(map|state.*)|weight_packed)$"
)

#: A weight of a frozen TorchScript file, whose code may use it in any way and more than once.
_FROZEN = re.compile(r"constants\.[0-9]+")

#: Words for a table with one row per token.
_TOKENS = {"tok", "token", "tokens", "wte", "word", "words", "vocab", "shared"}

#: Tasks of transformers that are not classification, by the end of the class name.
_OTHER_TASKS = (
    ("Model", "a feature extractor, without a classification layer"),
    ("LMHead", "a language model: its rows are a vocabulary"),
    ("ForCausalLM", "a language model: its rows are a vocabulary"),
    ("ForMaskedLM", "a language model: its rows are a vocabulary"),
    ("ForConditionalGeneration", "a language model: its rows are a vocabulary"),
    ("ForCTC", "a speech recognition model: its rows are a vocabulary"),
    (
        "ForQuestionAnswering",
        "a question answering model: its rows are the start and end of a span",
    ),
    ("ForMultipleChoice", "a multiple-choice model with one output"),
    ("ForMaskedImageModeling", "a model for pre-training on images"),
    ("ForPreTraining", "a model for pre-training"),
)


def refuse_by_config(config: Mapping[str, object]) -> tuple[str, ...]:
    """Raise NoClassifier if config.json says that the model is not a classifier.

    Returns:
        warnings about a classifier.
    """
    problem = config.get("problem_type")
    if problem == "regression":
        raise _none("this model was trained for regression", "problem_type in config.json")
    architectures = config.get("architectures")
    if isinstance(architectures, (list, tuple)) and architectures:
        name = str(architectures[0])
        for end, reason in _OTHER_TASKS:
            if name.endswith(end) or (end == "LMHead" and end in name):
                raise _none(f"this is {reason}", f"architectures: {name} in config.json")
    if config.get("num_classes") == 0 and "pretrained_cfg" in config:
        raise _none("this is a feature extractor", "num_classes: 0 in config.json")
    if problem == "multi_label_classification":
        return (
            "this is a multi-label model (problem_type in config.json), which compares each class "
            "with a threshold; re-scaling is meant for classes that compete",
        )
    return ()


def refuse_multi_label(config: Mapping[str, object], heads: Sequence[str], rows: int) -> None:
    """Raise NoClassifier if config.json says that a sample may have several classes.

    Args:
        config: config.json, or an empty mapping.
        heads: the values of --head, which override config.json.
        rows: rows of the head; a single row is a binary head even in a multi-label model.
    """
    if config.get("problem_type") == "multi_label_classification" and not heads and rows > 1:
        raise NoClassifier(
            "this is a multi-label model, which predicts no single class that could be measured",
            saw="problem_type: multi_label_classification in config.json",
            fix="if each sample has one class, that of the largest logit, name the head: "
            "--head NAME",
        )


def refuse_unfit(m: Matrix, tensors: Sequence[TensorInfo]) -> None:
    """Raise BadHead if a head cannot be re-scaled: quantized or frozen rows, or spectral norm."""
    where = f"{m.weight.name} {m.weight.shape}, {m.weight.dtype}"
    if _FROZEN.fullmatch(m.weight.name):
        raise _frozen(where)
    inside = {t.name.removeprefix(m.module + "."): t for t in tensors if _below(t.name, m.module)}
    beside = next((rest for rest in inside if _QUANTISED.search(rest)), None)
    if m.weight.dtype not in HEAD_DTYPES or beside:
        raise BadHead(
            "the head is quantized, so its rows cannot be multiplied",
            saw=where + (f"; {m.module}.{beside}" if beside else ""),
            fix="re-scale the checkpoint that was quantized, then quantize the result",
        )
    if "weight_u" in inside:
        raise BadHead(
            "the head uses spectral norm, which divides its rows by their largest singular value",
            saw=f"{where}; {m.module}.weight_u",
            fix="call torch.nn.utils.remove_spectral_norm on the layer, save the model, and "
            "re-scale that file",
        )


def refuse_parametrized(names: Sequence[str], tensors: Sequence[TensorInfo]) -> None:
    """Raise BadHead if the user names a layer whose weight is computed in the forward pass."""
    for name in names:
        module = name.removesuffix(".weight")
        for tensor in tensors:
            owner, _, rest = tensor.name.partition(".parametrizations.weight.")
            if rest == "original" and f".{owner}".endswith(f".{module}"):
                raise BadHead(
                    f"the weight of {owner} is computed in the forward pass (parametrization)",
                    saw=f"{tensor.name} {tensor.shape}",
                    fix="call torch.nn.utils.parametrize.remove_parametrizations on the layer, "
                    "save the model, and re-scale that file",
                )


def refuse_hidden(m: Matrix, tensors: Sequence[TensorInfo]) -> None:
    """Raise NoClassifier if a layer that is not a matrix is named like the head, and m is not."""
    if opinion(m.path).points > 0:
        return
    for tensor in tensors:
        module, _, leaf = tensor.name.rpartition(".")
        path = layer_path(module)
        if leaf != "weight" or len(tensor.shape) < 3 or len(path) > len(m.path):
            continue
        if max(tensor.shape[2:]) > 1 and opinion(path).points >= 2:
            raise _none(
                "the last layer of this network is not linear",
                f"{tensor.name} {tensor.shape}; before it {m.weight.name} {m.weight.shape}",
            )


def is_vocabulary(table: Matrix, head: Matrix) -> bool:
    """Whether a table of tokens has the same shape as the head, as in a language model."""
    if table.bias or (table.rows, table.width) != (head.rows, head.width):
        return False
    words = [set(words_of(step)) for step in table.path]
    # token_type_embeddings has two rows, like a head for two classes.
    return any(_TOKENS & step and "type" not in step for step in words)


def refuse_without_head(tensors: Sequence[TensorInfo], saw: str) -> NoClassifier | BadHead:
    """Return the error for a model in which no matrix looks like a head.

    Args:
        tensors: all tensors of the model.
        saw: the evidence about the likeliest matrices; empty if there is no matrix.
    """
    frozen = [t for t in tensors if _FROZEN.fullmatch(t.name)]
    if frozen:
        return _frozen(f"{frozen[-1].name} {frozen[-1].shape}, {frozen[-1].dtype}")
    saw = saw or f"{len(tensors)} tensors, and none of them is a matrix"
    packed = [t.name for t in tensors if _QUANTISED.search(t.name)]
    if packed:
        saw = f"quantized weights, e.g. {packed[0]}" + (f"; {saw}" if saw else "")
    normed = [t.name for t in tensors if t.name.endswith("parametrizations.weight.original")]
    if normed:
        saw = f"parametrized weights, e.g. {normed[-1]}" + (f"; {saw}" if saw else "")
    return _none("there is no final linear layer in this checkpoint", saw)


def _below(name: str, module: str) -> bool:
    return name.startswith(module + ".") if module else "." not in name


def _frozen(saw: str) -> BadHead:
    return BadHead(
        "the head is frozen into the code of this TorchScript file",
        saw=saw,
        fix="re-scale the file from before torch.jit.freeze, then freeze the result",
    )


def _none(what: str, saw: str) -> NoClassifier:
    return NoClassifier(
        what, saw=saw, fix="pass a trained classifier, or name the layer: --head NAME"
    )


@dataclass(frozen=True, slots=True, eq=False)
class JointHead:
    """The heads of one model, without those of its copies; usually one."""

    names: tuple[str, ...]
    heads: tuple[Head, ...]

    @property
    def combined(self) -> Literal["mean", "sum"] | None:
        """How the model combines their logits, if the names say so.

        A distilled pair is averaged (timm, transformers); a low and a high classifier are added
        (torchvision's LRASPP). Experts are averaged in some repositories and added in others.
        """
        words = [set(words_of(name)) for name in self.names]
        if any({"dist", "distillation"} & w for w in words):
            return "mean"
        if len(words) == 2 and words[0] ^ words[1] == {"low", "high"}:
            return "sum"
        return None

    def refuse(self, adjustment: Adjustment, *, written: bool = False) -> None:
        """Refuse an adjustment whose effect on the combined logits cannot be computed.

        Args:
            adjustment: the method; its strength is ignored.
            written: whether the layers themselves are changed. Each layer then gets its own
                factors, and only a shift depends on how the logits are combined.

        Raises:
            NeedsDecision: the results would differ from those of the patched model.
        """
        if len(self.heads) == 1:
            return
        own_factors = adjustment.normalize or adjustment.method == "tau-norm"
        if adjustment.method == "logit-adjust" and self.combined != "mean":
            raise self._error("logit-adjust shifts each of them, and the file does not say "
                              "whether the model adds or averages their logits",
                              "--method rescale --bias scale")  # fmt: skip
        if own_factors and not written:
            raise self._error("the effect of normalizing their rows, which have different norms, "
                              "cannot be computed from the combined logits",
                              "--method rescale, without --normalize")  # fmt: skip
        if not written and self._bias_matters(adjustment) and self.combined is None:
            raise self._error("the file does not say whether the model adds or averages their "
                              f"logits, on which --bias {adjustment.bias_policy} depends",
                              "--bias scale, which does not depend on it")  # fmt: skip

    @property
    def as_one(self) -> Head:
        """The head of the combined logits, with the joint bias (C,); valid if `refuse` passes."""
        first = self.heads[0]
        biases = [head.bias for head in self.heads if head.bias is not None]
        if len(self.heads) == 1 or not biases:
            return first
        total = np.sum(biases, axis=0)
        return replace(first, bias=total if self.combined == "sum" else total / len(self.heads))

    def _bias_matters(self, adjustment: Adjustment) -> bool:
        biases = [head.bias for head in self.heads if head.bias is not None]
        return adjustment.bias_policy != "scale" and any(bias.any() for bias in biases)

    def _error(self, why: str, fix: str) -> NeedsDecision:
        return NeedsDecision(
            f"the model combines {len(self.heads)} final layers, and {why}",
            saw=", ".join(self.names),
            fix=fix,
        )
