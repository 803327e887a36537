"""Run a recorded model again with what its tape holds, on any input: the held network, which is affine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from secant.errors import ReplayMismatch
from secant.linearize.forms import Constant, changed, live
from secant.linearize.rules import ROWS
from secant.linearize.tape import Mode, Tape, functional, name_of, without_leaves
from secant.numeric import mapped, tensors


class Replay(Mode):
    """Run the same model on any live input with the coefficients of a tape held.

    `points` maps each wanted step to the tensor that it made, once the model has run. `threads` maps steps to the
    dimension of their output that counts tokens: the point is then `[T, n]`, and whatever the model makes of that
    output, it makes of the point. `less`: what is taken off at some threads; `given`: what stands in for some.
    `instead`: what the model goes on with after some steps, in place of what they made, which is the point.
    Raises ReplayMismatch where the model takes another course than it did when it was recorded.
    """

    def __init__(
        self,
        tape: Tape,
        wanted: Iterable[int] = (),
        precision: torch.dtype | None = None,
        threads: Mapping[int, int] | None = None,
        less: Mapping[int, Tensor] | None = None,
        given: Mapping[int, Tensor] | None = None,
        instead: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__(tape)
        self.threads, self.less, self.given, self.instead = threads or {}, less or {}, given or {}, instead or {}
        self.points: dict[int, Any] = dict.fromkeys((*wanted, *self.threads))
        self.precision = precision
        self.count = 0

    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one call with a live tensor in it."""
        number = self.count
        if number >= len(self.tape.steps) or self.tape.steps[number].function != func:
            self._mismatch(name_of(func))
        form = self.tape.steps[number].form
        self.count += 1
        args, kwargs = without_leaves(args), without_leaves(kwargs)
        if form is None:
            out = func(*args, **kwargs)
        else:
            if self.precision is not None:
                form = changed(form, self._cast)
            out = form(functional(func, args, kwargs))
            out = out if into is None else into.copy_(out)
        if number in self.threads:
            out = self._threaded(number, out if into is None else into, into)
        elif number in self.points:
            self.points[number] = out
            if number in self.instead:
                self.points[number] = out.clone()
                other = self.instead[number].to(out).requires_grad_().clone()  # live, as what it stands for
                out = other if into is None else into.copy_(other)
        for made in tensors(out if into is None else into):
            self.known[made] = None
        return out

    def _threaded(self, number: int, out: Tensor, into: Tensor | None) -> Tensor:
        """The same output, made of the point."""
        axis = self.threads[number]
        point = self.given[number] if number in self.given else by_token(out, axis)
        if number in self.less:
            point = point - self.less[number]
        self.points[number] = point
        through = of_tokens(self.instead.get(number, point), out.shape, axis).clone()
        return through if into is None else into.copy_(through)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.precision) if tensor.is_floating_point() else tensor

    def _mismatch(self, got: str) -> None:
        steps = self.tape.steps
        expected = "the end" if self.count >= len(steps) else f"{name_of(steps[self.count].function)}"
        module = steps[min(self.count, len(steps) - 1)].module if steps else "the model"
        raise ReplayMismatch(
            f"A replay must take the recorded course: step {self.count} was {expected} in {module}",
            got,
            "The model's course depends on its input beyond what is held, or it was changed after the recording.",
        )

    def __exit__(self, exc_type: Any, exc: Any, trace: Any) -> None:
        super().__exit__(exc_type, exc, trace)
        if exc_type is None and self.count != len(self.tape.steps):
            self._mismatch("the end")


class Altered(Mode):
    """Run the model as it is, nothing held, with the outputs of some steps replaced: `given` are by step, `[T, n]`, and
    `threads` say which dimension of each counts tokens.

    Up to the last of them the model takes its recorded course, or ReplayMismatch is raised; from there on its own.
    """

    def __init__(self, tape: Tape, threads: Mapping[int, int], given: Mapping[int, Tensor]) -> None:
        super().__init__(tape)
        self.threads, self.given = threads, given
        self.last, self.count = max(given), 0

    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one call with a live tensor in it."""
        number = self.count
        if number > self.last:
            return func(*args, **kwargs)
        recorded = self.tape.steps[number].function
        if recorded != func:
            raise ReplayMismatch(
                f"The model must take its recorded course: step {number} was {name_of(recorded)}",
                name_of(func), "Freeze the prompt again; the model was changed after that.",
            )  # fmt: skip
        self.count += 1
        out = func(*without_leaves(args), **without_leaves(kwargs))
        if isinstance(self.tape.steps[number].form, Constant):
            return mapped(out, Tensor.detach)  # as it was recorded: nothing is left live of it
        made = out if into is None else into
        if number in self.given:
            given = of_tokens(self.given[number].to(made), made.shape, self.threads[number])
            out = made = given.clone() if into is None else into.copy_(given)
        for tensor in tensors(made):
            self.known[tensor] = None
        return out


@dataclass(frozen=True)
class Injected:
    """A constant that a step adds to what is live: the edge of its output in the graph, what is added, and where."""

    edge: GradientEdge
    value: Tensor
    module: str


class Constants(Replay):
    """A replay that keeps what each step would give for zeros: biases, learned positions and the like."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.injected: list[Injected] = []

    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one call, and the same call on zeros."""
        number = self.count
        constant = None if number in self.given else self._of_zeros(func, args, kwargs)
        if into is not None and into._base is not None:
            constant = _within(into._base, into, constant)
        out = super().step(func, args, kwargs, into, plain)
        made = out if into is None else into
        if constant is not None and made._base is not None:  # a later write goes by the base
            constant = constant if into is not None else _within(made._base, made, constant)
            made = made._base
        if constant is not None and made.requires_grad:  # else what it goes into will count it
            self.injected.append(Injected(get_gradient_edge(made), constant, self.tape.steps[number].module))
        return out

    def _of_zeros(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """What a step gives for zeros; None if that is zero."""
        row = ROWS.get(func)
        if self.count >= len(self.tape.steps) or row is None or row.view:
            return None
        form = self.tape.steps[self.count].form
        if form is not None and self.precision is not None:
            form = changed(form, self._cast)
        moving = {id(t) for t in live((args, kwargs)) if not t.is_leaf}
        with torch.no_grad():
            call = functional(
                func, *mapped((args, kwargs), lambda t: torch.zeros_like(t) if id(t) in moving else t.detach())
            )
            out = call.value if form is None else form(call)
            return out if isinstance(out, Tensor) and out.any() else None


def _within(base: Tensor, view: Tensor, constant: Tensor | None) -> Tensor | None:
    """A constant of a view as one of its base, with what the base has beside it, if that is not live yet."""
    with torch.no_grad():
        whole = torch.zeros_like(base) if base.requires_grad else base.detach().clone()
        part = whole.as_strided(view.shape, view.stride(), view.storage_offset() - base.storage_offset())
        part.copy_(torch.zeros_like(part) if constant is None else constant)
        return whole if whole.any() else None


def by_token(tensor: Tensor, axis: int) -> Tensor:
    """A row for each token, `[T, n]`, of a tensor whose dimension `axis` counts them; memory of its own."""
    rows = tensor.movedim(axis, 0) if any(n != 1 for n in tensor.shape[:axis]) else tensor
    return rows.reshape(tensor.shape[axis], -1).clone()


def of_tokens(rows: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """The tensor of this shape whose rows by token these are: the inverse of `by_token`."""
    if all(n == 1 for n in shape[:axis]):
        return rows.view(shape)  # no transposition, after which batched products would not fold into one
    return rows.view(shape[axis], *(n for i, n in enumerate(shape) if i != axis)).movedim(0, axis)
