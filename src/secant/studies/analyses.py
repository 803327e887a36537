"""The analyses of a study: a function for each, next to the tables that it fills.

To add an analysis, write a function under `@analysis`. To add a column, add a `Column` to its table and a value to its
rows. `secant study --help` reads the names of the analyses from this file without importing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd
from torch import Tensor

from secant.analyses.attribution import CONTRIBUTIONS
from secant.analyses.case import Case
from secant.analyses.frames import SINGULAR_VALUES, WORDS
from secant.errors import NoRule, NotExact
from secant.linearize.conventions import CONVENTIONS
from secant.linearize.run import freeze
from secant.numeric import wide
from secant.operators.spectrum import STABLE_RANK
from secant.results.columns import BLOCK_POSITION, BLOCK_TOKEN, RECONSTRUCTION, RELATIVE
from secant.results.schema import Column, Table
from secant.stream.depths import COUPLING, FIRST_SEEN, FROBENIUS, LAYERS
from secant.stream.words import SIDES, ranked


@dataclass(frozen=True)
class Settings:
    """The settings of a study: all that a row depends on besides the model and the prompt.

    Attributes:
        convention: The label of the convention.
        precision: The type in which the linear system is evaluated; None: the model's own.
        analyses: The names of the analyses.
        k: How many singular triplets of each token's block are kept, and of all blocks together.
        top: How many top tokens of each singular vector are kept.
        seed: The seed of the random number generators.

    """

    convention: str = "gate"
    precision: str | None = None
    analyses: tuple[str, ...] = ("reconstruction", "spectra", "stable_rank", "attribution", "words")
    k: int = 4
    top: int = 8
    seed: int = 0


Rows: TypeAlias = Sequence[Sequence[Any]] | Sequence[dict[str, Any]] | pd.DataFrame
"""Rows of a table, as `Table.frame` takes them."""


@dataclass(frozen=True)
class Analysis:
    """An analysis of a study.

    Attributes:
        name: Its name, which `study` takes.
        rows: A function of a case that yields the rows of each table, in the order of `writes`.
        writes: Its tables, without the columns that every row of a study begins with.

    """

    name: str
    rows: Callable[[Case], Iterator[Rows]]
    writes: tuple[Table, ...]

    def __call__(self, case: Case) -> dict[str, pd.DataFrame]:
        """Analyse a prompt.

        Args:
            case: The prompt, frozen.

        Returns:
            The tables by name.
        """
        return {table.name: table.frame(rows) for table, rows in zip(self.writes, self.rows(case), strict=True)}


ANALYSES: dict[str, Analysis] = {}
"""Every analysis by its name, which is the name of its function."""


def analysis(*writes: Table) -> Callable[[Callable[[Case], Iterator[Rows]]], Analysis]:
    """Register a function as an analysis.

    Args:
        writes: The tables that it fills. Several analyses may fill the same table.

    Returns:
        A decorator that turns the function into an `Analysis`.
    """

    def registered(rows: Callable[[Case], Iterator[Rows]]) -> Analysis:
        return ANALYSES.setdefault(rows.__name__, Analysis(rows.__name__, rows, writes))

    return registered


OF_BLOCK = (BLOCK_POSITION, BLOCK_TOKEN)
"""Which block of J a row is of."""


@analysis(
    Table(
        "reconstructions",
        "a prompt",
        (
            RECONSTRUCTION,
            Column("ordinary", float, "‖J' x - y‖ / ‖y‖ with the ordinary Jacobian J'", RELATIVE),
            Column("bias", float, "‖b‖ / ‖y‖: what the model's own constants contribute to y", RELATIVE),
        ),
    )
)
def reconstruction(case: Case) -> Iterator[Rows]:
    """The reconstruction error of y = J x + b, and that of the ordinary Jacobian."""
    c = case.run.certificate
    yield [(c.reconstruction, c.ordinary, c.constants)]


@analysis(SINGULAR_VALUES.but(row="a singular value of a token's block, or of all together", after=OF_BLOCK))
def spectra(case: Case) -> Iterator[Rows]:
    """Singular values of each token's block, and of all together."""
    yield [{"position": t, "token": token, **row} for t, token, f in case.each() for row in f.spectrum()]


@analysis(
    Table(
        "stable_ranks",
        "a token's block, or all together",
        (
            *OF_BLOCK,
            STABLE_RANK,
            FROBENIUS,
            Column("spread", float, "standard error of the stable rank; 0 where J was formed", "directions"),
        ),
    )
)
def stable_rank(case: Case) -> Iterator[Rows]:
    """Stable ranks of each token's block, and of all together."""
    yield [(t, token, f.stable_rank, f.frobenius, f.stable_rank_spread) for t, token, f in case.each()]


