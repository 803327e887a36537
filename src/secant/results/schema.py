"""Descriptions of tables: what a row is, and the type, unit, meaning and format of each column.

A `Table` is defined next to the code that fills it. All code that reads, shows or writes tables uses these descriptions
only, so that each column is described once. A `{i}` in a column's name stands for 0, 1, 2, …
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

Format = Literal["text", "token", "tokens", "integer", "number", "rank", "logit", "share", "percent", "error", "truth"]
"""How a value is shown: a text; a token, or several, with every character visible; an integer; a number with three
digits; a stable rank; a logit; a share of a logit; a probability in percent; an error as a power of ten; yes or no."""

KINDS: dict[type, str] = {int: "integer", float: "number", str: "text", bool: "truth"}
"""The name of each column type in columns.csv."""

SHOWN: dict[type, Format] = {int: "integer", float: "number", str: "text", bool: "truth"}
"""The default format of each column type."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its name. With `{i}` it stands for several columns.
        type: int, float, str or bool.
        meaning: What a value means, and, if values can be missing, what that means.
        unit: The unit of its values.
        missing: Whether values can be missing. In columns of floats they always can, as NaN.
        heading: Its heading in views; by default its name.
        show: The format of its values; by default that of its type.

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
        """The name of its type in columns.csv: integer, number, text or truth."""
        return KINDS[self.type]

    @property
    def format(self) -> Format:
        """The format of its values."""
        return self.show or SHOWN[self.type]

    @property
    def dtype(self) -> str:
        """Its type in pandas."""
        if self.type is int:
            return "Int64" if self.missing else "int64"
        return {float: "float64", str: "object"}.get(self.type) or ("boolean" if self.missing else "bool")

    def but(self, **changes: Any) -> Column:
        """Returns the same column with some attributes changed.

        Args:
            changes: The new values of attributes, by name.

        """
        return replace(self, **changes)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Its name, which is also that of its file.
        row: What a row is.
        columns: Its columns, in order.

    """

    name: str
    row: str
    columns: tuple[Column, ...]
    _known: dict[str, Column] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._known.update({column.name: column for column in self.columns})

    def __getitem__(self, name: str) -> Column:
        """Returns the column with a name. Raises KeyError if there is none."""
        return self._known.get(name) or self._known[re.sub(r"\d+$", "{i}", name)]

    @property
    def names(self) -> list[str]:
        """The names of its columns, without those that stand for several columns."""
        return [column.name for column in self.columns if "{i}" not in column.name]

    def but(self, name: str = "", row: str = "", **more: Sequence[Column]) -> Table:
        """Returns the same table with a different name, row or columns.

        Args:
            name: The new name; by default the same.
            row: What a row is; by default the same.
            more: Columns to add `before` and `after` its own. A column with the name of one of its own replaces it.

        """
        given = {column.name: column for columns in more.values() for column in columns}
        own = [given.pop(column.name, column) for column in self.columns]
        first, last = ([c for c in more.get(where, ()) if c.name in given] for where in ("before", "after"))
        return Table(name or self.name, row or self.row, (*first, *own, *last))

    def frame(self, rows: Iterable[Sequence[Any]] | Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
        """Returns rows as a frame that has all columns, in order and with their types.

        Args:
            rows: Tuples in the order of the columns, dicts by name, or a frame. If a column stands for several, dicts
                and frames can have any number of them.

        Raises:
            KeyError: The rows have a column that is not described, or lack one that is.

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
        frame = rows[order].astype({name: self[name].dtype for name in order})
        texts = {name: frame[name].where(frame[name].notna(), None) for name in order if self[name].type is str}
        return frame.assign(**texts)

    @property
    def empty(self) -> pd.DataFrame:
        """A frame of this table without rows."""
        return self.frame([])


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns rows as dicts of Python values, with None for missing ones, ready for JSON.

    Args:
        frame: The rows.

    """
    columns = [own.astype(object).where(own.notna(), None).tolist() for _, own in frame.items()]
    return [dict(zip(map(str, frame.columns), row, strict=True)) for row in zip(*columns, strict=True)]
