"""The prompts of a study, from files of any kind that people keep them in.

A table's prompts are one of its columns: the one that is named; else the one called "prompt"; else the only one with
another usual name; else the only one with text. Categories are a column too: the one that is named, or "category".
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from secant.errors import BadArgument, BadPrompt, DamagedFile, SecantError, integer
from secant.files import lines, named, text
from secant.model import quiet

USUAL = ("text", "question", "instruction", "query", "input", "sentence", "messages", "conversation", "conversations")
"""Names that a column of prompts often has, beside "prompt"."""

RULE = "Prompts are in a .txt, .csv, .tsv, .jsonl, .json or .parquet file, or in the folder of a data set"
ROLES = "A chat is a list of messages, each with a role and a content"


@dataclass(frozen=True)
class Item:
    """A prompt of a study: its number, from 0, its text or chat messages, and the category that it is counted in."""

    number: int
    prompt: str | list[dict[str, str]]
    category: str | None = None

    def text(self) -> str:
        """The prompt for people: its text, or the contents of its messages."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(message["content"] for message in self.prompt)


@dataclass(frozen=True)
class Table:
    """Columns by name, of which `texts` hold texts or chats; `of` gives the first so many values of one, or all."""

    names: list[str]
    texts: list[str]
    of: Callable[[str, int | None], list[Any]]


def read(
    path: str | Path,
    column: str | None = None,
    category: str | None = None,
    chat: bool = False,
    split: str | None = None,
    limit: int | None = None,
) -> list[Item]:
    """The prompts of a file by its ending, of the lines of standard input for "-", or of a Hugging Face data set.

    .txt has one on each line that is not blank; .jsonl an object on each line, .json that or a list of objects; .csv
    and .tsv have a header. A data set is the folder of `save_to_disk`, or one with data files as on the hub; it is read
    without the network, by the library datasets. `column` and `category` name columns, `split` a data set's part;
    `chat` makes a user's message of each text; `limit` takes the first so many. Rows count from 0.

    Raises BadArgument where there is no such file, column or split, or more than one could be meant; DamagedFile;
    BadPrompt where a row has no text or chat; SecantError where datasets is not installed.
    """
    if limit is not None:
        limit = integer(limit, 1, 2**63 - 1, "The first so many prompts are at least one", "limit = ")
    folder, kind = Path(path).is_dir(), "-" if str(path) == "-" else Path(path).suffix.lower()
    if split is not None and not folder:
        raise BadArgument("A split is part of a data set", f"split {split!r} of {named(path)}", "Leave it out.")
    if not folder and kind in ("-", ".txt"):
        if column is not None or category is not None:
            raise BadArgument("Lines of text have no columns", f"{column or category!r}", "Leave it out.")
        return _items(lines(path, "Prompts")[:limit], None, chat, named(path))
    if not folder and kind not in READERS:
        raise BadArgument(RULE, named(path), "Give one of them." if Path(path).exists() else "Check the path.")
    table = _data_set(Path(path), split) if folder else READERS[kind](path)
    column, category = _chosen(table, column, category, named(path))
    prompts = table.of(column, limit)
    if not prompts:
        raise DamagedFile("Prompts are the rows of a table", f"{named(path)} without any", "Write one to a row.")
    return _items(prompts, None if category is None else table.of(category, limit), chat, named(path))


def given(prompts: Sequence[Any] | pd.DataFrame) -> list[Item]:
    """Prompts from Python: texts, chats or items, numbered anew; or a table with a column prompt, maybe category.

    Raises BadArgument where there are none, BadPrompt where one is neither a text nor a chat.
    """
    where = "the prompts given"
    if isinstance(prompts, pd.DataFrame):
        if "prompt" not in prompts:
            raise BadArgument("A table of prompts has a column prompt", _said(prompts.columns), "Rename one.")
        categories = prompts["category"].tolist() if "category" in prompts else None
        found = _items(prompts["prompt"].tolist(), categories, False, where)
    elif isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        raise BadArgument("Prompts are a list", f"one {type(prompts).__name__}", "Put it in a list, or read() a file.")
    else:
        every = [p if isinstance(p, Item) else Item(0, p) for p in prompts]
        found = _items([item.prompt for item in every], [item.category for item in every], False, where)
    if not found:
        raise BadArgument("A study has at least one prompt", "none", "Give some.")
    return found


