"""Batches of matrices of one shape, which solvers multiply by several vectors for each matrix.

A batch consists of matrices in memory, of one operator, or of the blocks of an operator's tokens, which are multiplied
through the whole operator.
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
class MatrixBatch(Protocol):
    """A batch of matrices `[n, d_out, d_in]`, known by its products.

    Attributes:
        shape: (n, d_out, d_in).
        like: A tensor of the type and device that solvers compute with.

    """

    shape: tuple[int, int, int]
    like: Tensor

    def forward(self, V: Float[Tensor, "n d_in w"]) -> Float[Tensor, "n d_out w"]:
        """J v, with the same number of vectors v for each matrix."""
        ...

    def adjoint(self, U: Float[Tensor, "n d_out w"]) -> Float[Tensor, "n d_in w"]:
        """Jᵀ u, with the same number of vectors u for each matrix."""
        ...

    def select(self, which: Sequence[int]) -> MatrixBatch:
        """The batch of some of the matrices."""
        ...


class DenseBatch:
    """Matrices in memory, in float32 or wider."""

    def __init__(self, J: Float[Tensor, "n d_out d_in"]) -> None:
        self.J = self.like = J.to(torch.promote_types(J.dtype, torch.float32))
        self.shape = (J.shape[0], J.shape[1], J.shape[2])

    def forward(self, V: Float[Tensor, "n d_in w"]) -> Float[Tensor, "n d_out w"]:
        """J v"""
        return (V.mT @ self.J.mT).mT  # long rows times a matrix run up to ten times as fast as a matrix times columns

    def adjoint(self, U: Float[Tensor, "n d_out w"]) -> Float[Tensor, "n d_in w"]:
        """Jᵀ u"""
        return (U.mT @ self.J).mT

    def select(self, which: Sequence[int]) -> DenseBatch:
        """The batch of some of the matrices, without a copy if they are contiguous."""
        if [*which] == [*range(which[0], which[-1] + 1)]:
            return DenseBatch(self.J[which[0] : which[-1] + 1])
        return DenseBatch(self.J[list(which)])


class SingleMatrix:
    """A batch of one matrix, known by its products.

    Args:
        products: The products of the matrix.
        shape: (d_out, d_in).
        like: A tensor of the type that the products take.

    """

    def __init__(self, products: Products, shape: tuple[int, int], like: Tensor) -> None:
        self._products, self._like = products, like
        self.like = like.to(torch.promote_types(like.dtype, torch.float32))
        self.shape = (1, *shape)

    def forward(self, V: Float[Tensor, "n d_in w"]) -> Float[Tensor, "n d_out w"]:
        """J v"""
        return self._products.forward(V[0].to(self._like))[None].to(self.like)

    def adjoint(self, U: Float[Tensor, "n d_out w"]) -> Float[Tensor, "n d_in w"]:
        """Jᵀ u"""
        return self._products.adjoint(U[0].to(self._like))[None].to(self.like)

    def select(self, which: Sequence[int]) -> SingleMatrix:
        """The batch itself."""
        return self


class Blocks:
    """The blocks `[d_out, d_in]` of some tokens of one matrix `[d_out, T * d_in]`, by products with the whole matrix.

    Args:
        products: The products of the whole matrix.
        shape: (d_out, T * d_in).
        T: The number of tokens.
        tokens: The tokens whose blocks are in the batch.
        like: A tensor of the type that the products take.

    """

    def __init__(self, products: Products, shape: tuple[int, int], T: int, tokens: Sequence[int], like: Tensor) -> None:
        self._products, self._whole, self._T, self._tokens, self._like = products, shape, T, list(tokens), like
        self.like = like.to(torch.promote_types(like.dtype, torch.float32))
        self.shape = (len(self._tokens), shape[0], shape[1] // T)

    def forward(self, V: Float[Tensor, "n d_in w"]) -> Float[Tensor, "n d_out w"]:
        """J_t v_t: each column of the whole product is v_t at its own token and zero at the others."""

        def group(tokens: list[int], V: Tensor) -> Tensor:
            n, d_in, w = V.shape
            columns = self._like.new_zeros(self._T, d_in, n, w)
            for i, t in enumerate(tokens):
                columns[t, :, i] = V[i].to(columns)
            out = self._products.forward(columns.view(self._T * d_in, n * w))
            return out.view(-1, n, w).movedim(1, 0)

        return self._grouped(group, V)

    def adjoint(self, U: Float[Tensor, "n d_out w"]) -> Float[Tensor, "n d_in w"]:
        """J_tᵀ u_t: the slice of Jᵀ u_t at token t."""

        def group(tokens: list[int], U: Tensor) -> Tensor:
            n, d_out, w = U.shape
            out = self._products.adjoint(U.movedim(0, 1).reshape(d_out, n * w).to(self._like))
            every = out.view(self._T, -1, n, w)
            return torch.stack([every[t, :, i] for i, t in enumerate(tokens)])

        return self._grouped(group, U)

    def _grouped(self, product: Callable[[list[int], Tensor], Tensor], vectors: Tensor) -> Tensor:
        """The product for a few tokens at a time, because each column of it is as long as all tokens together."""
        few = max(1, min(CHUNK // vectors.shape[2], 2**26 // (self._whole[1] * vectors.shape[2])))
        groups = [product(self._tokens[i : i + few], vectors[i : i + few]) for i in range(0, len(vectors), few)]
        return torch.cat(groups).to(self.like)

    def select(self, which: Sequence[int]) -> Blocks:
        """The batch of some of the blocks."""
        return Blocks(self._products, self._whole, self._T, [self._tokens[i] for i in which], self._like)


def token_terms(op: Operator, x: Float[Tensor, "T d_in"] | None = None) -> Float[Tensor, "T d_out"]:
    """J_t x_t, the term of each token in output = Σ_t J_t x_t + bias.

    Takes one product for each token.

    Args:
        op: The operator.
        x: Values instead of the operator's own input.
    """
    T, x = len(op.input), op.input if x is None else x
    return Blocks(op.products, op.shape, T, range(T), op.bias).forward(x[:, :, None])[:, :, 0].to(op.bias)


class Counted:
    """A batch that counts the vectors multiplied by each matrix, and the batched passes.

    Each matrix is multiplied by `scale`, a power of two, so that squares of very small or large elements neither
    underflow nor overflow.
    """

    def __init__(self, batch: MatrixBatch) -> None:
        self.batch, self.shape, self.like = batch, batch.shape, batch.like
        self.scale = batch.like.new_ones(batch.shape[0])
        self.products = self.passes = 0
        self._chosen, self._part = [*range(batch.shape[0])], batch

    def first(self, V: Float[Tensor, "n d_in w"]) -> Float[Tensor, "n d_out w"]:
        """J v for all matrices, from which the scale is chosen."""
        images = self.forward(V, range(self.shape[0]))
        self.scale = unit_scale(images)
        return images * self.scale[:, None, None]

    def forward(self, V: Float[Tensor, "n d_in w"], which: Sequence[int]) -> Float[Tensor, "n d_out w"]:
        """J v for some of the matrices."""
        self.products, self.passes = self.products + V.shape[2], self.passes + 1
        return self._of(which).forward(V) * self.scale[list(which), None, None]

    def adjoint(self, U: Float[Tensor, "n d_out w"], which: Sequence[int]) -> Float[Tensor, "n d_in w"]:
        """Jᵀ u for some of the matrices."""
        self.products, self.passes = self.products + U.shape[2], self.passes + 1
        return self._of(which).adjoint(U) * self.scale[list(which), None, None]

    def _of(self, which: Sequence[int]) -> MatrixBatch:
        """The batch of some of the matrices, copied once for consecutive products with the same ones."""
        if len(which) == 1:
            return self.batch.select(which)
        if self._chosen != [*which]:
            self._chosen, self._part = [*which], self.batch.select(which)
        return self._part


def finite(products: Tensor) -> Tensor:
    """The products. Raises NotConverged at NaN or infinity."""
    if not products.isfinite().all():
        raise NotConverged("Products with J must be finite", "NaN or infinity", "Use a wider precision.")
    return products


def unit_scale(J: Float[Tensor, "n d_out w"]) -> Float[Tensor, " n"]:
    """The power of two that brings each matrix's largest element near 1; 1 for a zero matrix."""
    largest = J.abs().amax((1, 2))
    exponent = torch.frexp(largest).exponent.clamp(-120, 120)
    return torch.where(largest > 0, torch.exp2(-exponent.to(J)), 1)
