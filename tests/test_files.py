"""Files that are written and read: the same back, whatever the tokens; nothing half-written, nothing of others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.csv
import pytest
import tables as tool

from secant.dictionary import TABLES
from secant.tables import READ, described, saving

HOSTILE = [
    "\r", "\n", "\r\n", "a\rb", '"', '""', ",", ";", "NA", "N/A", "null", "nan", "None", "True", "1", "-1.5", "=cmd()",
    "+1", "-x", "@x", "\0", "a\0b", " ", "  ", "\t", "'", "\\", "\\n", "#", "\ufeff", "\u2028", "橋", "", None,
]  # fmt: skip
VALUES: dict[str, list[Any]] = {
    "text": HOSTILE,
    "integer": [0, -1, 2**63 - 1, -(2**63), None],
    "number": [0.1, 1 / 3, 1.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), 123456789.123456789, None],
    "truth": [True, False, None],
}
KINDS = {"integer": "Int64", "number": "float64", "text": object, "truth": "boolean"}


def hostile(name: str) -> pd.DataFrame:
    """Rows of a table with every value that is hard to write; each column begins elsewhere."""
    made = {}
    for place, (key, about) in enumerate(TABLES[name].columns.items()):
        values = VALUES[about.type]
        rows = [values[(row + place) % len(values)] for row in range(len(HOSTILE))]
        made[key.replace("{i}", "0")] = pd.Series(rows, dtype=KINDS[about.type])
    return pd.DataFrame(made)


@pytest.mark.parametrize("name", TABLES)
def test_csv_is_read_back_as_it_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the very lines of docs/tables.md."""
    frame = hostile(name)
    with saving(tmp_path / "out", {name: frame}):
        pass
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"pd": pd, "pyarrow": pyarrow}
    found = []
    for code in re.findall(r"```python\n(.*?)```", tool.HEAD, re.DOTALL):
        exec(code.replace('"tokens"', repr(name)).replace("out/tokens.csv", f"out/{name}.csv"), scope)
        found.append(scope["tokens"])
    by_pandas, by_pyarrow = found
    rows = described(TABLES[name], frame)
    assert by_pyarrow.cast(rows.schema).equals(rows)
    for key, own in zip(rows.column_names, rows.columns, strict=True):
        values = [None if value == "" else value for value in own.to_pylist()]
        assert by_pandas[key].astype(object).where(by_pandas[key].notna(), None).tolist() == values, key


def test_a_token_that_is_a_formula_is_written_as_it_is(tmp_path: Path) -> None:
    """A guard before it would be another token to every program; docs/tables.md says what to do in a spreadsheet."""
    frame = pd.DataFrame({"word": ["=cmd()", "NA", "", None], "id": pd.array([1, 2, 3, None], dtype="Int64")})
    with saving(tmp_path / "out", {"lexicon": frame}):
        pass
    assert (tmp_path / "out" / "lexicon.csv").read_text() == '"word","id"\n"=cmd()",1\n"NA",2\n"",3\n,\n'
    about = pd.read_csv(tmp_path / "out" / "columns.csv", keep_default_na=False)
    assert about["csv"].tolist() == [READ["text"], READ["integer"]]
