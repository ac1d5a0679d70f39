"""From counts as a file has them to counts in the order of the head's rows.

The commonest real bug of this field is the order of the classes, so nothing here guesses: counts
that carry names are mapped through the names of the head, or refused.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rescale_cli.core.counts import ClassCounts, ZeroPolicy, bad_counts, few
from rescale_cli.errors import BadCounts, BadInput, UnknownClassOrder
from rescale_cli.json_text import clip


@dataclass(frozen=True)
class RawCounts:
    """What a file or a data set says, before it is held against a head.

    Example:
        >>> RawCounts.keyed([("1", 5), ("0", 9)], "counts.json").values
        (9, 5)
        >>> match(RawCounts.keyed([("dog", 5), ("cat", 9)], "a.csv"), 2, ("cat", "dog")).values
        array([9, 5])
    """

    values: tuple[object, ...]
    """One entry a class, as the file has it: not yet checked to be numbers."""
    names: tuple[str, ...] | None = None
    """The name of each entry; None where there are none."""
    kind: Literal["list", "index", "named"] = "list"
    """`named`: an entry belongs to its name; otherwise to its row, by place or by label."""
    source: str = "given"
    """Where it was read, for messages."""

    @classmethod
    def keyed(
        cls, pairs: Iterable[tuple[str, object]], source: str, ordered: bool = False
    ) -> RawCounts:
        """Entries under keys: keys "0".."C-1" are rows, all others names.

        Args:
            pairs: key and count, C of them.
            source: for the errors.
            ordered: the order means something (sorted folders: 0, 1, 10, 2), so that digits are
                rows only if they stand in their numerical order.

        Raises:
            BadCounts: a key is given twice, or there is none.
        """
        keys, values = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
        twice = [key for key, times in Counter(keys).items() if times > 1]
        if twice or not keys:
            what = f"a class is counted twice: {few(twice)}" if twice else "there are no counts"
            raise bad_counts(what, f"{len(keys)} entries", source)
        rows = tuple(str(i) for i in range(len(keys)))
        if keys == rows or (not ordered and set(keys) == set(rows)):
            table = dict(pairs)
            return cls(tuple(table[row] for row in rows), None, "index", source)
        return cls(values, keys, "named", source)


def match(
    raw: RawCounts,
    num_classes: int,
    class_names: tuple[str, ...] | None = None,
    given_classes: tuple[str, ...] | None = None,
    zero: ZeroPolicy = "error",
    head: str = "",
) -> ClassCounts:
    """The counts of a head's rows: `in_head_order`, then `ClassCounts.of`.

    Args:
        raw: what was read.
        num_classes: C, the rows of the head.
        class_names: the checkpoint's own names in head order; LABEL_0, LABEL_1 ... are none.
        given_classes: the names that the user says, in head order; they go first.
        zero: see `ClassCounts.of`.
        head: what the head is, for the errors: `fc.weight (100, 512) in resnet32.pth`.

    Raises:
        BadCounts: not C entries, names missing or surplus, or not positive whole numbers.
        BadInput: `given_classes` are not C different names.
        UnknownClassOrder: nothing says which row a name is.
    """
    values, names = in_head_order(raw, num_classes, class_names, given_classes, head)
    return ClassCounts.of(values, names, raw.source, zero)


def in_head_order(
    raw: RawCounts,
    num_classes: int,
    class_names: tuple[str, ...] | None = None,
    given_classes: tuple[str, ...] | None = None,
    head: str = "",
) -> tuple[tuple[object, ...], tuple[str, ...] | None]:
    """The entries (C,) in head order, not checked to be counts, and the names; see `match`."""
    names = _usable_names(raw, num_classes, class_names, given_classes)
    keys, same = raw.names, set(raw.names or ()) == set(names or ())
    if keys is not None and names is not None and (raw.kind == "named" or same):
        if not same:
            raise _other_names(raw, keys, names, head)
        table = dict(zip(keys, raw.values, strict=True))
        return tuple(table[name] for name in names), names
    if len(raw.values) != num_classes:
        raise _wrong_length(raw, num_classes, head)
    if raw.kind == "named":
        raise _unknown_order(raw, class_names)
    if raw.kind == "index" and names is not None:
        row = {key: i for i, key in enumerate(keys or map(str, range(num_classes)))}
        moved = [name for i, name in enumerate(names) if row.get(name, i) != i]
        if moved:  # SVHN calls row 9 "0"; a folder 10 is row 2: label or name, who knows?
            raise UnknownClassOrder(
                f"{raw.source} numbers its classes otherwise than the head's names",
                saw=f"{few(moved)} would be another row by number than by name",
                fix="give the counts as a JSON list in the order of the head's rows: --counts FILE",
            )
    return raw.values, names if names is not None else keys


def _usable_names(
    raw: RawCounts,
    num_classes: int,
    own: tuple[str, ...] | None,
    given: tuple[str, ...] | None,
) -> tuple[str, ...] | None:
    """The names in head order, all different, or None."""
    if given is not None:
        return given_names(given, num_classes)
    if own is None or len(own) != num_classes or len(set(own)) != num_classes:
        return None
    return None if are_placeholders(own) and set(raw.names or ()) != set(own) else own


def given_names(given: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """The names that the user says, if they are one for each row of the head.

    Raises:
        BadInput: not C of them, or one is given twice.
    """
    twice = [name for name, times in Counter(given).items() if times > 1]
    if len(given) != num_classes or twice:
        saw = f"{len(given)} names" + (f", twice: {few(twice)}" if twice else "")
        what = f"--classes does not name the {num_classes} rows of the head once each"
        raise BadInput(what, saw=saw, fix="give one name a row, in head order: --classes FILE")
    return given


def are_placeholders(names: tuple[str, ...]) -> bool:
    """Whether names say no more than their place: LABEL_0, LABEL_1, ...; or 0, 1, ..."""
    found = [re.fullmatch(r"(?i:(?:label|class)[ _-]?)?([0-9]{1,9})", name) for name in names]
    return all(place and int(place[1]) == i for i, place in enumerate(found))


def _wrong_length(raw: RawCounts, num_classes: int, head: str) -> BadCounts:
    entries = f"{len(raw.values)} entries in {raw.source}"
    return BadCounts(
        f"the head has {num_classes} rows but there are counts for {len(raw.values)} classes",
        saw=f"{head}; {entries}" if head else entries,
        fix="pass the counts of the data this checkpoint was trained on: --counts FILE",
    )


def _unknown_order(raw: RawCounts, own: tuple[str, ...] | None) -> UnknownClassOrder:
    have = f"only {few(own, 2)}" if own else "no class names"
    return UnknownClassOrder(
        f"{raw.source} names its classes, and nothing says which row of the head each name is",
        saw=f"it counts {few(raw.names or ())}; the checkpoint has {have}",
        fix="give the names in the order of the head's rows: --classes FILE; if the model was "
        "trained on this data in this order, that is the same file",
    )


def _other_names(
    raw: RawCounts, keys: tuple[str, ...], names: tuple[str, ...], head: str
) -> BadCounts:
    """The error for names that are not the head's: which, and what was probably meant."""
    counted, wanted_names = set(keys), set(names)
    missing = [name for name in names if name not in counted]
    surplus = [key for key in keys if key not in wanted_names]
    if len(keys) != len(names) and len(missing) == len(names):
        return _wrong_length(raw, len(names), head)
    what = f"there is no count for {few(missing)}" if missing else ""
    if surplus and not missing:
        what = f"there are counts for classes that the head does not have: {few(surplus)}"
    fix = f"name the classes in {raw.source} as the head does: {few(names)}"
    for wanted in missing[:1]:
        same = [key for key in surplus if key.strip().casefold() == wanted.strip().casefold()]
        close = same or difflib.get_close_matches(wanted, surplus[:1000], n=1)
        if len(close) == 1:
            fix = f"did you mean it by {clip(close[0], 80)!r}? write {clip(wanted, 80)!r} instead"
    saw = f"{raw.source} counts {few(surplus)}, not in the head" if surplus else raw.source
    return BadCounts(what, saw=saw, fix=fix)
