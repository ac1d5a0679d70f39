"""A join of classes and rows, and the errors for classes that cannot be joined."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from rescale_cli.core.classes import (
    FOLDER_ORDERS,
    Classes,
    HeadRows,
    RawCounts,
    RowHints,
    nfc,
    numbers_of,
    side_by_side,
)
from rescale_cli.core.counts import few
from rescale_cli.errors import BadCounts, BadInput, UnknownClassOrder
from rescale_cli.json_text import clip

_SORT = (
    "say how the training folders were sorted: --order imagefolder "
    f"({FOLDER_ORDERS['imagefolder']}) or --order natural ({FOLDER_ORDERS['natural']}); or give "
    "the names in the order of the head's rows: --classes FILE"
)
_SELECT = (
    "follow the numbers: --label-order index; or list the labels in the order of the head's rows: "
    "--label-order FILE"
)


@dataclass(frozen=True, slots=True)
class Join:
    """The classes of a source and the rows of a head, to be joined."""

    classes: Classes
    used: list[int]
    names: tuple[str, ...] | None
    head: HeadRows
    hints: RowHints
    source: str
    counts: bool

    def by_name(self) -> tuple[int, ...] | None:
        """The row of each class by its name; None if a class that occurs has no such row."""
        if self.names is None:
            return None
        row = {nfc(name): i for i, name in enumerate(self.names)}
        texts = self.classes.names
        if self.hints.listed and not self.classes.named and self.classes.indices:
            texts = tuple(t if nfc(t) in row else str(i)
                          for t, i in zip(texts, self.classes.indices, strict=True))  # fmt: skip
        rows = tuple(row.get(nfc(text), -1) for text in texts)
        return None if any(rows[i] < 0 for i in self.used) else rows

    def speaks_of_names(self) -> bool:
        """Whether the classes have names that are not numbers, or any name of the head."""
        known = {nfc(name) for name in self.names or ()}
        if any(nfc(self.classes.names[i]) in known for i in self.used):
            return True
        return self.classes.named and numbers_of(self.classes.names) is None


class OutOfRange(BadInput):
    """A label that is not a row; `place` is its class."""

    place = 0


def out_of_range(case: Join, indices: Sequence[int], outside: list[int]) -> OutOfRange:
    """The error for indices that are not rows; it says whether they seem to start at 1."""
    c, names, texts = case.head.size, case.names, case.classes.names
    saw = f"{len(outside)} labels are outside, the largest is {max(indices[i] for i in outside)}"
    fix = "use data that this model was trained for, or a model that was trained for this data"
    if names is not None and all(
        0 < indices[i] <= c and nfc(names[indices[i] - 1]) == nfc(texts[i]) for i in case.used
    ):
        fix = "the labels are 1 too large, as their names show: --label-order name"
    elif min(indices[i] for i in case.used) == 1 and max(indices[i] for i in case.used) == c:
        saw += "; they may be counted from 1, or belong to another head"
        fix = "give the labels in the order of the head's rows: --label-order FILE"
    what = (f"{case.source} has label {texts[outside[0]]}, but the head has the rows 0 to "
            f"{c - 1}")  # fmt: skip
    error = OutOfRange(what, saw=saw, fix=fix)
    error.place = outside[0]
    return error


def no_name(case: Join, *, only: bool = False) -> BadInput | UnknownClassOrder:
    """The error for classes that are not in the head, or only by number."""
    classes, names = case.classes, case.names or ()
    row = {nfc(name): i for i, name in enumerate(names)}
    strange = [classes.names[i] for i in case.used if nfc(classes.names[i]) not in row]
    saw = f"in the data: {few(strange)}; in the head: {few(names) or 'no names'}"
    fix = "give the data's names in the order of the head's rows: --classes FILE"
    if close := _close(strange[:1], names):
        fix = f"is {clip(strange[0], 80)!r} the head's {clip(close, 80)!r}? then {fix}"
    indices = classes.indices
    if not only and indices is not None and all(indices[i] < case.head.size for i in case.used):
        texts = [(classes.names[i], indices[i]) for i in case.used]
        both = side_by_side(
            (
                f"label {clip(text, 40)}",
                f"row {row[nfc(text)]}" if nfc(text) in row else "no row",
                f"row {index} ({clip(names[index], 40)})",
            )
            for text, index in texts
        )
        what = f"{case.source} and the head name their classes differently"
        return UnknownClassOrder(what, saw=f"{both} (by name, then by number)", fix=_SELECT)
    if case.counts:
        return _no_count(case, strange)
    what = f"{len(strange)} classes of {case.source} are not in the head"
    return BadInput(what, saw=saw, fix=fix)


def _no_count(case: Join, strange: list[str]) -> BadCounts:
    """The error for counts of other classes than those of the head, with a likely correction."""
    names, counted = case.names or (), {nfc(name) for name in case.classes.names}
    missing = [name for name in names if nfc(name) not in counted]
    if len(case.classes.names) != len(names) and len(missing) == len(names):
        return wrong_length(case.source, len(case.classes.names), case.head)
    what = f"there is no count for {few(missing)}"
    if not missing:
        what = f"there are counts for classes that the head does not have: {few(strange)}"
    fix = f"name the classes in {case.source} as the head does: {few(names)}"
    for wanted in missing[:1]:
        if close := _close([wanted], strange):
            fix = f"{case.source} has {clip(close, 80)!r}: is that {clip(wanted, 80)!r}? "
            fix += "Then rename it there."
    return BadCounts(
        what, saw=f"{case.source} counts {few(strange)}, which the head does not have", fix=fix
    )


def unknown_order(case: Join, maps: dict[str, tuple[int, ...]]) -> UnknownClassOrder:
    """The error for names whose order is unknown; it shows both readings if there are two."""
    what = f"{case.source} names its classes, and nothing says which row of the head each name is"
    names, c, order = case.classes.names, case.head.size, case.classes.order
    if case.counts and order in FOLDER_ORDERS:
        what = f"{case.source} lists its classes in {order} order, and nothing says that the rows "
        what += "of the head are in that order, too"
    ways = list(dict.fromkeys(maps.values()))
    saw = f"it has {few(names)}; the head has {c} rows without names"
    fix = _SORT
    if len(ways) > 1:
        first, second = (next(o for o, rows in maps.items() if rows == way) for way in ways)
        moved = [i for i in range(len(names)) if ways[0][i] != ways[1][i]]
        saw = side_by_side(
            (repr(clip(names[i], 40)), f"row {ways[0][i]}", f"row {ways[1][i]}") for i in moved
        ) + f" ({first}, then {second})"  # fmt: skip
        if "index" in maps:
            fix = f"the numbers are rows: --label-order index; or {_SORT}"
    elif not ways:
        fix = "give the names in the order of the head's rows: --classes FILE; `rescale-cli counts`"
        fix += " of the training folder writes such a file with -o"
    elif case.counts and order in FOLDER_ORDERS:
        fix = f"if the model was trained on class folders in this order: --order {order}; "
        fix += "otherwise give the names in the order of the head's rows: --classes FILE"
    elif case.counts:
        fix += "; if the model was trained on this data in this order, that is the same file"
    return UnknownClassOrder(what, saw=saw, fix=fix)


def wrong_length(
    source: str, entries: int, head: HeadRows, error: BadInput | None = None
) -> BadCounts:
    """The error for counts that are not one per row; `error` says more about their labels."""
    saw = f"{entries} entries in {source}"
    saw += f"; {error.saw}" if error is not None else ""
    return BadCounts(
        f"the head has {head.size} rows but there are counts for {entries} classes",
        saw=f"{head.title}; {saw}" if head.title else saw,
        fix="pass the counts of the data this checkpoint was trained on: --counts FILE",
    )


def other_names(
    raw: RawCounts, rows: Sequence[int], names: Sequence[str] | None, size: int
) -> BadCounts:
    """The error for rows without a count."""
    there = {*rows}
    texts = [names[i] if names else f"row {i}" for i in range(size) if i not in there]
    return BadCounts(
        f"there is no count for {few(texts)}",
        saw=raw.source,
        fix=f"name the classes in {raw.source} as the head does, each once",
    )


def _close(strange: Sequence[str], names: Sequence[str]) -> str:
    for name in strange:
        same = [own for own in names if own.strip().casefold() == name.strip().casefold()]
        close = same or difflib.get_close_matches(name, names[:1000], n=1)
        if close:
            return close[0]
    return ""


def pairs(names: Sequence[str], indices: Sequence[int]) -> str:
    """Each number with its name, for a message."""
    return few([f"{i} = {clip(name, 40)}" for name, i in zip(names, indices, strict=True)])
