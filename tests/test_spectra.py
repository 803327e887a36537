"""Spectra: every solver against numpy, from products and from J; costs, announcements, and failures to converge."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from families import LENGTH, frozen, model_of, prompt
from torch import Tensor

import secant as sc
from secant import memory as resources
from secant.analyses.case import imaged
from secant.errors import BadArgument, NotConverged, TooLarge
from secant.memory import in_batches, limited
from secant.operators import cost as costs, decomposition as spectra, solvers
from secant.operators.batched import Blocks, MatrixBatch, SingleMatrix, token_terms
from secant.operators.operator import Matrix, Operator
from secant.operators.solvers import Wanted


@pytest.fixture(scope="module")
def run() -> sc.Run:
    return frozen("llama")


def operator_of(J: torch.Tensor, T: int = 1) -> Operator:
    return Operator.from_dense(J.reshape(len(J), T, -1), torch.ones(T, J.shape[1] // T, dtype=J.dtype))


def spectrum(values: np.ndarray, shape: tuple[int, int]) -> torch.Tensor:
    """A matrix with these singular values."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(n, len(values))))[0] for n in shape)
    return torch.from_numpy(U * values @ V.T)


class Hidden:
    """Products with a matrix that nobody is shown."""

    def __init__(self, J: Tensor) -> None:
        self._J, self.vectors, self.passes = J, 0, 0

    def forward(self, v: Tensor) -> Tensor:
        self.vectors, self.passes = self.vectors + v.shape[1], self.passes + 1
        return self._J @ v

    def adjoint(self, u: Tensor) -> Tensor:
        self.vectors, self.passes = self.vectors + u.shape[1], self.passes + 1
        return self._J.T @ u


def hidden(J: torch.Tensor, T: int = 1) -> Operator:
    """The same operator, known by its products alone."""
    op = operator_of(J, T)
    return Operator(Hidden(J), op.input, op.output, op.bias)


N = 120
SPECTRA = {
    "flat": np.ones(N),
    "slow": np.arange(1, N + 1) ** -0.5,
    "fast": 2.0 ** -np.arange(N),
    "faster": 10.0 ** -np.arange(N),
    "rank-deficient": np.r_[3.0, 2.0, np.zeros(N - 2)],
    "clustered": np.r_[2.0, 2.0, 2.0, np.ones(N - 3)],
    "near-equal": np.r_[2.0, 2.0 - 1e-9, 2.0 - 2e-9, np.linspace(1, 0, N - 3)],
    "zero": np.zeros(N),
}

# ------------------------------------------------------------------------------------------- solvers


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solver", ["dense", "gram", "krylov", "by products", "propack", "auto"])
def test_every_solver_against_numpy(solver: str, dtype: torch.dtype, kind: str) -> None:
    """All triplets of a few, each of the blocks too; residuals are measured again here."""
    values = SPECTRA[kind]
    J = spectrum(values, (N, 150)).to(dtype)
    op, name = (hidden(J, 2), "krylov") if solver == "by products" else (operator_of(J, 2), solver)
    f, tolerance = sc.svd(op, 4, solver=name), 1e-12 if dtype == torch.float64 else 1e-4
    largest = max(values.max(), 1e-300)
    np.testing.assert_allclose(f.S, np.sort(values)[::-1][:4], atol=largest * (1e-12 if tolerance < 1e-6 else 2e-5))
    off = torch.maximum((J @ f.V - f.U * f.S).norm(dim=0), (J.T @ f.U - f.V * f.S).norm(dim=0))
    assert (off <= tolerance * largest).all()
    torch.testing.assert_close(f.residuals, off, rtol=0, atol=200 * torch.finfo(dtype).eps * largest)
    for side in (f.U, f.V):
        np.testing.assert_allclose(side.T @ side, np.eye(4), atol=1e-9 if dtype == torch.float64 else 1e-4)
    assert (op.output @ f.U >= -1e-6 * largest).all()
    exact = float((values**2).sum() ** 0.5)
    assert abs(f.frobenius - exact) <= 6 * f.spread + 1e-4 * exact
    assert f.solver in solvers.SOLVERS
    blocks = sc.svd(op, 3, per_token=True, solver=name)
    for t, g in enumerate(blocks):
        own = J.view(N, 2, 75)[:, t].double()
        exact_S = np.linalg.svd(own, compute_uv=False)
        np.testing.assert_allclose(g.S, exact_S[:3], atol=largest * (1e-12 if tolerance < 1e-6 else 2e-5))
        assert g.residuals.max() <= tolerance * max(g.S[0].item(), 1e-300)
        assert abs(g.frobenius - np.linalg.norm(exact_S)) <= 6 * g.spread + 1e-4 * largest
        assert g.V.shape == (75, 3)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("solver", ["dense", "gram", "krylov", "propack", "auto"])
