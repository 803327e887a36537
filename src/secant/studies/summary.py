"""What a study says as a whole: each number averaged over prompts, with a bootstrap interval, by model and convention.

Every prompt counts once: it has one number of each kind (its own mean, where it has several), and intervals are over
prompts (secant.studies.statistics). Tables are read some prompts at a time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset

from secant.errors import BadArgument, checked, integer, seeded
from secant.files import check_file, paths_of, replacing, write_json, write_text
from secant.results.files import saving
from secant.studies import measures
from secant.studies.folder import apart
from secant.studies.reading import STAMP, SUBJECT, Studies, alike, opened
from secant.studies.statistics import LEVEL, described

Progress = Callable[[str, int, int], None]

ANALYSES = {
    "stable_ranks": "stable_rank", "singular_values": "spectra", "layers": "layers", "first_seen": "layers",
    "reconstructions": "reconstruction", "words": "words", "contributions": "attribution", "conventions": "conventions",
}  # fmt: skip
"""Which analysis of a study writes a table."""

ALSO = {"attribution": "parts"}
"""An analysis that writes what another one does, and more."""

FIRST = pyarrow.dataset.field("vector") == 0
TOGETHER = pyarrow.dataset.field("position").is_null()


@dataclass(frozen=True, eq=False)
class Summary:
    """Statistics over the prompts of one study or several, by model, convention and category of prompt.

    Each table has `n` prompts, `mean`, its 95 % interval (`low`, `high`, and by which method, or why there is none) and
    quantiles; `category` is missing where all prompts are meant, with one or without. `coverage` and `failures` say
    what there was. A table of an analysis that was not asked for is empty, and `absent` names it.
    """

    studies: list[str]
    seed: int
    resamples: int
    absent: list[str]
    coverage: pd.DataFrame = field(repr=False)
    failures: pd.DataFrame = field(repr=False)
    measures: pd.DataFrame = field(repr=False)
    ranks: pd.DataFrame = field(repr=False)
    spectra: pd.DataFrame = field(repr=False)
    depths: pd.DataFrame = field(repr=False)
    emergence: pd.DataFrame = field(repr=False)
    shares: pd.DataFrame = field(repr=False)
    overlaps: pd.DataFrame = field(repr=False)
    conventions: pd.DataFrame = field(repr=False)

    @property
    def runs(self) -> pd.DataFrame:
        """The coverage of all prompts, whatever their category: a row for each model, convention and precision."""
        return self.coverage[self.coverage["category"].isna()]

    def common_positions(self, category: str | None = None) -> list[int]:
        """The positions that at least one in twenty of the prompts reach which the most reach: others say little."""
        rows = self.ranks[self.ranks["position"].notna()]
        rows = rows[rows["category"].isna() if category is None else rows["category"] == category]
        most = rows.groupby("position")["n"].max()
        return sorted(int(position) for position in most.index[most >= most.max() / 20])

    def to_pandas(self) -> pd.DataFrame:
        """The measures: a row for each model, convention, category and measure."""
        return self.measures.copy()

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the name of their file, without those of analyses that there are none of."""
        every = {
            "summary_measures": self.measures,
            "summary_ranks": self.ranks,
            "summary_spectra": self.spectra,
            "summary_depths": self.depths,
            "summary_emergence": self.emergence,
            "summary_shares": self.shares,
            "summary_overlaps": self.overlaps,
            "summary_conventions": self.conventions,
        }
        there = {name: table for name, table in every.items() if len(table)}
        return {"coverage": self.coverage, "failures": self.failures, **there}

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        about = {"studies": self.studies, "seed": self.seed, "resamples": self.resamples, "level": LEVEL}
        tables = {name: json.loads(table.to_json(orient="records")) for name, table in self.tables().items()}
        return {**about, "absent": self.absent, **tables}

    def save(self, folder: str | Path) -> None:
        """Write summary.json, all tables (.parquet and .csv) and columns.csv.

        Raises BadArgument where the folder is a study's, and OutputFailed.
        """
        apart(folder)
        with saving(folder, self.tables()) as new:
            write_json(new / "summary.json", self.to_dict())

    def report(self, path: str | Path) -> None:
        """Write one page of HTML with all of it; it needs no network.

        Raises SecantError where plotly is not installed, and OutputFailed.
        """
        from secant.report.document import SUMMARY, html, library
        from secant.report.overview import contents

        check_file(path)  # before there is any work
        plotly = library()
        with replacing(path) as new:
            write_text(new, html(contents(self), plotly, SUMMARY))

    def _repr_html_(self) -> str:
        from secant.results.html import summary

        return summary(self)


