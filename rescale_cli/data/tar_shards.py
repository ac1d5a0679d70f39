"""WebDataset shards: tar files whose members of one base name are one sample.

They are indexed by the standard library once and then read at offsets, in any order, so nothing
of the webdataset package is needed.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.classes import RawCounts
from rescale_cli.core.counts import few
from rescale_cli.core.predictions import Image, Images
from rescale_cli.data.images import IMAGES, decode
from rescale_cli.data.labels import bad_data, numbered, tally_texts
from rescale_cli.data.spec import (
    ANY_SPLIT,
    DataSpec,
    by_split,
    counts,
    data_files,
    datasets,
    files_of,
)
from rescale_cli.errors import BadImage, BadInput
from rescale_cli.files.reading import opened, read_at, refuse_lfs_pointer
from rescale_cli.json_text import clip, parse_json

MAX_SHARDS = 100_000
#: What holds an image: webdataset's own decoders read these, too.
_IMAGES = (*IMAGES, ".gif", ".jfif")
#: A label, or a JSON of one sample, is no larger.
MAX_LABEL_BYTES = 1 << 20


@dataclass(frozen=True)
class TarImages:
    """Reads image i from the shard it lies in, at its offset."""

    shards: tuple[Path, ...]
    names: tuple[str, ...]
    places: NDArray[np.int64]
    """(N, 3): shard, first byte, size."""

    def __call__(self, index: int) -> Image:
        """The image of that index."""
        shard, start, size = self.places[index].tolist()
        with opened(self.shards[shard], BadImage) as fd:
            return decode(os.pread(fd, size, start), f"{self.shards[shard]}: {self.names[index]}")


@counts.register("wds", options=("label",), splits=ANY_SPLIT)
def wds(spec: DataSpec) -> RawCounts:
    """The labels of webdataset shards: members .cls, or .json with the field `label`."""
    skipped: Counter[str] = Counter()
    shards, split = _shards(spec)
    found = _samples(spec, shards, skipped)
    raw = tally_texts((label for _, _, label in found), _title(spec, shards, split))
    return replace(raw, split=split, skipped=dict(skipped))


@datasets.register("wds", options=("label",), splits=ANY_SPLIT)
def wds_images(spec: DataSpec) -> Images:
    """Webdataset shards: an image and .cls, or .json with the field `label`, of one base name."""
    skipped: Counter[str] = Counter()
    shards, split = _shards(spec)
    found = _samples(spec, shards, skipped)
    source = _title(spec, shards, split)
    labels, classes = numbered((label for _, _, label in found), source)
    names = tuple(name for name, _, _ in found)
    places = np.array([place for _, place, _ in found], np.int64)
    read = TarImages(shards, names, places)
    return Images(read, labels, classes, names, source, split=split, skipped=dict(skipped))


def _title(spec: DataSpec, shards: tuple[Path, ...], split: str | None) -> str:
    named = f" {split}" if split else ""
    return f"wds {spec.path.name}{named}, {_size(shards)}"


def _size(shards: tuple[Path, ...]) -> str:
    return f"{len(shards):,} shard{'s' if len(shards) > 1 else ''}"


def _shards(spec: DataSpec) -> tuple[tuple[Path, ...], str | None]:
    """The shards of the split that is read, and the split, if their names say one."""
    if spec.path.is_dir():
        found = data_files(spec.path, ".tar") or find_shards(str(spec.path))
        return files_of(spec, found, spec.path, _size)
    shards = find_shards(str(spec.path))
    root = Path(os.path.commonpath([shard.parent for shard in shards]))
    splits = by_split(shards, root)
    if len(splits) == 1 and spec.split is None:  # the pattern names it
        return shards, next(iter(splits)) or None
    return files_of(spec, shards, root, _size)


Found = list[tuple[str, tuple[int, int, int], str]]


def _samples(spec: DataSpec, shards: tuple[Path, ...], skipped: Counter[str]) -> Found:
    """Of each sample of the shards its image's name, its place, and its label as text."""
    found: Found = []
    for number, shard in enumerate(shards):
        for key, members in _groups(shard, skipped):
            images = _images_of(shard, key, members)
            skipped.update([] if images else ["groups without image and label"])
            for image, own in images:
                label = _label(spec, shard, key, own)
                found.append((image.name, (number, image.offset_data, image.size), label))
    if not found:
        saw = f"no member that ends in {', '.join(_IMAGES)} in {few(shards, 3)}"
        raise bad_data(f"{spec.path} has no images", saw, "name shards of images and labels")
    return found


