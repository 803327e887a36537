"""Solvers of leading singular triplets, one function each, for several matrices of one shape at once.

A solver is given a stack of matrices, which it knows by products with many vectors at once, and what is wanted of each.
Adding one is a function and a row in SOLVERS. This file is torch (and scipy, for PROPACK) only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, NotConverged
from secant.numeric import wide
from secant.operators.batched import Counted, Formed, Stack, power

STEPS = 8
"""Blocks in a Krylov space before it is restarted."""

TINY = 1e-30
"""In place of a singular value of 0, where it divides."""

SAMPLES = 8
"""Random vectors for ‖J‖_F of what is left outside a Krylov space."""


# ------------------------------------------------------------------------------------------------ what is wanted


@dataclass(frozen=True)
class Wanted:
    """The leading k triplets, with residuals of at most `tolerance` σ₁, in at most `limit` batched passes.

    `start`: right vectors to begin from, of each matrix; without it they are drawn with `seed`. `steps`: blocks in a
    Krylov space before it is restarted; `least`: how many it has before it is looked at.
    `patience(passes, worst)`: whether to go on, given the largest residual so far, in σ₁; None: always.
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
    products = [min(J.shape[1:])] * len(J)
    return _formed(J, U[:, :, :k], S[:, : k + 1], Vh.mH[:, :, :k], S, products, 1)


def gram(stack: Stack, wanted: Wanted) -> list[Found]:
    """Eigenvectors of J Jᵀ or Jᵀ J, whose squares cost half of the digits, refined as by `krylov` from there."""
    J = _there(stack)
    scale = power(J)
    J = J if (scale.log2().abs() < 20).all() else J * scale[:, None, None]
    if J.shape[1] <= J.shape[2]:
        V = J.mT @ torch.linalg.eigh(J @ J.mT).eigenvectors[:, :, -wanted.width :].flip(2)
    else:
        V = torch.linalg.eigh(J.mT @ J).eigenvectors[:, :, -wanted.width :].flip(2)
    return krylov(stack, replace(wanted, start=V, steps=3))


