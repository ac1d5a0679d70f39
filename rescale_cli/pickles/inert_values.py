"""What stands in a pickle's value for the things that were never made: objects, odd keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rescale_cli.pickles.pickle_policy import Global

_HASHED_INTS = 1 << 60  # beyond, integers can be made to collide (hash is modulo 2**61 - 1)


class Built:
    """What a pickle would have got from calling `func` with `args`; nothing was called.

    Not frozen: a pickle fills an object after it has named it (that is how cycles are written).
    """

    __slots__ = ("args", "func", "keyed", "kwargs", "listed", "state")

    def __init__(self, func: Global, args: tuple[Any, ...], kwargs: dict[Any, Any] | None) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.state: Any = None
        self.keyed: list[tuple[Any, Any]] = []
        """Items set on it, if it is a kind of dict."""
        self.listed: list[Any] = []
        """Elements appended or added, if it is a kind of list or set."""


@dataclass(frozen=True, slots=True, eq=False)
class OddKey:
    """A dictionary key that is not hashed by value: a tuple, an object, a huge integer."""

    value: object


def hashable(key: object) -> Any:
    """The key itself if hashing it is cheap and safe, otherwise an `OddKey` of it."""
    kind = type(key)
    if kind is str or kind is bytes or key is None or kind is bool or kind is float:
        return key
    if kind is int and -_HASHED_INTS < key < _HASHED_INTS:  # type: ignore[operator]
        return key
    return OddKey(key)
