"""The base class of results. A result describes its contents; these descriptions determine how it is shown and written.

A result is a frozen dataclass that derives from `Result` and defines up to four methods: `tables`, whose columns its
`schema` describes; `about`, facts about the whole result; `tensors`; and `view`, what to show first. To add a column,
add it to the `Table` next to the code that fills it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
from torch import Tensor

from secant.errors import printable
from secant.results.schema import Table, records
from secant.results.view import Grid, View


class Described(NamedTuple):
    """A tensor with a description.

    Attributes:
        meaning: What its axes and values are.
        tensor: The tensor.

    """

    meaning: str
    tensor: Tensor


class Viewed:
    """An object that can be shown: in a terminal by `show()`, in a notebook as the last value of a cell."""

    def view(self) -> View:
        """Returns what to show first."""
        raise NotImplementedError

    def brief(self) -> list[str]:
        """Returns what the object is, in a few words each: the model, the prompt, sizes. Computes nothing."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return printable(f"{type(self).__name__}({', '.join(self.brief())})")

    def show(self, width: int | None = None) -> None:
        """Prints the object on standard output.

        Args:
            width: The width in characters; by default the terminal's, or without one that of COLUMNS, or 100.

        """
        from secant.results.terminal import show

        show(self.view(), width)

    def _repr_html_(self) -> str:
        from secant.results.html import html

        return html(self.view())


class Result(Viewed):
    """The base class of results, which writes, exports and shows them."""

    schema: ClassVar[tuple[Table, ...]] = ()
    """The tables that it can have. The first is the one that `to_pandas` returns."""

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns its tables by name. A table's name is also that of its file."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """Returns facts about the whole result, ready for JSON."""
        return {}

    def tensors(self) -> Mapping[str, Described]:
        """Returns its tensors by name."""
        return {}

    def view(self) -> View:
        """Returns what to show first; unless overridden, all columns of its first table."""
        name, frame = next(iter(self.tables().items()))
        table = self.described(name)
        return View(f"{type(self).__name__}: {table.row}", grids=[Grid.of(table, frame, frame.columns)])

    @classmethod
    def described(cls, name: str) -> Table:
        """Returns the description of one of its tables.

        Args:
            name: The name of the table.

        Raises:
            KeyError: It has no such table.

        """
        return {table.name: table for table in cls.schema}[name]

    def to_pandas(self) -> pd.DataFrame:
        """Returns a copy of its first table."""
        return next(iter(self.tables().values())).copy()

    def to_dict(self) -> dict[str, Any]:
        """Returns all but the tensors, ready for JSON: the facts of `about`, and each table as a list of rows."""
        return self._tree(self.tables())

    def _tree(self, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
        from secant.results.files import plain

        return plain({**self.about(), **{name: records(frame) for name, frame in tables.items()}})

    def save(self, folder: str | Path) -> None:
        """Writes the result to a folder.

        The files are each table as .parquet and .csv, columns.csv, which describes their columns, a JSON file with all
        tables and facts, and a safetensors file if there are tensors. The last two are named after the result's class,
        so that one folder can hold results of different classes.

        Args:
            folder: The folder, which is made if it does not exist. Other files in it stay; those of a result of the
                same class are replaced.

        Raises:
            BadArgument: `folder` is not a path.
            OutputFailed: The folder can't be written. No partial files are left.

        """
        from secant.results.files import write

        tables = self.tables()
        described = [(self.described(name), frame) for name, frame in tables.items()]
        write(folder, self.file(), described, self._tree(tables), self.tensors(), self.about())

    @classmethod
    def file(cls) -> str:
        """Returns the name of its JSON file and of its file of tensors, without their endings."""
        return cls.__name__.lower()

    @classmethod
    def check_folder(cls, folder: str | Path, *files: str) -> None:
        """Raises the errors that saving a result of this class to a folder would raise, before there is a result.

        Args:
            folder: The folder.
            files: The names of other files that would be written there.

        Raises:
            BadArgument: `folder` is not a path.
            OutputFailed: The folder, or a file in it, can't be written.

        """
        from secant.results.files import check_folder

        check_folder(folder, cls.schema, [f"{cls.file()}.json", f"{cls.file()}.safetensors", *files])
