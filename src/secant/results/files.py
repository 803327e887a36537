"""A result as files: tables as Parquet and CSV, what their columns mean next to them, one JSON, and tensors.

The Parquet's columns have the described types, whatever is in them, and carry their unit and meaning as metadata. In
CSV every text is in quotes, and what is missing is empty without quotes: `READ` says how that is read back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from torch import Tensor

from secant.results.paths import check, path_of, replacing, write_json, write_tensors
from secant.results.schema import KINDS, Table

ARROW = {
    "integer": pyarrow.int64(),
    "number": pyarrow.float64(),
    "text": pyarrow.large_string(),
    "truth": pyarrow.bool_(),
}
"""Types of columns as those of Parquet."""

DESCRIBED = "columns"
"""The name of the file that says what the columns of a folder's tables mean."""

READ = {
    "integer": "missing: empty; read as Int64",
    "number": "missing: empty; read as float64",
    "text": "in quotes, also NA and null; missing: empty without quotes; read as text with keep_default_na=False",
    "truth": "true or false; missing: empty; read as boolean",
}
"""How columns of each type are written as CSV, and what a pandas user sets to read them as they are."""

TENSORS = "tensors.safetensors"


def check_folder(folder: str | Path, tables: Iterable[Table], files: Iterable[str] = ()) -> None:
    """Raise what writing such tables and files to a folder would raise, before there are any.

    Args:
        folder: Where they would be written.
        tables: The tables.
        files: The names of other files.

    Raises:
        BadArgument: It is no path.
        OutputFailed: It, or a file of it, could not be written.
    """
    names = [*(table.name for table in tables), DESCRIBED]
    check(folder, *(f"{name}.{ending}" for name in names for ending in ("parquet", "csv")), *files)


def write(
    folder: str | Path,
    name: str,
    tables: Iterable[tuple[Table, pd.DataFrame]],
    tree: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, Tensor]],
    about: Mapping[str, Any],
) -> None:
    """Write tables, a tree as the JSON file of a name, and tensors with their meanings. Raises OutputFailed."""
    with saving(folder, tables) as new:
        write_json(new / f"{name}.json", tree)
        if tensors:
            said = {"secant": json.dumps(plain(about)), **{key: meaning for key, (meaning, _) in tensors.items()}}
            write_tensors(new / TENSORS, {key: tensor for key, (_, tensor) in tensors.items()}, said)


@contextmanager
def saving(folder: str | Path, tables: Iterable[tuple[Table, pd.DataFrame]]) -> Iterator[Path]:
    """A folder with these tables (.parquet and .csv) and columns.csv; more can be written to it in the block.

    It is in its place when the block ends well. columns.csv is of all tables that the folder has then, also those that
    were there. Raises OutputFailed.
    """
    with replacing(folder) as new:
        new.mkdir()
        about = []
        for table, frame in tables:
            rows = arrow(table, frame)
            pyarrow.parquet.write_table(rows, new / f"{table.name}.parquet")
            write_csv(rows, new / f"{table.name}.csv")
            about.append(columns(table))
        names = {own["table"].iloc[0] for own in about if len(own)}
        kept = [own for own in _there(path_of(folder)) if len(own) and own["table"].iloc[0] not in names]
        write_columns(new, pd.concat(sorted([*kept, *about], key=lambda own: own["table"].iloc[0]), ignore_index=True)
                      if kept or about else columns())  # fmt: skip
        yield new


def _there(folder: Path) -> Iterator[pd.DataFrame]:
    """What columns.csv in a folder says, table by table, of those that are there."""
    file = folder / f"{DESCRIBED}.csv"
    if not file.is_file():
        return
    try:
        every = pd.read_csv(file, dtype=str, keep_default_na=False)
        for name, own in every.groupby("table", sort=False):
            if (folder / f"{name}.parquet").is_file() and list(own.columns) == list(columns().columns):
                yield own
    except (ValueError, KeyError, OSError):  # another program's file of this name
        return


def write_csv(rows: pyarrow.Table, path: Path) -> None:
    """Write rows as CSV: every text, as it is, in quotes; what is missing is empty, without them."""
    pyarrow.csv.write_csv(rows, path, pyarrow.csv.WriteOptions(quoting_style="needed"))


def write_columns(folder: Path, about: pd.DataFrame) -> None:
    """Write what the columns of a folder's tables mean next to them."""
    write_csv(pyarrow.Table.from_pandas(about, preserve_index=False), folder / f"{DESCRIBED}.csv")


def columns(*tables: Table) -> pd.DataFrame:
    """What the columns of these tables mean: a row for each, with its type, unit, meaning, and how CSV has it."""
    rows = [
        (table.name, column.name, column.kind, column.unit, column.meaning, READ[column.kind])
        for table in tables
        for column in table.columns
    ]
    return pd.DataFrame(rows, columns=["table", "column", "type", "unit", "meaning", "csv"])


def arrow(table: Table, frame: pd.DataFrame) -> pyarrow.Table:
    """Rows of a table as they are written, with what its columns mean."""
    fields = []
    for key in frame.columns:
        about = table[key]
        kind = ARROW[KINDS[about.type]]
        fields.append(pyarrow.field(key, kind, metadata={"unit": about.unit, "meaning": about.meaning}))
    return pyarrow.Table.from_pandas(frame, schema=pyarrow.schema(fields), preserve_index=False)


def plain(tree: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have, and tuples as lists."""
    if isinstance(tree, Mapping):
        return {str(key): plain(leaf) for key, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(leaf) for leaf in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
