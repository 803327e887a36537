"""Write docs/reference/tables.md: the meaning of each column of each table that secant writes.

    python tools/tables.py

The page comes from the descriptions with which the files themselves are written: the `schema` of each result, and the
tables of a study.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import secant as sc
from secant.results.result import Result
from secant.results.schema import Table
from secant.studies.work import SCHEMA

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "tables.md"

HEAD = """# Tables

This page describes every table that secant writes, as Parquet and as CSV: what a row is, and what each column means.
`columns.csv` says the same about the tables in its folder, and so does the metadata of each Parquet column. The types
integer and number have 64 bits, text is UTF-8, and truth is true or false. Missing values are empty in CSV and null in
Parquet. `{i}` in a name stands for 0, 1, 2, …

`python tools/tables.py` writes this page from the tables, which are defined next to the code that fills them.

## Reading CSV

A token can be any text: a line end, a quote, a comma, spaces alone, `NA`. In CSV every text is in quotes, and quotes
inside it are doubled; a missing value is empty, without quotes. Configure your reader for this, or it takes the token
`NA` for a missing value and the token `1` for a number. With pandas, an empty text becomes a missing value:

```python
about = pd.read_csv("out/columns.csv", keep_default_na=False)
about = about[about["table"] == "tokens"].set_index("column")["type"]
kinds = {"integer": "Int64", "number": "float64", "text": "str", "truth": "boolean"}
tokens = pd.read_csv("out/tokens.csv", dtype=about.map(kinds).to_dict(), keep_default_na=False, na_values=[""])
```

pyarrow keeps the two apart:

```python
kinds = {"integer": "int64", "number": "float64", "text": "large_string", "truth": "bool"}
how = pyarrow.csv.ConvertOptions(
    column_types=about.map(kinds).map(pyarrow.type_for_alias).to_dict(),
    null_values=[""],
    strings_can_be_null=True,
    quoted_strings_can_be_null=False,
)
lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
tokens = pyarrow.csv.read_csv("out/tokens.csv", parse_options=lines, convert_options=how)
```

Python's own `csv` takes a file that was opened with `newline=""`.

**Spreadsheets** evaluate a cell that begins with `=`, `+`, `-` or `@`, in quotes or not, and a model's vocabulary may
have a token such as `=cmd()`. secant writes such a token unchanged, because with a character before it, it would be
another token. Import the file as text (in Excel: Data, From Text/CSV, and type Text for each column), or read the
Parquet.
"""


def results() -> Iterator[type[Result]]:
    """Every public result."""
    for name in sc.__all__:
        kind = getattr(sc, name)
        if isinstance(kind, type) and issubclass(kind, Result):
            yield kind


def tables() -> dict[Table, str]:
    """Every table of a result, and the results that write it."""
    found: dict[Table, list[str]] = {}
    for kind in results():
        for table in kind.schema:
            found.setdefault(table, []).append(kind.__name__)
    return {table: ", ".join(names) for table, names in found.items()}


def page() -> str:
    """All descriptions as a page."""
    parts = [HEAD]
    titled = [(table.name, table, of) for table, of in tables().items()]
    titled += [(f"study: {name}", table, "Study") for name, table in SCHEMA.items()]
    for title, table, of in titled:
        lines = [f"\n## {title}\n", f"Of {of}. A row is {table.row}.\n"]
        lines += ["| column | type | unit | meaning |", "|---|---|---|---|"]
        for own in table.columns:
            lines.append(f"| `{own.name}` | {own.kind} | {own.unit} | {own.meaning.replace('|', chr(92) + '|')} |")
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
