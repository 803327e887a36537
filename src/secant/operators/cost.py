"""What each way to leading singular triplets costs: what the cheapest is, and how many seconds and bytes it takes.

A way forms J first, or knows it by products. It is counted in passes through the network, vectors in them, and
operations of dense algebra. Which is cheapest is decided in operations, from shapes alone, so that the same command
takes the same way twice; what is announced beforehand is in seconds, at the pace of products that are timed here.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from secant.memory import announce, multiplications
from secant.operators.operator import ALIVE, CHUNK, Columns, Composed, Graph, Operator, Products, Summed
from secant.operators.solvers import SLOW, SOLVERS, Wanted

READ = 17.0
"""Operations of a matrix product in the time in which a byte is read: close to this on CPUs and GPUs."""

STARTED = {"cpu": 1e9, "cuda": 3e11}
"""Operations in the time in which Python starts a pass through the network: some milliseconds."""

TOGETHER = 8
"""Blocks of tokens that are decomposed together, where J is there."""

QUICK = 20.0
"""Seconds, by count, below which nothing is timed: nothing will have to be announced."""


@dataclass(frozen=True)
class Pace:
    """What a batched pass through the network takes, and each vector in it: operations, or seconds."""

    call: float
    vector: float


@dataclass(frozen=True)
class Way:
    """A solver, whether J is formed first, passes, vectors, operations of dense algebra, and bytes."""

    solver: str
    form: bool
    passes: float
    vectors: float
    operations: float
    memory: float

    def cost(self, pace: Pace, speed: float = 1.0) -> float:
        """Operations; or seconds, of a pace in seconds and a speed in operations a second."""
        return self.passes * pace.call + self.vectors * pace.vector + self.operations / speed


def counted(op: Operator) -> Pace:
    """The pace of an operator's products in operations: weights are read once a pass, and used for each token."""
    weights, work, _ = _size(op.products)
    started = STARTED.get(op.bias.device.type, STARTED["cuda"])
    return Pace(READ * weights * op.bias.element_size() + started, 2.0 * work)


def timed(op: Operator) -> Pace:
    """The pace of an operator's products in seconds, as measured."""

    def took(count: int) -> float:
        u = torch.randn(op.shape[0], count, generator=torch.Generator().manual_seed(0)).to(op.bias)
        start = time.perf_counter()
        op.products.adjoint(u)[0, 0].item()
        return time.perf_counter() - start

    took(1)  # warms up
    one, count = took(1), 4
    while (several := took(count)) < 2 * one and count < CHUNK:  # as long as the weights are read, vectors are free
        count *= 4
    each = max(0.0, several - one) / (count - 1)
    return Pace(max(0.0, one - each), each)


def said(what: str, op: Operator, way: Way) -> None:
    """Announce a way beforehand, where it takes long or much."""
    speed = multiplications(op.bias.device, op.bias.dtype)
    seconds = way.cost(counted(op)) / speed
    if seconds > QUICK:
        seconds = way.cost(timed(op), speed)
    announce(what, seconds, way.memory, op.bias.device)


def of_matrices(shape: tuple[int, int, int], wanted: Wanted, like: Tensor, solver: str = "auto") -> list[Way]:
    """Ways to the triplets of n matrices that are there; by one solver if it is named.

    Where most triplets are wanted, LAPACK is the only sensible one; PROPACK never is the cheapest.
    """
    n, d_out, d_in = shape
    few = ("gram", "krylov") if 6 * wanted.width <= min(d_out, d_in) else ()
    found = []
    for name in ("dense", *few) if solver == "auto" else (solver,):
        own = SOLVERS[name]
        products = SLOW * 2 * d_out * d_in * own.vectors(d_out, d_in, wanted)
        operations = n * (own.operations(d_out, d_in, wanted) + products) + own.started * math.ceil(n / TOGETHER)
        memory = min(n, TOGETHER) * own.kept(d_out, d_in, wanted) * like.element_size()
        found.append(Way(name, False, 0, 0, operations, memory))
    return found


def every_row(op: Operator) -> Way:
    """Computing each row of J, some at a time, and keeping none."""
    (rows, n_in), at_once = op.shape, min(op.shape[0], op.chunk, _at_once(op))
    return Way("rows", False, math.ceil(rows / at_once), rows, 0.0, at_once * (_each(op) + 2 * n_in * 8))


def ways(op: Operator, wanted: Wanted, tokens: int | None, solver: str = "auto") -> list[Way]:
    """Ways to those of an operator, or of so many of its blocks; by a solver if it is named."""
    found = []
    if solver == "auto" or SOLVERS[solver].formed:
        found += _formed(op, wanted, tokens, solver)
    if solver == "auto" or not SOLVERS[solver].formed:
        found.append(_by_products(op, wanted, tokens, "krylov" if solver == "auto" else solver))
    return found


def _formed(op: Operator, wanted: Wanted, tokens: int | None, solver: str) -> list[Way]:
    (d_out, n_in), size, like, n = op.shape, op.bias.element_size(), _like(op), tokens or 1
    J = d_out * n_in * (size + (like.element_size() if size < 4 else 0) * min(n, TOGETHER) / n)
    rows, pass_ = every_row(op), min(d_out, op.chunk, _at_once(op)) * _each(op)
    there = of_matrices((n, d_out, n_in // n), wanted, like, solver)
    return [Way(w.solver, True, rows.passes, rows.vectors, w.operations, max(w.memory, pass_) + J) for w in there]


def _by_products(op: Operator, wanted: Wanted, tokens: int | None, solver: str) -> Way:
    (d_out, n_in), like, n = op.shape, _like(op), tokens or 1
    own, few, size = SOLVERS[solver], max(1, min(n, CHUNK // wanted.block)), n_in // n
    together, vectors = few * wanted.block, n * own.vectors(d_out, size, wanted)
    at_once = min(together, _at_once(op))
    memory = few * own.kept(d_out, size, wanted) * like.element_size() + at_once * _each(op)
    columns = 2 * together * n_in * op.bias.element_size() if tokens else 0  # each as long as all tokens
    operations = n * own.operations(d_out, size, wanted) + own.started * math.ceil(n / few)
    return Way(solver, False, math.ceil(vectors / at_once), vectors, operations, memory + columns)


def _like(op: Operator) -> Tensor:
    return op.bias.new_empty(0, dtype=torch.promote_types(op.bias.dtype, torch.float32))


def _size(products: Products) -> tuple[float, float, float]:
    """Weights that products read, those times the tokens that they are used for, and the largest tensor of a vector."""
    if isinstance(products, Graph):
        return products.weights, products.weights * len(products.x), products.largest
    parts: tuple[Products, ...] = ()
    if isinstance(products, Columns):
        parts = (products.of,)
    elif isinstance(products, Composed):
        parts = (products.first, products.then)
    elif isinstance(products, Summed):
        parts = tuple(term for _, term in products.terms)
    weights, work, largest = zip(*map(_size, parts), strict=True) if parts else ((0.0,), (0.0,), (0.0,))
    return sum(weights), sum(work), max(largest)


def _at_once(op: Operator) -> int:
    """How many vectors go through the network together."""
    return op.products.at_once if isinstance(op.products, Graph) else CHUNK


def _each(op: Operator) -> float:
    """Bytes that a pass makes of each vector."""
    return ALIVE * max(_size(op.products)[2], *op.shape) * op.bias.element_size()
