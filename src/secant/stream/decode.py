"""Directions as tokens: output directions through the head, input directions by cosine to the embeddings.

What a direction decodes to says little without what random directions decode to: `null` measures that, and tokens carry
a z-score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from secant.errors import BadArgument, checked, integer, one_of, seeded
from secant.linearize.run import LOGIT, POSITION, TOKEN
from secant.model.lm import LM
from secant.numeric import lengths
from secant.operators.decomposition import SIGMA, SVD
from secant.operators.operator import Operator
from secant.results.result import Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, Shown, Tokens, View, cells

Side = Literal["output", "input"]
Metric = Literal["dot", "cosine"]

METRICS: dict[str, Metric] = {"output": "dot", "input": "cosine"}
"""How a direction is compared with tokens on each side, unless another way is asked for."""

SIDES: tuple[Side, Side] = ("output", "input")
"""Where directions are: written at the output, or read at the input."""

AT_ONCE = 64
"""Directions that are decoded together."""

SIDE = Column("side", str, "output (a left singular vector: what is written) or input (a right one: what is read)")
RANK = Column("rank", int, "place among the direction's top tokens, from 0")
WORD = Column("word", str, "the decoded token's text", show="token")
WORD_ID = Column("id", int, "the decoded token's id in the vocabulary")
SCORE = Column(
    "score", float, "how well the token fits the unit vector: at the output its logit, at the input its cosine",
    "logit or cosine",
)  # fmt: skip
Z = Column(
    "z", float, "how far the score is above that of the same rank in what random directions decode to",
    "standard deviations",
)  # fmt: skip

NULL = Table(
    "null",
    "a place among the top tokens of a random unit direction",
    (
        SIDE.but(meaning="output or input: what directions are compared with"),
        RANK.but(meaning="place among the top tokens, from 0"),
        Column("mean", float, "mean of the score at this place over the random directions", "logit or cosine"),
        Column("std", float, "its standard deviation", "logit or cosine"),
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
        SCORE.but(meaning="how well the token fits the direction, by the null's metric"),
    ),
)
LARGEST_COLUMNS = Table(
    "largest_columns",
    "a top token of one of the largest columns of J, decoded through the head",
    (
        Column("rank", int, "which column, from 0, largest norm first"),
        POSITION,
        TOKEN.but(meaning="the token's text; missing where the operator belongs to no prompt", missing=True),
        Column("unit", int, "which element of the token's embedding, from 0"),
        Column("norm", float, "norm of the column", SIGMA),
        RANK.but(name="place", meaning="place among the column's top tokens, from 0"),
        WORD,
        WORD_ID,
        SCORE.but(meaning="the token's logit, from the column as it is", unit=LOGIT),
    ),
)
LARGEST_ROWS = LARGEST_COLUMNS.but(
    "largest_rows",
    "a top token of one of the largest rows of a block of J, decoded to input embeddings",
    after=(
        Column("rank", int, "which row, from 0, largest norm first"),
        Column("unit", int, "which element of the output, from 0"),
        Column("norm", float, "norm of the row", SIGMA),
        RANK.but(name="place", meaning="place among the row's top tokens, from 0"),
        SCORE.but(meaning="cosine of the row and the token's embedding", unit="cosine"),
    ),
)

COMMON = 8
"""Tokens that are shown of those that random directions decode to most often."""


@dataclass(frozen=True)
class Word:
    """A token that a direction stands for. The score is a logit at the output, a cosine at the input, or as was asked.

    `z`: how many standard deviations the score is above the same place in what random directions decode to, if a null
    was given.
    """

    token: str
    id: int
    score: float
    z: float | None = None


def ranked(words: Sequence[Word]) -> list[dict[str, Any]]:
    """What a table says of each of a direction's top tokens, best first: rank (from 0), word, id, score and z."""
    return [{"rank": i, "word": w.token, "id": w.id, "score": w.score, "z": w.z} for i, w in enumerate(words)]


