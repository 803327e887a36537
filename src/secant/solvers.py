"""Solvers of leading singular triplets, one function each, for several matrices of one shape at once.

A solver is given a stack of matrices, which it knows by products with many vectors at once, and what is wanted of each.
Adding one is a function and a row in SOLVERS. This file is torch (and scipy, for PROPACK) only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, NotConverged
from secant.operator import CHUNK, Products, wide

STEPS = 8
"""Blocks in a Krylov space before it is restarted."""

TINY = 1e-30

SAMPLES = 8
"""Random vectors for ‖J‖_F of what is left outside a Krylov space."""


# ------------------------------------------------------------------------------------------------ matrices


@runtime_checkable
class Stack(Protocol):
    """Matrices `[n, d_out, d_in]`, known by products. `like`: a tensor of the type that solvers compute in."""

    shape: tuple[int, int, int]
    like: Tensor

    def forward(self, V: Float[Tensor, "n d_in w"]) -> Float[Tensor, "n d_out w"]:
        """J v for some vectors of each matrix."""
        ...

    def adjoint(self, U: Float[Tensor, "n d_out w"]) -> Float[Tensor, "n d_in w"]:
        """Jᵀ u for some vectors of each matrix."""
        ...

    def only(self, which: Sequence[int]) -> Stack:
        """Some of the matrices."""
        ...


class Formed:
    """Matrices that are there."""

    def __init__(self, J: Float[Tensor, "n d_out d_in"]) -> None:
        self.J = self.like = J.to(torch.promote_types(J.dtype, torch.float32))
        self.shape = (J.shape[0], J.shape[1], J.shape[2])

    def forward(self, V: Float[Tensor, "n d_in w"]) -> Float[Tensor, "n d_out w"]:
        """J v"""
        return (V.mT @ self.J.mT).mT  # a few long rows times a matrix are up to ten times as fast as these columns

    def adjoint(self, U: Float[Tensor, "n d_out w"]) -> Float[Tensor, "n d_in w"]:
        """Jᵀ u"""
        return (U.mT @ self.J).mT

    def only(self, which: Sequence[int]) -> Formed:
        """Some of the matrices."""
        return self if len(which) == self.shape[0] else Formed(self.J[list(which)])


class Whole:
    """One matrix, by its products; `like`: a tensor of the type that these take."""

    def __init__(self, products: Products, shape: tuple[int, int], like: Tensor) -> None:
        self._products, self._taken = products, like
        self.like = like.to(torch.promote_types(like.dtype, torch.float32))
        self.shape = (1, *shape)

    def forward(self, V: Float[Tensor, "n d_in w"]) -> Float[Tensor, "n d_out w"]:
        """J v"""
        return self._products.forward(V[0].to(self._taken))[None].to(self.like)

    def adjoint(self, U: Float[Tensor, "n d_out w"]) -> Float[Tensor, "n d_in w"]:
        """Jᵀ u"""
        return self._products.adjoint(U[0].to(self._taken))[None].to(self.like)

    def only(self, which: Sequence[int]) -> Whole:
        """The matrix."""
        return self


class Blocks:
    """The blocks `[d_out, d_in]` of some tokens of one matrix `[d_out, T * d_in]`, by products with all of it."""

    def __init__(self, products: Products, shape: tuple[int, int], T: int, tokens: Sequence[int], like: Tensor) -> None:
        self._products, self._whole, self._T, self._tokens, self._taken = products, shape, T, list(tokens), like
        self.like = like.to(torch.promote_types(like.dtype, torch.float32))
        self.shape = (len(self._tokens), shape[0], shape[1] // T)

    def forward(self, V: Float[Tensor, "n d_in w"]) -> Float[Tensor, "n d_out w"]:
        """J_t v_t, each from a column that is v_t at its token and zero at others."""

        def group(tokens: list[int], V: Tensor) -> Tensor:
            n, d_in, w = V.shape
            columns = self._taken.new_zeros(self._T, d_in, n, w)
            for i, t in enumerate(tokens):
                columns[t, :, i] = V[i].to(columns)
            out = self._products.forward(columns.view(self._T * d_in, n * w))
            return out.view(-1, n, w).movedim(1, 0)

        return self._grouped(group, V)

    def adjoint(self, U: Float[Tensor, "n d_out w"]) -> Float[Tensor, "n d_in w"]:
        """J_tᵀ u_t: of Jᵀ u_t, the part of its token."""

        def group(tokens: list[int], U: Tensor) -> Tensor:
            n, d_out, w = U.shape
            out = self._products.adjoint(U.movedim(0, 1).reshape(d_out, n * w).to(self._taken))
            every = out.view(self._T, -1, n, w)
            return torch.stack([every[t, :, i] for i, t in enumerate(tokens)])

        return self._grouped(group, U)

    def _grouped(self, product: Callable[[list[int], Tensor], Tensor], vectors: Tensor) -> Tensor:
        """A few tokens at a time: a column is as long as all of them."""
        few = max(1, CHUNK // vectors.shape[2])
        parts = [product(self._tokens[i : i + few], vectors[i : i + few]) for i in range(0, len(vectors), few)]
        return torch.cat(parts).to(self.like)

    def only(self, which: Sequence[int]) -> Blocks:
        """Some of the blocks."""
        return Blocks(self._products, self._whole, self._T, [self._tokens[i] for i in which], self._taken)


class Counted:
    """A stack that counts the vectors that each matrix was multiplied by, and the batched passes that it took."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.shape, self.like = stack, stack.shape, stack.like
        self.products = self.passes = 0

    def forward(self, V: Float[Tensor, "n d_in w"], which: Sequence[int]) -> Float[Tensor, "n d_out w"]:
        """J v of some of the matrices."""
        self.products, self.passes = self.products + V.shape[2], self.passes + 1
        return self.stack.only(which).forward(V)

    def adjoint(self, U: Float[Tensor, "n d_out w"], which: Sequence[int]) -> Float[Tensor, "n d_in w"]:
        """Jᵀ u of some of the matrices."""
        self.products, self.passes = self.products + U.shape[2], self.passes + 1
        return self.stack.only(which).adjoint(U)