Members = dict[str, tarfile.TarInfo]


def _images_of(shard: Path, key: str, members: Members) -> list[tuple[tarfile.TarInfo, Members]]:
    """The images of one group, each with the members that belong to it.

    Usually there is one: `key.png` beside `key.cls`. The extension begins at the first dot, so that
    `scan.2021.png` and `scan.2022.png` are of one group; they are two samples if each part has a
    label of its own, and the image of one sample if there is one image: `key.input.png`.

    Raises:
        BadInput: the group has a label and no image, or several images and one label.
    """
    parts: dict[str, Members] = {}
    for end, member in members.items():
        part, _, kind = end.rpartition(".")
        parts.setdefault(part, {})[kind] = member
    images = {part: image for part, own in parts.items() if (image := _image_in(own)) is not None}
    if "" in images:
        return [(images[""], members)]
    if len(images) == 1:
        ((part, image),) = images.items()
        return [(image, {**members, **parts[part]})]
    labelled = [(image, parts[part]) for part, image in images.items() if len(parts[part]) > 1]
    if images and len(labelled) == len(images) == len(parts):
        return labelled
    if not images and not {"cls", "json"} & {*members}:
        return []  # a text that belongs to no sample
    what = f"{shard.name}: {clip(key, 80)} has {len(images) or 'no'} images"
    fix = "write one image and one label of each base name, without a dot in it"
    raise bad_data(what, f"members {', '.join(members)}", fix)


def _image_in(members: Members) -> tarfile.TarInfo | None:
    return next((members[end[1:]] for end in _IMAGES if end[1:] in members), None)


def find_shards(pattern: str) -> tuple[Path, ...]:
    """The files of a pattern with {000..012}, {a,b} and *, or the .tar files of a folder, sorted.

    Raises:
        BadInput: one of them is not there, or there is none, or there are too many.
    """
    if os.path.isdir(pattern):  # noqa: PTH112 - Path.is_dir raises for some paths
        pattern = f"{glob.escape(pattern)}/*.tar"
    found: list[str] = []
    for name in _expanded(pattern):
        # Path.glob would need the pattern in two parts.
        found += sorted(glob.glob(name)) if "*" in name else [name]  # noqa: PTH207
    missing = [name for name in found if not os.path.lexists(name)]
    if missing or not found:
        what = f"{len(missing)} shards are not there" if missing else f"{pattern} names no shard"
        fix = "name the shards there are: wds:data-{000..012}.tar"
        raise bad_data(what, few(missing) or f"no file {pattern}", fix)
    if twice := [name for name, times in Counter(found).items() if times > 1]:
        fix = "name each shard once"
        raise bad_data("the pattern lists a shard twice", few(twice), fix)
    return tuple(map(Path, found))


def _expanded(pattern: str) -> list[str]:
    if re.search(r"\{[^}]*\{", pattern):
        raise bad_data("nested braces are not supported", pattern, "write them one after another")
    done, waiting = [], [pattern]
    while waiting:
        text = waiting.pop()
        brace = re.search(r"\{([^{}]*)\}", text)
        if brace is None or not (parts := _alternatives(brace[1])):
            done.append(text)
        else:
            # The last brace of a text is the first that is pushed, so that the order is kept.
            before, after = text[: brace.start()], text[brace.end() :]
            waiting += [f"{before}{part}{after}" for part in reversed(parts)]
        if len(done) + len(waiting) > MAX_SHARDS:
            saw = f"more than {MAX_SHARDS:,}"
            raise bad_data("the pattern lists too many shards", saw, "name fewer")
    return done


