"""What a table is: its rows and its columns, each with type, unit and meaning, and how it is shown.

A `Table` stands next to the code that fills it. What reads, shows and writes tables knows these descriptions alone, so
that a column is written down once. A `{i}` in a column's name stands for 0, 1, 2, …
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

Format = Literal["text", "token", "tokens", "integer", "number", "rank", "logit", "share", "percent", "error", "truth"]
"""How a value is shown: a text; a token, or several, with every character visible; a number in six places; a stable
rank; a logit; a share of a logit; a probability; an error as a power of ten; yes or no."""

KINDS: dict[type, str] = {int: "integer", float: "number", str: "text", bool: "truth"}
"""The types of columns, as they are written in columns.csv."""

SHOWN: dict[type, Format] = {int: "integer", float: "number", str: "text", bool: "truth"}
"""How a column is shown unless it says otherwise."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its name, with `{i}` where it stands for several.
        type: int, float, str or bool.
        meaning: What a value means, and what a missing one does.
        unit: The unit of its values.
        missing: Whether values may be missing. A missing number is NaN, and needs no mention.
        heading: What stands above it where it is shown, if not its name.
        show: How a value is shown, if not as its type is.

    """

    name: str
    type: type
    meaning: str
    unit: str = ""
    missing: bool = False
    heading: str | None = None
    show: Format | None = None

    @property
    def kind(self) -> str:
        """The type as columns.csv has it: integer, number, text or truth."""
        return KINDS[self.type]

    @property
    def format(self) -> Format:
        """How a value is shown."""
        return self.show or SHOWN[self.type]

    @property
    def dtype(self) -> str:
        """The type of pandas that holds it."""
        if self.type is int:
            return "Int64" if self.missing else "int64"
        return {float: "float64", str: "object"}.get(self.type) or ("boolean" if self.missing else "bool")

    def but(self, **changes: Any) -> Column:
        """The same column with some attributes changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Table:
    """A table: the name of its file, what a row is, and its columns in order."""

    name: str
    row: str
    columns: tuple[Column, ...]
    _known: dict[str, Column] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._known.update({column.name: column for column in self.columns})

    def __getitem__(self, name: str) -> Column:
        """The column of a name. Raises KeyError for one that is not described."""
        return self._known.get(name) or self._known[re.sub(r"\d+$", "{i}", name)]

    @property
    def names(self) -> list[str]:
        """The names of its columns, without those that stand for several."""
        return [column.name for column in self.columns if "{i}" not in column.name]

    def but(self, name: str = "", row: str = "", **more: Sequence[Column]) -> Table:
        """The same table with another name or row, and with columns `before` and `after` its own, which those of the
        same name replace in their place.
        """
        given = {column.name: column for columns in more.values() for column in columns}
        own = [given.pop(column.name, column) for column in self.columns]
        first, last = ([c for c in more.get(where, ()) if c.name in given] for where in ("before", "after"))
        return Table(name or self.name, row or self.row, (*first, *own, *last))

    def frame(self, rows: Iterable[Sequence[Any]] | Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
        """Rows as a frame with all columns in order and of their types.

        Args:
            rows: Tuples in the order of the columns, dicts by name, or a frame. A column that stands for several takes
                as many as there are, from dicts and frames.

        Raises:
            KeyError: A column is not described, or one that is described is not there.

        """
        if not isinstance(rows, pd.DataFrame):
            rows = list(rows)
            rows = pd.DataFrame(rows, columns=None if rows and isinstance(rows[0], Mapping) else self.names)
        several = [c.name.removesuffix("{i}") for c in self.columns if "{i}" in c.name]
        order: list[str] = []
        for column in self.columns:
            stem = column.name.removesuffix("{i}")
            of_it = [name for name in rows.columns if re.fullmatch(rf"{re.escape(stem)}\d+", str(name))]
            order += of_it if stem in several else [column.name]
        if odd := {*rows.columns} - {*order}:
            raise KeyError(f"Table {self.name} does not describe {', '.join(sorted(map(str, odd)))}")
        return rows[order].astype({name: self[name].dtype for name in order})

    @property
    def empty(self) -> pd.DataFrame:
        """The table without rows."""
        return self.frame([])


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts of Python's own values, None where one is missing, ready for JSON."""
    columns = [own.astype(object).where(own.notna(), None).tolist() for _, own in frame.items()]
    return [dict(zip(map(str, frame.columns), row, strict=True)) for row in zip(*columns, strict=True)]
