"""`--data`: the images of a data set, by name or by content; and the held-out part of a run.

To add a source, write one function under `@datasets.register("name", options=..., splits=...)`
beside the reader of its labels that `counts` uses. `splits.py` says which split is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.predictions import Images
from rescale_cli.data import (
    arrays,  # noqa: F401 - they register themselves
    hugging_face_data,  # noqa: F401 - they register themselves
    image_folders,  # noqa: F401 - they register themselves
    parquet,  # noqa: F401 - they register themselves
    tar_shards,  # noqa: F401 - they register themselves
    user,  # noqa: F401 - they register themselves
)
from rescale_cli.data.csv_files import NAME_COUNTS, is_list_line
from rescale_cli.data.image_folders import coco_images
from rescale_cli.data.labels import MAX_BYTES, NAME_LABELS, is_json, text_of
from rescale_cli.data.spec import (
    DataSpec,
    Purpose,
    check_spec,
    datasets,
    fixed_split,
    named_folder,
    parse_spec,
    table_only,
)
from rescale_cli.errors import BadInput, EnvironmentProblem, NotDownloaded, UsageError
from rescale_cli.files.reading import opened, read_whole, refuse_lfs_pointer
from rescale_cli.foreign_code import torchvision
from rescale_cli.json_text import clip, parse_json
from rescale_cli.long_work import long_work


def open_images(
    spec: str | DataSpec,
    *,
    purpose: Purpose = "measure",
    download: bool = False,
    skip_bad: bool = False,
) -> Images:
    """The images that `--data` names, `name:PATH?key=value@split` or a path by its content.

    Args:
        spec: as in docs of each source: `folder:val/`, `cifar10:data@test`.
        purpose: what they are opened for, which decides the split where none is named; see
            `splits.pick`. `Images.split` says which it is.
        download: fetch what is not there; nothing else is ever fetched.
        skip_bad: leave it to the reading to find out which images of a list are missing.

    Raises:
        NoSplit: there are several splits, or not the one for this purpose, and none is named.
        BadInput: no such data, damaged, empty, without labels, or images missing.
        UsageError: an unknown source, option or split; or `download` of what has no known place.
        EnvironmentProblem: an extra is not installed, a folder may not be read, no network.
    """
    try:
        parsed = parse_spec(spec, datasets) if isinstance(spec, str) else spec
        with long_work(f"listing the images of {parsed.path}", "images"):
            return _open(replace(parsed, download=download, purpose=purpose, skip_bad=skip_bad))
    except BadInput as error:
        if error.fix not in (NAME_LABELS, NAME_COUNTS):
            raise
        # The readers of labels serve --counts, too, and their fix is that of --counts.
        fix = "name a complete data set, with a label for each image: --data KIND:PATH"
        raise BadInput(error.what, saw=error.saw, fix=fix) from None


def _open(parsed: DataSpec) -> Images:
    download = parsed.download
    if not parsed.name:
        if not os.path.isdir(parsed.path):  # noqa: PTH112 - Path.is_dir raises for some paths
            return _by_content(parsed)
        parsed = named_folder(parsed, datasets)
    entry = datasets.entry(parsed.name)
    public = entry.facts.get("download")
    if download and not public:
        known = [name for name in datasets if datasets.entry(name).facts.get("download")]
        what = f"{parsed.name} cannot be downloaded: its location is not known"
        raise UsageError(what, saw=f"known: {', '.join(known)}", fix="leave out --download")
    parsed = replace(parsed, split=fixed_split(parsed, entry.facts))
    try:
        return _named(entry.run(parsed), parsed)
    except NotDownloaded as error:
        if not download:
            fix = f"{error.fix}, or let it be fetched: --data {parsed.name}:{parsed.path}"
            raise NotDownloaded(error.what, saw=error.saw, fix=f"{fix} --download") from None
        _fetch(str(public), parsed)
        return _named(entry.run(parsed), parsed)


def _named(images: Images, spec: DataSpec) -> Images:
    """The images with the split that was read, unless the source said it."""
    return images if images.split else replace(images, split=spec.split)


def _fetch(public: str, spec: DataSpec) -> None:
    """Let torchvision fetch a set of that name into the folder, where its sources find it."""
    torchvision()
    from torchvision import datasets as known

    try:
        # Results go to stdout, and what torchvision prints is none.
        with long_work(f"downloading {spec.name}"), redirect_stdout(StringIO()):
            getattr(known, public)(str(spec.path), train=spec.split == "train", download=True)
    except Exception as error:  # of the network, the disk, a checksum; torchvision raises anything
        saw = f"{type(error).__name__}: {clip(str(error), 200)}"
        what, fix = f"{spec.name} could not be downloaded", f"fetch it yourself: {spec.name}:DIR"
        raise EnvironmentProblem(what, saw=saw, fix=fix) from error


def _by_content(spec: DataSpec) -> Images:
    """The images of one regular file."""
    path = spec.path
    with opened(path, BadInput) as fd:
        head = os.pread(fd, 4096, 0)
    refuse_lfs_pointer(path, head, BadInput)
    if is_json(head):
        value = parse_json(read_whole(path, MAX_BYTES, BadInput), path.name, BadInput)
        table_only(spec)
        spec = replace(spec, name="inaturalist2018", path=path.parent)
        return coco_images(spec, value, path, path.parent, path.name)
    spec = check_spec(replace(spec, name=_kind_of(path, head)), datasets)
    return datasets[spec.name](spec)


def _kind_of(path: Path, head: bytes) -> str:
    """The source that reads a file which begins so."""
    signs: dict[str, Callable[[], bool]] = {
        "npz": lambda: head.startswith(b"PK\x03\x04"),
        "parquet": lambda: head.startswith(b"PAR1"),
        "wds": lambda: head[257:262] == b"ustar",
    }
    for name, fits in signs.items():
        if fits():
            return name
    if head.startswith((b"\x1f\x8b", b"\x00\x00\x08")):
        what, saw = f"{path.name} is one file of several", "labels or images alone, or an archive"
        raise BadInput(what, saw=saw, fix=f"name its folder: --data mnist:{path.parent}")
    with text_of(path) as lines:
        return "list" if is_list_line(next((line for line in lines if line.strip()), "")) else "csv"


#: The field of a run's config.json that says which part it is.
HELD_OUT = "held_out"
_LARGEST = 1 << 24


@datasets.register("run", splits=("val",), held_out="val")
def run_images(spec: DataSpec) -> Images:
    """The images that a run held out by --val-split, found again by its config.json."""
    folder = run_folder(spec)
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


def run_folder(spec: DataSpec) -> Path:
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
