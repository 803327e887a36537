"""Averages of a study over its prompts, with bootstrap intervals, by model and convention.

Every prompt counts once: it has one number of each kind, which is a mean over its tokens if it has several. Intervals
are over prompts (secant.studies.statistics). Tables are read for a batch of prompts at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset

from secant.arguments import counted
from secant.errors import BadArgument, checked, seeded
from secant.memory import Progress
from secant.results.paths import paths_of
from secant.studies import measures
from secant.studies.analyses import WRITERS
from secant.studies.reading import SUBJECT, Studies, check_compatible, opened
from secant.studies.statistics import described
from secant.studies.summary import AVERAGES, COVERAGE, FAILURES, Summary


@checked
def summarize(
    folders: str | Path | Sequence[str | Path],
    *,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Average the results of one study or several over their prompts.

    Several studies are read as one. A prompt is identified by its text, so models that were studied separately are
    compared on the same prompts.

    Args:
        folders: The folders of the studies.
        resamples: How many resamples each bootstrap interval uses.
        seed: The seed of the resamples.
        progress: Called as `progress(what, done, of)` while it runs.

    Returns:
        The averages, by model, convention and category.

    Raises:
        BadArgument: A folder holds no finished study, or a prompt was studied twice with one model and convention.
        DamagedFile: A file of a study is missing or was changed.

    """
    paths = paths_of(folders, "A summary requires the folders of studies")
    if len({path.resolve() for path in paths}) < len(paths):
        raise BadArgument("Each study may be given once", "one folder twice", "Name each once.")
    resamples = counted("resamples", resamples)
    seed = seeded(seed)
    studies = Studies([opened(path) for path in paths])
    check_compatible(studies.studies)
    report = progress or (lambda what, done, of: None)
    values = _values(studies, report)
    found: dict[str, pd.DataFrame] = {}
    for done, (name, average) in enumerate(AVERAGES.items()):
        report("intervals", done, len(AVERAGES))
        rows = described(values[name], average.names, seed, resamples) if name in values else []
        if name == "overlaps":
            rows = list(_with_chance(rows, values, seed))
        found[name] = average.table.frame(rows)
    report("intervals", len(AVERAGES), len(AVERAGES))
    coverage, failures = _covered(studies.prompts)
    asked = {analysis for study in studies.studies for analysis in study.identity.analyses}
    absent = sorted({WRITERS[table][0] for table in SOURCES if asked.isdisjoint(WRITERS[table])})
    return Summary(
        [study.folder.name for study in studies.studies], seed, resamples, absent, coverage, failures, **found
    )


def _with_chance(
    rows: Sequence[dict[str, Any]], values: dict[str, pd.DataFrame], seed: int
) -> Iterable[dict[str, Any]]:
    """Rows of overlaps with the mean overlap by chance, which has no interval."""
    keys = AVERAGES["overlaps"].names
    chance = described(values["chance"], keys, seed, 100) if "chance" in values else []
    means = {tuple(row[key] for key in (*keys, "category")): row["mean"] for row in chance}
    for row in rows:
        yield {**row, "chance": means.get(tuple(row[key] for key in (*keys, "category")))}


Numbers = Callable[[pd.DataFrame], dict[str, pd.DataFrame]]
"""A function from rows of a study's table to numbers of prompts, by the average that they belong to."""


def _column(average: str, column: str) -> Numbers:
    """The numbers of one column, unchanged."""
    return lambda rows: {average: rows.rename(columns={column: "value"})}


def _emerged(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    curve, seen = measures.emerged(rows)
    return {"emergence": curve, "measures": seen}


def _decoded(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    shared = measures.overlaps(rows)
    chance = shared.rename(columns={"value": "overlap", "chance": "value"})
    return {"measures": measures.decoded(rows), "overlaps": shared, "chance": chance}


@dataclass(frozen=True)
class Source:
    """Where numbers come from: the columns of a study's table, the function that reads them, and a row condition."""

    columns: tuple[str, ...]
    numbers: Numbers
    condition: Any = None


ALL_TOKENS = pyarrow.dataset.field("position").is_null()
FIRST_VECTOR = pyarrow.dataset.field("vector") == 0
SCALARS = ("reconstruction", "ordinary", "bias")

SOURCES: dict[str, Source] = {
    "reconstructions": Source(SCALARS, lambda rows: {"measures": measures.scalars(rows, *SCALARS)}),
    "stable_ranks": Source(("position", "stable_rank"), _column("ranks", "stable_rank")),
    "singular_values": Source(("position", "vector", "normalized"), _column("spectra", "normalized")),
    "layers": Source(("layer", "part", "span", "stable_rank"), _column("depths", "stable_rank"), ALL_TOKENS),
    "first_seen": Source(("part", "span", "layer", "layer_count"), _emerged, ALL_TOKENS),
    "coupling": Source(("mismatch",), lambda rows: {"measures": measures.coupled(rows)}),
    "words": Source(("position", "token", "side", "word", "predicted", "own"), _decoded, FIRST_VECTOR),
    "contributions": Source(("kind", "name", "contribution"), lambda rows: {"shares": measures.shares(rows)}),
    "conventions": Source(
        ("other", "position", "distance", "cosine"), lambda rows: {"conventions": measures.distances(rows)}
    ),
}
"""The source of numbers in each table of a study."""


def _values(studies: Studies, report: Progress) -> dict[str, pd.DataFrame]:
    """One number of each kind for each prompt, by the average that it belongs to."""
    found: dict[str, list[pd.DataFrame]] = defaultdict(list)
    batches = list(studies.batches())
    for done, prompts in enumerate(batches):
        report("prompts", done, len(batches))
        for table, source in SOURCES.items():
            rows = studies.read(table, source.columns, prompts, source.condition)
            for name, values in (source.numbers(rows) if len(rows) else {}).items():
                if len(values):
                    found[name].append(values)
    report("prompts", len(batches), len(batches))
    whole = {name: pd.concat(tables) for name, tables in found.items()}
    if "depths" in whole:
        table = whole["depths"]
        count = table.groupby(SUBJECT)["layer"].transform("max") + 1
        whole["depths"] = table.assign(depth=(table["layer"] + 1) / count)
    return whole


def _covered(prompts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How many prompts each model, convention, precision and category has, and why prompts failed."""
    rows = prompts.assign(failed=prompts["error"].notna() | prompts["reason"].notna())
    rows = rows.assign(equal=rows["run_forward_equal"].where(~rows["failed"]).astype(float))
    named = rows[rows["category"].notna()]
    every = [
        some.groupby([*SUBJECT, "precision", "category"], dropna=False, sort=False).agg(
            prompts=("prompt", "size"),
            failed=("failed", "sum"),
            least=("tokens", "min"),
            most=("tokens", "max"),
            forward_equal=("equal", "sum"),
            reconstruction=("run_reconstruction", "max"),
            affinity=("run_affinity", "max"),
        )
        for some in (rows.assign(category=None), named)
        if len(some)
    ]
    coverage = pd.concat([COVERAGE.frame(table.reset_index()) for table in every], ignore_index=True)
    bad = rows[rows["failed"]]
    failures = bad.groupby([*SUBJECT, "category", "error", "reason"], dropna=False, sort=False).agg(
        prompts=("prompt", "size"), example=("text", "first")
    )
    return coverage, FAILURES.frame(failures.reset_index())
