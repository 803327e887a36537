"""The summary of a study: the result of `summarize`, and the quantities that it averages."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from secant.analyses.attribution import KIND
from secant.operators.spectrum import VECTOR
from secant.results.columns import BLOCK_POSITION, CONVENTION, MODEL, RELATIVE
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Shown, View
from secant.stream.depths import LAYER, PART, SPAN
from secant.stream.words import SIDE
from secant.studies.folder import refuse_study
from secant.studies.reading import SUBJECT
from secant.studies.statistics import LEVEL, statistics
from secant.text import count

CATEGORY = Column("category", str, "the prompts' category; missing: all prompts, also those without one", missing=True)
DEPTH = Column("depth", float, "the layer as a share of the model's depth: 1 is the last", "share of depth")
OTHER = Column("other", str, "the other model's name")
OTHER_CONVENTION = CONVENTION.but(name="other_convention", meaning="the other one's convention")

MEASURES = {
    "reconstruction": ("reconstruction", False, "‖J x + b - y‖ / ‖y‖"),
    "ordinary": ("the ordinary Jacobian's", False, "‖J' x - y‖ / ‖y‖ with the ordinary Jacobian J'"),
    "bias": ("constants, ‖b‖ / ‖y‖", False, "‖b‖ / ‖y‖"),
    "writes_together": ("prediction in U₀, all tokens", True,
                        "whether the prediction is among the top tokens of U₀ of all tokens"),
    "writes_last": ("prediction in U₀, last token", True, "the same of the last token"),
    "writes_any": ("prediction in U₀, any token", True, "the same of any token"),
    "reads_own": ("own token in V₀", True,
                  "the share of tokens that are themselves among the top tokens of their V₀"),
    "seen": ("prediction first at some layer", True,
             "whether the prediction is the top token of U₀ of all tokens at some layer"),
    "seen_depth": ("at that share of depth", True, "the first such layer as a share of depth, where there is one"),
    "coupling": ("coupling of neighbouring layers", False,
                 "1 less the mean mismatch of neighbouring layers: 1 if their singular vectors are the same"),
}  # fmt: skip
"""The measures of a prompt: the label, whether it is a percentage, and the meaning."""


@dataclass(frozen=True)
class Average:
    """A table of statistics over prompts.

    Attributes:
        name: The field of a summary that holds it.
        row: What a row is about, besides the model, the convention and the category.
        keys: The columns that identify it.
        unit: The unit of the numbers.
        more: Columns after the statistics.

    """

    name: str
    row: str
    keys: tuple[Column, ...]
    unit: str
    more: tuple[Column, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the columns that identify a row, besides the category."""
        return [*SUBJECT, *(key.name for key in self.keys)]

    @property
    def table(self) -> Table:
        """The table's description."""
        row = f"model x convention x category x {self.row}"
        columns = (MODEL, CONVENTION, CATEGORY, *self.keys, *statistics(self.unit), *self.more)
        return Table(f"summary_{self.name}", row, columns)


AVERAGES = {
    average.name: average
    for average in (
        Average(
            "measures", "measure",
            (Column("measure", str, "; ".join(f"{name}: {means}" for name, (*_, means) in MEASURES.items())),),
            "the measure's own",
        ),
        Average("ranks", "position", (BLOCK_POSITION,), "directions"),
        Average("spectra", "position x singular value", (BLOCK_POSITION, VECTOR), "σ_i / σ₀"),
        Average(
            "depths", "part x span x layer: stable rank of all tokens together", (PART, SPAN, LAYER, DEPTH),
            "directions",
        ),
        Average(
            "emergence", "part x span x layer: whether the prediction was the top token of U₀ of all tokens by then",
            (PART, SPAN, LAYER, DEPTH), "share of prompts",
        ),
        Average(
            "shares", "kind of contribution: its share of the predicted token's logit",
            (KIND, PART.but(meaning="of layers: their attn, mlp or mixer; missing: all of the kind", missing=True)),
            "share of the logit",
        ),
        Average(
            "overlaps", "another model or convention: top tokens of first vectors that they share on the same prompt",
            (OTHER, OTHER_CONVENTION,
             Column("of", str, "whose top tokens: together (all tokens), last (the last token), tokens (each one)"),
             SIDE),
            "tokens of both, of the tokens of either",
            (Column("chance", float, "mean of the same with the other's top tokens on another prompt",
                    "tokens of both, of either"),),
        ),
        Average(
            "conventions", "another convention of the model",
            (OTHER.but(meaning="the other convention"),
             Column("of", str, "together (all tokens), or tokens (the mean over each token's block)"),
             Column("measure", str, "distance, ‖J - J'‖_F / ‖J‖_F, or cosine, ⟨J, J'⟩ / (‖J‖_F ‖J'‖_F)")),
            "the measure's own",
        ),
    )
}  # fmt: skip
"""Every table of averages, by the field of a summary that holds it."""

