"""What is on the page of a summary, as plain data: its tables, and what they are of."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from secant.report.page import brief
from secant.studies.statistics import LEVEL
from secant.studies.summary import Summary
from secant.text import visible


def contents(s: Summary) -> dict[str, Any]:
    """All that the page shows; tables as lists of rows, by name."""
    subjects = list(dict.fromkeys(zip(s.coverage["model"], s.coverage["convention"], strict=True)))
    categories = [c for c in dict.fromkeys(s.coverage["category"]) if not pd.isna(c)]
    return {
        "studies": s.studies,
        "models": list(dict.fromkeys(model for model, _ in subjects)),
        "subjects": [{"model": model, "convention": convention} for model, convention in subjects],
        "categories": categories,
        "prompts": int(s.runs["prompts"].sum()),
        "failed": int(s.runs["failed"].sum()),
        "absent": s.absent,
        "seed": s.seed,
        "resamples": s.resamples,
        "level": LEVEL,
        "coverage": _rows(s.coverage),
        "failures": _rows(s.failures.assign(example=[_line(text) for text in s.failures["example"]])),
        "measures": _rows(s.measures),
        "ranks": _rows(s.ranks),
        "positions": [[category, s.common_positions(category)] for category in (None, *categories)],
        "spectra": _rows(s.spectra),
        "depths": _rows(s.depths),
        "emergence": _rows(s.emergence),
        "shares": _rows(s.shares),
        "overlaps": _rows(s.overlaps),
        "conventions": _rows(s.conventions),
    }


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with None where there is nothing, and numbers no longer than is of use."""
    rows = json.loads(table.to_json(orient="records"))
    return [{name: brief(v, 5) if isinstance(v, float) else v for name, v in row.items()} for row in rows]


def _line(text: Any) -> str:
    """A prompt on one line, shortened, with every character in sight."""
    shown = " ".join(visible(part) for part in str(text).split(" "))
    return shown if len(shown) <= 200 else shown[:199] + "…"