def test_the_held_network_by_every_solver(run: sc.Run, solver: str, per_token: bool) -> None:
    op = run.operator()
    J = op.dense()
    found = sc.svd(op, 4, solver=solver, per_token=per_token)
    for t, f in enumerate(found if per_token else [found]):
        own = J[:, t] if per_token else J.flatten(1)
        np.testing.assert_allclose(f.S, np.linalg.svd(own, compute_uv=False)[:4], rtol=1e-11)
        torch.testing.assert_close(own @ f.V, f.U * f.S, rtol=0, atol=1e-11 * float(f.S[0]))
        assert (op.output @ f.U >= 0).all()


@pytest.mark.parametrize("formed", [False, True])
def test_a_solver_is_a_function_and_a_row(monkeypatch: pytest.MonkeyPatch, formed: bool) -> None:
    """Found by its name, and by `auto` where its row says that it costs least; nothing else names it."""
    asked: list[tuple[int, int, int]] = []

    def made_up(batch: MatrixBatch, wanted: Wanted) -> list[solvers.Triplets]:
        asked.append(batch.shape)
        return solvers.SOLVERS["dense" if formed else "krylov"].solve(batch, wanted)

    nothing = lambda d_out, d_in, wanted: 0.0  # noqa: E731
    row = solvers.Solver(made_up, nothing, nothing, nothing, 0.0, "always", formed)
    monkeypatch.setitem(solvers.SOLVERS, "made_up", row)
    J = spectrum(SPECTRA["slow"], (N, 150))
    for op, solver in (
        (operator_of(J), "made_up"),
        (operator_of(J), "auto"),
        (hidden(J), "made_up"),
        (hidden(J), "auto"),
    ):
        before, f = len(asked), sc.svd(op, 2, solver=solver)
        assert len(asked) == before + 1
        np.testing.assert_allclose(f.S, SPECTRA["slow"][:2], rtol=1e-12)
    with pytest.raises(BadArgument, match="made_up; got 'another'"):
        sc.svd(hidden(J), 2, solver="another")


def test_all_triplets() -> None:
    J = spectrum(np.arange(1.0, 21), (20, 30))
    for solver in ("dense", "krylov", "auto"):
        f = sc.svd(operator_of(J), 20, solver=solver)
        torch.testing.assert_close(f.U @ torch.diag(f.S) @ f.V.T, J, rtol=0, atol=1e-11)
        assert f.stable_rank == pytest.approx(7.175)
        assert f.following == 0
        assert f.complete
    with pytest.raises(BadArgument, match="PROPACK finds fewer than all 20 triplets; got k = 20"):
        sc.svd(operator_of(J), 20, solver="propack")


def test_products_and_passes_are_counted() -> None:
    op = hidden(spectrum(SPECTRA["slow"], (N, 150)))
    f = sc.svd(op, 4, solver="krylov")
    assert (op.products.vectors, op.products.passes) == (f.products, f.passes)
    assert f.products < 2 * N


def test_what_does_not_converge_is_an_error() -> None:
    op = hidden(spectrum(1 - 1e-7 * np.arange(N), (N, 150)).float())
    with pytest.raises(NotConverged, match=r"at most 1e-30 of the largest singular value; got .* after 30\d passes"):
        sc.svd(op, 4, solver="krylov", tol=1e-30)
    with pytest.raises(NotConverged, match="Residuals must be at most 1e-30"):
        sc.svd(operator_of(op.products._J), 4, solver="propack", tol=1e-30)
    assert sc.svd(op, 4, solver="dense").solver == "dense"


