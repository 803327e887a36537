"""Record a model's forward pass with one torch function mode, and replay it with its coefficients held.

The first pass runs every function as it is and notes, call by call, what the rules hold. A replay runs the same
model on any input; where the first pass held something, the held function runs in its place. The replayed network
is affine in its input: b = replay(0) and J v = replay(v) - b.

A tensor is live if it requires grad because it descends from the input: autograd tracks that through views, in-place
writes and functions that this mode never sees. Leaves, such as parameters, and what else requires grad for reasons of
its own are cut loose as they enter a call. Modes are local to a thread and gone when their `with` block ends; nothing
of the model is touched.
"""

from __future__ import annotations

import itertools
import math
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from secant.errors import NoPoint, NoRule
from secant.linearize.forms import (
    Attended,
    Call,
    Constant,
    Fixed,
    Form,
    Halves,
    Mark,
    changed,
    held_tensors,
    left_live,
    live,
)
from secant.linearize.rules import (
    QUESTIONS,
    ROWS,
    Refused,
    Row,
    converted,
    divided,
    linear,
    multiplied,
    out_of_place,
    writes,
)
from secant.numeric import address, mapped, tensors


@dataclass
class Step:
    """One call with a live tensor in it: the function, the module that called it, and what was held (None: linear).

    `parents` are the steps that made what is left live of its arguments, -1 where none did; `shape` is that of its
    output. `attends`: it is a product with the pattern of an attention.
    """

    function: Any
    module: str
    form: Form | None
    parents: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    attends: bool = False


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
            self._storages.setdefault(address(tensor), []).append(step)

    def protect(self, target: Tensor) -> None:
        """Before `target` is written in place: coefficients in the same memory get a copy of their own."""
        for step in self._storages.pop(address(target), ()):
            if step.form is not None:
                step.form = apart(step.form, target)
                self._register(step)

    def operations(self) -> dict[str, int]:
        """How many live calls there were of each rule."""
        counts = Counter(
            "linear" if s.form is None else f"{name_of(s.function)}: {kind_of(s.form)}" for s in self.steps
        )
        return dict(sorted(counts.items()))

    def largest(self, ends: Iterable[int]) -> int:
        """Numbers in the largest tensor on the way from the input to the output of some steps."""
        return max((math.prod(step.shape) for step in self.path(ends)), default=0)

    def path(self, ends: Iterable[int]) -> list[Step]:
        """The steps on the way from the input to the output of some."""
        return [self.steps[step] for step in sorted(self.behind(ends))]

    def behind(self, ends: Iterable[int]) -> set[int]:
        """The numbers of the steps that the output of some is made of, and of these themselves."""
        reached, stack = set[int](), [*ends]
        while stack:
            step = stack.pop()
            if step >= 0 and step not in reached:
                reached.add(step)
                stack += self.steps[step].parents
        return reached

    @property
    def nbytes(self) -> int:
        """Memory of the coefficients, shared storage counted once."""
        held = (t for s in self.steps if s.form is not None for t in held_tensors(s.form))
        storages = {address(t): t.untyped_storage().nbytes() for t in held}
        return sum(storages.values())


def kind_of(form: Form) -> str:
    """What a form holds, in a word."""
    gated = isinstance(form, Halves) or (isinstance(form, Fixed) and form.gated)
    return "gated" if gated else type(form).__name__.lower()


def apart(form: Form, target: Tensor) -> Form:
    """The same form, with copies of those coefficients that share the target's memory."""
    here = address(target)
    return changed(form, lambda t: t.clone() if address(t) == here else t)


def name_of(function: Any) -> str:
    """A readable name of a torch function."""
    return (resolve_name(function) or getattr(function, "__name__", repr(function))).removesuffix(".__get__")


