"""Splits of a data set: how files, folders and columns name them, and which one a command takes.

The names and the layouts are those of the library `datasets` (data_files.py), in any case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal, TypeVar

from rescale_cli.errors import BadInput, NeedsDecision
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    from rescale_cli.sources.data_spec import DataSpec

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
