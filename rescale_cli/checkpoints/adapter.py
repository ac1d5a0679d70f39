"""PEFT adapters: a few matrices beside a base model that lies elsewhere.

An adapter that was trained with the classifier in `modules_to_save` holds the whole head, which
takes the place of the base model's: re-scaling it there is exact. Any other adapter changes a head
(or leaves it alone) that only the merged model has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rescale_cli.core.tensor_info import TensorInfo
from rescale_cli.errors import BadCheckpoint, BadHead, BadInput
from rescale_cli.files.regular_file import read_whole
from rescale_cli.json_text import clip, parse_json

_MAX_CONFIG = 16 << 20
#: Parts of the names that PEFT gives to what it trains.
_PARTS = re.compile(
    r"(^|[._])(lora_|ia3_|vera_|hada_|lokr_|oft_|boft_|hra_|bone_|miss_|vblora|fourierft|shira_"
    r"|adaption_|prompt_embeddings|prompt_encoder)"
)
_EMBEDDING = re.compile(r"(^|[._])(embed\w*|wte|wpe|shared)(\.|$)")


def refuse_bare_adapter(path: Path, tensors: Iterable[TensorInfo]) -> None:
    """Stop at an adapter that does not hold the head.

    Args:
        path: the file of weights.
        tensors: all that it holds.

    Raises:
        BadCheckpoint: with the line of Python that merges adapter and base model.
    """
    matrices = [t.name for t in tensors if len(t.shape) > 1]
    own = [name for name in matrices if _PARTS.search(name)]
    whole = [n for n in matrices if not _PARTS.search(n) and not _EMBEDDING.search(n)]
    if not own or whole:
        return
    config = _config(path.parent)
    base = config.get("base_model_name_or_path")
    raise BadCheckpoint(
        f"{path.name} is a PEFT adapter; the head belongs to its base model, which lies elsewhere",
        saw=clip(f"base model {base}" if base else f"only {own[0]} and its like", 200),
        fix=_merge(path.parent, config),
    )


def refuse_adapted_head(weight: str, tensors: Iterable[TensorInfo]) -> None:
    """Stop at a head to which an adapter adds: W + B A changes less than W when only W grows.

    Raises:
        BadHead: naming the adapter's matrix.
    """
    layer = weight.removesuffix(".weight")
    if not layer.endswith(".base_layer"):
        return
    root = layer.removesuffix("base_layer")
    added = [t.name for t in tensors if t.name.startswith(root) and _PARTS.search(t.name)]
    if added:
        raise BadHead(
            f"{weight} is only a part of the head: an adapter adds to it",
            saw=clip(", ".join(added)),
            fix="merge the adapter first: model.merge_and_unload(), then save the model",
        )


def _config(folder: Path) -> dict[str, object]:
    path = folder / "adapter_config.json"
    try:
        found = parse_json(read_whole(path, _MAX_CONFIG), path.name)
    except BadInput:
        return {}
    return found if isinstance(found, dict) else {}


def _merge(folder: Path, config: dict[str, object]) -> str:
    """The line that merges; the class of a text classifier is known, any other is the user's."""
    load, first, where = "PeftModel", "base, ", " with base, the base model, loaded"
    if config.get("task_type") == "SEQ_CLS":
        load, first, where = "AutoPeftModelForSequenceClassification", "", ""
    return (
        f"merge it first, in Python{where}: from peft import {load} as A; A.from_pretrained("
        f"{first}{str(folder)!r}).merge_and_unload().save_pretrained('merged'), then name merged"
    )