COVERAGE = Table(
    "coverage",
    "model x convention x precision x category",
    (
        MODEL,
        CONVENTION,
        Column("precision", str, "the type in which the linear system was evaluated"),
        CATEGORY,
        Column("prompts", int, "how many prompts were studied", "prompts"),
        Column("failed", int, "how many of them failed; averages leave them out", "prompts"),
        Column("least", int, "fewest tokens of a prompt; missing where all failed", "tokens", missing=True),
        Column("most", int, "most tokens of a prompt", "tokens", missing=True),
        Column("forward_equal", int, "runs whose recorded pass equals the plain one, bit for bit", "prompts"),
        Column("reconstruction", float, "the largest ‖J x + b - y‖ / ‖y‖ of a run", RELATIVE),
        Column("affinity", float, "the largest distance of a frozen network from affine", RELATIVE),
    ),
)

FAILURES = Table(
    "failures",
    "a reason why prompts failed: model x convention x category x error",
    (
        MODEL,
        CONVENTION,
        CATEGORY.but(meaning="the prompts' category; missing: they have none"),
        Column("error", str, "the kind of error"),
        Column("reason", str, "what it says"),
        Column("prompts", int, "how many prompts", "prompts"),
        Column("example", str, "the first of them"),
    ),
)


@dataclass(frozen=True, eq=False, repr=False)
class Summary(Result):
    """Statistics over the prompts of one study or several, by model, convention and category of prompt.

    A row of an average has the number of prompts `n`, the `mean`, its 95 % interval (`low`, `high`, and `interval`: the
    method, or why there is none) and quantiles. `category` is missing in rows about all prompts. If an analysis was not
    run, its table is empty.

    Attributes:
        studies: The names of the studies' folders.
        seed: The seed of the resamples.
        resamples: How many resamples each interval used.
        absent: The analyses that were not run.
        coverage: How many prompts there were, and their worst certificates.
        failures: Why prompts failed.
        measures: Averages of the measures.
        ranks: Averages of stable ranks by position.
        spectra: Averages of singular values.
        depths: Averages of stable ranks by layer.
        emergence: The share of prompts whose prediction was the top token of U₀ by each layer.
        shares: Averages of shares of the predicted logit.
        overlaps: Averages of the top tokens that models or conventions share.
        conventions: Averages of the distances between conventions.

    """

    schema = (AVERAGES["measures"].table, COVERAGE, FAILURES, *[own.table for own in AVERAGES.values()][1:])

    studies: list[str]
    seed: int
    resamples: int
    absent: list[str]
    coverage: pd.DataFrame
    failures: pd.DataFrame
    measures: pd.DataFrame
    ranks: pd.DataFrame
    spectra: pd.DataFrame
    depths: pd.DataFrame
    emergence: pd.DataFrame
    shares: pd.DataFrame
    overlaps: pd.DataFrame
    conventions: pd.DataFrame

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        prompts = count(int(self.coverage["prompts"].max()), "prompt") if "prompts" in self.coverage else "no prompts"
        left = [f"without {', '.join(self.absent)}"] if self.absent else []
        return [", ".join(self.studies), prompts, count(self.resamples, "resample"), *left]

    @property
    def runs(self) -> pd.DataFrame:
        """The coverage of all prompts: a row for each model, convention and precision."""
        return self.coverage[self.coverage["category"].isna()]

    def common_positions(self, category: str | None = None) -> list[int]:
        """The positions with enough prompts to be shown.

        Args:
            category: The category of the prompts; by default all.

        Returns:
            The positions whose number of prompts is at least a twentieth of the largest.

        """
        rows = self.ranks[self.ranks["position"].notna()]
        rows = rows[rows["category"].isna() if category is None else rows["category"] == category]
        most = rows.groupby("position")["n"].max()
        return sorted(int(position) for position in most.index[most >= most.max() / 20])

    def tables(self) -> dict[str, pd.DataFrame]:
        """The measures, the coverage, the failures, and the other averages that have rows."""
        every = {own.table.name: getattr(self, name) for name, own in AVERAGES.items()}
        first = self.described("summary_measures").name
        there = {name: table for name, table in every.items() if len(table)}
        return {first: every[first], COVERAGE.name: self.coverage, FAILURES.name: self.failures, **there}

    def about(self) -> dict[str, Any]:
        """The studies, the number of runs, the settings of the intervals, and the analyses that were not run."""
        counts = {name: int(self.runs[column].sum()) for name, column in (("runs", "prompts"), ("failed", "failed"))}
        how = {"seed": self.seed, "resamples": self.resamples, "level": LEVEL}
        return {"studies": self.studies, **counts, **how, "absent": self.absent}

    def save(self, folder: str | Path) -> None:
        """Write summary.json, all tables (.parquet and .csv) and columns.csv to a folder.

        Args:
            folder: The folder, which must not hold a study.

        Raises:
            BadArgument: The folder holds a study.
            OutputFailed: The folder can't be written to. No partial files are left.

        """
        refuse_study(folder)
        super().save(folder)

    def report(self, path: str | Path) -> None:
        """Write the summary as one HTML page that works offline.

        Args:
            path: The file.

        Raises:
            OutputFailed: The file can't be written.

        """
        from secant.results.page import SUMMARY, contents, write

        categories = [None, *self.coverage["category"].dropna().unique()]
        about = {**self.about(), "positions": [[category, self.common_positions(category)] for category in categories]}
        tables = [(self.described(name), frame) for name, frame in self.tables().items()]
        write(path, SUMMARY, contents(about, tables))

    def view(self) -> View:
        """The view: how many prompts there were, the averages with their intervals, and why prompts failed."""
        about = self.about()
        failed = f", {about['failed']} failed" if about["failed"] else ""
        facts = {"studies": ", ".join(self.studies), "runs": f"{about['runs']}{failed}"}
        grids = [self._averages()]
        same = self.overlaps[self.overlaps["category"].isna() & (self.overlaps["of"] == "together")]
        if len(same):
            names = ("model", "convention", "other", "other_convention")
            lines = [
                ["{}, {} and {}, {}".format(*(row[name] for name in names)), _mean(row, False), row["chance"]]
                for row in same.to_dict("records")
            ]
            columns = [Shown("top tokens in common", most=60), Shown("", "number"), Shown("on other prompts", "number")]
            grids.append(Grid(columns, lines))
        warnings = [
            f"{row['prompts']} failed with {row['model']}, {row['convention']}: {row['reason']}"
            for row in self.failures.to_dict("records")
        ]
        notes = [
            "Means over prompts, with 95 % bootstrap intervals in brackets. A single prompt and equal values have no "
            "interval."
        ]
        if self.absent:
            notes.append(f"Analyses that were not run: {', '.join(self.absent)}.")
        return View(f"Summary of {', '.join(self.studies)}", facts, grids, notes, warnings)

    def _averages(self) -> Grid:
        """The averages: a line for each, a column for each model and convention."""
        subjects = list(dict.fromkeys(zip(self.coverage["model"], self.coverage["convention"], strict=True)))

        def own(of: pd.DataFrame, subject: tuple[str, str], /, **keys: Any) -> pd.DataFrame:
            rows = of[(of["model"] == subject[0]) & (of["convention"] == subject[1])]
            for key, value in keys.items():
                rows = rows[rows[key].isna() if value is None else rows[key] == value]
            return rows

        counts = [own(self.runs, subject)[["prompts", "failed"]].sum() for subject in subjects]
        lines: list[list[str | None]] = [
            ["prompts", *(f"{c['prompts']}" + (f", {c['failed']} failed" if c["failed"] else "") for c in counts)]
        ]

        def line(label: str, rows: pd.DataFrame, percent: bool, /, **keys: Any) -> None:
            found = [own(rows, subject, category=None, **keys).to_dict("records") for subject in subjects]
            cells = [_mean(several[0], percent) if several else None for several in found]
            if any(cells):
                lines.append([label, *cells])

        for measure, (label, percent, _) in MEASURES.items():
            line(label, self.measures, percent, measure=measure)
        line("stable rank, first token", self.ranks, False, position=0)
        line("stable rank, all tokens", self.ranks, False, position=None)
        for kind in ("token", "constant", "embed", "layer", "outside"):
            line(f"share of the logit, {kind}", self.shares, True, kind=kind, part=None)
        for other, of in dict.fromkeys(zip(self.conventions["other"], self.conventions["of"], strict=True)):
            line(f"distance from {other}, {of}", self.conventions, True, other=other, of=of, measure="distance")
        headings = [Shown(f"{model}, {convention}", "number", most=27) for model, convention in subjects]
        return Grid([Shown(""), *headings], lines, keep=1)


def _mean(row: Mapping[Hashable, Any], percent: bool) -> str:
    """A mean, and its interval if there is one."""
    small = 0 < abs(row["mean"]) < 1e-3
    mean, low, high = (
        f"{v:.0%}" if percent else f"{v:.1e}" if small else f"{v:.3g}" for v in (row["mean"], row["low"], row["high"])
    )
    return mean if pd.isna(row["low"]) else f"{mean} [{low}, {high}]"
