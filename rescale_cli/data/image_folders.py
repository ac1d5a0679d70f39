"""Images that lie as files: in class folders, or named by a list or by COCO-like JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli.core.classes import Classes, RawCounts
from rescale_cli.core.predictions import Images, Labels
from rescale_cli.data.images import IMAGES, ImageFiles, check_present
from rescale_cli.data.labels import (
    MAX_BYTES,
    MAX_LABEL,
    bad_data,
    tally,
    tally_texts,
    text_of,
    whole_labels,
)
from rescale_cli.data.spec import (
    ANY_SPLIT,
    SPLITS,
    DataSpec,
    counts,
    datasets,
    is_junk,
    pick,
    split_word,
)
from rescale_cli.errors import BadInput, EnvironmentProblem
from rescale_cli.files.reading import read_whole
from rescale_cli.json_text import clip, parse_json
from rescale_cli.long_work import found


@counts.register("folder", splits=ANY_SPLIT)
def folder(spec: DataSpec) -> RawCounts:
    """Class folders as torchvision's ImageFolder reads them; one without images is no class."""
    root, classes, split = _classes(spec)
    skipped = _skipped(root)
    pairs = [(name, sum(1 for _ in _images_below(root / name, skipped))) for name in classes]
    if not any(number for _, number in pairs):
        raise _no_images(root, len(pairs))
    full = [(name, number) for name, number in pairs if number]
    skipped["folders without images"] = len(pairs) - len(full)
    raw = RawCounts.keyed(full, f"folder {root.name}/", "imagefolder")
    return replace(raw, split=split, skipped=dict(+skipped))


@datasets.register("folder", splits=ANY_SPLIT)
def folder_images(spec: DataSpec) -> Images:
    """Class folders as torchvision's ImageFolder reads them, in its order; or those of a split."""
    root, classes, split = _classes(spec)
    return replace(_images_of(root, classes, f"folder {root.name}/"), split=split)


def _images_of(root: Path, classes: list[str], source: str) -> Images:
    """The images of class folders; `root / name / ...` is of class `name`."""
    skipped = _skipped(root)
    below = [sorted(_images_below(root / name, skipped)) for name in classes]
    skipped["folders without images"] = sum(not files for files in below)
    classes = [name for name, files in zip(classes, below, strict=True) if files]
    below = [files for files in below if files]
    names = [f"{name}/{file}" for name, files in zip(classes, below, strict=True)
             for _, file in files]  # fmt: skip
    if not names:
        raise _no_images(root, 0)
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in below])
    read, known = ImageFiles(root, names), _sorted(classes)
    return Images(read, labels, known, names, source, skipped=dict(+skipped))


def _classes(spec: DataSpec) -> tuple[Path, list[str], str | None]:
    """The folder whose sub-folders are the classes, those, sorted as strings, and the split."""
    root, split = spec.path, None
    folders = _folders(root)
    splits = [name for name in folders if split_word(name) and any(
        _holds_images(root / name / below) for below in _folders(root / name)
    )]  # fmt: skip
    if splits:
        others = [n for n in folders if n not in splits and _holds_images(root / n)]
        name = pick(spec, [*splits, *([""] if others else [])], lambda split: _size(root, split))
        root, split = root / name, split_word(name)
    elif spec.split is not None:
        root, split = root / spec.split, split_word(spec.split) or spec.split
    classes = _folders(root)
    if not classes:
        raise bad_data(f"{root} has no class folders", "no sub-folder", "name a folder of folders")
    return root, classes, split


def _folders(root: Path) -> list[str]:
    """The sub-folders that could be classes or splits, sorted as strings."""
    return sorted(name for name in _scan(root)[0] if not is_junk(name))


def _holds_images(folder: Path) -> bool:
    return next(_images_below(folder), None) is not None


def _size(root: Path, split: str) -> str:
    if not split:
        return ""
    classes = _folders(root / split)
    return f"{sum(1 for name in classes for _ in _images_below(root / split / name)):,} images"


def _sorted(names: list[str]) -> Classes:
    """Class folders: their names; their numbers would only come from sorting."""
    return Classes(tuple(names), None, "imagefolder")


