"""Solvers for leading singular triplets: one function each, for batched matrices of one shape.

A solver takes a batch of matrices, known by products with many vectors, and what is requested of each matrix. To add a
solver, write a function and a row in SOLVERS; nothing else names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, NotConverged
from secant.numeric import wide
from secant.operators.batched import Counted, DenseBatch, MatrixBatch, finite, unit_scale

STEPS = 8
"""Blocks in a Krylov space before it restarts."""

TINY = 1e-30
"""The divisor that replaces a singular value of 0."""

SAMPLES = 8
"""Random vectors that estimate ‖J‖_F outside a Krylov space."""


# ------------------------------------------------------------------------------------------------ what is wanted


@dataclass(frozen=True)
class Wanted:
    """What is requested of a solver: the leading k triplets of each matrix, within a tolerance.

    Attributes:
        k: The number of triplets.
        tolerance: The largest residual, in units of σ₁.
        limit: The most batched passes.
        seed: The seed of random start vectors.
        start: Right vectors of each matrix to start from; without them, start vectors are random.
        patience: Whether to continue, given the number of passes and the largest residual so far in σ₁. None: always.
        steps: Blocks in a Krylov space before it restarts.
        least: Blocks in a Krylov space before its residuals are checked.

    """

    k: int
    tolerance: float
    limit: int = 300
    seed: int = 0
    start: Float[Tensor, "n d_in w"] | None = None
    patience: Callable[[int, float], bool] | None = None
    steps: int = STEPS
    least: int = 1

    @property
    def width(self) -> int:
        """Ritz vectors that a restart keeps: some more than k."""
        return self.k + max(4, self.k // 2)

    @property
    def block(self) -> int:
        """Vectors in a block: at least k, so that all equal singular values are found."""
        return max(self.k, 4)

    def space(self, d_out: int, d_in: int) -> int:
        """Columns of a Krylov space."""
        return min(max(self.steps * self.block, self.width + self.block), d_out, d_in)

    @property
    def expected(self) -> int:
        """The estimated number of blocks until convergence, from the tolerance only."""
        return 11 if self.tolerance >= 1e-6 else 20


@dataclass(frozen=True, eq=False)
class Triplets:
    """The triplets of one matrix that a solver found.

    Attributes:
        U: Left singular vectors in columns.
        S: Singular values; one more than k where there is one, or an estimate of it.
        V: Right singular vectors in columns.
        residuals: The larger of ‖J v - σ u‖ and ‖Jᵀ u - σ v‖.
        norm: ‖J‖_F.
        spread: The standard error of `norm`.
        products: Vectors that the matrix was multiplied by.
        passes: Batched passes.

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
    """Another plan has become cheaper."""


# ------------------------------------------------------------------------------------------------ solvers


def lapack(batch: MatrixBatch, wanted: Wanted) -> list[Triplets]:
    """The full decomposition of each matrix by LAPACK."""
    J, k = _matrices(batch), wanted.k
    U, S, Vh = torch.linalg.svd(J, full_matrices=False)
    products = [min(J.shape[1:])] * len(J)
    return _with_residuals(J, U[:, :, :k], S[:, : k + 1], Vh.mH[:, :, :k], S, products, 1)


def gram(batch: MatrixBatch, wanted: Wanted) -> list[Triplets]:
    """Eigenvectors of J Jᵀ or Jᵀ J, refined by `krylov`: squaring J loses half of the digits."""
    J = _matrices(batch)
    scale = unit_scale(J)
    J = J if (scale.log2().abs() < 20).all() else J * scale[:, None, None]
    if J.shape[1] <= J.shape[2]:
        V = J.mT @ torch.linalg.eigh(J @ J.mT).eigenvectors[:, :, -wanted.width :].flip(2)
    else:
        V = torch.linalg.eigh(J.mT @ J).eigenvectors[:, :, -wanted.width :].flip(2)
    return krylov(batch, replace(wanted, start=V, steps=3))


