"""`--preprocessing FILE` and `--save-preprocessing FILE`: how images are prepared, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rescale_cli.core.images import Preprocessing
from rescale_cli.errors import BadInput, OutputExists
from rescale_cli.files.regular_file import read_whole
from rescale_cli.files.text_file import write_text
from rescale_cli.json_text import clip, parse_json
from rescale_cli.loading.preprocessing_config import from_hugging_face, from_run, from_timm, to_run

_MAX_BYTES = 256 << 20
_FIX = (
    "give a file of --save-preprocessing, a sweep.json, the config.json of a training run or of "
    "timm, or a preprocessor_config.json: --preprocessing FILE"
)
#: Keys of which a file has one if it describes an image processor of Hugging Face.
_PROCESSOR = {"image_processor_type", "feature_extractor_type", "image_mean", "do_resize",
              "do_normalize", "crop_size"}  # fmt: skip


def read_preprocessing(path: Path) -> Preprocessing:
    """What a file says of the images, whichever of the known forms it has.

    Raises:
        BadInput: it is not JSON, has none of the forms, or does not prepare an image.
    """
    said = parse_json(read_whole(path, _MAX_BYTES, BadInput), path.name, BadInput)
    found = _found(said, path.name) if isinstance(said, dict) else None
    if found is None:
        saw = f"the keys {clip(', '.join(map(str, said)))}" if isinstance(said, dict) else (
            f"a value of the type {type(said).__name__}"
        )  # fmt: skip
        raise BadInput(f"{path.name} does not say how images are prepared", saw=saw, fix=_FIX)
    return found


def preprocessing_of_sweep(path: Path) -> Preprocessing | None:
    """What a sweep.json says of the images that the strength was chosen on; None if nothing."""
    said = parse_json(read_whole(path, _MAX_BYTES, BadInput), path.name, BadInput)
    result = said.get("result", said) if isinstance(said, dict) else {}
    return from_run(result, path.name) if isinstance(result, dict) else None


def _found(said: Mapping[str, Any], name: str) -> Preprocessing | None:
    result = said.get("result")
    if isinstance(result, dict):  # of --json, or a sweep.json
        said = result
    if isinstance(said.get("preprocessing"), dict):
        return from_run(said, name)
    cfg = said.get("pretrained_cfg")
    if isinstance(cfg, dict) or "input_size" in said:
        return from_timm(cfg if isinstance(cfg, dict) else said, name)
    if {"size", "mean", "std"} <= said.keys():
        return from_run({"preprocessing": said}, name)
    return from_hugging_face(said, name) if _PROCESSOR & said.keys() else None


def save_preprocessing(path: Path, made: Preprocessing, *, force: bool) -> None:
    """Write what `read_preprocessing` reads.

    Raises:
        OutputExists: the name is taken, and `force` was not given.
        EnvironmentProblem: the system refused something.
    """
    try:
        write_text(path, json.dumps(to_run(made), indent=1) + "\n", force=force)
    except OutputExists as error:
        error.fix = error.fix.replace("--output", "--save-preprocessing")
        raise