def test_numbers_that_are_not_finite() -> None:
    J = spectrum(SPECTRA["slow"], (N, 150))
    J[3, 4] = torch.nan
    for solver in ("auto", "dense", "krylov"):
        with pytest.raises(BadArgument, match="An operator must be finite"):
            sc.svd(operator_of(J), 2, solver=solver)
    with pytest.raises(NotConverged, match="Products with J must be finite"):
        sc.svd(hidden(J), 2, solver="krylov")


def test_a_looser_tolerance_takes_fewer_products() -> None:
    op = hidden(spectrum(SPECTRA["slow"], (N, 150)))
    loose, tight = (sc.svd(op, 4, solver="krylov", tol=tol) for tol in (1e-2, 1e-10))
    assert loose.products < tight.products
    assert loose.residuals.max() <= 1e-2 * loose.S[0]
    assert tight.residuals.max() <= 1e-10 * tight.S[0]


def test_a_start_saves_products() -> None:
    J = spectrum(SPECTRA["slow"], (N, 150))
    first = sc.svd(hidden(J, 2), 4, solver="krylov")
    near = hidden(J + 1e-10 * spectrum(np.ones(N), (N, 150)), 2)
    cold, warm = (sc.svd(near, 4, solver="krylov", tol=1e-9, start=start) for start in (None, first))
    assert warm.products < cold.products
    torch.testing.assert_close(warm.S, cold.S, rtol=1e-8, atol=0)
    each = sc.svd(near, 3, per_token=True, solver="krylov", start=sc.svd(hidden(J, 2), 3, per_token=True))
    assert len(each) == 2
    for bad in (each, sc.svd(operator_of(J[:, :75]), 3)):
        with pytest.raises(BadArgument, match="A start is an SVD of an operator of the same shape"):
            sc.svd(near, 4, start=bad)


def test_one_matrix_that_does_not_converge_is_decomposed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "PATIENCE", 24)
    monkeypatch.setattr(spectra, "dense_plans", partial(costs.dense_plans, solver="krylov"))
    easy = spectrum(0.3 ** np.arange(N), (N, 150))
    hard = spectrum(1 + 1e-3 * np.arange(N)[::-1], (N, 150))
    found = spectra.leading(torch.stack([easy, hard, 2 * easy]), torch.ones(N, dtype=torch.float64), 2)
    assert [f.solver for f in found] == ["krylov", "dense", "krylov"]
    for J, f in zip((easy, hard, 2 * easy), found, strict=True):
        torch.testing.assert_close(f.S, torch.linalg.svdvals(J)[:2], rtol=1e-12, atol=0)


