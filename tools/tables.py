"""Write docs/tables.md: what each column of each table that secant writes holds.

    python tools/tables.py

It is made of src/secant/dictionary.py, which the files themselves are written by.
"""

from __future__ import annotations

from pathlib import Path

from secant.results.dictionary import STUDY, TABLES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tables.md"

HEAD = """# Tables

Every table that secant writes, as Parquet and as CSV: what a row is, and what each column holds. `columns.csv` beside
them says the same of the tables of its folder, and so does the metadata of each Parquet column. Types: integer and
number are 64 bits wide, text is UTF-8, truth is true or false; what is missing is empty in CSV and null in Parquet. A
`{i}` in a name stands for 0, 1, 2, …

Written by `python tools/tables.py` from `src/secant/dictionary.py`.

## Reading CSV

Tokens are any text: line ends, quotes, commas, spaces alone, `NA`. In CSV every text is in quotes, with quotes doubled,
and is the token itself; a missing value is empty, without quotes. Tell your reader so, or it takes the token `NA` for a
missing value and the token `1` for a number. With pandas, an empty text becomes a missing one:

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
have a token such as `=cmd()`. Nothing is put before it, because a program would read another token then. Import the
file as text (in Excel: Data, From Text/CSV, and type Text for each column), or read the Parquet.
"""


def page() -> str:
    """The dictionary as a page."""
    parts = [HEAD]
    for title, table in [*TABLES.items(), *((f"study: {name}", table) for name, table in STUDY.items())]:
        lines = [f"\n## {title}\n", f"Of {table.of}. A row is {table.row}.\n"]
        lines += ["| column | type | unit | meaning |", "|---|---|---|---|"]
        for column, about in table.columns.items():
            lines.append(f"| `{column}` | {about.type} | {about.unit} | {about.meaning.replace('|', chr(92) + '|')} |")
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
