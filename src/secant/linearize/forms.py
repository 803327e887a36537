"""Forms: torch functions whose input-dependent factor is frozen.

A `Call` is one call of a torch function. A `Form` maps a call to the value of the frozen function at the call's live
arguments. It is affine in them, and at the recorded input it returns the recorded value (J. Golden, TMLR 2025,
arXiv 2505.24293, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secant.linearize.conventions import CONVENTIONS, Convention
from secant.numeric import asking_no_mode, mapped, tensors, without_graph

# ------------------------------------------------------------------------------------------------ calls


@dataclass(frozen=True)
class Mark:
    """What the recorder knows about a live tensor.

    Attributes:
        step: The number of the step that made it; -1 if no step did.
        root: A number that tensors share if they are elementwise functions of the same tensor.
        homogeneous: Whether that function has no constant term.
        activation: Whether that function includes an activation.
        source: The node of the autograd graph that computed its elements; later nodes only rearranged them.
    """

    step: int
    root: int
    homogeneous: bool = True
    activation: bool = False
    source: Any = None

    def descends(self, other: Mark) -> bool:
        """Whether this tensor was computed from the other one."""
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
    """One call of a torch function. Its first argument is always in `args`."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mark: Callable[[Tensor], Mark | None] = field(default=lambda tensor: None)
    convention: Convention = CONVENTIONS["gate"]
    precision: torch.dtype | None = None
    plain: tuple[Any, Any] | None = None  # args and kwargs in a plain pass, if not these detached

    def __getitem__(self, where: tuple[str, int]) -> Any:
        """The argument with this name or at this place, or None if it was not given."""
        name, place = where
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[place] if len(self.args) > place else None

    def at(self, place: int | str) -> Any:
        """The argument at this place or with this name."""
        return self.args[place] if isinstance(place, int) else self.kwargs[place]

    def places(self) -> list[tuple[int | str, Any]]:
        """The arguments with their places or names."""
        return [*enumerate(self.args), *self.kwargs.items()]

    def copied(self, shared: Sequence[tuple[str, int]] = ()) -> Call:
        """The same call with copies of its tensors and of its value, without a graph and without marks.

        Parameters are not copied, nor are the arguments that are `shared`.
        """
        kept = {id(self[where]) for where in shared}

        def copy(t: Tensor) -> Tensor:
            return t.detach() if isinstance(t, nn.Parameter) or id(t) in kept else t.detach().clone()

        args, kwargs = mapped(self.args, copy), mapped(self.kwargs, copy)
        call = Call(self.func, args, kwargs, convention=self.convention, precision=self.precision)
        call.__dict__["value"] = mapped(self.value, copy)
        return call

    def key(self, where: tuple[str, int]) -> int | str:
        """The name or the place under which this call has that argument."""
        return where[0] if where[0] in self.kwargs else where[1]

    def substitute(self, values: dict[int | str, Any]) -> Call:
        """The same call with different values at some places."""
        args = tuple(values.get(i, a) for i, a in enumerate(self.args))
        kwargs = {k: values.get(k, a) for k, a in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs, plain=None)

    def run(self) -> Any:
        """Call the function."""
        return self.func(*self.args, **self.kwargs)

    @cached_property
    def value(self) -> Any:
        """The function's own value, bit for bit, detached from the input.

        Parameters stay as they are, because torch selects some kernels by which arguments require grad.
        """
        args, kwargs = self.plain or (_plain(self.args), _plain(self.kwargs))
        with without_graph():
            return self.func(*args, **kwargs)

    def wide(self, tensor: Tensor) -> Tensor:
        """The detached tensor in the type that coefficients are computed in: `precision`, or at least float32."""
        with asking_no_mode():
            plain, dtype = tensor.detach(), torch.promote_types(tensor.dtype, self.precision or torch.float32)
        return plain.to(dtype)


def detached(tree: Any) -> Any:
    """Returns the same arguments with every tensor detached from the input."""
    with asking_no_mode():
        return mapped(tree, lambda t: t.detach() if t.requires_grad else t)


def live(tree: Any) -> list[Tensor]:
    """Returns the live tensors among the arguments. Leaves, such as parameters, are never live."""
    with asking_no_mode():
        return [t for t in tensors(tree) if t.requires_grad and not t.is_leaf]


def is_live(tree: Any) -> bool:
    """Returns whether any tensor among the arguments is live."""
    return bool(live(tree))