def krylov(stack: Stack, wanted: Wanted) -> list[Found]:
    """Block Krylov spaces of J Jᵀ, Rayleigh-Ritz in them, and thick restarts until residuals are small enough.

    C. Musco and C. Musco, NeurIPS 2015, algorithm 2, with the space kept orthonormal and restarted as by J. Baglama and
    L. Reichel, SIAM J. Sci. Comput. 27 (2005): the leading Ritz vectors stay, and the block of their residuals follows.
    J and Jᵀ of every vector of the space are kept, so that residuals are known from products that were made anyway.
    ‖J‖_F is that within the space, exactly, and of what is left outside by random vectors (Hutch++; R. A. Meyer et al.,
    SOSA 2021, arXiv 2010.09649). Raises NotConverged.
    """
    n, d_out, d_in = stack.shape
    most, A, k, start = min(d_out, d_in), Counted(stack), wanted.k, _start(stack, wanted)
    size = min(max(wanted.space(d_out, d_in), wanted.width + start.shape[2]), most)
    if size == most:  # the space would be all there is
        return _all(A, wanted)
    every = 3 if isinstance(stack, Formed) else 1  # how often to look: products with a matrix are cheap
    open_, found = list(range(n)), dict[int, Found]()
    space = _Space(stack.like, n, d_out, d_in, size)
    more = _orthonormal(A.first(start), space.Q)
    z, grown = _signs(A, wanted.seed), 0
    Jz = A.adjoint(z, open_) if z.shape[2] else z
    while True:
        back = A.adjoint(more, open_)
        forth = A.forward(back, open_)
        space.add(more, back, forth)
        grown += 1
        full = space.Q.shape[2] + more.shape[2] > size
        if grown >= wanted.least and (full or (space.Q.shape[2] >= 4 * k and grown % every == 0)):
            worst, done = _look(A, space, wanted, open_, z, Jz)
            found.update({open_[i]: f for i, f in done.items()})
            left = [i for i in range(len(open_)) if i not in done]
            if not left:
                return [found[i] for i in range(n)]
            _go_on(A, max(worst[i] for i in left), wanted)
            if done:
                open_, forth = [open_[i] for i in left], forth[left]
                space = space.only(left)
        more = _orthonormal(forth, space.Q)
        if full:
            space.shrink(min(max(wanted.width, size // 2), size - more.shape[2]))


def propack(stack: Stack, wanted: Wanted) -> list[Found]:
    """Golub-Kahan bidiagonalisation by PROPACK, through scipy, one vector at a time; refined as by `krylov` from there.

    Its vectors are good to half of the digits that its values are good to. Raises NotConverged.
    """
    n, d_out, d_in = stack.shape
    if wanted.k >= min(d_out, d_in):
        raise BadArgument(
            f"PROPACK finds fewer than all {min(d_out, d_in)} triplets", f"k = {wanted.k}", "Use solver='dense'."
        )
    found = []
    for i in range(n):
        A = Counted(stack.only([i]))
        V = _bidiagonalised(A, wanted)
        (f,) = krylov(A.stack, replace(wanted, start=V[None]))
        found.append(replace(f, products=f.products + A.products, passes=f.passes + A.passes))
    return found


@dataclass(frozen=True)
class Solver:
    """A solver, and what one matrix costs it: vectors that J and Jᵀ are multiplied with, the other operations, as many
    of a matrix product as take as long, and numbers that it keeps. `started`: operations in the time that it takes
    however small its matrices are. `formed`: it needs J itself.
    """

    solve: Callable[[Stack, Wanted], list[Found]]
    vectors: Callable[[int, int, Wanted], float]
    operations: Callable[[int, int, Wanted], float]
    kept: Callable[[int, int, Wanted], float]
    started: float
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
        started=5e7,
        formed=True,
    ),
    "gram": Solver(
        gram,
        vectors=lambda d_out, d_in, wanted: 6 * wanted.width,
        operations=lambda d_out, d_in, wanted: (
            SLOWER * _cubes(d_out, d_in, 3.0, 2 / SLOWER) + _grown(d_out, d_in, replace(wanted, steps=3))
        ),
        kept=lambda d_out, d_in, wanted: 4 * min(d_out, d_in) ** 2 + 8 * (d_out + d_in) * wanted.width,
        started=2e8,
        formed=True,
    ),
    "krylov": Solver(
        krylov,
        vectors=lambda d_out, d_in, wanted: 2 * min(wanted.expected * wanted.block, 2 * min(d_out, d_in)),
        operations=lambda d_out, d_in, wanted: wanted.expected / wanted.steps * _grown(d_out, d_in, wanted),
        kept=lambda d_out, d_in, wanted: 4 * (d_out + d_in) * wanted.space(d_out, d_in),
        started=6e8,
    ),
    "propack": Solver(
        propack,
        vectors=lambda d_out, d_in, wanted: 26 * wanted.k,
        operations=lambda d_out, d_in, wanted: SLOW * (40 * wanted.k) ** 2 * (d_out + d_in),
        kept=lambda d_out, d_in, wanted: 20 * wanted.k * (d_out + d_in),
        started=6e8,
    ),
}


# ------------------------------------------------------------------------------------------------ parts of them


def _all(A: Counted, wanted: Wanted) -> list[Found]:
    """By LAPACK, of matrices so small that a space would be all of them; by products they are multiplied out."""
    if isinstance(A.stack, Formed):
        return lapack(A.stack, wanted)
    n, d_out, d_in = A.shape
    basis = torch.eye(min(d_out, d_in)).to(A.like).expand(n, -1, -1).contiguous()
    J = A.adjoint(basis, range(n)).mT if d_out <= d_in else A.forward(basis, range(n))
    return [replace(f, products=A.products, passes=A.passes) for f in lapack(Formed(J), wanted)]


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
        fresh = max(4, wanted.block // 2)  # what is given may be a space that J does not leave
        start = torch.cat([given, start[:, :, :fresh]], 2)
    return start


def _orthonormal(W: Tensor, Q: Tensor) -> Tensor:
    """A basis of W beside Q: the second time makes it so to rounding, the next ones where there was little but that."""
    for again in range(10):
        inside = Q.mT @ W
        if again > 1 and not (inside.abs() > 8 * torch.finfo(W.dtype).eps).any():
            break
        W = W - Q @ inside
        gone = torch.linalg.vector_norm(W, dim=1, keepdim=True) <= (0.5 if again else 0.0)
        if gone.any():  # nothing new, or rounding alone: any other direction
            W = torch.where(gone, torch.randn(W.shape[1:], generator=torch.Generator().manual_seed(again)).to(W), W)
        W = torch.linalg.qr(W).Q
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


class _Space:
    """An orthonormal Q of each matrix, with JᵀQ (`back`) and J JᵀQ (`forth`), in memory that is taken once."""

    def __init__(self, like: Tensor, n: int, d_out: int, d_in: int, size: int) -> None:
        self._all = [like.new_zeros(n, size, d) for d in (d_out, d_in, d_out)]  # a vector after the other
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
        """More columns of each."""
        width = more[0].shape[2]
        for all_, columns in zip(self._all, more, strict=True):
            all_[:, self._used : self._used + width] = columns.mT
        self._used += width

    def shrink(self, width: int) -> None:
        """To the leading left Ritz vectors."""
        width = min(width, self._used)
        turn = self.ritz()[1][:, :, :width].mT
        for all_ in self._all:
            all_[:, :width] = turn @ all_[:, : self._used]
        self._used = width

    def only(self, which: list[int]) -> _Space:
        """Some of the matrices."""
        left = object.__new__(_Space)
        left._all, left._used = [all_[which] for all_ in self._all], self._used
        return left

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Singular values of JᵀQ, and its right singular vectors, in columns: left Ritz vectors are Q times those.

        In float32 from its Gram matrix in float64, in which squares lose nothing; long columns would lose digits in QR.
        """
        if self.back.dtype == torch.float64:
            _, S, vh = torch.linalg.svd(torch.linalg.qr(self.back, mode="r").R)
            return S, vh.mT
        rows = self._all[1][:, : self._used]
        parts = (part.double() for part in rows.split(2**16, dim=2))
        values, vectors = torch.linalg.eigh(sum(part @ part.mT for part in parts))
        return values.flip(1).clamp_min(0).sqrt().to(rows), vectors.flip(2).to(rows)


def _look(
    A: Counted, space: _Space, wanted: Wanted, open_: list[int], z: Tensor, Jz: Tensor
) -> tuple[list[float], dict[int, Found]]:
    """The largest residual of each matrix, in σ₁, and what is found of those where it is small enough.

    `z`, `Jz`: random signs for each matrix, and Jᵀ of them.
    """
    k = wanted.k
    S, turn = space.ritz()
    largest = S[:, :1].clamp_min(TINY)
    turn, values = turn[:, :, :k], S[:, None, :k]
    U = space.Q @ turn
    off = (space.forth @ turn / values.clamp_min(TINY) - U * values).norm(dim=1) / largest
    small = S[:, :k] < 0.03 * largest  # there a division loses digits, and products have to show it
    worst = torch.where(small, 0, off).amax(1)
    done = {}
    for i in (worst <= wanted.tolerance).nonzero().flatten().tolist():
        JU = space.back[i] @ turn[i]
        V = _unit(JU)
        again = small[i].any()
        JV = A.forward(V[None], [open_[i]])[0] if again else space.forth[i] @ turn[i] / S[i, :k]
        residuals = torch.maximum((JV - U[i] * S[i, :k]).norm(dim=0), (JU - V * S[i, :k]).norm(dim=0))
        worst[i] = residuals.max() / largest[i, 0]
        if worst[i] <= wanted.tolerance:
            j = open_[i]
            norm, spread = _norm(A, j, space.Q[i], space.back[i], z[j], Jz[j])
            c = A.scale[j].item()
            own = (U[i], S[i, : k + 1] / c, V, residuals / c, norm / c, spread / c)
            done[i] = Found(*own, A.products, A.passes)
    return worst.tolist(), done


def _unit(JU: Tensor) -> Tensor:
    """Orthogonal columns made orthonormal, those that are zero too."""
    Q, R = torch.linalg.qr(JU.double())
    sign = R.diagonal().sign()
    return (Q * torch.where(sign == 0, 1, sign)).to(JU)


def _signs(A: Counted, seed: int) -> Tensor:
    """Random signs at the output, to estimate ‖J‖_F with; none where J is there."""
    samples = 0 if isinstance(A.stack, Formed) else SAMPLES
    n, d_out, _ = A.shape
    return signs(d_out, samples, seed + 1, A.like).expand(n, -1, -1)


def signs(rows: int, samples: int, seed: int, like: Tensor) -> Float[Tensor, "rows samples"]:
    """Columns of random signs, for estimates of traces (M. F. Hutchinson, Commun. Stat. 18, 1989)."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 2, (rows, samples), generator=generator) * 2 - 1).to(like)


def _norm(A: Counted, own: int, Q: Tensor, back: Tensor, z: Tensor, Jz: Tensor) -> tuple[float, float]:
    """‖J‖_F of a matrix and its standard error: within a space, and outside by Jᵀ of random signs (`Jz`)."""
    if isinstance(A.stack, Formed):
        return (torch.linalg.matrix_norm(A.stack.J[own] * A.scale[own])).item(), 0.0
    inside = wide(back.norm()).square().item()
    each = wide(Jz - back @ (Q.T @ z)).square().sum(0)
    norm = (inside + each.mean().item()) ** 0.5
    return norm, each.std().item() / len(each) ** 0.5 / (2 * norm) if norm else 0.0


def _formed(J: Tensor, U: Tensor, S: Tensor, V: Tensor, every: Tensor, products: list[int], passes: int) -> list[Found]:
    """What was found of matrices that are there."""
    k = U.shape[2]
    off = torch.maximum((J @ V - U * S[:, None, :k]).norm(dim=1), (J.mT @ U - V * S[:, None, :k]).norm(dim=1))
    norms = wide(every).square().sum(1).sqrt().tolist()
    return [Found(U[i], S[i], V[i], off[i], norms[i], 0.0, products[i], passes) for i in range(len(J))]


def _bidiagonalised(A: Counted, wanted: Wanted) -> Tensor:
    """Right singular vectors of one matrix by PROPACK."""
    _, d_out, d_in = A.shape
    dtype = np.dtype(str(A.like.dtype).removeprefix("torch."))  # in a wider one it takes rounding for singular values

    def times(product: Callable[[Tensor, Sequence[int]], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda v: product(torch.as_tensor(v).to(A.like).reshape(1, -1, 1), [0]).cpu().numpy().reshape(-1)

    linear = scipy.sparse.linalg.LinearOperator((d_out, d_in), times(A.forward), times(A.adjoint), dtype=dtype)
    v0 = torch.randn(d_out, generator=torch.Generator().manual_seed(wanted.seed), dtype=torch.float64).numpy()
    most = min(d_out, d_in, wanted.limit)
    try:
        _, s, vt = scipy.sparse.linalg.svds(linear, wanted.k, solver="propack", v0=v0.astype(dtype), maxiter=most)
    except np.linalg.LinAlgError as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise NotConverged(f"PROPACK must converge in {most} steps", said, "Use solver='krylov'.") from error
    return torch.as_tensor(vt[np.argsort(-s)].T.copy()).to(A.like)
