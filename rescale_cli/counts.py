"""ClassCounts: how many training samples each row of the head has seen, checked and in its order.

The commonest real bug of this field is the order of the classes, so nothing here guesses: counts
that carry names are mapped through the names of the head, or refused.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rescale_cli.errors import BadCounts, BadInput, UnknownClassOrder, UsageError
from rescale_cli.json_text import clip

MAX_COUNT = 10**15
ZeroPolicy = Literal["error", "one", "skip"]


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Training samples of each class; entry i belongs to row i of the head.

    Example:
        >>> counts = ClassCounts.of([100, 25, 4], names=["cat", "dog", "owl"])
        >>> counts.factors(gamma=0.5).tolist()
        [1.0, 2.0, 5.0]
        >>> counts.exclude(["cat"]).factors(gamma=0.5).tolist()
        [1.0, 1.0, 2.5]
    """

    values: NDArray[np.int64]
    """(C,), all at least 1; the 1 of a class skipped for having no sample only holds its place."""
    names: tuple[str, ...] | None = None
    """The class names in head order, for messages; None where nobody said them."""
    source: str = "given"
    """Where the counts came from: `counts.json`, `stdin`, `folder train/`."""
    skipped: tuple[int, ...] = ()
    """Rows that stay as they are and are never n_1, ascending."""
    target: NDArray[np.float64] | None = None
    """(C,), the shares of the classes where the model is used, sum 1; None means uniform."""

    @classmethod
    def of(
        cls,
        values: Sequence[object] | NDArray[Any],
        names: Sequence[str] | None = None,
        source: str = "given",
        zero: ZeroPolicy = "error",
    ) -> ClassCounts:
        """Check that there is one positive whole number a class.

        Args:
            values: (C,), C >= 2; 3.0 is whole, 3.5, True and "3" are not.
            names: (C,), or None.
            source: for the errors.
            zero: what a class without samples is: an error, counted as one, or skipped.

        Raises:
            BadCounts: an entry is zero (by policy), negative, fractional, not finite, no number,
                above 10^15; or there are fewer than two entries, or only zeros.
        """
        entries = values.tolist() if isinstance(values, np.ndarray) else values
        if isinstance(entries, str | bytes) or not isinstance(entries, Sequence):
            raise _bad("counts are a list of one number a class", _show(entries), source)
        if len(entries) < 2:
            word = "there are no counts" if not entries else "there is a count for one class only"
            raise _bad(word, f"{len(entries)} entries, at least 2 are needed", source)
        label = None if names is None else tuple(names)
        whole = [_whole(entry, i, label, source) for i, entry in enumerate(entries)]
        empty = tuple(i for i, n in enumerate(whole) if n == 0)
        if len(empty) == len(whole):
            raise _bad("no class has any training sample", "all counts are 0", source)
        if empty and zero == "error":
            raise _zero(empty, label, source)
        array = np.maximum(np.array(whole, dtype=np.int64), 1)
        array.flags.writeable = False
        return cls(array, label, source, empty if zero == "skip" else ())

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.values)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """(C,), False for the skipped rows."""
        mask = np.ones(self.num_classes, dtype=np.bool_)
        mask[list(self.skipped)] = False
        return mask

    @property
    def effective(self) -> NDArray[np.float64]:
        """(C,), n_i / (C * target_i): the counts, weighed by the shares where the model is used."""
        values = self.values.astype(np.float64)
        if self.target is None:
            return values
        shares = np.where(self.kept, self.target * self.num_classes, 1.0)
        result: NDArray[np.float64] = values / shares
        return result

    @property
    def largest(self) -> float:
        """n_1: the largest effective count of the rows that are not skipped. Never just entry 0."""
        return float(self.effective[self.kept].max())

    @property
    def ratio(self) -> float:
        """The imbalance n_1 / n_C, of the training counts of the rows that are not skipped."""
        kept = self.values[self.kept]
        return float(kept.max() / kept.min())

    @property
    def priors(self) -> NDArray[np.float64]:
        """(C,), sum 1: the shares of the effective counts, so n_i / N when there is no target."""
        shares: NDArray[np.float64] = self.effective / self.effective.sum()
        return shares

    def factors(self, gamma: float) -> NDArray[np.float64]:
        """(n_1 / n_i)^gamma, (C,): exactly 1 for skipped rows, for equal counts, at gamma = 0."""
        ratios = np.where(self.kept, self.largest / self.effective, 1.0)
        result: NDArray[np.float64] = ratios**gamma
        return result

    def groups(self, many: int = 100, few: int = 20) -> dict[str, NDArray[np.bool_]]:
        """Masks (C,) of the classes with > `many`, between, and < `few` training samples.

        Raises:
            UsageError: few > many, so that a class would be in two groups.
        """
        if few > many + 1:
            saw = f"many {many}, few {few}"
            raise UsageError("the groups overlap", saw=saw, fix="--groups 100,20")
        is_many, is_few = self.values > many, self.values < few
        return {"many": is_many, "medium": ~(is_many | is_few), "few": is_few}

    def exclude(self, classes: Iterable[str | int]) -> ClassCounts:
        """Skip classes by name, or by row where no class has that name.

        Raises:
            UsageError: no such class, a name that two classes have, or none would be left.
        """
        rows = {*self.skipped, *(self._row(name) for name in classes)}
        if len(rows) == self.num_classes:
            saw = f"{len(rows)} of {self.num_classes} classes are excluded"
            raise UsageError("no class is left", saw=saw, fix="leave out one --exclude-class")
        return replace(self, skipped=tuple(sorted(rows)))

    def against_target(self, target: Sequence[object] | NDArray[Any]) -> ClassCounts:
        """Weigh the counts by target shares (C,), of any sum; call it after `exclude`.

        Raises:
            BadInput: not one finite number above 0 a class (skipped classes may have 0).
        """
        fix = "give one share above 0 a class, or leave a class out: --exclude-class NAME"
        shares = [_share(entry) for entry in target]
        total = math.fsum(shares)
        if len(shares) != self.num_classes:
            saw = f"{len(shares)} shares, {self.num_classes} classes"
            raise BadInput("the target prior is not one share a class", saw=saw, fix=fix)
        for i, (share, kept) in enumerate(zip(shares, self.kept.tolist(), strict=True)):
            # Below 1e-12 a share is a slip, and n_i / share could overflow.
            if not (share > 0 and share >= 1e-12 * total) and (kept or share != 0):
                what = f"the target share of class {_label(i, self.names)} is not above 0"
                raise BadInput(what, saw=f"entry {i}: {_show(target[i])}", fix=fix)
        array = np.array(shares) / total
        array.flags.writeable = False
        return replace(self, target=array)

    def _row(self, name: str | int) -> int:
        found = [i for i, known in enumerate(self.names or ()) if known == name]
        if not found and re.fullmatch("[0-9]{1,9}", str(name)) and int(name) < self.num_classes:
            found = [int(name)]
        if len(found) != 1:
            what = "two classes are called" if found else "there is no class called"
            saw = f"{self.num_classes} classes: {_few(self.names or ('without names',), 10)}"
            fix = f"name a class, or a row from 0 to {self.num_classes - 1}: --exclude-class NAME"
            raise UsageError(f"{what} {clip(str(name), 80)!r}", saw=saw, fix=fix)
        return found[0]


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
            what = f"a class is counted twice: {_few(twice)}" if twice else "there are no counts"
            raise _bad(what, f"{len(keys)} entries", source)
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
                saw=f"{_few(moved)} would be another row by number than by name",
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
        twice = [name for name, times in Counter(given).items() if times > 1]
        if len(given) != num_classes or twice:
            saw = f"{len(given)} names" + (f", twice: {_few(twice)}" if twice else "")
            what = f"--classes does not name the {num_classes} rows of the head once each"
            raise BadInput(what, saw=saw, fix="give one name a row, in head order: --classes FILE")
        return given
    if own is None or len(own) != num_classes or len(set(own)) != num_classes:
        return None
    generic = (re.fullmatch(r"(?i:(?:label|class)[ _-]?)?([0-9]{1,9})", name) for name in own)
    placeholders = all(found and int(found[1]) == i for i, found in enumerate(generic))
    return None if placeholders and set(raw.names or ()) != set(own) else own


