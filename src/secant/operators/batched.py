"""Stacks of matrices of one shape, which solvers know by products with many vectors of each at once.

They are there, or they are an operator, or the blocks of an operator's tokens, known by products with all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from secant.errors import NotConverged
from secant.operators.operator import CHUNK, Operator, Products


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
        few = max(1, min(CHUNK // vectors.shape[2], 2**26 // (self._whole[1] * vectors.shape[2])))
        parts = [product(self._tokens[i : i + few], vectors[i : i + few]) for i in range(0, len(vectors), few)]
        return torch.cat(parts).to(self.like)

    def only(self, which: Sequence[int]) -> Blocks:
        """Some of the blocks."""
        return Blocks(self._products, self._whole, self._T, [self._tokens[i] for i in which], self._taken)


def parts(op: Operator) -> Float[Tensor, "T d_out"]:
    """J_t x_t, what each token makes of the output: output = Σ parts + bias. One product for each token."""
    T = len(op.input)
    return Blocks(op.products, op.shape, T, range(T), op.bias).forward(op.input[:, :, None])[:, :, 0].to(op.bias)


class Counted:
    """A stack that counts the vectors that each matrix was multiplied by, and the batched passes that it took.

    Each matrix times `scale`, a power of two, so that squares of very small or large numbers are numbers too.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack, self.shape, self.like = stack, stack.shape, stack.like
        self.scale = stack.like.new_ones(stack.shape[0])
        self.products = self.passes = 0

    def first(self, V: Float[Tensor, "n d_in w"]) -> Float[Tensor, "n d_out w"]:
        """J v of all of them, by which the scale is chosen."""
        images = self.forward(V, range(self.shape[0]))
        self.scale = power(images)
        return images * self.scale[:, None, None]

    def forward(self, V: Float[Tensor, "n d_in w"], which: Sequence[int]) -> Float[Tensor, "n d_out w"]:
        """J v of some of the matrices."""
        self.products, self.passes = self.products + V.shape[2], self.passes + 1
        return _finite(self.stack.only(which).forward(V) * self.scale[list(which), None, None])

    def adjoint(self, U: Float[Tensor, "n d_out w"], which: Sequence[int]) -> Float[Tensor, "n d_in w"]:
        """Jᵀ u of some of the matrices."""
        self.products, self.passes = self.products + U.shape[2], self.passes + 1
        return _finite(self.stack.only(which).adjoint(U) * self.scale[list(which), None, None])


def _finite(products: Tensor) -> Tensor:
    """The products. Raises NotConverged at NaN and infinity."""
    if not products.isfinite().all():
        raise NotConverged("Products with J must be finite", "NaN or infinity", "Use a wider precision.")
    return products


def power(J: Float[Tensor, "n d_out w"]) -> Float[Tensor, " n"]:
    """Of each matrix the power of two that takes its largest number near 1; of zeros 1."""
    largest = J.abs().amax((1, 2))
    exponent = torch.frexp(largest).exponent.clamp(-120, 120)
    return torch.where(largest > 0, torch.exp2(-exponent.to(J)), 1)
