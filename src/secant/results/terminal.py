"""Views in a terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import IO, Any, cast

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secant.results.formats import NUMBERS, fact, heading, shown
from secant.results.view import Cell, Grid, Shown, Style, Tokens, View, largest, missing, value_of
from secant.text import readable

STYLES: dict[Style, str] = {"": "", "strong": "bold", "dim": "dim", "bad": "red"}

BAR = 20
"""The length of the longest bar, in characters."""

LEAST = 8
"""The minimum width, in characters, of columns that share the remaining width."""

USUAL = 16
"""Width in characters up to which spare columns are left out to make room for a column of tokens."""

GAP = 2
"""Spaces between columns."""


class _Trimmed(io.TextIOBase):
    """Standard output without the spaces that rich adds at the ends of lines."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stdout.encoding

    def write(self, text: str) -> int:
        sys.stdout.write(re.sub(r" +(?=\n)", "", text))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()


def console(width: int | None = None, usual: int = 100) -> Console:
    """Returns a console on standard output that prints text as it is, without markup or names of emoji.

    If standard output is not a terminal, lines have as many characters as the environment variable COLUMNS says, and no
    spaces at their ends.

    Args:
        width: The width in characters; by default the terminal's.
        usual: The width without a terminal and COLUMNS.

    """
    plain: Any = {"highlight": False, "markup": False, "emoji": False, "width": width}
    out = Console(**plain)
    if out.is_terminal:
        return out
    said = os.environ.get("COLUMNS", "")
    plain["width"] = width or (int(said) if said.isdecimal() and int(said) else usual)
    return Console(**plain, file=cast("IO[str]", _Trimmed()))


def show(view: View, width: int | None = None, usual: int = 100) -> None:
    """Prints a view on standard output: title, facts, grids, warnings and notes.

    Args:
        view: The view.
        width: The width in characters; by default the terminal's.
        usual: The width without a terminal, unless the environment variable COLUMNS says one.

    """
    out = console(width, usual)
    out.print()
    if view.title:
        out.print(Text(readable(view.title), style="bold"))
    if view.facts:
        out.print(_facts(view.facts))
    for grid in view.grids:
        if grid.title and not grid.rows:
            out.print()
            out.print(Text(readable(grid.title), style="dim"))
        elif grid.rows:
            for part in _parts(grid, out.width):
                out.print()
                out.print(part)
            if grid.note:
                out.print()
                out.print(Text(readable(grid.note), style="dim"))
    for warning in view.warnings:
        out.print()
        out.print(Text(readable(warning), style="red"))
    if view.notes:
        out.print()
        out.print(Text(" ".join(map(readable, view.notes)), style="dim"))


def _facts(facts: dict[str, Any]) -> Table:
    """A line for each fact. If a fact has several lines, its name is on the first."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    for name, value in facts.items():
        lines = value if isinstance(value, list) else [value]
        for i, line in enumerate(lines):
            table.add_row("" if i else name, Text(fact(line), style="dim" if i else ""))
    return table


def _parts(grid: Grid, width: int) -> list[Table]:
    """A grid as tables that fit the width: one without spare columns, or several with some of the columns each."""
    rows = list(grid.rows if grid.most is None else grid.rows[: grid.most])
    columns, said = list(grid.columns), list[str]()
    if not grid.keep:
        places = list(range(len(columns)))
        for spare in sorted({column.spare for column in columns} - {0}, reverse=True):
            if _least(columns, rows, places) <= width:
                break
            places = [i for i in places if columns[i].spare != spare]
        tables = [_table(columns, rows, places, width)]
        if left := [readable(c.heading) for i, c in enumerate(columns) if i not in places and c.heading]:
            said.append(f"not shown at this width: {', '.join(left)}")
    else:
        first, tables, start = list(range(grid.keep)), [], grid.keep
        while start < len(columns):
            end = start + 1
            while end < len(columns) and _least(columns, rows, [*first, *range(start, end + 1)]) <= width:
                end += 1
            tables.append(_table(columns, rows, [*first, *range(start, end)], width))
            start = end
    tables[0].title = Text(readable(grid.title), style="dim") if grid.title else None
    if len(grid.rows) > len(rows):
        said.append(f"and {len(grid.rows) - len(rows)} more: to_pandas(), --json and --out have all")
    if said:
        tables[-1].caption = Text("\n".join(said))
    return tables


def _least(columns: Sequence[Shown], rows: Sequence[Sequence[Any]], places: Sequence[int]) -> int:
    """The width that some columns require."""
    widths = []
    for i in places:
        own = USUAL if columns[i].show == "tokens" else LEAST
        widths.append(own if _takes_rest(columns[i]) else _width(columns[i], [row[i] for row in rows]))
    return sum(widths) + GAP * (len(places) - 1)


def _takes_rest(column: Shown) -> bool:
    """Whether a column shares the remaining width."""
    return column.show == "tokens" or column.wrap


def _width(column: Shown, values: Sequence[Any]) -> int:
    """The width of a column: that of its widest value, at most `most`."""
    if column.show == "bar":
        return BAR
    widest = max((cell_len(shown(value, column.show)) for value in values), default=0)
    return max(1, min(max(widest, cell_len(heading(column))), column.most))


def _table(columns: Sequence[Shown], rows: Sequence[Sequence[Any]], places: Sequence[int], width: int) -> Table:
    """Some columns of a grid. Columns of tokens, and of texts that wrap, share the remaining width."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1), title_justify="left")
    table.caption_style, table.caption_justify = "dim", "left"
    own = {i: [row[i] for row in rows] for i in places}
    wide = [i for i in places if _takes_rest(columns[i])]
    taken = sum(_width(columns[i], own[i]) for i in places if i not in wide) + GAP * (len(places) - 1)
    left = [max(LEAST, (width - taken - k) // max(1, len(wide))) for k in range(len(wide))]
    widths = {i: _width(columns[i], own[i]) for i in places} | {
        i: min(room, max(_width(replace(columns[i], most=10**6), own[i]), cell_len(heading(columns[i]))))
        for i, room in zip(wide, left, strict=True)
    }
    for i in places:
        right = columns[i].show in NUMBERS
        table.add_column(
            Text(heading(columns[i])), justify="right" if right else "left", no_wrap=not columns[i].wrap,
            width=widths[i], overflow="fold" if columns[i].wrap else "ellipsis",
        )  # fmt: skip
    tops = {i: largest(own[i]) for i in places if columns[i].show == "bar"}
    for row in rows:
        table.add_row(*(_cell(row[i], columns[i], widths[i], tops.get(i, 0.0)) for i in places))
    return table


def _cell(value: Any, column: Shown, width: int, top: float) -> Text:
    style = STYLES[value.style] if isinstance(value, Cell) else ""
    if column.show == "bar":
        own = value_of(value)
        length = 0 if missing(own) or not top else round(BAR * abs(own) / top)
        return Text(("█" if length and own >= 0 else "▒") * length, style="red" if length and own < 0 else style)
    if column.show == "tokens" and not missing(value_of(value)):
        mark = value.mark if isinstance(value, Cell) else ""
        return Text(mark + _whole(Tokens(value_of(value)), width - len(mark)), style=style)
    return Text(shown(value, column.show), style=style)


def _whole(tokens: Tokens, width: int) -> str:
    """As many whole tokens as fit. If not even the first fits, it is cut."""
    line = ""
    for token in tokens:
        longer = f"{line} {shown((token,), 'tokens')}".strip()
        if line and cell_len(longer) > width:
            break
        line = longer
    return line
