"""`secant architectures`"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from secant.cli.output import Printing
from secant.cli.schemas import TEXT, Schema, printing
from secant.cli.verb import verb

if TYPE_CHECKING:
    from secant.results.view import Style, View


@dataclass(frozen=True)
class Architectures:
    """The architectures that were measured: a row for each model type."""

    rows: list[dict[str, str]]

    def show(self) -> None:
        """Print the table on standard output; without a terminal and COLUMNS it is 140 characters wide."""
        from secant.results.terminal import show

        show(self.view(), usual=140)

    def view(self) -> View:
        """The view: a line for each model type, and how many types have each result."""
        from secant.results.view import Cell, Grid, Shown, View

        columns = [
            Shown("type"), Shown("result"), Shown("reconstruction", "error"), Shown("affinity", "error"),
            Shown("‖b‖/‖y‖", "number"), Shown("layers", most=60, spare=1),
        ]  # fmt: skip
        styles: dict[str, Style] = {"exact": "", "excluded": "dim"}
        rows = [
            [
                row["type"],
                Cell(row["result"], styles.get(row["result"], "bad")),
                *(row[name] for name in ("reconstruction", "affinity", "constants", "layers")),
            ]
            for row in self.rows
        ]
        results = [row["result"] for row in self.rows]
        counts = " · ".join(f"{results.count(result)} {result}" for result in dict.fromkeys(results))
        because = [Shown("type"), Shown("result"), Shown("reason", wrap=True)]
        reasons = [[row["type"], row["result"], row["reason"]] for row in self.rows if row["reason"]]
        return View("", {}, [Grid(columns, rows), Grid(because, reasons)], [counts])


def _schema(command: str) -> Schema:
    """What `--json` prints: the rows."""
    from secant.results.json_schema import object_schema

    head = object_schema(command, {}, [], "A row for each model type that was measured.")
    row = {"type": "object", "additionalProperties": TEXT, "required": ["type", "result"]}
    return {key: head[key] for key in ("$schema", "$id", "title", "description")} | {"type": "array", "items": row}


@printing(_schema)
@verb
def architectures(output: Printing) -> None:
    """List which model types are exact. Each was measured on a small model; refused types have the reason."""
    import csv
    from importlib.resources import files

    lines = files("secant").joinpath("architectures.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines))
    output.finish(Architectures(rows), said=rows)
