"""How a source knows its classes, by name, by index or both; how tools sort class folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rescale_cli.core.counts import bad_counts, few

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
    """(K,), the number of each class; None where only sorting would number them."""
    order: str = "text"
    """What the order of the classes comes from: imagefolder, natural, index, dataset, run,
    file, or text."""
    given: bool = False
    """Whether the user chose that order, rather than the tool by default."""

    @classmethod
    def numbered(cls, size: int, order: str = "index") -> Classes:
        """The numbers 0 to `size` - 1 and no names; `dataset` where they are known to be rows."""
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
    """One entry for each class, as the file has it: not yet checked to be a number."""
    classes: Classes | None = None
    """The class of each entry; None for a plain list, whose entries are in row order."""
    source: str = "given"
    """Where the counts were read, for messages."""
    split: str | None = None
    """Which split of the data was counted; None where it has none."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """How many entries of the data are no samples, by reason."""

    @classmethod
    def keyed(
        cls, pairs: Iterable[tuple[str, object]], source: str, order: str = "file"
    ) -> RawCounts:
        """Entries under keys. Keys that are all numbers are indices, too, except of folders.

        Args:
            pairs: key and count of each class.
            source: for the errors.
            order: what the order of the pairs comes from; see `Classes.order`.

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
        """(K,), where the entries have names that are more than numbers."""
        return self.classes.names if self.classes is not None and self.classes.named else None

    def sorted_by(self, order: str) -> RawCounts:
        """The same counts with the classes in the order that `--order` names.

        Raises:
            BadCounts: the classes cannot be sorted so.
        """
        names = self.names
        places = None if names is None else ranks(names, order)
        if places is None or names is None:
            what = f"the classes of {self.source} cannot be sorted by --order {order}"
            saw = few(names) if names else "they have no names"
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
    """What timm sorts class folders by: text without case, numbers by their value.

    Example:
        >>> sorted(["n10", "N2"], key=natural_key)
        ['N2', 'n10']
    """
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def numbers_of(names: Sequence[str]) -> tuple[int, ...] | None:
    """The number of each name, where all are "3", or all are "class_3" or "LABEL_3"."""
    found = [_GENERIC.fullmatch(name) for name in names]
    if not all(found) or len({match[1] for match in found if match}) > 1:
        return None
    numbers = tuple(int(match[2]) for match in found if match)
    return numbers if len({*numbers}) == len(numbers) else None


def are_generic(names: Sequence[str]) -> bool:
    """Whether names say no more than their place: LABEL_0, LABEL_1, ...; or 0, 1, ..."""
    return numbers_of(names) == tuple(range(len(names)))
