"""Tables that fit any width: cells wrap at spaces, and no word or number is ever cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.cells import cell_len
from rich.text import Text

from rescale_cli.commands.console import drawable, fold, plain
from rescale_cli.json_text import clip, percent

_GAP = "  "
#: Characters of a name in a table: names in a file may be as long as they like.
_LONGEST = 1000
_SHORTEST_BAR = 8


@dataclass(frozen=True, slots=True)
class Bar:
    """A cell with a bar that is as long as there is room, beside a label."""

    share: float
    """0 to 1, of the longest bar."""
    label: str
    longest: int = 30
    """Characters of the longest bar."""
    before: bool = False
    """Whether the label stands before the bar."""
    style: str = ""

    @property
    def least(self) -> int:
        """The smallest width."""
        return cell_len(self.label) + 1 + _SHORTEST_BAR

    def lines(self, width: int) -> list[str]:
        """The bar in that width, which is at least `least`."""
        length = min(self.longest, width - cell_len(self.label) - 1)
        drawn = drawable("█" * round(length * self.share))
        return [f"{self.label} {drawn}" if self.before else f"{drawn:{length}} {self.label}"]


Cell = str | Bar


@dataclass(slots=True)
class Grid:
    """A table: rows of cells under titles.

    Columns that have no room beside the others follow below them, with the key columns repeated; a
    key that leaves no room stands on a line of its own, and what belongs to it below.

    Args:
        titles: one a column; `count>` stands at the right end of its column, as numbers do.
        keys: how many of the first columns say what a row is.

    Example:
        >>> grid = Grid(["class", "count>", "recall>"])
        >>> grid.add("night owl", "1,200", "0.5000")
        >>> for line in grid.lines(24):
        ...     print(line)
        class      count  recall
        night owl  1,200  0.5000
        >>> for line in grid.lines(21):
        ...     print(line)
        class  count  recall
        night  1,200  0.5000
        owl
        >>> for line in grid.lines(13):
        ...     print(line)
        class  count
        night  1,200
        owl
        <BLANKLINE>
        class  recall
        night  0.5000
        owl
    """

    titles: Sequence[str]
    keys: int = 1
    rows: list[tuple[list[Cell], str]] = field(default_factory=list)

    def add(self, *cells: Cell, style: str = "") -> None:
        """One more row, of as many cells as there are columns, or of fewer."""
        shown = [cell if isinstance(cell, Bar) else _shown(cell) for cell in cells]
        self.rows.append((shown + [""] * (len(self.titles) - len(shown)), style))

    def lines(self, room: int) -> list[Text]:
        """The table, `room` wide; only a word that is longer makes a longer line."""
        columns = [_Column(self, number) for number in range(len(self.titles))]
        keys, others = columns[: self.keys], columns[self.keys :]
        widest = max((column.least for column in others), default=0)
        if _least([*keys, *others][: self.keys]) + len(_GAP) + widest > room and others:
            return self._records(columns, room)
        parts: list[list[_Column]] = [[]]
        for column in others:
            if parts[-1] and _least([*keys, *parts[-1], column]) > room:
                parts.append([])
            parts[-1].append(column)
        lines: list[Text] = []
        for part in parts:
            lines += [*([Text()] if lines else []), *self._table([*keys, *part], room)]
        return lines

    def _table(self, columns: list[_Column], room: int) -> list[Text]:
        """Columns side by side, each at least as wide as its longest word."""
        widths = [column.least for column in columns]
        left = max(0, room - _least(columns))
        wishes = sorted(range(len(columns)), key=lambda i: columns[i].most - widths[i])
        for rank, i in enumerate(wishes):
            more = min(columns[i].most - widths[i], left // (len(columns) - rank))
            widths[i], left = widths[i] + more, left - more
        for i, column in enumerate(columns):  # no wider than what stands in it
            cells = range(len(self.rows) + 1)
            widths[i] = max(cell_len(line) for n in cells for line in column.lines(n, widths[i]))
        lines = []
        for number, style in enumerate(["", *(style for _, style in self.rows)]):
            blocks = [column.block(number, w) for column, w in zip(columns, widths, strict=True)]
            for at in range(max(map(len, blocks))):
                line = Text(style=style)
                for block, width in zip(blocks, widths, strict=True):
                    line.append(block[at] if at < len(block) else Text(" " * width))
                    line.append(_GAP)
                line.rstrip()
                lines.append(line)
        return lines

    def _records(self, columns: list[_Column], room: int) -> list[Text]:
        """Each row by itself: its key, and below it the rest as `title value`."""
        head = " ".join(column.title for column in columns[: self.keys])
        lines = [Text(line) for line in fold(head, room)]
        for cells, style in self.rows:
            key = " ".join(str(cell) for cell in cells[: self.keys] if cell)
            lines += [Text(line, style) for line in fold(key, room)]
            pairs, line = [(c.title, cell) for c, cell in zip(columns, cells, strict=True)], ""
            for title, cell in pairs[self.keys :]:
                width = max(room - 2, cell.least) if isinstance(cell, Bar) else 0
                text = cell.lines(width)[0].strip() if isinstance(cell, Bar) else cell
                text = f"{title} {text}".strip() if text and not isinstance(cell, Bar) else text
                if line and cell_len(line) + len(_GAP) + cell_len(text) > room - 2:
                    lines += [Text(f"  {part}", style) for part in fold(line, room - 2)]
                    line = ""
                line = f"{line}{_GAP if line and text else ''}{text}"
            lines += [Text(f"  {part}", style) for part in fold(line, room - 2) if part]
        return lines


class _Column:
    """One column, its title the first of its cells."""

    def __init__(self, grid: Grid, number: int) -> None:
        title = grid.titles[number]
        self.title, self.right = title.removesuffix(">"), title.endswith(">")
        self.cells: list[Cell] = [_shown(self.title), *(cells[number] for cells, _ in grid.rows)]
        self.least = max(
            cell.least if isinstance(cell, Bar) else max(map(cell_len, cell.split(" ")))
            for cell in self.cells
        )
        self.most = max(
            cell.least - _SHORTEST_BAR + cell.longest if isinstance(cell, Bar) else cell_len(cell)
            for cell in self.cells
        )

    def lines(self, number: int, width: int) -> list[str]:
        """A cell in lines that are no wider, if no word is longer."""
        cell = self.cells[number]
        return cell.lines(width) if isinstance(cell, Bar) else fold(cell, width)

    def block(self, number: int, width: int) -> list[Text]:
        """The lines of one cell, each as wide as the column."""
        cell, lines = self.cells[number], self.lines(number, width)
        style = cell.style if isinstance(cell, Bar) else ""
        pads = [" " * (width - cell_len(line)) for line in lines]
        return [
            Text(pad + line if self.right else line + pad, style)
            for line, pad in zip(lines, pads, strict=True)
        ]


def _least(columns: Sequence[_Column]) -> int:
    return sum(column.least for column in columns) + len(_GAP) * (len(columns) - 1)


def _shown(text: str) -> str:
    return drawable(plain(clip(text, _LONGEST)))


#: Rows of a table, and paths in a line; a longer table shows its two ends.
_ROWS, _PATHS = 20, 12


def ends(size: int) -> list[int | None]:
    """The rows that a table shows: all, or the first and the last ones around None."""
    if size <= _ROWS:
        return list(range(size))
    return [*range(_ROWS // 2), None, *range(size - _ROWS // 2, size)]


def listed(paths: Sequence[Path]) -> str:
    """Paths in one line; of many, the first ones."""
    more = f" and {len(paths) - _PATHS:,} more" if len(paths) > _PATHS else ""
    return ", ".join(map(str, paths[:_PATHS])) + more


def number(value: float | None, sign: str = "") -> str:
    """A metric with four digits and without a negative zero; `+` shows the sign of a change.

    Example:
        >>> number(0.5), number(-0.00001, "+"), number(None), number(float("nan"))
        ('0.5000', '+0.0000', 'n/a', 'n/a')
    """
    return "n/a" if value is None or math.isnan(value) else f"{value:{sign}z.4f}"


def change(value: float | None, interval: tuple[float, float] | None, sign: str = "+") -> str:
    """A change of a metric with its 95 % interval, for a cell: no line breaks within the interval.

    Example:
        >>> change(0.03, (0.01, 0.05)).replace(chr(0xA0), " ")
        '+0.0300 [+0.0100, +0.0500]'
    """
    if interval is None:
        return number(value, sign)
    return f"{number(value, sign)} [{number(interval[0], sign)},\u00a0{number(interval[1], sign)}]"


def percent_cell(share: float, sign: str = "") -> str:
    """A share as percent, for a cell: no line breaks before the percent sign."""
    return percent(share, sign=sign).replace(" ", "\u00a0")
