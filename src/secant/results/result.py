"""A result: it says what it consists of, and everything that shows, writes or exports it follows from that.

A result is a frozen dataclass that derives from `Result` and says up to four things: `tables`, whose columns its
`schema` describes; `about`, what is said of the whole; `tensors`; and `view`, what to show first. Adding a column means
writing it down in the `Table` next to the code that fills it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
from torch import Tensor

from secant.results.schema import Table, records
from secant.results.view import Grid, View


class Described(NamedTuple):
    """A tensor and what its axes and values are."""

    meaning: str
    tensor: Tensor


class Viewed:
    """What shows itself: in a terminal by `show()`, in a notebook by being the last value of a cell."""

    def view(self) -> View:
        """What to show of it first."""
        raise NotImplementedError

    def show(self, width: int | None = None) -> None:
        """Print it on standard output.

        Args:
            width: Columns to fill; by default the terminal's, or 100 where there is none.

        """
        from secant.results.terminal import show

        show(self.view(), width)

    def _repr_html_(self) -> str:
        from secant.results.html import html

        return html(self.view())


class Result(Viewed):
    """What every result can do."""

    schema: ClassVar[tuple[Table, ...]] = ()
    """The tables that it may have, the one of `to_pandas` first."""

    def tables(self) -> dict[str, pd.DataFrame]:
        """Its tables by the name of their file."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What is said of the whole, ready for JSON."""
        return {}

    def tensors(self) -> Mapping[str, Described]:
        """Its tensors by name."""
        return {}

    def view(self) -> View:
        """What to show of it first: unless it says otherwise, all columns of its first table."""
        name, frame = next(iter(self.tables().items()))
        table = self.described(name)
        return View(f"{type(self).__name__}: {table.row}", grids=[Grid.of(table, frame, frame.columns)])

    @classmethod
    def described(cls, name: str) -> Table:
        """The description of one of its tables.

        Raises:
            KeyError: It has no such table.

        """
        return {table.name: table for table in cls.schema}[name]

    def to_pandas(self) -> pd.DataFrame:
        """Its first table, as a copy."""
        return next(iter(self.tables().values())).copy()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON: what is said of the whole, and each table as a list of rows."""
        from secant.results.files import plain

        return plain({**self.about(), **{name: records(frame) for name, frame in self.tables().items()}})

    def save(self, folder: str | Path) -> None:
        """Write it to a folder: each table as .parquet and .csv, columns.csv, which says what their columns mean, one
        JSON of all of it, and tensors.safetensors where it has tensors.

        Raises:
            OutputFailed: The folder can't be written to. Nothing half-written is left behind.

        """
        from secant.results.files import write

        tables = [(self.described(name), frame) for name, frame in self.tables().items()]
        write(folder, self.file(), tables, self.to_dict(), self.tensors(), self.about())

    @classmethod
    def file(cls) -> str:
        """The name of its JSON file, without the ending."""
        return cls.__name__.lower()

    @classmethod
    def check_folder(cls, folder: str | Path, *files: str) -> None:
        """Raise what saving such a result to a folder would raise, before there is one.

        Args:
            folder: Where it would be saved.
            files: The names of other files that would be written there.

        Raises:
            BadArgument: It is no path.
            OutputFailed: It, or a file of it, could not be written.
        """
        from secant.results.files import TENSORS, check_folder

        check_folder(folder, cls.schema, [f"{cls.file()}.json", TENSORS, *files])
