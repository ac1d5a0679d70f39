"""Options that belong together, declared once as a dataclass and taken by several commands."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command that takes a dataclass take each of its fields as an option of its own.

    A parameter whose type is a dataclass is replaced by the fields of that class: `Annotated` types
    with a default, as Typer reads them. When the command runs, it gets the dataclass.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     width: int = 1
        ...     height: int = 1
        >>> @spread
        ... def area(size: Size, unit: str = "m") -> None:
        ...     print(size.width * size.height, unit)
        >>> area(width=2, height=3)
        6 m
        >>> str(inspect.signature(area))
        "(*, width: int = 1, height: int = 1, unit: str = 'm')"
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {
        name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)
    }
    parameters: list[Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _options_of(groups[parameter.name])
        else:
            kind = hints[parameter.name]
            parameters.append(parameter.replace(annotation=kind, kind=Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**words: Any) -> None:
        for name, group in groups.items():
            mine = {f.name: words.pop(f.name) for f in fields(group) if f.name in words}
            words[name] = group(**mine)
        command(**words)

    # What Typer reads: the signature for the defaults, the annotations for the types.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _options_of(group: type[Any]) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(group)
    ]
