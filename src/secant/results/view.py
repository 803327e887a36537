"""Views: what a result shows first, as facts, grids of cells, and notes.

A view contains plain values. The renderers (`secant.results.terminal`, `secant.results.html`) decide how values look,
how wide columns are, and which columns they leave out on a narrow screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pandas as pd

from secant.results.schema import Format, Table

Style = Literal["", "strong", "dim", "bad"]


class Cell(NamedTuple):
    """A value with its own style, mark or format.

    Attributes:
        value: The value.
        style: Its style.
        mark: A text before it.
        show: Its format; by default its column's.

    """

    value: Any
    style: Style = ""
    mark: str = ""
    show: Format | None = None


class Tokens(tuple[str, ...]):
    """Several tokens, shown with every character visible."""

    __slots__ = ()


@dataclass(frozen=True)
class Shown:
    """A column of a grid.

    Attributes:
        heading: Its heading.
        show: The format of its values; "bar" draws them, from zero to the largest.
        most: Its largest width, in characters.
        spare: When it is left out on a narrow screen: columns with the largest number first; columns with 0 never.
        token: Whether its heading is a token.
        wrap: Whether values continue on further lines if they do not fit. Such columns share the remaining width.

    """

    heading: str
    show: Format | Literal["bar"] = "text"
    most: int = 34
    spare: int = 0
    token: bool = False
    wrap: bool = False


@dataclass(frozen=True)
class Grid:
    """Rows of cells under headings.

    Attributes:
        columns: The columns.
        rows: A value or `Cell` for each column; None leaves the cell empty.
        title: Its title.
        keep: If columns do not fit next to each other, the grid is split into several, each with this many of its first
            columns; 0 to leave out spare columns instead.
        most: The most rows that are shown; a line below says how many more there are.
        note: What its columns mean.

    """

    columns: Sequence[Shown]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    keep: int = 0
    most: int | None = None
    note: str = ""

    @staticmethod
    def of(
        table: Table, frame: pd.DataFrame, names: Iterable[str], *, spare: Mapping[str, int] | None = None, **more: Any
    ) -> Grid:
        """Returns columns of a frame, with the headings and formats that its table describes.

        Args:
            table: The description.
            frame: The rows.
            names: The names of the columns; "a|bar" adds a bar after a.
            spare: `Shown.spare` of some columns, by name.
            more: Other attributes of the grid.

        """
        shown, values = [], []
        for name in names:
            name, _, bar = name.partition("|")
            column = table[name]
            heading = name if column.heading is None else column.heading
            shown.append(Shown(heading, column.format, spare=(spare or {}).get(name, 0)))
            values.append(cells(frame[name]))
            if bar:
                shown.append(Shown("", "bar", spare=9))
                values.append(cells(frame[name]))
        return Grid(shown, list(zip(*values, strict=True)), **more)


@dataclass(frozen=True)
class View:
    """What to show of a result.

    Attributes:
        title: One line that says what it is.
        facts: Facts about the whole result, by name: a text, `Tokens`, or a list of lines.
        grids: Its tables.
        notes: What the columns mean, and what is left out.
        warnings: What went wrong.

    """

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    grids: Sequence[Grid] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


def cells(values: pd.Series) -> list[Any]:
    """Returns the values of a column, with None for missing ones.

    Args:
        values: The column.

    """
    return [None if missing(value) else value for value in values.astype(object)]


def missing(value: Any) -> bool:
    """Returns whether a value is None, NaN, or pandas' NA.

    Args:
        value: The value.

    """
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def value_of(cell: Any) -> Any:
    """Returns the value of a cell.

    Args:
        cell: A `Cell`, or the value itself.

    """
    return cell.value if isinstance(cell, Cell) else cell


def largest(cells: Iterable[Any]) -> float:
    """Returns the largest magnitude in a column of numbers, at which its bars end; 0 if there is none.

    Args:
        cells: The cells of the column.

    """
    return max((abs(value) for value in map(value_of, cells) if not missing(value)), default=0.0)
