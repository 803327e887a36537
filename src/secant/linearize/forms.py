"""Held functions: what is left of a torch function once its input-dependent factor is held.

A `Call` is one call of a torch function. A `Form` maps a call to the value of the held function at the call's
own live arguments; it is affine in them, and at the recorded input it returns the recorded value (J. Golden,
TMLR 2025, arXiv 2505.24293, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secant.numeric import mapped, tensors

# ------------------------------------------------------------------------------------------------ calls


@dataclass(frozen=True)
class Mark:
    """What the recorder knows of a tensor that came from the input.

    `step` is the call that made it, `source` the node of the graph where its numbers were made, before they were only
    moved about. Tensors share a `root` where each is an elementwise function of one and the same tensor; `homogeneous`
    says that this function has no constant term, `activation` that an activation is in it.
    """

    step: int
    root: int
    homogeneous: bool = True
    activation: bool = False
    source: Any = None

    def descends(self, other: Mark) -> bool:
        """Whether these numbers were computed from the other ones."""
        if self.source is None or other.source is None:
            return False
        nodes, seen, first = [self.source], set(), other.source._sequence_nr()
        while nodes:
            node = nodes.pop()
            if node is other.source:
                return True
            if node not in seen and node._sequence_nr() > first:
                seen.add(node)
                nodes.extend(parent for parent, _ in node.next_functions if parent is not None)
        return False


@dataclass(frozen=True)
class Call:
    """One call of a torch function, its first argument always in `args`."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mark: Callable[[Tensor], Mark | None] = field(default=lambda tensor: None)
    convention: str = "gate"
    precision: torch.dtype | None = None
    plain: tuple[Any, Any] | None = None  # args and kwargs as a plain pass has them, if they are not these cut loose

    def __getitem__(self, where: tuple[str, int]) -> Any:
        """The argument of this name or at this place; None where it was not given."""
        name, place = where
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[place] if len(self.args) > place else None

    def key(self, where: tuple[str, int]) -> int | str:
        """Where that argument stands in this call: its name, or its place."""
        return where[0] if where[0] in self.kwargs else where[1]

    def substitute(self, values: dict[int | str, Any]) -> Call:
        """The same call with other values at some places."""
        args = tuple(values.get(i, a) for i, a in enumerate(self.args))
        kwargs = {k: values.get(k, a) for k, a in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs, plain=None)

    def run(self) -> Any:
        """Call the function."""
        return self.func(*self.args, **self.kwargs)

    @cached_property
    def value(self) -> Any:
        """The function's own value, bit for bit, cut loose from the input.

        Parameters stay as they are: torch chooses some kernels by what requires grad.
        """
        args, kwargs = self.plain or (_plain(self.args), _plain(self.kwargs))
        with torch.no_grad():
            return self.func(*args, **kwargs)

    def wide(self, tensor: Tensor) -> Tensor:
        """The tensor, cut loose, in the type that coefficients are computed in: the precision, and float32 at least."""
        return tensor.detach().to(torch.promote_types(tensor.dtype, self.precision or torch.float32))


def detached(tree: Any) -> Any:
    """The same arguments, every tensor cut loose from the input."""
    return mapped(tree, lambda t: t.detach() if t.requires_grad else t)


def live(tree: Any) -> list[Tensor]:
    """The tensors among the arguments that still depend on the input. Leaves, such as parameters, never do."""
    return [t for t in tensors(tree) if t.requires_grad and not t.is_leaf]


def is_live(tree: Any) -> bool:
    """Whether any tensor among the arguments still depends on the input."""
    return bool(live(tree))


def _plain(tree: Any) -> Any:
    """The arguments as they are in a plain pass: what is live, cut loose."""
    return mapped(tree, lambda t: t.detach() if t.requires_grad and not t.is_leaf else t)


# ------------------------------------------------------------------------------------------------ forms


@dataclass(frozen=True)
class Constant:
    """The recorded value itself: nothing is left live."""

    value: Any

    def __call__(self, call: Call) -> Any:
        return self.value


@dataclass(frozen=True)
class Scaled:
    """A held factor times the first argument: f(x) = (f(x)/x) x."""

    factor: Tensor

    def __call__(self, call: Call) -> Tensor:
        x = call.args[0]
        return (x * self.factor).to(x.dtype)


