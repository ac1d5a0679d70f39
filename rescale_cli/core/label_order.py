"""From the labels of a data set to rows of the head: by names, or by numbers, never by a guess."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np

from rescale_cli.core.class_order import are_placeholders, given_names
from rescale_cli.core.counts import few
from rescale_cli.core.predictions import Labels
from rescale_cli.errors import BadInput, UnknownClassOrder
from rescale_cli.json_text import clip

_CLASSES = "give the data's names in the order of the head's rows: --classes FILE"


def to_head_rows(
    labels: Labels,
    classes: tuple[str, ...] | None,
    head_names: tuple[str, ...] | None,
    num_classes: int,
    given: tuple[str, ...] | None = None,
    *,
    source: str = "the data",
    samples: Sequence[str] = (),
) -> tuple[Labels, tuple[str, ...]]:
    """The row of the head that each sample belongs to, and what the user should be told.

    By names where the data and the head have them: a class of the data is the row of that name,
    and the data may lack classes of the head. By number where one side has none; LABEL_0, LABEL_1,
    ... are none, nor are 0, 1, ... in their order.

    Args:
        labels: (N,), by the data's own numbers.
        classes: the name of each number, where the data has names.
        head_names: (C,), the checkpoint's own, in row order.
        num_classes: C, the rows of the head.
        given: (C,), the names that the user says; they go before the checkpoint's.
        source: what the data is, for messages.
        samples: (N,), the name of each sample, for messages.

    Returns:
        labels (N,), 0 to C - 1; and notes.

    Raises:
        BadInput: a class of the data is no row of the head, a label is not below C, or `given` are
            not C different names.
        UnknownClassOrder: the data has names, the head has none, and place does not say which is
            which: not C of them, or numbers that stand elsewhere (0, 1, 10, 2).

    Example:
        >>> to_head_rows(np.array([0, 1]), ("cat", "dog"), ("dog", "cat"), 2)
        (array([1, 0]), ())
    """
    used = np.unique(labels)
    known = _names_of_rows(classes, head_names, num_classes, given)
    if classes is not None and known is not None and _are_names(classes, known):
        labels = _by_name(labels, used, classes, known, source)
        notes: tuple[str, ...] = ()
    else:
        _check_numbers(labels, num_classes, source, samples)
        notes = _by_place(classes, known, num_classes, source)
    if len(used) < num_classes:
        notes += (f"{source} has samples of {len(used)} of the head's {num_classes} classes",)
    return labels, notes


def _names_of_rows(
    classes: tuple[str, ...] | None,
    own: tuple[str, ...] | None,
    num_classes: int,
    given: tuple[str, ...] | None,
) -> tuple[str, ...] | None:
    if given is not None:
        return given_names(given, num_classes)
    if own is None or len(own) != num_classes or len({*own}) != num_classes:
        return None
    return None if are_placeholders(own) and not {*(classes or ("",))} <= {*own} else own


def _are_names(classes: tuple[str, ...], known: tuple[str, ...]) -> bool:
    return not are_placeholders(classes) or {*classes} <= {*known}


def _by_name(
    labels: Labels, used: Labels, classes: tuple[str, ...], known: tuple[str, ...], source: str
) -> Labels:
    row = {name: i for i, name in enumerate(known)}
    strange = [classes[label] for label in used.tolist() if classes[label] not in row]
    if strange:
        fix = _CLASSES
        for name in strange[:1]:
            same = [own for own in known if own.strip().casefold() == name.strip().casefold()]
            close = same or difflib.get_close_matches(name, known[:1000], n=1)
            if close:
                fix = f"is {clip(name, 80)!r} the head's {clip(close[0], 80)!r}? then {fix}"
        raise BadInput(
            f"{len(strange)} classes of {source} are no class of the head",
            saw=f"in the data {few(strange)}; in the head {few(known)}",
            fix=fix,
        )
    table = np.array([row.get(name, -1) for name in classes], np.int64)
    rows: Labels = table[labels]
    return rows


def _check_numbers(labels: Labels, num_classes: int, source: str, samples: Sequence[str]) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        first = int(outside[0])
        name = f"{first} ({clip(samples[first], 120)})" if first < len(samples) else str(first)
        fix = "name the data that this model was made for, or the model that was made for this data"
        if labels.min() == 1 and labels.max() == num_classes:
            fix = "write the labels from 0 on: they are 1 too large"
        raise BadInput(
            f"sample {name} of {source} has label {labels[first]}, but the head has the rows 0 to "
            f"{num_classes - 1}",
            saw=f"{outside.size:,} of {len(labels):,} labels are outside",
            fix=fix,
        )


def _by_place(
    classes: tuple[str, ...] | None,
    known: tuple[str, ...] | None,
    num_classes: int,
    source: str,
) -> tuple[str, ...]:
    """Refuse to take the places of names for rows where that need not be right."""
    if classes is None or (known is not None and are_placeholders(classes)):
        return ()
    fix = f"{_CLASSES}; `rescale-cli counts` of the training folder writes such a file with -o"
    # ImageFolder sorts 0, 1, 10, 2 as text: is row 2 the folder 10, or 2? In a head of more than
    # ten rows the folders 0, 1, 2 alone do not say, either.
    digits = {place: name for place, name in enumerate(classes) if re.fullmatch("[0-9]{1,9}", name)}
    as_text = sorted(map(str, range(num_classes))) if len(classes) < num_classes else []
    moved = [
        name
        for place, name in digits.items()
        if int(name) != place or (as_text and as_text[place] != name and str(place) == name)
    ]
    if moved or (len(classes) != num_classes and not are_placeholders(classes)):
        saw = f"it has {few(classes)}; the head has {num_classes} rows without names"
        what = f"{source} names its classes, and nothing says which row of the head each name is"
        raise UnknownClassOrder(what, saw=saw, fix=fix)
    if are_placeholders(classes):
        return ()
    return (
        f"the head has no class names: the classes of {source} are taken for its rows in their "
        f"order, {few(classes)}",
    )
