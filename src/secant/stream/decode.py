"""Decoding directions to tokens, by cosine to the tokens' vectors.

The vector of a token is its row of the head's weight on the output side, and its embedding on the input side. A
direction scores each token by the cosine between the direction and the token's vector, less the mean of all vectors:
what all tokens share distinguishes none of them, and long vectors do not win by their length. `decode` returns the
tokens with the highest scores; it can also score by the logit W u, with the head's weight W, as the paper does. `null`
returns what random directions decode to, from which `decode` computes z-scores: how far a score is above the mean score
of the same rank, in standard deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from secant.arguments import counted
from secant.errors import BadArgument, checked, integer, one_of, quoted, seeded
from secant.memory import stopping_point
from secant.model.lm import LM
from secant.operators.spectrum import SVD
from secant.stream.scores import Best, Scores, best, ranks_of, vectors
from secant.stream.words import METRICS, SIDES, Metric, Null, Side, Word


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
    top = min(counted("top", top), len(vectors(lm, side)))
    if null is not None and (
        (null.side, null.metric, null.centered, null.keep) != (side, metric, centered, keep) or null.top < top
    ):
        raise BadArgument(
            "A null must have the same side, metric, centring and filter, and at least as many tokens",
            quoted(null),
            "Make one with the same arguments.",
        )
    columns = directions.detach().reshape(len(directions) if directions.ndim else 1, -1)
    scores = Scores.of(lm, side, columns.dtype, metric=metric, centered=centered, keep=keep)
    found: list[list[Word]] = []
    for some in columns.split(scores.batch_size, dim=1):
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
        seed: The seed with which they are drawn.

    Raises:
        BadArgument: An argument is out of range.

    """
    samples = integer(samples, 2, 10**6, "A null requires at least two random directions", "samples = ")
    one_of(side, SIDES, "A side")
    table = vectors(lm, side)
    width = table.shape[1]
    drawn = torch.randn(width, samples, generator=torch.Generator().manual_seed(seeded(seed)), dtype=torch.float64)
    drawn = (drawn / torch.linalg.vector_norm(drawn, dim=0)).to(torch.promote_types(table.dtype, torch.float32))
    words = decode(lm, drawn, side, top, metric=metric, centered=centered, keep=keep)
    fewest = min(map(len, words))
    scores = torch.tensor([[word.score for word in own[:fewest]] for own in words], dtype=torch.float64)
    mean, std = (scores.mean(0), scores.std(0)) if fewest else (scores[0], scores[0])
    return Null(side, metric or METRICS[0], centered, keep, top, mean, std, words)


class Decodings:
    """The top tokens of singular vectors. Each direction is decoded once, and its top tokens are cached.

    Args:
        lm: The model.
        top: The minimum number of top tokens to cache for each direction.
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
            top: The minimum number of top tokens of each vector.

        """
        top = min(max(top, self.top), len(vectors(self.lm, side)))
        self._decode([(f, count) for f, count in asked if count], side, top)
        nothing = Best(torch.zeros(0, top, dtype=torch.long), torch.zeros(0, top), torch.zeros(0))
        return [self._cached[f, side].rows(slice(0, count)) if count else nothing for f, count in asked]

    def fits(self, found: SVD, side: Side) -> bool:
        """Returns whether singular vectors are as long as the vectors of the vocabulary, so that they can be decoded.

        Args:
            found: The SVD.
            side: "output" for left singular vectors, "input" for right ones.

        """
        return len(found.U if side == "output" else found.V) == vectors(self.lm, side).shape[1]

    def ranks(self, found: Sequence[SVD], token: int) -> list[int]:
        """Returns how many tokens rank before one in the first left singular vector of each SVD.

        Args:
            found: The SVDs.
            token: The id of the token.

        """
        if token == self.token:
            kept = self([(f, 1) for f in found], "output", self.top)
            return [int(own.ranks[0]) for own in kept if own.ranks is not None]
        ranks = list[int]()
        for scores, some in self._batches([f.U[:, :1] for f in found], "output"):
            ranks += ranks_of(scores(some)[0], token).tolist()
        return ranks

    def _decode(self, asked: Sequence[tuple[SVD, int]], side: Side, top: int) -> None:
        """Decode the vectors that are not cached, or are cached with fewer tokens."""
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
        found = list[Best]()
        for scores, some in self._batches(columns, side):
            stopping_point()
            found.append(best(*scores(some), top, self.token if side == "output" else None))
        if not found:
            return
        every, start = _joined(found), 0
        for (f, added), own in zip(todo.items(), columns, strict=True):
            new, start = every.rows(slice(start, start + own.shape[1])), start + own.shape[1]
            self._cached[f, side] = _joined([self._cached[f, side], new]) if added.start else new

    def _batches(self, columns: Sequence[Tensor], side: Side) -> Iterator[tuple[Scores, Tensor]]:
        """The columns of several matrices, in batches, with what scores them."""
        if not (columns := [own for own in columns if own.shape[1]]):
            return
        scores = Scores.of(self.lm, side, reduce(torch.promote_types, (own.dtype for own in columns)))
        some = list[Tensor]()
        for number, own in enumerate(columns, 1):
            some.append(own)
            if number == len(columns) or sum(c.shape[1] for c in some) >= scores.batch_size:
                for batch in torch.cat(some, 1).split(scores.batch_size, dim=1):
                    yield scores, batch
                some = []


def _joined(found: Sequence[Best]) -> Best:
    """The rows of several, concatenated."""
    ranks = [own.ranks for own in found if own.ranks is not None]
    return Best(
        torch.cat([own.ids for own in found]),
        torch.cat([own.scores for own in found]),
        torch.cat([own.lengths for own in found]),
        torch.cat(ranks) if ranks else None,
    )