def digest(items: Sequence[Item]) -> str:
    """SHA-256 of all prompts and categories in order, the same for the same prompts from whatever file.

    >>> digest([Item(0, "a"), Item(1, "b")]) == digest([Item(7, "a"), Item(8, "b")]) != digest([Item(0, "ab")])
    True
    """
    found = hashlib.sha256()
    for item in items:
        found.update(json.dumps([item.prompt, item.category], sort_keys=True).encode() + b"\n")
    return found.hexdigest()


def _items(prompts: Sequence[Any], categories: Sequence[Any] | None, chat: bool, where: str) -> list[Item]:
    items = []
    for i, value in enumerate(prompts):
        prompt = _prompt(value, f"row {i} of {where}")
        if chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        group = None if categories is None or _missing(categories[i]) else str(categories[i])
        items.append(Item(i, prompt, group))
        for part in (items[-1].text(), group or ""):
            _writable(part, f"row {i} of {where}")
    return items


def _prompt(value: Any, where: str) -> str | list[dict[str, str]]:
    """A text, or a chat with what matters of its messages. Raises BadPrompt."""
    if isinstance(value, str):
        return str(value)
    if _missing(value):
        raise BadPrompt("Every row has a prompt", f"nothing in {where}", "Write one, or leave out the row.")
    if isinstance(value, Mapping | bytes) or not isinstance(value, Iterable):
        raise BadPrompt("A prompt is a text or a chat", f"{value!r:.60} in {where}", "Write one, or choose a column.")
    messages = list(value)
    for message in messages:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise BadPrompt(ROLES, f"{message!r:.60} in {where}", "Mend it, or choose another column.")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _writable(said: str, where: str) -> None:
    try:
        said.encode()
    except UnicodeEncodeError as error:
        raise BadPrompt("A prompt is text in Unicode", f"half a character in {where}", "Mend it.") from error


def _chosen(table: Table, column: str | None, category: str | None, where: str) -> tuple[str, str | None]:
    """The columns of prompts and of categories. Raises BadArgument."""
    for name in (column, category):
        if name is not None and name not in table.names:
            raise BadArgument(f"A column is one of {where}", f"{name!r}; it has {_said(table.names)}", "Name one.")
    if category is None and "category" in table.names and column != "category":
        category = "category"
    if column is None:
        left = [name for name in table.texts if name != category]
        usual = [name for name in left if name.lower() in USUAL]
        may = [name for name in left if name.lower() == "prompt"] or usual or left
        if len(may) != 1:
            raise BadArgument(
                "One column has the prompts", f"{where} with {_said(may or table.names)}", "Name it with column."
            )
        (column,) = may
    return column, category


def _said(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "") or "no columns"


def _texts(schema: pyarrow.Schema) -> list[str]:
    """Columns of text, and of lists of messages."""
    return [field.name for field in schema if _is_text(field.type) or _is_chat(field.type)]


def _is_text(kind: pyarrow.DataType) -> bool:
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())


def _is_chat(kind: pyarrow.DataType) -> bool:
    if not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)):
        return False
    own = kind.value_type
    return pyarrow.types.is_struct(own) and {"role", "content"} <= {own.field(i).name for i in range(own.num_fields)}


