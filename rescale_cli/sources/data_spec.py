"""How data is named: `name:PATH?key=value@split`, or a path whose content says what it is."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

from rescale_cli.core.classes import RawCounts
from rescale_cli.core.images import Images
from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip
from rescale_cli.registry import Registry
from rescale_cli.sources.splits import ANY_SPLIT, SPLITS, Purpose, split_word


@dataclass(frozen=True)
class DataSpec:
    """What `name:PATH?key=value@split` says."""

    name: str
    """The source; empty when only a path was given."""
    path: Path
    options: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    download: bool = False
    """Whether what is not on this machine may be fetched."""
    skip_bad: bool = False
    """Whether images of a list may be missing; reading them says which."""
    tally: bool = False
    """Whether it is data to be counted, rather than counts that a table may hold."""
    purpose: Purpose = "measure"
    """What the data are opened for: it decides which split is read when none is named."""

    def text(self, split: str | None = None) -> str:
        """What to type for the same data, or for a split of it.

        Example:
            >>> DataSpec("csv", Path("a.csv"), {"where": "fold=1&site=2"}, "val").text("test")
            'csv:a.csv?where=fold=1&where=site=2@test'
        """
        pairs = [f"{key}={one}" for key, value in self.options.items()
                 for one in (value.split("&") if key == "where" else [value])]  # fmt: skip
        name = f"{self.name}:" if self.name else ""
        query = f"?{'&'.join(pairs)}" if pairs else ""
        return f"{name}{self.path}{query}" + (f"@{split}" if split else "")


#: What `counts DATA` reads, the training split where nothing else is said.
counts = Registry[Callable[[DataSpec], RawCounts]]("source of counts")
#: What `--data` reads; see `splits.pick` for the split.
datasets = Registry[Callable[[DataSpec], Images]]("source of images")


def paths_of(*given: object) -> list[Path]:
    """The files and folders among what a user gives: paths, and sources that name one."""
    found = []
    for one in given:
        if isinstance(one, PathLike):
            found.append(Path(one))
        elif isinstance(one, str):
            with contextlib.suppress(UsageError):  # whoever reads it says what is wrong
                found.append(parse_spec(one).path)
    return found


def parse_spec(text: str, sources: Registry[Any] = counts) -> DataSpec:
    """Read `name:PATH?key=value&key=value@split`, or PATH; what exists under that name is a path.

    Raises:
        UsageError: an unknown source, option or split.

    Example:
        >>> known = Registry("source")
        >>> _ = known.register("csv", options=("label",), splits=("test",))(print)
        >>> spec = parse_spec("csv:data.csv?label=species@test", known)
        >>> spec.options, spec.split
        ({'label': 'species'}, 'test')
    """
    if os.path.lexists(text):
        return DataSpec("", Path(text))
    head = re.match(r"([a-z][a-z0-9-]*):", text)
    name, rest = (head[1], text[head.end() :]) if head else ("", text)
    split, options = None, {}
    if not os.path.lexists(rest):
        if found := re.search(r"@([A-Za-z][A-Za-z0-9_]*)$", rest):
            split, rest = found[1], rest[: found.start()]
        rest, _, query = rest.partition("?")
        pairs = [pair.partition("=") for pair in query.split("&") if pair]
        options = {key: value for key, _, value in pairs}
        if conditions := [value for key, _, value in pairs if key == "where"]:
            options["where"] = "&".join(conditions)
    if not rest:
        raise UsageError(
            "the path is empty", saw=repr(clip(text, 80)), fix=f"{name or 'folder'}:PATH"
        )
    # Path.expanduser raises where there is no such user.
    spec = DataSpec(name, Path(os.path.expanduser(rest)), options, split)  # noqa: PTH111
    # What a path alone holds, its content says; its options and split are checked then.
    return checked(spec, sources) if name else spec


def checked(spec: DataSpec, sources: Registry[Any]) -> DataSpec:
    """The spec, its split named as the source names it.

    Raises:
        UsageError: an option or a split that the source does not have.
    """
    facts = sources.entry(spec.name).facts
    options, splits = (cast("tuple[str, ...]", facts.get(k, ())) for k in ("options", "splits"))
    _check_known(spec.name, spec.options, options, "?")
    if spec.split is None or splits == ANY_SPLIT:
        return spec
    split = split_word(spec.split) or spec.split
    _check_known(spec.name, [split], splits, "@")
    return replace(spec, split=split)


def table_only(spec: DataSpec) -> None:
    """Refuse options and a split of a file that is no table."""
    _check_known(spec.path.name, spec.options, (), "?")
    _check_known(spec.path.name, [spec.split] if spec.split else [], (), "@")


def _check_known(who: str, words: Collection[str], known: tuple[str, ...], mark: str) -> None:
    for word in words:
        if word not in known:
            what = f"{who} does not support {mark}{clip(word, 80)}"
            fix = f"leave out {mark}{clip(word, 80)}"
            fix += f", or use one of: {', '.join(mark + k for k in known)}" if known else ""
            raise UsageError(what, saw=f"known: {', '.join(known) or 'none'}", fix=fix)


def named_folder(spec: DataSpec, sources: Registry[Any]) -> DataSpec:
    """The spec of a bare folder with the source that reads it; class folders by default."""
    marks = {
        "train2018.json": "inaturalist2018",
        "val2018.json": "inaturalist2018",
        **{f"ImageNet_LT_{split}.txt": "imagenet-lt" for split in SPLITS},
        **{f"Places_LT_{split}.txt": "places-lt" for split in SPLITS},
        "wnids.txt": "tiny-imagenet",
        "FashionMNIST": "fashion-mnist",
        **dict.fromkeys(("data_batch_1", "data_batch_1.bin", "test_batch", "test_batch.bin"),
                        "cifar10"),
        "fine_label_names.txt": "cifar100",
        **{f"{stem}-labels{mid}idx1-ubyte{end}": "mnist"
           for stem in ("train", "t10k") for mid in "-." for end in ("", ".gz")},
        **dict.fromkeys(("dataset_dict.json", "state.json"), "hf"),
    }  # fmt: skip
    there = (name for mark, name in marks.items() if os.path.lexists(spec.path / mark))
    return checked(replace(spec, name=next(there, "folder")), sources)
