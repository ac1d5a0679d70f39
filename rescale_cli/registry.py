"""Registries of named functions; an unknown name is an error that lists the known ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from rescale_cli.errors import RescaleError, UsageError
from rescale_cli.json_text import clip

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered function with its facts."""

    name: str
    run: T
    """The plain function (or module, or object) itself, unchanged."""
    facts: Mapping[str, object]
    """The other arguments of `register`; read-only."""


class Registry(Generic[T]):
    """Named plain functions: `register` adds one, `[name]` finds one, iteration lists the names.

    Args:
        kind: what the functions are, in the singular, for errors: `method`, `data source`.

    Example:
        >>> methods = Registry[Callable[[float], float]]("method")
        >>> @methods.register("double", knob="factor")
        ... def double(x: float) -> float:
        ...     return 2 * x
        >>> methods["double"](2.5)
        5.0
        >>> methods.entry("double").facts["knob"], list(methods)
        ('factor', ['double'])
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, **facts: object) -> Callable[[T], T]:
        """Return a decorator that registers a function under a name and returns it unchanged.

        Raises:
            RescaleError: the name is taken. This is a bug in the package, raised on import.
        """

        def add(thing: T) -> T:
            if name in self._entries:
                raise RescaleError(
                    f"two things are registered as the {self.kind} {name}",
                    saw=f"{self._entries[name].run!r} and {thing!r}",
                    fix="give one of the two another name in the code",
                )
            self._entries[name] = Entry(name, thing, MappingProxyType(facts))
            return thing

        return add

    def entry(self, name: str) -> Entry[T]:
        """Return the entry of that name.

        Raises:
            UsageError: unknown name; the error lists the known names or the closest match.
        """
        if name in self._entries:
            return self._entries[name]
        known = sorted(self._entries)
        close = difflib.get_close_matches(clip(name, 80).lower(), known, n=1)
        raise UsageError(
            f"there is no {self.kind} {clip(name, 80)!r}",
            saw=f"known: {', '.join(known)}",
            fix=f"did you mean {close[0]}?" if close else f"use one of: {', '.join(known)}",
        )

    def __getitem__(self, name: str) -> T:
        return self.entry(name).run

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
