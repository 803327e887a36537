"""Decoding directions to tokens, by cosine to the tokens' vectors.

The vector of a token is its row of the head's weight on the output side, and its embedding on the input side. A
direction scores each token by the cosine between the direction and the token's vector, less the mean of all vectors:
what all tokens share says nothing of any, and long vectors do not win by their length. `decode` returns the tokens of
highest score; it can also score by the logit W u, with the head's weight W, as the paper does. `null` returns what
random directions decode to, from which `decode` computes z-scores: how far a score is above the mean score of the same
rank, in standard deviations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from secant.errors import BadArgument, checked, integer, one_of, seeded
from secant.linearize.run import POSITION, TOKEN
from secant.memory import stopping_point
from secant.model.lm import LM
from secant.numeric import lengths
from secant.operators.decomposition import SIGMA, SVD
from secant.operators.operator import Operator
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Shown, Tokens, View, cells

Side = Literal["output", "input"]
Metric = Literal["dot", "cosine"]

METRICS: tuple[Metric, Metric] = ("cosine", "dot")
"""How directions score tokens: by a cosine, which is the default, or by a product, which is a logit at the output."""

SIDES: tuple[Side, Side] = ("output", "input")
"""The spaces of directions: the final hidden state, and the embeddings."""

BATCH_SIZE = 64
"""The most directions in a batch."""

ROWS = 2**9
"""Tokens whose vectors are centred at once."""

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

MOST_FREQUENT = 8
"""How many of the most frequent top tokens of random directions the view of a null shows."""


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


@dataclass(frozen=True, eq=False)
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
    words: list[list[Word]] = field(repr=False)

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


@checked
def decode(
    lm: LM,
    directions: Float[Tensor, "d k"] | Float[Tensor, " d"],
    side: Side,
    top: int = 8,
    *,
    metric: Metric | None = None,
    centered: bool = True,
    keep: Callable[[str], bool] | None = None,
    null: Null | None = None,
) -> list[list[Word]]:
    """Returns the top tokens of each direction.

    Args:
        lm: The model.
        directions: One direction, or several as columns. They need not be unit vectors.
        side: "output" for directions of the final hidden state, which are compared with the rows of the head's weight;
            "input" for directions of the embeddings, which are compared with these.
        top: The most tokens of each direction.
        metric: "cosine", the default, by which tokens whose vector is zero are left out; or "dot", which at the output
            is the logit.
        centered: Whether the mean of all tokens' vectors is subtracted from each first. This shifts all logits equally,
            which does not change the softmax.
        keep: Which token texts are scored, for example `str.isalpha`; by default all.
        null: What random directions decode to with the same settings, from which z-scores are computed.

    Returns:
        A list for each direction, best token first; equal scores in order of id.

    Raises:
        BadArgument: The directions do not have the width of the side, the null has different settings or fewer tokens,
            or another argument is out of range.

    """
    one_of(side, SIDES, "A side")
    metric = metric or METRICS[0]
    one_of(metric, METRICS, "A metric")
    top = min(integer(top, 1, 10**9, "A direction has at least one top token", "top = "), len(_vectors(lm, side)))
    if null is not None and (
        (null.side, null.metric, null.centered, null.keep) != (side, metric, centered, keep) or null.top < top
    ):
        raise BadArgument(
            "A null must have the same side, metric, centring and filter, and at least as many tokens",
            repr(null),
            "Make one with the same arguments.",
        )
    columns = directions.detach().reshape(len(directions) if directions.ndim else 1, -1)
    scores = Scores.of(lm, side, columns.dtype, metric=metric, centered=centered, keep=keep)
    found: list[list[Word]] = []
    for some in columns.split(BATCH_SIZE, dim=1):
        stopping_point()
        found += best(*scores(some), top).words(lm, null)
    return found


@checked
def null(
    lm: LM,
    side: Side,
    top: int = 8,
    *,
    metric: Metric | None = None,
    centered: bool = True,
    keep: Callable[[str], bool] | None = None,
    samples: int = 256,
    seed: int = 0,
) -> Null:
    """Returns what random unit directions decode to.

    Args:
        lm: The model.
        side: "output" or "input", as in `decode`.
        top: The number of top tokens of each direction.
        metric: "cosine" or "dot", as in `decode`.
        centered: Whether the mean of all tokens' vectors is subtracted from each first.
        keep: Which token texts are scored; by default all.
        samples: The number of directions, at least 2.
        seed: The seed that they are drawn with.

    Raises:
        BadArgument: An argument is out of range.

    """
    samples = integer(samples, 2, 10**6, "A null requires at least two random directions", "samples = ")
    one_of(side, SIDES, "A side")
    table = _vectors(lm, side)
    width = table.shape[1]
    drawn = torch.randn(width, samples, generator=torch.Generator().manual_seed(seeded(seed)), dtype=torch.float64)
    drawn = (drawn / torch.linalg.vector_norm(drawn, dim=0)).to(torch.promote_types(table.dtype, torch.float32))
    words = decode(lm, drawn, side, top, metric=metric, centered=centered, keep=keep)
    fewest = min(map(len, words))
    scores = torch.tensor([[word.score for word in own[:fewest]] for own in words], dtype=torch.float64)
    mean, std = (scores.mean(0), scores.std(0)) if fewest else (scores[0], scores[0])
    return Null(side, metric or METRICS[0], centered, keep, top, mean, std, words)


MEANS = {
    "columns": "A column is what one element (unit) of the token's embedding writes to the final hidden state, decoded "
    "by centred cosine to the rows of the head.",
    "rows": "A row is what one element (unit) of the final hidden state is selective for in the token, decoded by "
    "centred cosine to the embeddings.",
}
"""What the columns and rows of J are."""


@dataclass(frozen=True, eq=False)
class Largest(Result):
    """The columns, or the rows, of J of largest norm, and what they decode to.

    Attributes:
        of: "columns" or "rows".
        table: A row for each top token: the rank of the column or row, the position and text of its token, its element
            (`unit`) of the embedding or of the output, its norm, and the place, word, id and score of the top token.

    """

    schema = (LARGEST_COLUMNS, LARGEST_ROWS)

    of: Literal["columns", "rows"]
    table: pd.DataFrame = field(repr=False)

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
        raise BadArgument("sc.largest finds columns or rows", repr(of), "Choose one of them.")
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


_KNOWN: ContextVar[dict[Any, tuple[Tensor | None, Tensor | None]] | None] = ContextVar("_KNOWN", default=None)


@contextmanager
def norms_kept() -> Iterator[None]:
    """Compute the norms of all tokens' vectors once in the block, in which no weights may change."""
    if _KNOWN.get() is not None:
        yield
        return
    token = _KNOWN.set({})
    try:
        yield
    finally:
        _KNOWN.reset(token)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores every token by directions of one side: by a cosine, or by a product.

    Attributes:
        table: The vector of each token, in rows.
        mean: The mean of these vectors, which is subtracted from each; None if they are not centred.
        norms: The norms of the vectors, less their mean, if scores are cosines; None otherwise.
        dropped: Which tokens are not scored; their scores are -inf. None if all are.
        side: "output" or "input".

    """

    table: Float[Tensor, "vocabulary d"] = field(repr=False)
    mean: Float[Tensor, " d"] | None = field(repr=False)
    norms: Float[Tensor, " vocabulary"] | None = field(repr=False)
    dropped: Tensor | None = field(repr=False)
    side: Side

    @classmethod
    def of(
        cls,
        lm: LM,
        side: Side,
        dtype: torch.dtype,
        *,
        metric: Metric = "cosine",
        centered: bool = True,
        keep: Callable[[str], bool] | None = None,
    ) -> Scores:
        """Returns the scores of one side of a model.

        Args:
            lm: The model.
            side: "output" or "input".
            dtype: The directions' type. Scores are computed in the wider of this and the model's, at least float32.
            metric: "cosine" or "dot", as in `decode`.
            centered: Whether the mean of all tokens' vectors is subtracted from each first.
            keep: Which token texts are scored; by default all.

        """
        table = _vectors(lm, side)
        table = table.to(torch.promote_types(torch.promote_types(table.dtype, dtype), torch.float32))
        kept = None if keep is None else torch.tensor([bool(keep(text)) for text in lm.texts[: len(table)]])
        known, key = _KNOWN.get(), (id(lm), side, table.dtype, metric, centered)
        if known is None or key not in known:
            mean = table.mean(0) if centered else None
            norms = _lengths(table, mean) if metric == "cosine" else None
            if known is not None:
                known[key] = mean, norms
        else:
            mean, norms = known[key]
        return cls(table, mean, norms, None if kept is None else ~kept.to(table.device), side)

    def __call__(self, directions: Float[Tensor, "d k"]) -> tuple[Float[Tensor, "k vocabulary"], Float[Tensor, " k"]]:
        """Returns the scores by each direction, in rows, and the norm that they are proportional to (1 for cosines).

        Args:
            directions: The directions, as columns.

        Raises:
            BadArgument: The directions do not have the width of this side.

        """
        if len(directions) != self.table.shape[1]:
            raise BadArgument(
                f"Directions on the {self.side} side have {self.table.shape[1]} elements",
                f"{len(directions)}",
                "Pass them as columns.",
            )
        columns = directions.detach().to(self.table)
        sizes = lengths(columns, 0)
        if self.norms is not None:
            columns = columns / torch.where(sizes > 0, sizes, 1)
        scores = columns.T @ self.table.T
        if self.mean is not None:
            scores -= (self.mean @ columns)[:, None]
        if self.norms is not None:  # one norm after the other: their product can underflow
            scores /= torch.where(self.norms > 0, self.norms, 1)
            scores[:, self.norms == 0] = -torch.inf
            scores[sizes == 0] = -torch.inf
            sizes = torch.ones_like(sizes)
        if self.dropped is not None:
            scores[:, self.dropped] = -torch.inf
        return scores, sizes


@dataclass(frozen=True, eq=False)
class Best:
    """The top tokens of some directions, in rows, best first; equal scores in order of id.

    Attributes:
        ids: The ids of the tokens.
        scores: Their scores; -inf where a direction has no more tokens.
        lengths: The norm that the scores of each direction are proportional to.
        ranks: How many tokens rank before one given token, for each direction; None if none was given.

    """

    ids: Int[Tensor, "n top"]
    scores: Float[Tensor, "n top"]
    lengths: Float[Tensor, " n"]
    ranks: Int[Tensor, " n"] | None = None

    def words(self, lm: LM, null: Null | None = None) -> list[list[Word]]:
        """Returns the top tokens of each direction.

        Args:
            lm: The model.
            null: What random directions decode to, for z-scores.

        """
        rows = zip(self.ids.tolist(), self.scores.tolist(), self.lengths.tolist(), strict=True)
        return [_words(lm, ids, scores, length, null) for ids, scores, length in rows]

    def rows(self, which: slice) -> Best:
        """Returns the top tokens of some of the directions.

        Args:
            which: Their places.

        """
        ranks = None if self.ranks is None else self.ranks[which]
        return Best(self.ids[which], self.scores[which], self.lengths[which], ranks)


def best(
    scores: Float[Tensor, "n vocabulary"], lengths: Float[Tensor, " n"], top: int, token: int | None = None
) -> Best:
    """Returns the top tokens of each row of scores, and the rank of one token in each.

    Args:
        scores: The scores of all tokens, a row for each direction.
        lengths: The norm that each row is proportional to.
        top: The number of top tokens.
        token: The id of the token whose rank is computed, if any.

    """
    top = min(top, scores.shape[1])
    values, ids = scores.topk(min(top + 1, scores.shape[1]), dim=1)
    last = values[:, top - 1]
    tied = (values[:, -1] == last) & (last > -torch.inf) if values.shape[1] > top else torch.zeros_like(last).bool()
    odd = (tied | values.isnan().any(1)).nonzero().flatten().tolist()
    ids, order = ids[:, :top].sort(dim=1)
    values, order = values[:, :top].gather(1, order).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    for i in odd:  # tokens tie at the last place: take the lowest ids
        own = scores[i].nan_to_num(-torch.inf, torch.inf, -torch.inf)
        values[i], ids[i] = (sorted_[:top] for sorted_ in own.sort(descending=True, stable=True))
    return Best(ids.cpu(), values.cpu(), lengths.cpu(), None if token is None else ranks_of(scores, token).cpu())


def ranks_of(scores: Float[Tensor, "n vocabulary"], token: int) -> Int[Tensor, " n"]:
    """Returns how many tokens rank before one: those with a higher score, and those with the same score and a lower id.

    Args:
        scores: The scores of all tokens, a row for each direction.
        token: The id of the token.

    """
    own = scores[:, token : token + 1]
    return (scores > own).sum(1) + (scores[:, :token] == own).sum(1)


class Decodings:
    """The top tokens of singular vectors. Each direction is decoded once, and its top tokens are cached.

    Args:
        lm: The model.
        top: The least number of top tokens to cache for each direction.
        token: The id of a token whose rank in every left singular vector is cached too.

    """

    def __init__(self, lm: LM, top: int = 8, token: int | None = None) -> None:
        self.lm, self.top, self.token = lm, top, token
        self._cached: dict[tuple[SVD, Side], Best] = {}

    def __call__(self, asked: Sequence[tuple[SVD, int]], side: Side, top: int) -> list[Best]:
        """Returns the top tokens of the first vectors of some SVDs.

        Args:
            asked: Each SVD, with the number of its vectors to decode.
            side: "output" for left singular vectors, "input" for right ones.
            top: The least number of top tokens of each vector.

        """
        top = min(max(top, self.top), len(_vectors(self.lm, side)))
        self._decode([(f, count) for f, count in asked if count], side, top)
        nothing = Best(torch.zeros(0, top, dtype=torch.long), torch.zeros(0, top), torch.zeros(0))
        return [self._cached[f, side].rows(slice(0, count)) if count else nothing for f, count in asked]

    def ranks(self, found: Sequence[SVD], token: int) -> list[int]:
        """Returns how many tokens rank before one in the first left singular vector of each SVD.

        Args:
            found: The SVDs.
            token: The id of the token.

        """
        if token == self.token:
            kept = self([(f, 1) for f in found], "output", self.top)
            return [int(own.ranks[0]) for own in kept if own.ranks is not None]
        scores, ranks = None, list[int]()
        for some in _batches(f.U[:, :1] for f in found):
            scores = scores or Scores.of(self.lm, "output", some.dtype)
            ranks += ranks_of(scores(some)[0], token).tolist()
        return ranks

    def _decode(self, asked: Sequence[tuple[SVD, int]], side: Side, top: int) -> None:
        """Decode the vectors that are not cached, or not with as many tokens."""
        todo: dict[SVD, slice] = {}
        for f, count in asked:
            kept = self._cached.get((f, side))
            if kept is None:
                todo[f] = slice(0, count)
            elif kept.ids.shape[1] < top:
                todo[f] = slice(0, max(count, len(kept.ids)))
            elif len(kept.ids) < count:
                todo[f] = slice(len(kept.ids), count)
        columns = [(f.U if side == "output" else f.V)[:, some] for f, some in todo.items()]
        scores, found = None, list[Best]()
        for some in _batches(columns):
            stopping_point()
            scores = scores or Scores.of(self.lm, side, some.dtype)
            found.append(best(*scores(some), top, self.token if side == "output" else None))
        if not found:
            return
        every, start = _joined(found), 0
        for (f, added), own in zip(todo.items(), columns, strict=True):
            new, start = every.rows(slice(start, start + own.shape[1])), start + own.shape[1]
            self._cached[f, side] = _joined([self._cached[f, side], new]) if added.start else new


def _batches(columns: Iterable[Tensor]) -> Iterator[Tensor]:
    """The columns of several matrices, in batches."""
    some: list[Tensor] = []
    for own in columns:
        some.append(own)
        if sum(c.shape[1] for c in some) >= BATCH_SIZE:
            yield from torch.cat(some, 1).split(BATCH_SIZE, dim=1)
            some = []
    if sum(c.shape[1] for c in some):
        yield from torch.cat(some, 1).split(BATCH_SIZE, dim=1)


def _joined(found: Sequence[Best]) -> Best:
    """The rows of several, concatenated."""
    ranks = [own.ranks for own in found if own.ranks is not None]
    return Best(
        torch.cat([own.ids for own in found]),
        torch.cat([own.scores for own in found]),
        torch.cat([own.lengths for own in found]),
        torch.cat(ranks) if ranks else None,
    )


def _words(lm: LM, ids: Sequence[int], scores: Sequence[float], length: float, null: Null | None) -> list[Word]:
    """The top tokens of one direction; `length` is the norm that its scores are proportional to."""
    count = next((n for n, score in enumerate(scores) if score == -torch.inf), len(scores))
    z: list[float | None] = [None] * count
    if null is not None and length > 0:
        n = min(count, len(null.mean))
        own = torch.tensor(scores[:n], dtype=torch.float64) / length
        z[:n] = ((own - null.mean[:n]) / null.std[:n]).tolist()
    texts = lm.tokens.texts(ids[:count])
    return [Word(*word) for word in zip(texts, ids, scores, z, strict=False)]


def _lengths(table: Float[Tensor, "vocabulary d"], mean: Float[Tensor, " d"] | None) -> Float[Tensor, " vocabulary"]:
    """The norms of the rows, less their mean if it is given; 0 for a row that is 0, or the mean up to rounding."""
    rounding = torch.finfo(table.dtype).eps * table.shape[1] ** 0.5
    norms = []
    for rows in table.split(ROWS):
        whole = lengths(rows, 1)
        own = whole if mean is None else lengths(rows - mean, 1)
        norms.append(torch.where((own > rounding * whole) & (whole > 0), own, 0))
    return torch.cat(norms)


def _vectors(lm: LM, side: Side) -> Float[Tensor, "vocabulary d"]:
    """The vectors of all tokens on a side: rows of the head's weight, or of the embedding."""
    return lm.unembedding if side == "output" else lm.embedding
