"""The names of the classes from a file: `--classes`."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from rescale_cli.errors import BadInput
from rescale_cli.files.regular_file import read_whole
from rescale_cli.json_text import clip, parse_json
from rescale_cli.sources.label_sources import text_of

MAX_BYTES = 64 << 20
_IN_BRACKETS = re.compile(rb"\[[A-Za-z][^\[\]\"',]*\][ \t]*([,;\t\r\n]|$)")


def read_class_names(path: Path | str) -> tuple[str, ...]:
    """The names of the head's rows, from `--classes FILE`.

    Args:
        path: text, one a line; a JSON list; {"0": "cat"}; {"cat": 0}; {"counts", "classes"}.

    Raises:
        BadInput: none of these, a row without a name, or a name given twice.
    """
    path = Path(path)
    fix = "give one name a row, in the order of the head's rows, one a line: --classes FILE"
    try:
        data = read_whole(path, MAX_BYTES, BadInput)
    except BadInput as error:
        error.fix = "name a file of names, such as what `rescale-cli counts` writes: --classes FILE"
        raise
    if is_json(data):
        listed = names_in(parse_json(data, path.name, BadInput))
        names = [str(name) if type(name) is int else name for name in listed]
    else:
        with text_of(path) as lines:
            names = [line.strip() for line in lines.read().rstrip().split("\n")]
    if not names or not all(isinstance(name, str) and name for name in names):
        saw = "an empty line" if names and "" in names else "no list of names"
        raise BadInput(f"{path.name} does not name the classes", saw=saw, fix=fix)
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        saw = ", ".join(clip(name, 80) for name in twice[:5])
        raise BadInput(f"{path.name} gives a name to two rows", saw=saw, fix=fix)
    return tuple(names)


def names_in(value: Any) -> list[Any]:
    """The names in head order, from parsed JSON; [] if there are none."""
    match value:
        case {"classes": list(names)} | list(names):
            return names
        case {"classes": dict(table)} | dict(table):
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