def test_a_start_that_leads_nowhere_misses_nothing() -> None:
    """Exact singular vectors, but not the leading ones: a space that J does not leave."""
    J = spectrum(np.r_[5.0, 4.0, 3.0, 2.0, 1.0, np.zeros(N - 5)], (N, 150))
    U, S, Vh = torch.linalg.svd(J, full_matrices=False)
    wrong = spectra.SVD(U[:, 2:4], S[2:4], Vh[2:4].T, S[2:4] * 0, 1.0, "dense", 0, 0)
    torch.testing.assert_close(sc.svd(hidden(J), 2, solver="krylov", start=wrong).S, S[:2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_start_from_before_something_larger_came(dtype: torch.dtype) -> None:
    values = np.r_[1.2, 1.0, np.full(N - 2, 0.9)]
    J = spectrum(values, (N, 150)).to(dtype)
    U, S, Vh = torch.linalg.svd(J, full_matrices=False)
    old = spectra.SVD(U[:, 1:2], S[1:2], Vh[1:2].T, S[1:2] * 0, 1.0, "dense", 0, 0)
    f = sc.svd(hidden(J), 1, solver="krylov", start=old)
    assert f.S[0].item() == pytest.approx(1.2, rel=1e-4)


@pytest.mark.parametrize("shape", [(40, 16), (16, 40), (40, 40), (9, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_blocks_of_few_columns(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Spaces that are all there is; many tokens, in groups."""
    d_out, d_in = shape
    J = torch.randn(d_out, 70, d_in, generator=torch.Generator().manual_seed(1)).to(dtype)
    op = hidden(J.flatten(1), 70)
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 6e-2}[dtype]
    for k in (1, 4):
        for t, f in enumerate(sc.svd(op, k, per_token=True, solver="krylov")):
            exact = np.linalg.svd(J[:, t].double(), compute_uv=False)
            np.testing.assert_allclose(f.S, exact[:k], rtol=tolerance)


@pytest.mark.parametrize("solver", ["dense", "gram", "krylov", "by products", "auto"])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e25])
def test_numbers_of_any_size(size: float, solver: str) -> None:
    """In float32, whose squares reach from 1e-45 to 3e38."""
    J = spectrum(SPECTRA["slow"], (N, 150))
    small = (J * size).float()
    op, name = (hidden(small, 2), "krylov") if solver == "by products" else (operator_of(small, 2), solver)
    f, g = sc.svd(op, 4, solver=name), sc.svd(op, 4, solver=name, per_token=True)[1]
    np.testing.assert_allclose(f.S.double() / size, SPECTRA["slow"][:4], rtol=3e-5)
    off = (J @ f.V.double() - f.U.double() * f.S.double() / size).norm(dim=0)
    assert off.max() <= 2e-4
    assert f.stable_rank == pytest.approx(float((SPECTRA["slow"] ** 2).sum()), rel=0.1)
    exact = np.linalg.svd(J.view(N, 2, 75)[:, 1], compute_uv=False)
    np.testing.assert_allclose(g.S.double() / size, exact[:4], rtol=3e-5)


def test_two_numbers_in_a_matrix_of_zeros() -> None:
    J = torch.zeros(40, 40, dtype=torch.float64)
    J[0, 0] = J[1, 1] = 1
    f = sc.svd(hidden(J), 4, solver="krylov")
    np.testing.assert_allclose(f.S, [1, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(f.U.T @ f.U, np.eye(4), atol=1e-9)


def test_costs_of_a_block_are_those_of_the_network(run: sc.Run) -> None:
    op = run.operator()
    assert costs.estimated_pace(op.block(3)) == costs.estimated_pace(op)
    assert costs.estimated_pace(2 * op).vector == costs.estimated_pace(op).vector


def test_the_same_seed_gives_the_same_answer(run: sc.Run) -> None:
    op = run.operator()
    for solver in ("krylov", "propack", "auto"):
        one, two, other = (sc.svd(op, 4, solver=solver, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(one.U, two.U)
        assert torch.equal(one.V, two.V)
        torch.testing.assert_close(one.S, other.S, rtol=1e-11, atol=0)


def test_16_bits() -> None:
    """J is formed in 16 bits and decomposed in float32; by products it is as good as products in 16 bits are."""
    for dtype, tolerance in ((torch.bfloat16, 5e-2), (torch.float16, 1e-2)):
        op = frozen("llama", "sdpa", dtype).operator()
        f = sc.svd(op, 2)
        assert f.S.dtype == torch.float32
        exact = np.linalg.svd(op.dense().flatten(1).float(), compute_uv=False)
        np.testing.assert_allclose(f.S, exact[:2], rtol=1e-4)
        g = sc.svd(op, 2, solver="krylov")
        np.testing.assert_allclose(g.S, exact[:2], rtol=tolerance)
        assert f.noise == pytest.approx(torch.finfo(dtype).eps * f.S[0].item())


# ------------------------------------------------------------------------------------------- what is found


def test_near_equal_values_are_a_block() -> None:
    J = spectrum(np.r_[9.0, 5.0, 5.0, 5.0, 3.0, 2.0, 2.0, np.linspace(1, 0, N - 7)], (N, 150))
    for solver in ("dense", "krylov"):
        f = sc.svd(operator_of(J), 6, solver=solver)
        assert f.blocks == [range(1), range(1, 4), range(4, 5), range(5, 6)]
        assert not f.complete  # the sixth is one of two
        assert sc.svd(operator_of(J), 5, solver=solver).complete
    apart = sc.svd(operator_of(spectrum(SPECTRA["slow"], (N, 150))), 4)
    assert apart.blocks == [range(i, i + 1) for i in range(4)]


def test_a_block_is_what_residuals_could_turn() -> None:
    """At a loose tolerance less can be told apart."""
    values = np.r_[2.0, 1.999, np.linspace(1, 0, N - 2)]
    op = operator_of(spectrum(values, (N, 150)))
    assert sc.svd(op, 2).blocks == [range(1), range(1, 2)]
    f = sc.svd(op, 2)
    loose = spectra.SVD(f.U, f.S, f.V, f.S * 1e-3, f.frobenius, "krylov", 0, 0, following=1.0)
    assert loose.blocks == [range(2)]


def test_energy_and_what_the_leading_triplets_make_of_the_output(run: sc.Run) -> None:
    op = run.operator()
    J, x = op.dense().flatten(1), op.input.flatten()
    U, S, Vh = torch.linalg.svd(J, full_matrices=False)
    f = sc.svd(op, 5)
    torch.testing.assert_close(f.energy, S[:5].square().cumsum(0) / S.square().sum(), rtol=1e-10, atol=0)
    made = [(U[:, :i] * S[:i]) @ (Vh[:i] @ x) + op.bias for i in range(1, 6)]
    expected = [float((y - op.output).norm() / op.output.norm()) for y in made]
    np.testing.assert_allclose(sc.missed(op, f), expected, rtol=1e-8)
    every = sc.svd(op, 32, per_token=True)
    share = sc.missed(op, every)
    assert len(share) == 32
    assert share[-1] <= 1e-12
    assert share[0] > 0.01
    with pytest.raises(BadArgument, match="as many blocks; got 3 SVDs"):
        sc.missed(op, every[:3])
    with pytest.raises(BadArgument, match="Triplets of this operator have vectors of"):
        sc.missed(op, every[0])
    assert sc.svd(operator_of(torch.zeros(4, 6)), 2).energy.tolist() == [1, 1]


def test_error_bars_hold() -> None:
    """Of 60 estimates of ‖J‖_F without J, two thirds are within one standard error or so, and all within six."""
    J = spectrum(SPECTRA["slow"], (N, 150))
    exact = float(J.norm())
    off = []
    for seed in range(60):
        f = sc.svd(hidden(J), 2, solver="krylov", tol=1e-2, seed=seed)
        assert 0 < f.spread < 0.1 * exact
        off.append(abs(f.frobenius - exact) / f.spread)
    assert 0.4 < np.mean(np.array(off) <= 1) < 0.9
    assert max(off) < 6
    assert abs(f.stable_rank - (exact / float(f.S[0])) ** 2) <= 6 * f.stable_rank_spread + 1e-2


def test_norms_without_j(run: sc.Run) -> None:
    """Of the whole and of each block, from the same products; the mean of many is right, and so is the error bar."""
    op = run.operator()
    exact = op.dense().square().sum((0, 2))
    every = sc.frobenius(op, per_token=True, samples=400)
    for f, true in zip(every, exact.tolist(), strict=True):
        assert abs(f.value - true) <= 5 * f.spread
        assert f.spread < 0.2 * true
    whole = sc.frobenius(op, samples=400)
    assert whole.value == pytest.approx(sum(f.value for f in every))
    assert abs(whole.value - float(exact.sum())) <= 5 * whole.spread
    assert sc.frobenius(op, samples=300) == sc.frobenius(op, samples=300)
    there = sc.frobenius(op.solidified(), per_token=True)
    np.testing.assert_allclose([f.value for f in there], exact, rtol=1e-12)
    assert {f.spread for f in there} == {0.0}
    off = [
        abs((f := sc.frobenius(op, samples=30, seed=seed)).value - float(exact.sum())) / f.spread for seed in range(60)
    ]
    assert 0.5 < np.mean(np.array(off) <= 1) < 0.85
    with pytest.raises(BadArgument, match="samples = 1"):
        sc.frobenius(op, samples=1)


def test_svd_of_zero() -> None:
    for op in (operator_of(torch.zeros(4, 6)), hidden(torch.zeros(40, 60))):
        f = sc.svd(op, 3)
        assert f.S.tolist() == [0, 0, 0]
        assert f.stable_rank == 0
        assert f.U.isfinite().all()
        assert (f.U.norm(dim=0) - 1).abs().max() < 1e-6
        assert f.blocks == [range(3)]


def test_stable_rank_divides_by_its_own_largest(run: sc.Run) -> None:
    """Trap 6 of the reference code: all tokens divided by token 0's σ₁."""
    op = run.operator()
    S = np.linalg.svd(op.dense().flatten(1), compute_uv=False)
    assert sc.stable_rank(op) == pytest.approx((S**2).sum() / S[0] ** 2)
    each = sc.stable_rank(op, per_token=True)
    assert each == pytest.approx([f.stable_rank for f in sc.svd(op, 1, per_token=True)])


def test_svd_refuses(run: sc.Run) -> None:
    for bad in (0, 33):
        with pytest.raises(BadArgument, match=f"1 to 32 singular triplets; got k = {bad}"):
            sc.svd(run.operator(), bad)
    with pytest.raises(BadArgument, match="A solver is one of auto, dense, gram, krylov, propack; got 'magic'"):
        sc.svd(run.operator(), 1, solver="magic")
    with pytest.raises(BadArgument, match="tol = 0"):
        sc.svd(run.operator(), 1, tol=0.0)
    with pytest.raises(BadArgument, match="A start is an SVD, or one for each token"):
        sc.svd(run.operator(), 1, start=[])
    with pytest.raises(BadArgument, match="A seed is a whole number"):
        sc.svd(run.operator(), 1, seed=2**64 - 1)
    assert sc.svd(run.operator(), 1, max_memory=1e16).S.shape == (1,)


# ------------------------------------------------------------------------------------------- what it costs


@pytest.fixture(scope="module")
def large() -> sc.Operator:
    """Wide enough that products are cheaper than J."""
    sizes = {"hidden_size": 384, "intermediate_size": 4096, "num_attention_heads": 6, "num_key_value_heads": 6}
    return sc.freeze(model_of("llama", dtype=torch.float32, **sizes), prompt()).operator()


def test_auto_forms_j_or_not_by_cost(large: sc.Operator, run: sc.Run) -> None:
    pace = costs.estimated_pace(large)
    for k, formed in ((2, False), (64, True)):
        wanted = Wanted(k, 1e-4)
        best = min(costs.plans(large, wanted, None), key=lambda plan: plan.cost(pace))
        assert best.form == formed
    assert sc.svd(large, 2).spread > 0  # J was not formed
    assert sc.svd(large, 64).spread == 0
    assert sc.svd(run.operator(), 2).spread == 0


def test_auto_goes_over_to_j_where_products_do_not_converge(
    monkeypatch: pytest.MonkeyPatch, large: sc.Operator
) -> None:
    monkeypatch.setattr(spectra._Patience, "__call__", lambda self, passes, worst: False)
    f = sc.svd(large, 2)
    assert f.spread == 0
    np.testing.assert_allclose(f.S, np.linalg.svd(large.dense().flatten(1), compute_uv=False)[:2], rtol=1e-4)


def test_patience() -> None:
    patience = spectra._Patience(each=1.0, other=20.0, tolerance=1e-4)
    assert all(patience(passes, 0.1) for passes in range(3, 15, 2))  # nothing is judged so early
    assert not patience(17, 0.1)
    falling = spectra._Patience(each=1.0, other=20.0, tolerance=1e-4)
    assert all(falling(passes, 10.0 ** -(passes / 5)) for passes in range(3, 19, 2))


def test_memory_decides(large: sc.Operator) -> None:
    with pytest.raises(TooLarge, match=r"must fit in the allowed memory; got .* of 1\.0 KiB"):
        sc.svd(large, 2, max_memory=1024.0)
    with pytest.raises(TooLarge, match="fewer triplets, a shorter prompt, or allow more with max_memory"):
        sc.svd(large, 2, solver="dense", max_memory="100KiB")
    assert sc.svd(large, 2, max_memory="1GiB").S.shape == (2,)


@pytest.mark.slow
def test_chunks_follow_the_memory_that_is_allowed(large: sc.Operator) -> None:
    graph = large.products
    with limited("1GiB"):
        most = graph.batch_size
    with limited("1MiB"):
        few = graph.batch_size
        J = large.dense()
    assert few < most
    torch.testing.assert_close(J, large.dense(), rtol=1e-4, atol=1e-4)


def test_out_of_memory_is_halved_and_tried_again() -> None:
    asked: list[int] = []

    def product(limit: int, kind: type[Exception], text: str) -> Callable[[Tensor], Tensor]:
        def double(columns: Tensor) -> Tensor:
            asked.append(columns.shape[1])
            if columns.shape[1] > limit:
                raise kind(text)
            return 2 * columns

        return double

    x = torch.randn(3, 20)
    for kind, text in (
        (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (MemoryError, ""),
    ):
        asked.clear()
        assert torch.equal(in_batches(product(5, kind, text), x, 16), 2 * x)
        assert asked == [16, 8, 4, 4, 4, 4, 4]
        with pytest.raises(TooLarge, match="A pass through the network must fit in memory"):
            in_batches(product(0, kind, text), x, 16)
    with pytest.raises(RuntimeError, match="another"):
        in_batches(product(0, RuntimeError, "another"), x, 16)


@pytest.mark.slow
def test_long_work_is_announced(
    large: sc.Operator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING, "secant"):
        sc.svd(large, 2)
    assert not caplog.records
    monkeypatch.setattr(resources, "LONG", 0.0)
    with caplog.at_level(logging.WARNING, "secant"):
        sc.svd(large, 2)
        sc.svd(large, 2, solver="dense")
        sc.svd(large, 2, per_token=True)
    said = [record.message for record in caplog.records]
    assert "SVD of 384 x 4224, by products: about" in said[0]
    assert "SVD of 384 x 4224, forming J: about" in said[1]
    assert "SVD of 11 blocks of 384 x 384, forming J: about" in said[2]
    assert "of memory (" in said[0]
    caplog.clear()
    monkeypatch.setattr(resources, "LONG", 60.0)
    monkeypatch.setattr(resources, "free", lambda device: 1e6)
    with caplog.at_level(logging.WARNING, "secant"):
        sc.svd(large, 2, solver="dense", max_memory="1GiB")
    assert "(977 KiB free)" in caplog.records[0].message


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "per_token"), [("dense", False), ("krylov", False), ("gram", True)])
def test_memory_is_estimated_within_a_factor_of_two(solver: str, per_token: bool) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    op = sc.freeze(model_of("llama", dtype=torch.float32, **sizes), [i % 90 for i in range(64)]).operator()
    (plan,) = costs.plans(op, Wanted(8, 1e-4), 64 if per_token else None, solver)
    sc.svd(op, 8, solver=solver, per_token=per_token)
    most = allocated(lambda: sc.svd(op, 8, solver=solver, per_token=per_token))
    assert 0.5 <= plan.memory / most <= 2.0


def test_memory_of_every_row_is_estimated_within_a_factor_of_two() -> None:
    """As the image of J goes through them."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    op = sc.freeze(model_of("llama", dtype=torch.float32, **sizes), [i % 90 for i in range(64)]).operator()
    assert 0.5 <= costs.row_plan(op).memory / allocated(lambda: imaged(op)) <= 2.0


def allocated(call: Callable[[], object]) -> int:
    """Bytes that the profiler sees allocated at once, above what was there before."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    now = most = 0
    events = sorted(
        (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    )
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    return most


def test_blocks_by_products_are_those_of_j(run: sc.Run) -> None:
    op = run.operator()
    J = op.dense()
    batch = Blocks(op.products, op.shape, LENGTH, [0, 4, 10], op.bias)
    V, U = torch.randn(3, 32, 5, dtype=torch.float64), torch.randn(3, 32, 5, dtype=torch.float64)
    own = J[:, [0, 4, 10]].movedim(1, 0)
    torch.testing.assert_close(batch.forward(V), own @ V)
    torch.testing.assert_close(batch.adjoint(U), own.mT @ U)
    torch.testing.assert_close(batch.select([1]).forward(V[:1]), own[1:2] @ V[:1])
    whole = SingleMatrix(op.products, op.shape, op.bias)
    torch.testing.assert_close(whole.adjoint(U[:1])[0], J.flatten(1).T @ U[0])


def test_what_each_token_makes_of_the_output(run: sc.Run) -> None:
    op = run.operator()
    expected = torch.einsum("otd,td->to", op.dense(), op.input)
    torch.testing.assert_close(token_terms(op), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(token_terms(op).sum(0) + op.bias, op.output, rtol=0, atol=1e-12)
    assert isinstance(op.solidified().products, Matrix)
