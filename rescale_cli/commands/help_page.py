"""The page that --help prints: prose, panels of options or of commands, and examples.

Ours rather than Typer's page, which cuts long option names at 60 columns and loads a Markdown
parser, so that --help would take half as long again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from rescale_cli.commands.console import drawable, fold, width

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# They declare an option or argument in its panel of the page. readable=False: whoever opens a file
# reports better than Typer why it cannot be read.
input_option = partial(typer.Option, rich_help_panel="Input", readable=False)
input_argument = partial(typer.Argument, rich_help_panel="Input", readable=False)
method_option = partial(typer.Option, rich_help_panel="Method", readable=False)
gate_option = partial(typer.Option, rich_help_panel="Gates", readable=False)
output_option = partial(typer.Option, rich_help_panel="Output", readable=False)
advanced_option = partial(typer.Option, rich_help_panel="Advanced", readable=False)

#: The order of the panels on a page; an option without a panel is in the last one.
_PANELS = ("Input", "Method", "Training", "Gates", "Output", "Advanced")
#: Narrowest and widest column of names, and the room that the text beside it needs.
_LEAST, _MOST, _TEXT = 16, 34, 46
_OPTION = r"(?<![\w-])--?[a-zA-Z][\w-]*"


class Command(TyperCommand):
    """A command with our page."""

    def get_help(self, ctx: Any) -> str:
        """The text of --help."""
        return help_page(self, ctx)


@dataclass(frozen=True, slots=True)
class _Row:
    panel: str
    name: Text
    about: Text


def help_page(
    command: TyperCommand | TyperGroup, ctx: Any, listed: Iterable[tuple[str, str, str]] = ()
) -> str:
    """The page of one command, or of the group of all commands, as wide as the terminal.

    It is coloured only on a terminal, and not if NO_COLOR is set. The help of a command is prose
    with Rich markup, then `Examples:` and indented lines.

    Args:
        command: the command or the group.
        ctx: its context.
        listed: name, panel and summary of each command of a group.
    """
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    coloured = not os.environ.get("NO_COLOR")
    console = Console(
        width=max(width(), 40), color_system="auto" if coloured else None, highlight=False
    )
    room = console.width - 4
    prose, _, examples = (command.help or "").partition("\nExamples:\n")
    names = [_Row(panel, Text(name, "bold cyan"), _about(about)) for name, panel, about in listed]
    rows = [*names, *_parameters(command, ctx)]
    column = min(_MOST, room - 2 - _TEXT)
    column = 0 if column < _LEAST else min(column, max(row.name.cell_len for row in rows))
    with console.capture() as page:
        _print_prose(console, f"[bold]Usage:[/] {_usage(command, ctx)}")
        for paragraph in prose.split("\n\n"):
            console.print()
            _print_prose(console, paragraph)
        console.print()
        for panel in dict.fromkeys(row.panel for row in rows):
            lines = [
                line
                for row in rows
                if row.panel == panel
                for line in _lines(row, column, room, console)
            ]
            body = Text("\n").join(lines)
            console.print(Panel(body, title=panel, title_align="left", border_style="dim"))
        _print_examples(console, examples)
    return drawable(page.get().rstrip())


def _usage(command: TyperCommand | TyperGroup, ctx: Any) -> str:
    words = [ctx.command_path]
    for parameter in command.params:
        name = parameter.metavar or ""
        if parameter.param_type_name == "argument":
            name += "..." if parameter.nargs != 1 else ""
            words.append(name if parameter.required else rf"\[{name}]")
        elif parameter.required:
            words.append(f"{max(parameter.opts, key=len)} {name}")
    words.append(r"\[OPTIONS]")
    return " ".join([*words, *(["COMMAND ..."] if isinstance(command, TyperGroup) else [])])


def _parameters(command: TyperCommand | TyperGroup, ctx: Any) -> list[_Row]:
    from rich.text import Text

    rows = []
    ordered = sorted(command.get_params(ctx), key=lambda p: p.param_type_name != "argument")
    for parameter in ordered:
        record: tuple[str, str] | None = parameter.get_help_record(ctx)
        if record is None:
            continue
        words: str = getattr(parameter, "help", None) or ""
        name = Text(parameter.metavar or record[0], "yellow")
        if parameter.param_type_name == "option":
            # Without a metavar, Typer puts brackets around the values to choose from.
            names = record[0] if parameter.metavar else re.sub(r"[<>\[\]]", "", record[0])
            name = Text(names, "yellow")
            name.highlight_regex(_OPTION, "bold cyan")
        about = _about(words)
        about.append(_plainer(record[1].removeprefix(words)), "dim")
        usual = "Options" if isinstance(command, TyperGroup) else _PANELS[-1]
        rows.append(_Row(getattr(parameter, "rich_help_panel", None) or usual, name, about))
    return sorted(rows, key=lambda row: (*_PANELS, row.panel).index(row.panel))


def _about(words: str) -> Text:
    from rich.text import Text

    about = Text.from_markup(words, emoji=False)
    about.highlight_regex(_OPTION, "cyan")
    return about


def _plainer(notes: str) -> str:
    """Typer's note on the default and the range, in words.

    Example:
        >>> _plainer("  [default: (none); x>=1]"), _plainer("  [default: 1; 0<=x<=4; required]")
        (' [default: none; 1 or more]', ' [default: 1; 0 to 4; required]')
    """
    notes = re.sub(r"default: \((.*?)\)(?=[;\]])", r"default: \1", notes.strip())
    notes = re.sub(r"([-+.\w]+)<=x<=([-+.\w]+)", r"\1 to \2", notes)
    notes = re.sub(r"x>=([-+.\w]+)", r"\1 or more", notes)
    return f" {notes}" if notes else ""


def _lines(row: _Row, column: int, room: int, console: Console) -> list[Text]:
    """The name, and its text beside it if it fits the column, else below it."""
    from rich.text import Text

    indent = column + 2 if column else 6
    about = [Text(" " * indent) + line for line in row.about.wrap(console, room - indent)]
    if not about or row.name.cell_len > indent - 2:
        return [*row.name.wrap(console, room), *about]
    space = " " * (indent - row.name.cell_len)
    return [row.name + space + about[0][indent:], *about[1:]]


def _print_prose(console: Console, paragraph: str) -> None:
    for line in _about(" ".join(paragraph.split())).wrap(console, console.width - 2):
        line.rstrip()
        console.print(" ", line, sep="")


def _print_examples(console: Console, examples: str) -> None:
    """Commands to copy; a long one continues on the next line after a backslash."""
    if not examples:
        return
    console.print("\n [bold]Examples[/] with the files that [cyan]rescale-cli demo[/] makes:")
    # A line that is indented further continues the one before it.
    whole = re.sub(r"\n {8,}(?=\S)", " ", examples)
    for example in filter(None, map(str.strip, whole.splitlines())):
        text = example.removeprefix("# ")
        if text != example:
            shown, style = [f"  # {line}" for line in fold(text, console.width - 5)], "dim"
        else:  # an option and its value stay on one line
            kept = re.sub(r"(?<= )(--?[a-z-]+) (?=[^-])", "\\1\u00a0", text)
            command = " \\\n    ".join(fold(kept, console.width - 6))
            shown, style = [f"  {command}"], "bold"
        for line in shown:
            console.print(line, style=style, markup=False, soft_wrap=True)
