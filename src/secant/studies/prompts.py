"""The prompts of a study, read from common kinds of files.

A table holds its prompts in one column: the one that you name; else "prompt"; else the only one with another usual
name; else the only one with text, except in a csv, whose first row may be a prompt instead of a header. Categories are
in the column that you name, or in "category". Case does not matter. A name that is nearly one of these is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from secant.arguments import counted
from secant.errors import BadArgument, BadPrompt, DamagedFile
from secant.foreign import explained
from secant.results.paths import lines, named, path_of
from secant.studies.formats import CHATS, READERS, RULE, Table, data_set, listed
from secant.studies.separated import NAMES

USUAL = ("text", "question", "instruction", "query", "input", "sentence", "messages", "conversation", "conversations")
"""Usual names of a column of prompts, besides "prompt"."""

ROLES = "A chat is a list of messages, each with a role and a content, or with ShareGPT's from and value"

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""The role of each speaker of ShareGPT."""


@dataclass(frozen=True)
class Item:
    """A prompt of a study.

    Attributes:
        number: Its number, from 0.
        prompt: Its text or chat messages.
        category: Its category, if any.

    """

    number: int
    prompt: str | list[dict[str, str]]
    category: str | None = None

    def text(self) -> str:
        """The prompt as one text. Each chat message follows its role in brackets."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(f"[{message['role']}] {message['content']}" for message in self.prompt)


def read(
    path: str | Path,
    column: str | None = None,
    category: str | None = None,
    chat: bool = False,
    split: str | None = None,
    limit: int | None = None,
) -> list[Item]:
    """Read the prompts of a file, of standard input, or of a Hugging Face data set.

    A .txt file has a prompt on each line that is not blank. A .jsonl or .ndjson file has an object on each line; a
    .json file has that, or a list of objects. A .csv or .tsv file has a header, and commas, tabs, semicolons or bars
    between columns; Excel's first line `sep=;` names the separator. Chats may be in ShareGPT's format. A data set is a
    folder written by `save_to_disk`, or one with data files as on the hub; the library datasets reads it without the
    network.

    Args:
        path: The file or folder; "-": the lines of standard input.
        column: The column of the prompts.
        category: The column of the categories.
        chat: Whether to turn each text into a chat message by a user.
        split: The split of a data set.
        limit: How many prompts to read, from the first on; by default all.

    Returns:
        The prompts, numbered from 0.

    Raises:
        BadArgument: There is no such file, column or split, or several columns or splits could be meant.
        BadPrompt: A row has no text or chat.
        DamagedFile: The file can't be read.
        SecantError: The library datasets is not installed.

    """
    if str(path) != "-":
        path = path_of(path, RULE)
    if limit is not None:
        limit = counted("limit", limit)
    folder, kind = os.path.isdir(path), "-" if str(path) == "-" else Path(path).suffix.lower()
    if split is not None and not folder:
        raise BadArgument("Only a data set has splits", f"split {split!r} of {named(path)}", "Leave it out.")
    if not folder and kind in ("-", ".txt"):
        if column is not None or category is not None:
            raise BadArgument("Lines of text have no columns", f"{column or category!r}", "Leave it out.")
        found = lines(path, "Prompts")
        _plain(found, named(path))
        return _items(found[:limit], None, chat, named(path))
    if not folder and kind not in READERS:
        raise BadArgument(RULE, named(path), "Give one of them." if os.path.exists(path) else "Check the path.")
    table = data_set(Path(path), split) if folder else READERS[kind](path)
    if not table.rows:
        raise DamagedFile("Prompts are the rows of a table", f"{named(path)} without any", "Write one in each row.")
    column, category = _chosen(table, column, category, named(path))
    return _items(table.of(column, limit), None if category is None else table.of(category, limit), chat, named(path))


Prompts: TypeAlias = Iterable[str | Sequence[Mapping[str, str]] | Item] | pd.DataFrame
"""The prompts that Python functions accept."""


def given(prompts: Prompts) -> list[Item]:
    """The prompts that a Python caller gave.

    Args:
        prompts: Texts, chats or items; or a table with a column prompt and, optionally, category.

    Returns:
        The prompts, numbered from 0.

    Raises:
        BadArgument: There are no prompts, or the table has no column prompt.
        BadPrompt: A prompt is neither a text nor a chat.

    """
    where = "the prompts given"
    if isinstance(prompts, pd.DataFrame):
        _different([*prompts.columns], where)
        column, category = (_meant([*prompts.columns], name, where) for name in ("prompt", "category"))
        if column is None:
            raise BadArgument(
                "A table of prompts requires a column prompt", listed(prompts.columns), "Rename a column."
            )
        categories = None if category is None else prompts[category].tolist()
        found = _items(prompts[column].tolist(), categories, False, where)
    elif isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        raise BadArgument(
            "Prompts must be a list", f"one {type(prompts).__name__}", "Put it in a list, or read() a file."
        )
    else:
        every = list(prompts)
        texts = [p.prompt if isinstance(p, Item) else p for p in every]
        found = _items(texts, [p.category if isinstance(p, Item) else None for p in every], False, where)
    if not found:
        raise BadArgument("A study requires at least one prompt", "none", "Give some.")
    return found


def digest(items: Sequence[Item]) -> str:
    """The SHA-256 of all prompts and categories in order. It does not depend on the file that they come from.

    Args:
        items: The prompts.

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
        group = None if categories is None or _missing(categories[i]) else str(categories[i]) or None
        items.append(Item(i, prompt, group))
        for part in (items[-1].text(), group or ""):
            _writable(part, f"row {i} of {where}")
    return items