@dataclass(frozen=True)
class Fixed:
    """The function itself with some arguments held, which makes it affine in the others."""

    held: dict[int | str, Tensor]
    gated: bool = False  # held by convention

    def __call__(self, call: Call) -> Any:
        return call.substitute(self.held).run()


@dataclass(frozen=True)
class Halves:
    """The mean of two forms of one product: each factor is live for its half."""

    one: Fixed
    two: Fixed

    def __call__(self, call: Call) -> Tensor:
        return (self.one(call) + self.two(call)) / 2


@dataclass(frozen=True)
class Opened:
    """The first half of the argument times a gate, held, that the other half opened."""

    gate: Tensor
    dim: int

    def __call__(self, call: Call) -> Tensor:
        half = call.args[0].chunk(2, self.dim)[0]
        return (half * self.gate).to(half.dtype)


@dataclass(frozen=True)
class Chosen:
    """Elementwise choice, held, between the first argument and another: a live one, or the given constant."""

    first: Tensor
    other: Tensor | None = None

    def __call__(self, call: Call) -> Tensor:
        return torch.where(self.first, call.args[0], call["other", 1] if self.other is None else self.other)


@dataclass(frozen=True)
class Picked:
    """The largest or smallest of the numbers that meet at a place, the choice held: weights that sum to 1 there."""

    own: Tensor
    source: Tensor

    def __call__(self, call: Call) -> Tensor:
        x, index = call.args[0], call["index", 2]
        source = call["src", 3][tuple(slice(n) for n in index.shape)]
        return (x * self.own).scatter_add(call["dim", 1], index, source * self.source).to(x.dtype)


@dataclass(frozen=True)
class Standardised:
    """A norm: scale (x - mean), with the mean live and the scale held; then weight and bias.

    `groups`: the channels, dimension 1, are normed in so many groups; weight and bias are a number each channel.
    """

    scale: Tensor
    mean_over: tuple[int, ...] | None
    weight: Tensor | None
    bias: Tensor | None
    groups: int | None = None

    def __call__(self, call: Call) -> Tensor:
        x = y = call.args[0].to(torch.promote_types(call.args[0].dtype, self.scale.dtype))
        if self.groups is not None:
            y = x.unflatten(1, (self.groups, -1))
        if self.mean_over is not None:
            y = y - y.mean(self.mean_over, keepdim=True)
        y = y * self.scale
        if self.groups is not None:
            y = y.flatten(1, 2)
        if self.weight is not None:
            y = y * self.weight
        return (y if self.bias is None else y + self.bias).to(call.args[0].dtype)


PATTERN = 2**24
"""Numbers of an attention's pattern that are made at a time."""