def normal(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with the first one by position, and einsum's operands unpacked."""
    if not args and "input" in kwargs:
        kwargs = dict(kwargs)
        args = (kwargs.pop("input"),)
    if function is torch.einsum and len(args) == 2 and isinstance(args[1], list | tuple):
        args = (args[0], *args[1])
    return args, kwargs


def without_leaves(tree: Any) -> Any:
    """The same arguments with leaves of the graph, such as parameters, cut loose."""
    if not any(t.requires_grad and t.is_leaf for t in tensors(tree)):
        return tree
    return mapped(tree, lambda t: t.detach() if t.requires_grad and t.is_leaf else t)


@dataclass
class Use:
    """A use of the head: a call of its module, or of another function that takes its weight. `given`: the live tensor
    that it is applied to, if there is one, and `made` the step that made it, or -1; `begin` to `end`: the steps of the
    tape that belong to it.
    """

    given: Tensor | None
    made: int
    begin: int
    end: int
    called: bool


class Head:
    """Every use of a head in one pass, in order: a model may look at its own logits on the way, or have several."""

    def __init__(self, module: nn.Module) -> None:
        self.uses: list[Use] = []
        self._module, self._open = module, False

    def called(self, given: Any, mode: Record | WithoutParameters) -> None:
        """The head's module is called."""
        self._used(live(given), mode, 0, called=True)
        self._open = True

    def returned(self, step: int) -> None:
        """The call has come to its end."""
        self.uses[-1].end, self._open = step, False

    def met(self, args: Any, mode: Record | WithoutParameters) -> None:
        """A function is called: a use, if the head's whole weight is among its arguments and no call is under way."""
        if not self._open and self._is_here(args):
            self._used(live(args), mode, 1, called=False)

    def _used(self, moving: list[Tensor], mode: Record | WithoutParameters, steps: int, called: bool) -> None:
        given = moving[0] if moving else None
        mark = None if given is None else mode.mark(given)  # as it is now: a cast may give the same tensor back
        self.uses.append(Use(given, -1 if mark is None else mark.step, mode.count, mode.count + steps, called))

    def _is_here(self, args: Any) -> bool:
        weight: Any = self._module.weight
        if not isinstance(weight, Tensor) or weight.is_meta or address(weight) <= 0:
            return False
        where, size = weight.data_ptr(), weight.numel()
        return any(t.numel() == size and address(t) > 0 and t.data_ptr() == where for t in tensors(args))


class WithoutParameters(TorchFunctionMode):
    """Keep parameters out of the graph; `head` keeps what the head is applied to."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.count = Head(head), 0  # nothing is counted here, nor marked

    def mark(self, tensor: Tensor) -> Mark | None:
        """Nothing is known of a tensor."""
        return None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = normal(func, args, kwargs or {})
        if func in QUESTIONS:
            return func(*args, **kwargs)
        self.head.met(args, self)
        if not live((args, kwargs)):
            return unrecorded(func, args, kwargs)
        return func(*without_leaves(args), **without_leaves(kwargs))


def unrecorded(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call on constants without a graph."""
    if any(t.requires_grad for t in tensors((args, kwargs))):  # not so of the functions that set the mode
        with torch.no_grad():
            return func(*args, **kwargs)
    return func(*args, **kwargs)


class _Live(torch.autograd.Function):
    """A call's own value, computed without a graph and marked live."""

    @staticmethod
    def forward(ctx: Any, call: Call, *moving: Tensor) -> Any:
        return mapped(call.value, lambda t: t.data)  # no view of anything, or it could not be written in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("a recording is not differentiated: its replays are")


UNREAD = (
    "The logits must be what the head makes of what the model made of the input",
    "a model where they are not",
    "Report the model's type.",
)


class Mode(TorchFunctionMode):
    """What recording and replaying share: what is live, which calls are steps, and how they write in place."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.known = WeakIdKeyDictionary()  # live tensors that came from the input, and what is known of them
        self._origin: Any = None

    def enter(self, x: Tensor) -> Tensor:
        """A live copy of an input, on the graph from it; everything that descends from it is live."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().clone().requires_grad_()
            moving = leaf.clone()
        self._origin = moving.grad_fn
        return moving

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = normal(func, args, kwargs or {})
        if func in QUESTIONS:
            return func(*args, **kwargs)
        into = args[0] if args and isinstance(args[0], Tensor) and writes(func, kwargs) else None
        if into is not None:
            self.tape.protect(into)
        moving = live((args, kwargs))
        foreign = [self._is_foreign(t) for t in moving]
        if all(foreign):
            return self.still(func, args, kwargs)
        plain = None
        if any(foreign):
            plain = mapped((args, kwargs), lambda t: t if t.is_leaf or self._is_foreign(t) else t.detach())
            args, kwargs = mapped((args, kwargs), lambda t: t.detach() if self._is_foreign(t) else t)
        return self.step(func, args, kwargs, into, plain)

    def still(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call without a live tensor in it, and without a graph of what else requires grad."""
        return unrecorded(func, args, kwargs)

    def _is_foreign(self, tensor: Tensor) -> bool:
        """Whether a tensor requires grad for a reason of its own, and does not descend from the input."""
        if not tensor.requires_grad or tensor.is_leaf or tensor in self.known:
            return False
        nodes, seen = [tensor.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node is self._origin:
                return False
            if node is not None and node not in seen:
                seen.add(node)
                nodes.extend(parent for parent, _ in node.next_functions)
        return True

    @abstractmethod
    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one call with a live tensor in it. `plain`: its arguments as a plain pass has them, if not these."""


class Record(Mode):
    """Run a model on a live input as it is, and note on a tape what each call holds.

    `head` keeps what the unembedding is applied to. `precision`: compute coefficients in this type where it is higher
    than the call's own. `values` maps each wanted step to the value that it made, once the model has run.
    Raises NoRule at a function for which the table of rules has no row.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module,
        convention: str = "gate",
        precision: torch.dtype | None = None,
        wanted: Iterable[int] = (),
    ) -> None:
        super().__init__(Tape())
        self.values: dict[int, Any] = dict.fromkeys(wanted)
        self.convention, self.precision = convention, precision
        self.modules = {id(module): name or type(module).__name__ for name, module in model.named_modules()}
        self._roots = itertools.count()
        self.patterns = WeakIdKeyDictionary()  # softmaxes, and what was made of them
        self.head = Head(head)

    @property
    def count(self) -> int:
        """How many steps there are."""
        return len(self.tape.steps)

    def mark(self, tensor: Tensor) -> Mark | None:
        """What is known of a tensor: None of a constant, nothing in particular of a live one that no step made."""
        if tensor.requires_grad and not tensor.is_leaf and tensor not in self.known:
            self.known[tensor] = Mark(-1, next(self._roots), source=tensor.grad_fn)
        return self.known.get(tensor)

    def made(self, tensor: Tensor) -> int:
        """The step that made a live tensor. Raises NoPoint where none did."""
        mark = self.mark(tensor)
        if mark is None or mark.step < 0:
            raise NoPoint(*UNREAD)
        return mark.step

    def read(self, logits: Tensor) -> int:
        """Which use of the head made these logits: the last that they are made of. Raises NoPoint where none did."""
        behind = self.tape.behind([self.made(logits)])
        for number, use in reversed([*enumerate(self.head.uses)]):
            inside = behind.intersection(range(use.begin, use.end))
            if use.made >= 0 and any(use.made in self.tape.steps[step].parents for step in inside):
                return number
        raise NoPoint(*UNREAD)

    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one call with a live tensor in it."""
        module = self._module()
        row = ROWS.get(func)
        about = {"mark": self.mark, "convention": self.convention, "precision": self.precision, "plain": plain}
        call = functional(func, args, kwargs, **about)
        graded, view = torch.is_grad_enabled(), row is not None and row.view
        if kwargs.get("out") is not None or (into is not None and not (row and graded)):
            raise self._refusal(func, module)
        if row is None and _floats(call.value):
            raise self._refusal(func, module)
        try:
            form = row.rule(call) if row and graded else Constant(call.value)
        except Refused:
            raise self._refusal(func, module) from None
        if form is None and into is None and not view and not _floats(call.value):
            form = Constant(call.value)  # linear, but on to integers
        self.head.met(args, self)
        parents = self._parents(call, form)  # before a write makes its target live
        out: Any
        if isinstance(form, Constant):
            out = form.value
        elif form is None and (into is not None or view or _shares(call)):
            out = func(*without_leaves(args), **without_leaves(kwargs))
        else:
            out = _Live.apply(call, *live((args, kwargs)))
        if into is not None and form is not None:
            form = apart(form, into)
            out = into.copy_(out)
        written = out if into is None else into
        shape = tuple(written.shape) if isinstance(written, Tensor) else ()
        self.tape.append(Step(func, module, form, parents, shape, self._attends(row, call, form)))
        if (number := len(self.tape.steps) - 1) in self.values:
            self.values[number] = written.detach().clone()
        self._follow(row, written, args, kwargs)
        for made in tensors(written):
            self.known[made] = self._marked(row, call, form, made)
        return out

    def still(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call without a live tensor in it; a function of a held function of a root is one of that root too."""
        self.head.met(args, self)
        out = super().still(func, args, kwargs)
        row = ROWS.get(func)
        self._follow(row, out, args, kwargs)
        if row is not None and row.elementwise and any(t in self.known for t in tensors((args, kwargs))):
            for made in tensors(out):
                self.known[made] = self._marked(row, Call(func, args, kwargs), None, made)
        return out

    def _parents(self, call: Call, form: Form | None) -> tuple[int, ...]:
        """The steps that made what a call leaves live of its arguments."""
        marks = (self.mark(t) for t in left_live(form, call))
        return tuple(-1 if mark is None else mark.step for mark in marks)

    def _attends(self, row: Row | None, call: Call, form: Form | None) -> bool:
        """Whether a call mixes what is live by a pattern of attention."""
        mixes = row is not None and not (row.elementwise or row.view or row.moves) and not isinstance(form, Constant)
        return isinstance(form, Attended) or (mixes and self._patterned(call.args, call.kwargs))

    def _patterned(self, *arguments: Any) -> bool:
        return any(t in self.patterns for t in tensors(arguments))

    def _follow(self, row: Row | None, out: Any, *arguments: Any) -> None:
        """A pattern stays one where it is masked, scaled, or moved about."""
        keeps = row is not None and (row.elementwise or row.view or row.moves)
        if row is not None and (row.pattern or (keeps and self._patterned(*arguments))):
            self.patterns.update((made, True) for made in tensors(out))

    def _marked(self, row: Row | None, call: Call, form: Form | None, made: Tensor) -> Mark:
        """What is known of an output. It is an elementwise function of the root that its inputs share, if any."""
        step = len(self.tape.steps) - 1
        given = [t for t in tensors((call.args, call.kwargs)) if t.is_floating_point()]
        marks = [mark for t in given if (mark := self.mark(t)) is not None]
        alone = row is not None and row.rule in (linear, converted) and len(given) == 1 == len(marks)
        source = marks[0].source if alone and given[0].numel() == made.numel() else made.grad_fn
        moved = row is not None and (row.view or row.moves)
        activation = row is not None and (row.activation or (moved and any(m.activation for m in marks)))
        if row is None or not row.elementwise or len({m.root for m in marks}) != 1:
            return Mark(step, next(self._roots), activation=activation, source=source)
        scalars = sum(isinstance(a, float | int) for a in (*call.args, *call.kwargs.values()))
        homogeneous = [m.homogeneous for m in marks]
        by_hand = len(marks) > 1 and row.rule in (multiplied, divided)
        return Mark(
            step,
            marks[0].root,
            homogeneous=(any(homogeneous) if isinstance(form, Fixed) else all(homogeneous))
            and not (row.additive and len(given) + scalars > len(marks)),
            activation=activation or by_hand or any(m.activation for m in marks),
            source=source,
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
            "Add its name to a row of secant.linearize.rules.TABLE (see docs/extend.md), or report the model's type.",
        )


def _floats(value: Any) -> bool:
    """Whether there is a number in a value that could be live."""
    return any(t.is_floating_point() or t.is_complex() for t in tensors(value))


def _shares(call: Call) -> bool:
    """Whether a call's value is a view of one of its arguments, or no tensor."""
    given = {address(t) for t in tensors((call.args, call.kwargs))}
    made = list(tensors(call.value))
    return not made or any(address(t) in given for t in made)


def functional(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **about: Any) -> Call:
    """The call; one that writes into its first argument computes its result beside it instead."""
    if kwargs.get("inplace"):
        return Call(func, args, {**kwargs, "inplace": False}, **about)
    return Call(out_of_place(func) if writes(func, kwargs) else func, args, kwargs, **about)
