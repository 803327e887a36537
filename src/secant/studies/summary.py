"""What a study says as a whole: each number averaged over prompts, with a bootstrap interval, by model and convention.

Every prompt counts once: it has one number of each kind (its own mean, where it has several), and intervals are over
prompts (secant.studies.statistics). Tables are read some prompts at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset

from secant.analyses.attribution import KIND
from secant.errors import BadArgument, checked, integer, seeded
from secant.linearize.run import BLOCK_POSITION, CONVENTION, MODEL, RELATIVE
from secant.operators.decomposition import VECTOR
from secant.results.paths import paths_of
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Shown, View
from secant.stream.decode import SIDE
from secant.stream.layers import LAYER, PART, SPAN
from secant.studies import measures
from secant.studies.analyses import WRITERS
from secant.studies.folder import apart
from secant.studies.reading import SUBJECT, Studies, alike, opened
from secant.studies.statistics import LEVEL, described, statistics

Progress = Callable[[str, int, int], None]

# ------------------------------------------------------------------------------------------- what is averaged

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
    "reads_own": ("tokens' own among V₀'s", True,
                  "the share of tokens that are themselves among the top tokens of their V₀"),
    "seen": ("prediction first at some layer", True,
             "whether U₀ of all tokens decodes first to the prediction at some layer"),
    "seen_depth": ("at that share of depth", True, "the first such layer as a share of depth, where there is one"),
}  # fmt: skip
"""The measures of a prompt: how each is shown, whether as a percentage, and what it means."""


@dataclass(frozen=True)
class Average:
    """A table of statistics over prompts.

    Attributes:
        name: The field of a summary that has it.
        row: What a row is, besides the model, the convention and the category.
        keys: The columns that say so.
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
        """The names of what its numbers are of, besides the category."""
        return [*SUBJECT, *(key.name for key in self.keys)]

    @property
    def table(self) -> Table:
        """Its description."""
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
            "emergence", "part x span x layer: whether U₀ of all tokens has decoded first to the prediction by then",
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
"""Every table of averages, by the field of a summary that has it."""

