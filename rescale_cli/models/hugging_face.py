"""A classifier from a Hugging Face folder; how logits are written where it takes no images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.core.predictions import Preprocessing
from rescale_cli.errors import BadInput, NotImages
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.reading import read_whole
from rescale_cli.foreign_code import library, refuse_stripped
from rescale_cli.json_text import clip, parse_json
from rescale_cli.models.preprocessing_config import from_hugging_face, from_timm
from rescale_cli.models.weights import read_tensors

if TYPE_CHECKING:
    from torch import nn


_MAX_CONFIG = 64 << 20
_FIX = "use a folder that save_pretrained of an image classifier wrote"


def load_hugging_face(folder: Path, tensors: Sequence[TensorInfo]) -> nn.Module:
    """The model of a folder, with weights that we read; nothing is fetched, no code of it is run.

    The names are left to transformers, whose networks have others in memory than in files.

    Raises:
        BadInput: no image classifier of transformers, or weights that are not its own.
        EnvironmentProblem: transformers is not installed.
    """
    transformers = library("transformers", "transformers")
    state: Any = read_tensors({info.name: info for info in tensors})
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            _refuse_kernels(config)
            model, report = _class_of(transformers, config).from_pretrained(
                None, config=config, state_dict=state, output_loading_info=True
            )
        except (ValueError, KeyError, OSError, RuntimeError, TypeError, AttributeError) as error:
            refuse_stripped("transformers", error)
            raise BadInput(
                f"transformers cannot build the model of {folder.name}",
                saw=clip(f"{type(error).__name__}: {error}", 300),
                fix=_FIX,
            ) from None
    _refuse_other_weights(folder, report)
    module: nn.Module = model.float().eval()
    return module


def preprocessing_in(folder: Path, config: Mapping[str, Any]) -> Preprocessing | None:
    """What the folder says of its input; None if it says nothing that leads to one size."""
    timm = config.get("pretrained_cfg")
    if isinstance(timm, dict):
        return from_timm(timm)
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    said = parse_json(read_whole(path, _MAX_CONFIG, BadInput), path.name, BadInput)
    transformers = library("transformers", "transformers")
    with _quiet(transformers):
        try:
            # The library knows what the file leaves out, and what old files meant.
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (ValueError, KeyError, OSError, TypeError, AttributeError, ImportError):
            return from_hugging_face(said) if isinstance(said, dict) else None
    # What the processor leaves out of its own description, it does not do.
    off = dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), False)
    return from_hugging_face({**off, **processor.to_dict()})


def _refuse_kernels(config: Any) -> None:
    """Stop if config.json names a repository of compiled code for the library to fetch and run."""
    said = [(key, value) for part in _parts(config.to_dict()) for key, value in part.items()]
    said.append(("attn_implementation", getattr(config, "_attn_implementation", None)))
    for key, value in said:
        if "_implementation" in str(key) and "/" in str(value):
            raise BadInput(
                "config.json names code to fetch and run, which this tool never does",
                saw=clip(f"{key}: {value!r}"),
                fix=f"remove {clip(str(key), 80)} from config.json",
            )


def _parts(value: Any) -> Iterator[dict[Any, Any]]:
    """Every table of a configuration, at any depth."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from _parts(inner)


def _class_of(transformers: Any, config: Any) -> Any:
    """The class of image classifiers for a config; the one that the config names, if several."""
    mapping = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if type(config) not in mapping:
        raise ValueError(f"model_type {config.model_type} has no image classifier")
    found = mapping[type(config)]
    options = found if isinstance(found, tuple | list) else (found,)
    named = config.architectures or ()
    return next((one for one in options if one.__name__ in named), options[0])


def _refuse_other_weights(folder: Path, report: Mapping[str, Any]) -> None:
    kinds = {
        "missing": report["missing_keys"],
        "not of this model": report["unexpected_keys"],
        "another shape": [str(entry[0]) for entry in report["mismatched_keys"]],
    }
    wrong = [
        f"{len(names)} {kind}: {', '.join(sorted(names)[:5])}"
        for kind, names in kinds.items()
        if names
    ]
    if wrong:
        raise BadInput(
            f"the weights do not fit config.json of {folder.name}", saw="; ".join(wrong), fix=_FIX
        )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No bars and no tables of the library's; what matters of them is an error of ours."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


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