def _separated(path: str | Path) -> Table:
    """Columns of a file with commas or tabs. What they hold is guessed; the chosen ones are read as text."""
    raw = text(path, RULE).encode()
    how: dict[str, Any] = {
        "read_options": pyarrow.csv.ReadOptions(use_threads=False),  # only so are rows named in errors
        "parse_options": pyarrow.csv.ParseOptions(
            delimiter="\t" if Path(path).suffix.lower() == ".tsv" else ",", newlines_in_values=True
        ),
    }

    def parsed(**options: Any) -> pyarrow.Table:
        try:
            convert = pyarrow.csv.ConvertOptions(**options)
            return pyarrow.csv.read_csv(io.BytesIO(raw), convert_options=convert, **how)
        except pyarrow.ArrowInvalid as error:
            raise _damaged(path, error, "Mend it, or write .jsonl.") from error

    def of(name: str, limit: int | None) -> list[Any]:
        column = parsed(include_columns=[name], column_types={name: pyarrow.string()})[name]
        return column.slice(0, limit).to_pylist()

    guessed = parsed()
    return Table(guessed.column_names, _texts(guessed.schema), of)


def _json(path: str | Path) -> Table:
    """Columns of objects, one on each line or all in a list; what a row lacks is missing."""
    said = text(path, RULE)
    whole = Path(path).suffix.lower() == ".json" and said.lstrip().startswith("[")
    rows: list[Any] = []
    for number, line in enumerate([said] if whole else said.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
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

    def holds(value: Any) -> bool:
        messages = isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value)
        return isinstance(value, str) or bool(messages)

    there = {name: [value for row in rows if (value := row.get(name)) is not None] for name in names}
    return Table(names, [name for name in names if there[name] and all(map(holds, there[name]))], of)


def _parquet(path: str | Path) -> Table:
    """Columns of a Parquet file, each read when it is asked for."""
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unread(path, error) from error

    def of(name: str, limit: int | None) -> list[Any]:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                return file.read(columns=[name])[name].slice(0, limit).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise _unread(path, error) from error

    return Table(schema.names, _texts(schema), of)


READERS: dict[str, Callable[[str | Path], Table]] = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _json,
    ".json": _json,
    ".parquet": _parquet,
}
"""How a file is read, by its ending."""


def _unread(path: str | Path, error: Exception) -> SecantError:
    if isinstance(error, FileNotFoundError | PermissionError):
        return BadArgument(RULE, f"{path}: {error.strerror or error}", "Give a file that can be read.")
    return _damaged(path, error, "Write it again.")


def _damaged(path: str | Path, why: Any, todo: str) -> DamagedFile:
    return DamagedFile("A table of prompts can be read", f"{named(path)}: {' '.join(str(why).split())[:160]}", todo)


def _data_set(folder: Path, split: str | None) -> Table:
    """Columns of a data set's part, read without the network and without a trace in the library's cache."""
    try:
        import datasets
        import huggingface_hub
    except ImportError as error:
        raise SecantError(
            "A folder of prompts is read by the library datasets", "no datasets",
            "Install it: pip install 'secant[datasets]'.",
        ) from error  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(patch.object(datasets.config, "HF_HUB_OFFLINE", True))
        stack.enter_context(patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(quiet())
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        try:
            if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
                found = datasets.load_from_disk(os.fspath(folder))
            else:
                found = datasets.load_dataset(os.fspath(folder.absolute()), cache_dir=cache, keep_in_memory=True)
        except (OSError, ValueError, TypeError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise _damaged(folder, error, "Give the folder of one data set, or a file of it.") from error
    data = _part(found, split, folder)

    def of(name: str, limit: int | None) -> list[Any]:
        try:
            return data.select_columns([name]).with_format("arrow")[:limit][name].to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise _unread(folder, error) from error

    return Table(data.column_names, _texts(data.features.arrow_schema), of)


def _part(found: Any, split: str | None, folder: Path) -> Any:
    """A data set's only split, or the one that is named. Raises BadArgument."""
    if not isinstance(found, dict):
        if split is not None:
            raise BadArgument("A split is one of the data set", f"{split!r}; {folder} has none", "Leave it out.")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        got = "none named" if split is None else repr(split)
        raise BadArgument("A split is one of the data set", f"{got}; {folder} has {_said(found)}", "Name one.")
    return found[split]
