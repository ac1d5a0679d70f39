"""Heads that must not be re-scaled, files that hold none, and heads that decide together.

Multiplying the rows of a layer that divides them by their own length changes nothing; rows stored
in 8 bits cannot be multiplied; a vocabulary is no list of classes. Each is told by a sign in the
file, and refused with it.

Experts (RIDE, SADE), a distilled pair, LRASPP's two classifiers: the model returns the sum or the
mean of z_e = W_e f_e + b_e. Row factors that all layers share scale that combination, whichever it
is, so `rescale` is exact on the combined logits once their bias is known: the sum or the mean of
the b_e. A method with other factors for each layer, or with a shift, depends on more than that.
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

#: What quantisers keep beside, or instead of, a weight.
_QUANTISED = re.compile(
    r"(^|\.)(SCB|qweight|qzeros|scales|weight_scale(_inv)?|_packed_params.*|weight\.absmax"
    r"|weight\.quant_(map|state.*)|weight_packed)$"
)

#: A weight of a frozen TorchScript file: its code may use it in any way, and more than once.
_FROZEN = re.compile(r"constants\.[0-9]+")

#: Words of a table with a row for each word of a language.
_TOKENS = {"tok", "token", "tokens", "wte", "word", "words", "vocab", "shared"}

#: The tasks of transformers that have no classes of the user's, by the end of the class name.
_OTHER_TASKS = (
    ("Model", "a feature extractor, without a classification layer"),
    ("LMHead", "a language model: its rows are a vocabulary"),
    ("ForCausalLM", "a language model: its rows are a vocabulary"),
    ("ForMaskedLM", "a language model: its rows are a vocabulary"),
    ("ForConditionalGeneration", "a language model: its rows are a vocabulary"),
    ("ForCTC", "a transcriber: its rows are a vocabulary"),
    ("ForQuestionAnswering", "a span finder: its rows are start and end"),
    ("ForMultipleChoice", "a ranker with one output"),
    ("ForMaskedImageModeling", "an image model in pre-training"),
    ("ForPreTraining", "a model in pre-training"),
)


def refuse_by_config(config: Mapping[str, object]) -> tuple[str, ...]:
    """Raise NoClassifier if config.json says that the model classifies nothing.

    Returns:
        warnings about a model that does classify.
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
            "a multi-label model (problem_type in config.json): each class is decided alone, by a "
            "threshold; re-scaling is for classes that compete, and only changes how they rank",
        )
    return ()


def refuse_multi_label(config: Mapping[str, object], heads: Sequence[str], rows: int) -> None:
    """Raise NoClassifier if config.json says that a sample may have several classes.

    Args:
        config: config.json, or nothing.
        heads: named by the user, who then knows that the classes compete.
        rows: of the head; a single one is a binary head, whatever config.json calls it.
    """
    if config.get("problem_type") == "multi_label_classification" and not heads and rows > 1:
        raise NoClassifier(
            "this is a multi-label model: each class is decided alone, so there is no single "
            "predicted class to measure",
            saw="problem_type: multi_label_classification in config.json",
            fix="if each sample has one class and the largest logit decides, name the head: "
            "--head NAME",
        )


def refuse_unfit(m: Matrix, tensors: Sequence[TensorInfo]) -> None:
    """Raise if a head cannot be re-scaled: 8-bit or frozen rows, or spectral norm."""
    where = f"{m.weight.name} {m.weight.shape}, {m.weight.dtype}"
    if _FROZEN.fullmatch(m.weight.name):
        raise _frozen(where)
    inside = {t.name.removeprefix(m.module + "."): t for t in tensors if _below(t.name, m.module)}
    beside = next((rest for rest in inside if _QUANTISED.search(rest)), None)
    if m.weight.dtype not in HEAD_DTYPES or beside:
        raise BadHead(
            "the head is quantised, and its rows cannot be multiplied",
            saw=where + (f"; {m.module}.{beside}" if beside else ""),
            fix="re-scale the checkpoint from before it was quantised",
        )
    if "weight_u" in inside:
        raise BadHead(
            "the head is under spectral norm: it divides its rows by a number that they decide",
            saw=f"{where}; {m.module}.weight_u",
            fix="call torch.nn.utils.remove_spectral_norm on the layer, save, and re-scale that",
        )


def refuse_parametrized(names: Sequence[str], tensors: Sequence[TensorInfo]) -> None:
    """Raise BadHead if the user names a layer whose weight is computed as the model runs."""
    for name in names:
        module = name.removesuffix(".weight")
        for tensor in tensors:
            owner, _, rest = tensor.name.partition(".parametrizations.weight.")
            if rest == "original" and f".{owner}".endswith(f".{module}"):
                raise BadHead(
                    f"{owner} has no weight of its own: it is computed as the model runs",
                    saw=f"{tensor.name} {tensor.shape}",
                    fix="call torch.nn.utils.parametrize.remove_parametrizations on the layer, "
                    "save, and re-scale that",
                )