@dataclass(frozen=True)
class Attended:
    """Attention with its pattern held. Queries and keys are kept, never the pattern of T x T numbers a head."""

    query: Tensor  # (..., heads, T, d)
    key: Tensor  # (..., heads / groups, keys, d)
    mask: Tensor | None  # to (..., heads, T, keys); True attends, or a number to add to the scores
    causal: bool
    scale: float
    groups: int

    def __call__(self, call: Call) -> Tensor:
        value = call["value", 2]
        if self.groups > 1:
            value = value.repeat_interleave(self.query.shape[-3] // value.shape[-3], dim=-3)
        return _Mix.apply(value, self, False)

    def mix(self, v: Tensor, transpose: bool) -> Tensor:
        """P v, or Pᵀ v, over blocks of rows of P, each computed, used and dropped.

        A leading dimension of v beyond those of P counts its vectors: they stand side by side as columns.
        """
        if v.ndim > self.query.ndim:
            columns = v.movedim(0, -2)
            return self.mix(columns.flatten(-2), transpose).unflatten(-1, columns.shape[-2:]).movedim(-2, 0)
        length, keys = self.query.shape[-2], self.key.shape[-2]
        step = max(1, PATTERN // (self.query.shape[:-2].numel() * keys))
        blocks = [(lo, min(lo + step, length)) for lo in range(0, length, step)]
        if not transpose:
            out = [self.pattern(lo, hi).to(v.dtype) @ v[..., : self._reach(hi), :] for lo, hi in blocks]
            return torch.cat(out, dim=-2)
        total = v.new_zeros(*v.shape[:-2], keys, v.shape[-1])
        for lo, hi in blocks:
            if v[
                ..., lo:hi, :
            ].any():  # where one position is looked at, there is nothing in most rows of the last layer
                total[..., : self._reach(hi), :] += self.pattern(lo, hi).mT.to(v.dtype) @ v[..., lo:hi, :]
        return total

    def _reach(self, hi: int) -> int:
        """How many keys there are up to the last that a row before `hi` attends."""
        return min(hi, self.key.shape[-2]) if self.causal else self.key.shape[-2]

    def pattern(self, lo: int, hi: int) -> Tensor:
        """Rows lo to hi of the pattern, (..., heads, hi - lo, keys up to the last that they attend); a row sums to 1,
        or to 0 where all is masked.
        """
        wide = torch.promote_types(self.query.dtype, torch.float32)
        key = self.key[..., : self._reach(hi), :].to(wide)
        key = key.repeat_interleave(self.groups, dim=-3) if self.groups > 1 else key
        scores = (self.query[..., lo:hi, :].to(wide) * self.scale) @ key.mT
        if self.causal:
            rows = torch.arange(lo, hi, device=key.device)[:, None]
            scores = scores.masked_fill(rows < torch.arange(key.shape[-2], device=key.device), -torch.inf)
        if self.mask is not None:
            mask = self.mask if self.mask.shape[-2] == 1 else self.mask[..., lo:hi, :]
            mask = mask if mask.shape[-1] == 1 else mask[..., : key.shape[-2]]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        return torch.softmax(scores.masked_fill(empty, 0), -1).masked_fill(empty, 0)


class _Mix(torch.autograd.Function):
    """v ↦ P v, whose adjoint is u ↦ Pᵀ u, whose adjoint is the first: it can be differentiated twice."""

    @staticmethod
    def forward(v: Tensor, form: Attended, transpose: bool) -> Tensor:
        return form.mix(v, transpose)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.form, ctx.transpose = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Mix.apply(grads[0], ctx.form, not ctx.transpose), None, None

    @staticmethod
    def vmap(info: Any, dims: Any, v: Tensor, form: Attended, transpose: bool) -> tuple[Tensor, int]:
        return _Mix.apply(v.movedim(dims[0], 0), form, transpose), 0


def by_groups(rows: Tensor, matrices: Tensor, ends: Sequence[int]) -> Tensor:
    """Each group of rows times its own matrix; a group ends where the next begins, and rows beyond the last give 0."""
    starts = (0, *ends[:-1])
    parts = [rows[lo:hi] @ matrix for lo, hi, matrix in zip(starts, ends, matrices, strict=True)]
    return torch.cat([*parts, rows.new_zeros(len(rows) - ends[-1], matrices.shape[-1])])


@dataclass(frozen=True)
class Grouped:
    """A product with one matrix for each group of rows: experts, which are given their tokens in order."""

    ends: tuple[int, ...]

    def __call__(self, call: Call) -> Tensor:
        return by_groups(call.args[0], call["mat2", 1], self.ends)


@dataclass(frozen=True)
class Unpacked:
    """A linear layer with packed weights: the product with what they stand for, unpacked anew for each call."""

    unpacked: Callable[[], tuple[Tensor, Tensor | None]]

    def __call__(self, call: Call) -> Tensor:
        x = call.args[0]
        weight, bias = self.unpacked()
        return F.linear(x, weight.to(x), None if bias is None else bias.to(x))


Form = Constant | Scaled | Fixed | Halves | Opened | Chosen | Picked | Standardised | Attended | Grouped | Unpacked


def left_live(form: Form | None, call: Call) -> list[Tensor]:
    """The tensors of a call that its held function is a function of."""
    if isinstance(form, Constant):
        return []
    if isinstance(form, Fixed):
        call = call.substitute(form.held)
    if isinstance(form, Attended):
        return live(call["value", 2])
    if isinstance(form, Scaled | Opened | Standardised):
        return live(call.args[0])
    return live((call.args, call.kwargs))


def held_tensors(form: Form) -> Iterator[Tensor]:
    """Every coefficient that the form holds."""
    for value in vars(form).values():
        yield from held_tensors(value) if isinstance(value, Form) else tensors(value)


def changed(form: Form, change: Callable[[Tensor], Tensor]) -> Form:
    """The same form with every coefficient changed: cast to another dtype, or copied."""
    values: dict[str, Any] = vars(form)
    made: Any = type(form)
    return made(**{k: changed(v, change) if isinstance(v, Form) else mapped(v, change) for k, v in values.items()})
