"""How data is named, `name:PATH?key=value@split`, and which split a command takes.

The names and the layouts are those of the library `datasets` (data_files.py), in any case.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar, cast

from rescale_cli.core.classes import RawCounts
from rescale_cli.core.predictions import Images
from rescale_cli.errors import BadInput, NeedsDecision, UsageError
from rescale_cli.json_text import clip
from rescale_cli.registry import Registry

T = TypeVar("T")

#: What data are opened for: `measure` (evaluate), `choose` (sweep-gamma, compare), `validate` and
#: `train` (train), `count` (counts and --counts).
Purpose = Literal["measure", "choose", "validate", "train", "count"]

SPLITS = ("train", "val", "test")
#: What a source registers as `splits` if it finds them in the data: any name is accepted.
ANY_SPLIT = ("*",)

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "publictest"),
    "test": ("test", "testing", "eval", "evaluation", "privatetest"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
#: A word of a split between separators, as `datasets` finds it in names of files and folders.
_WORD = re.compile(
    rf"(?:^|[-._ 0-9])({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?=$|[-._ 0-9])",
    re.IGNORECASE,
)
_SHARD = re.compile(r"(\w+(?:[.-]\w+)*)-[0-9]{5}-of-[0-9]{5}.*\..*")


class NoSplit(NeedsDecision):
    """The data have several splits, or not the one that the command reads by default."""

    code = "split"


def split_word(text: str) -> str | None:
    """The split that a word names, in any case; None if it names none.

    Example:
        >>> split_word("Validation"), split_word("TEST"), split_word("dogs")
        ('val', 'test', None)
    """
    return _SPLIT_OF.get(text.strip().lower())


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or one that archives leave: never data."""
    return name.startswith((".", "__MACOSX"))


def splits_in(name: str) -> set[str]:
    """The splits that the name of a file or folder contains, between separators.

    Example:
        >>> splits_in("mnist-test_0.parquet"), splits_in("training"), splits_in("contest.tar")
        ({'test'}, {'train'}, set())
    """
    return {_SPLIT_OF[found.lower()] for found in _WORD.findall(name)}


