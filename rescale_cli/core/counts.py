"""The number of training samples of each row of the head, and how the row norms compare.

Which count belongs to which row is decided in `alignment`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.head import Head
from rescale_cli.errors import BadCounts, BadInput, UsageError
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
    """(C,), all at least 1; a class that is skipped because it has no samples has a 1 here."""
    names: tuple[str, ...] | None = None
    """The class names in row order, for messages; None if they are unknown."""
    source: str = "given"
    """Where the counts came from: `counts.json`, `stdin`, `folder train/`."""
    skipped: tuple[int, ...] = ()
    """Rows that do not change and are never n_1, ascending."""
    target: NDArray[np.float64] | None = None
    """(C,), the class shares where the model is used, sum 1; None means uniform."""

    @classmethod
    def of(
        cls,
        values: Sequence[object] | NDArray[Any],
        names: Sequence[str] | None = None,
        source: str = "given",
        zero: ZeroPolicy = "error",
    ) -> ClassCounts:
        """Check that there is one positive whole number per class.

        Args:
            values: (C,), C >= 2; 3.0 is whole, 3.5, True and "3" are not.
            names: (C,), or None.
            source: for the errors.
            zero: how to count a class without samples: error, one, or skip.

        Raises:
            BadCounts: an entry is zero (depending on `zero`), negative, fractional, not finite, not
                a number, or above 10^15; or there are fewer than two entries, or only zeros.
        """
        entries = values.tolist() if isinstance(values, np.ndarray) else values
        if isinstance(entries, str | bytes) or not isinstance(entries, Sequence):
            raise bad_counts(
                "counts must be a list with one number per class", _show(entries), source
            )
        if len(entries) < 2:
            word = "there are no counts" if not entries else "there are counts for one class only"
            raise bad_counts(word, f"{len(entries)} entries, at least 2 are needed", source)
        label = None if names is None else tuple(names)
        whole = whole_numbers(entries, label, source)
        empty = tuple(i for i, n in enumerate(whole) if n == 0)
        if len(empty) == len(whole):
            raise bad_counts("no class has any training sample", "all counts are 0", source)
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
        """(C,), n_i / (C * target_i): the counts divided by the class shares where it is used."""
        values = self.values.astype(np.float64)
        if self.target is None:
            return values
        shares = np.where(self.kept, self.target * self.num_classes, 1.0)
        result: NDArray[np.float64] = values / shares
        return result

    @property
    def largest(self) -> float:
        """n_1: the largest effective count of the rows that are not skipped, wherever it is."""
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
        """Skip classes by name, or by row number if no class has that name.

        Raises:
            UsageError: there is no such class, two have the name, or none would be left.
        """
        rows = {*self.skipped, *(self._row(name) for name in classes)}
        if len(rows) == self.num_classes:
            saw = f"{len(rows)} of {self.num_classes} classes are excluded"
            raise UsageError(
                "no class is left to adjust", saw=saw, fix="leave out one --exclude-class"
            )
        return replace(self, skipped=tuple(sorted(rows)))

    def against_target(self, target: Sequence[object] | NDArray[Any]) -> ClassCounts:
        """Divide the counts by target shares (C,), of any sum; call it after `exclude`.

        Raises:
            BadInput: not one finite number above 0 per class (skipped classes may have 0).
        """
        fix = "give one share above 0 for each class, or leave a class out: --exclude-class NAME"
        shares = [_share(entry) for entry in target]
        total = math.fsum(shares)
        if len(shares) != self.num_classes:
            saw = f"{len(shares)} shares, {self.num_classes} classes"
            raise BadInput("the target prior must have one share per class", saw=saw, fix=fix)
        for i, (share, kept) in enumerate(zip(shares, self.kept.tolist(), strict=True)):
            # A share below 1e-12 is a mistake, and n_i / share could overflow.
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
            what = "two classes are named" if found else "there is no class named"
            saw = f"{self.num_classes} classes: {few(self.names or ('without names',), 10)}"
            fix = f"name a class, or a row from 0 to {self.num_classes - 1}: --exclude-class NAME"
            raise UsageError(f"{what} {clip(str(name), 80)!r}", saw=saw, fix=fix)
        return found[0]


def whole_numbers(
    entries: Sequence[object], names: tuple[str, ...] | None, source: str
) -> list[int]:
    """The entries (C,) as whole numbers from 0 to 10^15; any other is an error (BadCounts)."""
    return [_whole(entry, row, names, source) for row, entry in enumerate(entries)]


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
    raise bad_counts(what, f"entry {row}: {_show(entry)}", source)


def _share(entry: object) -> float:
    """A share as a float; anything else becomes -1, which is refused."""
    if isinstance(entry, bool) or not isinstance(entry, int | float | np.integer | np.floating):
        return -1.0
    return float(entry) if 0 <= entry < 1e300 else -1.0


def _zero(empty: tuple[int, ...], names: tuple[str, ...] | None, source: str) -> BadCounts:
    more = f" (and {len(empty) - 1} more: {few(empty[1:])})" if len(empty) > 1 else ""
    what = f"class {_label(empty[0], names)} has no training samples"
    return BadCounts(
        f"{what}, so n_1 / n_{empty[0]} has no value",
        saw=f"{source}, entry {empty[0]}{more}",
        fix="correct the file, or count such classes as one sample: --zero-count one",
    )


def _label(row: int, names: tuple[str, ...] | None) -> str:
    return f"{row} ({clip(names[row], 80)})" if names is not None and row < len(names) else str(row)


def few(items: Sequence[object], limit: int = 5) -> str:
    """The first items of a list, and how many there are, for a message."""
    more = f", ... ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(clip(str(item), 80) for item in items[:limit]) + more


def _show(entry: object) -> str:
    huge = isinstance(entry, int) and entry.bit_length() > 256
    return "a number of more than 77 digits" if huge else clip(repr(entry), 80)


def bad_counts(what: str, saw: str, source: str) -> BadCounts:
    """The error for counts that are not one positive whole number per class."""
    fix = (
        "give one positive whole number for each class, in a list, a CSV or by name: --counts FILE"
    )
    return BadCounts(what, saw=f"{source}: {saw}", fix=fix)


#: A rank correlation of more standard errors (1 / sqrt(C - 1)) than this is more than chance.
CLEAR = 1.645
#: Norms whose relative difference is smaller are equal up to rounding, as after WVN.
ONE_LENGTH = 1e-3


def spearman(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Rank correlation of two vectors (C,), with mean ranks for ties; None if one is constant.

    Ours, because SciPy is not a dependency.

    Example:
        >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 15.0]))
        0.5
    """
    ranks = [_ranks(np.asarray(vector, np.float64)) for vector in (one, other)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum() / scale) if scale else None


