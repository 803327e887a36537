"""Directions as tokens: output directions through the head, input directions by cosine to the embeddings.

What a direction decodes to says little without what chance decodes to: `null` measures that, and words carry a z-score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, checked, integer, one_of, seeded
from secant.model.lm import LM
from secant.numeric import lengths
from secant.operators.operator import Operator
from secant.results.files import saving

Side = Literal["output", "input"]
Metric = Literal["dot", "cosine"]

METRICS: dict[str, Metric] = {"output": "dot", "input": "cosine"}
"""How a direction is compared with tokens on each side, unless another way is asked for."""

AT_ONCE = 64
"""Directions that are decoded together."""


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
    """What a table says of each of a direction's words, best first: rank (from 0), word, id, score and z."""
    return [{"rank": i, "word": w.token, "id": w.id, "score": w.score, "z": w.z} for i, w in enumerate(words)]


@dataclass(frozen=True, eq=False)
class Null:
    """What random unit directions decode to: mean and standard deviation of the best, second-best … score.

    `words[i]` are those of the i-th random direction.
    """

    side: Side
    metric: Metric
    centered: bool
    keep: Callable[[str], bool] | None
    top: int
    mean: Float[Tensor, " top"]
    std: Float[Tensor, " top"]
    words: list[list[Word]] = field(repr=False)


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
    """The `top` tokens that each direction (a column) stands for, best first; equal scores in order of id.

    `side="output"`: by their logit W u, the head's weight times the direction. `side="input"`: by the cosine between
    the direction and their embedding. `metric`: "dot" or "cosine", in place of these; tokens whose vector is zero have
    no cosine and are left out. `centered`: without the mean of all tokens' vectors, which a softmax does not see.
    `keep`: which token texts count, for instance `str.isalpha`. `null`: what chance decodes to, of the same settings.
    Raises BadArgument where the directions do not have the width of that side, or the null is of other settings.
    """
    one_of(side, list(METRICS), "A side")
    metric = METRICS[side] if metric is None else metric
    one_of(metric, list(METRICS.values()), "A metric")
    table = lm.unembedding if side == "output" else lm.embedding
    top = min(integer(top, 1, 10**9, "A direction has some words", "top = "), len(table))
    if null is not None and (
        (null.side, null.metric, null.centered, null.keep) != (side, metric, centered, keep) or null.top < top
    ):
        raise BadArgument(
            "A null is of the same side, metric, centring, filter, and as many words", repr(null), "Make one anew."
        )
    columns = directions.detach().reshape(len(directions) if directions.ndim else 1, -1)
    if len(columns) != table.shape[1]:
        raise BadArgument(
            f"Directions on the {side} side have {table.shape[1]} numbers", f"{len(columns)}", "Give them as columns."
        )
    wide = torch.promote_types(torch.promote_types(table.dtype, columns.dtype), torch.float32)
    table, columns = table.to(wide), columns.to(device=table.device, dtype=wide)
    kept = _kept(lm, keep, len(table))
    if centered:
        table = table - table.mean(0)
    norms = lengths(table, 1)[:, None] if metric == "cosine" else None
    found: list[list[Word]] = []
    for some in columns.split(AT_ONCE, dim=1):
        sizes = lengths(some, 0)
        if norms is None:
            scores = table @ some
        else:  # one length after the other: their product may be too small for the type
            units = some / torch.where(sizes > 0, sizes, 1)
            scores = (table @ units) / torch.where(norms > 0, norms, 1)
            scores = torch.where((norms > 0) & (sizes > 0), scores, -torch.inf)
            sizes = torch.ones_like(sizes)
        if kept is not None:
            scores[~kept.to(scores.device)] = -torch.inf
        found += [_words(lm, own, top, length, null) for own, length in zip(scores.T, sizes.tolist(), strict=True)]
    return found


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
    """What `samples` random directions decode to, drawn with `seed`; the settings are those of `decode`.

    Raises BadArgument.
    """
    samples = integer(samples, 2, 10**6, "A null takes some random directions", "samples = ")
    width = (lm.unembedding if side == "output" else lm.embedding).shape[1]
    drawn = torch.randn(width, samples, generator=torch.Generator().manual_seed(seeded(seed)), dtype=torch.float64)
    drawn = drawn / torch.linalg.vector_norm(drawn, dim=0)
    words = decode(lm, drawn, side, top, metric=metric, centered=centered, keep=keep)
    fewest = min(map(len, words))
    scores = torch.tensor([[word.score for word in own[:fewest]] for own in words], dtype=torch.float64)
    return Null(side, metric or METRICS[side], centered, keep, top, scores.mean(0), scores.std(0), words)


@dataclass(frozen=True, eq=False)
class Largest:
    """The columns (or rows) of J of largest norm, and what they decode to.

    `table` has a row for each word: rank of the column (or row), its token's position and text, its unit (of the input,
    or of the output), its norm, and place, word, id and score of the word.
    """

    of: Literal["columns", "rows"]
    table: pd.DataFrame = field(repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def _repr_html_(self) -> str:
        from secant.results.html import largest

        return largest(self)

    def save(self, folder: str | Path) -> None:
        """Write largest_columns, or largest_rows (.parquet and .csv), and columns.csv. Raises OutputFailed."""
        with saving(folder, {f"largest_{self.of}": self.table}):
            pass


@checked
def largest(lm: LM, op: Operator, of: Literal["columns", "rows"] = "columns", count: int = 8, top: int = 8) -> Largest:
    """The columns of J of largest norm, decoded through the head, or the rows, decoded to input embeddings.

    Each kind is ordered by its own norms. Columns are what one unit of one token's embedding writes; rows what one unit
    of the output is selective for (J. Golden, arXiv 2505.24293, section 4.2). J is formed. Raises BadArgument where the
    operator's width is not that of the side.
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
    names = ["rank", "position", "token", "unit", "norm", "place", "word", "id", "score"]
    return Largest(of, pd.DataFrame(table, columns=names))


def _kept(lm: LM, keep: Callable[[str], bool] | None, rows: int) -> Tensor | None:
    """Which tokens of a side, of so many, count."""
    return None if keep is None else torch.tensor([bool(keep(text)) for text in lm.texts[:rows]])


def _words(lm: LM, scores: Float[Tensor, " vocabulary"], top: int, length: float, null: Null | None) -> list[Word]:
    """The best tokens of one direction of a length; equal scores in order of id."""
    least = scores.topk(top).values[-1]
    ids = (scores >= least).nonzero().flatten()
    best, order = scores[ids].sort(descending=True, stable=True)
    words = []
    for place, (score, i) in enumerate(zip(best[:top].tolist(), ids[order][:top].tolist(), strict=True)):
        if score == -torch.inf:
            break
        z = None
        if null is not None and length > 0 and place < len(null.mean):
            z = ((score / length - null.mean[place]) / null.std[place]).item()
        words.append(Word(lm.text(i), i, score, z))
    return words
