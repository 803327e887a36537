"""The cost of each plan for leading singular triplets: which plan is cheapest, and how many seconds and bytes it takes.

A plan either forms J or multiplies by it through the network. Its cost is counted in passes through the network, in
vectors in those passes, and in operations of dense algebra. The cheapest plan is chosen by operations, from shapes
alone, so that the same command always takes the same plan. Announcements are in seconds, at the pace of products that
are timed here.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from secant.memory import announce, multiplications
from secant.operators.operator import (
    CHUNK,
    TENSORS_PER_VECTOR,
    ColumnSlice,
    Composed,
    Graph,
    Operator,
    Products,
    Summed,
)
from secant.operators.solvers import NARROW, SOLVERS, Wanted

OPERATIONS_PER_BYTE = 17.0
"""Operations of a matrix product in the time that reading one byte takes: close to this on CPUs and GPUs."""

PASS_OVERHEAD = {"cpu": 1e9, "cuda": 3e11}
"""Operations in the time that Python takes to start a pass through the network: some milliseconds."""

BLOCK_BATCH = 8
"""Batch size of token blocks that are decomposed in memory."""

TIMED_FROM = 20.0
"""Estimated seconds from which products are timed; shorter work needs no announcement."""


@dataclass(frozen=True)
class Pace:
    """The cost of a batched pass through the network, and of each vector in it, in operations or in seconds."""

    call: float
    vector: float


@dataclass(frozen=True)
class Plan:
    """A solver and what it costs.

    Attributes:
        solver: Its name in SOLVERS.
        form: Whether J is formed first.
        passes: Batched passes through the network.
        vectors: Vectors in those passes, all together.
        operations: Operations of dense algebra.
        memory: Bytes.

    """

    solver: str
    form: bool
    passes: float
    vectors: float
    operations: float
    memory: float

    def cost(self, pace: Pace, speed: float = 1.0) -> float:
        """The cost in operations, or in seconds.

        Args:
            pace: The pace of products, in operations or in seconds.
            speed: Operations per second, if the pace is in seconds.

        """
        return self.passes * pace.call + self.vectors * pace.vector + self.operations / speed


def estimated_pace(op: Operator) -> Pace:
    """The pace of an operator's products in operations: weights are read once per pass and used for each token."""
    weights, work, _ = _work(op.products)
    started = PASS_OVERHEAD.get(op.bias.device.type, PASS_OVERHEAD["cuda"])
    return Pace(OPERATIONS_PER_BYTE * weights * op.bias.element_size() + started, 2.0 * work)


def measured_pace(op: Operator) -> Pace:
    """The pace of an operator's products in seconds, as timed here."""

    def took(count: int) -> float:
        u = torch.randn(op.shape[0], count, generator=torch.Generator().manual_seed(0)).to(op.bias)
        start = time.perf_counter()
        op.products.adjoint(u)[0, 0].item()
        return time.perf_counter() - start

    took(1)  # warms up
    one, count = took(1), 4
    while (several := took(count)) < 2 * one and count < CHUNK:  # while reading the weights dominates, vectors are free
        count *= 4
    each = max(0.0, several - one) / (count - 1)
    return Pace(max(0.0, one - each), each)


def announce_plan(what: str, op: Operator, plan: Plan) -> None:
    """Announce a plan before it runs, if it takes long or needs much memory."""
    speed = multiplications(op.bias.device, op.bias.dtype)
    seconds = plan.cost(estimated_pace(op)) / speed
    if seconds > TIMED_FROM:
        seconds = plan.cost(measured_pace(op), speed)
    announce(what, seconds, plan.memory, op.bias.device)


def dense_plans(shape: tuple[int, int, int], wanted: Wanted, like: Tensor, solver: str = "auto") -> list[Plan]:
    """Plans for the triplets of n matrices that are in memory.

    Args:
        shape: (n, d_out, d_in).
        wanted: What is requested of each matrix.
        like: A tensor of the type that solvers compute with.
        solver: A solver's name, or "auto" for every solver that `auto` considers.

    """
    n, d_out, d_in = shape
    allowed = ("always", "few") if 6 * wanted.width <= min(d_out, d_in) else ("always",)
    found = []
    for name in [key for key, row in SOLVERS.items() if row.automatic in allowed] if solver == "auto" else [solver]:
        own = SOLVERS[name]
        products = NARROW * 2 * d_out * d_in * own.vectors(d_out, d_in, wanted)
        operations = n * (own.operations(d_out, d_in, wanted) + products) + own.overhead * math.ceil(n / BLOCK_BATCH)
        memory = min(n, BLOCK_BATCH) * own.elements(d_out, d_in, wanted) * like.element_size()
        found.append(Plan(name, False, 0, 0, operations, memory))
    return found


