"""The top tokens of directions: their columns in tables, and what random directions decode to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Tokens, View
from secant.text import count

Side = Literal["output", "input"]
Metric = Literal["dot", "cosine"]

METRICS: tuple[Metric, Metric] = ("cosine", "dot")
"""How a direction scores tokens: by cosine, the default, or by dot product, which is a logit at the output."""

SIDES: tuple[Side, Side] = ("output", "input")
"""The spaces of directions: the final hidden state, and the embeddings."""

SIDE = Column("side", str, "output (left singular vectors: what is written) or input (right ones: what is read)")
RANK = Column("rank", int, "rank among the direction's top tokens, from 0")
WORD = Column("word", str, "the decoded token's text", show="token")
WORD_ID = Column("id", int, "the decoded token's id in the vocabulary")
SCORE = Column(
    "score", float, "cosine between the direction and the token's vector, less the mean of all tokens' vectors",
    "cosine",
)  # fmt: skip
Z = Column(
    "z", float, "how far the score is above the mean score of this rank over random directions",
    "standard deviations",
)  # fmt: skip

NULL = Table(
    "null",
    "a rank among the top tokens of random unit directions",
    (
        SIDE.but(meaning="output or input: the side on which directions are decoded"),
        RANK.but(meaning="rank among the top tokens, from 0"),
        Column("mean", float, "mean of the score at this rank over random directions", "cosine"),
        Column("std", float, "its standard deviation", "cosine"),
    ),
)
NULL_WORDS = Table(
    "null_words",
    "a top token of a random unit direction",
    (
        Column("direction", int, "which random direction, from 0"),
        RANK,
        WORD,
        WORD_ID,
        SCORE.but(meaning="score of the token by the direction, in the null's metric"),
    ),
)

MOST_FREQUENT = 8
"""The number of most frequent top tokens of random directions that the view of a null shows."""


@dataclass(frozen=True)
class Word:
    """A top token of a direction.

    Attributes:
        token: Its text.
        id: Its id in the vocabulary.
        score: Its score: a cosine by default.
        z: How many standard deviations its score is above the mean score of its rank over random directions; None
            without a null.

    """

    token: str
    id: int
    score: float
    z: float | None = None


def ranked(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Returns the columns of a direction's top tokens in tables: rank (from 0), word, id, score and z.

    Args:
        words: The top tokens, best first.

    """
    return [{"rank": i, "word": w.token, "id": w.id, "score": w.score, "z": w.z} for i, w in enumerate(words)]


@dataclass(frozen=True, eq=False, repr=False)
class Null(Result):
    """What random unit directions decode to.

    Attributes:
        side: "output" or "input".
        metric: "dot" or "cosine".
        centered: Whether the mean of all tokens' vectors is subtracted from each.
        keep: Which token texts are scored; None for all.
        top: The number of top tokens of each direction.
        mean: The mean score of each rank over the directions.
        std: Its standard deviation.
        words: The top tokens of each direction.

    """

    schema = (NULL, NULL_WORDS)

    side: Side
    metric: Metric
    centered: bool
    keep: Callable[[str], bool] | None
    top: int
    mean: Float[Tensor, " top"]
    std: Float[Tensor, " top"]
    words: list[list[Word]]

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        return [self.side, self.metric, count(len(self.words), "random direction"), f"mean {self.mean[0]:.3g}"]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Returns `null` (the mean score of each rank) and `null_words` (the top tokens of each direction)."""
        scores = zip(self.mean.tolist(), self.std.tolist(), strict=True)
        rows = [(i, rank, w.token, w.id, w.score) for i, own in enumerate(self.words) for rank, w in enumerate(own)]
        return {
            "null": NULL.frame([(self.side, rank, mean, std) for rank, (mean, std) in enumerate(scores)]),
            "null_words": NULL_WORDS.frame(rows),
        }

    def about(self) -> dict[str, Any]:
        """Returns the settings, and the number of directions."""
        how = {"side": self.side, "metric": self.metric, "centered": self.centered, "top": self.top}
        return {**how, "filtered": self.keep is not None, "samples": len(self.words)}

    def view(self) -> View:
        """Shows the mean score of each rank, and the tokens that rank first most often."""
        first = Counter(own[0].token for own in self.words if own).most_common(MOST_FREQUENT)
        facts = {
            "directions": len(self.words),
            "compared by": f"{'logit' if self.metric == 'dot' else 'cosine'}{', centred' if self.centered else ''}",
            "most often first": Tokens(token for token, _ in first),
        }
        grid = Grid.of(NULL, self.tables()["null"], ("rank", "mean|bar", "std"))
        return View(f"What random directions decode to, {self.side} side", facts, [grid])