def krylov(batch: MatrixBatch, wanted: Wanted) -> list[Triplets]:
    """Block Krylov spaces of J Jᵀ with Rayleigh-Ritz and thick restarts, until residuals are within the tolerance.

    C. Musco and C. Musco, NeurIPS 2015, algorithm 2, with an orthonormal space that restarts as in J. Baglama and
    L. Reichel, SIAM J. Sci. Comput. 27 (2005): the leading Ritz vectors stay, and the block of their residuals follows.
    J and Jᵀ of every vector in the space are kept, so that residuals need no extra products. ‖J‖_F is exact within the
    space; outside it is estimated with random vectors (Hutch++; R. A. Meyer et al., SOSA 2021, arXiv 2010.09649).

    Raises:
        NotConverged: The limit of passes is reached.
        Impatient: `wanted.patience` has run out.

    """
    n, d_out, d_in = batch.shape
    most, A, k, start = min(d_out, d_in), Counted(batch), wanted.k, _first_block(batch, wanted)
    size = min(max(wanted.space(d_out, d_in), wanted.width + start.shape[2]), most)
    if size == most:  # the space would be the whole domain
        return _decomposed(A, wanted)
    every = 3 if isinstance(batch, DenseBatch) else 1  # blocks between checks: products with a dense matrix are cheap
    unconverged, found = list(range(n)), dict[int, Triplets]()
    space = _Space(batch.like, n, d_out, d_in, size)
    more = _orthonormal(A.first(start), space.Q)
    z, grown = _random_signs(A, wanted.seed), 0
    Jz = A.adjoint(z, unconverged) if z.shape[2] else z
    while True:
        back = A.adjoint(more, unconverged)
        forth = A.forward(back, unconverged)
        space.add(more, back, forth)
        grown += 1
        full = space.Q.shape[2] + more.shape[2] > size
        if grown >= wanted.least and (full or (space.Q.shape[2] >= 4 * k and grown % every == 0)):
            worst, done = _converged(A, space, wanted, unconverged, z, Jz)
            found.update({unconverged[i]: f for i, f in done.items()})
            left = [i for i in range(len(unconverged)) if i not in done]
            if not left:
                return [found[i] for i in range(n)]
            _check_limits(A, max(worst[i] for i in left), wanted)
            if done:
                unconverged, forth = [unconverged[i] for i in left], forth[left]
                space = space.select(left)
        more = _orthonormal(forth, space.Q)
        if full:
            space.shrink(min(max(wanted.width, size // 2), size - more.shape[2]))


def propack(batch: MatrixBatch, wanted: Wanted) -> list[Triplets]:
    """Golub-Kahan bidiagonalisation by PROPACK, through scipy, one vector at a time, refined by `krylov`.

    PROPACK's vectors have half as many correct digits as its values.

    Raises:
        BadArgument: All triplets are requested; PROPACK finds fewer.
        NotConverged: PROPACK or the refinement does not converge.

    """
    n, d_out, d_in = batch.shape
    if wanted.k >= min(d_out, d_in):
        raise BadArgument(
            f"PROPACK finds fewer than all {min(d_out, d_in)} triplets", f"k = {wanted.k}", "Use solver='dense'."
        )
    found = []
    for i in range(n):
        A = Counted(batch.select([i]))
        V = _bidiagonalised(A, wanted)
        (f,) = krylov(A.batch, replace(wanted, start=V[None]))
        found.append(replace(f, products=f.products + A.products, passes=f.passes + A.passes))
    return found


@dataclass(frozen=True)
class Solver:
    """A solver and the cost of one matrix.

    Attributes:
        solve: The function: triplets of each matrix in a batch.
        vectors: Vectors that J and Jᵀ are multiplied by.
        operations: Other operations, in those of a matrix product that take as long.
        elements: Elements that it keeps in memory.
        overhead: Operations in the time that it takes for the smallest matrices.
        automatic: When "auto" considers it: "always", for "few" triplets of a large matrix, or "never". Where J is not
            formed, "few" means always.
        formed: Whether it requires J itself.

    """

    solve: Callable[[MatrixBatch, Wanted], list[Triplets]]
    vectors: Callable[[int, int, Wanted], float]
    operations: Callable[[int, int, Wanted], float]
    elements: Callable[[int, int, Wanted], float]
    overhead: float
    automatic: Literal["always", "few", "never"]
    formed: bool = False


NARROW, DECOMPOSING = 4.0, 6.0
"""How much slower an operation is than in a large matrix product: in a product with few columns, in a decomposition."""


def _cubes(d_out: int, d_in: int, each: float, along: float) -> float:
    """`each` s³ + `along` l s², where s is the smaller and l the larger dimension."""
    s, l = sorted((d_out, d_in))  # noqa: E741
    return each * s**3 + along * l * s**2


def _grown(d_out: int, d_in: int, wanted: Wanted) -> float:
    """Operations that build a Krylov space once."""
    return NARROW * 6 * (d_out + d_in) * wanted.space(d_out, d_in) ** 2


SOLVERS = {
    "dense": Solver(
        lapack,
        vectors=lambda d_out, d_in, wanted: 2 * wanted.k,
        operations=lambda d_out, d_in, wanted: DECOMPOSING * _cubes(d_out, d_in, 8.0, 4.0),
        elements=lambda d_out, d_in, wanted: 2 * d_out * d_in + _cubes(d_out, d_in, 0.0, 1.0) / max(d_out, d_in),
        overhead=5e7,
        automatic="always",
        formed=True,
    ),
    "gram": Solver(
        gram,
        vectors=lambda d_out, d_in, wanted: 6 * wanted.width,
        operations=lambda d_out, d_in, wanted: (
            DECOMPOSING * _cubes(d_out, d_in, 3.0, 2 / DECOMPOSING) + _grown(d_out, d_in, replace(wanted, steps=3))
        ),
        elements=lambda d_out, d_in, wanted: 4 * min(d_out, d_in) ** 2 + 8 * (d_out + d_in) * wanted.width,
        overhead=2e8,
        automatic="few",
        formed=True,
    ),
    "krylov": Solver(
        krylov,
        vectors=lambda d_out, d_in, wanted: 2 * min(wanted.expected * wanted.block, 2 * min(d_out, d_in)),
        operations=lambda d_out, d_in, wanted: wanted.expected / wanted.steps * _grown(d_out, d_in, wanted),
        elements=lambda d_out, d_in, wanted: 4 * (d_out + d_in) * wanted.space(d_out, d_in),
        overhead=6e8,
        automatic="few",
    ),
    "propack": Solver(
        propack,
        vectors=lambda d_out, d_in, wanted: 26 * wanted.k,
        operations=lambda d_out, d_in, wanted: NARROW * (40 * wanted.k) ** 2 * (d_out + d_in),
        elements=lambda d_out, d_in, wanted: 20 * wanted.k * (d_out + d_in),
        overhead=6e8,
        automatic="never",
    ),
}


# ------------------------------------------------------------------------------------------------ steps of solvers


def _decomposed(A: Counted, wanted: Wanted) -> list[Triplets]:
    """The triplets by LAPACK, for matrices so small that a Krylov space would span them. J is formed first."""
    if isinstance(A.batch, DenseBatch):
        return lapack(A.batch, wanted)
    n, d_out, d_in = A.shape
    basis = torch.eye(min(d_out, d_in)).to(A.like).expand(n, -1, -1).contiguous()
    J = A.adjoint(basis, range(n)).mT if d_out <= d_in else A.forward(basis, range(n))
    return [replace(f, products=A.products, passes=A.passes) for f in lapack(DenseBatch(finite(J)), wanted)]


def _matrices(batch: MatrixBatch) -> Tensor:
    assert isinstance(batch, DenseBatch), "svd forms J for solvers with formed=True"
    return batch.J


def _first_block(batch: MatrixBatch, wanted: Wanted) -> Tensor:
    """The first block: the given vectors and some random ones, or only random vectors."""
    n, _, d_in = batch.shape
    generator = torch.Generator().manual_seed(wanted.seed)
    drawn = torch.randn(d_in, min(wanted.block, d_in), generator=generator, dtype=torch.float64)
    start = drawn.to(batch.like).expand(n, -1, -1)
    if wanted.start is not None:
        given = wanted.start.to(batch.like)
        fresh = max(4, wanted.block // 2)  # the given vectors may span an invariant subspace
        start = torch.cat([given, start[:, :, :fresh]], 2)
    return start


def _orthonormal(W: Tensor, Q: Tensor) -> Tensor:
    """An orthonormal basis of W, orthogonal to Q: repeated until orthogonal to rounding."""
    for again in range(10):
        inside = Q.mT @ W
        if again > 1 and not (inside.abs() > 8 * torch.finfo(W.dtype).eps).any():
            break
        W = W - Q @ inside
        gone = torch.linalg.vector_norm(W, dim=1, keepdim=True) <= (0.5 if again else 0.0)
        if gone.any():  # zero or rounding is left: a random direction replaces it
            W = torch.where(gone, torch.randn(W.shape[1:], generator=torch.Generator().manual_seed(again)).to(W), W)
        W = torch.linalg.qr(W).Q
    return W


def _check_limits(A: Counted, worst: float, wanted: Wanted) -> None:
    """Raises NotConverged at the limit of passes or at NaN, and Impatient if another plan is cheaper."""
    if A.passes >= wanted.limit or not np.isfinite(worst):
        raise NotConverged(
            f"Residuals must be at most {wanted.tolerance:.0e} of the largest singular value",
            f"{worst:.1e} after {A.passes} passes",
            "Use solver='dense', a larger tol, or a higher precision.",
        )
    if wanted.patience is not None and not wanted.patience(A.passes, worst):
        raise Impatient


class _Space:
    """An orthonormal basis Q for each matrix, with JᵀQ (`back`) and J JᵀQ (`forth`), in memory allocated once."""

    def __init__(self, like: Tensor, n: int, d_out: int, d_in: int, size: int) -> None:
        self._all = [like.new_zeros(n, size, d) for d in (d_out, d_in, d_out)]  # one vector per row
        self._used = 0

    @property
    def Q(self) -> Float[Tensor, "n d_out m"]:
        """The basis."""
        return self._all[0][:, : self._used].mT

    @property
    def back(self) -> Float[Tensor, "n d_in m"]:
        """JᵀQ"""
        return self._all[1][:, : self._used].mT

    @property
    def forth(self) -> Float[Tensor, "n d_out m"]:
        """J JᵀQ"""
        return self._all[2][:, : self._used].mT

    def add(self, *more: Tensor) -> None:
        """Append columns to Q, JᵀQ and J JᵀQ."""
        width = more[0].shape[2]
        for all_, columns in zip(self._all, more, strict=True):
            all_[:, self._used : self._used + width] = columns.mT
        self._used += width

    def shrink(self, width: int) -> None:
        """Keep the leading left Ritz vectors only."""
        width = min(width, self._used)
        turn = self.ritz()[1][:, :, :width].mT
        for all_ in self._all:
            all_[:, :width] = turn @ all_[:, : self._used]
        self._used = width

    def select(self, which: list[int]) -> _Space:
        """The spaces of some of the matrices."""
        left = object.__new__(_Space)
        left._all, left._used = [all_[which] for all_ in self._all], self._used
        return left

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Singular values of JᵀQ and its right singular vectors in columns; left Ritz vectors are Q times these.

        In float32 they come from the Gram matrix in float64, where squaring loses nothing; QR of long columns would
        lose digits.
        """
        if self.back.dtype == torch.float64:
            _, S, vh = torch.linalg.svd(finite(torch.linalg.qr(self.back, mode="r").R))
            return S, vh.mT
        rows = self._all[1][:, : self._used]
        slices = (part.double() for part in rows.split(2**16, dim=2))
        values, vectors = torch.linalg.eigh(finite(sum(part @ part.mT for part in slices)))
        return values.flip(1).clamp_min(0).sqrt().to(rows), vectors.flip(2).to(rows)


def _converged(
    A: Counted, space: _Space, wanted: Wanted, unconverged: list[int], z: Tensor, Jz: Tensor
) -> tuple[list[float], dict[int, Triplets]]:
    """The largest residual of each matrix in σ₁, and the triplets of those within the tolerance.

    Args:
        A: The matrices.
        space: Their Krylov spaces.
        wanted: What is requested of them.
        unconverged: The places in A of the matrices in `space`.
        z: Random signs for each matrix in A.
        Jz: Jᵀz.

    """
    k = wanted.k
    S, turn = space.ritz()
    largest = S[:, :1].clamp_min(TINY)
    turn, values = turn[:, :, :k], S[:, None, :k]
    U = space.Q @ turn
    off = (space.forth @ turn / values.clamp_min(TINY) - U * values).norm(dim=1) / largest
    small = S[:, :k] < 0.03 * largest  # dividing by these loses digits: their residuals require a product
    worst = torch.where(small, 0, off).amax(1)
    done = {}
    for i in (worst <= wanted.tolerance).nonzero().flatten().tolist():
        JU = space.back[i] @ turn[i]
        V = _orthonormalized(JU)
        again = small[i].any()
        JV = A.forward(V[None], [unconverged[i]])[0] if again else space.forth[i] @ turn[i] / S[i, :k]
        residuals = torch.maximum((JV - U[i] * S[i, :k]).norm(dim=0), (JU - V * S[i, :k]).norm(dim=0))
        worst[i] = residuals.max() / largest[i, 0]
        if worst[i] <= wanted.tolerance:
            j = unconverged[i]
            norm, spread = _frobenius(A, j, space.Q[i], space.back[i], z[j], Jz[j])
            c = A.scale[j].item()
            own = (U[i], S[i, : k + 1] / c, V, residuals / c, norm / c, spread / c)
            done[i] = Triplets(*own, A.products, A.passes)
    return worst.tolist(), done


def _orthonormalized(JU: Tensor) -> Tensor:
    """Orthogonal columns made orthonormal, zero columns included."""
    Q, R = torch.linalg.qr(JU.double())
    sign = R.diagonal().sign()
    return (Q * torch.where(sign == 0, 1, sign)).to(JU)


def _random_signs(A: Counted, seed: int) -> Tensor:
    """Random signs at the output that estimate ‖J‖_F; none where J is in memory."""
    samples = 0 if isinstance(A.batch, DenseBatch) else SAMPLES
    n, d_out, _ = A.shape
    return signs(d_out, samples, seed + 1, A.like).expand(n, -1, -1)


def signs(rows: int, samples: int, seed: int, like: Tensor) -> Float[Tensor, "rows samples"]:
    """Columns of random signs, for estimates of traces (M. F. Hutchinson, Commun. Stat. 18, 1989)."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 2, (rows, samples), generator=generator) * 2 - 1).to(like)


def _frobenius(A: Counted, own: int, Q: Tensor, back: Tensor, z: Tensor, Jz: Tensor) -> tuple[float, float]:
    """‖J‖_F of a matrix and its standard error: exact within the space, estimated outside it from `Jz`."""
    if isinstance(A.batch, DenseBatch):
        return (torch.linalg.matrix_norm(A.batch.J[own] * A.scale[own])).item(), 0.0
    inside = wide(back.norm()).square().item()
    each = wide(Jz - back @ (Q.T @ z)).square().sum(0)
    norm = (inside + each.mean().item()) ** 0.5
    return norm, each.std().item() / len(each) ** 0.5 / (2 * norm) if norm else 0.0


def _with_residuals(
    J: Tensor, U: Tensor, S: Tensor, V: Tensor, every: Tensor, products: list[int], passes: int
) -> list[Triplets]:
    """The triplets of matrices in memory, with measured residuals."""
    k = U.shape[2]
    off = torch.maximum((J @ V - U * S[:, None, :k]).norm(dim=1), (J.mT @ U - V * S[:, None, :k]).norm(dim=1))
    norms = wide(every).square().sum(1).sqrt().tolist()
    return [Triplets(U[i], S[i], V[i], off[i], norms[i], 0.0, products[i], passes) for i in range(len(J))]


def _bidiagonalised(A: Counted, wanted: Wanted) -> Tensor:
    """Right singular vectors of one matrix by PROPACK."""
    _, d_out, d_in = A.shape
    dtype = np.dtype(
        str(A.like.dtype).removeprefix("torch.")
    )  # in a wider type, rounding would look like singular values

    def times(product: Callable[[Tensor, Sequence[int]], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda v: finite(product(torch.as_tensor(v).to(A.like).reshape(1, -1, 1), [0])).cpu().numpy().reshape(-1)

    linear = scipy.sparse.linalg.LinearOperator((d_out, d_in), times(A.forward), times(A.adjoint), dtype=dtype)
    v0 = torch.randn(d_out, generator=torch.Generator().manual_seed(wanted.seed), dtype=torch.float64).numpy()
    most = min(d_out, d_in, wanted.limit)
    try:
        _, s, vt = scipy.sparse.linalg.svds(linear, wanted.k, solver="propack", v0=v0.astype(dtype), maxiter=most)
    except np.linalg.LinAlgError as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise NotConverged(f"PROPACK must converge in {most} steps", said, "Use solver='krylov'.") from error
    return torch.as_tensor(vt[np.argsort(-s)].T.copy()).to(A.like)