@dataclass(frozen=True, eq=False)
class Null(Result):
    """What random unit directions decode to.

    Attributes:
        side: "output" or "input".
        metric: "dot" or "cosine".
        centered: Whether the mean of all tokens' vectors was subtracted.
        keep: Which token texts count; None: all.
        top: How many tokens were asked for.
        mean: Mean of the best, second-best … score over the directions.
        std: Its standard deviation.
        words: The top tokens of each random direction.

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
        """The scores to expect at each place, and the top tokens of each random direction."""
        scores = zip(self.mean.tolist(), self.std.tolist(), strict=True)
        rows = [(i, rank, w.token, w.id, w.score) for i, own in enumerate(self.words) for rank, w in enumerate(own)]
        return {
            "null": NULL.frame([(self.side, rank, mean, std) for rank, (mean, std) in enumerate(scores)]),
            "null_words": NULL_WORDS.frame(rows),
        }

    def about(self) -> dict[str, Any]:
        """The settings, and how many directions were drawn."""
        how = {"side": self.side, "metric": self.metric, "centered": self.centered, "top": self.top}
        return {**how, "filtered": self.keep is not None, "samples": len(self.words)}

    def view(self) -> View:
        """The scores to expect, and the tokens that come first most often."""
        first = Counter(own[0].token for own in self.words if own).most_common(COMMON)
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
    centered: bool = False,
    keep: Callable[[str], bool] | None = None,
    null: Null | None = None,
) -> list[list[Word]]:
    """The top tokens of each direction.

    Args:
        lm: The model.
        directions: One direction, or several as columns.
        side: "output" scores tokens by their logit W u, the head's weight times the direction; "input" by the cosine
            between the direction and their embedding.
        top: Tokens for each direction, at most.
        metric: "dot" or "cosine", instead of the side's own. Tokens whose vector is zero have no cosine and are left
            out.
        centered: Subtract the mean of all tokens' vectors first, which a softmax does not see.
        keep: Which token texts count, for instance `str.isalpha`.
        null: What random directions decode to with the same settings; it gives tokens their z.

    Returns:
        A list for each direction, best first; equal scores in order of id.

    Raises:
        BadArgument: The directions do not have the width of that side, or the null has other settings.

    """
    one_of(side, list(METRICS), "A side")
    metric = METRICS[side] if metric is None else metric
    one_of(metric, list(METRICS.values()), "A metric")
    top = min(integer(top, 1, 10**9, "A direction has some words", "top = "), len(_vectors(lm, side)))
    if null is not None and (
        (null.side, null.metric, null.centered, null.keep) != (side, metric, centered, keep) or null.top < top
    ):
        raise BadArgument(
            "A null is of the same side, metric, centring, filter, and as many words", repr(null), "Make one anew."
        )
    columns = directions.detach().reshape(len(directions) if directions.ndim else 1, -1)
    scores = Scores.of(lm, side, columns.dtype, metric=metric, centered=centered, keep=keep)
    return [words for some in columns.split(AT_ONCE, dim=1) for words in best(*scores(some), top).words(lm, null)]


@checked
def null(
    lm: LM,
    side: Side,
    top: int = 8,
    *,
    metric: Metric | None = None,
    centered: bool = False,
    keep: Callable[[str], bool] | None = None,
    samples: int = 256,
    seed: int = 0,
) -> Null:
    """What random directions decode to.

    Args:
        lm: The model.
        side: "output" or "input", as `decode` has it.
        top: Tokens for each direction.
        metric: As of `decode`.
        centered: As of `decode`.
        keep: As of `decode`.
        samples: How many directions are drawn.
        seed: The seed that they are drawn with.

    Raises:
        BadArgument: A setting is none.

    """
    samples = integer(samples, 2, 10**6, "A null takes some random directions", "samples = ")
    width = _vectors(lm, side).shape[1]
    drawn = torch.randn(width, samples, generator=torch.Generator().manual_seed(seeded(seed)), dtype=torch.float64)
    drawn = drawn / torch.linalg.vector_norm(drawn, dim=0)
    words = decode(lm, drawn, side, top, metric=metric, centered=centered, keep=keep)
    fewest = min(map(len, words))
    scores = torch.tensor([[word.score for word in own[:fewest]] for own in words], dtype=torch.float64)
    return Null(side, metric or METRICS[side], centered, keep, top, scores.mean(0), scores.std(0), words)


@dataclass(frozen=True, eq=False)
class Largest(Result):
    """The columns (or rows) of J of largest norm, and what they decode to.

    Attributes:
        of: "columns" or "rows".
        table: A row for each top token: rank of the column (or row), its token's position and text, its unit (of the
            input, or of the output), its norm, and place, word, id and score of the top token.

    """

    schema = (LARGEST_COLUMNS, LARGEST_ROWS)

    of: Literal["columns", "rows"]
    table: pd.DataFrame = field(repr=False)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Its table, largest_columns or largest_rows."""
        return {f"largest_{self.of}": self.table}

    def about(self) -> dict[str, Any]:
        """Whether these are columns or rows."""
        return {"of": self.of}

    def view(self) -> View:
        """A line for each column (or row): where it is, its norm, and its top tokens."""
        groups = [(own.iloc[0], Tokens(own["word"])) for _, own in self.table.groupby("rank", sort=True)]
        columns = [
            Shown("", "integer"), Shown("token", "token", most=16), Shown("unit", "integer"), Shown("norm", "number"),
            Shown("", "bar", spare=1), Shown("top tokens", "tokens"),
        ]  # fmt: skip
        rows = [[*cells(one[["position", "token", "unit", "norm"]]), one["norm"], words] for one, words in groups]
        side = "the head, as logits" if self.of == "columns" else "the embeddings, by cosine"
        notes = [f"Each one is decoded by itself through {side}."]
        return View(f"The largest {self.of} of J", grids=[Grid(columns, rows)], notes=notes)


