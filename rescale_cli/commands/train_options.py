"""The options of `train` that make up the recipe: one for each field of `Recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rescale_cli.errors import UsageError
from rescale_cli.json_text import clip
from rescale_cli.training.recipe import SETTINGS, Recipe, Setting


def _option_of(setting: Setting) -> Any:
    """The option of a field, as Typer reads it; its value is None where it was not typed."""
    names = [setting.option]
    if setting.item is bool:
        names = [f"{setting.option}/--no-{setting.option.removeprefix('--')}"]
    names += [setting.short] if setting.short else []
    words: dict[str, Any] = {"help": setting.help, "show_default": _default_of(setting)}
    if setting.item is bool:
        return Annotated[bool | None, typer.Option(*names, rich_help_panel=setting.panel, **words)]
    metavar = setting.metavar or "|".join(setting.choices)
    return Annotated[
        str | None,
        typer.Option(*names, metavar=metavar, rich_help_panel=setting.panel, **words),
    ]


def _default_of(setting: Setting) -> str:
    """The default of an option and its range, for `--help`."""
    value = setting.default
    if setting.unset:
        shown = setting.unset
    elif setting.item is bool:
        shown = "on" if value else "off"
    else:
        shown = ",".join(map(str, value)) if setting.listed else str(value)
    return "; ".join(filter(None, (shown, setting.range)))


_Typed: Any = make_dataclass(
    "_Typed", [(s.name, _option_of(s), None) for s in SETTINGS.values()], frozen=True
)


@dataclass(frozen=True)
class RecipeOptions(_Typed):  # type: ignore[misc]  # its fields are made from those of Recipe
    """The options that were typed. See `options.spread`: each field is an option."""

    def given(self) -> dict[str, Any]:
        """The options that were typed, as `Recipe` takes them.

        Raises:
            UsageError: a value is not a number where one is needed.
        """
        typed = {name: getattr(self, name) for name in SETTINGS}
        return {name: _parse(SETTINGS[name], v) for name, v in typed.items() if v is not None}


def _parse(setting: Setting, text: Any) -> Any:
    """The value of a field, from the text of its option."""
    if setting.item in (bool, str):
        return text
    if setting.listed:
        return tuple(_number(setting, word) for word in text.split(",") if text != "none")
    return None if setting.optional and text == "none" else _number(setting, text)


def _number(setting: Setting, text: str) -> Any:
    try:
        return setting.item(text)
    except ValueError:
        kind = "whole number" if setting.item is int else "number"
        needs = f"{kind}s, separated by commas" if setting.listed else f"a {kind}"
        usual = ",".join(map(str, setting.default)) if setting.listed else setting.default
        raise UsageError(
            f"{setting.option} needs {needs}",
            saw=clip(repr(text), 80),
            fix=f"for example {setting.option} {usual or setting.low}",
        ) from None


def recipe_of(preset: str | None, config: Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe: the options that were typed, else the file, else the preset, else the defaults.

    Raises:
        UsageError: no such preset, or values that do not go together.
        BadInput: the file is not a recipe.
    """
    from rescale_cli.files.reading import read_whole
    from rescale_cli.training.presets import presets
    from rescale_cli.training.recipe_toml import options_in, options_of_run

    start = Recipe() if preset is None else presets[preset]
    from_file: dict[str, Any] = {}
    if config is not None and (config.is_dir() or config.name == "config.json"):
        from_file = options_of_run(config if config.is_dir() else config.parent)
    elif config is not None:
        text = read_whole(config, 1 << 20).decode("utf-8", "replace")
        from_file = _with_implied(options_in(text, config.name))
    return replace(start, **{**from_file, **_with_implied(given)})


def _with_implied(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one source, and what follows from them: wvn is training without a bias."""
    implied = {"head_bias": False} if options.get("wvn") else {}
    return {**implied, **options}


def show_config(recipe: Recipe, as_json: bool) -> None:
    """`--print-config`: every value, as `--config` reads it."""
    from rescale_cli.commands.console import Screen
    from rescale_cli.commands.train_report import empty_result
    from rescale_cli.training.recipe_toml import to_toml

    def show() -> None:
        typer.echo(to_toml(recipe), nl=False)

    Screen("train", as_json).result({**empty_result(), "recipe": asdict(recipe)}, (), show)