def _alternatives(text: str) -> list[str]:
    """What stands in braces: 000..012, counted with its zeros, or a,b."""
    if between := re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", text):
        width = len(between[1]) if between[1].startswith("0") else 0
        first, last = int(between[1]), int(between[2])
        return [f"{i:0{width}}" for i in range(first, min(last, first + MAX_SHARDS) + 1)]
    return text.split(",") if "," in text else []


def _groups(shard: Path, skipped: Counter[str]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Each run of members with one base name: up to the first dot of the file's name."""
    key = ""
    members: dict[str, tarfile.TarInfo] = {}
    for member in _members(shard, skipped):
        folder, slash, name = member.name.rpartition("/")
        base, _, end = name.partition(".")
        if folder + slash + base != key:
            if members:
                yield key, members
            key, members = folder + slash + base, {}
        if end.lower() in members:
            fix = "write the shards again"
            raise bad_data(f"{shard.name} holds {clip(member.name)} twice", key, fix)
        members[end.lower()] = member
    if members:
        yield key, members


def _members(shard: Path, skipped: Counter[str]) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar, in order, each whole."""
    fix = "fetch or write the shard again, as an uncompressed .tar"
    with opened(shard, BadInput) as fd, os.fdopen(fd, "rb", closefd=False) as file:
        refuse_lfs_pointer(shard, os.pread(fd, 64, 0), BadInput)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    # macOS adds a file ._NAME with what its Finder knows of NAME.
                    of_finder = member.name.rpartition("/")[2].startswith("._")
                    if of_finder:
                        skipped["macOS files"] += 1
                    elif re.match(r"__[^/]*__($|/)", member.name):  # as webdataset does
                        skipped["metadata of the shard"] += 1
                    elif member.isreg() and not member.issparse():
                        yield member
                    elif not member.isdir():
                        skipped["links and other special members"] += 1
                    # Else every header stays in memory.
                    archive.members = []  # type: ignore[attr-defined]
                rest = os.pread(fd, 512, archive.offset)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise bad_data(f"{shard} is not a valid tar file", str(error), fix) from None
        # tarfile takes a damaged header for the end.
        if rest.strip(b"\0"):
            saw = f"no header at byte {archive.offset:,}"
            raise bad_data(f"{shard} is not a valid tar file", saw, fix)


def _label(spec: DataSpec, shard: Path, key: str, members: dict[str, tarfile.TarInfo]) -> str:
    """The label of one sample as text: .cls, or the field of .json that `?label=` names."""
    field = spec.options.get("label")
    plain = members.get(field or "cls")
    where = f"{shard.name}: {clip(key, 80)}"
    fix = f"name the member or the field of the label: wds:{spec.path}?label=NAME"
    if plain is not None:
        return _bytes(shard, plain).decode("utf-8", "replace").strip()
    if "json" not in members:
        raise bad_data(f"{where} has no label", f"members {', '.join(members)}", fix)
    value: Any = parse_json(_bytes(shard, members["json"]), f"{where}.json", BadInput)
    label = value.get(field or "label") if isinstance(value, dict) else None
    if type(label) not in (int, str):
        saw = f"{where}.json: {clip(repr(value), 100)}"
        raise bad_data(f"{where} has no label", saw, fix)
    return str(label)


def _bytes(shard: Path, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_LABEL_BYTES:
        saw = f"{member.size:,} bytes"
        raise bad_data(f"{shard.name}: {member.name} is too large for a label", saw, "?label=NAME")
    with opened(shard, BadInput) as fd:
        return read_at(fd, member.offset_data, member.size)
