"""Reading a study's folder: its tables a number of prompts at a time, so that memory does not grow with the study.

Several studies are read as one: a prompt is its text, so that models that were studied apart meet on the same prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.dataset
import pyarrow.parquet

from secant.errors import BadArgument, DamagedFile

AT_ONCE = 500
"""Prompts whose tables are held at a time."""

SUBJECT = ["model", "convention"]
STAMP = [*SUBJECT, "prompt", "category"]


@dataclass(frozen=True)
class Folder:
    """One study's folder."""

    path: Path
    identity: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, path: str | Path) -> Folder:
        """Raises BadArgument where it is none, DamagedFile where it is not what it should be."""
        path = Path(path)
        rule = "A study's folder has study.json and tables/prompts.parquet"
        if not (path / "study.json").is_file():
            raise BadArgument(rule, f"{path}, without study.json", "Name a folder that a study was written to.")
        try:
            identity = json.loads((path / "study.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DamagedFile(rule, f"{path / 'study.json'}: {error}", "Run the study again.") from error
        found = cls(path, identity)
        if not found.has("prompts"):
            raise DamagedFile(rule, f"{path}, without tables/prompts.parquet", "Run the study, or finish it.")
        return found

    def has(self, table: str) -> bool:
        """Whether there is such a table."""
        return self._file(table).is_file()

    def read(self, table: str, columns: Iterable[str], condition: Any = None) -> pd.DataFrame:
        """Some columns of a table, of the rows that a condition holds for. Raises DamagedFile."""
        file, names = self._file(table), [*columns]
        try:
            data = pyarrow.dataset.dataset(file, format="parquet")
            if missing := set(names) - set(data.schema.names):
                raise DamagedFile(
                    f"The table {table} of a study has a column {min(missing)}", f"{file} without it",
                    "Run the study again.",
                )  # fmt: skip
            return data.to_table(columns=names, filter=condition).to_pandas()
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise DamagedFile("A study's tables are Parquet files", f"{file}: {error}", "Run it again.") from error

    def _file(self, table: str) -> Path:
        return self.path / "tables" / f"{table}.parquet"


@dataclass(frozen=True, eq=False)
class Studies:
    """Several folders as one. `prompts`: a row for each prompt x model x convention, `prompt` numbered through."""

    folders: list[Folder]

    @cached_property
    def _read(self) -> tuple[pd.DataFrame, list[dict[int, int]]]:
        """All rows of prompts, and of each folder its own number of each prompt that it has."""
        numbers: dict[tuple[str, int], int] = {}
        rows, own = [], []
        columns = [*STAMP, "precision", "run_forward_equal", "run_reconstruction", "run_affinity",
                   "text", "tokens", "reason", "error"]  # fmt: skip
        for folder in self.folders:
            table = folder.read("prompts", columns)
            texts = table.drop_duplicates("prompt").sort_values("prompt").set_index("prompt")["text"]
            nth = texts.groupby(texts, dropna=False).cumcount()  # a text may come more than once in a study
            places = {
                int(local): numbers.setdefault((text, int(nth[local])), len(numbers)) for local, text in texts.items()
            }
            own.append({place: local for local, place in places.items()})
            rows.append(table.assign(prompt=table["prompt"].map(places), study=folder.path.name))
        found = pd.concat(rows, ignore_index=True)
        twice = found[found.duplicated([*SUBJECT, "prompt"])]
        if len(twice):
            row = twice.iloc[0]
            raise BadArgument(
                "A prompt is counted once for each model and convention",
                f"{str(row['text'])[:40]!r} with {row['model']}, {row['convention']} in two studies",
                "Summarise studies of other models, conventions or prompts together, or each by itself.",
            )
        return found, own

    @property
    def prompts(self) -> pd.DataFrame:
        """Raises BadArgument where a prompt was studied twice with one model and convention."""
        return self._read[0]

    def has(self, table: str) -> bool:
        """Whether any of them has such a table."""
        return any(folder.has(table) for folder in self.folders)

    def parts(self) -> Iterator[list[int]]:
        """The numbers of some prompts at a time, all of them in the end."""
        every = sorted(set(self.prompts["prompt"]))
        for start in range(0, len(every), AT_ONCE):
            yield every[start : start + AT_ONCE]

    def read(self, table: str, columns: Iterable[str], prompts: list[int], condition: Any = None) -> pd.DataFrame:
        """Some columns of a table, with the stamp, of these prompts. Raises DamagedFile."""
        found, names = [], [*STAMP, *columns]
        for folder, own in zip(self.folders, self._read[1], strict=True):
            local = [own[p] for p in prompts if p in own]
            if not local or not folder.has(table):
                continue
            number = pyarrow.dataset.field("prompt")
            where = (number >= min(local)) & (number <= max(local)) & number.isin(local)
            rows = folder.read(table, names, where if condition is None else where & condition)
            back = {number: place for place, number in own.items()}
            found.append(rows.assign(prompt=rows["prompt"].map(back)))
        found = [rows for rows in found if len(rows)]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=names)
