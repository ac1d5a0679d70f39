"""`run:RUN`: the part of the training images that `train --val-split` did not train on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import RawCounts
from rescale_cli.core.images import Images
from rescale_cli.errors import BadInput
from rescale_cli.files.regular_file import read_whole
from rescale_cli.json_text import clip, parse_json
from rescale_cli.sources.data_spec import DataSpec, counts, datasets, parse_spec

#: The field of a run's config.json that says which part it is.
HELD_OUT = "held_out"
_LARGEST = 1 << 24


@counts.register("run", splits=("train", "val"))
def run_counts(spec: DataSpec) -> RawCounts:
    """The training images of a run, as its counts.json has them; `@val`: of the part held out."""
    if spec.split == "val":
        images = run_images(spec)
        assert images.labels is not None
        assert images.classes is not None
        found = np.bincount(images.labels, minlength=len(images.classes.names))
        return RawCounts(tuple(found.tolist()), images.classes, images.source)
    from rescale_cli.sources.count_sources import read_counts

    return read_counts(str(_folder(spec) / "counts.json"))


@datasets.register("run", splits=("val",), held_out="val")
def run_images(spec: DataSpec) -> Images:
    """The images that a run held out by --val-split, found again by its config.json."""
    from rescale_cli.sources.datasets import open_images

    folder = _folder(spec)
    config = parse_json(read_whole(folder / "config.json", _LARGEST, BadInput), "config.json")
    part = config.get(HELD_OUT) if isinstance(config, dict) else None
    if part is None:
        raise BadInput(
            f"{folder} held out no part of its training images",
            saw=f"no {HELD_OUT} in its config.json",
            fix="name other images: --data DATA, or train with --val-split 0.1",
        )
    data, share, seed, samples = _checked(part, folder)
    try:
        images = open_images(data, purpose="train")
    except BadInput as error:
        where = f"go to the folder in which {folder} was trained, or keep to its val_logits.npz: "
        fix = f"{where}--logits {folder / 'val_logits.npz'}"
        raise BadInput(error.what, saw=f"{error.saw} ({HELD_OUT}: {data})", fix=fix) from None
    if images.labels is None or len(images) != samples:
        raise BadInput(
            f"{data} is not what {folder} was trained on",
            saw=f"{samples:,} images then, {len(images):,} now",
            fix="restore the data, or name other images: --data DATA",
        )
    return part_of(images, held_out(images.labels, share, seed), share)


def part_of(images: Images, rows: NDArray[np.int64], share: float) -> Images:
    """Those rows of the training images, as validation images that say where they are from."""
    source = f"{images.source}, held out by --val-split {share:g}"
    return replace(images.only(rows, "val"), source=source)


def describe_part(data: str, share: float, seed: int, samples: int) -> dict[str, Any]:
    """What config.json says of the part, for `run:RUN` to find it again.

    Args:
        data: the training images, as --data names them.
        share: --val-split.
        seed: --seed, which draws the part.
        samples: training images in all, before anything is left out.
    """
    return {"data": data, "val_split": share, "seed": seed, "samples": samples}


def held_out(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Indices of a stratified part of the samples, ascending, the same ones for the same seed.

    Of n samples of a class round(share * n) are in it, but at least one and never all of them; of a
    class with one sample none is.

    Args:
        labels: (N,).
        share: 0 to 1; 0 is no sample.
        seed: draws them.

    Example:
        >>> part = held_out(np.repeat([0, 1, 2], [20, 3, 1]), 0.1, seed=0)
        >>> np.bincount(np.repeat([0, 1, 2], [20, 3, 1])[part], minlength=3).tolist()
        [2, 1, 0]
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    of = labels[by_class]
    place = np.arange(len(of)) - np.searchsorted(of, of)  # within its class, from 0
    sizes = np.bincount(labels)
    kept = np.minimum(np.maximum(np.floor(share * sizes + 0.5), share > 0), sizes - 1)
    return np.sort(by_class[place < kept[of]]).astype(np.int64)


def _folder(spec: DataSpec) -> Path:
    """The folder of a run; a file in it stands for it, as with MODEL."""
    folder = spec.path if spec.path.is_dir() else spec.path.parent
    if not (folder / "config.json").is_file() or not spec.path.exists():
        raise BadInput(
            f"there is no run {spec.path}",
            saw=f"no {spec.path / 'config.json'}",
            fix="name the folder that `train` left: run:RUN",
        )
    return folder


def _checked(part: Mapping[str, Any], folder: Path) -> tuple[str, float, int, int]:
    """The fields of a description; a config.json may come from anywhere.

    Raises:
        BadInput: it describes nothing, or data that only the user may name.
    """
    match part:
        case {"data": str(data), "val_split": float(share), "seed": int(seed), "samples": int(n)}:
            fits = 0 < share < 1 and seed >= 0
            if fits and parse_spec(data, datasets).name not in ("python", "run"):
                return data, share, seed, n
            what = "names data that are opened only when you name them yourself"
        case _:
            what = "does not describe a part of the training images"
    raise BadInput(
        f"{HELD_OUT} in config.json {what}",
        saw=clip(repr(part), 200),
        fix=f"--logits {folder / 'val_logits.npz'}",
    )
