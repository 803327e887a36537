"""Singular value decompositions of operators: J = Σ_i σ_i u_i v_iᵀ, in full or of each token's block.

Columns of U are left singular vectors (directions written at the output), columns of V right ones (directions read
at the input). A pair's sign is free; it is chosen so that y·u >= 0 for the operator's output y (J. Golden, TMLR 2025,
arXiv 2505.24293, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument
from secant.operator import Operator


@dataclass(frozen=True, eq=False)
class SVD:
    """Leading singular triplets: `J V = U S` to within `residuals`.

    `residuals`: the larger of ‖J v - σ u‖ and ‖Jᵀ u - σ v‖ for each triplet, in the units of σ. `frobenius`: ‖J‖_F
    of the whole operator. `products` counts vectors multiplied by J or Jᵀ, `passes` the batched passes they took.
    """

    U: Float[Tensor, "d_out k"] = field(repr=False)
    S: Float[Tensor, " k"]
    V: Float[Tensor, "n_in k"] = field(repr=False)
    residuals: Float[Tensor, " k"] = field(repr=False)
    frobenius: float
    solver: str
    products: int
    passes: int

    @property
    def stable_rank(self) -> float:
        """‖J‖_F² / σ₁²: how many directions matter; 0 for a zero operator."""
        return (self.frobenius / self.S[0].item()) ** 2 if self.S[0] > 0 else 0.0


Progress = Callable[[int, int], None]


@overload
def svd(
    op: Operator, k: int = ..., *, per_token: Literal[False] = ..., solver: str = ..., progress: Progress | None = ...
) -> SVD: ...
@overload
def svd(
    op: Operator, k: int = ..., *, per_token: Literal[True], solver: str = ..., progress: Progress | None = ...
) -> list[SVD]: ...
def svd(
    op: Operator,
    k: int = 8,
    *,
    per_token: bool = False,
    solver: str = "auto",
    progress: Progress | None = None,
) -> SVD | list[SVD]:
    """The leading k singular triplets of an operator, largest first, or a list with those of each token's block.

    `solver`: "dense" (also "auto") forms J. `progress(blocks done, blocks)` is called as they are finished. Blocks take
    their signs from the output of the whole operator. Raises BadArgument for a k that the shape does not have.

    >>> import torch
    >>> J = torch.tensor([[[0.0, 2.0]], [[-3.0, 0.0]]])  # (d_out, T, d_in)
    >>> f = svd(Operator.from_dense(J, input=torch.ones(1, 2)), k=2)
    >>> f.S.tolist(), f.V[:, 0].tolist()
    ([3.0, 2.0], [1.0, 0.0])
    """
    if solver not in ("auto", "dense"):
        raise BadArgument("A solver is auto or dense", repr(solver), "Choose one of them.")
    T, d_in = op.input.shape
    most = min(op.shape[0], d_in if per_token else T * d_in)
    if not 1 <= k <= most:
        raise BadArgument(
            f"An operator of this shape has 1 to {most} singular triplets", f"k = {k}", "Choose k in between."
        )
    J = op.dense()
    if not per_token:
        return _dense(J.flatten(1), op.output, k)
    found = []
    for t in range(T):
        found.append(_dense(J[:, t], op.output, k))
        if progress:
            progress(t + 1, T)
    return found


def stable_rank(op: Operator, per_token: bool = False) -> float | list[float]:
    """‖J‖_F² / σ₁² of an operator, or a list with those of each token's block."""
    if per_token:
        return [f.stable_rank for f in svd(op, 1, per_token=True)]
    return svd(op, 1).stable_rank


def _dense(J: Float[Tensor, "d_out n_in"], y: Float[Tensor, " d_out"], k: int) -> SVD:
    """All of J decomposed by LAPACK, in float32 at least."""
    J = J.to(torch.promote_types(J.dtype, torch.float32))
    U, S, Vh = torch.linalg.svd(J, full_matrices=False)
    U, V = _signed(U[:, :k], Vh[:k].mH, y.to(J))
    residuals = torch.maximum((J @ V - U * S[:k]).norm(dim=0), (J.mH @ U - V * S[:k]).norm(dim=0))
    return SVD(U, S[:k], V, residuals, torch.linalg.vector_norm(S).item(), "dense", J.shape[0], 1)


def _signed(U: Tensor, V: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Signs such that y·u >= 0; where it is 0, such that the largest entry of u is positive."""
    along = y @ U
    largest = U.gather(0, U.abs().argmax(0, keepdim=True))[0]
    sign = torch.where(along == 0, largest, along).sign()
    sign = torch.where(sign == 0, 1, sign)
    return U * sign, V * sign