def refuse_hidden(m: Matrix, tensors: Sequence[TensorInfo]) -> None:
    """Raise NoClassifier if m has no name of a last layer, and a layer that is no matrix has."""
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
    """Whether a table of words has the very shape of the head: a language model has such a pair."""
    if table.bias or (table.rows, table.width) != (head.rows, head.width):
        return False
    words = [set(words_of(step)) for step in table.path]
    # token_type_embeddings has a row for each of two sentences, as a head has for two classes.
    return any(_TOKENS & step and "type" not in step for step in words)


def refuse_without_head(tensors: Sequence[TensorInfo], saw: str) -> NoClassifier | BadHead:
    """The error for a file where no matrix looks like a head.

    Args:
        tensors: those of the model.
        saw: of the likeliest matrices, why they are none; empty if there is no matrix.
    """
    frozen = [t for t in tensors if _FROZEN.fullmatch(t.name)]
    if frozen:
        return _frozen(f"{frozen[-1].name} {frozen[-1].shape}, {frozen[-1].dtype}")
    saw = saw or f"{len(tensors)} tensors, and none of them is a matrix"
    packed = [t.name for t in tensors if _QUANTISED.search(t.name)]
    if packed:
        saw = f"quantised weights, e.g. {packed[0]}" + (f"; {saw}" if saw else "")
    normed = [t.name for t in tensors if t.name.endswith("parametrizations.weight.original")]
    if normed:
        saw = f"parametrised weights, e.g. {normed[-1]}" + (f"; {saw}" if saw else "")
    return _none("there is no final linear layer in this checkpoint", saw)


def _below(name: str, module: str) -> bool:
    return name.startswith(module + ".") if module else "." not in name


def _frozen(saw: str) -> BadHead:
    return BadHead(
        "the head is frozen into the code of this TorchScript file",
        saw=saw,
        fix="re-scale the file from before torch.jit.freeze, and freeze that",
    )


def _none(what: str, saw: str) -> NoClassifier:
    return NoClassifier(
        what, saw=saw, fix="pass a trained classifier, or name the layer: --head NAME"
    )


@dataclass(frozen=True, slots=True, eq=False)
class JointHead:
    """The heads of one model, without those of its copies; often there is only one."""

    names: tuple[str, ...]
    heads: tuple[Head, ...]

    @property
    def combined(self) -> Literal["mean", "sum"] | None:
        """How the model combines their logits, if their names say it.

        A distilled pair is averaged (timm, transformers); a low and a high classifier are added
        (torchvision's LRASPP). Experts are averaged by some authors and added by others.
        """
        words = [set(words_of(name)) for name in self.names]
        if any({"dist", "distillation"} & w for w in words):
            return "mean"
        if len(words) == 2 and words[0] ^ words[1] == {"low", "high"}:
            return "sum"
        return None

    def refuse(self, adjustment: Adjustment, *, written: bool = False) -> None:
        """Refuse what cannot be worked out for the combined logits.

        Args:
            adjustment: its strength does not matter.
            written: whether the layers themselves are changed. Then each has factors of its own,
                and only a shift depends on how the logits are combined.

        Raises:
            NeedsDecision: the numbers would not be those of the patched model.
        """
        if len(self.heads) == 1:
            return
        own_factors = adjustment.normalize or adjustment.method == "tau-norm"
        if adjustment.method == "logit-adjust" and self.combined != "mean":
            raise self._error("logit-adjust adds its shift to each, and the file does not say "
                              "whether the model adds the logits or averages them",
                              "--method rescale --bias scale")  # fmt: skip
        if own_factors and not written:
            raise self._error("their rows have different norms, so the combined logits do not say "
                              "what normalised rows would give",
                              "--method rescale, without --normalize")  # fmt: skip
        if not written and self._bias_matters(adjustment) and self.combined is None:
            raise self._error("the file does not say whether the model adds their biases or "
                              f"averages them, and --bias {adjustment.bias_policy} depends on it",
                              "--bias scale, which does not depend on it")  # fmt: skip

    @property
    def as_one(self) -> Head:
        """The head of the combined logits, for what `refuse` lets pass: the joint bias (C,)."""
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
            f"{len(self.heads)} final layers decide together, and {why}",
            saw=", ".join(self.names),
            fix=fix,
        )
