"""Several final layers whose logits the model combines: what the combined logits look like.

Experts (RIDE, SADE), a distilled pair, LRASPP's two classifiers: the model returns the sum or the
mean of z_e = W_e f_e + b_e. Row factors that all layers share scale that combination, whichever it
is, so `rescale` is exact on the combined logits once their bias is known: the sum or the mean of
the b_e. A method with other factors for each layer, or with a shift, depends on more than that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import NeedsDecision
from rescale_cli.finding.head_names import words_of


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