def _prompt(value: Any, where: str) -> str | list[dict[str, str]]:
    """A text, or a chat reduced to roles and contents. Raises BadPrompt."""
    if isinstance(value, str):
        return str(value)
    if _missing(value):
        raise BadPrompt("Every row must have a prompt", f"nothing in {where}", "Write one, or remove the row.")
    if isinstance(value, Mapping | bytes) or not isinstance(value, Iterable):
        raise BadPrompt("A prompt is a text or a chat", f"{value!r:.60} in {where}", "Write one, or choose a column.")
    with explained(BadPrompt, "A prompt is a text or a chat", "Write one.", f"{value!r:.60} in {where}"):
        messages = list(value)
    return [_message(message, where) for message in messages]


def _message(message: Any, where: str) -> dict[str, str]:
    """A chat message, reduced to its role and content. Raises BadPrompt."""
    of = message if isinstance(message, Mapping) else {}
    for who, what in CHATS:
        if isinstance(of.get(who), str) and isinstance(of.get(what), str):
            role = of[who] if who == "role" else SPEAKERS.get(of[who])
            if role is None:
                rule = f"A message of ShareGPT is from {', '.join(SPEAKERS)}"
                raise BadPrompt(rule, f"{of[who]!r:.60} in {where}", "Rename it, or remove the row.")
            return {"role": role, "content": of[what]}
    raise BadPrompt(ROLES, f"{message!r:.60} in {where}", "Correct it, or choose another column.")


def _missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _writable(said: str, where: str) -> None:
    try:
        said.encode()
    except UnicodeEncodeError as error:
        raise BadPrompt("A prompt must be valid Unicode", f"half a character in {where}", "Correct it.") from error


def _chosen(table: Table, column: str | None, category: str | None, where: str) -> tuple[str, str | None]:
    """The columns of prompts and of categories. Raises BadArgument, or DamagedFile for a repeated name."""
    _different(table.names, where)
    for name in (column, category):
        if name is not None and name not in table.names:
            raise BadArgument(
                f"A column must be in {where}", f"{name!r}; it has {listed(table.names)}", "Name one of these."
            )
    if category is None:
        category = _meant(table.names, "category", where)
        category = None if category == column else category
    if column is None and _meant(table.names, "prompt", where) != category:
        column = _meant(table.names, "prompt", where)
    if column is None:
        left = [name for name in table.texts if name != category]
        usual = [name for name in left if name.casefold() in USUAL]
        may = usual or (left if table.sure else [])
        if len(may) != 1:
            rule = "One column must hold the prompts" + ("" if table.sure else ", and the first row the columns' names")
            raise BadArgument(rule, f"{where} with {listed(may or table.names)}", "Name it with column.")
        (column,) = may
    return column, category


def _different(names: Sequence[Any], where: str) -> None:
    """Raises DamagedFile if two columns have the same name."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise DamagedFile("Columns must have different names", f"{where} with {twice[0]!r} twice", "Rename one.")


def _meant(names: Sequence[Any], word: str, where: str) -> str | None:
    """The column of this name in any case. Raises BadArgument if several match, or if one nearly does."""
    own = [name for name in names if isinstance(name, str) and name.casefold() == word]
    if len(own) > 1:
        raise BadArgument(f"Only one column may be called {word}", f"{where} with {listed(own)}", "Rename one.")
    near = [name for name in names if isinstance(name, str) and _letters(name) == word]
    if near and not own:
        raise BadArgument(
            f"The column {word} must have exactly this name", f"{near[0]!r} in {where}",
            "Rename it, or name the column that you mean.",
        )  # fmt: skip
    return own[0] if own else None


def _letters(name: str) -> str:
    """The letters of a name, in one case."""
    return "".join(c for c in unicodedata.normalize("NFKC", name) if c.isalpha()).casefold()


def _plain(found: Sequence[str], where: str) -> None:
    """Raises DamagedFile if the lines are clearly a table, since each line would become a prompt."""
    rule = "Prompts are the lines of a text file"
    words = ("prompt", "category", *USUAL)
    if all(line.lstrip()[:1] == "{" for line in found):
        with suppress(ValueError, RecursionError):
            if all({*map(_letters, json.loads(line))} & {*words} for line in found):
                raise DamagedFile(rule, f"{where}, whose lines are JSON", "Rename the file to end in .jsonl.")
    for separator in NAMES:
        if {"prompt", "category"} <= {_letters(name) for name in found[0].split(separator)}:
            raise DamagedFile(rule, f"{where}, whose first line is a header", "Rename the file to end in .csv.")
