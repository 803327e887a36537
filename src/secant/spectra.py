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

SOLVERS = ("auto", "dense", "krylov")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
"""Largest residual of a Krylov triplet, in units of σ₁."""

STEPS = 5
"""Blocks in a Krylov space before it is restarted."""

RESTARTS = 6
TOGETHER = 8
"""Blocks of tokens that are decomposed together."""


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

    J is formed. `solver`: "dense" is LAPACK, "krylov" a block Krylov method with residuals of at most 1e-4 σ₁ in
    float32 and 1e-12 σ₁ in float64, "auto" the cheaper one for the size.
    `progress(blocks done, blocks)` is called as they are finished. Blocks take their signs from the output of the whole
    operator. Raises BadArgument for a k that the shape does not have.

    >>> import torch
    >>> J = torch.tensor([[[0.0, 2.0]], [[-3.0, 0.0]]])  # (d_out, T, d_in)
    >>> f = svd(Operator.from_dense(J, input=torch.ones(1, 2)), k=2)
    >>> f.S.tolist(), f.V[:, 0].tolist()
    ([3.0, 2.0], [1.0, 0.0])
    """
    if solver not in SOLVERS:
        raise BadArgument(f"A solver is one of {', '.join(SOLVERS)}", repr(solver), "Choose one of them.")
    T, d_in = op.input.shape
    most = min(op.shape[0], d_in if per_token else T * d_in)
    if not 1 <= k <= most:
        raise BadArgument(
            f"An operator of this shape has 1 to {most} singular triplets", f"k = {k}", "Choose k in between."
        )
    J = op.dense()
    if not per_token:
        return leading(J.flatten(1)[None], op.output, k, solver)[0]
    found: list[SVD] = []
    for start in range(0, T, TOGETHER):
        found += leading(J[:, start : start + TOGETHER].movedim(1, 0), op.output, k, solver)
        if progress:
            progress(len(found), T)
    return found


def stable_rank(op: Operator, per_token: bool = False) -> float | list[float]:
    """‖J‖_F² / σ₁² of an operator, or a list with those of each token's block."""
    if per_token:
        return [f.stable_rank for f in svd(op, 1, per_token=True)]
    return svd(op, 1).stable_rank


def leading(
    J: Float[Tensor, "n d_out d_in"], y: Float[Tensor, " d_out"], k: int, solver: str = "auto", seed: int = 0
) -> list[SVD]:
    """The leading k triplets of each of several matrices, in float32 at least, signed by y.

    "krylov" is a block Krylov method, all matrices together, restarted until residuals are at most TOLERANCE σ₁
    (Musco and Musco, NeurIPS 2015, algorithm 2); what does not get there in time is left to LAPACK, as
    "dense" is and, by "auto", small matrices are. `seed`: of its first block.
    """
    J = J.to(torch.promote_types(J.dtype, torch.float32))
    if solver == "krylov" or (solver == "auto" and 4 * STEPS * _width(k) <= min(J.shape[1:])):
        return _krylov(J, y, k, seed)
    return _dense(J, y, k)


def _width(k: int) -> int:
    """Columns in a block: some more than are wanted."""
    return k + max(4, k // 2)


def _dense(J: Float[Tensor, "n d_out d_in"], y: Float[Tensor, " d_out"], k: int) -> list[SVD]:
    """All of each matrix decomposed by LAPACK."""
    U, S, Vh = torch.linalg.svd(J, full_matrices=False)
    return _results(J, y, U[:, :, :k], S[:, :k], Vh[:, :k].mH, "dense", min(J.shape[1:]), 1)


def _krylov(J: Float[Tensor, "n d_out d_in"], y: Float[Tensor, " d_out"], k: int, seed: int) -> list[SVD]:
    """Subspaces of J Jᵀ grown from a random block, Rayleigh-Ritz in them, and again from there where needed."""
    n, d_out, d_in = J.shape
    width = min(_width(k), d_out, d_in)
    start = torch.randn(d_in, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    V = start.to(J).expand(n, d_in, width)
    open_ = torch.arange(n, device=J.device)
    found: dict[int, SVD] = {}
    for restart in range(RESTARTS):
        A = J[open_]
        U, S, V = _ritz(A, V, width)
        tried = _results(
            A, y, U[:, :, :k], S[:, :k], V[:, :, :k], "krylov", 2 * STEPS * width * (restart + 1), 2 * STEPS
        )
        done = [bool((f.residuals <= TOLERANCE[A.dtype] * f.S[0]).all()) for f in tried]
        found.update({i: f for i, f, good in zip(open_.tolist(), tried, done, strict=True) if good})
        left = torch.tensor([not good for good in done], device=J.device)
        open_, V = open_[left], V[left]
        if not len(open_):
            break
    if len(open_):
        found.update(zip(open_.tolist(), _dense(J[open_], y, k), strict=True))
    return [found[i] for i in range(n)]


def _ritz(A: Tensor, V: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading triplets of A within the block Krylov space of A Aᵀ from A V."""
    most = min(A.shape[1:])
    Q = _orthonormal(A @ V, A[:, :, :0])
    rows = A.mT @ Q  # A ≈ Q rowsᵀ
    last = rows
    while Q.shape[2] < min(STEPS * width, most):
        more = _orthonormal((A @ last)[:, :, : most - Q.shape[2]], Q)
        Q, last = torch.cat([Q, more], 2), A.mT @ more
        rows = torch.cat([rows, last], 2)
    P, R = torch.linalg.qr(rows)
    u, S, vh = torch.linalg.svd(R)
    return Q @ vh.mT[:, :, :width], S[:, :width], P @ u[:, :, :width]


def _orthonormal(W: Tensor, Q: Tensor) -> Tensor:
    """A basis of W beside Q; the second time makes it so to rounding."""
    for _ in range(2):
        W = torch.linalg.qr(W - Q @ (Q.mT @ W)).Q
    return W


def _results(
    J: Tensor, y: Tensor, U: Tensor, S: Tensor, V: Tensor, solver: str, products: int, passes: int
) -> list[SVD]:
    U, V = _signed(U, V, y.to(J))
    residuals = torch.maximum((J @ V - U * S[:, None]).norm(dim=1), (J.mT @ U - V * S[:, None]).norm(dim=1))
    norms = torch.linalg.matrix_norm(J).tolist()
    return [SVD(U[i], S[i], V[i], residuals[i], norm, solver, products, passes) for i, norm in enumerate(norms)]


def _signed(U: Tensor, V: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Signs such that y·u >= 0; where it is 0, such that the largest entry of u is positive."""
    along = y @ U
    largest = U.gather(-2, U.abs().argmax(-2, keepdim=True))[..., 0, :]
    sign = torch.where(along == 0, largest, along).sign()
    sign = torch.where(sign == 0, 1, sign)[..., None, :]
    return U * sign, V * sign
