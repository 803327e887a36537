"""Singular value decompositions of operators: J = Σ_i σ_i u_i v_iᵀ, of the whole operator or of each token's block.

Columns of U are left singular vectors (directions that J writes at the output), columns of V right ones (directions
that J reads at the input). The sign of a pair is free; it is chosen so that y·u >= 0 for the operator's output y (J.
Golden, TMLR 2025, arXiv 2505.24293, section 3.2). The solver is chosen by cost (secant.operators.cost). Every solver
measures the residual of each triplet, and every residual is within the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import BadArgument, NotConverged, TooLarge, checked, integer, quoted, seeded, share
from secant.memory import Progress, allowance, bytes_in_words, limited
from secant.numeric import relative, wide
from secant.operators.batched import Blocks, DenseBatch, MatrixBatch, SingleMatrix
from secant.operators.cost import BLOCK_BATCH, Plan, announce_plan, dense_plans, estimated_pace, plans
from secant.operators.operator import CHUNK, Matrix, Operator
from secant.operators.solvers import SOLVERS, Impatient, Triplets, Wanted, signs
from secant.operators.spectrum import SVD

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest residual of a triplet, in units of σ₁, by the dtype of the products."""

WARM = 4
"""Krylov blocks after a given start before residuals are checked, so that larger singular values can appear."""

PATIENCE = 60
"""Passes that the cheapest solver of a matrix in memory may take before LAPACK decomposes it."""


@overload
def svd(
    op: Operator, k: int = ..., *, per_token: Literal[False] = ..., solver: str = ..., tol: float | None = ...,
    seed: int = ..., start: SVD | Sequence[SVD] | None = ..., max_memory: float | str | None = ...,
    progress: Progress | None = ...,
) -> SVD: ...  # fmt: skip
@overload
def svd(
    op: Operator, k: int = ..., *, per_token: Literal[True], solver: str = ..., tol: float | None = ...,
    seed: int = ..., start: SVD | Sequence[SVD] | None = ..., max_memory: float | str | None = ...,
    progress: Progress | None = ...,
) -> list[SVD]: ...  # fmt: skip
@overload
def svd(
    op: Operator, k: int = ..., *, per_token: bool, solver: str = ..., tol: float | None = ..., seed: int = ...,
    start: SVD | Sequence[SVD] | None = ..., max_memory: float | str | None = ..., progress: Progress | None = ...,
) -> SVD | list[SVD]: ...  # fmt: skip
@checked
def svd(
    op: Operator,
    k: int = 8,
    *,
    per_token: bool = False,
    solver: str = "auto",
    tol: float | None = None,
    seed: int = 0,
    start: SVD | Sequence[SVD] | None = None,
    max_memory: float | str | None = None,
    progress: Progress | None = None,
) -> SVD | list[SVD]:
    """The leading k singular triplets of an operator, largest first, or a list with those of each token's block.

    Work that takes more than a minute, or more than half of the free memory, is announced beforehand.

    Args:
        op: The operator.
        k: The number of triplets.
        per_token: Whether to decompose each token's block. Signs are chosen by the output of the whole operator.
        solver: A name in `secant.operators.solvers.SOLVERS`: "dense" (LAPACK) and "gram" (eigenvectors of J Jᵀ,
            refined) form J; "krylov" (block Krylov with restarts) and "propack" use products. "auto" takes the cheapest
            that fits in memory by a count of operations, so it takes the same one each time.
        tol: The largest residual, in units of σ₁; by default TOLERANCE for the operator's dtype.
        seed: The seed of random start vectors.
        start: An SVD of a similar operator to start from, or one for each token.
        max_memory: Bytes to work in, or a size such as "4GiB"; by default half of the free memory.
        progress: Called as `progress(what, done, all)` during the work.

    Returns:
        An SVD, or a list with one for each token.

    Raises:
        BadArgument: An argument is outside its range.
        NotConverged: A triplet misses the tolerance, with any solver but "dense".
        TooLarge: The work does not fit in memory.

    >>> import torch
    >>> J = torch.tensor([[[0.0, 2.0]], [[-3.0, 0.0]]])  # (d_out, T, d_in)
    >>> f = svd(Operator.from_dense(J, input=torch.ones(1, 2)), k=2)
    >>> f.S.tolist(), f.V[:, 0].tolist()
    ([3.0, 2.0], [1.0, 0.0])

    """
    if solver not in ("auto", *SOLVERS):
        raise BadArgument(f"A solver is one of auto, {', '.join(SOLVERS)}", quoted(solver), "Choose one of them.")
    T, d_in = op.input.shape
    k = countable(op, k, per_token)
    seed = seeded(seed)
    if tol is not None:
        tol = share(tol, "A tolerance is a share of the largest singular value", "tol = ", "Use, for example, 1e-6.")
    with limited(max_memory):
        tokens = T if per_token else None
        begin = _start_vectors(start, tokens, d_in if per_token else T * d_in)
        wanted = Wanted(k, TOLERANCE[op.bias.dtype] if tol is None else tol, seed=seed, start=begin)
        wanted = wanted if begin is None else replace(wanted, least=WARM)
        if solver == "auto":
            found, _ = _automatic(op, wanted, tokens, progress)
        elif isinstance(op.products, Matrix):
            found = _by_forming(op, wanted, tokens, solver, progress)
        else:
            found = _by_solver(op, wanted, tokens, solver, progress)
    return found if per_token else found[0]


