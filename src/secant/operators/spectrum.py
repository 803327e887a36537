"""Singular triplets of an operator: the result of `svd`, with its table."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from secant.numeric import wide
from secant.results.result import Described, Result
from secant.results.schema import Column, Table
from secant.results.view import Grid, View
from secant.text import count

TURN = 0.1
"""Radians; singular vectors that may rotate into each other by more are reported as one block."""


SIGMA = "output / input"
"""The unit of singular values."""

VECTOR = Column("vector", int, "which singular vector, from 0, largest σ first")
BLOCK = Column(
    "block", int, "group of near-equal singular values that the vector is in; a single vector of a group means nothing"
)
VALUE = Column("sigma", float, "the singular value σ_i", SIGMA, heading="σ")
NORMALIZED = Column("normalized", float, "σ_i / σ₀", "ratio", heading="σ / σ₀")
RESIDUAL = Column("residual", float, "the larger of ‖J v - σ u‖ and ‖Jᵀ u - σ v‖", SIGMA, show="error")
STABLE_RANK = Column(
    "stable_rank", float, "‖J‖_F² / σ₀²: how many directions matter", "directions", heading="R", show="rank"
)

SPECTRUM = (VECTOR, BLOCK, VALUE, NORMALIZED, RESIDUAL)
"""The columns of a triplet in a table of several spectra."""

TABLE = Table(
    "svd",
    "a singular triplet of an operator",
    (
        VECTOR,
        BLOCK,
        VALUE,
        Column(
            "energy", float, "share of ‖J‖_F² in the first triplet, the first two, and so on", "share", show="percent"
        ),
        RESIDUAL,
    ),
)


@dataclass(frozen=True, eq=False, repr=False)
class SVD(Result):
    """Leading singular triplets: `J V = U S` to within `residuals`.

    Attributes:
        U: Left singular vectors in columns.
        S: Singular values, largest first.
        V: Right singular vectors in columns.
        residuals: The larger of ‖J v - σ u‖ and ‖Jᵀ u - σ v‖ for each triplet, in units of the output per input.
        frobenius: ‖J‖_F of the whole operator.
        solver: The solver's name.
        products: Vectors that J or Jᵀ was multiplied by.
        passes: Batched passes that those took.
        spread: The standard error of `frobenius`; 0 where J was formed.
        following: The next singular value, or an estimate of it; 0 where there is none.
        noise: The rounding error of J itself, in the units of σ.

    """

    schema = (TABLE,)

    U: Float[Tensor, "d_out k"]
    S: Float[Tensor, " k"]
    V: Float[Tensor, "n_in k"]
    residuals: Float[Tensor, " k"]
    frobenius: float
    solver: str
    products: int
    passes: int
    spread: float = 0.0
    following: float = 0.0
    noise: float = 0.0

    def brief(self) -> list[str]:
        """Returns what it is, in a few words each."""
        sizes = ", ".join(f"{value:.4g}" for value in self.S[:4].tolist())
        d_out, d_in = len(self.U), len(self.V)
        return [
            f"{count(len(self.S), 'triplet')} of {d_out} x {d_in}", f"S {sizes}{', …' if len(self.S) > 4 else ''}",
            f"‖J‖ {self.frobenius:.4g}", f"residuals at most {self.residuals.max():.1e}", self.solver,
        ]  # fmt: skip

    @property
    def stable_rank(self) -> float:
        """‖J‖_F² / σ₁²: about how many directions matter; 0 for a zero operator."""
        return (self.frobenius / self.S[0].item()) ** 2 if self.S[0] > 0 else 0.0

    @property
    def stable_rank_spread(self) -> float:
        """Standard error of the stable rank; 0 where J was formed."""
        return 2 * self.stable_rank * self.spread / self.frobenius if self.frobenius else 0.0

    @property
    def energy(self) -> Float[Tensor, " k"]:
        """The share of ‖J‖_F² in the first triplet, the first two, and so on; 1 for a zero operator."""
        total = max(self.frobenius**2, wide(self.S).square().sum().item())
        return wide(self.S).square().cumsum(0) / total if total else torch.ones(len(self.S), dtype=torch.float64)

    @property
    def blocks(self) -> list[range]:
        """Groups of triplets with near-equal singular values, whose vectors mean nothing one by one.

        Two neighbours are in different groups if the gap between their values is at least ten times its uncertainty:
        residuals and rounding then rotate their vectors by at most a tenth (C. Davis and W. Kahan, 1970). The last
        group may continue beyond the triplets that were kept; `complete` says whether it does.
        """
        starts = [0, *(i for i in range(1, len(self.S)) if self._separated_from_previous(i)), len(self.S)]
        return [range(lo, hi) for lo, hi in pairwise(starts)]

    @property
    def block_of(self) -> list[int]:
        """The number of each triplet's block."""
        return [b for b, block in enumerate(self.blocks) for _ in block]

    @property
    def complete(self) -> bool:
        """Whether the last block ends with the last triplet.

        Without J, this misses equal singular values beyond those that the solver looked for.
        """
        return len(self.S) == min(len(self.U), len(self.V)) or self._separated_from_previous(len(self.S))

    def vectors(self) -> list[dict[str, Any]]:
        """The columns vector, block and sigma of each triplet, as rows of a table."""
        every = enumerate(zip(self.block_of, self.S.tolist(), strict=True))
        return [{"vector": i, "block": block, "sigma": sigma} for i, (block, sigma) in every]

    def spectrum(self) -> list[dict[str, Any]]:
        """The columns of SPECTRUM for each triplet; σ / σ₀ is 0 for a zero operator."""
        rows, top = self.vectors(), self.S[0].item() or 1.0
        return [
            {**row, "normalized": row["sigma"] / top, "residual": residual}
            for row, residual in zip(rows, self.residuals.tolist(), strict=True)
        ]

    def tables(self) -> dict[str, pd.DataFrame]:
        """The table `svd`, a row for each triplet."""
        every = zip(self.vectors(), wide(self.energy).tolist(), self.residuals.tolist(), strict=True)
        return {"svd": TABLE.frame([{**row, "energy": energy, "residual": left} for row, energy, left in every])}

    def about(self) -> dict[str, Any]:
        """How the triplets were found, and ‖J‖_F."""
        return {"solver": self.solver, "products": self.products, "passes": self.passes, "frobenius": self.frobenius}

    def tensors(self) -> dict[str, Described]:
        """U, S, V and the residuals."""
        return {
            "U": Described("d_out, k: left singular vectors in columns", self.U),
            "S": Described("k: singular values", self.S),
            "V": Described("n_in, k: right singular vectors in columns", self.V),
            "residuals": Described("k: the larger of ‖J v - σ u‖ and ‖Jᵀ u - σ v‖", self.residuals),
        }

    def view(self) -> View:
        """The singular values with their energy and residuals."""
        facts = {"stable rank": f"{self.stable_rank:.4g}", "‖J‖_F": f"{self.frobenius:.4g}"}
        facts |= {"solver": self.solver, "products": f"{self.products} in {self.passes} passes"}
        grid = Grid.of(TABLE, self.to_pandas(), ("vector", "sigma|bar", "energy", "residual", "block"))
        return View(f"{len(self.S)} singular triplets of an operator {len(self.U)} x {len(self.V)}", facts, [grid])

    def _separated_from_previous(self, i: int) -> bool:
        """Whether triplet i and the one before it are distinguishable."""
        S = [*self.S.tolist(), self.following]
        uncertain = max(self.residuals[max(0, i - 1) : i + 1].max().item(), self.noise)
        return S[i - 1] - S[i] > uncertain / TURN

    def reconstruction(self, x: Float[Tensor, "T d_in"]) -> Float[Tensor, "k d_out"]:
        """Σ_i u_i σ_i (v_i·x) of the first triplet, the first two, and so on: what they contribute to the output.

        Args:
            x: The input, one row for each token.

        """
        return (self.U * (self.S * (self.V.T @ x.to(self.V).flatten()))).cumsum(1).T