@checked
def summarize(
    folders: str | Path | Sequence[str | Path],
    *,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Average what a study, or several of them as one, wrote to its folder, over its prompts.

    Prompts of several studies are the same where their text is, so that models that were studied apart are compared.
    `resamples`: of each bootstrap interval, drawn with `seed`. `progress(what, done, all)` is called as it goes on.

    Raises BadArgument where a folder has no finished study, or a prompt was studied twice with one model and
    convention, and DamagedFile where its files are not those of a study.
    """
    paths = paths_of(folders, "A summary is of the folders of some studies")
    if len({path.resolve() for path in paths}) < len(paths):
        raise BadArgument("A study is counted once", "one folder twice", "Name each once.")
    resamples = integer(resamples, 100, 10**6, "An interval takes some resamples", "resamples = ")
    seed = seeded(seed)
    studies = Studies([opened(path) for path in paths])
    alike(studies.studies)
    report = progress or (lambda what, done, of: None)
    values = _values(studies, report)

    def statistics(name: str, *keys: str) -> pd.DataFrame:
        report("intervals", len(done), len(KEYS))
        done.append(name)
        table = values.get(name)
        table = pd.DataFrame(columns=[*STAMP, *keys, "value"]) if table is None else table
        return described(table, [*SUBJECT, *keys], seed, resamples)

    done: list[str] = []
    found = {name: statistics(name, *keys) for name, keys in KEYS.items()}
    whole = {"position": "Int64", "vector": "Int64", "layer": "Int64"}
    found = {name: t.astype({c: kind for c, kind in whole.items() if c in t}) for name, t in found.items()}
    report("intervals", len(KEYS), len(KEYS))
    coverage, failures = _covered(studies.prompts)
    chance = values.get("chance")
    if chance is not None:
        by = [*SUBJECT, "other", "other_convention", "of", "side"]
        means = described(chance, by, seed, 100)[[*by, "category", "mean"]].rename(columns={"mean": "chance"})
        found["overlaps"] = found["overlaps"].merge(means, on=[*by, "category"], how="left")
    else:
        found["overlaps"] = found["overlaps"].assign(chance=pd.Series(dtype=float))
    asked = {analysis for study in studies.studies for analysis in study.identity.analyses}
    absent = sorted({analysis for analysis in ANALYSES.values() if not asked & {analysis, ALSO.get(analysis)}})
    return Summary(
        [study.folder.name for study in studies.studies], seed, resamples, absent, coverage, failures, **found
    )


KEYS = {
    "measures": ["measure"],
    "ranks": ["position"],
    "spectra": ["position", "vector"],
    "depths": ["part", "span", "layer", "depth"],
    "emergence": ["part", "span", "layer", "depth"],
    "shares": ["kind", "part"],
    "overlaps": ["other", "other_convention", "of", "side"],
    "conventions": ["other", "of", "measure"],
}
"""What the numbers of each table are of, besides the model, the convention and the category."""


def _values(studies: Studies, report: Progress) -> dict[str, pd.DataFrame]:
    """One number of each kind for each prompt, by the table that it is averaged in."""
    found: dict[str, list[pd.DataFrame]] = defaultdict(list)
    parts = list(studies.parts())
    for done, prompts in enumerate(parts):
        report("prompts", done, len(parts))
        for table, (columns, condition) in COLUMNS.items():
            rows = studies.read(table, columns, prompts, condition)
            if len(rows):
                for name, values in _each(table, rows).items():
                    found[name].append(values)
    report("prompts", len(parts), len(parts))
    whole = {name: pd.concat([t for t in tables if len(t)] or tables[:1]) for name, tables in found.items()}
    if "depths" in whole:
        table = whole["depths"]
        count = table.groupby(SUBJECT)["layer"].transform("max") + 1
        whole["depths"] = table.assign(depth=(table["layer"] + 1) / count)
    return whole


COLUMNS: dict[str, tuple[list[str], Any]] = {
    "reconstructions": (["reconstruction", "ordinary", "bias"], None),
    "stable_ranks": (["position", "stable_rank"], None),
    "singular_values": (["position", "vector", "normalized"], None),
    "layers": (["layer", "part", "span", "stable_rank"], TOGETHER),
    "first_seen": (["part", "span", "layer", "layer_count"], TOGETHER),
    "words": (["position", "token", "side", "word", "predicted", "own"], FIRST),
    "contributions": (["kind", "name", "contribution"], None),
    "conventions": (["other", "position", "distance", "cosine"], None),
}
"""Columns that are read of each table, and of which rows."""


def _each(table: str, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The numbers of some prompts that rows of a study's table give."""
    if table == "reconstructions":
        return {"measures": measures.scalars(rows, "reconstruction", "ordinary", "bias")}
    if table == "stable_ranks":
        return {"ranks": rows.rename(columns={"stable_rank": "value"})}
    if table == "singular_values":
        return {"spectra": rows.rename(columns={"normalized": "value"})}
    if table == "layers":
        return {"depths": rows.rename(columns={"stable_rank": "value"})}
    if table == "first_seen":
        curve, seen = measures.emerged(rows)
        return {"emergence": curve, "measures": seen}
    if table == "words":
        shared = measures.overlaps(rows)
        chance = shared.assign(value=shared["chance"])
        return {"measures": measures.decoded(rows), "overlaps": shared, "chance": chance}
    if table == "contributions":
        return {"shares": measures.shares(rows)}
    return {"conventions": measures.distances(rows)}


def _covered(prompts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How many prompts there were of each model, convention, precision and category; and why some failed."""
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
    coverage = pd.concat([table.reset_index().astype({"category": object}) for table in every], ignore_index=True)
    coverage = coverage.astype({"failed": "Int64", "least": "Int64", "most": "Int64", "forward_equal": "Int64"})
    bad = rows[rows["failed"]]
    failures = bad.groupby([*SUBJECT, "category", "error", "reason"], dropna=False, sort=False).agg(
        prompts=("prompt", "size"), example=("text", "first")
    )
    return coverage, failures.reset_index()
