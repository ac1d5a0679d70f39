"""A recipe as flat TOML, and back: `--print-config` writes what `--config` reads."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rescale_cli.errors import BadInput
from rescale_cli.json_text import clip
from rescale_cli.training.recipe import Recipe

#: The annotation of each field, in the words of recipe.py.
_KINDS: dict[str, str] = {
    field.name: str(field.type).replace("ZeroPolicy", "str") for field in fields(Recipe)
}


def to_toml(recipe: Recipe) -> str:
    """One line a value, in the order of the fields; what is not set is a comment.

    Example:
        >>> [line for line in to_toml(Recipe(gamma=0.3)).splitlines() if "gamma" in line]
        ['gamma = 0.3']
    """
    values = ((name, getattr(recipe, name)) for name in _KINDS)
    lines = (f"# {k} is not set" if v is None else f"{k} = {_text(v)}" for k, v in values)
    return "\n".join(lines) + "\n"


def options_in(text: str, source: str) -> dict[str, Any]:
    r"""The options that a TOML text sets, by field name, as `Recipe` and `replace` take them.

    Args:
        text: one flat table.
        source: its name, for errors.

    Raises:
        BadInput: no TOML, an unknown option, or a value of another kind.

    Example:
        >>> options_in("lr = 1\nmilestones = [60, 80]", "a.toml")
        {'lr': 1.0, 'milestones': (60, 80)}
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        fix = "see what --print-config writes"
        raise BadInput(f"{source} is not TOML", saw=clip(str(error), 200), fix=fix) from None
    return options_from(table, source)


def options_from(table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The same from a table that was parsed already; None is what is not set.

    Raises:
        BadInput: an unknown option, or a value of another kind.
    """
    return {name: _value(name, value, source) for name, value in table.items() if value is not None}


def _text(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which only TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)


def _value(name: str, value: Any, source: str) -> Any:
    if name not in _KINDS:
        near = difflib.get_close_matches(clip(name, 80).replace("-", "_"), _KINDS, n=1)
        raise BadInput(
            f"{source} sets {clip(name, 80)!r}, which is no option",
            saw=clip(repr(value), 80),
            fix=f"did you mean {near[0]}?" if near else "see what --print-config writes",
        )
    kind = _KINDS[name].removesuffix(" | None")
    one = kind.removeprefix("tuple[").removesuffix(", ...]")
    listed = kind != one
    items = value if listed and isinstance(value, list) else [value]
    fits = all(type(item).__name__ in _FITS[one] for item in items)
    if fits and listed == isinstance(value, list):
        items = [float(item) if one == "float" else item for item in items]
        return tuple(items) if listed else items[0]
    raise BadInput(
        f"{source} sets {name} to something else than {'a list of ' if listed else ''}{one}",
        saw=clip(repr(value), 80),
        fix=f"{name} = {_text(getattr(Recipe(), name) or _EXAMPLES[one])}",
    )


#: What each kind takes: a whole number is a fine float, True is no number.
_FITS = {"str": ("str",), "bool": ("bool",), "int": ("int",), "float": ("int", "float")}
_EXAMPLES: dict[str, Any] = {"str": "", "bool": False, "int": 0, "float": 0.5}
