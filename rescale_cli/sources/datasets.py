"""`--data`: the images of a data set, by name or by what a path holds.

To add a source, write one function under `@datasets.register("name", options=..., splits=...)`
beside the reader of its labels that `counts` uses. `splits.py` says which split is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

from rescale_cli.core.images import Images
from rescale_cli.errors import BadInput, EnvironmentProblem, NotDownloaded, UsageError
from rescale_cli.files.regular_file import opened, read_whole, refuse_lfs_pointer
from rescale_cli.json_text import clip, parse_json
from rescale_cli.loading.libraries import torchvision
from rescale_cli.long_work import long_work
from rescale_cli.sources import (  # noqa: F401 - they register themselves
    array_labels,
    cifar_batches,
    class_folders,
    hugging_face_data,
    idx_files,
    parquet_table,
    run_part,
    tar_shards,
    user_data,
)
from rescale_cli.sources.class_names import is_json
from rescale_cli.sources.coco_json import coco_images
from rescale_cli.sources.csv_counts import NAME_COUNTS, is_list_line
from rescale_cli.sources.data_spec import (
    DataSpec,
    checked,
    datasets,
    named_folder,
    parse_spec,
    table_only,
)
from rescale_cli.sources.label_sources import MAX_BYTES, NAME_LABELS, text_of
from rescale_cli.sources.splits import Purpose, fixed_split


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
    spec = checked(replace(spec, name=_kind_of(path, head)), datasets)
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