def by_split(files: Iterable[Path], root: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each split; those under "" have none.

    As in `datasets`, the first of these that names a split decides for all files: shards
    `data/SPLIT-00000-of-00002.*`, then the folders below `root`, then the names of the files.

    Args:
        files: below `root`.
        root: what the user named; its own name says nothing.

    Raises:
        BadInput: a name contains two splits.
    """
    paths = {file: PurePath(file.relative_to(root)) for file in files}
    sharded = {
        file: {split_word(shard[1]) or shard[1]}
        for file, path in paths.items()
        if path.parts[:-1] == ("data",) and (shard := _SHARD.fullmatch(path.name))
    }
    folders = {file: {s for part in path.parts[:-1] for s in splits_in(part)}
               for file, path in paths.items()}  # fmt: skip
    names = {file: splits_in(path.name) for file, path in paths.items()}
    table = next((t for t in (sharded, folders, names) if any(t.values())), {})
    found: dict[str, tuple[Path, ...]] = {}
    for file, path in paths.items():
        splits = table.get(file, set())
        if len(splits) > 1:
            saw = f"{', '.join(sorted(splits))} in {path}"
            raise BadInput("a file belongs to two splits by its name", saw=clip(saw, 200),
                           fix="rename it, or name the files that are meant")  # fmt: skip
        split = next(iter(splits), "")
        found[split] = (*found.get(split, ()), file)
    return found


def files_of(
    spec: DataSpec,
    files: Sequence[Path],
    root: Path,
    size: Callable[[tuple[Path, ...]], str],
) -> tuple[tuple[Path, ...], str | None]:
    """The files of the split that is read, and that split; all of them where no name says one.

    Raises:
        NoSplit, BadInput: see `pick` and `by_split`.
    """
    found = by_split(files, root)
    if {*found} <= {""} and spec.split is None:
        return tuple(files), None
    name = pick(spec, found, lambda split: size(found[split]))
    return found[name], split_word(name) or name


def data_files(folder: Path, suffix: str) -> list[Path]:
    """The files with a suffix in a folder and below it, sorted; hidden ones are no data."""
    return [
        path for path in sorted(folder.rglob(f"*{suffix}"))
        if not any(map(is_junk, path.relative_to(folder).parts))
    ]  # fmt: skip


def pick(
    spec: DataSpec, found: Collection[str], size: Callable[[str], str] = lambda name: ""
) -> str:
    """The name of the split that is read: the one that was typed, or the purpose's own.

    Without `@split`, `count` and `train` take the training split, `choose` and `validate` the
    validation split, and `measure` the only split, unless that is the training split.

    Args:
        spec: what was typed, and what for.
        found: names of the splits there are, as the data have them; "" are data without a split.
        size: how large each is, in words; called for the errors alone.

    Raises:
        NoSplit: no split was typed, and the purpose has none of its own.
        BadInput: the split that was typed does not exist, or two names mean it.
    """
    named: dict[str, list[str]] = {}
    for name in found:
        named.setdefault(split_word(name) or name, []).append(name)
    if spec.split is not None:
        exact = [name for name in found if name == spec.split]
        chosen = exact or named.get(split_word(spec.split) or spec.split, [])
    else:
        own = _own(spec.purpose, named)
        chosen = [] if own is None else named.get(own, [])
    if len(chosen) == 1:
        return chosen[0]
    order = sorted(named, key=lambda name: ("test", "val").index(name) if name in ("test", "val")
                   else 2 + (name == "train"))  # fmt: skip
    every = [name for split in order for name in named[split]]
    saw = ", ".join(_shown(name, size(name)) for name in every)
    lines = [spec.text(name) for name in every if name]
    if chosen or spec.split is not None:
        what = f"{spec.text()} has no split {spec.split}"
        if chosen:
            what = f"{spec.text()} has two names for one split: {' and '.join(chosen)}"
        raise BadInput(clip(what, 200), saw=clip(saw, 200), fix=_one_of(lines))
    raise _undecided(spec, [split for split in order if split], saw, lines)


def _own(purpose: Purpose, named: Mapping[str, object]) -> str | None:
    """The split that a purpose takes when none was typed."""
    if purpose == "measure":
        only = next(iter(named)) if len(named) == 1 else None
        return only if only not in ("train", "") else None
    return "train" if purpose in ("train", "count") else "val"


def _shown(name: str, size: str) -> str:
    return (name or "without a split") + (f" ({size})" if size else "")


def _one_of(lines: Sequence[str]) -> str:
    return f"name one: {', or '.join(lines[:6])}"


def _undecided(spec: DataSpec, splits: list[str], saw: str, lines: list[str]) -> NoSplit:
    where, given = clip(spec.text(), 120), [f"--data {line}" for line in lines]
    what, fix = f"{where} has {len(splits)} splits, and none was chosen", _one_of(given)
    match spec.purpose:
        case "measure" if splits == ["train"]:
            what = f"{where} has a training split only, and no data to measure on"
            fix = f"name other data: --data DATA; or measure on the training split: {given[0]}"
        case "choose":
            what = f"{where} has no validation split to choose on"
            fix = "name validation data: --data DATA; `train --val-split 0.1` keeps some"
            fix += f"; or choose on another split, which makes the result optimistic: {given[0]}"
            fix += "".join(f", or {line}" for line in given[1:4])
        case "validate":
            what, fix = f"{where} has no validation split", "--val-data DATA, or --val-split 0.1"
        case "train" | "count":
            what = f"{where} has no training split"
            fix = _one_of(lines if spec.purpose == "count" else given)
    return NoSplit(what, saw=clip(saw, 300), fix=fix)


def fixed_split(spec: DataSpec, facts: Mapping[str, object]) -> str | None:
    """The split of a public set whose layout is fixed; None where the source finds its own.

    A set that has one labelled split held out, its `held_out`, is measured on that.

    Raises:
        NoSplit: a strength would be chosen, and the set has no validation split.
    """
    held, splits = facts.get("held_out"), facts.get("splits")
    if spec.split is not None or held is None or not isinstance(splits, tuple):
        return spec.split
    return str(held) if spec.purpose == "measure" else pick(spec, splits)


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
    return check_spec(spec, sources) if name else spec


def check_spec(spec: DataSpec, sources: Registry[Any]) -> DataSpec:
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
    return check_spec(replace(spec, name=next(there, "folder")), sources)
