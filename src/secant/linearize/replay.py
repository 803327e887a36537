"""Replay a recorded model on any input with the coefficients of its tape frozen: an affine network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from secant.errors import ReplayMismatch
from secant.linearize.forms import Attended, Constant, Form, live, map_coefficients
from secant.linearize.rules import ROWS
from secant.linearize.secants import Open
from secant.linearize.tape import Mode, Tape, functional, name_of, own_output
from secant.numeric import mapped, tensors


class Replay(Mode):
    """A mode that runs the recorded model on any live input with the coefficients of its tape frozen.

    After the model has run, `points` has the tensor that each wanted step made. A step with a token axis gives a point
    `[T, n]`, from which the rest of the network is computed.

    Args:
        tape: The recording.
        wanted: Steps whose outputs are kept.
        precision: The type that coefficients are cast to; by default they keep their own.
        token_axes: Steps that are wanted as `[T, n]`, each with the dimension of its output that counts tokens.
        subtracted: What is subtracted from the points of some of these steps.
        patches: Values that replace the points of some of these steps.
        continued_with: Values that the model continues with after some steps; `points` keeps what the steps computed.

    Raises:
        ReplayMismatch: The model diverged from its recorded pass.
    """

    def __init__(
        self,
        tape: Tape,
        wanted: Iterable[int] = (),
        precision: torch.dtype | None = None,
        token_axes: Mapping[int, int] | None = None,
        subtracted: Mapping[int, Tensor] | None = None,
        patches: Mapping[int, Tensor] | None = None,
        continued_with: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__(tape)
        self.token_axes, self.subtracted = token_axes or {}, subtracted or {}
        self.patches, self.continued_with = patches or {}, continued_with or {}
        self.points: dict[int, Any] = dict.fromkeys((*wanted, *self.token_axes))
        self.precision = precision
        self.count = 0

    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run the frozen function of one step."""
        number, form = self._next(func)
        if form is None:
            out = func(*args, **kwargs)
        else:
            if self.precision is not None:
                form = map_coefficients(form, self._cast)
            out = form(functional(func, args, kwargs))
            out = out if into is None else into.copy_(out)
        if number in self.token_axes:
            out = self._rerouted(number, out if into is None else into, into)
        elif number in self.points:
            self.points[number] = out
            if number in self.continued_with:
                self.points[number] = out.clone()
                other = self.entered(self.continued_with[number].to(out).requires_grad_().clone())
                out = other if into is None else into.copy_(other)
        for made in tensors(out if into is None else into):
            self.known[made] = None
        return out

    def _next(self, func: Any) -> tuple[int, Form | None]:
        """The number and form of the next recorded step. Raises ReplayMismatch if its function was a different one."""
        number = self.count
        if number >= len(self.tape.steps) or self.tape.steps[number].function != func:
            self._mismatch(name_of(func))
        self.count += 1
        return number, self.tape.steps[number].form

    def _rerouted(self, number: int, out: Tensor, into: Tensor | None) -> Tensor:
        """The output, rebuilt from the point that `points` keeps."""
        axis = self.token_axes[number]
        point = self.patches[number] if number in self.patches else by_token(out, axis, self.tape.copies)
        if number in self.subtracted:
            point = point - self.subtracted[number]
        self.points[number] = point
        through = of_tokens(self.continued_with.get(number, point), out.shape, axis, self.tape.copies).clone()
        if number in self.patches or number in self.continued_with:
            through = self.entered(through)
        return through if into is None else into.copy_(through)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.precision) if tensor.is_floating_point() else tensor

    def _mismatch(self, got: str) -> None:
        steps = self.tape.steps
        expected = "the end" if self.count >= len(steps) else f"{name_of(steps[self.count].function)}"
        module = steps[min(self.count, len(steps) - 1)].module if steps else "the model"
        raise ReplayMismatch(
            f"A replay must call the recorded functions in order: step {self.count} was {expected} in {module}",
            got,
            "The model was changed after the recording, or its calls depend on the input in ways that can't be frozen.",
        )

    def __exit__(self, exc_type: Any, exc: Any, trace: Any) -> None:
        super().__exit__(exc_type, exc, trace)
        if exc_type is None and self.count != len(self.tape.steps):
            self._mismatch("the end")


