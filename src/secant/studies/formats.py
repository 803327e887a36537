"""Reading the tables that hold prompts, by file suffix: columns by name, and which of them hold text."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow
import pyarrow.parquet

from secant.errors import BadArgument, DamagedFile
from secant.foreign import explained, quiet, required
from secant.results.paths import named, text
from secant.studies.separated import damaged, separated

RULE = "Prompts are read from a .txt, .csv, .tsv, .jsonl, .ndjson, .json or .parquet file, or from a data set's folder"


CHATS = (("role", "content"), ("from", "value"))
"""The fields of a chat message that hold who speaks and what: those of chat templates, and those of ShareGPT."""

NUMBER = re.compile(r"\s*([-+]?[\d.,]+([eE][-+]?\d+)?)?\s*")


@dataclass(frozen=True)
class Table:
    """A table by columns.

    Attributes:
        rows: How many rows it has.
        names: The names of its columns.
        texts: The names of those that hold texts or chats.
        of: The values of a column, given its name and how many of the first ones to read (None: all).
        sure: Whether the names can be trusted. Those of a csv are its first row, which is a prompt if the file has no
            header.

    """

    rows: int
    names: list[str]
    texts: list[str]
    of: Callable[[str, int | None], list[Any]]
    sure: bool = True


def listed(names: Iterable[Any]) -> str:
    """Names for an error message, at most the first twelve.

    Args:
        names: The names.

    """
    shown = [str(name) for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "") or "no columns"


def _texts(schema: pyarrow.Schema) -> list[str]:
    """The columns of text or of lists of messages."""
    return [field.name for field in schema if _is_text(field.type) or _is_chat(field.type)]


def _is_text(kind: pyarrow.DataType) -> bool:
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())


def _is_chat(kind: pyarrow.DataType) -> bool:
    if not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)):
        return False
    own = kind.value_type
    names = {own.field(i).name for i in range(own.num_fields)} if pyarrow.types.is_struct(own) else set()
    return any(set(fields) <= names for fields in CHATS)


def _separated(path: str | Path) -> Table:
    """The columns of a csv or tsv file, all read as text. A column of numbers does not count as text."""
    where = named(path)
    found = separated(text(path, RULE), where, "\t" if Path(path).suffix.lower() == ".tsv" else ",")
    texts = [name for i, name in enumerate(found.names) if not all(NUMBER.fullmatch(row[i]) for row in found.rows)]
    return Table(len(found.rows), found.names, texts, lambda name, limit: found.column(name, where)[:limit], False)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a repeated name, of which Python would silently keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} twice in one object")
    return found


def _json(path: str | Path) -> Table:
    """The columns of JSON objects, one on each line or all in a list. A field that an object lacks is missing."""
    said = text(path, RULE)
    whole = Path(path).suffix.lower() == ".json" and said.lstrip().startswith("[")
    rows: list[Any] = []
    for number, line in enumerate([said] if whole else said.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise _damaged(path, f"line {number}: {error}", "Write one object to a line.") from error
        rows += row if whole else [row]
        if wrong := [r for r in rows[-1:] if not isinstance(r, dict)]:
            raise _damaged(path, f"line {number}: {wrong[0]!r:.40}", "Write one object to a line.")
    for row in rows:
        if not isinstance(row, dict):
            raise _damaged(path, f"{row!r:.40} in its list", "Make each an object.")
    names = list(dict.fromkeys(name for row in rows for name in row))

    def of(name: str, limit: int | None) -> list[Any]:
        return [row.get(name) for row in rows[:limit]]

    marks = {role for role, _ in CHATS}

    def holds(value: Any) -> bool:
        messages = isinstance(value, list) and value and all(isinstance(m, dict) and marks & set(m) for m in value)
        return isinstance(value, str) or bool(messages)

    there = {name: [value for row in rows if (value := row.get(name)) is not None] for name in names}
    texts = [name for name in names if there[name] and all(map(holds, there[name]))]
    return Table(len(rows), names, texts, of)


def _parquet(path: str | Path) -> Table:
    """The columns of a Parquet file, each read when it is needed."""
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        raise BadArgument(RULE, f"{path}: {_why(path)}", "Give a file that can be read.")
    with _readable(path):
        about = pyarrow.parquet.read_metadata(path)
        schema = about.schema.to_arrow_schema()

    def of(name: str, limit: int | None) -> list[Any]:
        with _readable(path), pyarrow.parquet.ParquetFile(path) as file:
            found: list[Any] = file.read(columns=[name])[name].slice(0, limit).to_pylist()
            return found

    return Table(about.num_rows, schema.names, _texts(schema), of)


def _why(path: str | Path) -> str:
    """Why a file can't be read."""
    if os.path.isfile(path):
        return "Permission denied"
    return "not a plain file" if os.path.exists(path) else "No such file or directory"


READERS: dict[str, Callable[[str | Path], Table]] = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".parquet": _parquet,
}
"""How a file is read, by its suffix."""


def _readable(path: str | Path) -> AbstractContextManager[None]:
    """Turn whatever a library raises while reading a file into DamagedFile."""
    return explained(DamagedFile, "A table of prompts must be readable", "Write the file again.", f"{path}")


def _damaged(path: str | Path, why: Any, todo: str) -> DamagedFile:
    return damaged(named(path), why, todo)


def data_set(folder: Path, split: str | None) -> Table:
    """The columns of a Hugging Face data set, read without the network and without using the library's cache.

    Args:
        folder: The data set's folder.
        split: Its split, which is required if it has several.

    Raises:
        BadArgument: The data set has no such split, or several and none was named.
        DamagedFile: The data set can't be read.
        SecantError: The library datasets is not installed.

    """
    import huggingface_hub

    datasets: Any = required("A folder of prompts", "datasets", "datasets")
    with ExitStack() as stack:
        stack.enter_context(patch.object(datasets.config, "HF_HUB_OFFLINE", True))
        stack.enter_context(patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(quiet())
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        rule, todo = "A folder of prompts must be a data set", "Give the folder of one data set, or one of its files."
        with explained(DamagedFile, rule, todo, f"{folder}"):
            if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
                found = datasets.load_from_disk(os.fspath(folder))
            else:
                found = datasets.load_dataset(os.fspath(folder.absolute()), cache_dir=cache, keep_in_memory=True)
    data = _part(found, split, folder)

    def of(name: str, limit: int | None) -> list[Any]:
        with _readable(folder):
            found: list[Any] = data.select_columns([name]).with_format("arrow")[:limit][name].to_pylist()
            return found

    return Table(len(data), data.column_names, _texts(data.features.arrow_schema), of)


def _part(found: Any, split: str | None, folder: Path) -> Any:
    """The only split of a data set, or the one that is named. Raises BadArgument."""
    if not isinstance(found, dict):
        if split is not None:
            raise BadArgument("A split must belong to the data set", f"{split!r}; {folder} has none", "Leave it out.")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        got = "none named" if split is None else repr(split)
        raise BadArgument("A split must belong to the data set", f"{got}; {folder} has {listed(found)}", "Name one.")
    return found[split]