def decomposed(
    op: Operator, k: int, *, per_token: bool = False, seed: int = 0, progress: Progress | None = None
) -> tuple[list[SVD], Operator]:
    """The triplets that `svd` finds by the cheapest plan, and the operator, with J in memory if that plan formed it.

    Args:
        op: The operator.
        k: The number of triplets.
        per_token: Whether to decompose each token's block.
        seed: The seed of random start vectors.
        progress: Called as in `svd`.

    Raises:
        SecantError: What `svd` raises.

    """
    k = countable(op, k, per_token)
    wanted = Wanted(k, TOLERANCE[op.bias.dtype], seed=seed)
    return _automatic(op, wanted, len(op.input) if per_token else None, progress)


def countable(op: Operator, k: int, per_token: bool = False) -> int:
    """The number k, if an operator, or each of its blocks, has so many triplets. Raises BadArgument."""
    most = min(op.shape[0], op.input.shape[1] if per_token else op.shape[1])
    return integer(k, 1, most, f"An operator of this shape has 1 to {most} singular triplets", "k = ")


@checked
def stable_rank(op: Operator, per_token: bool = False) -> float | list[float]:
    """‖J‖_F² / σ₁² of an operator, or a list with that of each token's block.

    Args:
        op: The operator.
        per_token: Whether to return one for each token's block.

    """
    if per_token:
        return [f.stable_rank for f in svd(op, 1, per_token=True)]
    return svd(op, 1).stable_rank


@dataclass(frozen=True)
class Estimate:
    """A number estimated with random vectors.

    Attributes:
        value: The estimate.
        spread: Its standard error; 0 where the value is exact.

    """

    value: float
    spread: float


@overload
def frobenius(op: Operator, *, per_token: Literal[False] = ..., samples: int = ..., seed: int = ...) -> Estimate: ...
@overload
def frobenius(op: Operator, *, per_token: Literal[True], samples: int = ..., seed: int = ...) -> list[Estimate]: ...
@overload
def frobenius(op: Operator, *, per_token: bool, samples: int = ..., seed: int = ...) -> Estimate | list[Estimate]: ...
@checked
def frobenius(op: Operator, *, per_token: bool = False, samples: int = 64, seed: int = 0) -> Estimate | list[Estimate]:
    """‖J‖_F² of an operator, or a list with ‖J_t‖_F² of each token's block, without forming J.

    It is estimated as the mean of ‖Jᵀz‖² over random signs z (M. F. Hutchinson, Commun. Stat. 18 (1989)). All blocks
    share the same products. For the whole operator an SVD gives a closer estimate of ‖J‖_F (`SVD.frobenius`,
    `SVD.spread`).

    Args:
        op: The operator.
        per_token: Whether to return one for each token's block.
        samples: How many random vectors to use.
        seed: Their seed.

    Raises:
        BadArgument: An argument is outside its range.

    """
    samples = integer(samples, 2, 10**6, "An estimate requires at least two random vectors", "samples = ")
    seed = seeded(seed)
    T, d_in = op.input.shape
    if isinstance(op.products, Matrix):
        squares = wide(op.dense()).square().sum((0, 2))
        exact = [Estimate(value, 0.0) for value in squares.tolist()]
        return exact if per_token else Estimate(squares.sum().item(), 0.0)
    each = []
    for some in signs(op.shape[0], samples, seed, op.bias).split(CHUNK, dim=1):
        products = op.products.adjoint(some).view(T, d_in, -1)
        each.append(torch.stack([wide(own).square().sum(0) for own in products]))
    squares = torch.cat(each, dim=1)
    squares = squares if per_token else squares.sum(0, keepdim=True)
    spreads = squares.std(1) / samples**0.5
    found = [Estimate(*pair) for pair in zip(squares.mean(1).tolist(), spreads.tolist(), strict=True)]
    return found if per_token else found[0]