# ------------------------------------------------------------------------------------------------ what is wanted


@dataclass(frozen=True)
class Wanted:
    """The leading k triplets, with residuals of at most `tolerance` σ₁, in at most `limit` batched passes.

    `start`: right vectors to begin from, of each matrix; without it they are drawn with `seed`. `steps`: blocks in a
    Krylov space before it is restarted.
    `patience(passes, worst)`: whether to go on, given the largest residual so far, in σ₁; None: always.
    """

    k: int
    tolerance: float
    limit: int = 300
    seed: int = 0
    start: Float[Tensor, "n d_in w"] | None = None
    patience: Callable[[int, float], bool] | None = None
    steps: int = STEPS

    @property
    def width(self) -> int:
        """Ritz vectors that a restart keeps: some more than are wanted."""
        return self.k + max(4, self.k // 2)

    @property
    def block(self) -> int:
        """Vectors in a block: as many as are wanted, so that equal singular values are all found."""
        return max(self.k, 4)

    def space(self, d_out: int, d_in: int) -> int:
        """Columns of a Krylov space."""
        return min(max(self.steps * self.block, self.width + self.block), d_out, d_in)

    @property
    def expected(self) -> int:
        """How many blocks it is expected to take, where there is nothing else to go by."""
        return 11 if self.tolerance >= 1e-6 else 20


@dataclass(frozen=True, eq=False)
class Found:
    """Triplets of one matrix: `S` has one value more than is wanted, where there is one, or an estimate of it.

    `norm`: ‖J‖_F, and `spread` its standard error. `products`, `passes`: how many vectors, and batched passes.
    """

    U: Tensor = field(repr=False)
    S: Tensor
    V: Tensor = field(repr=False)
    residuals: Tensor
    norm: float
    spread: float
    products: int
    passes: int


class Impatient(Exception):
    """Another way is cheaper by now."""


# ------------------------------------------------------------------------------------------------ solvers


def lapack(stack: Stack, wanted: Wanted) -> list[Found]:
    """All of each matrix decomposed by LAPACK."""
    J, k = _there(stack), wanted.k
    U, S, Vh = torch.linalg.svd(J, full_matrices=False)
    V, every = Vh.mH, torch.full((len(J),), min(J.shape[1:]))
    return _formed(J, U[:, :, :k], S[:, : k + 1], V[:, :, :k], every.tolist(), 1)


def gram(stack: Stack, wanted: Wanted) -> list[Found]:
    """Eigenvectors of J Jᵀ or Jᵀ J, whose squares cost half of the digits, refined as by `krylov` from there."""
    J = _there(stack)
    if J.shape[1] <= J.shape[2]:
        V = J.mT @ torch.linalg.eigh(J @ J.mT).eigenvectors[:, :, -wanted.width :].flip(2)
    else:
        V = torch.linalg.eigh(J.mT @ J).eigenvectors[:, :, -wanted.width :].flip(2)
    return krylov(stack, replace(wanted, start=V, steps=3))


def krylov(stack: Stack, wanted: Wanted) -> list[Found]:
    """Block Krylov spaces of J Jᵀ, Rayleigh-Ritz in them, and thick restarts until residuals are small enough.

    C. Musco and C. Musco, NeurIPS 2015, algorithm 2, with the space kept orthonormal and restarted as by J. Baglama and
    L. Reichel, SIAM J. Sci. Comput. 27 (2005): the leading Ritz vectors stay, and the block of their residuals follows.
    What J leaves of a Ritz vector outside the space is known from the block that comes next; products show whether it
    is so. ‖J‖_F is that within the space, exactly, and of what is left outside by random vectors (Hutch++; R. A. Meyer
    et al., SOSA 2021, arXiv 2010.09649). Raises NotConverged.
    """
    n, d_out, d_in = stack.shape
    most, A, k = min(d_out, d_in), Counted(stack), wanted.k
    every = 3 if isinstance(stack, Formed) else 1  # how often to look: products with a matrix are cheap
    open_, found = list(range(n)), dict[int, Found]()
    Q, rows = stack.like.new_zeros(n, d_out, 0), stack.like.new_zeros(n, d_in, 0)
    more = _orthonormal(A.forward(_start(stack, wanted), open_)[:, :, :most], Q)
    grown = 0
    while True:
        last = A.adjoint(more, open_)
        Q, rows = torch.cat([Q, more], 2), torch.cat([rows, last], 2)  # Qᵀ J is rows, transposed
        W = A.forward(last, open_)
        more = _orthonormal(W[:, :, : most - Q.shape[2]], Q)
        grown += 1
        full = Q.shape[2] + last.shape[2] > wanted.space(d_out, d_in) or Q.shape[2] == most
        if not full and (Q.shape[2] < 4 * k or grown % every):
            continue
        u, S, vh = torch.linalg.svd(torch.linalg.qr(rows, mode="r").R)
        width = min(max(wanted.width, wanted.space(d_out, d_in) // 2), Q.shape[2])
        off = (more.mT @ W @ vh.mT[:, -last.shape[2] :, :k]).norm(dim=1) / S[:, :k].clamp_min(TINY)
        worst = off.amax(1) / S[:, 0].clamp_min(TINY)
        tried = (worst <= wanted.tolerance).nonzero().flatten().tolist()
        if tried:
            own = [open_[i] for i in tried]
            P = torch.linalg.qr(rows[tried]).Q
            U, V = Q[tried] @ vh.mT[tried, :, :width], P @ u[tried, :, :width]
            for i, f in zip(tried, _shown(A, own, wanted, U, S[tried], V, Q[tried], rows[tried]), strict=True):
                worst[i] = f.residuals.max() / S[i, 0].clamp_min(TINY)
                if worst[i] <= wanted.tolerance:
                    found[open_[i]] = f
        left = [i for i, j in enumerate(open_) if j not in found]
        if not left:
            return [found[i] for i in range(n)]
        open_ = [open_[i] for i in left]
        _go_on(A, float(worst[left].max()), wanted)
        Q, rows, more = Q[left], rows[left], more[left]
        if full:
            Q, rows = Q @ vh.mT[left, :, :width], rows @ vh.mT[left, :, :width]


def propack(stack: Stack, wanted: Wanted) -> list[Found]:
    """Golub-Kahan bidiagonalisation by PROPACK, through scipy, one vector at a time. Raises NotConverged."""
    n, d_out, d_in = stack.shape
    if wanted.k >= min(d_out, d_in):
        raise BadArgument(
            f"PROPACK finds fewer than all {min(d_out, d_in)} triplets", f"k = {wanted.k}", "Use solver='dense'."
        )
    return [_bidiagonalised(Counted(stack.only([i])), wanted) for i in range(n)]


@dataclass(frozen=True)
class Solver:
    """A solver, and what one matrix costs it: vectors that J and Jᵀ are multiplied with, the other operations, as many
    of a matrix product as take as long, and numbers that it keeps. `formed`: it needs J itself.
    """

    solve: Callable[[Stack, Wanted], list[Found]]
    vectors: Callable[[int, int, Wanted], float]
    operations: Callable[[int, int, Wanted], float]
    kept: Callable[[int, int, Wanted], float]
    formed: bool = False


SLOW, SLOWER = 4.0, 6.0
"""How many times as long as in a matrix product an operation takes with few columns, and in a decomposition."""


def _cubes(d_out: int, d_in: int, each: float, along: float) -> float:
    """`each` s³ + `along` l s², of the smaller and the larger dimension."""
    s, l = sorted((d_out, d_in))  # noqa: E741
    return each * s**3 + along * l * s**2


def _grown(d_out: int, d_in: int, wanted: Wanted) -> float:
    """Operations for a Krylov space, once."""
    return SLOW * 6 * (d_out + d_in) * wanted.space(d_out, d_in) ** 2


SOLVERS = {
    "dense": Solver(
        lapack,
        vectors=lambda d_out, d_in, wanted: 2 * wanted.k,
        operations=lambda d_out, d_in, wanted: SLOWER * _cubes(d_out, d_in, 8.0, 4.0),
        kept=lambda d_out, d_in, wanted: 2 * d_out * d_in + _cubes(d_out, d_in, 0.0, 1.0) / max(d_out, d_in),
        formed=True,
    ),
    "gram": Solver(
        gram,
        vectors=lambda d_out, d_in, wanted: 6 * wanted.width,
        operations=lambda d_out, d_in, wanted: (
            SLOWER * _cubes(d_out, d_in, 3.0, 2 / SLOWER) + _grown(d_out, d_in, replace(wanted, steps=3))
        ),
        kept=lambda d_out, d_in, wanted: 4 * min(d_out, d_in) ** 2 + 8 * (d_out + d_in) * wanted.width,
        formed=True,
    ),
    "krylov": Solver(
        krylov,
        vectors=lambda d_out, d_in, wanted: 2 * min(wanted.expected * wanted.block, 2 * min(d_out, d_in)),
        operations=lambda d_out, d_in, wanted: wanted.expected / wanted.steps * _grown(d_out, d_in, wanted),
        kept=lambda d_out, d_in, wanted: 4 * (d_out + d_in) * wanted.space(d_out, d_in),
    ),
    "propack": Solver(
        propack,
        vectors=lambda d_out, d_in, wanted: 20 * wanted.k,
        operations=lambda d_out, d_in, wanted: SLOW * (40 * wanted.k) ** 2 * (d_out + d_in),
        kept=lambda d_out, d_in, wanted: 20 * wanted.k * (d_out + d_in),
    ),
}


# ------------------------------------------------------------------------------------------------ parts of them


def _there(stack: Stack) -> Tensor:
    assert isinstance(stack, Formed), "svd forms J for these"
    return stack.J


def _start(stack: Stack, wanted: Wanted) -> Tensor:
    """The first block: what is given, filled up with random vectors, or those alone."""
    n, _, d_in = stack.shape
    generator = torch.Generator().manual_seed(wanted.seed)
    drawn = torch.randn(d_in, min(wanted.block, d_in), generator=generator, dtype=torch.float64)
    start = drawn.to(stack.like).expand(n, -1, -1)
    if wanted.start is not None:
        given = wanted.start.to(stack.like)
        fresh = max(4, wanted.block - given.shape[2])  # what is given may be a space that J does not leave
        start = torch.cat([given, start[:, :, :fresh]], 2)
    return start


def _orthonormal(W: Tensor, Q: Tensor) -> Tensor:
    """A basis of W beside Q: the second time makes it so to rounding, the next ones where there was little but that."""
    for again in range(6):
        inside = Q.mT @ W
        if again > 1 and not (inside.abs() > 8 * torch.finfo(W.dtype).eps).any():
            break
        W = torch.linalg.qr(W - Q @ inside).Q
    return W


def _go_on(A: Counted, worst: float, wanted: Wanted) -> None:
    """Raise NotConverged at the limit, and Impatient where another way is cheaper."""
    if A.passes >= wanted.limit or not np.isfinite(worst):
        raise NotConverged(
            f"Residuals must be at most {wanted.tolerance:.0e} of the largest singular value",
            f"{worst:.1e} after {A.passes} passes",
            "Use solver='dense', a larger tol, or a higher precision.",
        )
    if wanted.patience is not None and not wanted.patience(A.passes, worst):
        raise Impatient


def _shown(
    A: Counted, own: list[int], wanted: Wanted, U: Tensor, S: Tensor, V: Tensor, Q: Tensor, rows: Tensor
) -> list[Found]:
    """Triplets with their residuals, from products, and what random vectors show of the rest of J."""
    k = wanted.k
    z = _outside(A, Q, wanted.seed)
    JV, JU = A.forward(V[:, :, :k].contiguous(), own), A.adjoint(torch.cat([U[:, :, :k], z], 2), own)
    forth, back = JV - U[:, :, :k] * S[:, None, :k], JU[:, :, :k] - V[:, :, :k] * S[:, None, :k]
    off = torch.maximum(forth.norm(dim=1), back.norm(dim=1))
    norms = _norms(A, own, rows, JU[:, :, k:])
    return [
        Found(U[i, :, :k], S[i, : k + 1], V[i, :, :k], off[i], *norms[i], A.products, A.passes) for i in range(len(own))
    ]


def _outside(A: Counted, Q: Tensor, seed: int) -> Tensor:
    """Random signs, without what is in the space; none where J is there, or the space is all there is."""
    samples = 0 if isinstance(A.stack, Formed) or Q.shape[2] == min(A.shape[1:]) else SAMPLES
    signs = torch.randint(0, 2, (Q.shape[1], samples), generator=torch.Generator().manual_seed(seed + 1)) * 2 - 1
    z = signs.to(Q).expand(len(Q), -1, -1)
    return z - Q @ (Q.mT @ z)


def _norms(A: Counted, own: list[int], rows: Tensor, others: Tensor) -> list[tuple[float, float]]:
    """‖J‖_F of each matrix and its standard error, from Qᵀ J and from products with random vectors outside of Q."""
    if isinstance(A.stack, Formed):
        return [(norm, 0.0) for norm in torch.linalg.matrix_norm(A.stack.only(own).J).tolist()]
    inside = wide(torch.linalg.matrix_norm(rows)).square()
    if not others.shape[2]:
        return [(norm, 0.0) for norm in inside.sqrt().tolist()]
    each = wide(others).square().sum(1)
    norms = (inside + each.mean(1)).sqrt()
    spreads = each.std(1) / SAMPLES**0.5 / (2 * norms.clamp_min(TINY))
    return list(zip(norms.tolist(), spreads.tolist(), strict=True))


def _formed(J: Tensor, U: Tensor, S: Tensor, V: Tensor, products: list[int], passes: int) -> list[Found]:
    """What was found of matrices that are there."""
    k = U.shape[2]
    off = torch.maximum((J @ V - U * S[:, None, :k]).norm(dim=1), (J.mT @ U - V * S[:, None, :k]).norm(dim=1))
    norms = torch.linalg.matrix_norm(J).tolist()
    return [Found(U[i], S[i], V[i], off[i], norms[i], 0.0, products[i], passes) for i in range(len(J))]


def _bidiagonalised(A: Counted, wanted: Wanted) -> Found:
    """One matrix by PROPACK."""
    _, d_out, d_in = A.shape

    def times(product: Callable[[Tensor, Sequence[int]], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda v: wide(product(torch.as_tensor(v).to(A.like).reshape(1, -1, 1), [0])).numpy().reshape(-1)

    linear = scipy.sparse.linalg.LinearOperator(
        (d_out, d_in), matvec=times(A.forward), rmatvec=times(A.adjoint), dtype=np.float64
    )
    v0 = torch.randn(d_out, generator=torch.Generator().manual_seed(wanted.seed), dtype=torch.float64).numpy()
    try:
        u, s, vt = scipy.sparse.linalg.svds(
            linear, wanted.k, solver="propack", v0=v0, tol=wanted.tolerance / 10, maxiter=min(d_out, d_in, wanted.limit)
        )
    except np.linalg.LinAlgError as error:
        raise NotConverged(
            f"PROPACK must converge in {min(d_out, d_in, wanted.limit)} steps", str(error), "Use solver='krylov'."
        ) from error
    order = np.argsort(-s)
    U, S, V = (torch.as_tensor(a.copy()).to(A.like) for a in (u[:, order], s[order], vt[order].T))
    (f,) = _shown(A, [0], wanted, U[None], S[None], V[None], U[None], (V * S)[None])
    worst = float(f.residuals.max() / S[0]) if S[0] > 0 else 0.0
    if not worst <= wanted.tolerance:
        raise NotConverged(
            f"Residuals must be at most {wanted.tolerance:.0e} of the largest singular value", f"{worst:.1e}",
            "Use solver='krylov' or 'dense', or a larger tol.",
        )  # fmt: skip
    return f
