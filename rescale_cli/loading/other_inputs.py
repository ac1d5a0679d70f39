"""Hugging Face models that do not take images: how their logits are written to a file instead."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from rescale_cli.errors import NotImages
from rescale_cli.json_text import clip
from rescale_cli.loading.libraries import library

#: Kind of input -> transformers' name for the task, the class that prepares a sample, and the call.
_KINDS = {
    "audio": ("Audio", "AutoFeatureExtractor", "prepare(sample, "
              "sampling_rate=prepare.sampling_rate, return_tensors='pt')"),
    "video": ("Video", "AutoImageProcessor", "prepare(sample, return_tensors='pt')"),
    "text": ("Sequence", "AutoTokenizer", "prepare(sample, truncation=True, return_tensors='pt')"),
    "token": ("Token", "AutoTokenizer", "prepare(sample, truncation=True, return_tensors='pt')"),
}  # fmt: skip


def refuse_other_input(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise NotImages if config.json describes a transformers model of text, audio or video.

    Args:
        folder: where config.json and the weights are.
        config: config.json, or nothing.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return
    kind = _kind_of(model_type, config.get("architectures"))
    if kind is None:
        return
    word = "text" if kind == "token" else kind
    raise NotImages(
        f"this is a model of {word}, and --data gives images",
        saw=clip(f"model_type: {model_type} in config.json of {folder.name}"),
        fix="write its logits with these lines of Python, where `samples` are your inputs and "
        f"`labels` {'the class of each token' if kind == 'token' else 'their classes'}, numbered "
        "from 0; then give --logits logits.npz in place of --data",
        lines=script(kind, folder),
    )


def script(kind: str, folder: Path) -> tuple[str, ...]:
    """Five lines of Python that write a file for `--logits` from `samples` and `labels`.

    Args:
        kind: text, token, audio or video.
        folder: what `save_pretrained` wrote, with the tokenizer or feature extractor.
    """
    task, prepare, call = _KINDS[kind]
    where = repr(str(folder))
    together = "concatenate" if kind == "token" else "stack"
    return (
        "import numpy as np, torch",
        f"from transformers import {prepare} as Prepare, AutoModelFor{task}Classification as Model",
        f"prepare, model = Prepare.from_pretrained({where}), Model.from_pretrained({where}).eval()",
        "with torch.inference_mode(): logits = "
        f"[model(**{call}).logits[0].float().numpy() for sample in samples]",
        f"np.savez('logits.npz', logits=np.{together}(logits), labels=labels)",
    )


def _kind_of(model_type: str, architectures: object) -> str | None:
    """The kind of input that is not images; None for images, and where transformers knows none."""
    library("transformers", "transformers")
    names: Any = import_module("transformers.models.auto.modeling_auto")
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else ""

    def known(task: str) -> bool:
        found = getattr(names, f"MODEL_FOR_{task}_CLASSIFICATION_MAPPING_NAMES", {})
        return model_type in found

    if known("IMAGE") or "ForImageClassification" in named:
        return None
    if named.endswith("ForTokenClassification"):
        return "token"
    tasks = {"audio": "AUDIO", "video": "VIDEO", "text": "SEQUENCE"}
    return next((kind for kind, task in tasks.items() if known(task)), None)
