"""Which row of the head each class of a source is: one join for counts, labels and class names.

A class has a name, an index or both (`Classes`); a head has rows, and perhaps names. Names join
first. An index is a row if one side has no names. If two readings differ, neither is chosen: the
error shows both, and the option that selects each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rescale_cli.core.classes import (
    FOLDER_ORDERS,
    NO_HINTS,
    TOOL_ORDERS,
    Classes,
    HeadRows,
    RawCounts,
    RowHints,
    are_generic,
    numbers_of,
    ranks,
    row_names,
)
from rescale_cli.core.counts import ClassCounts, ZeroPolicy, few
from rescale_cli.core.joins import (
    Join,
    OutOfRange,
    no_name,
    other_names,
    out_of_range,
    pairs,
    unknown_order,
    wrong_length,
)
from rescale_cli.core.predictions import Labels
from rescale_cli.errors import BadCounts, BadInput, UnknownClassOrder
from rescale_cli.json_text import clip


@dataclass(frozen=True, slots=True)
class Alignment:
    """The row of each class of a source, and why."""

    by: str
    """How they were joined: name, index, sorted or file."""
    rows: tuple[int, ...]
    """(K,), the row of each class; -1 for a class without samples that is not in the head."""
    evidence: str
    """The join in one line."""
    texts: tuple[str, ...] = ()
    """(K,), the classes as the source names them."""
    proofs: tuple[str, ...] = ()
    """(K,), why each class is that row."""
    names: tuple[str, ...] | None = None
    """(C,), the names of the rows: from the head, else from the source."""
    notes: tuple[str, ...] = ()
    """What the user should know."""

    @property
    def named(self) -> bool:
        """Whether names, or a file of names, decide the row of each class."""
        return self.by in ("name", "file")

    def as_json(self) -> dict[str, Any]:
        """`result.alignment` of every command that joins."""
        found = sorted(zip(self.rows, self.texts, self.proofs, strict=True))
        return {
            "by": self.by,
            "evidence": self.evidence,
            "classes": [
                {
                    "row": row,
                    "name": self.names[row] if self.names else None,
                    "label": text,
                    "evidence": proof,
                }
                for row, text, proof in found
                if row >= 0
            ],
        }


def join_labels(
    labels: Labels,
    classes: Classes,
    head: HeadRows,
    hints: RowHints = NO_HINTS,
    *,
    source: str = "the data",
    samples: Sequence[str] = (),
) -> tuple[Labels, Alignment]:
    """The row of the head that each sample belongs to; see `align`.

    Args:
        labels: (N,), each the place of its class in `classes`.
        classes: of the data; it may lack classes of the head.
        head: the rows.
        hints: from the user.
        source: what the data is, for messages.
        samples: (N,), the name of each sample, for messages.

    Returns:
        labels (N,), 0 to C - 1, and how they were found.

    Example:
        >>> head = HeadRows(2, ("dog", "cat"))
        >>> join_labels(np.array([0, 1]), Classes(("cat", "dog")), head)[0]
        array([1, 0])
    """
    used = np.unique(labels)
    try:
        found = align(classes, head, hints, used=used.tolist(), source=source)
    except OutOfRange as error:
        at = int(np.flatnonzero(labels == error.place)[0])
        name = f"{at} ({clip(samples[at], 120)})" if at < len(samples) else str(at)
        raise BadInput(f"sample {name}: {error.what}", saw=error.saw, fix=error.fix) from None
    rows: Labels = np.array(found.rows, np.int64)[labels]
    if len(used) < head.size:
        note = f"{source} has samples of {len(used)} of the head's {head.size} classes"
        found = replace(found, notes=(*found.notes, note))
    return rows, found


def join_counts(
    raw: RawCounts,
    head: HeadRows,
    hints: RowHints = NO_HINTS,
    *,
    zero: ZeroPolicy = "error",
    checked: bool = False,
) -> tuple[ClassCounts, Alignment]:
    """The counts of the head's rows; see `align` and `ClassCounts.of`.

    Args:
        raw: the counts as they were read.
        head: the rows.
        hints: from the user.
        zero: how to count a class without samples.
        checked: whether labels are joined by the same names and compared with predictions, which
            would show a wrong order; otherwise the order must be certain.

    Example:
        >>> raw = RawCounts.keyed([("dog", 5), ("cat", 9)], "a.csv")
        >>> join_counts(raw, HeadRows(2, ("cat", "dog")))[0].values
        array([9, 5])
    """
    values, found = in_row_order(raw, head, hints, checked=checked)
    return ClassCounts.of(values, found.names, raw.source, zero), found


def in_row_order(
    raw: RawCounts, head: HeadRows, hints: RowHints = NO_HINTS, *, checked: bool = False
) -> tuple[tuple[object, ...], Alignment]:
    """The entries (C,) in row order, not yet checked to be counts; see `join_counts`."""
    c = head.size
    if raw.classes is None:
        if len(raw.values) != c:
            raise wrong_length(raw.source, len(raw.values), head)
        names = row_names(head, hints, checked=checked)
        texts = tuple(map(str, range(c)))
        line = f"{c} entries of {raw.source} joined with the head's {c} rows in their order"
        why = ("place in the list",) * c
        return raw.values, Alignment("index", tuple(range(c)), line, texts, why, names)
    numbered = raw.classes.order == "index"
    used = [i for i, value in enumerate(raw.values) if value or not numbered]
    try:
        found = align(
            raw.classes, head, hints, used=used, source=raw.source, counts=True, checked=checked
        )
    except OutOfRange as error:
        if len(raw.values) == c:
            raise BadCounts(error.what, saw=error.saw, fix=error.fix) from None
        raise wrong_length(raw.source, len(raw.values), head, error) from None
    if found.by != "name" and len(raw.values) != c:
        raise wrong_length(raw.source, len(raw.values), head)
    table = dict(zip(found.rows, raw.values, strict=True))
    if len(table) != len(raw.values) or any(row not in table for row in range(c)):
        raise other_names(raw, found.rows, found.names, c)
    return tuple(table[row] for row in range(c)), found


def align(
    classes: Classes,
    head: HeadRows,
    hints: RowHints = NO_HINTS,
    *,
    used: Sequence[int] | None = None,
    source: str = "the data",
    counts: bool = False,
    checked: bool = True,
) -> Alignment:
    """Join the classes of a source with the rows of a head.

    By name if every class that occurs has the name of a row (after Unicode NFC; case and spaces
    matter). By index if one side has no names, every index is a row, and index 0 occurs. In sorted
    order if that order is known; or if there are as many class folders as rows, nothing else is
    known of them, all tools agree about the order, and `counts` is false.

    Args:
        classes: K of them.
        head: the rows.
        hints: from the user; they take precedence.
        used: the classes that occur; None: all.
        source: where the classes come from, for messages.
        counts: whether the classes are those of counts, which nothing checks later.
        checked: see `join_counts`.

    Raises:
        BadInput, BadCounts: a class that occurs is not a row of the head.
        UnknownClassOrder: two readings are possible, and they differ; or the names of the user
            contradict those of the checkpoint.
    """
    names = row_names(head, hints, checked=checked)
    at = list(range(len(classes.names))) if used is None else list(used)
    case = Join(classes, at, names, head, hints, source, counts)
    by_name = case.by_name()
    if hints.listed is not None or hints.by == "name":
        if by_name is None:
            raise no_name(case, only=True)
        return _found(case, "file" if hints.listed else "name", by_name)
    if hints.by == "index":
        return _by_index(case, asked=True)
    if by_name is not None:
        return _found(case, "name", by_name, _other_reading(case, by_name))
    if names is not None and not are_generic(names) and case.speaks_of_names():
        raise no_name(case)
    if classes.indices is None or (classes.named and hints.sort):
        return _by_place(case)
    return _by_index(case)


def _found(case: Join, by: str, rows: tuple[int, ...], note: str = "", how: str = "") -> Alignment:
    """The alignment, with the evidence in words."""
    texts, c, names = case.classes.names, case.head.size, case.names
    if names is None and case.classes.named and sorted(rows) == list(range(c)):
        names = tuple(texts[i] for i in np.argsort(rows).tolist())
    k = len(case.used)
    kinds = {"name": "by name", "index": "by index", "file": "by --label-order",
             "sorted": f"in {how} order"}  # fmt: skip
    line = f"{k} classes of {case.source} joined with the head's {c} rows {kinds[by]}"
    proofs, notes = [], [note] if note else []
    composed = [t for t, r in zip(texts, rows, strict=True)
                if by == "name" and names and r >= 0 and names[r] != t]  # fmt: skip
    if composed:
        notes.append(
            f"{len(composed)} class names differ only in their Unicode form (NFC, NFD) and "
            f"were joined: {few(composed, 3)}"
        )
    other_form = {*composed}
    for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
        index = case.classes.indices[i] if case.classes.indices else row
        proofs.append({
            "name": "the same name in another Unicode form (NFC, NFD)"
            if text in other_form else "the same name",
            "index": f"index {index}",
            "file": "place in the file of --label-order",
            "sorted": f"place {row} in {how} order",
        }[by])  # fmt: skip
    return Alignment(by, rows, line, texts, tuple(proofs), names, tuple(notes))


def _by_index(case: Join, *, asked: bool = False) -> Alignment:
    """Every index is a row, provided that all are in range and 0 is one of them."""
    classes, c = case.classes, case.head.size
    indices = classes.indices if classes.indices is not None else numbers_of(classes.names)
    if indices is None:
        raise BadInput(
            f"the classes of {case.source} have no numbers for --label-order index",
            saw=few(classes.names),
            fix="join by name: --label-order name; or list them in row order: --label-order FILE",
        )
    outside = [i for i in case.used if indices[i] >= c]
    if outside:
        raise out_of_range(case, indices, outside)
    base = range(len(indices)) if classes.named else case.used
    sure = asked or classes.order in ("dataset", "run") or any(indices[i] == 0 for i in base)
    if not sure:
        low, high = min(indices[i] for i in base), max(indices[i] for i in base)
        raise UnknownClassOrder(
            f"the labels of {case.source} have no 0, so they are probably counted from 1",
            saw=f"labels {low} to {high}; the head has the rows 0 to {c - 1}",
            fix="if the labels are rows all the same: --label-order index; otherwise give the "
            "labels in the order of the head's rows: --label-order FILE",
        )
    if not asked:
        _refuse_tool_order(case, indices)
    note = ""
    if classes.named and not (asked or classes.given) and numbers_of(classes.names) is None:
        note = (f"the head has no class names: the numbers of {case.source} are taken as its "
                f"rows, {pairs(classes.names, indices)}")  # fmt: skip
    return _found(case, "index", indices, note)


def _refuse_tool_order(case: Join, indices: tuple[int, ...]) -> None:
    """Stop if the tool that trained the head sorts the names in another order than the numbers."""
    classes, order = case.classes, TOOL_ORDERS.get(case.head.tool)
    if order is None or not classes.named or len(classes.names) != case.head.size:
        return
    places = ranks(classes.names, order)
    if places is not None and places != indices:
        raise unknown_order(case, {"index": indices, order: places})


def _by_place(case: Join) -> Alignment:
    """Number the classes by sorting: in a known order, or in one that all tools agree on."""
    classes, head, hints = case.classes, case.head, case.hints
    maps = _readings(classes.names, head.size)
    known = hints.sort or (classes.order if classes.given else "") or TOOL_ORDERS.get(head.tool, "")
    if case.counts and len(classes.names) != head.size:
        raise wrong_length(case.source, len(classes.names), head)
    if case.names is not None and not are_generic(case.names) and "index" not in maps:
        raise no_name(case)
    if known in maps:
        note = ""
        if not hints.sort and not classes.given and len({*maps.values()}) > 1:
            note = (f"{head.tool} trained this checkpoint, so the classes of {case.source} are "
                    f"taken in {known} order; --order selects another")  # fmt: skip
        return _found(case, "sorted", maps[known], note, known)
    ways = {*maps.values()}
    if len(ways) != 1 or known or (case.counts and "index" not in maps):
        raise unknown_order(case, maps)
    if "index" in maps:
        return _by_index(case)
    note = (f"the head has no class names: the classes of {case.source} are taken as its rows in "
            f"sorted order, {few(classes.names)}")  # fmt: skip
    return _found(case, "sorted", maps["imagefolder"], note, "imagefolder")


def _readings(names: tuple[str, ...], c: int) -> dict[str, tuple[int, ...]]:
    """The rows (K,) that these names may be: as each tool sorts them, or as numbers."""
    maps: dict[str, tuple[int, ...]] = {}
    if len(names) == c:
        found = ((order, ranks(names, order)) for order in FOLDER_ORDERS)
        maps = {order: places for order, places in found if places is not None}
    numbers = numbers_of(names)
    if numbers is not None and max(numbers) < c:
        stem = names[0].rstrip("0123456789")
        if len(names) < c and all(n == f"{stem}{i}" for n, i in zip(names, numbers, strict=True)):
            # The head was trained on all of the folders 0 to C - 1.
            place = {name: i for i, name in enumerate(sorted(f"{stem}{i}" for i in range(c)))}
            maps = {"imagefolder": tuple(place[name] for name in names), "natural": numbers}
        maps["index"] = numbers
    return maps


def _other_reading(case: Join, rows: tuple[int, ...]) -> str:
    """A note if the numbers of the classes would be other rows than their names."""
    indices = case.classes.indices
    if indices is None:
        return ""
    moved = [i for i in case.used if indices[i] != rows[i]]
    if not moved:
        return ""
    first = moved[0]
    return (
        f"{len(moved)} classes of {case.source} are other rows by name than by number, such as "
        f"{case.classes.names[first]!r}: row {rows[first]} by name, {indices[first]} by number; "
        "the names were followed, --label-order index follows the numbers"
    )
