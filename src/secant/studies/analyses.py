"""What a study can ask of each prompt: one function for each analysis, from a prompt's run to rows of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from secant.analyses.case import Case
from secant.linearize.rules import CONVENTIONS
from secant.linearize.run import freeze
from secant.numeric import wide
from secant.stream.decode import SIDES, ranked


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
    found = case.layers(min(case.k, case.op.shape[0], case.op.input.shape[1]))
    seen, table = found.first_seen(), found.to_pandas()
    sigmas = [f"sigma_{i}" for i in range(case.k)]
    ends = [name for name in table.columns if not name.startswith("sigma_")]
    table = table.reindex(columns=[*ends[:-1], *sigmas, ends[-1]])  # the same columns whatever the model's width
    return {"layers": table, "first_seen": seen.assign(layer_count=len(case.run.inside.layers))}


def attribution(case: Case) -> Tables:
    """What tokens and constants contribute to the predicted logit."""
    return {"contributions": case.attribution().table}


def parts(case: Case) -> Tables:
    """What the embeddings, layers and heads contribute to the predicted logit, beside tokens and constants."""
    return {"contributions": case.attribution(parts=True).table}


def words(case: Case) -> Tables:
    """What the singular vectors of each token's block decode to, and the left ones of all together."""
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
    names = "position token vector block sigma side rank word id score z predicted own"
    return {"words": pd.DataFrame(rows, columns=names.split())}


def conventions(case: Case) -> Tables:
    """How far J is from what it is in the other conventions, of each token's block and of all together."""
    own, c = wide(case.op.dense()), case.run.certificate
    rows = []
    for other in CONVENTIONS:
        if other != c.convention:
            run = freeze(case.run.lm, case.run.ids, convention=other, precision=c.precision, seed=case.seed)
            J = wide(run.operator().dense())
            pairs = [*((t, own[:, t], J[:, t]) for t in range(own.shape[1])), (None, own, J)]
            rows += [(other, t, *_apart(mine, theirs)) for t, mine, theirs in pairs]
    return {"conventions": _table(rows, "other position distance cosine")}


ANALYSES: dict[str, Callable[[Case], Tables]] = {
    function.__name__: function
    for function in (reconstruction, spectra, stable_rank, layers, attribution, parts, words, conventions)
}
"""Every analysis by its name."""


def _apart(one: Tensor, other: Tensor) -> tuple[float | None, float | None]:
    """‖A - B‖ / ‖A‖, and the cosine between them; None where one is zero."""
    norm, length = one.norm().item(), other.norm().item()
    distance = (one - other).norm().item() / norm if norm else None
    cosine = (one * other).sum().item() / (norm * length) if norm and length else None
    return distance, cosine


def _table(rows: Sequence[tuple[object, ...]], names: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=names.split())
