"""Reading csv and tsv files. A file that could be misread is refused, so that no prompt changes silently.

The separator is the one that the header contains and that every row fits, or the one that Excel's first line `sep=;`
names. A file that fits two separators is refused.
A text is read exactly as it is written, so a space after each comma, which is usually not meant, is refused too.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from dataclasses import dataclass

from secant.errors import DamagedFile

NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
"""The separators and their names."""


SEP = re.compile(r'"?sep=([^\r\n])"?\r?\n')
"""The first line by which Excel names the separator."""


@dataclass(frozen=True)
class Rows:
    """The rows of a file.

    Attributes:
        names: The names of its columns.
        rows: Its rows below the header.
        said: The file's text.
        separator: What separates its columns.

    """

    names: list[str]
    rows: list[list[str]]
    said: str
    separator: str

    def column(self, name: str, where: str) -> list[str]:
        """The texts of a column.

        Args:
            name: The column's name.
            where: What an error calls the file.

        Raises:
            DamagedFile: Spaces around the texts are probably not meant.

        """
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
        """Whether the file has a text in quotes, including its spaces."""
        escaped = text.replace('"', '""')
        return f'"{escaped}"' in self.said


def separated(said: str, where: str, usual: str) -> Rows:
    """The rows of a file.

    Args:
        said: The file's text.
        where: What an error calls the file.
        usual: The usual separator for its suffix. The header may contain a different one.

    Raises:
        DamagedFile: A row does not fit the header, a quote is not closed, or two separators fit.

    """
    if named := SEP.match(said):
        if named[1] not in NAMES:
            todo = f"Write {', '.join(NAMES.values())} between columns, or write .jsonl."
            raise damaged(where, f"the separator {named[1]!r} in its first line", todo)
        return _rows(said[named.end() :], where, named[1], 2)
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


def _rows(said: str, where: str, separator: str, line: int = 1) -> Rows:
    """The rows of a file for a given separator, whose header is on this line. Raises DamagedFile."""
    before = csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(said, newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    above = line - 1
    try:
        for row in reader:
            if row and rows and len(row) != len(rows[0]):
                got = f"line {line}: {len(row)} fields for {len(rows[0])} columns, separated by {NAMES[separator]}"
                raise damaged(where, got, "Put texts in quotes, or write .jsonl.")
            rows += [row] if row else []
            line = reader.line_num + 1 + above
    except csv.Error as error:
        raise damaged(where, f"the row from line {line}: {error}", "Close its quotes, or write .jsonl.") from error
    finally:
        csv.field_size_limit(before)
    if not rows:
        raise damaged(where, "an empty file", "Write names in its first row, and a prompt in each further row.")
    return Rows(rows[0], rows[1:], said, separator)


def damaged(where: str, why: object, todo: str) -> DamagedFile:
    """The error for a file of prompts that can't be read.

    Args:
        where: What it calls the file.
        why: What is wrong.
        todo: What to do.

    """
    return DamagedFile("A table of prompts must be readable", f"{where}: {' '.join(str(why).split())[:160]}", todo)
