"""Reading the tables of studies, for a batch of prompts at a time, so that memory does not grow with the study.

Several studies are read as one. A prompt is identified by its text, so models that were studied separately can be
compared on the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.dataset

from secant.errors import BadArgument, DamagedFile
from secant.foreign import explained
from secant.results.files import ARROW
from secant.studies.folder import TABLES
from secant.studies.study import Study
from secant.studies.work import PROMPT_KEYS, ROW_START, SCHEMA

BATCH = 100
"""The number of prompts whose tables are in memory together."""

KEYS = [column.name for column in PROMPT_KEYS]
"""The columns that identify a prompt's value: model, convention, prompt and category."""

SUBJECT = KEYS[:2]
"""The columns that identify what is compared: model and convention."""


def opened(path: str | Path) -> Study:
    """The finished study in a folder.

    Args:
        path: The folder.

    Raises:
        BadArgument: The folder holds no study, or an unfinished one.
        DamagedFile: A file of the study is missing or was changed.

    """
    study = Study.open(path)
    if study.missing:
        raise BadArgument(
            "A summary requires a finished study", f"{path}, of which {study.missing} shards are missing",
            "Run the study again, which resumes it, or merge its parts.",
        )  # fmt: skip
    if not _file(study, "prompts").is_file():
        raise DamagedFile("A study requires the table of its prompts", f"{path} without it", "Run the study again.")
    return study


def check_compatible(studies: Sequence[Study]) -> None:
    """Check that several studies can be read as one.

    Args:
        studies: The studies.

    Raises:
        BadArgument: Two of them use one model with different settings, or different models of the same name.

    """
    known: dict[str, Study] = {}
    for study in studies:
        for label in study.identity.labels:
            first = known.setdefault(label, study)
            if differences := first.identity.asked(label).differences(study.identity.asked(label)):
                raise BadArgument(
                    f"Studies that are read as one must use {label} with the same weights and settings",
                    f"{study.folder} next to {first.folder}: {'; '.join(differences)}",
                    "Summarize each by itself, or rename one of the models' folders and study it again.",
                )  # fmt: skip


def _file(study: Study, table: str) -> Path:
    return study.folder / TABLES / f"{table}.parquet"


def _rows(study: Study, table: str, columns: Iterable[str], condition: Any = None) -> pd.DataFrame:
    """Columns of a table, in the rows that meet a condition. Raises DamagedFile."""
    file, names, todo = _file(study, table), [*columns], "Run the study again."
    study.check_intact(table)
    with explained(DamagedFile, f"The table {table} of a study must have its columns", todo, str(file)):
        data = pyarrow.dataset.dataset(file, format="parquet")
        if missing := set(names) - set(data.schema.names):
            raise DamagedFile(
                f"The table {table} of a study must have a column {min(missing)}", f"{file} without it", todo
            )
        known = pyarrow.schema([(name, ARROW[SCHEMA[table][name].kind]) for name in names])
        return data.to_table(columns=names, filter=condition).cast(known).to_pandas()


@dataclass(frozen=True, eq=False)
class Studies:
    """Several studies, read as one.

    Attributes:
        studies: The studies.

    """

    studies: list[Study]

    @cached_property
    def _read(self) -> tuple[pd.DataFrame, list[dict[int, int]]]:
        """The rows of all prompts, and for each study a dictionary from common to its own prompt numbers."""
        numbers: dict[tuple[str, int], int] = {}
        rows, own = [], []
        columns = [*(column.name for column in ROW_START), "text", "tokens", "reason", "error"]
        for study in self.studies:
            table = _rows(study, "prompts", columns)
            texts = table.drop_duplicates("prompt").sort_values("prompt").set_index("prompt")["text"]
            nth = texts.groupby(texts, dropna=False).cumcount()  # a study may contain a text more than once
            places = {
                int(local): numbers.setdefault((text, int(nth[local])), len(numbers)) for local, text in texts.items()
            }
            own.append({place: local for local, place in places.items()})
            rows.append(table.assign(prompt=table["prompt"].map(places), study=study.folder.name))
        found = pd.concat(rows, ignore_index=True)
        twice = found[found.duplicated([*SUBJECT, "prompt"])]
        if len(twice):
            row = twice.iloc[0]
            raise BadArgument(
                "A prompt may be studied once with each model and convention",
                f"{str(row['text'])[:40]!r} with {row['model']}, {row['convention']} in two studies",
                "Summarize studies of different models, conventions or prompts together, or each by itself.",
            )
        return found, own

    @property
    def prompts(self) -> pd.DataFrame:
        """A row for each prompt x model x convention, with prompts numbered across all studies.

        Raises:
            BadArgument: A prompt was studied twice with one model and convention.
            DamagedFile: A table can't be read.

        """
        return self._read[0]

    def has(self, table: str) -> bool:
        """Whether any of the studies has a table.

        Args:
            table: Its name.

        """
        return any(_file(study, table).is_file() for study in self.studies)

    def batches(self) -> Iterator[list[int]]:
        """The numbers of all prompts, in batches."""
        every = sorted(set(self.prompts["prompt"]))
        for start in range(0, len(every), BATCH):
            yield every[start : start + BATCH]

    def read(self, table: str, columns: Iterable[str], prompts: list[int], condition: Any = None) -> pd.DataFrame:
        """Read rows of some prompts.

        Args:
            table: The table's name.
            columns: The columns to read besides KEYS.
            prompts: The numbers of the prompts.
            condition: A condition of pyarrow that the rows must meet.

        Raises:
            DamagedFile: The table can't be read.

        """
        found, names = [], [*KEYS, *columns]
        for study, own in zip(self.studies, self._read[1], strict=True):
            local = [own[p] for p in prompts if p in own]
            if not local or not _file(study, table).is_file():
                continue
            number = pyarrow.dataset.field("prompt")
            where = (number >= min(local)) & (number <= max(local)) & number.isin(local)
            rows = _rows(study, table, names, where if condition is None else where & condition)
            back = {number: place for place, number in own.items()}
            found.append(rows.assign(prompt=rows["prompt"].map(back)))
        found = [rows for rows in found if len(rows)]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=names)
