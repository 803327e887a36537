"""What a study can ask of each prompt: one function for each analysis, from a prompt's run to rows of tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor

from secant.analyses.attribution import attribute
from secant.linearize.rules import CONVENTIONS
from secant.linearize.run import Run, freeze
from secant.numeric import wide
from secant.operators.cost import counted, ways
from secant.operators.decomposition import SVD, TOLERANCE, svd
from secant.operators.operator import Operator
from secant.operators.solvers import Wanted
from secant.stream.decode import Null, Side, Word, decode, ranked
from secant.stream.layers import layers as every_layer


@dataclass(frozen=True)
class Settings:
    """What every prompt of a study is asked, and how: all that a row depends on, beside the model and the prompt.

    `k` singular triplets of each block, and of all together; `top` words of each vector.
    """

    convention: str = "gate"
    precision: str | None = None
    analyses: tuple[str, ...] = ("reconstruction", "spectra", "stable_rank", "attribution", "words")
    k: int = 4
    top: int = 8
    seed: int = 0


@dataclass(eq=False)
class Case:
    """A prompt's run, and what several analyses take from it. `nulls`: what random directions decode to, by side."""

    run: Run
    settings: Settings
    nulls: dict[Side, Null] = field(default_factory=dict)

    @cached_property
    def op(self) -> Operator:
        """The operator; with J in memory where its triplets would be found from J anyway."""
        op, wanted = self.run.operator(), Wanted(self.settings.k, TOLERANCE[self.run.operator().bias.dtype])
        best = min(ways(op, wanted, len(op.input)), key=lambda way: way.cost(counted(op)))
        return op.solidified() if best.form or "conventions" in self.settings.analyses else op

    @cached_property
    def blocks(self) -> list[SVD]:
        """Triplets of each token's block."""
        return svd(self.op, self._k(self.op.input.shape[1]), per_token=True, seed=self.settings.seed)

    @cached_property
    def whole(self) -> SVD:
        """Triplets of all blocks together."""
        return svd(self.op, self._k(self.op.shape[1]), seed=self.settings.seed)

    def _k(self, width: int) -> int:
        return min(self.settings.k, width, self.op.shape[0])

    def each(self) -> Iterator[tuple[int | None, str | None, SVD]]:
        """Position, token and triplets of each block, and of all together, which have neither."""
        yield from zip(range(len(self.blocks)), self.run.tokens, self.blocks, strict=True)
        yield None, None, self.whole

    def words(self, directions: Tensor, side: Side) -> list[list[Word]]:
        """The words of each column."""
        return decode(self.run.lm, directions, side, self.settings.top, null=self.nulls[side])


Tables = dict[str, pd.DataFrame]


def reconstruction(case: Case) -> Tables:
    """How well J x + b gives y, beside the ordinary Jacobian."""
    c = case.run.certificate
    return {"reconstructions": _table([(c.reconstruction, c.ordinary, c.constants)], "reconstruction ordinary bias")}


def spectra(case: Case) -> Tables:
    """Singular values of each token's block, and of all together."""
    rows = [{"position": t, "token": token, **row} for t, token, f in case.each() for row in f.spectrum()]
    return {"singular_values": pd.DataFrame(rows)}


def stable_rank(case: Case) -> Tables:
    """Stable ranks of each token's block, and of all together."""
    rows = [(t, token, f.stable_rank, f.frobenius, f.stable_rank_spread) for t, token, f in case.each()]
    return {"stable_ranks": _table(rows, "position token stable_rank frobenius spread")}


def layers(case: Case) -> Tables:
    """Stable ranks and singular values at every depth, and where the prediction shows first."""
    found = every_layer(case.run, min(case.settings.k, case.op.shape[0], case.op.input.shape[1]))
    seen, table = found.first_seen(), found.to_pandas()
    sigmas = [f"sigma_{i}" for i in range(case.settings.k)]
    ends = [name for name in table.columns if not name.startswith("sigma_")]
    table = table.reindex(columns=[*ends[:-1], *sigmas, ends[-1]])  # the same columns whatever the model's width
    return {"layers": table, "first_seen": seen.assign(layer_count=len(case.run.inside.layers))}


def attribution(case: Case) -> Tables:
    """What tokens and constants contribute to the predicted logit."""
    return {"contributions": attribute(case.run, parts=False).table}


def parts(case: Case) -> Tables:
    """What the embeddings, layers and heads contribute to the predicted logit, beside tokens and constants."""
    return {"contributions": attribute(case.run).table}


def words(case: Case) -> Tables:
    """What the singular vectors of each token's block decode to, and the left ones of all together."""
    predicted = case.run.prediction[0].id
    rows = []
    for side in ("output", "input"):
        some = [(t, token, f) for t, token, f in case.each() if t is not None or side == "output"]
        kept = [min(f.U.shape[1], int((f.S > 0).sum())) for *_, f in some]  # a zero block has no directions
        decoded = iter(_decoded(case, side, [f for *_, f in some], kept))
        for (t, token, f), count in zip(some, kept, strict=True):
            own = None if t is None else case.run.ids[t]
            rows += [
                {"position": t, "token": token, **vector, "side": side, **word,
                 "predicted": word["id"] == predicted, "own": word["id"] == own}
                for vector in f.vectors()[:count]
                for word in ranked(next(decoded))
            ]  # fmt: skip
    names = "position token vector block sigma side rank word id score z predicted own"
    return {"words": pd.DataFrame(rows, columns=names.split())}


def conventions(case: Case) -> Tables:
    """How far J is from what it is in the other conventions, of each token's block and of all together."""
    own = wide(case.op.dense())
    rows = []
    for other in CONVENTIONS:
        if other != case.settings.convention:
            run = freeze(
                case.run.lm, case.run.ids, convention=other, precision=case.settings.precision, seed=case.run.seed
            )
            J = wide(run.operator().dense())
            pairs = [*((t, own[:, t], J[:, t]) for t in range(own.shape[1])), (None, own, J)]
            rows += [(other, t, *_apart(mine, theirs)) for t, mine, theirs in pairs]
    return {"conventions": _table(rows, "other position distance cosine")}


ANALYSES: dict[str, Callable[[Case], Tables]] = {
    function.__name__: function
    for function in (reconstruction, spectra, stable_rank, layers, attribution, parts, words, conventions)
}
"""Every analysis by its name."""


def _decoded(case: Case, side: Side, found: Sequence[SVD], kept: Sequence[int]) -> list[list[Word]]:
    columns = [(f.U if side == "output" else f.V)[:, :count] for f, count in zip(found, kept, strict=True)]
    return case.words(torch.cat(columns, 1), side)


def _apart(one: Tensor, other: Tensor) -> tuple[float | None, float | None]:
    """‖A - B‖ / ‖A‖, and the cosine between them; None where one is zero."""
    norm, length = one.norm().item(), other.norm().item()
    distance = (one - other).norm().item() / norm if norm else None
    cosine = (one * other).sum().item() / (norm * length) if norm and length else None
    return distance, cosine


def _table(rows: Sequence[tuple[object, ...]], names: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=names.split())