def _plain(tree: Any) -> Any:
    """The arguments as a plain pass has them, with live tensors detached."""
    with asking_no_mode():
        return mapped(tree, lambda t: t.detach() if t.requires_grad and not t.is_leaf else t)


class Live(torch.autograd.Function):
    """Returns a call's own value, which was computed without a graph, as a live tensor."""

    @staticmethod
    def forward(ctx: Any, call: Call, *moving: Tensor) -> Any:
        value = call.value
        with asking_no_mode():
            return mapped(value, lambda t: t.data)  # not a view, which could not be written in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("only replays are differentiated, not recordings or passes at a reference")


# ------------------------------------------------------------------------------------------------ forms


@dataclass(frozen=True)
class Constant:
    """The recorded value, whatever the live arguments are."""

    value: Any

    def __call__(self, call: Call) -> Any:
        return self.value


@dataclass(frozen=True)
class Scaled:
    """A frozen factor times the first argument: f(x) = (f(x)/x) x."""

    factor: Tensor

    def __call__(self, call: Call) -> Tensor:
        x = call.args[0]
        return (x * self.factor).to(x.dtype)


@dataclass(frozen=True)
class Fixed:
    """The function itself with some arguments frozen, which makes it affine in the others."""

    frozen: dict[int | str, Tensor]
    gated: bool = False  # frozen by convention

    def __call__(self, call: Call) -> Any:
        return call.substitute(self.frozen).run()


@dataclass(frozen=True)
class Shared:
    """A weighted mean of two forms of one product, which freeze different factors; `share` is the weight of `one`."""

    one: Fixed
    two: Fixed
    share: float

    def __call__(self, call: Call) -> Tensor:
        total: Tensor = self.share * self.one(call) + (1 - self.share) * self.two(call)
        return total


@dataclass(frozen=True)
class HalfGated:
    """The first half of the argument times a frozen gate, which was computed from the other half."""

    gate: Tensor
    dim: int

    def __call__(self, call: Call) -> Tensor:
        half = call.args[0].chunk(2, self.dim)[0]
        return (half * self.gate).to(half.dtype)


@dataclass(frozen=True)
class Chosen:
    """A frozen elementwise choice between the first argument and either another live one or a constant."""

    first: Tensor
    other: Tensor | None = None

    def __call__(self, call: Call) -> Tensor:
        return torch.where(self.first, call.args[0], call["other", 1] if self.other is None else self.other)


@dataclass(frozen=True)
class Picked:
    """A scattered maximum or minimum with the choice frozen, as weights that sum to 1 at each index."""

    own: Tensor
    source: Tensor

    def __call__(self, call: Call) -> Tensor:
        x, index = call.args[0], call["index", 2]
        source = call["src", 3][tuple(slice(n) for n in index.shape)]
        return (x * self.own).scatter_add(call["dim", 1], index, source * self.source).to(x.dtype)


@dataclass(frozen=True)
class Standardised:
    """A norm: scale (x - mean), with the scale frozen and the mean live, followed by weight and bias.

    With `groups`, the channels (dimension 1) are normed in that many groups, and weight and bias have one element for
    each channel.
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


PATTERN_ELEMENTS = 2**24
"""How many elements of an attention pattern are computed at a time."""


@dataclass(frozen=True)
class Attended:
    """Attention with its pattern frozen. Queries and keys are stored instead of the T x T pattern of each head."""

    query: Tensor  # (..., heads, T, d)
    key: Tensor  # (..., heads / groups, keys, d)
    mask: Tensor | None  # broadcasts to (..., heads, T, keys); True attends, a float is added to the scores
    causal: bool
    scale: float
    groups: int

    def __call__(self, call: Call) -> Tensor:
        value = call["value", 2]
        if self.groups > 1:
            value = value.repeat_interleave(self.query.shape[-3] // value.shape[-3], dim=-3)
        return _Mix.apply(value, self, False)

    def mix(self, v: Tensor, transpose: bool) -> Tensor:
        """Returns P v, or Pᵀ v. Blocks of rows of P are computed one after the other and dropped after use.

        If v has one dimension more than P, its leading dimension counts vectors, which are multiplied as columns.
        """
        if v.ndim > self.query.ndim:
            columns = v.movedim(0, -2)
            return self.mix(columns.flatten(-2), transpose).unflatten(-1, columns.shape[-2:]).movedim(-2, 0)
        if not transpose:
            out = [self.pattern(lo, hi).to(v.dtype) @ v[..., : self._reach(hi), :] for lo, hi in self.blocks()]
            return torch.cat(out, dim=-2)
        total = v.new_zeros(*v.shape[:-2], self.key.shape[-2], v.shape[-1])
        for lo, hi in self.blocks():
            if v[..., lo:hi, :].any():  # for an operator at one position, most rows of the last layer are zero
                total[..., : self._reach(hi), :] += self.pattern(lo, hi).mT.to(v.dtype) @ v[..., lo:hi, :]
        return total

    def blocks(self) -> list[tuple[int, int]]:
        """Returns the blocks of rows of the pattern that are computed one after the other."""
        length, keys = self.query.shape[-2], self.key.shape[-2]
        step = max(1, PATTERN_ELEMENTS // (self.query.shape[:-2].numel() * keys))
        return [(lo, min(lo + step, length)) for lo in range(0, length, step)]

    def _reach(self, hi: int) -> int:
        """The number of keys up to the last one that any row before `hi` attends to."""
        return min(hi, self.key.shape[-2]) if self.causal else self.key.shape[-2]

    def pattern(self, lo: int, hi: int) -> Tensor:
        """Returns rows lo to hi of the pattern, (..., heads, hi - lo, keys), up to the last key that they attend to.

        A row sums to 1, or to 0 if all of its keys are masked.
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
    """v ↦ P v, whose adjoint is u ↦ Pᵀ u. The adjoint of that is v ↦ P v again, so both can be differentiated."""

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


