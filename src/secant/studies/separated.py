"""Files with separated columns: read as what was meant, or refused, and never as other prompts in silence.

The separator is the one that the header has and that every row fits; a file that two fit is refused. A text is taken as
it is written, so what people put around texts by habit, such as spaces after commas, is refused too.
"""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import dataclass

from secant.errors import DamagedFile

NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
"""Separators that there are, and what they are called."""


@dataclass(frozen=True)
class Rows:
    """The rows of a file under the names of its columns."""

    names: list[str]
    rows: list[list[str]]
    said: str
    separator: str

    def column(self, name: str, where: str) -> list[str]:
        """A column's texts. Raises DamagedFile where they have signs around them that are hardly part of them."""
        place = self.names.index(name)
        texts = [row[place] for row in self.rows]
        for text in texts:
            own = text.strip()
            if text[:1].isspace() and own[:1] == own[-1:] == '"' and not self._is_quoted(text):
                raise damaged(where, f"a space before the quotes of {text[:40]!r}", "Remove it.")
        if place and texts and all(text[:1] == " " for text in texts) and not self._is_quoted(texts[0]):
            todo = "Remove it, or put the texts in quotes if it belongs to them."
            raise damaged(where, f"a space before every text of {name!r}", todo)
        return texts

    def _is_quoted(self, text: str) -> bool:
        """Whether a text is in quotes in the file, spaces and all."""
        escaped = text.replace('"', '""')
        return f'"{escaped}"' in self.said


def separated(said: str, where: str, usual: str) -> Rows:
    """The rows of a file, whose usual separator is a comma or a tab; its header may have another one.

    Raises DamagedFile where rows do not fit the header, a quote is left open, or two separators fit.
    """
    fitting: list[Rows] = []
    failed: DamagedFile | None = None
    for separator in (usual, *(other for other in NAMES if other != usual)):
        try:
            found = _rows(said, where, separator)
        except DamagedFile as error:
            failed = failed or error
        else:
            fitting += [found] if separator == usual or len(found.names) > 1 else []
    several = [rows for rows in fitting if len(rows.names) > 1]
    if len(several) > 1:
        both = " and ".join(NAMES[rows.separator] for rows in several[:2])
        raise damaged(where, f"rows that fit {both} between columns", "Put names and texts in quotes.")
    if several or fitting:
        return (several or fitting)[0]
    assert failed is not None, "the usual separator fits, or not"
    raise failed


def _rows(said: str, where: str, separator: str) -> Rows:
    """The rows of a file by one separator. Raises DamagedFile."""
    before = csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(said, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    line = 1
    try:
        for row in reader:
            if row and rows and len(row) != len(rows[0]):
                got = f"line {line}: {len(row)} texts for {len(rows[0])} columns, separated by {NAMES[separator]}"
                raise damaged(where, got, "Put texts in quotes, or write .jsonl.")
            rows += [row] if row else []
            line = reader.line_num + 1
    except csv.Error as error:
        raise damaged(where, f"the row from line {line}: {error}", "Close its quotes, or write .jsonl.") from error
    finally:
        csv.field_size_limit(before)
    if not rows:
        raise damaged(where, "an empty file", "Write names in its first row, and a prompt in each other.")
    return Rows(rows[0], rows[1:], said, separator)


def damaged(where: str, why: object, todo: str) -> DamagedFile:
    """The error of a file of prompts."""
    return DamagedFile("A table of prompts can be read", f"{where}: {' '.join(str(why).split())[:160]}", todo)