class Visit(Replay):
    """A mode that runs the model itself at a reference, so that the open forms of a tape collect their secants.

    Frozen patterns keep their values at the prompt. So does everything else that is frozen as a whole, because a
    router's choices may follow from it. Statistics of norms are the reference's own: with those of the prompt, its
    activations could grow with each layer.

    Args:
        tape: The recording, whose calls the model must repeat.

    Raises:
        ReplayMismatch: The model diverged from its recorded pass.
    """

    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one call. If the form is open, it collects what its secant needs."""
        form = self._next(func)[1]
        if isinstance(form, Open | Attended):
            out = form(functional(func, args, kwargs))
            out = out if into is None else into.copy_(out)
        elif isinstance(form, Constant) and (row := ROWS.get(func)) is not None and row.statistic:
            return mapped(func(*args, **kwargs), Tensor.detach)  # not live, as in the recording
        elif isinstance(form, Constant):
            return form.value if into is None else into.copy_(form.value)
        else:
            out = func(*args, **kwargs)
        for made in tensors(out if into is None else into):
            self.known[made] = None
        return out


class Rerun(Mode):
    """A mode that runs the model itself once more, with nothing frozen, and keeps or patches the outputs of some steps.

    After the model has run, `outputs` has what each wanted step made.

    Args:
        tape: The recording, whose calls the model must repeat up to the last of these steps.
        wanted: Steps whose outputs are kept.
        token_axes: For each patched step, the dimension of its output that counts tokens.
        patches: The outputs of these steps, `[T, n]`.

    Raises:
        ReplayMismatch: The model diverged from its recorded pass before the last of these steps.
    """

    keeps_leaves = True

    def __init__(
        self,
        tape: Tape,
        wanted: Iterable[int] = (),
        token_axes: Mapping[int, int] | None = None,
        patches: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__(tape)
        self.wanted, self.token_axes, self.patches = set(wanted), token_axes or {}, patches or {}
        self.outputs: dict[int, Tensor] = {}
        self.last, self.count = max((*self.wanted, *self.patches)), 0

    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one call, and keep its output or replace it."""
        number = self.count
        if number > self.last:
            return func(*args, **kwargs)
        recorded = self.tape.steps[number].function
        if recorded != func:
            raise ReplayMismatch(
                f"A model must call the recorded functions in order: step {number} was {name_of(recorded)}",
                name_of(func), "The model was changed after the recording: freeze the prompt again.",
            )  # fmt: skip
        self.count += 1
        form, call = self.tape.steps[number].form, functional(func, args, kwargs, plain=plain)
        out: Any = call.value if isinstance(form, Constant) else own_output(call, form, func, args, kwargs, into)
        if into is not None and form is not None:
            out = into.copy_(out)
        made = out if into is None else into
        if number in self.wanted:
            self.outputs[number] = made.detach().clone()
        if number in self.patches:
            given = of_tokens(self.patches[number].to(made), made.shape, self.token_axes[number], self.tape.copies)
            out = made = given.clone() if into is None else into.copy_(given)
        for tensor in tensors(made):
            self.known[tensor] = None
        return out

    def __exit__(self, exc_type: Any, exc: Any, trace: Any) -> None:
        super().__exit__(exc_type, exc, trace)
        if exc_type is None and self.count <= self.last:
            raise ReplayMismatch(
                f"A model must call the recorded functions, at least the first {self.last + 1}", f"{self.count} calls",
                "The model was changed after the recording: freeze the prompt again.",
            )  # fmt: skip


