"""List files, `relative/path label` a line: anybody's, ImageNet-LT's, Places-LT's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rescale_cli.core.classes import Classes, RawCounts
from rescale_cli.core.images import Images
from rescale_cli.json_text import clip
from rescale_cli.sources.data_spec import DataSpec, counts, datasets
from rescale_cli.sources.image_files import ImageFiles, check_present
from rescale_cli.sources.label_sources import MAX_LABEL, bad_data, tally, text_of, whole_labels
from rescale_cli.sources.splits import SPLITS, pick


@counts.register("list", options=("root",))
def list_file(spec: DataSpec) -> RawCounts:
    """Lines `relative/path label`, split at the last space; labels from 0."""
    with text_of(spec.path) as lines:
        return list_counts(lines, spec.path.name)


@datasets.register("list", options=("root",))
def list_images(spec: DataSpec) -> Images:
    """Lines `relative/path label`, split at the last space; paths below root, or the list."""
    source = spec.path.name
    with text_of(spec.path) as lines:
        pairs = list(list_entries(lines, source))
    names = [name for name, _ in pairs]
    labels = whole_labels(np.array([label for _, label in pairs], np.int64), source)
    root = image_root(spec, spec.path.parent, names)
    classes = Classes.numbered(int(labels.max()) + 1)
    return Images(ImageFiles(root, names), labels, classes, names, source)


def image_root(spec: DataSpec, default: Path, names: Iterable[str]) -> Path:
    """Where the images of a list lie: `?root=DIR`, else `default`; all of them are there."""
    root = Path(spec.options["root"]).expanduser() if spec.options.get("root") else default
    if not spec.skip_bad:
        check_present(root, names, f"say where they are: {spec.name}:{spec.path}?root=DIR")
    return root


def list_counts(lines: Iterable[str], source: str) -> RawCounts:
    """Count the labels of a list file's lines."""
    return tally(np.fromiter((n for _, n in list_entries(lines, source)), np.int64), source)


def list_entries(lines: Iterable[str], source: str) -> Iterator[tuple[str, int]]:
    """Path and label of each line of a list file, in order; blank lines are passed over.

    Raises:
        BadInput: a line that does not end in a label from 0 to 10^6; the error has its number.
    """
    for number, line in enumerate(lines, 1):
        path, _, label = line.strip().rpartition(" ")
        if label.isascii() and label.isdecimal() and len(label) < 8 and path:
            if int(label) <= MAX_LABEL:
                yield path.rstrip(), int(label)
                continue
        elif not line.strip():
            continue
        raise bad_data(
            f"line {number} of {source} is not `relative/path label`",
            repr(clip(line.strip(), 80)),
            f"end each line in a whole number from 0 to {MAX_LABEL:,}, after a space",
        )


@counts.register("imagenet-lt", options=("root",), splits=SPLITS)
def imagenet_lt(spec: DataSpec) -> RawCounts:
    """The published list ImageNet_LT_train.txt of the folder."""
    return list_file(_published(spec, "ImageNet_LT", "train"))


@counts.register("places-lt", options=("root",), splits=SPLITS)
def places_lt(spec: DataSpec) -> RawCounts:
    """The published list Places_LT_train.txt of the folder; it is not sorted by count."""
    return list_file(_published(spec, "Places_LT", "train"))


@datasets.register("imagenet-lt", options=("root",), splits=SPLITS)
def imagenet_lt_images(spec: DataSpec) -> Images:
    """A published list such as ImageNet_LT_val.txt; its images lie below root, or the folder."""
    return _published_images(spec, "ImageNet_LT")


@datasets.register("places-lt", options=("root",), splits=SPLITS)
def places_lt_images(spec: DataSpec) -> Images:
    """A published list such as Places_LT_val.txt; its images lie below root, or the folder."""
    return _published_images(spec, "Places_LT")


def _published(spec: DataSpec, stem: str, default: str) -> DataSpec:
    path = spec.path / f"{stem}_{spec.split or default}.txt"
    return replace(spec, name="list", path=path, split=None)


def _published_images(spec: DataSpec, stem: str) -> Images:
    there = [s for s in SPLITS if _published(replace(spec, split=s), stem, s).path.is_file()]

    def size(split: str) -> str:
        with text_of(spec.path / f"{stem}_{split}.txt") as lines:
            return f"{sum(1 for line in lines if line.strip()):,} images"

    split = spec.split or pick(spec, there or SPLITS, size if there else lambda split: "")
    found = list_images(_published(spec, stem, split))
    return replace(found, source=f"{spec.name} {split}", split=split)
