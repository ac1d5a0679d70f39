"""JSON from outside, read strictly: no duplicate keys, no traceback on nonsense."""

from __future__ import annotations

import json
import re
from typing import Any

from rescale_cli.errors import BadCheckpoint, BadInput

#: Control characters, ends of lines, marks of direction, and halves of characters.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def parse_json(
    data: bytes, what: str, kind: type[BadInput] = BadCheckpoint, most: int | None = None
) -> Any:
    """The value of a UTF-8 JSON text.

    Args:
        data: the text.
        what: what it is, for the error: `config.json`.
        kind: the error to raise.
        most: how many values it may have, about, for a text whose size says too little: an empty
            list is three bytes of it, and 64 of memory.

    Raises:
        BadInput: (as `kind`) not UTF-8, not JSON, nested without end, beyond `most`, or a key
            given twice.
    """
    if most is not None and (values := sum(map(data.count, (b",", b"[", b"{")))) > most:
        raise kind(f"{what} is too long", saw=f"{values:,} values", fix="restore the file")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise kind(
                f"{what} gives one key twice", saw=clip(repr(twice)), fix="remove one of the two"
            )
        return keys

    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise kind(
            f"{what} is not valid UTF-8", saw=f"byte {error.start}", fix="restore the file"
        ) from None
    except (ValueError, RecursionError) as error:
        saw = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise kind(f"{what} is not valid JSON", saw=clip(saw), fix="restore the file") from None


def clip(text: str, limit: int = 120) -> str:
    """At most `limit` characters of a text from outside, with an ellipsis where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    r"""A text from outside as one line that only shows itself: the rest as escapes.

    Example:
        >>> printable("a\x1b[31m\nb")
        'a\\x1b[31m\\nb'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def percent(share: float, digits: int = 1, sign: str = "") -> str:
    """A share as percent, with a space and without a negative zero.

    Args:
        share: 1 is 100 %.
        digits: after the point.
        sign: `+` shows the sign of a positive share, too.

    Example:
        >>> percent(0.831), percent(0.5, 0), percent(0.02, sign="+"), percent(-1e-9)
        ('83.1 %', '50 %', '+2.0 %', '0.0 %')
    """
    return f"{100 * share:{sign}z.{digits}f} %"