def grouped_product(rows: Tensor, matrices: Tensor, ends: Sequence[int]) -> Tensor:
    """Returns each group of rows times its matrix: group i ends before row `ends[i]`, and later rows give 0."""
    starts = (0, *ends[:-1])
    products = [rows[lo:hi] @ matrix for lo, hi, matrix in zip(starts, ends, matrices, strict=True)]
    return torch.cat([*products, rows.new_zeros(len(rows) - ends[-1], matrices.shape[-1])])


@dataclass(frozen=True)
class Grouped:
    """A product with one matrix for each group of rows, as for experts whose tokens are sorted by expert."""

    ends: tuple[int, ...]

    def __call__(self, call: Call) -> Tensor:
        return grouped_product(call.args[0], call["mat2", 1], self.ends)


@dataclass(frozen=True)
class Unpacked:
    """A linear layer with packed weights, which are unpacked for each call."""

    unpacked: Callable[[], tuple[Tensor, Tensor | None]]

    def __call__(self, call: Call) -> Tensor:
        x = call.args[0]
        weight, bias = self.unpacked()
        return F.linear(x, weight.to(x), None if bias is None else bias.to(x))


class Secant:
    """The base of forms that go through the values at a reference (`secant.linearize.secants`)."""

    def __call__(self, call: Call) -> Any:
        """Returns the frozen function's value."""
        raise NotImplementedError


Form = (
    Secant
    | Constant
    | Scaled
    | Fixed
    | Shared
    | HalfGated
    | Chosen
    | Picked
    | Standardised
    | Attended
    | Grouped
    | Unpacked
)


def homogeneous(form: Form) -> bool:
    """Returns whether a form certainly has no constant term, whatever the function: at zero, its value is zero."""
    return isinstance(form, Scaled | HalfGated | Attended | Grouped) or (
        isinstance(form, Standardised) and form.bias is None
    )


def gated(form: Form) -> bool:
    """Returns whether a form belongs to a gated product, whose frozen factor the convention chooses."""
    return isinstance(form, Shared) or (isinstance(form, Fixed) and form.gated)


def live_arguments(form: Form | None, call: Call) -> list[Tensor]:
    """Returns the live tensors that the frozen function of a call depends on."""
    if isinstance(form, Constant):
        return []
    if isinstance(form, Fixed):
        call = call.substitute(form.frozen)
    if isinstance(form, Attended):
        return live(call["value", 2])
    if isinstance(form, Scaled | HalfGated | Standardised):
        return live(call.args[0])
    return live((call.args, call.kwargs))


def coefficients(form: Form) -> Iterator[Tensor]:
    """Yields every frozen tensor of a form."""
    for value in vars(form).values():
        yield from coefficients(value) if isinstance(value, Form) else tensors(value)


def map_coefficients(form: Form, change: Callable[[Tensor], Tensor]) -> Form:
    """Returns the same form with every frozen tensor changed, for instance cast or copied."""
    values: dict[str, Any] = vars(form)
    made: Any = type(form)
    return made(
        **{k: map_coefficients(v, change) if isinstance(v, Form) else mapped(v, change) for k, v in values.items()}
    )