def _wrong_length(raw: RawCounts, num_classes: int, head: str) -> BadCounts:
    entries = f"{len(raw.values)} entries in {raw.source}"
    return BadCounts(
        f"the head has {num_classes} rows but there are counts for {len(raw.values)} classes",
        saw=f"{head}; {entries}" if head else entries,
        fix="pass the counts of the data this checkpoint was trained on: --counts FILE",
    )


def _unknown_order(raw: RawCounts, own: tuple[str, ...] | None) -> UnknownClassOrder:
    have = f"only {_few(own, 2)}" if own else "no class names"
    return UnknownClassOrder(
        f"{raw.source} names its classes, and nothing says which row of the head each name is",
        saw=f"it counts {_few(raw.names or ())}; the checkpoint has {have}",
        fix="give the names in the order of the head's rows, one a line: --classes FILE",
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
    what = f"there is no count for {_few(missing)}" if missing else ""
    if surplus and not missing:
        what = f"there are counts for classes that the head does not have: {_few(surplus)}"
    fix = f"name the classes in {raw.source} as the head does: {_few(names)}"
    for wanted in missing[:1]:
        same = [key for key in surplus if key.strip().casefold() == wanted.strip().casefold()]
        close = same or difflib.get_close_matches(wanted, surplus[:1000], n=1)
        if len(close) == 1:
            fix = f"did you mean it by {clip(close[0], 80)!r}? write {clip(wanted, 80)!r} instead"
    saw = f"{raw.source} counts {_few(surplus)}, not in the head" if surplus else raw.source
    return BadCounts(what, saw=saw, fix=fix)


def _whole(entry: object, row: int, names: tuple[str, ...] | None, source: str) -> int:
    """The entry as a whole number from 0 to 10^15, or the error that names it."""
    if isinstance(entry, np.generic):
        entry = entry.item()
    if isinstance(entry, bool) or not isinstance(entry, int | float):
        word = "is text, not a number" if isinstance(entry, str) else "is not a number"
    elif isinstance(entry, float) and not math.isfinite(entry):
        word = "is not finite"
    elif entry < 0:
        word = "is negative"
    elif entry != int(entry):
        word = "is not a whole number: counts, not shares or rates, are needed"
    elif entry > MAX_COUNT:
        word = "is too large to be a number of samples"
    else:
        return int(entry)
    what = f"the count of class {_label(row, names)} {word}"
    raise _bad(what, f"entry {row}: {_show(entry)}", source)


def _share(entry: object) -> float:
    """A share as a float; what is none becomes -1, which is refused."""
    if isinstance(entry, bool) or not isinstance(entry, int | float | np.integer | np.floating):
        return -1.0
    return float(entry) if 0 <= entry < 1e300 else -1.0


def _zero(empty: tuple[int, ...], names: tuple[str, ...] | None, source: str) -> BadCounts:
    more = f" (and {len(empty) - 1} more: {_few(empty[1:])})" if len(empty) > 1 else ""
    what = f"class {_label(empty[0], names)} has no training samples"
    return BadCounts(
        f"{what}, so n_1 / n_{empty[0]} has no value",
        saw=f"{source}, entry {empty[0]}{more}",
        fix="correct the file, or count such classes as one sample: --zero-count one",
    )


def _label(row: int, names: tuple[str, ...] | None) -> str:
    return f"{row} ({clip(names[row], 80)})" if names is not None and row < len(names) else str(row)


def _few(items: Sequence[object], limit: int = 5) -> str:
    more = f", ... ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(clip(str(item), 80) for item in items[:limit]) + more


def _show(entry: object) -> str:
    huge = isinstance(entry, int) and entry.bit_length() > 256
    return "a number of more than 77 digits" if huge else clip(repr(entry), 80)


def _bad(what: str, saw: str, source: str) -> BadCounts:
    fix = "give one positive whole number a class, in a list, a CSV or by name: --counts FILE"
    return BadCounts(what, saw=f"{source}: {saw}", fix=fix)
