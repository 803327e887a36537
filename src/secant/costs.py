"""What each way to leading singular triplets costs, in seconds and bytes: from shapes, and from what was measured here.

A way forms J first, or knows it by products. Vectors that go through the network are counted at a pace that is timed on
the operator itself, dense algebra at the speed of a matrix product on this machine.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from secant.operator import CHUNK, Operator
from secant.resources import multiplications
from secant.solvers import SLOW, SOLVERS, Wanted

CALLS = 3e-3
"""Seconds that a solver takes however small its matrices are."""

TOGETHER = 8
"""Blocks of tokens that are decomposed together, where J is there."""


@dataclass(frozen=True)
class Way:
    """A solver, whether J is formed first, seconds, and bytes beside those of the operator."""

    solver: str
    form: bool
    seconds: float
    memory: float


def of_matrices(shape: tuple[int, int, int], wanted: Wanted, like: Tensor) -> list[Way]:
    """Ways to the triplets of n matrices that are there."""
    n, d_out, d_in = shape
    speed, size = multiplications(like.device, like.dtype), like.element_size()
    return [
        Way(
            name,
            False,
            n * (s.operations(d_out, d_in, wanted) + SLOW * 2 * d_out * d_in * s.vectors(d_out, d_in, wanted)) / speed
            + CALLS * math.ceil(n / TOGETHER),
            min(n, TOGETHER) * s.kept(d_out, d_in, wanted) * size,
        )
        for name, s in SOLVERS.items()
        if name != "propack"  # an oracle, never the cheapest
    ]


@dataclass(frozen=True)
class Pace:
    """Seconds that a batched pass through the network takes, and each vector in it."""

    call: float
    vector: float

    def seconds(self, vectors: float, at_once: int) -> float:
        """For so many vectors, so many at once."""
        return self.call * math.ceil(vectors / at_once) + self.vector * vectors


def pace(op: Operator) -> Pace:
    """What a product with one vector takes, and with some more."""

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


def ways(op: Operator, wanted: Wanted, tokens: int | None, pace: Pace) -> list[Way]:
    """Ways to those of an operator, or of so many of its blocks, at the pace of its products."""
    (d_out, n_in), size = op.shape, op.bias.element_size()
    like = op.bias.new_empty(0, dtype=torch.promote_types(op.bias.dtype, torch.float32))
    n, d_in = (tokens, n_in // len(op.input)) if tokens else (1, n_in)
    J = d_out * n_in * (size + (like.element_size() if size < 4 else 0) * min(n, TOGETHER) / n)
    forming = pace.seconds(d_out, min(d_out, CHUNK))
    formed = [
        Way(way.solver, True, way.seconds + forming, way.memory + J)
        for way in of_matrices((n, d_out, d_in), wanted, like)
    ]
    own, width = SOLVERS["krylov"], wanted.block
    few = max(1, min(n, CHUNK // width))
    algebra = own.operations(d_out, d_in, wanted) / multiplications(like.device, like.dtype)
    seconds = pace.seconds(n * own.vectors(d_out, d_in, wanted), few * width) + n * algebra + CALLS * math.ceil(n / few)
    memory = few * own.kept(d_out, d_in, wanted) * like.element_size() + 2 * few * width * n_in * size
    return [*formed, Way("krylov", False, seconds, memory)]