def _no_images(root: Path, classes: int) -> BadInput:
    saw = f"{classes or 'only'} sub-folders without a file that ends in {', '.join(IMAGES)}"
    return bad_data(f"{root} has no images", saw, "name the folder whose sub-folders hold images")


def _skipped(root: Path) -> Counter[str]:
    """What lies beside the class folders and is none."""
    skipped: Counter[str] = Counter()
    folders, images = _scan(root, skipped)
    skipped["hidden folders"] = sum(map(is_junk, folders))
    skipped["images in no class folder"] = len(images)
    return skipped


def _kind(name: str) -> str:
    """Why a file is no image, for a tally: its suffix."""
    if name.startswith("."):
        return "hidden files"
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - many times
    return f"{suffix} files" if suffix and len(suffix) < 12 else "files without a suffix"


def _scan(folder: Path | str, skipped: Counter[str] | None = None) -> tuple[list[str], list[str]]:
    """The names of the sub-folders, and of the images; other files are added to `skipped`."""
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(IMAGES):
                    images.append(entry.name)
                elif skipped is not None:
                    skipped[_kind(entry.name)] += 1
    except PermissionError as error:
        fix = "check the folder's permissions"
        raise EnvironmentProblem(f"{folder} may not be read", saw=str(error), fix=fix) from None
    except FileNotFoundError as error:
        raise bad_data(f"there is no folder {folder}", str(error), "check the path") from None
    except (OSError, ValueError) as error:
        raise bad_data(f"{folder} is not a readable folder", str(error)) from None
    return folders, images


def _images_below(folder: Path, skipped: Counter[str] | None = None) -> Iterator[tuple[str, str]]:
    """The images in a folder and all below it, each as (its folder, its path), relative to it.

    Sorted, that is ImageFolder's order. Links are followed, as there.
    """
    waiting: list[tuple[str, frozenset[str]]] = [("", frozenset())]
    while waiting:
        below, above = waiting.pop()
        here = os.path.join(folder, below) if below else str(folder)  # noqa: PTH118 - many times
        real = os.path.realpath(here)
        if real in above:  # a link to a folder above, and no end
            continue
        folders, images = _scan(here, skipped)
        found("images", len(images))
        start = f"{below}/" if below else ""
        yield from ((below, start + name) for name in images)
        waiting += [(start + name, above | {real}) for name in folders]


@counts.register("tiny-imagenet", splits=("train", "val"))
def tiny_imagenet(spec: DataSpec) -> RawCounts:
    """train/<wnid>/images/*.JPEG, or val/val_annotations.txt; the wnids are the names."""
    if spec.split == "val":
        return tally_texts((wnid for _, wnid in _annotated(spec.path)), "tiny-imagenet val")
    return folder(DataSpec("folder", spec.path, split="train"))


@datasets.register("tiny-imagenet", splits=("train", "val"), held_out="val")
def tiny_imagenet_images(spec: DataSpec) -> Images:
    """val/images with val/val_annotations.txt (the test split has no labels), or @train."""
    if spec.split == "train":
        root, classes, _ = _classes(DataSpec("folder", spec.path, split="train"))
        return _images_of(root, classes, "tiny-imagenet train")
    pairs = list(_annotated(spec.path))
    classes = sorted({wnid for _, wnid in pairs})
    if (train := spec.path / "train").is_dir():
        classes = sorted({*classes, *_scan(train)[0]})
    row = {wnid: i for i, wnid in enumerate(classes)}
    root, names = spec.path / "val" / "images", [name for name, _ in pairs]
    check_present(root, names, "unpack tiny-imagenet-200.zip again")
    labels = np.array([row[wnid] for _, wnid in pairs], np.int64)
    return Images(ImageFiles(root, names), labels, _sorted(classes), names, "tiny-imagenet val")


def _annotated(root: Path) -> Iterator[tuple[str, str]]:
    """File and wnid of each line of val_annotations.txt: file, wnid, then a box, by tabs."""
    path = root / "val" / "val_annotations.txt"
    with text_of(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0].strip()
            if not name or not wnid:
                what = f"line {number} of {path.name} is not `file<tab>wnid`"
                raise bad_data(what, repr(line[:80]), "unpack tiny-imagenet-200.zip again")
            yield name, wnid


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
