"""What a source knows about its classes, and what the user says about the rows of the head."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rescale_cli.core.counts import bad_counts, few
from rescale_cli.errors import BadInput, UnknownClassOrder, UsageError
from rescale_cli.json_text import clip

#: Orders in which class folders become rows, and the tools that sort them so.
FOLDER_ORDERS = {
    "imagefolder": "torchvision's ImageFolder, fastai, Keras",
    "natural": "timm",
}
#: A number as text. Nine digits always fit into an int64.
NUMBER = re.compile("[0-9]{1,9}")
_GENERIC = re.compile(r"((?i:(?:label|class)[ _-]?)?)([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Classes:
    """The K classes of a source, and what is known about each.

    Example:
        >>> Classes.numbered(3).named, Classes(("cat", "dog")).named
        (False, True)
    """

    names: tuple[str, ...]
    """(K,), the text of each class exactly as the source has it: "cat", "10", "007"."""
    indices: tuple[int, ...] | None = None
    """(K,), the number of each class; None if only sorting would number them."""
    order: str = "text"
    """Where the order of the classes comes from: imagefolder, natural, index, dataset, run, file
    or text."""
    given: bool = False
    """Whether the user chose that order; otherwise it is the default of the tool."""

    @classmethod
    def numbered(cls, size: int, order: str = "index") -> Classes:
        """The numbers 0 to `size` - 1 without names; `dataset` if they are known to be rows."""
        return cls(tuple(map(str, range(size))), tuple(range(size)), order)

    @property
    def named(self) -> bool:
        """Whether the names say more than the numbers beside them."""
        return self.indices is None or not all(NUMBER.fullmatch(name) for name in self.names)


@dataclass(frozen=True, slots=True)
class RawCounts:
    """The counts of a file or a data set, before they are joined with a head.

    Example:
        >>> RawCounts.keyed([("1", 5), ("0", 9)], "counts.json").values
        (9, 5)
    """

    values: tuple[object, ...]
    """One entry per class, as in the file: not yet checked to be a number."""
    classes: Classes | None = None
    """The class of each entry; None for a plain list, whose entries are in row order."""
    source: str = "given"
    """Where the counts were read, for messages."""
    split: str | None = None
    """The split of the data that was counted; None if there are no splits."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """The number of entries of the data that are not samples, by reason."""

    @classmethod
    def keyed(
        cls, pairs: Iterable[tuple[str, object]], source: str, order: str = "file"
    ) -> RawCounts:
        """Counts under keys. If all keys are numbers, they are also indices, except for folders.

        Args:
            pairs: key and count of each class.
            source: for the errors.
            order: where the order of the pairs comes from; see `Classes.order`.

        Raises:
            BadCounts: a key occurs twice, or there are no keys.
        """
        keys, values = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
        twice = [key for key, times in Counter(keys).items() if times > 1]
        if twice or not keys:
            what = f"a class is counted twice: {few(twice)}" if twice else "there are no counts"
            raise bad_counts(what, f"{len(keys)} entries", source)
        if order in FOLDER_ORDERS or not all(NUMBER.fullmatch(key) for key in keys):
            return cls(values, Classes(keys, None, order), source)
        table = sorted(pairs, key=lambda pair: int(pair[0]))
        names = tuple(key for key, _ in table)
        indices = tuple(int(name) for name in names)
        if len({*indices}) != len(indices):  # "1" and "01" are two names
            return cls(values, Classes(keys, None, order), source)
        return cls(tuple(value for _, value in table), Classes(names, indices, order), source)

    @property
    def names(self) -> tuple[str, ...] | None:
        """(K,), if the entries have names that are not only numbers; else None."""
        return self.classes.names if self.classes is not None and self.classes.named else None

    def sorted_by(self, order: str) -> RawCounts:
        """The same counts with the classes in the order of `--order`.

        Raises:
            BadCounts: the classes cannot be sorted in this order.
        """
        names = self.names
        places = None if names is None else ranks(names, order)
        if places is None or names is None:
            what = f"the classes of {self.source} cannot be sorted by --order {order}"
            saw = few(names) if names else "no class names"
            raise bad_counts(what, saw, self.source)
        at = sorted(range(len(places)), key=places.__getitem__)
        classes = Classes(tuple(names[i] for i in at), None, order, given=True)
        return replace(self, values=tuple(self.values[i] for i in at), classes=classes)


def ranks(names: Sequence[str], order: str) -> tuple[int, ...] | None:
    """The place of each name (K,) among the names sorted in that order.

    Args:
        names: K different names.
        order: `imagefolder` (as text), `natural` (numbers by value, case ignored, as timm sorts) or
            `index` (the names are the numbers 0 to K - 1 themselves).

    Returns:
        None where the order does not decide every place.

    Example:
        >>> ranks(("a1", "a10", "B2"), "imagefolder"), ranks(("a1", "a10", "B2"), "natural")
        ((1, 2, 0), (0, 1, 2))
    """
    if order == "index":
        found = numbers_of(names)
        return found if found is not None and sorted(found) == list(range(len(names))) else None
    if order == "imagefolder":
        keys: list[object] = list(names)
    else:
        keys = [natural_key(name) for name in names]
        if len({*map(repr, keys)}) < len(keys):  # timm sorts a set: equal keys have no order
            return None
    at = sorted(range(len(keys)), key=keys.__getitem__)  # type: ignore[arg-type]
    places = [0] * len(at)
    for place, i in enumerate(at):
        places[i] = place
    return tuple(places)


def natural_key(name: str) -> list[str | int]:
    """The key by which timm sorts class folders: text ignoring case, numbers by value.

    Example:
        >>> sorted(["n10", "N2"], key=natural_key)
        ['N2', 'n10']
    """
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def numbers_of(names: Sequence[str]) -> tuple[int, ...] | None:
    """The number of each name, if all are like "3", or all like "class_3" or "LABEL_3"."""
    found = [_GENERIC.fullmatch(name) for name in names]
    if not all(found) or len({match[1] for match in found if match}) > 1:
        return None
    numbers = tuple(int(match[2]) for match in found if match)
    return numbers if len({*numbers}) == len(numbers) else None


def are_generic(names: Sequence[str]) -> bool:
    """Whether the names only count the rows: LABEL_0, LABEL_1, ...; or 0, 1, ..."""
    return numbers_of(names) == tuple(range(len(names)))


#: How a training tool sorts class folders.
TOOL_ORDERS = {"timm": "natural", "torchvision": "imagefolder", "rescale": "imagefolder"}


@dataclass(frozen=True, slots=True)
class RowHints:
    """What the user says about the rows of the head."""

    names: tuple[str, ...] | None = None
    """(C,), the names of `--classes`, in row order."""
    order: str = ""
    """Where their order comes from, if their file says it; see `Classes.order`."""
    given: bool = False
    """Whether a user chose that order when the file was written."""
    source: str = "--classes"
    """The file, for messages."""
    by: str = ""
    """`--label-order name` or `index`."""
    listed: tuple[str, ...] | None = None
    """(C,), `--label-order FILE`: the name or number of each row, which overrides all else."""
    sort: str = ""
    """`--order`: how the class folders were sorted when the model was trained."""

    @property
    def doubtful(self) -> str:
        """The order of the names, if `counts` chose it and another tool would sort differently."""
        if self.names is None or self.order not in FOLDER_ORDERS or self.given or self.sort:
            return ""
        other = "natural" if self.order == "imagefolder" else "imagefolder"
        return self.order if ranks(self.names, other) != tuple(range(len(self.names))) else ""


NO_HINTS = RowHints()


@dataclass(frozen=True, slots=True)
class HeadRows:
    """The rows that classes are joined with."""

    size: int
    """C."""
    own: tuple[str, ...] | None = None
    """(C,), the names in the checkpoint; LABEL_0, LABEL_1, ... carry no information."""
    tool: str = ""
    """The tool that trained the checkpoint, a key of `TOOL_ORDERS`; empty if unknown."""
    title: str = ""
    """What the head is, for messages: `fc.weight (100, 512) in resnet32.pth`."""


def row_names(head: HeadRows, hints: RowHints, *, checked: bool = True) -> tuple[str, ...] | None:
    """The names of the rows (C,): those of the user, else those of the checkpoint.

    Raises:
        BadInput: those of the user are not C different names.
        UsageError: they are in another order than `--order`.
        UnknownClassOrder: they contradict those of the checkpoint, or the order in which its
            training tool sorts folders; or only the default of `counts` chose their order.
    """
    own = (
        head.own if head.own and len({*map(nfc, head.own)}) == len(head.own) == head.size else None
    )
    if hints.listed is not None:
        return _one_a_row(hints.listed, head.size, "--label-order")
    if hints.names is None or (hints.order == "index" and len(hints.names) == head.size):
        return own
    given = _one_a_row(hints.names, head.size, "--classes")
    places = ranks(given, hints.sort) if hints.sort else None
    if places is not None and hints.order in FOLDER_ORDERS:
        given = tuple(given[i] for i in np.argsort(places).tolist())
    elif places is not None and places != tuple(range(len(given))):
        raise UsageError(
            f"{hints.source} lists the rows in another order than --order {hints.sort}",
            saw=few(given),
            fix="leave out --order to follow the file, or leave out --classes",
        )
    if own is not None and not are_generic(own):
        _refuse_contradiction(own, given, hints)
    elif hints.order in FOLDER_ORDERS and not hints.sort:
        _check_order(given, head, hints, checked)
    return given


def _one_a_row(given: tuple[str, ...], size: int, option: str) -> tuple[str, ...]:
    twice = [name for name, times in Counter(map(nfc, given)).items() if times > 1]
    if len(given) != size or twice:
        saw = f"{len(given)} names" + (f", twice: {few(twice)}" if twice else "")
        what = f"{option} does not name the {size} rows of the head once each"
        raise BadInput(what, saw=saw, fix=f"give one name for each row, in order: {option} FILE")
    return given


def _refuse_contradiction(own: tuple[str, ...], given: tuple[str, ...], hints: RowHints) -> None:
    """`--classes` may rename rows, but not give the name of one row to another."""
    row = {nfc(name): i for i, name in enumerate(own)}
    moved = [i for i, name in enumerate(given) if row.get(nfc(name), i) != i]
    if moved:
        raise UnknownClassOrder(
            f"{hints.source} contradicts the class names in the checkpoint",
            saw=side_by_side((f"row {i}", given[i], own[i]) for i in moved)
            + f" ({hints.source}, then the checkpoint)",
            fix=f"leave out --classes to follow the checkpoint; or insist on {hints.source}: "
            "--label-order FILE",
        )


def _check_order(given: tuple[str, ...], head: HeadRows, hints: RowHints, checked: bool) -> None:
    """A file that `counts` wrote has the order of the folders, not always that of the rows."""
    tool = TOOL_ORDERS.get(head.tool)
    if tool is None and (checked or not hints.doubtful):
        return
    other = tool or ("natural" if hints.order == "imagefolder" else "imagefolder")
    places = ranks(given, other)
    if places is None or places == tuple(range(len(given))):
        return
    differ = [i for i, place in enumerate(places) if place != i]
    by_tool = f"{head.tool} trained this checkpoint, and sorts class folders differently"
    raise UnknownClassOrder(
        f"{hints.source} has its classes in {hints.order} order; "
        + (by_tool if tool else "nothing says whether the head has them in that order, too"),
        saw=side_by_side((repr(clip(given[i], 40)), f"row {i}", f"row {places[i]}")
                          for i in differ) + f" ({hints.order}, then {other})",
        fix=f"say which order the head has: --order {other}, or --order {hints.order}",
    )  # fmt: skip


def side_by_side(triples: Iterable[tuple[str, str, str]], most: int = 3) -> str:
    """The first classes that differ, each with both readings."""
    shown = list(triples)
    more = f"; ... ({len(shown)} in all)" if len(shown) > most else ""
    return "; ".join(f"{who}: {clip(a, 40)} or {clip(b, 40)}" for who, a, b in shown[:most]) + more


def nfc(name: str) -> str:
    """The form in which names are compared: composed Unicode, with case and spaces unchanged."""
    return unicodedata.normalize("NFC", name)
