"""Tables as files: Parquet and CSV, and what their columns mean beside them (secant.dictionary).

The Parquet's columns have the dictionary's types, whatever is in them, and carry its unit and meaning as metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.parquet

from secant.dictionary import TABLES, Column, Table
from secant.files import replacing

ARROW = {
    "integer": pyarrow.int64(),
    "number": pyarrow.float64(),
    "text": pyarrow.large_string(),
    "truth": pyarrow.bool_(),
}
"""Types of the dictionary as those of Parquet."""

DESCRIBED = "columns"
"""The name of the file that says what the columns of a folder's tables mean."""


@contextmanager
def saving(folder: str | Path, tables: Mapping[str, pd.DataFrame]) -> Iterator[Path]:
    """A folder with these tables (.parquet and .csv) and columns.csv; more can be written to it in the block.

    It is in its place when the block ends well. columns.csv is of all tables that the folder has then, also those that
    were there. Raises OutputFailed.
    """
    there = {file.stem for file in Path(folder).glob("*.parquet")} & set(TABLES)
    with replacing(folder) as new:
        new.mkdir()
        for name, table in tables.items():
            pyarrow.parquet.write_table(described(TABLES[name], table), new / f"{name}.parquet")
            table.to_csv(new / f"{name}.csv", index=False)
        columns(*there, *tables).to_csv(new / f"{DESCRIBED}.csv", index=False)
        yield new


def columns(*names: str, of: Mapping[str, Table] = TABLES) -> pd.DataFrame:
    """The dictionary of these tables, by default of all: a row for each column, with its type, unit and meaning.

    `of`: TABLES, or STUDY, which a study writes.
    """
    rows = [
        (name, column, *about)
        for name, table in of.items()
        if name in names or not names
        for column, about in table.columns.items()
    ]
    return pd.DataFrame(rows, columns=["table", "column", "type", "unit", "meaning"])


def column(table: Table, name: str) -> Column:
    """What a column holds. Raises KeyError for one that the dictionary does not have: it needs a line there."""
    return table.columns.get(name) or table.columns[re.sub(r"\d+$", "{i}", name)]


def described(table: Table, rows: pd.DataFrame) -> pyarrow.Table:
    """Rows of a table as they are written, with what its columns mean."""
    fields = []
    for key in rows.columns:
        about = column(table, key)
        fields.append(pyarrow.field(key, ARROW[about.type], metadata={"unit": about.unit, "meaning": about.meaning}))
    return pyarrow.Table.from_pandas(rows, schema=pyarrow.schema(fields), preserve_index=False)
