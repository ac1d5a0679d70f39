"""A folder of class folders, as torchvision's ImageFolder reads it, and Tiny ImageNet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rescale_cli.core.classes import Classes, RawCounts
from rescale_cli.core.images import Images
from rescale_cli.errors import BadInput, EnvironmentProblem
from rescale_cli.long_work import found
from rescale_cli.sources.data_spec import DataSpec, counts, datasets
from rescale_cli.sources.image_files import IMAGES, ImageFiles, check_present
from rescale_cli.sources.label_sources import bad_data, tally_texts, text_of
from rescale_cli.sources.splits import ANY_SPLIT, is_junk, pick, split_word


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
