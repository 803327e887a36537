"""What to show first of a result, for whatever shows it: facts, grids of cells, and what they mean.

A view holds plain values. How a value looks, how wide a column may be and which columns are left out on a narrow screen
is up to what shows it (`secant.results.terminal`, `secant.results.html`).
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
    """A value that is shown in another style than its column's, or after a mark."""

    value: Any
    style: Style = ""
    mark: str = ""
    show: Format | None = None


class Tokens(tuple[str, ...]):
    """Several tokens, which are shown with every character visible."""

    __slots__ = ()


@dataclass(frozen=True)
class Shown:
    """A column as it is shown.

    Attributes:
        heading: What stands above it.
        show: How its values are shown; "bar" draws them, from zero to the largest.
        most: The most characters that it takes.
        spare: On a narrow screen, columns that are spare are left out first, the largest number before the others.
        token: Whether its heading is a token.
        wrap: Whether what does not fit goes on in further lines. Such columns share the room that is left.

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
        rows: A value or `Cell` for each column; None is shown as nothing.
        title: What stands above it.
        keep: Where columns do not fit next to each other, so many of the first are repeated and the others go below;
            0 where columns are left out instead.
        most: Rows that are shown; how many more there are is said.
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
        """Columns of a frame, with the headings and formats that its table describes.

        Args:
            table: What describes them.
            frame: The rows.
            names: The names of the columns; "a|bar" draws a bar after a.
            spare: Those that are left out on a narrow screen, as `Shown` has it.
            more: What else a grid has.

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
        title: What it is, in a line.
        facts: What is said of the whole: a text, `Tokens`, or several lines.
        grids: Its tables.
        notes: What the columns mean, and what was left out.
        warnings: What went wrong.

    """

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    grids: Sequence[Grid] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


def cells(values: pd.Series) -> list[Any]:
    """The values of a column, None where one is missing."""
    return [None if missing(value) else value for value in values.astype(object)]


def missing(value: Any) -> bool:
    """Whether a value is None, NaN, or pandas' missing one."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
