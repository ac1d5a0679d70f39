"""The re-scalings before the last one: a flat list in the record, the most recent first.

Each entry is the record of that state by itself. `revert` gives back the state before the last
re-scaling, and the record that belongs to it, so that it can be taken back in turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

#: How many earlier re-scalings a record keeps, so that `revert` can be repeated as often.
KEPT = 8
#: Keys that speak of other states of the file; older records nested them as "previous".
_OTHERS = ("history", "previous", "replaced")

Fields = dict[str, Any]


def states(fields: Mapping[str, Any]) -> Iterator[Fields]:
    """The record, then those of the states before it, each as it would stand alone.

    Entries that are no JSON objects end the list: who uses a record checks its fields anyway.
    """
    state: Fields | None = dict(fields)
    while state is not None:
        state.pop("replaced", None)
        yield state
        state = before(state)


def before(fields: Mapping[str, Any]) -> Fields | None:
    """The record of the state before a re-scaling; None if that was the first, as far as is known.

    Example:
        >>> before({"gamma": 3, "history": [{"gamma": 2}, {"gamma": 1}]})
        {'gamma': 2, 'history': [{'gamma': 1}]}
        >>> before({"gamma": 1})
    """
    match fields:
        case {"history": [dict(last), *rest]}:
            return {**last, "history": rest} if rest else dict(last)
        case {"previous": dict(nested)}:
            return dict(nested)
    return None


def flat(fields: Mapping[str, Any]) -> list[Fields]:
    """The record and those before it, at most `KEPT`, none of which holds another.

    A record that was nested gets a new seal if its own was right.
    """
    found = []
    for state, _ in zip(states(fields), range(KEPT), strict=False):
        bare = {k: v for k, v in state.items() if k not in (*_OTHERS, "record_sha256")}
        sealed = state.get("record_sha256")
        found.append(bare | {"record_sha256": seal(bare) if sealed == seal(state) else sealed})
    return found


def replaced(fields: Mapping[str, Any]) -> list[Fields]:
    """The records of files that an unfinished run was about to replace."""
    entry = fields.get("replaced")
    return [e for e in (entry if isinstance(entry, list) else [entry]) if isinstance(e, dict)]


def seal(fields: Mapping[str, Any]) -> str:
    """The SHA-256 of a record by itself: without this hash, and without records of other states."""
    free = ("record_sha256", "replaced", "history")
    return hashlib.sha256(
        json.dumps({key: value for key, value in fields.items() if key not in free}).encode()
    ).hexdigest()