@dataclass(frozen=True)
class InjectedConstant:
    """A constant that a step adds to live values, with the graph edge of the step's output and the module's path."""

    edge: GradientEdge
    value: Tensor
    module: str
    step: int


class ReplayWithConstants(Replay):
    """A replay that collects the outputs of steps on zeros in `constants`: biases, learned positions and the like."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.constants: list[InjectedConstant] = []

    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one step, and the same step on zeros."""
        number = self.count
        constant = None if number in self.patches else self._of_zeros(func, args, kwargs)
        if into is not None and into._base is not None:
            constant = _within(into._base, into, constant)
        out = super().step(func, args, kwargs, into, plain)
        made = out if into is None else into
        if constant is not None and made._base is not None:  # a later write goes through the base
            constant = constant if into is not None else _within(made._base, made, constant)
            made = made._base
        if constant is not None and made.requires_grad:  # otherwise it counts when it is written into a live tensor
            module = self.tape.steps[number].module
            self.constants.append(InjectedConstant(get_gradient_edge(made), constant, module, number))
        return out

    def _of_zeros(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """The output of a step on zeros, or None if that is zero."""
        row = ROWS.get(func)
        if self.count >= len(self.tape.steps) or row is None or row.view:
            return None
        form = self.tape.steps[self.count].form
        if row.homogeneous(form):
            return None
        if func is F.linear and form is None and live(args) == live(args[:1]):
            return _bias(*args, **kwargs)
        if form is not None and self.precision is not None:
            form = map_coefficients(form, self._cast)
        moving = {id(t) for t in live((args, kwargs)) if not t.is_leaf}
        with torch.no_grad():
            call = functional(
                func, *mapped((args, kwargs), lambda t: torch.zeros_like(t) if id(t) in moving else t.detach())
            )
            out = call.value if form is None else form(call)
            return out if isinstance(out, Tensor) and out.any() else None


def _bias(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """The output of a linear layer on zeros, without computing a product; None if that is zero."""
    if bias is None or not bias.any():
        return None
    return bias.detach().to(x.dtype).expand(*x.shape[:-1], -1)


def _within(base: Tensor, view: Tensor, constant: Tensor | None) -> Tensor | None:
    """A constant of a view as a constant of its base, with the rest of the base if that is not live yet."""
    with torch.no_grad():
        whole = torch.zeros_like(base) if base.requires_grad else base.detach().clone()
        part = whole.as_strided(view.shape, view.stride(), view.storage_offset() - base.storage_offset())
        part.copy_(torch.zeros_like(part) if constant is None else constant)
        return whole if whole.any() else None


def by_token(tensor: Tensor, axis: int, copies: int = 1) -> Tensor:
    """Returns a copy with one row for each token, `[T, n]`, of a tensor whose dimension `axis` counts tokens.

    Args:
        tensor: The tensor.
        axis: The dimension.
        copies: If more than 1, the first dimension counts copies of the prompt. In each row, the copies of an element
            are next to each other.
    """
    if copies > 1:
        return tensor.movedim((axis, 0), (0, -1)).reshape(tensor.shape[axis], -1).clone()
    rows = tensor.movedim(axis, 0) if any(n != 1 for n in tensor.shape[:axis]) else tensor
    return rows.reshape(tensor.shape[axis], -1).clone()


def of_tokens(rows: Tensor, shape: Sequence[int], axis: int, copies: int = 1) -> Tensor:
    """Returns the tensor of this shape with these rows: the inverse of `by_token`, with the same arguments."""
    if copies > 1:
        others = (n for i, n in enumerate(shape) if i not in (0, axis))
        return rows.view(shape[axis], *others, copies).movedim((0, -1), (axis, 0)).contiguous()
    if all(n == 1 for n in shape[:axis]):
        return rows.view(shape)  # a transposed tensor would keep batched products from folding into one
    return rows.view(shape[axis], *(n for i, n in enumerate(shape) if i != axis)).movedim(0, axis)