def row_plan(op: Operator) -> Plan:
    """The plan that computes every row of J, a batch at a time, and keeps none."""
    (rows, n_in), batch_size = op.shape, min(op.shape[0], op.chunk, _batch_size(op))
    return Plan(
        "rows", False, math.ceil(rows / batch_size), rows, 0.0, batch_size * (_bytes_per_vector(op) + 2 * n_in * 8)
    )


def model_plan(op: Operator, count: int) -> Plan:
    """The plan that runs the model itself on prompts of this length: it uses about twice the weights of a live pass.

    Args:
        op: The operator of a prompt.
        count: The number of prompts.

    """
    batch_size = min(count, _batch_size(op))
    return Plan("model", False, math.ceil(count / batch_size), 2 * count, 0.0, batch_size * _bytes_per_vector(op))


def plans(op: Operator, wanted: Wanted, tokens: int | None, solver: str = "auto") -> list[Plan]:
    """Plans for an operator, or for the blocks of its tokens.

    Args:
        op: The operator.
        wanted: What is requested of it, or of each block.
        tokens: The number of blocks; None for the whole operator.
        solver: A solver's name, or "auto" for every solver that `auto` considers.

    """
    found = []
    if solver == "auto" or SOLVERS[solver].formed:
        found += _forming_plans(op, wanted, tokens, solver)
    for name in SOLVERS if solver == "auto" else [solver]:
        own = SOLVERS[name]
        if not own.formed and (solver != "auto" or own.automatic != "never"):
            found.append(_product_plan(op, wanted, tokens, name))
    return found


def _forming_plans(op: Operator, wanted: Wanted, tokens: int | None, solver: str) -> list[Plan]:
    (d_out, n_in), size, like, n = op.shape, op.bias.element_size(), _solver_type(op), tokens or 1
    J = d_out * n_in * (size + (like.element_size() if size < 4 else 0) * min(n, BLOCK_BATCH) / n)
    rows, pass_ = row_plan(op), min(d_out, op.chunk, _batch_size(op)) * _bytes_per_vector(op)
    there = dense_plans((n, d_out, n_in // n), wanted, like, solver)
    return [Plan(w.solver, True, rows.passes, rows.vectors, w.operations, max(w.memory, pass_) + J) for w in there]


def _product_plan(op: Operator, wanted: Wanted, tokens: int | None, solver: str) -> Plan:
    (d_out, n_in), like, n = op.shape, _solver_type(op), tokens or 1
    own, few, size = SOLVERS[solver], max(1, min(n, CHUNK // wanted.block)), n_in // n
    together, vectors = few * wanted.block, n * own.vectors(d_out, size, wanted)
    batch_size = min(together, _batch_size(op))
    memory = few * own.elements(d_out, size, wanted) * like.element_size() + batch_size * _bytes_per_vector(op)
    columns = 2 * together * n_in * op.bias.element_size() if tokens else 0  # each as long as all tokens
    operations = n * own.operations(d_out, size, wanted) + own.overhead * math.ceil(n / few)
    return Plan(solver, False, math.ceil(vectors / batch_size), vectors, operations, memory + columns)


def _solver_type(op: Operator) -> Tensor:
    return op.bias.new_empty(0, dtype=torch.promote_types(op.bias.dtype, torch.float32))


def _work(products: Products) -> tuple[float, float, float]:
    """The weights that products read, these times the tokens that use them, and elements of the largest tensor."""
    if isinstance(products, Graph):
        return products.weights, products.weights * len(products.x), products.largest
    inner: tuple[Products, ...] = ()
    if isinstance(products, ColumnSlice):
        inner = (products.of,)
    elif isinstance(products, Composed):
        inner = (products.first, products.then)
    elif isinstance(products, Summed):
        inner = tuple(term for _, term in products.terms)
    weights, work, largest = zip(*map(_work, inner), strict=True) if inner else ((0.0,), (0.0,), (0.0,))
    return sum(weights), sum(work), max(largest)


def _batch_size(op: Operator) -> int:
    """How many vectors one pass through the network takes."""
    return op.products.batch_size if isinstance(op.products, Graph) else CHUNK


def _bytes_per_vector(op: Operator) -> float:
    """Bytes that a pass allocates for each vector."""
    return TENSORS_PER_VECTOR * max(_work(op.products)[2], *op.shape) * op.bias.element_size()