def _ranks(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(vector, return_inverse=True, return_counts=True)
    mean_rank: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return mean_rank[inverse]


def correlation(head: Head, counts: ClassCounts) -> float | None:
    """Rank correlation of the row norms with the counts, over the rows that are not skipped.

    None if all rows have the same length up to rounding.
    """
    if head.binary or head.num_classes == 1:
        return None
    norms = head.norms[counts.kept]
    if np.ptp(norms) <= ONE_LENGTH * norms.max():
        return None
    return spearman(norms, counts.values[counts.kept])


def warnings_of(
    head: Head, counts: ClassCounts | None, *, named: bool = False
) -> list[tuple[str, str]]:
    """Warnings before the rows of this head are scaled, as (code, message).

    Norms alone do not prove a wrong order of the counts: AdamW and other training may lengthen
    the rows of rare classes.

    Args:
        head: before the change.
        counts: training samples of each row.
        named: whether names decide which count belongs to which row.
    """
    found = []
    if head.gauge > 0.5 and not head.binary and head.num_classes > 1:
        found.append((
            "gauge",
            f"the rows of the head share a common part (gauge ratio {head.gauge:.2f}): softmax "
            "does not see it, but re-scaling does; evaluate before you trust the result",
        ))  # fmt: skip
    if counts is None or (rho := correlation(head, counts)) is None:
        return found
    clear = CLEAR / math.sqrt(counts.kept.sum() - 1)
    if rho < -max(clear, 0.2):
        found.append((
            "norms-run-against-counts",
            f"rare classes have the longer rows (rank correlation {rho:+.2f}): "
            f"{_why_against(named)}",
        ))  # fmt: skip
    elif rho < clear:
        found.append((
            "norms-do-not-follow-counts",
            f"the row norms do not follow the counts (rank correlation {rho:+.2f}): the head may "
            "be corrected already, or trained with Adam; evaluate before you trust the result",
        ))  # fmt: skip
    return found


def _why_against(named: bool) -> str:
    training = "training may have done that (AdamW, or a loss that corrects for the counts)"
    if named:
        return (
            f"{training}, as the names show that the counts belong to these rows; evaluate before "
            "you trust the result"
        )
    return (
        f"either {training}, or the counts are in another order than the rows. Check which count "
        "each class gets (`apply --dry-run`), give names with the counts or --classes FILE, and "
        "evaluate before you trust the result"
    )