COVERAGE = Table(
    "coverage",
    "model x convention x precision x category",
    (
        MODEL,
        CONVENTION,
        Column("precision", str, "the type in which the linear system was evaluated"),
        CATEGORY,
        Column("prompts", int, "how many prompts were studied", "prompts"),
        Column("failed", int, "how many of them failed; these are in no average", "prompts"),
        Column("least", int, "fewest tokens of a prompt; missing where all failed", "tokens", missing=True),
        Column("most", int, "most tokens of a prompt", "tokens", missing=True),
        Column("forward_equal", int, "runs whose recorded pass is the plain one, bit for bit", "prompts"),
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


@dataclass(frozen=True, eq=False)
class Summary(Result):
    """Statistics over the prompts of one study or several, by model, convention and category of prompt.

    Each table has `n` prompts, `mean`, its 95 % interval (`low`, `high`, and by which method, or why there is none) and
    quantiles; `category` is missing where all prompts are meant, with one or without. `coverage` and `failures` say
    what there was. A table of an analysis that was not asked for is empty, and `absent` names it.
    """

    schema = (AVERAGES["measures"].table, COVERAGE, FAILURES, *[own.table for own in AVERAGES.values()][1:])

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

    def tables(self) -> dict[str, pd.DataFrame]:
        """The measures, what there was, and the averages of those analyses that there is any of."""
        every = {own.table.name: getattr(self, name) for name, own in AVERAGES.items()}
        first = self.described("summary_measures").name
        there = {name: table for name, table in every.items() if len(table)}
        return {first: every[first], COVERAGE.name: self.coverage, FAILURES.name: self.failures, **there}

    def about(self) -> dict[str, Any]:
        """The studies, how many runs there were, how intervals were found, and which analyses were not asked for."""
        counts = {name: int(self.runs[column].sum()) for name, column in (("runs", "prompts"), ("failed", "failed"))}
        how = {"seed": self.seed, "resamples": self.resamples, "level": LEVEL}
        return {"studies": self.studies, **counts, **how, "absent": self.absent}

    def save(self, folder: str | Path) -> None:
        """Write summary.json, all tables (.parquet and .csv) and columns.csv to a folder.

        Args:
            folder: Where to; not a study's.

        Raises:
            BadArgument: The folder is a study's.
            OutputFailed: The folder can't be written to. Nothing half-written is left behind.

        """
        apart(folder)
        super().save(folder)

    def report(self, path: str | Path) -> None:
        """Write one page of HTML with all of it; it needs no network.

        Args:
            path: The file.

        Raises:
            SecantError: plotly is not installed.
            OutputFailed: The file can't be written.

        """
        from secant.results.page import SUMMARY, write

        categories = [None, *self.coverage["category"].dropna().unique()]
        about = {**self.about(), "positions": [[category, self.common_positions(category)] for category in categories]}
        write(path, SUMMARY, about, [(self.described(name), frame) for name, frame in self.tables().items()])

    def view(self) -> View:
        """How many prompts there were, what they say on average, with intervals, and why some failed."""
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
        notes = ["Means over prompts, in brackets their 95 % bootstrap interval; none where there is one prompt or all "
                 "are alike."]  # fmt: skip
        if self.absent:
            notes.append(f"Not asked for: {', '.join(self.absent)}.")
        return View(f"Summary of {', '.join(self.studies)}", facts, grids, notes, warnings)

    def _averages(self) -> Grid:
        """A line for each number, a column for each model and convention."""
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
    """A mean and its interval, where there is one."""
    small = 0 < abs(row["mean"]) < 1e-3
    mean, low, high = (
        f"{v:.0%}" if percent else f"{v:.1e}" if small else f"{v:.3g}" for v in (row["mean"], row["low"], row["high"])
    )
    return mean if pd.isna(row["low"]) else f"{mean} [{low}, {high}]"


# ------------------------------------------------------------------------------------------- averaging


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
    absent = sorted({WRITERS[table][0] for table in TAKEN if asked.isdisjoint(WRITERS[table])})
    return Summary(
        [study.folder.name for study in studies.studies], seed, resamples, absent, coverage, failures, **found
    )


def _with_chance(
    rows: Sequence[dict[str, Any]], values: dict[str, pd.DataFrame], seed: int
) -> Iterable[dict[str, Any]]:
    """Rows of overlaps with what chance gives, which has no interval of its own."""
    keys = AVERAGES["overlaps"].names
    chance = described(values["chance"], keys, seed, 100) if "chance" in values else []
    means = {tuple(row[key] for key in (*keys, "category")): row["mean"] for row in chance}
    for row in rows:
        yield {**row, "chance": means.get(tuple(row[key] for key in (*keys, "category")))}


Numbers = Callable[[pd.DataFrame], dict[str, pd.DataFrame]]
"""The numbers of some prompts that rows of a study's table give, by the table that they are averaged in."""


def _as_they_are(average: str, column: str) -> Numbers:
    """The numbers of a column."""
    return lambda rows: {average: rows.rename(columns={column: "value"})}


def _emerged(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    curve, seen = measures.emerged(rows)
    return {"emergence": curve, "measures": seen}


def _decoded(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    shared = measures.overlaps(rows)
    chance = shared.rename(columns={"value": "overlap", "chance": "value"})
    return {"measures": measures.decoded(rows), "overlaps": shared, "chance": chance}


@dataclass(frozen=True)
class Taken:
    """What is taken from a table of a study: which columns, of which rows, and the numbers that they give."""

    columns: tuple[str, ...]
    numbers: Numbers
    condition: Any = None


ALL_TOKENS = pyarrow.dataset.field("position").is_null()
FIRST_VECTOR = pyarrow.dataset.field("vector") == 0
SCALARS = ("reconstruction", "ordinary", "bias")

TAKEN: dict[str, Taken] = {
    "reconstructions": Taken(SCALARS, lambda rows: {"measures": measures.scalars(rows, *SCALARS)}),
    "stable_ranks": Taken(("position", "stable_rank"), _as_they_are("ranks", "stable_rank")),
    "singular_values": Taken(("position", "vector", "normalized"), _as_they_are("spectra", "normalized")),
    "layers": Taken(("layer", "part", "span", "stable_rank"), _as_they_are("depths", "stable_rank"), ALL_TOKENS),
    "first_seen": Taken(("part", "span", "layer", "layer_count"), _emerged, ALL_TOKENS),
    "words": Taken(("position", "token", "side", "word", "predicted", "own"), _decoded, FIRST_VECTOR),
    "contributions": Taken(("kind", "name", "contribution"), lambda rows: {"shares": measures.shares(rows)}),
    "conventions": Taken(
        ("other", "position", "distance", "cosine"), lambda rows: {"conventions": measures.distances(rows)}
    ),
}
"""What is taken from each table."""


def _values(studies: Studies, report: Progress) -> dict[str, pd.DataFrame]:
    """One number of each kind for each prompt, by the table that it is averaged in; those that there are."""
    found: dict[str, list[pd.DataFrame]] = defaultdict(list)
    parts = list(studies.parts())
    for done, prompts in enumerate(parts):
        report("prompts", done, len(parts))
        for table, taken in TAKEN.items():
            rows = studies.read(table, taken.columns, prompts, taken.condition)
            for name, values in (taken.numbers(rows) if len(rows) else {}).items():
                if len(values):
                    found[name].append(values)
    report("prompts", len(parts), len(parts))
    whole = {name: pd.concat(tables) for name, tables in found.items()}
    if "depths" in whole:
        table = whole["depths"]
        count = table.groupby(SUBJECT)["layer"].transform("max") + 1
        whole["depths"] = table.assign(depth=(table["layer"] + 1) / count)
    return whole


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
    coverage = pd.concat([COVERAGE.frame(table.reset_index()) for table in every], ignore_index=True)
    bad = rows[rows["failed"]]
    failures = bad.groupby([*SUBJECT, "category", "error", "reason"], dropna=False, sort=False).agg(
        prompts=("prompt", "size"), example=("text", "first")
    )
    return coverage, FAILURES.frame(failures.reset_index())
