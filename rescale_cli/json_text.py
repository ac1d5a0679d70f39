"""Strict JSON parsing (duplicate keys are errors), and text from outside made safe to print."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from rescale_cli.errors import BadCheckpoint, BadInput

#: Control characters, line separators, text-direction marks, and lone surrogates.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def parse_json(
    data: bytes, what: str, kind: type[BadInput] = BadCheckpoint, most: int | None = None
) -> Any:
    """Parse a UTF-8 JSON text.

    Args:
        data: the text.
        what: its name in errors, such as `config.json`.
        kind: the error to raise.
        most: the approximate maximum number of values. A limit on the size alone would not bound
            the memory: an empty list takes 3 bytes of text and 64 bytes of memory.

    Raises:
        BadInput: (as `kind`) not UTF-8, not JSON, nested too deeply, more than `most` values, or
            a duplicate key.
    """
    if most is not None and (values := sum(map(data.count, (b",", b"[", b"{")))) > most:
        saw = f"about {values:,} values; at most {most:,} are read"
        raise kind(f"{what} has too many values", saw=saw, fix="restore the file")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise kind(
                f"{what} has a duplicate key", saw=clip(repr(twice)), fix="remove one of the two"
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
    """Shorten a text to at most `limit` characters; an ellipsis marks the cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    r"""Return a text from outside as one line, with control characters as escapes.

    Example:
        >>> printable("a\x1b[31m\nb")
        'a\\x1b[31m\\nb'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def percent(share: float, digits: int = 1, sign: str = "") -> str:
    """Format a fraction as a percentage, with a space and without a negative zero.

    Args:
        share: the fraction; 1 is 100 %.
        digits: digits after the decimal point.
        sign: `+` also shows the sign of a positive fraction.

    Example:
        >>> percent(0.831), percent(0.5, 0), percent(0.02, sign="+"), percent(-1e-9)
        ('83.1 %', '50 %', '+2.0 %', '0.0 %')
    """
    return f"{100 * share:{sign}z.{digits}f} %"


def finite(value: Any) -> Any:
    """A value for JSON: NaN and infinity become null, and a negative zero becomes 0."""
    if isinstance(value, float):
        return value + 0.0 if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