@analysis(LAYERS, FIRST_SEEN.but(after=[Column("layer_count", int, "how many layers the model has", "layers")]))
def layers(case: Case) -> Iterator[Rows]:
    """Stable ranks and singular values at every depth, and the first layer whose top token is the prediction."""
    found = case.every_layer
    table = found.to_pandas()
    missing = {f"sigma_{i}" for i in range(case.k)} - {*table.columns}
    yield table.assign(
        **dict.fromkeys(sorted(missing), float("nan"))
    )  # the columns must not depend on the model's width
    yield found.first_seen().assign(layer_count=len(case.run.inside.layers))


@analysis(COUPLING)
def coupling(case: Case) -> Iterator[Rows]:
    """How far each layer's first singular vectors are those of the next layer."""
    yield case.every_layer.coupling()


@analysis(CONTRIBUTIONS)
def attribution(case: Case) -> Iterator[Rows]:
    """The contributions of tokens and constants to the predicted logit."""
    yield case.attribution().table


@analysis(CONTRIBUTIONS)
def parts(case: Case) -> Iterator[Rows]:
    """The contributions of embeddings, layers, heads, tokens and constants to the predicted logit."""
    yield case.attribution(parts=True).table


@analysis(
    WORDS.but(
        row="a decoded token of a singular vector of a token's block, or of all together",
        after=(
            *OF_BLOCK,
            Column("predicted", bool, "whether it is the predicted token"),
            Column("own", bool, "whether it is the position's own token"),
        ),
    )
)
def words(case: Case) -> Iterator[Rows]:
    """The top tokens of the singular vectors of each token's block, and of the left ones of all blocks together."""
    predicted = case.run.prediction[0].id
    rows = []
    for side in SIDES:
        some = [(t, token, f) for t, token, f in case.each() if t is not None or side == "output"]
        for (t, token, f), decoded in zip(some, case.words([f for *_, f in some], side), strict=True):
            own = None if t is None else case.run.ids[t]
            rows += [
                {"position": t, "token": token, **vector, "side": side, **word,
                 "predicted": word["id"] == predicted, "own": word["id"] == own}
                for vector, best in zip(f.vectors(), decoded, strict=True)
                for word in ranked(best)
            ]  # fmt: skip
    yield rows


@analysis(
    Table(
        "conventions",
        "a token's block, or all together, and another convention",
        (
            Column("other", str, "the other convention, of those that have names"),
            BLOCK_POSITION,
            Column(
                "distance",
                float,
                "‖J - J'‖_F / ‖J‖_F; missing where J is zero, or the other one can't be computed",
                RELATIVE,
            ),
            Column(
                "cosine",
                float,
                "⟨J, J'⟩ / (‖J‖_F ‖J'‖_F); missing where one is zero, or the other one can't be computed",
                "cosine",
            ),
        ),
    )
)
def conventions(case: Case) -> Iterator[Rows]:
    """The distance of J from the J of each other convention, for each token's block and for all together.

    A convention that the model can't run in has one row, without a distance.
    """
    own, c = wide(case.op.dense()), case.run.certificate
    rows: list[tuple[Any, ...]] = []
    for other in CONVENTIONS:
        if other != c.convention:
            try:
                run = freeze(case.run.lm, case.run.ids, convention=other, precision=c.precision, seed=case.seed)
            except (NotExact, NoRule):
                rows.append((other, None, None, None))
                continue
            J = wide(run.operator().dense())
            pairs = [*((t, own[:, t], J[:, t]) for t in range(own.shape[1])), (None, own, J)]
            rows += [(other, t, *_distance(mine, theirs)) for t, mine, theirs in pairs]
    yield rows


WRITERS = {
    table.name: [other.name for other in ANALYSES.values() if table.name in {own.name for own in other.writes}]
    for each in ANALYSES.values()
    for table in each.writes
}
"""The analyses that write each table. The others write all rows of the first one, and further rows."""


def _distance(one: Tensor, other: Tensor) -> tuple[float | None, float | None]:
    """‖A - B‖ / ‖A‖, and the cosine of A and B; None if one is zero."""
    norm, length = one.norm().item(), other.norm().item()
    distance = (one - other).norm().item() / norm if norm else None
    cosine = (one * other).sum().item() / (norm * length) if norm and length else None
    return distance, cosine
