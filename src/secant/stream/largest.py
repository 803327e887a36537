"""The largest columns and rows of J, and what they decode to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch

from secant.errors import BadArgument, checked, integer, quoted
from secant.model.lm import LM
from secant.operators.operator import Operator
from secant.operators.spectrum import SIGMA
from secant.results.columns import POSITION, TOKEN
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Shown, Tokens, View, cells
from secant.stream.decode import decode
from secant.stream.words import RANK, SCORE, WORD, WORD_ID

LARGEST_COLUMNS = Table(
    "largest_columns",
    "a top token of one of the largest columns of J",
    (
        Column("rank", int, "which column, from 0, largest norm first"),
        POSITION,
        TOKEN.but(meaning="the token's text; missing if the operator has no prompt", missing=True),
        Column("unit", int, "which element of the token's embedding, from 0"),
        Column("norm", float, "norm of the column", SIGMA),
        RANK.but(name="place", meaning="rank among the column's top tokens, from 0"),
        WORD,
        WORD_ID,
        SCORE.but(meaning="cosine between the column and the token's row of the head, less the mean of all rows"),
    ),
)
LARGEST_ROWS = LARGEST_COLUMNS.but(
    "largest_rows",
    "a top token of one of the largest rows of a block of J",
    after=(
        Column("rank", int, "which row, from 0, largest norm first"),
        Column("unit", int, "which element of the output, from 0"),
        Column("norm", float, "norm of the row", SIGMA),
        RANK.but(name="place", meaning="rank among the row's top tokens, from 0"),
        SCORE.but(meaning="cosine between the row and the token's embedding, less the mean of all embeddings"),
    ),
)

MEANS = {
    "columns": "A column is what one element (unit) of the token's embedding writes to the final hidden state, decoded "
    "by centred cosine to the rows of the head.",
    "rows": "A row is what one element (unit) of the final hidden state is selective for in the token, decoded by "
    "centred cosine to the embeddings.",
}
"""The note on what columns and rows of J are."""


@dataclass(frozen=True, eq=False, repr=False)
class Largest(Result):
    """The columns, or the rows, of J of largest norm, and what they decode to.

    Attributes:
        of: "columns" or "rows".
        table: A row for each top token: the rank of the column or row, the position and text of its token, its element
            (`unit`) of the embedding or of the output, its norm, and the place, word, id and score of the top token.

    """

    schema = (LARGEST_COLUMNS, LARGEST_ROWS)

    of: Literal["columns", "rows"]
    table: pd.DataFrame

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        kept = self.table["rank"].nunique()
        return [f"{kept} {self.of} of J", f"norms {self.table['norm'].max():.3g} to {self.table['norm'].min():.3g}"]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns its table, `largest_columns` or `largest_rows`."""
        return {f"largest_{self.of}": self.table}

    def about(self) -> dict[str, Any]:
        """Returns whether these are columns or rows."""
        return {"of": self.of}

    def view(self) -> View:
        """Shows each column or row: its place, its norm, and its top tokens."""
        return View("", grids=[self.grid()])

    def grid(self, most: int | None = None) -> Grid:
        """Returns a row for each column or row of J: its place, its norm, and its top tokens.

        Args:
            most: The most rows that are shown; by default all.

        """
        groups = [(own.iloc[0], Tokens(own["word"])) for _, own in self.table.groupby("rank", sort=True)]
        columns = [
            Shown("", "integer"), Shown("token", "token", most=16), Shown("unit", "integer"), Shown("norm", "number"),
            Shown("", "bar", spare=1), Shown("top tokens", "tokens"),
        ]  # fmt: skip
        rows = [[*cells(one[["position", "token", "unit", "norm"]]), one["norm"], words] for one, words in groups]
        return Grid(columns, rows[:most], f"the {len(rows[:most])} largest {self.of} of J", note=MEANS[self.of])


@checked
def largest(lm: LM, op: Operator, of: Literal["columns", "rows"] = "columns", count: int = 8, top: int = 8) -> Largest:
    """Returns the columns of J of largest norm, decoded at the output, or the rows, decoded at the input.

    A column of J is what one element of one token's embedding writes to the output. A row of a token's block J_t is
    what one element of the output is selective for (J. Golden, arXiv 2505.24293, section 4.2). J is formed.

    Args:
        lm: The model.
        op: The operator. Its output, for columns, or its input, for rows, has the width of the final hidden state or
            of the embeddings.
        of: "columns" or "rows".
        count: How many of them, largest norm first.
        top: The number of top tokens of each.

    Raises:
        BadArgument: The operator does not have the width of that side, or another argument is out of range.
        TooLarge: J does not fit in memory.

    """
    if of not in ("columns", "rows"):
        raise BadArgument("sc.largest finds columns or rows", quoted(of), "Choose one of them.")
    J = op.dense()
    d_out, T, d_in = J.shape
    vectors = J.movedim(0, 2).reshape(T * d_in, d_out) if of == "columns" else J.reshape(d_out * T, d_in)
    wide = torch.promote_types(vectors.dtype, torch.float32)
    norms = torch.linalg.vector_norm(vectors, dim=1, dtype=wide)
    norms, places = norms.sort(descending=True, stable=True)
    count = integer(count, 1, len(norms), f"There are {len(norms)} {of}", "count = ")
    words = decode(lm, vectors[places[:count]].T, "output" if of == "columns" else "input", top)
    tokens, table = op.about.get("tokens", []), []
    tokens = tokens if "token" in op.about or len(tokens) == T else None  # a composition has no tokens
    for rank, (place, norm, own) in enumerate(zip(places.tolist(), norms.tolist(), words, strict=False)):
        t, unit = divmod(place, d_in) if of == "columns" else (place % T, place // T)
        t = op.about.get("token", t)
        token = tokens[t] if tokens else None
        table += [(rank, t, token, unit, norm, r, w.token, w.id, w.score) for r, w in enumerate(own)]
    described = LARGEST_COLUMNS if of == "columns" else LARGEST_ROWS
    return Largest(of, described.frame(table))
