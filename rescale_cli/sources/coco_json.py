"""iNaturalist 2018 and its kin: a COCO-like JSON of images, annotations, categories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli.core.classes import Classes, RawCounts
from rescale_cli.core.images import Images
from rescale_cli.core.predictions import Labels
from rescale_cli.errors import BadInput
from rescale_cli.files.regular_file import read_whole
from rescale_cli.json_text import parse_json
from rescale_cli.sources.data_spec import DataSpec, counts, datasets
from rescale_cli.sources.image_files import ImageFiles
from rescale_cli.sources.label_sources import MAX_BYTES, MAX_LABEL, bad_data, whole_labels
from rescale_cli.sources.list_files import image_root


@counts.register("inaturalist2018", options=("root",), splits=("train", "val"))
def inaturalist2018(spec: DataSpec) -> RawCounts:
    """train2018.json: one category_id an annotation, from 0."""
    return coco_counts(*_json(spec.path / f"{spec.split or 'train'}2018.json"))


@datasets.register("inaturalist2018", options=("root",), splits=("train", "val"), held_out="val")
def inaturalist2018_images(spec: DataSpec) -> Images:
    """val2018.json (the test split has no labels); its paths lie below root, or the folder."""
    split = spec.split or "val"
    value, path = _json(spec.path / f"{split}2018.json")
    return coco_images(spec, value, path, spec.path, f"{spec.name} {split}")


def _json(path: Path) -> tuple[Any, Path]:
    return parse_json(read_whole(path, MAX_BYTES, BadInput), path.name, BadInput), path


def coco_counts(value: Any, path: Path) -> RawCounts:
    """Count the `category_id`s of a COCO-like JSON."""
    labels, classes = _labels(value, path)
    total = np.bincount(labels, minlength=len(classes.names)).tolist()
    return RawCounts(tuple(total), classes, path.name)


def coco_images(spec: DataSpec, value: Any, path: Path, folder: Path, source: str) -> Images:
    """The images of a COCO-like JSON, one an annotation."""
    labels, classes = _labels(value, path)
    try:
        files = {image["id"]: image["file_name"] for image in value["images"]}
        names = [files[entry["image_id"]] for entry in value["annotations"]]
    except (TypeError, KeyError, AttributeError) as error:
        saw = f"no file_name by the image_id of an annotation: {error!r}"
        raise bad_data(f"{path.name} is not in iNaturalist's form", saw) from None
    files_named = {name for name in names if type(name) is str}
    if len(files_named) != len(names):
        what = f"{path.name} must give one label for each image"
        saw = f"{len(names)} annotations of {len(files_named)} images"
        raise bad_data(what, saw, "name data with one label per image")
    root = image_root(spec, folder, names)
    return Images(ImageFiles(root, names), labels, classes, names, source)


def _labels(value: Any, path: Path) -> tuple[Labels, Classes]:
    """The class of each annotation (N,), and the categories, by ascending id."""
    try:
        labels = [entry["category_id"] for entry in value["annotations"]]
        listed = value.get("categories") or ()
        table = {entry["id"]: entry.get("name") for entry in listed}
    except (TypeError, KeyError, AttributeError):
        labels, listed, table = [None], (), {}
    if not all(type(label) is int and 0 <= label <= MAX_LABEL for label in (*labels, *table)):
        saw = "no whole number from 0 on as category_id in each of `annotations`"
        raise bad_data(f"{path.name} is not in iNaturalist's form", saw)
    whole = whole_labels(np.array(labels, np.int64), path.name)
    names = [table[index] for index in sorted(table)]
    if len({*map(str, names)}) < len(listed) or not all(type(n) is str and n for n in names):
        ids = [*table, int(whole.max())]
        return whole, Classes.numbered(max(ids) + 1)
    place = {index: i for i, index in enumerate(sorted(table))}
    if strange := sorted({*labels} - {*table}):
        saw = f"category_id {strange[0]} is not in `categories`"
        raise bad_data(f"{path.name} is not in iNaturalist's form", saw)
    at = np.array([place[label] for label in labels], np.int64)
    return at, Classes(tuple(names), tuple(sorted(table)), "file")