@checked
def largest(lm: LM, op: Operator, of: Literal["columns", "rows"] = "columns", count: int = 8, top: int = 8) -> Largest:
    """The columns of J of largest norm, decoded through the head, or the rows, decoded to input embeddings.

    A column is what one unit of one token's embedding writes; a row is what one unit of the output is selective for
    (J. Golden, arXiv 2505.24293, section 4.2). J is formed.

    Args:
        lm: The model.
        op: The operator.
        of: "columns" or "rows"; each are ordered by their own norms.
        count: How many of them.
        top: Tokens for each.

    Raises:
        BadArgument: The operator does not have the width of that side.

    """
    if of not in ("columns", "rows"):
        raise BadArgument("Largest are columns or rows", repr(of), "Choose one of them.")
    J = op.dense()
    d_out, T, d_in = J.shape
    vectors = J.movedim(0, 2).reshape(T * d_in, d_out) if of == "columns" else J.reshape(d_out * T, d_in)
    wide = torch.promote_types(vectors.dtype, torch.float32)
    norms = torch.linalg.vector_norm(vectors, dim=1, dtype=wide)
    norms, places = norms.sort(descending=True, stable=True)
    count = integer(count, 1, len(norms), f"There are {len(norms)} {of}", "count = ")
    words = decode(lm, vectors[places[:count]].T, "output" if of == "columns" else "input", top)
    tokens, table = op.about.get("tokens", []), []
    tokens = tokens if "token" in op.about or len(tokens) == T else None  # a composition is of no tokens
    for rank, (place, norm, own) in enumerate(zip(places.tolist(), norms.tolist(), words, strict=False)):
        t, unit = divmod(place, d_in) if of == "columns" else (place % T, place // T)
        t = op.about.get("token", t)
        token = tokens[t] if tokens else None
        table += [(rank, t, token, unit, norm, r, w.token, w.id, w.score) for r, w in enumerate(own)]
    described = LARGEST_COLUMNS if of == "columns" else LARGEST_ROWS
    return Largest(of, described.frame(table))


@dataclass(frozen=True, eq=False)
class Scores:
    """How well each token of one side fits directions: a logit W u, or a cosine. -inf: a token that does not count.

    `table` has a token's vector in each row; `norms` are their lengths, where the score is a cosine.
    """

    table: Float[Tensor, "vocabulary d"] = field(repr=False)
    norms: Float[Tensor, "vocabulary 1"] | None = field(repr=False)
    dropped: Tensor | None = field(repr=False)
    side: Side

    @classmethod
    def of(
        cls,
        lm: LM,
        side: Side,
        dtype: torch.dtype,
        *,
        metric: Metric | None = None,
        centered: bool = False,
        keep: Callable[[str], bool] | None = None,
    ) -> Scores:
        """Of one side of a model, computed in the wider one of its type and `dtype`, in float32 at least."""
        table = _vectors(lm, side)
        table = table.to(torch.promote_types(torch.promote_types(table.dtype, dtype), torch.float32))
        kept = None if keep is None else torch.tensor([bool(keep(text)) for text in lm.texts[: len(table)]])
        if centered:
            table = table - table.mean(0)
        norms = lengths(table, 1)[:, None] if (metric or METRICS[side]) == "cosine" else None
        return cls(table, norms, None if kept is None else ~kept.to(table.device), side)

    def __call__(self, directions: Float[Tensor, "d k"]) -> tuple[Float[Tensor, "k vocabulary"], Float[Tensor, " k"]]:
        """The scores of each direction (a column), in a row, and the length that they are proportional to.

        Raises BadArgument where directions do not have the width of this side.
        """
        if len(directions) != self.table.shape[1]:
            raise BadArgument(
                f"Directions on the {self.side} side have {self.table.shape[1]} numbers",
                f"{len(directions)}",
                "Give them as columns.",
            )
        columns = directions.detach().to(self.table)
        sizes = lengths(columns, 0)
        if self.norms is None:
            scores = self.table @ columns
        else:  # one length after the other: their product may be too small for the type
            units = columns / torch.where(sizes > 0, sizes, 1)
            scores = (self.table @ units) / torch.where(self.norms > 0, self.norms, 1)
            scores = torch.where((self.norms > 0) & (sizes > 0), scores, -torch.inf)
            sizes = torch.ones_like(sizes)
        if self.dropped is not None:
            scores[self.dropped] = -torch.inf
        return scores.T.contiguous(), sizes


@dataclass(frozen=True, eq=False)
class Best:
    """The best tokens of some directions, a row each, best first; equal scores in order of id. -inf: there are no more.

    `lengths`: what the scores are proportional to. `ranks`: how many tokens come before one that was asked for.
    """

    ids: Int[Tensor, "n top"]
    scores: Float[Tensor, "n top"]
    lengths: Float[Tensor, " n"]
    ranks: Int[Tensor, " n"] | None = None

    def words(self, lm: LM, null: Null | None = None) -> list[list[Word]]:
        """The tokens of each direction, with z-scores if there is a null."""
        rows = zip(self.ids.tolist(), self.scores.tolist(), self.lengths.tolist(), strict=True)
        return [_words(lm, ids, scores, length, null) for ids, scores, length in rows]

    def rows(self, which: slice) -> Best:
        """Those of some directions."""
        ranks = None if self.ranks is None else self.ranks[which]
        return Best(self.ids[which], self.scores[which], self.lengths[which], ranks)


def best(
    scores: Float[Tensor, "n vocabulary"], lengths: Float[Tensor, " n"], top: int, token: int | None = None
) -> Best:
    """The `top` tokens of each row of scores, and the rank of a token in each."""
    top = min(top, scores.shape[1])
    values, ids = scores.topk(min(top + 1, scores.shape[1]), dim=1)
    last = values[:, top - 1]
    tied = (values[:, -1] == last) & (last > -torch.inf) if values.shape[1] > top else torch.zeros_like(last).bool()
    odd = (tied | values.isnan().any(1)).nonzero().flatten().tolist()
    ids, order = ids[:, :top].sort(dim=1)
    values, order = values[:, :top].gather(1, order).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    for i in odd:  # more tokens score alike than there is room for: those of the lowest ids
        own = scores[i].nan_to_num(-torch.inf, torch.inf, -torch.inf)
        values[i], ids[i] = (sorted_[:top] for sorted_ in own.sort(descending=True, stable=True))
    return Best(ids.cpu(), values.cpu(), lengths.cpu(), None if token is None else ranks_of(scores, token).cpu())


def ranks_of(scores: Float[Tensor, "n vocabulary"], token: int) -> Int[Tensor, " n"]:
    """How many tokens come before one: those that score higher, and those of a lower id that score alike."""
    own = scores[:, token : token + 1]
    return (scores > own).sum(1) + (scores[:, :token] == own).sum(1)


class Decodings:
    """What singular vectors decode to, each direction decoded once; kept by its SVD and side.

    `top`: at least so many tokens of each are kept. `token`: one whose rank in every left vector is kept too.
    """

    def __init__(self, lm: LM, top: int = 8, token: int | None = None) -> None:
        self.lm, self.top, self.token = lm, top, token
        self._kept: dict[tuple[SVD, Side], Best] = {}

    def __call__(self, asked: Sequence[tuple[SVD, int]], side: Side, top: int) -> list[Best]:
        """The best tokens, at least `top` of them, of the first so many vectors of each SVD on one side."""
        top = min(max(top, self.top), len(_vectors(self.lm, side)))
        self._decode([(f, count) for f, count in asked if count], side, top)
        nothing = Best(torch.zeros(0, top, dtype=torch.long), torch.zeros(0, top), torch.zeros(0))
        return [self._kept[f, side].rows(slice(0, count)) if count else nothing for f, count in asked]

    def ranks(self, found: Sequence[SVD], token: int) -> list[int]:
        """How many tokens come before this one in what the first left vector of each decodes to."""
        if token == self.token:
            kept = self([(f, 1) for f in found], "output", self.top)
            return [int(own.ranks[0]) for own in kept if own.ranks is not None]
        scores, ranks = None, list[int]()
        for some in _together(f.U[:, :1] for f in found):
            scores = scores or Scores.of(self.lm, "output", some.dtype)
            ranks += ranks_of(scores(some)[0], token).tolist()
        return ranks

    def _decode(self, asked: Sequence[tuple[SVD, int]], side: Side, top: int) -> None:
        """Decode what is not kept yet, or not with so many tokens."""
        todo: dict[SVD, slice] = {}
        for f, count in asked:
            kept = self._kept.get((f, side))
            if kept is None:
                todo[f] = slice(0, count)
            elif kept.ids.shape[1] < top:
                todo[f] = slice(0, max(count, len(kept.ids)))
            elif len(kept.ids) < count:
                todo[f] = slice(len(kept.ids), count)
        columns = [(f.U if side == "output" else f.V)[:, some] for f, some in todo.items()]
        scores, found = None, list[Best]()
        for some in _together(columns):
            scores = scores or Scores.of(self.lm, side, some.dtype)
            found.append(best(*scores(some), top, self.token if side == "output" else None))
        if not found:
            return
        every, start = _joined(found), 0
        for (f, added), own in zip(todo.items(), columns, strict=True):
            new, start = every.rows(slice(start, start + own.shape[1])), start + own.shape[1]
            self._kept[f, side] = _joined([self._kept[f, side], new]) if added.start else new


def _together(columns: Iterable[Tensor]) -> Iterator[Tensor]:
    """Columns of matrices, so many at once as are decoded together."""
    some: list[Tensor] = []
    for own in columns:
        some.append(own)
        if sum(c.shape[1] for c in some) >= AT_ONCE:
            yield from torch.cat(some, 1).split(AT_ONCE, dim=1)
            some = []
    if sum(c.shape[1] for c in some):
        yield from torch.cat(some, 1).split(AT_ONCE, dim=1)


def _joined(found: Sequence[Best]) -> Best:
    """The rows of several, one after the other."""
    ranks = [own.ranks for own in found if own.ranks is not None]
    return Best(
        torch.cat([own.ids for own in found]),
        torch.cat([own.scores for own in found]),
        torch.cat([own.lengths for own in found]),
        torch.cat(ranks) if ranks else None,
    )


def _words(lm: LM, ids: Sequence[int], scores: Sequence[float], length: float, null: Null | None) -> list[Word]:
    """The tokens of one direction of a length."""
    words = []
    for place, (i, score) in enumerate(zip(ids, scores, strict=True)):
        if score == -torch.inf:
            break
        z = None
        if null is not None and length > 0 and place < len(null.mean):
            z = ((score / length - null.mean[place]) / null.std[place]).item()
        words.append(Word(lm.text(i), i, score, z))
    return words


def _vectors(lm: LM, side: Side) -> Float[Tensor, "vocabulary d"]:
    """What stands for each token on a side."""
    return lm.unembedding if side == "output" else lm.embedding
