"""Write docs/tables.md: what each column of each table that secant writes holds.

    python tools/tables.py

It is made of src/secant/dictionary.py, which the files themselves are written by.
"""

from __future__ import annotations

from pathlib import Path

from secant.dictionary import STUDY, TABLES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tables.md"

HEAD = """# Tables

Every table that secant writes, as Parquet and as CSV: what a row is, and what each column holds. `columns.csv` beside
them says the same of the tables of its folder, and so does the metadata of each Parquet column. Types: integer and
number are 64 bits wide, text is UTF-8, truth is true or false; what is missing is empty in CSV and null in Parquet. A
`{i}` in a name stands for 0, 1, 2, …

Written by `python tools/tables.py` from `src/secant/dictionary.py`.
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
