"""Results as files: tables as Parquet and CSV, a description of their columns, one JSON file, and tensors.

Parquet columns have the described types even if they are empty, and carry their unit and meaning as metadata. In CSV
every text is in quotes, and a missing value is empty without quotes: `READ` says how to read it back.
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
"""The Parquet type of each column type."""

DESCRIBED = "columns"
"""The name of the file that describes the columns of a folder's tables."""

READ = {
    "integer": "missing: empty; read as Int64",
    "number": "missing: empty; read as float64",
    "text": "in quotes, also NA and null; missing: empty without quotes; read as text with keep_default_na=False",
    "truth": "true or false; missing: empty; read as boolean",
}
"""How columns of each type are written as CSV, and how to read them back with pandas."""


def check_folder(folder: str | Path, tables: Iterable[Table], files: Iterable[str] = ()) -> None:
    """Raises the errors that writing tables and files to a folder would raise, before anything is computed.

    Args:
        folder: The folder.
        tables: The tables.
        files: The names of other files.

    Raises:
        BadArgument: `folder` is not a path.
        OutputFailed: The folder, or a file in it, can't be written.

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
    """Writes a result to a folder.

    Args:
        folder: The folder.
        name: The name of the JSON file and of the file of tensors, without their endings.
        tables: The tables, with their descriptions.
        tree: The contents of the JSON file.
        tensors: The tensors by name, with their meanings.
        about: Metadata of the file of tensors.

    Raises:
        OutputFailed: The folder can't be written. No partial files are left.

    """
    with saving(folder, tables) as new:
        write_json(new / f"{name}.json", tree)
        if tensors:
            said = {"secant": json.dumps(plain(about)), **{key: meaning for key, (meaning, _) in tensors.items()}}
            write_tensors(new / f"{name}.safetensors", {key: tensor for key, (_, tensor) in tensors.items()}, said)


@contextmanager
def saving(folder: str | Path, tables: Iterable[tuple[Table, pd.DataFrame]]) -> Iterator[Path]:
    """Writes tables (.parquet and .csv) and columns.csv to a temporary folder, to which the block can add files.

    The files move to the folder when the block succeeds. columns.csv then describes all tables in the folder, including
    those that were there before.

    Args:
        folder: The folder.
        tables: The tables, with their descriptions.

    Raises:
        OutputFailed: The folder can't be written. No partial files are left.

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
    """The contents of a folder's columns.csv, table by table, for the tables that the folder has."""
    file = folder / f"{DESCRIBED}.csv"
    if not file.is_file():
        return
    try:
        every = pd.read_csv(file, dtype=str, keep_default_na=False)
        for name, own in every.groupby("table", sort=False):
            if (folder / f"{name}.parquet").is_file() and list(own.columns) == list(columns().columns):
                yield own
    except (ValueError, KeyError, OSError):  # another program wrote the file
        return


def write_csv(rows: pyarrow.Table, path: Path) -> None:
    """Writes rows as CSV, with every text in quotes, and missing values empty without quotes.

    Args:
        rows: The rows.
        path: The file.

    """
    pyarrow.csv.write_csv(rows, path, pyarrow.csv.WriteOptions(quoting_style="needed"))


def write_columns(folder: Path, about: pd.DataFrame) -> None:
    """Writes columns.csv.

    Args:
        folder: The folder.
        about: The descriptions, as `columns` returns them.

    """
    write_csv(pyarrow.Table.from_pandas(about, preserve_index=False), folder / f"{DESCRIBED}.csv")


def columns(*tables: Table) -> pd.DataFrame:
    """Returns a description of each column: its table, name, type, unit, meaning, and form in CSV.

    Args:
        tables: The tables.

    """
    rows = [
        (table.name, column.name, column.kind, column.unit, column.meaning, READ[column.kind])
        for table in tables
        for column in table.columns
    ]
    return pd.DataFrame(rows, columns=["table", "column", "type", "unit", "meaning", "csv"])


def arrow(table: Table, frame: pd.DataFrame) -> pyarrow.Table:
    """Returns the rows of a table in Arrow's types, with the unit and meaning of each column.

    Args:
        table: The table's description.
        frame: Its rows.

    """
    fields = []
    for key in frame.columns:
        about = table[key]
        kind = ARROW[KINDS[about.type]]
        fields.append(pyarrow.field(key, kind, metadata={"unit": about.unit, "meaning": about.meaning}))
    return pyarrow.Table.from_pandas(frame, schema=pyarrow.schema(fields), preserve_index=False)


def plain(tree: Any) -> Any:
    """Returns a tree for JSON: None replaces NaN and infinity, which JSON does not have, and lists replace tuples.

    Args:
        tree: Dicts, lists, tuples and values.

    """
    if isinstance(tree, Mapping):
        return {str(key): plain(leaf) for key, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(leaf) for leaf in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
