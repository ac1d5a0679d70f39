"""The names of the classes from a file: `--classes`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from rescale_cli.core.row_names import Said
from rescale_cli.errors import BadInput
from rescale_cli.files.regular_file import read_whole
from rescale_cli.json_text import clip, parse_json
from rescale_cli.sources.label_sources import text_of

MAX_BYTES = 64 << 20
#: Of these, the place of a class is its number.
BY_NUMBER = ("index", "dataset", "run")
#: What `counts` writes as the origin of an order.
ORDERS = ("imagefolder", "natural", *BY_NUMBER, "text", "file")
_IN_BRACKETS = re.compile(rb"\[[A-Za-z][^\[\]\"',]*\][ \t]*([,;\t\r\n]|$)")


def read_class_names(path: Path | str) -> tuple[str, ...]:
    """The names of the head's rows, from `--classes FILE`; see `read_said`."""
    return read_said(path)[0]


def read_said(path: Path | str, option: str = "--classes") -> tuple[tuple[str, ...], str, bool]:
    """The names of the head's rows from a file, and what put them in that order.

    Args:
        path: text, one a line; a JSON list; {"0": "cat"}; {"cat": 0}; {"counts", "classes"}, as
            `counts` writes it.
        option: whose file it is, for the errors.

    Returns:
        names (C,); their order as the file says it, or ""; and whether a user chose that order.

    Raises:
        BadInput: none of these, a row without a name, or a name given twice.
    """
    path = Path(path)
    fix = f"give one name per row, one per line, in the order of the head's rows: {option} FILE"
    try:
        data = read_whole(path, MAX_BYTES, BadInput)
    except BadInput as error:
        error.fix = f"name a file of names, such as what `rescale-cli counts` writes: {option} FILE"
        raise
    order, given = "", False
    if is_json(data):
        value = parse_json(data, path.name, BadInput)
        listed = names_in(value)
        names = [str(name) if type(name) is int else name for name in listed]
        if isinstance(value, dict) and "counts" in value:
            order, given = order_in(value), value.get("order_given") is True
            if not names and order in BY_NUMBER and isinstance(value["counts"], list):
                names = [str(i) for i in range(len(value["counts"]))]
    else:
        with text_of(path) as lines:
            names = [line.strip() for line in lines.read().rstrip().split("\n")]
    if not names or not all(isinstance(name, str) and name for name in names):
        saw = "an empty line" if names and "" in names else "it is not a list of names"
        raise BadInput(f"{path.name} does not name the classes", saw=saw, fix=fix)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        saw = ", ".join(clip(name, 80) for name in twice[:5])
        raise BadInput(f"{path.name} gives two rows the same name", saw=saw, fix=fix)
    return tuple(names), order, given


def said_about_rows(
    classes: str | PathLike[str] | Sequence[str] | None,
    label_order: str | Sequence[str] | None = None,
    order: str | None = None,
) -> Said:
    """What the user says about the head's rows.

    Args:
        classes: `--classes`: a file, or the names.
        label_order: `--label-order`: name, index, a file, or the labels in row order.
        order: `--order`: imagefolder, natural or index.

    Raises:
        BadInput: a file that does not hold names; see `read_said`.
    """
    names, origin, given, source = None, "", False, "--classes"
    if isinstance(classes, str | PathLike):
        names, origin, given = read_said(Path(classes))
        source = Path(classes).name
    elif classes is not None:
        names = tuple(classes)
    by, listed = "", None
    if isinstance(label_order, str):
        by = label_order if label_order in ("name", "index") else ""
        listed = None if by else read_said(label_order, "--label-order")[0]
    elif label_order is not None:
        listed = tuple(label_order)
    return Said(names, origin, given, source, by, listed, order or "")


def order_in(value: dict[Any, Any]) -> str:
    """What a counts.json says its order comes from; "file" where it says nothing known."""
    order = value.get("order")
    order = {"timm": "natural", "label": "dataset"}.get(order, order) if order else "file"
    return order if isinstance(order, str) and order in ORDERS else "file"


def names_in(value: Any) -> list[Any]:
    """The names in head order, from parsed JSON; [] if there are none."""
    match value:
        case {"schema": str(), "result": dict(result)}:
            return names_in(result)
        case {"classes": list(names)} | list(names):
            return names
        case {"classes": dict(table)}:
            return names_in(table)
        case {"counts": list()}:
            return []
        case dict(table):
            size = len(table)
            if all(type(row) is int for row in table.values()):
                table = {str(row): name for name, row in table.items()}
            rows = [table.get(str(i)) for i in range(size)]
            return rows if None not in rows else []
    return []


def is_json(data: bytes) -> bool:
    """Whether a text begins as a JSON object or list; a first line [pad] is the name of a class."""
    begin = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    return begin[:1] in (b"{", b"[") and not _IN_BRACKETS.match(begin)
