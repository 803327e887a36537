"""Record a model's forward pass with one torch function mode, and replay it with its coefficients held.

The first pass runs every function as it is and notes, call by call, what the rules hold. A replay runs the same
model on any input; where the first pass held something, the held function runs in its place. The replayed network
is affine in its input: b = replay(0) and J v = replay(v) - b.

A tensor is live if and only if it requires grad: autograd tracks that through views, in-place writes and functions
that this mode never sees. Parameters are cut loose as they enter a call. Modes are local to a thread and gone
when their `with` block ends; nothing of the model is touched.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from secant.errors import NoPoint, NoRule, ReplayMismatch
from secant.forms import Call, Constant, Fixed, Form, Mark, changed, held_tensors, is_live, mapped, tensors
from secant.rules import QUESTIONS, ROWS, Row, out_of_place, writes

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Step:
    """One call with a live tensor in it: the function, the module that called it, and what was held (None: linear)."""

    function: Any
    module: str
    form: Form | None


@dataclass
class Tape:
    """The recorded pass: its live calls in order, which replays follow."""

    steps: list[Step] = field(default_factory=list)
    _storages: dict[int, list[Step]] = field(default_factory=dict, repr=False)

    def append(self, step: Step) -> None:
        """Add a call to the end."""
        self.steps.append(step)
        self._register(step)

    def _register(self, step: Step) -> None:
        for tensor in held_tensors(step.form) if step.form is not None else ():
            self._storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(step)

    def protect(self, target: Tensor) -> None:
        """Before `target` is written in place: coefficients in the same memory get a copy of their own."""
        for step in self._storages.pop(target.untyped_storage().data_ptr(), ()):
            if step.form is not None:
                step.form = apart(step.form, target)
                self._register(step)

    def operations(self) -> dict[str, int]:
        """How many live calls there were of each rule."""
        counts = Counter(
            "linear" if s.form is None else f"{name_of(s.function)}: {type(s.form).__name__.lower()}"
            for s in self.steps
        )
        return dict(sorted(counts.items()))

    @property
    def nbytes(self) -> int:
        """Memory of the coefficients, shared storage counted once."""
        held = (t for s in self.steps if s.form is not None for t in held_tensors(s.form))
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        return sum(storages.values())


def apart(form: Form, target: Tensor) -> Form:
    """The same form, with copies of those coefficients that share the target's memory."""
    address = target.untyped_storage().data_ptr()
    return changed(form, lambda t: t.clone() if t.untyped_storage().data_ptr() == address else t)


def name_of(function: Any) -> str:
    """A readable name of a torch function."""
    return (resolve_name(function) or getattr(function, "__name__", repr(function))).removesuffix(".__get__")