@checked
def missed(op: Operator, f: SVD | Sequence[SVD]) -> Float[Tensor, " k"]:
    """The share of the output that the leading triplets miss: ‖Σ_t J_t^(i) x_t + b - y‖ / ‖y‖.

    J^(i) consists of the first i triplets, i from 1, of the operator or of each token's block.

    Args:
        op: The operator.
        f: Its SVD, or one SVD for each token.

    Raises:
        BadArgument: The number of SVDs is not the number of tokens, or they are those of an operator of another size.

    """
    x, y = op.input, wide(op.output)
    found, inputs = ([f], [x]) if isinstance(f, SVD) else (list(f), list(x[:, None]))
    if len(found) != len(inputs):
        got = f"{len(found)} SVDs"
        raise BadArgument(f"An operator on {len(x)} tokens has as many blocks", got, "Give one for each.")
    for g, own in zip(found, inputs, strict=True):
        if (len(g.U), len(g.V)) != (y.numel(), own.numel()):
            rule = f"Triplets of this operator have vectors of {y.numel()} and {own.numel()} elements"
            raise BadArgument(rule, f"{len(g.U)} and {len(g.V)}", "Give its own SVD.")
    sums = torch.stack([wide(g.reconstruction(own)) for g, own in zip(found, inputs, strict=True)]).sum(0)
    return torch.tensor([relative(part + wide(op.bias), y) for part in sums], dtype=torch.float64)


def leading(J: Float[Tensor, "n d_out d_in"], y: Float[Tensor, " d_out"], k: int) -> list[SVD]:
    """The leading k triplets of each of several matrices in memory, in float32 or wider.

    Args:
        J: The matrices.
        y: The output by which signs are chosen.
        k: The number of triplets.

    """
    return _of_matrices(J, y, Wanted(k, TOLERANCE[torch.promote_types(J.dtype, torch.float32)]), "auto")


def operations(shape: tuple[int, int, int], k: int, like: Tensor) -> float:
    """Operations of dense algebra that `leading` takes.

    Args:
        shape: (n, d_out, d_in).
        k: The number of triplets.
        like: A tensor of the matrices' type and device.

    """
    own = torch.promote_types(like.dtype, torch.float32)
    return min(plan.operations for plan in dense_plans(shape, Wanted(k, TOLERANCE[own]), like.to(own)))


def _of_matrices(
    J: Float[Tensor, "n d_out d_in"], y: Float[Tensor, " d_out"], wanted: Wanted, solver: str
) -> list[SVD]:
    """The triplets by the given solver, or by the cheapest, and by LAPACK where that does not converge soon."""
    if not torch.stack(torch.aminmax(J)).isfinite().all():  # both are NaN if any element is
        raise BadArgument("An operator must be finite", "NaN or infinity", "Check the matrix that you give.")
    batch = DenseBatch(J)
    if solver != "auto":
        return _signed(SOLVERS[solver].solve(batch, wanted), y, solver, J.dtype)
    every, room = dense_plans(batch.shape, wanted, batch.like), allowance(J.device)
    fitting = [plan for plan in every if plan.memory <= room] or [min(every, key=lambda plan: plan.memory)]
    solver = min(fitting, key=lambda plan: plan.operations).solver
    try:
        return _signed(SOLVERS[solver].solve(batch, replace(wanted, limit=PATIENCE)), y, solver, J.dtype)
    except NotConverged:
        if len(J) > 1:  # the others do converge
            each = _groups(len(J), wanted, 1)
            return [f for one, own in each for f in _of_matrices(J[one], y, own, "auto")]
        return _signed(SOLVERS["dense"].solve(batch, wanted), y, "dense", J.dtype)


