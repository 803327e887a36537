"""Tables as files: Parquet and CSV, and what their columns mean beside them (secant.results.dictionary).

The Parquet's columns have the dictionary's types, whatever is in them, and carry its unit and meaning as metadata. In
CSV every text is in quotes, and what is missing is empty without quotes: `READ` says how that is read back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from secant.files import check, path_of, replacing
from secant.results.dictionary import TABLES, Column, Table

ARROW = {
    "integer": pyarrow.int64(),
    "number": pyarrow.float64(),
    "text": pyarrow.large_string(),
    "truth": pyarrow.bool_(),
}
"""Types of the dictionary as those of Parquet."""

DESCRIBED = "columns"
"""The name of the file that says what the columns of a folder's tables mean."""

READ = {
    "integer": "missing: empty; read as Int64",
    "number": "missing: empty; read as float64",
    "text": "in quotes, also NA and null; missing: empty without quotes; read as text with keep_default_na=False",
    "truth": "true or false; missing: empty; read as boolean",
}
"""How columns of each type are written as CSV, and what pandas has to be told to read them as they are."""

OTHERS = (
    "ablation.json", "ablations.json", "attribution.json", "comparison.json", "explanation.json", "settings.json",
    "summary.json", "target.json", "tensors.safetensors", "report.html", "summary.html", "sweep.png",
)  # fmt: skip
"""Files beside tables that results and commands write to a folder."""


def check_folder(folder: str | Path) -> None:
    """Raise what saving a result to a folder would raise, before there is any: BadArgument and OutputFailed."""
    tables = [f"{name}.{ending}" for name in (*TABLES, DESCRIBED) for ending in ("parquet", "csv")]
    check(folder, *tables, *OTHERS)


@contextmanager
def saving(folder: str | Path, tables: Mapping[str, pd.DataFrame]) -> Iterator[Path]:
    """A folder with these tables (.parquet and .csv) and columns.csv; more can be written to it in the block.

    It is in its place when the block ends well. columns.csv is of all tables that the folder has then, also those that
    were there. Raises OutputFailed.
    """
    with replacing(folder) as new:
        there = {file.stem for file in path_of(folder).glob("*.parquet")} & set(TABLES)
        new.mkdir()
        for name, table in tables.items():
            rows = described(TABLES[name], table)
            pyarrow.parquet.write_table(rows, new / f"{name}.parquet")
            write_csv(rows, new / f"{name}.csv")
        write_columns(new, columns(*there, *tables))
        yield new


def write_csv(rows: pyarrow.Table, path: Path) -> None:
    """Write rows as CSV: every text, as it is, in quotes; what is missing is empty, without them."""
    pyarrow.csv.write_csv(rows, path, pyarrow.csv.WriteOptions(quoting_style="needed"))


def write_columns(folder: Path, about: pd.DataFrame) -> None:
    """Write the dictionary of a folder's tables beside them."""
    write_csv(pyarrow.Table.from_pandas(about, preserve_index=False), folder / f"{DESCRIBED}.csv")


def columns(*names: str, of: Mapping[str, Table] = TABLES) -> pd.DataFrame:
    """The dictionary of these tables, by default of all: a row for each column, with its type, unit and meaning.

    `csv` says how it is written as CSV, and what to tell a reader of that.
    `of`: TABLES, or STUDY, which a study writes.
    """
    rows = [
        (name, column, *about, READ[about.type])
        for name, table in of.items()
        if name in names or not names
        for column, about in table.columns.items()
    ]
    return pd.DataFrame(rows, columns=["table", "column", "type", "unit", "meaning", "csv"])


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
