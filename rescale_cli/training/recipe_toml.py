"""Recipes as text: the flat TOML of `--config` and `--print-config`, and tables of JSON."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rescale_cli.errors import BadInput
from rescale_cli.files.staging import system_errors
from rescale_cli.json_text import clip, parse_json
from rescale_cli.training.recipe import SETTINGS, Recipe

_SEE_CONFIG = "see the output of rescale-cli train --print-config"


def to_toml(recipe: Recipe) -> str:
    """One line for each value, in the order of the fields; a value that is not set is a comment.

    Example:
        >>> [line for line in to_toml(Recipe(gamma=0.3)).splitlines() if "gamma" in line]
        ['gamma = 0.3']
    """
    values = ((name, getattr(recipe, name)) for name in SETTINGS)
    lines = (f"# {k} is not set" if v is None else f"{k} = {_text(v)}" for k, v in values)
    return "\n".join(lines) + "\n"


def options_in(text: str, source: str) -> dict[str, Any]:
    r"""The options that a TOML text sets, by field name, as `Recipe` and `replace` take them.

    Args:
        text: one flat table.
        source: its name, for errors.

    Raises:
        BadInput: not TOML, an unknown option, or a value of another type.

    Example:
        >>> options_in("lr = 1\nmilestones = [60, 80]", "a.toml")
        {'lr': 1.0, 'milestones': (60, 80)}
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(
            f"{source} is not valid TOML", saw=clip(str(error), 200), fix=_SEE_CONFIG
        ) from None
    return options_from(table, source)


def options_from(table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The same from a table that was parsed already; a value of None is not set.

    Raises:
        BadInput: an unknown option, or a value of another type.
    """
    return {name: _value(name, value, source) for name, value in table.items() if value is not None}


def options_of_run(path: Path) -> dict[str, Any]:
    """The options in the config.json of a run, or in the seeds.json of several; None is not set.

    Raises:
        BadInput: there is no such file, or it holds no recipe, as those of earlier versions.
    """
    several = path / "seeds.json"
    file = several if several.is_file() else path / "config.json"
    with system_errors(f"reading {file}"):
        said = parse_json(file.read_bytes(), file.name) if file.is_file() else None
    recipe = said.get("recipe") if isinstance(said, dict) else None
    if not isinstance(recipe, dict):
        raise BadInput(
            f"{path} does not hold the recipe of a run",
            saw=f"{file.name} has no recipe" if file.is_file() else f"there is no {file.name}",
            fix="name the folder of a run, or a TOML file that --print-config has printed",
        )
    # A value that is not set replaces the one of a preset.
    unset = (name for name, value in recipe.items() if value is None and name in SETTINGS)
    return {**dict.fromkeys(unset), **options_from(recipe, file.name)}


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
    """A value of TOML or JSON as the field takes it."""
    setting = SETTINGS.get(name)
    if setting is None:
        near = difflib.get_close_matches(clip(name, 80).replace("-", "_"), SETTINGS, n=1)
        raise BadInput(
            f"{source} sets {clip(name, 80)!r}, which is not an option of train",
            saw=clip(repr(value), 80),
            fix=f"did you mean {near[0]}?" if near else _SEE_CONFIG,
        )
    items = value if setting.listed and isinstance(value, list) else [value]
    # A whole number is a valid float; True is not a number.
    types = (int, float) if setting.item is float else (setting.item,)
    if setting.listed == isinstance(value, list) and all(type(item) in types for item in items):
        with suppress(OverflowError):  # a whole number that no float can hold
            converted = tuple(setting.item(item) for item in items)
            return converted if setting.listed else converted[0]
    kind = ("a list of " if setting.listed else "") + setting.item.__name__
    example = setting.default or {bool: False, int: 0, float: 0.5}.get(setting.item, "")
    raise BadInput(
        f"{source}: {name} must be {kind}",
        saw=clip(repr(value), 80),
        fix=f"{name} = {_text(example)}",
    )
