"""Scores of every token along directions, and the tokens with the highest scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secant.errors import BadArgument
from secant.model.lm import LM
from secant.numeric import lengths
from secant.stream.words import Metric, Null, Side, Word

BATCH_SIZE, LARGEST, ELEMENTS = 64, 256, 2**25
"""How many directions are scored at a time: at least the first number, and up to the second as long as there are at
most so many scores. Matrix products of more directions are faster.
"""

TOKENS = 2**12
"""The number of tokens whose vectors are multiplied in one product: a product with all of them takes longer."""

ROWS = 2**9
"""The number of tokens whose vectors are centred in one batch."""

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
    """Scores every token along directions on one side, by cosine or by dot product.

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
        table = vectors(lm, side)
        table = table.to(torch.promote_types(torch.promote_types(table.dtype, dtype), torch.float32))
        kept = None if keep is None else torch.tensor([bool(keep(text)) for text in lm.texts[: len(table)]])
        known, key = _KNOWN.get(), (id(lm), "both" if is_tied(lm) else side, table.dtype, metric, centered)
        if known is None or key not in known:
            mean = table.mean(0) if centered else None
            norms = _lengths(table, mean) if metric == "cosine" else None
            if known is not None:
                known[key] = mean, norms
        else:
            mean, norms = known[key]
        return cls(table, mean, norms, None if kept is None else ~kept.to(table.device), side)

    @property
    def batch_size(self) -> int:
        """How many directions are best scored at a time."""
        return max(BATCH_SIZE, min(LARGEST, ELEMENTS // len(self.table)))

    def __call__(self, directions: Float[Tensor, "d k"]) -> tuple[Float[Tensor, "k vocabulary"], Float[Tensor, " k"]]:
        """Returns the scores along each direction, in rows, and the norm that they are proportional to (1 for cosines).

        Args:
            directions: The directions, as columns.

        Raises:
            BadArgument: The directions do not have the width of this side.

        """
        if len(directions) != self.table.shape[1]:
            raise BadArgument(
                f"Directions on the {self.side} side have {self.table.shape[1]} elements",
                f"{len(directions)}",
                "Pass them as columns; of an operator on several tokens, those of one token's block.",
            )
        columns = directions.detach().to(self.table)
        sizes = lengths(columns, 0)
        if self.norms is not None:
            columns = columns / torch.where(sizes > 0, sizes, 1)
        scores = columns.new_empty(columns.shape[1], len(self.table))
        for rows, own in zip(self.table.split(TOKENS), scores.split(TOKENS, dim=1), strict=True):
            torch.mm(columns.T, rows.T, out=own)
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
        scores: The scores of all tokens, one row for each direction.
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
    for i in odd:  # tokens tie for the last place: take the lowest ids
        own = scores[i].nan_to_num(-torch.inf, torch.inf, -torch.inf)
        values[i], ids[i] = (sorted_[:top] for sorted_ in own.sort(descending=True, stable=True))
    return Best(ids.cpu(), values.cpu(), lengths.cpu(), None if token is None else ranks_of(scores, token).cpu())


def ranks_of(scores: Float[Tensor, "n vocabulary"], token: int) -> Int[Tensor, " n"]:
    """Returns how many tokens rank before one: those with a higher score, and those with the same score and a lower id.

    Args:
        scores: The scores of all tokens, one row for each direction.
        token: The id of the token.

    """
    own = scores[:, token : token + 1]
    return (scores > own).sum(1) + (scores[:, :token] == own).sum(1)


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


def is_tied(lm: LM) -> bool:
    """Returns whether the head's weight is the embedding, so that the vectors of both sides are the same.

    Args:
        lm: The model.

    """
    one, other = lm.embedding, lm.unembedding
    return one.shape == other.shape and one.stride() == other.stride() and 0 < one.data_ptr() == other.data_ptr()


def vectors(lm: LM, side: Side) -> Float[Tensor, "vocabulary d"]:
    """Returns the vectors of all tokens on a side: rows of the head's weight, or of the embedding.

    Args:
        lm: The model.
        side: "output" or "input".

    """
    return lm.unembedding if side == "output" else lm.embedding
