"""Reading a study's folder: its tables a number of prompts at a time, so that memory does not grow with the study.

Several studies are read as one: a prompt is its text, so that models that were studied apart meet on the same prompts.
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
from secant.studies.work import PROMPT_KEYS, SCHEMA, STAMP

AT_ONCE = 100
"""Prompts whose tables are held at a time."""

KEYS = [column.name for column in PROMPT_KEYS]
"""What a number of a prompt is of: its model, convention, number and category."""

SUBJECT = KEYS[:2]
"""What is compared: models and conventions."""


def opened(path: str | Path) -> Study:
    """The study in a folder. Raises BadArgument where there is none, or none that is finished, and DamagedFile."""
    study = Study.open(path)
    if study.missing:
        raise BadArgument(
            "A summary is of a whole study", f"{path}, of which {study.missing} shards are missing",
            "Start the study again, which goes on where it was; or merge its parts.",
        )  # fmt: skip
    if not _file(study, "prompts").is_file():
        raise DamagedFile("A study has a table of its prompts", f"{path} without", "Start the study again.")
    return study


def alike(studies: Sequence[Study]) -> None:
    """Raises BadArgument where studies asked the same model in other ways, or are of other models of one name."""
    known: dict[str, Study] = {}
    for study in studies:
        for label in study.identity.labels:
            first = known.setdefault(label, study)
            if differences := first.identity.asked(label).differences(study.identity.asked(label)):
                raise BadArgument(
                    f"Studies are read as one where {label} is one model, asked in one way",
                    f"{study.folder} beside {first.folder}: {'; '.join(differences)}",
                    "Summarise each by itself, or rename one of the models' folders and study it anew.",
                )  # fmt: skip


def _file(study: Study, table: str) -> Path:
    return study.folder / TABLES / f"{table}.parquet"


def _rows(study: Study, table: str, columns: Iterable[str], condition: Any = None) -> pd.DataFrame:
    """Some columns of a table, of the rows that a condition holds for. Raises DamagedFile."""
    file, names, todo = _file(study, table), [*columns], "Run the study again."
    study.sound(table)
    with explained(DamagedFile, f"The table {table} of a study has the columns of its kind", todo, str(file)):
        data = pyarrow.dataset.dataset(file, format="parquet")
        if missing := set(names) - set(data.schema.names):
            raise DamagedFile(f"The table {table} of a study has a column {min(missing)}", f"{file} without it", todo)
        known = pyarrow.schema([(name, ARROW[SCHEMA[table][name].kind]) for name in names])
        return data.to_table(columns=names, filter=condition).cast(known).to_pandas()


@dataclass(frozen=True, eq=False)
class Studies:
    """Several studies as one. `prompts`: a row for each prompt x model x convention, `prompt` numbered through."""

    studies: list[Study]

    @cached_property
    def _read(self) -> tuple[pd.DataFrame, list[dict[int, int]]]:
        """All rows of prompts, and of each study its own number of each prompt that it has."""
        numbers: dict[tuple[str, int], int] = {}
        rows, own = [], []
        columns = [*(column.name for column in STAMP), "text", "tokens", "reason", "error"]
        for study in self.studies:
            table = _rows(study, "prompts", columns)
            texts = table.drop_duplicates("prompt").sort_values("prompt").set_index("prompt")["text"]
            nth = texts.groupby(texts, dropna=False).cumcount()  # a text may come more than once in a study
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
        return any(_file(study, table).is_file() for study in self.studies)

    def parts(self) -> Iterator[list[int]]:
        """The numbers of some prompts at a time, all of them in the end."""
        every = sorted(set(self.prompts["prompt"]))
        for start in range(0, len(every), AT_ONCE):
            yield every[start : start + AT_ONCE]

    def read(self, table: str, columns: Iterable[str], prompts: list[int], condition: Any = None) -> pd.DataFrame:
        """Some columns of a table, with what each row is of, of these prompts. Raises DamagedFile."""
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