def normal(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with parameters cut loose, the first one by position, and einsum's operands unpacked."""
    args, kwargs = _without_parameters(args), _without_parameters(kwargs)
    if not args and "input" in kwargs:
        kwargs = dict(kwargs)
        args = (kwargs.pop("input"),)
    if function is torch.einsum and len(args) == 2 and isinstance(args[1], list | tuple):
        args = (args[0], *args[1])
    return args, kwargs


def _without_parameters(tree: Any) -> Any:
    if not any(isinstance(t, nn.Parameter) and t.requires_grad for t in tensors(tree)):
        return tree
    return mapped(tree, lambda t: t.detach() if isinstance(t, nn.Parameter) else t)


class Precision(TorchFunctionMode):
    """Run a model in one floating-point type throughout: whatever is in or cast to a lower one is cast up to it.

    Stock modelling code casts norms and softmax to float32 even in a float64 model, which leaves an error near
    1e-7. Under this mode it does not.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.lower = frozenset(FLOATS[FLOATS.index(dtype) + 1 :])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in QUESTIONS:
            return func(*args, **(kwargs or {}))
        written = args[0] if args and writes(func, kwargs or {}) else None
        args, kwargs = self._up(args), self._up(kwargs or {})
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func, args = Tensor.to, (args[0], self.dtype)
        if written is not None and args[0] is not written:  # a lower-precision tensor stays what it is
            return written.copy_(func(*args, **kwargs))
        out = func(*args, **kwargs)
        return mapped(out, self._raise) if written is None else out

    def _raise(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.dtype in self.lower else tensor

    def _up(self, tree: Any) -> Any:
        if isinstance(tree, torch.dtype):
            return self.dtype if tree in self.lower else tree
        if isinstance(tree, Tensor):
            return self._raise(tree)
        if type(tree) in (list, tuple):
            return type(tree)(self._up(leaf) for leaf in tree)
        if type(tree) is dict:
            return {k: self._up(leaf) for k, leaf in tree.items()}
        return tree


class WithoutParameters(TorchFunctionMode):
    """Keep parameters out of the graph; what the head is first applied to is kept as `before_head`."""

    def __init__(self, head: Tensor) -> None:
        super().__init__()
        self._head = head.untyped_storage().data_ptr()
        self.before_head: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = normal(func, args, kwargs or {})
        if self.before_head is None and func not in QUESTIONS:
            self.before_head = meeting(self._head, args)
        return func(*args, **kwargs)


def meeting(address: int, args: tuple[Any, ...]) -> Tensor | None:
    """The live tensor of a call that also takes a weight at this address; None of any other call."""
    live = [t for t in tensors(args) if t.requires_grad]
    return live[0] if live and any(t.untyped_storage().data_ptr() == address for t in tensors(args)) else None


class _Live(torch.autograd.Function):
    """A call's own value, computed without a graph and marked live."""

    @staticmethod
    def forward(ctx: Any, call: Call, *live: Tensor) -> Tensor:
        return call.value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("a recording is not differentiated: its replays are")


class _Mode(TorchFunctionMode):
    """What recording and replaying share: which calls are steps, and how they write in place."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = normal(func, args, kwargs or {})
        if func in QUESTIONS:
            return func(*args, **kwargs)
        into = args[0] if args and isinstance(args[0], Tensor) and writes(func, kwargs) else None
        if into is not None:
            self.tape.protect(into)
        if not is_live((args, kwargs)):
            return func(*args, **kwargs)
        return self.step(func, args, kwargs, into)

    def step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], into: Tensor | None) -> Any:
        """Run one call with a live tensor in it."""
        raise NotImplementedError


class Record(_Mode):
    """Run a model on a live input as it is, and note on a tape what each call holds.

    `head`: the unembedding; what it is first applied to is kept as `before_head`. `precision`: compute
    coefficients in this type where it is higher than the call's own.
    Raises NoRule at a function for which the table of rules has no row.
    """

    def __init__(
        self, model: nn.Module, head: Tensor, convention: str = "gate", precision: torch.dtype | None = None
    ) -> None:
        super().__init__(Tape())
        self.convention, self.precision = convention, precision
        self.modules = {id(module): name or type(module).__name__ for name, module in model.named_modules()}
        self.marks = WeakIdKeyDictionary()
        self._roots = itertools.count()
        self.before_head: Tensor | None = None
        self._head = head.untyped_storage().data_ptr()

    def mark(self, tensor: Tensor) -> Mark | None:
        """What is known of a tensor: None of a constant, nothing in particular of a live one that no step made."""
        if tensor.requires_grad and tensor not in self.marks:
            self.marks[tensor] = Mark(-1, next(self._roots))
        return self.marks.get(tensor)

    def made(self, tensor: Tensor | None) -> int:
        """The step that made a live tensor. Raises NoPoint where none did."""
        mark = None if tensor is None else self.mark(tensor)
        if mark is None or mark.step < 0:
            raise NoPoint(
                "The head must be applied to what the model made of the input",
                "a model where it is not",
                "Report the model's type.",
            )
        return mark.step

    def step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], into: Tensor | None) -> Any:
        """Run one call with a live tensor in it."""
        module = self._module()
        row = ROWS.get(func)
        call = functional(func, args, kwargs, mark=self.mark, convention=self.convention, precision=self.precision)
        if kwargs.get("out") is not None or (into is not None and not (row and torch.is_grad_enabled())):
            raise self._refusal(func, module)
        if row is None:
            if any(t.is_floating_point() or t.is_complex() for t in tensors(call.value)):
                raise self._refusal(func, module)
            form: Form | None = Constant(call.value)
        else:
            form = row.rule(call) if torch.is_grad_enabled() else Constant(call.value)
        if self.before_head is None:
            self.before_head = meeting(self._head, args)
        if form is None:
            out = func(*args, **kwargs)
            if into is None and not is_live(out) and not isinstance(out, Iterator):
                form = Constant(out)  # a cast to integers, say
        elif isinstance(form, Constant):
            out = form.value
        else:
            out = _Live.apply(call, *(t for t in tensors((args, kwargs)) if t.requires_grad))
        if into is not None and form is not None:
            form = apart(form, into)
            out = into.copy_(out)
        self.tape.append(Step(func, module, form))
        for made in tensors(out if into is None else into):
            self.marks[made] = self._marked(row, call, form)
        return out

    def _marked(self, row: Row | None, call: Call, form: Form | None) -> Mark:
        """What is known of an output. It is an elementwise function of the root that its inputs share, if any."""
        step = len(self.tape.steps) - 1
        marks = [mark for t in tensors((call.args, call.kwargs)) if (mark := self.mark(t)) is not None]
        if row is None or not row.elementwise or len({m.root for m in marks}) != 1:
            return Mark(step, next(self._roots), activation=row is not None and row.activation)
        numbers = sum(isinstance(a, Tensor | float | int) for a in call.args)
        homogeneous = [m.homogeneous for m in marks]
        return Mark(
            step,
            marks[0].root,
            homogeneous=(any(homogeneous) if isinstance(form, Fixed) else all(homogeneous))
            and not (row.additive and numbers > len(marks)),
            activation=row.activation or any(m.activation for m in marks),
        )

    def _module(self) -> str:
        """The module of the model whose forward is running."""
        frame = sys._getframe(3)
        while frame is not None:
            name = self.modules.get(id(frame.f_locals.get("self")))
            if name is not None:
                return name
            frame = frame.f_back  # type: ignore[assignment]
        return "?"

    def _refusal(self, func: Any, module: str) -> NoRule:
        return NoRule(
            "Every torch function that meets the input must have a rule",
            f"{name_of(func)} in {module}",
            "Add its name to a row of secant.rules.TABLE (docs/extend.md says how), or report the model's type.",
        )


class Replay(_Mode):
    """Run the same model on any live input with the coefficients of a tape held.

    `points` maps each wanted step to the tensor that it made, once the model has run.
    Raises ReplayMismatch where the model takes another course than it did when it was recorded.
    """

    def __init__(self, tape: Tape, wanted: Iterable[int] = (), precision: torch.dtype | None = None) -> None:
        super().__init__(tape)
        self.points: dict[int, Any] = dict.fromkeys(wanted)
        self.precision = precision
        self.count = 0

    def step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], into: Tensor | None) -> Any:
        """Run one call with a live tensor in it."""
        number = self.count
        if number >= len(self.tape.steps) or self.tape.steps[number].function != func:
            self._mismatch(name_of(func))
        form = self.tape.steps[number].form
        self.count += 1
        if form is None:
            out = func(*args, **kwargs)
        else:
            if self.precision is not None:
                form = changed(form, self._cast)
            out = form(functional(func, args, kwargs))
            out = out if into is None else into.copy_(out)
        if number in self.points:
            self.points[number] = out
        return out

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


def functional(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **about: Any) -> Call:
    """The call; one that writes into its first argument computes its result beside it instead."""
    if kwargs.get("inplace"):
        return Call(func, args, {**kwargs, "inplace": False}, **about)
    return Call(out_of_place(func) if writes(func, kwargs) else func, args, kwargs, **about)