def _groups(count: int, wanted: Wanted, few: int) -> Iterator[tuple[slice, Wanted]]:
    """Groups of matrices with what is requested of each group."""
    for start in range(0, count, few):
        group = slice(start, min(start + few, count))
        yield group, replace(wanted, start=None if wanted.start is None else wanted.start[group])


def _by_forming(op: Operator, wanted: Wanted, tokens: int | None, solver: str, progress: Progress | None) -> list[SVD]:
    """The triplets of J, which is formed unless it is in memory."""
    report = progress or (lambda what, done, of: None)
    J = _solid(op, progress).dense()
    found: list[SVD] = []
    for group, own in _groups(tokens or 1, wanted, BLOCK_BATCH):
        blocks = J[:, group].movedim(1, 0) if tokens else J.flatten(1)[None]
        found += _of_matrices(blocks, op.output, own, solver)
        report("spectra", len(found), tokens or 1)
    return found


def _by_products(op: Operator, wanted: Wanted, tokens: int | None, solver: str, progress: Progress | None) -> list[SVD]:
    """The triplets from products, without forming J. Raises NotConverged, and Impatient if another plan is cheaper."""
    found: list[SVD] = []
    for group, own in _groups(tokens or 1, wanted, max(1, CHUNK // wanted.block)):
        batch: MatrixBatch
        if tokens:
            batch = Blocks(op.products, op.shape, tokens, range(tokens)[group], op.bias)
        else:
            batch = SingleMatrix(op.products, op.shape, op.bias)
        found += _signed(SOLVERS[solver].solve(batch, _with_progress(own, progress)), op.output, solver, op.bias.dtype)
        if progress:
            progress("spectra", len(found), tokens or 1)
    return found


def _with_progress(wanted: Wanted, progress: Progress | None) -> Wanted:
    """The same request, with its passes reported; their total is a guess."""
    if progress is None:
        return wanted
    patience, report = wanted.patience, progress

    def go_on(passes: int, worst: float) -> bool:
        report("passes", passes, max(2 * wanted.expected, passes + 1))
        return patience is None or patience(passes, worst)

    return replace(wanted, patience=go_on)


def _automatic(
    op: Operator, wanted: Wanted, tokens: int | None, progress: Progress | None
) -> tuple[list[SVD], Operator]:
    """The triplets by the cheapest plan that fits, and the operator, with J in memory if that plan has formed it.

    If a Krylov space converges slowly, J is formed as soon as that is cheaper.
    """
    if isinstance(op.products, Matrix):
        return _by_forming(op, wanted, tokens, "auto", progress), op
    pace, room = estimated_pace(op), allowance(op.bias.device)
    every = plans(op, wanted, tokens)
    fitting = [plan for plan in every if plan.memory <= room]
    if not fitting:
        raise _too_large(min(every, key=lambda plan: plan.memory), room)
    best = min(fitting, key=lambda plan: plan.cost(pace))
    formed = min((plan for plan in fitting if plan.form), key=lambda plan: plan.cost(pace), default=None)
    announce_plan(_description(op, best, tokens), op, best)
    if not best.form:
        if formed is None:
            return _by_products(op, wanted, tokens, best.solver, progress), op
        try:
            patience = _Patience(best.cost(pace) / (2 * wanted.expected), formed.cost(pace), wanted.tolerance)
            return _by_products(op, replace(wanted, patience=patience), tokens, best.solver, progress), op
        except (Impatient, NotConverged):
            announce_plan(_description(op, formed, tokens), op, formed)
    solid = _solid(op, progress)
    return _by_forming(solid, wanted, tokens, "auto", progress), solid


def _solid(op: Operator, progress: Progress | None) -> Operator:
    """The operator with J in memory."""
    report = progress or (lambda what, done, of: None)
    return op.solidified(progress=lambda done, of: report("rows of J", done, of))


@dataclass
class _Patience:
    """Whether a Krylov space may continue: while its remaining cost, at its recent rate, is below that of the other
    plan.

    Residuals fall slowly at first and faster later, so the rate counts only after most of the other plan's cost is
    spent.
    """

    each: float
    other: float
    tolerance: float
    seen: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, passes: int, worst: float) -> bool:
        if self.seen and passes < self.seen[-1][0]:
            self.seen.clear()  # the next group
        self.seen.append((passes, worst))
        if passes * self.each < 0.8 * self.other or len(self.seen) < 4:
            return True
        (before, then), (now, last) = self.seen[-4], self.seen[-1]
        rate = math.log(then / last) / (now - before) if last < then else 0.0
        needed = math.log(last / self.tolerance) / rate if rate else math.inf
        return needed * self.each <= self.other


def _by_solver(op: Operator, wanted: Wanted, tokens: int | None, solver: str, progress: Progress | None) -> list[SVD]:
    """The triplets by the solver that the caller named. Raises NotConverged and TooLarge."""
    (plan,) = plans(op, wanted, tokens, solver)
    if plan.memory > allowance(op.bias.device):
        raise _too_large(plan, allowance(op.bias.device))
    announce_plan(_description(op, plan, tokens), op, plan)
    return (_by_forming if plan.form else _by_products)(op, wanted, tokens, solver, progress)


def _description(op: Operator, plan: Plan, tokens: int | None) -> str:
    what = f"{tokens} blocks of {op.shape[0]} x {op.shape[1] // tokens}" if tokens else f"{op.shape[0]} x {op.shape[1]}"
    return f"SVD of {what}, {'forming J' if plan.form else 'by products'}"


def _too_large(plan: Plan, room: float) -> TooLarge:
    return TooLarge(
        "An SVD must fit in the allowed memory", f"{bytes_in_words(plan.memory)} of {bytes_in_words(room)}",
        "Use solver='auto' or 'krylov', fewer triplets, a shorter prompt, or allow more with max_memory.",
    )  # fmt: skip


def _start_vectors(start: SVD | Sequence[SVD] | None, tokens: int | None, width: int) -> Tensor | None:
    """Right vectors to start from, `[n, d_in, k]`. Raises BadArgument."""
    if start is None:
        return None
    given = list(start) if isinstance(start, Sequence) else [start]
    if not given or not all(isinstance(f, SVD) for f in given):
        raise BadArgument("A start is an SVD, or one for each token", type(start).__name__, "Give what svd returned.")
    V = [f.V for f in given]
    if len(V) != (tokens or 1) or len({v.shape for v in V}) != 1 or len(V[0]) != width:
        raise BadArgument(
            "A start is an SVD of an operator of the same shape, or one for each token",
            f"{len(V)}, of {len(V[0])} elements", "Leave it out, or give what svd returned for that shape.",
        )  # fmt: skip
    return torch.stack(V)


def _signed(found: list[Triplets], y: Tensor, solver: str, dtype: torch.dtype) -> list[SVD]:
    """SVDs with signs such that y·u >= 0; where y·u = 0, the largest element of u is positive."""
    made = []
    for f in found:
        along = y.to(f.U) @ f.U
        largest = f.U.gather(0, f.U.abs().argmax(0, keepdim=True))[0]
        sign = torch.where(along == 0, largest, along).sign()
        sign = torch.where(sign == 0, 1, sign)
        k = f.U.shape[1]
        S, following = f.S[:k], f.S[k].item() if len(f.S) > k else 0.0
        noise = torch.finfo(dtype).eps * S[0].item()
        U, V = f.U * sign, f.V * sign
        made.append(SVD(U, S, V, f.residuals, f.norm, solver, f.products, f.passes, f.spread, following, noise))
    return made
