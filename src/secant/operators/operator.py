"""An operator: the affine map y = Σ_t J_t x_t + b between two activations of a network, blocked by token.

J is known by its products, J v and Jᵀ u, and is formed only on request. Both products come from the autograd graph of
one replay of the frozen network: Jᵀ u is its backward pass, and J v is the backward pass of u ↦ Jᵀ u, which is linear
in u. Nothing here depends on language models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from secant.errors import BadArgument, DamagedFile, ReplayMismatch, checked, integer, number, shown
from secant.foreign import explained
from secant.memory import allowance, in_batches
from secant.numeric import relative, wide
from secant.results.paths import check_file, path_of, replacing, write_tensors
from secant.results.result import Viewed
from secant.results.view import Tokens, View

CHUNK = 256
"""The largest batch size of one pass."""

TENSORS_PER_VECTOR = 3
"""How many tensors as large as the largest one a pass keeps at once for each vector."""

PASS_BYTES = 2**30
"""The most bytes that a pass allocates, however much memory there is: larger batches are not faster."""


@runtime_checkable
class Products(Protocol):
    """A matrix known by its products with many vectors."""

    def forward(self, v: Float[Tensor, "n_in k"]) -> Float[Tensor, "n_out k"]:
        """J v"""
        ...

    def adjoint(self, u: Float[Tensor, "n_out k"]) -> Float[Tensor, "n_in k"]:
        """Jᵀ u"""
        ...


@dataclass(frozen=True)
class Graph:
    """Products with the Jacobian of `y` with respect to `x`, from the autograd graph between them; y is affine in x.

    Attributes:
        x: The input, a leaf of the graph.
        y: The output.
        largest: Elements of the largest tensor that a pass computes for each vector.
        weights: Elements of all weights that each vector is multiplied by.
        parts: If y is a concatenation, the tensors that it consists of. A product with J computes each of them
            separately: through y, the derivative of each would be as long as y.

    """

    x: Tensor
    y: Tensor
    largest: int = 0
    weights: int = 0
    parts: tuple[Tensor, ...] = ()

    def forward(self, v: Float[Tensor, "n_in k"]) -> Float[Tensor, "n_out k"]:
        """J v, as the derivative of u ↦ Jᵀ u, which is linear."""
        us, gradient = self._twice
        if gradient is None:
            return v.new_zeros(self.y.numel(), v.shape[1])
        return in_batches(lambda columns: _pulled(gradient, us, columns), v, self.batch_size)

    def adjoint(self, u: Float[Tensor, "n_out k"]) -> Float[Tensor, "n_in k"]:
        """Jᵀ u"""
        if not self.y.requires_grad:
            return u.new_zeros(self.x.numel(), u.shape[1])
        return in_batches(lambda columns: _pulled(self.y, [self.x], columns), u, self.batch_size)

    @property
    def batch_size(self) -> int:
        """How many vectors fit into one pass."""
        each = TENSORS_PER_VECTOR * max(self.largest, self.x.numel(), self.y.numel()) * self.x.element_size()
        return max(1, min(CHUNK, int(min(PASS_BYTES, allowance(self.x.device) / 2) // each)))

    @cached_property
    def _twice(self) -> tuple[list[Tensor], Tensor | None]:
        """Zeros u for each part of y, and Jᵀ u, on a graph from these zeros; None if y does not depend on x."""
        with torch.inference_mode(False), torch.enable_grad():
            parts = self.parts or (self.y,)
            us = [torch.zeros_like(part, requires_grad=True) for part in parts]
            moving = [(part, u) for part, u in zip(parts, us, strict=True) if part.requires_grad]
            if not moving:
                return us, None
            (gradient,) = torch.autograd.grad(
                [part for part, _ in moving], self.x, [u for _, u in moving], create_graph=True, allow_unused=True
            )
        return us, gradient

    def __reduce__(self) -> Any:
        raise BadArgument(
            "An operator can be copied only with its J",
            "one whose J is not formed",
            "Use op.solidified(), or op.save().",
        )


def _pulled(y: Tensor, xs: Sequence[Tensor], cotangents: Tensor) -> Tensor:
    """Jᵀ times each column of cotangents, in one batched pass. J is the Jacobian of y with respect to all xs."""

    def pull(u: Tensor) -> Tensor:
        found = torch.autograd.grad(y, xs, u.reshape(y.shape), retain_graph=True, materialize_grads=True)
        return found[0].reshape(-1) if len(found) == 1 else torch.cat([part.reshape(-1) for part in found])

    if cotangents.shape[1] == 0:
        return cotangents.new_zeros(sum(x.numel() for x in xs), 0)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            if cotangents.shape[1] == 1:
                return pull(cotangents[:, 0])[:, None]
            return torch.func.vmap(pull)(
                cotangents.T.contiguous()
            ).T  # a leading batch dimension folds into one product
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise ReplayMismatch(
            "An operator's products require the weights of the frozen pass",
            "weights that were changed in place since",
            "Freeze the prompt again.",
        ) from error


@dataclass(frozen=True)
class Matrix:
    """Products with a matrix in memory."""

    matrix: Float[Tensor, "n_out n_in"]

    def forward(self, v: Float[Tensor, "n_in k"]) -> Float[Tensor, "n_out k"]:
        """J v"""
        return self.matrix @ v

    def adjoint(self, u: Float[Tensor, "n_out k"]) -> Float[Tensor, "n_in k"]:
        """Jᵀ u"""
        return self.matrix.T @ u


@dataclass(frozen=True)
class ColumnSlice:
    """Products with some columns of another matrix, which has `total` columns."""

    of: Products
    index: Int[Tensor, " n_in"]
    total: int

    def forward(self, v: Float[Tensor, "n_in k"]) -> Float[Tensor, "n_out k"]:
        """J v"""
        padded = v.new_zeros(self.total, v.shape[1])
        padded[self.index] = v
        return self.of.forward(padded)

    def adjoint(self, u: Float[Tensor, "n_out k"]) -> Float[Tensor, "n_in k"]:
        """Jᵀ u"""
        return self.of.adjoint(u)[self.index]


@dataclass(frozen=True)
class Composed:
    """Products with a product of two matrices; `first` is applied first."""

    first: Products
    then: Products

    def forward(self, v: Float[Tensor, "n_in k"]) -> Float[Tensor, "n_out k"]:
        """J v"""
        return self.then.forward(self.first.forward(v))

    def adjoint(self, u: Float[Tensor, "n_out k"]) -> Float[Tensor, "n_in k"]:
        """Jᵀ u"""
        return self.first.adjoint(self.then.adjoint(u))


@dataclass(frozen=True)
class Summed:
    """Products with a linear combination of matrices of one shape."""

    terms: tuple[tuple[float, Products], ...]

    def forward(self, v: Float[Tensor, "n_in k"]) -> Float[Tensor, "n_out k"]:
        """J v"""
        return torch.stack([factor * term.forward(v) for factor, term in self.terms]).sum(0)

    def adjoint(self, u: Float[Tensor, "n_out k"]) -> Float[Tensor, "n_in k"]:
        """Jᵀ u"""
        return torch.stack([factor * term.adjoint(u) for factor, term in self.terms]).sum(0)


@dataclass(frozen=True)
class Transposed:
    """The adjoint of an operator, for `op.T @ u`."""

    of: Operator

    @property
    def shape(self) -> tuple[int, int]:
        """(T * d_in, d_out)"""
        return self.of.shape[::-1]

    @property
    def T(self) -> Operator:
        """The operator itself."""
        return self.of

    __array_ufunc__ = None  # numpy leaves arithmetic with arrays to the methods below

    def __mul__(self, factor: Any) -> Transposed:
        """A multiple of the adjoint."""
        return (self.of * factor).T

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Transposed:
        """The adjoint divided by a number."""
        return (self.of / divisor).T

    def __matmul__(self, u: Tensor) -> Tensor:
        """Jᵀ u, for u of shape `[d_out]` or `[d_out, n]`.

        Returns:
            A tensor of shape `[T * d_in]` or `[T * d_in, n]`.

        Raises:
            BadArgument: u has another shape.

        """
        return _multiplied(self.of.products.adjoint, u, self.of.shape[0], self.of.bias, "op.T @ u takes d_out elements")


@dataclass(frozen=True, eq=False, repr=False)
class Operator(Viewed):
    """The affine map output = Σ_t J_t input_t + bias, from T tokens of d_in elements each to d_out elements.

    Attributes:
        products: J, known by its products.
        input: The value of the source at the prompt, one row for each token.
        output: The value of the target at the prompt.
        bias: b, computed on its own, never as output - J input.
        about: Its source, target, position, convention, dtype, model and tokens.

    """

    products: Products
    input: Float[Tensor, "T d_in"]
    output: Float[Tensor, " d_out"]
    bias: Float[Tensor, " d_out"]
    about: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_dense(
        J: Float[Tensor, "d_out T d_in"],
        input: Float[Tensor, "T d_in"],
        bias: Float[Tensor, " d_out"] | None = None,
    ) -> Operator:
        """An operator from a matrix in memory; its output is J input + bias.

        Args:
            J: The matrix, blocked by token.
            input: The input, one row for each token.
            bias: b; zero by default.

        >>> op = Operator.from_dense(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]), input=torch.ones(2, 2))
        >>> op.shape, op.output, op.block(1).dense()
        ((1, 4), tensor([4.]), tensor([[[0., 1.]]]))

        """
        b = torch.zeros_like(J[:, 0, 0]) if bias is None else bias
        matrix = J.flatten(1)
        return Operator(Matrix(matrix), input, matrix @ input.flatten() + b, b)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, T * d_in)"""
        return len(self.bias), self.input.numel()

    @property
    def T(self) -> Transposed:
        """The adjoint, for products Jᵀ u."""
        return Transposed(self)

    @overload
    def __matmul__(self, v: Operator) -> Operator: ...
    @overload
    def __matmul__(self, v: Tensor) -> Tensor: ...
    def __matmul__(self, v: Tensor | Operator) -> Tensor | Operator:
        """J v, or the composition with another operator.

        Args:
            v: A tensor of shape `[T * d_in]`, `[T * d_in, n]` or `[T, d_in]`, or an operator, which is applied first.
                The bias of a composition is that of this operator plus J times that of the first.

        Returns:
            A tensor of shape `[d_out]` or `[d_out, n]`, or an operator.

        Raises:
            BadArgument: The shapes do not match, or the first operator does not end where this one begins.

        """
        if isinstance(v, Operator):
            return self._after(v)
        if isinstance(v, Tensor) and v.shape == self.input.shape and v.shape[0] != self.shape[1]:
            v = v.reshape(-1)
        return _multiplied(self.products.forward, v, self.shape[1], self.bias, "op @ v takes T * d_in elements")

    def _after(self, first: Operator) -> Operator:
        """The composition: this operator applied to the output of the first."""
        if self.shape[1] != first.shape[0]:
            raise BadArgument(
                f"The second operator of a composition takes the {first.shape[0]} elements that the first one returns",
                f"one that takes {self.shape[1]}", "Choose a source and a target that meet.",
            )  # fmt: skip
        if not self._same(first.output, self.input):
            raise BadArgument(
                "The second operator of a composition begins where the first one ends", "two different values",
                "Take the first one at all positions (position=None), to the source of the second, from the same run.",
            )  # fmt: skip
        products = Composed(first.products, self.products)
        bias = self.products.forward(first.bias.to(self.bias)[:, None])[:, 0] + self.bias
        return Operator(products, first.input, self.output, bias, {"first": first.about, "then": self.about})

    __array_ufunc__ = None  # numpy leaves arithmetic with arrays to the methods below

    def __rmatmul__(self, v: Any) -> Tensor:
        """Refuses v @ op. Raises BadArgument."""
        raise BadArgument("An operator multiplies what stands to its right", type(v).__name__, "Use op.T @ u.")

    def __add__(self, other: Any) -> Operator:
        """The sum of two operators on the same input: of J, bias and output."""
        return self._combined(1.0, other, 1.0)

    def __radd__(self, other: Any) -> Operator:
        """The sum with another operator, or with 0, from which `sum` starts."""
        return self if isinstance(other, int | float) and other == 0 else self._combined(1.0, other, 1.0)

    def __sub__(self, other: Any) -> Operator:
        """The difference of two operators on the same input: of J, bias and output."""
        return self._combined(1.0, other, -1.0)

    def __rsub__(self, other: Any) -> Operator:
        """Refuses to subtract the operator from anything but an operator. Raises BadArgument."""
        return self._combined(-1.0, other, 1.0)

    def __mul__(self, factor: Any) -> Operator:
        """A multiple of the operator: of J, bias and output."""
        return self._combined(_factor(factor, "multiplied"), self, 0.0)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Operator:
        """The operator divided by a number: J, bias and output."""
        return self * (1 / _factor(divisor, "divided"))

    def __rtruediv__(self, other: Any) -> Operator:
        """Refuses to divide by the operator. Raises BadArgument."""
        raise BadArgument("An operator divides nothing", shown(other), "Solve with op.dense(), or with op.to_scipy().")

    def __neg__(self) -> Operator:
        """Minus the operator."""
        return self * -1.0

    def _combined(self, one: float, other: Any, another: float) -> Operator:
        """`one` times this operator and `another` times the other one."""
        if not isinstance(other, Operator):
            rule = "An operator is added to, or subtracted from, another operator"
            raise BadArgument(rule, shown(other), "Make one with run.operator().")
        if self.shape != other.shape or not self._same(self.input, other.input):
            got = f"{self.shape} and {other.shape}" if self.shape != other.shape else "two different inputs"
            raise BadArgument(
                "Operators must have the same shape and the same input to be added", got,
                "Choose targets of the same width, and the same source of the same run.",
            )  # fmt: skip
        terms = tuple((factor, op) for factor, op in ((one, self), (another, other)) if factor)
        return Operator(
            Summed(tuple((factor, op.products) for factor, op in terms) or ((0.0, self.products),)),
            self.input,
            one * self.output + another * other.output,
            one * self.bias + another * other.bias,
            {"sum": [{"times": factor, **op.about} for factor, op in terms]},
        )

    def _same(self, one: Tensor, other: Tensor) -> bool:
        """Whether two tensors are the same activation, to rounding."""
        eps = torch.finfo(self.bias.dtype).eps
        return one.numel() == other.numel() and relative(one.flatten(), other.flatten()) <= min(0.1, 1e3 * eps)

    def brief(self) -> list[str]:
        """Returns source, target, shape and type."""
        a, (T, d_in) = self.about, self.input.shape
        where = [f"{a['source']} to {a['target']}", f"position {a['position']}"] if "source" in a else []
        return [*where, f"{self.shape[0]} x {T} * {d_in}", str(self.bias.dtype)]

    def view(self) -> View:
        """Source, target, shape, and the prompt it belongs to."""
        a, (d_out, n) = self.about, self.shape
        T, d_in = self.input.shape
        facts: dict[str, Any] = {"shape": f"{d_out} x ({T} * {d_in}): output = J input + bias"}
        facts["type"] = str(self.bias.dtype)
        keys = ("source", "target", "readout", "position", "token", "convention", "precision", "model")
        facts |= {key: str(a[key]) for key in keys if a.get(key) is not None}
        if "tokens" in a:
            facts["tokens"] = Tokens(a["tokens"])
        return View(f"Operator from {n} to {d_out} dimensions", facts)

    @cached_property
    def reconstruction(self) -> float:
        """The relative error ‖J input + bias - output‖ / ‖output‖ against the model's own activation."""
        return relative(self.rebuilt, self.output)

    @cached_property
    def rebuilt(self) -> Float[Tensor, " d_out"]:
        """J input + bias, from one product, in float64."""
        return wide(self.products.forward(self.input.reshape(-1, 1))[:, 0]) + wide(self.bias)

    @property
    def chunk(self) -> int:
        """How many rows of J are computed at once by default."""
        return max(8, min(CHUNK, 2**21 // self.shape[1]))

    @checked
    def dense(
        self, chunk: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Float[Tensor, "d_out T d_in"]:
        """J in full.

        Args:
            chunk: Rows computed at once; by default `op.chunk`.
            progress: Called as `progress(rows done, rows)` after each chunk.

        """
        if chunk is not None:
            chunk = min(integer(chunk, 1, 10**9, "A chunk has at least one row", "chunk = "), len(self.bias))
        if isinstance(self.products, Matrix):
            return self.products.matrix.reshape(len(self.bias), *self.input.shape)
        J = self.bias.new_empty(self.shape)
        for start, rows in self.rows(chunk or self.chunk):
            J[start : start + len(rows)] = rows
            if progress:
                progress(start + len(rows), len(J))
        return J.reshape(len(J), *self.input.shape)

    def rows(self, chunk: int) -> Iterator[tuple[int, Float[Tensor, "rows n_in"]]]:
        """J in batches of rows, each with the index of its first row, without keeping them."""
        rows = self.shape[0]
        if isinstance(self.products, Matrix):
            yield from ((start, self.products.matrix[start : start + chunk]) for start in range(0, rows, chunk))
            return
        identity = torch.eye(min(chunk, rows), dtype=self.bias.dtype, device=self.bias.device)
        for start in range(0, rows, chunk):
            width = min(chunk, rows - start)
            u = self.bias.new_zeros(rows, width)
            u[start : start + width] = identity[:width, :width]
            yield start, self.products.adjoint(u).T

    @checked
    def block(self, t: int) -> Operator:
        """J_t, the block of token t, as an operator of shape (d_out, d_in) without a bias.

        Args:
            t: The token, from 0, or from -1 backwards.

        Raises:
            BadArgument: The prompt has no such token.

        """
        T, d_in = self.input.shape
        t = integer(t, -T, T - 1, f"A block is one of the {T} tokens", "t = ")
        columns = ColumnSlice(self.products, torch.arange(d_in, device=self.bias.device) + t % T * d_in, T * d_in)
        own = self.input[t % T]
        output = columns.forward(own[:, None])[:, 0]
        return Operator(columns, own[None], output, torch.zeros_like(self.bias), {**self.about, "token": t % T})

    @checked
    def solidified(self, progress: Callable[[int, int], None] | None = None) -> Operator:
        """The same operator with J in memory.

        Args:
            progress: Called as in `dense`.

        """
        return replace(self, products=Matrix(self.dense(progress=progress).reshape(self.shape)))

    def to_scipy(self) -> LinearOperator:
        """The operator as a scipy.sparse.linalg.LinearOperator on numpy arrays."""
        known = torch.promote_types(self.bias.dtype, torch.float32)  # numpy has no bfloat16

        def wrap(product: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
            def call(a: np.ndarray) -> np.ndarray:
                if np.iscomplexobj(a):
                    return call(a.real) + 1j * call(a.imag)
                return product(torch.as_tensor(a).to(self.bias)).detach().to("cpu", known).numpy()

            return call

        forward, adjoint = wrap(self.__matmul__), wrap(self.T.__matmul__)
        dtype = np.dtype(str(known).removeprefix("torch."))
        return LinearOperator(self.shape, matvec=forward, rmatvec=adjoint, matmat=forward, rmatmat=adjoint, dtype=dtype)

    def save(self, path: str | Path) -> None:
        """Write J, input, output, bias and `about` to one safetensors file.

        Args:
            path: The file.

        Raises:
            BadArgument: The path is not a path.
            OutputFailed: The file cannot be written.

        """
        check_file(path)  # before J is formed
        tensors = {"J": self.dense(), "input": self.input, "output": self.output, "bias": self.bias}
        with replacing(path) as new:
            write_tensors(new, tensors, {"secant": json.dumps(self.about)})

    @staticmethod
    def load(path: str | Path) -> Operator:
        """An operator read from a file that `save` wrote.

        Args:
            path: The file.

        Raises:
            DamagedFile: The file is not one that `save` wrote, or is truncated.

        """
        rule, todo = "An operator is a safetensors file that Operator.save wrote", "Save it again."
        with explained(DamagedFile, rule, todo, str(path)):
            with safe_open(path_of(path, rule), framework="pt") as file:
                t = {name: file.get_tensor(name) for name in ("J", "input", "output", "bias")}
                about = json.loads(file.metadata()["secant"])
            rows, *columns = t["J"].shape
            shapes = {"input": tuple(columns), "output": (rows,), "bias": (rows,)}
        if wrong := [name for name, shape in shapes.items() if tuple(t[name].shape) != shape]:
            raise DamagedFile(rule, f"{path}, whose {wrong[0]} does not have the shape of its J", todo)
        return Operator(Matrix(t["J"].flatten(1)), t["input"], t["output"], t["bias"], about)


def _factor(value: Any, done: str) -> float:
    """A finite number that an operator is multiplied by, or a number other than 0 that it is divided by."""
    rule = f"An operator is {done} by a number" + (" other than 0" if done == "divided" else "")
    todo = "Use a finite number; two operators are composed by @."
    found = number(value, -sys.float_info.max, sys.float_info.max, rule, todo=todo)
    if done == "divided" and (found == 0 or 1 / abs(found) > sys.float_info.max):
        raise BadArgument(rule, shown(value), todo)
    return found


def _multiplied(product: Callable[[Tensor], Tensor], v: Tensor, size: int, like: Tensor, rule: str) -> Tensor:
    """The product with one vector or many, after these are moved to the operator's dtype and device."""
    if not isinstance(v, Tensor) or v.ndim not in (1, 2) or v.shape[0] != size:
        got = f"shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
        todo = "Reshape it, with several vectors as columns." if isinstance(v, Tensor) else "Use torch.as_tensor."
        raise BadArgument(f"{rule} ({size}) in a torch tensor", got, todo)
    if v.is_complex():
        raise BadArgument("Operators are real", "complex numbers", "Apply it to the real and imaginary parts.")
    v = v.detach().to(like)
    return product(v[:, None])[:, 0] if v.ndim == 1 else product(v)
