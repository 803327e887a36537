"""Record a model's forward pass with one torch function mode, so that it can be replayed with frozen coefficients.

The recording runs every function as it is and writes down, call by call, what the rules freeze. A replay runs the same
model on any input and calls the frozen functions instead of the recorded ones. The replayed network is affine in its
input: b = replay(0) and J v = replay(v) - b.

A tensor is live if it requires grad because it descends from the input. Autograd tracks that through views, in-place
writes and functions that this mode never sees. Leaves, such as parameters, and tensors that require grad for other
reasons are detached when they enter a call. A mode is local to its thread and ends with its `with` block. The model
itself is never changed.
"""

from __future__ import annotations

import itertools
import math
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils.weak import WeakIdKeyDictionary

from secant.errors import NoPoint, NoRule
from secant.linearize.conventions import CONVENTIONS, Convention
from secant.linearize.forms import (
    Attended,
    Call,
    Constant,
    Fixed,
    Form,
    Live,
    Mark,
    Secant,
    Shared,
    coefficients,
    gated,
    live,
    live_arguments,
    map_coefficients,
)
from secant.linearize.rules import (
    METADATA,
    ROWS,
    VIEWS,
    Refused,
    Row,
    converted,
    divided,
    linear,
    multiplied,
    out_of_place,
    writes,
)
from secant.linearize.secants import Open, OpenAttention, opened
from secant.memory import stopping_point
from secant.numeric import address, asking_no_mode, mapped, tensors, without_graph


@dataclass
class Step:
    """One call with a live argument.

    Attributes:
        function: The torch function.
        module: The path of the module that called it.
        form: The frozen function, or None if the function is linear as it is.
        parents: The steps that made the arguments of the frozen function; -1 stands for the input.
        shape: The shape of the output.
        attends: Whether the call multiplies by an attention pattern.
    """

    function: Any
    module: str
    form: Form | None
    parents: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    attends: bool = False


@dataclass(frozen=True)
class LayerCall:
    """One call of a member of a module list, with the module's path.

    `out` is the step that made its output, `last` the last step inside it, and `nth` says which call of that module it
    was, counted from 1.
    """

    module: str
    out: int
    last: int
    nth: int = 1


@dataclass
class Tape:
    """A recorded pass: its calls with live arguments, in order, for a batch of `copies` of the prompt.

    A replay gives a model the tape's own coefficients, and the model may write into them. They are protected: before
    the write, every step that has them gets a copy. Tapes that are made of one another have coefficients in common, so
    they know of each other's steps.
    """

    steps: list[Step] = field(default_factory=list)
    copies: int = 1
    _storages: dict[int, list[ReferenceType[Step]]] = field(default_factory=dict, repr=False)

    def append(self, step: Step) -> None:
        """Add a call to the end."""
        self.steps.append(step)
        self._register(step)

    def _register(self, step: Step) -> None:
        for tensor in coefficients(step.form) if step.form is not None else ():
            self._storages.setdefault(address(tensor), []).append(ref(step))

    def protect(self, target: Tensor) -> None:
        """Copy the coefficients that share memory with `target`, which is about to be written in place."""
        for known in self._storages.pop(address(target), ()):
            step = known()
            if step is not None and step.form is not None:
                step.form = unaliased(step.form, target)
                self._register(step)

    def copy(self) -> Tape:
        """Returns a tape with the same steps, whose open forms have not yet collected their secants."""
        found = Tape(copies=self.copies, _storages=self._storages)
        for step in self.steps:
            form = step.form
            found.append(replace(step, form=replace(form, found={}) if isinstance(form, Open) else form))
        return found

    def with_share(self, share: float) -> Tape:
        """Returns a tape with a different weight of the map of `gate` in gated products, from one that has both maps.

        Args:
            share: The weight, from 0 to 1.
        """
        found = Tape(copies=self.copies, _storages=self._storages)
        for step in self.steps:
            form, parents = step.form, step.parents
            if isinstance(form, Shared) and share in (0, 1):
                form = form.one if share == 1 else form.two
                parents = (parents[1] if 0 in form.frozen else parents[0],)  # of the two factors, the one not frozen
            elif isinstance(form, Shared):
                form = replace(form, share=share)
            found.append(replace(step, form=form, parents=parents))
        return found

    def close(self) -> None:
        """Replace the open forms by their secants, after the pass at the reference."""
        for step in self.steps:
            if isinstance(step.form, Open):
                step.form = step.form.closed()
                self._register(step)

    def operations(self) -> dict[str, int]:
        """Returns the number of linear steps, and of the others by torch function and kind of form."""
        counts = Counter(
            "linear" if s.form is None else f"{name_of(s.function)}: {kind_of(s.form)}" for s in self.steps
        )
        return dict(sorted(counts.items()))

    def largest(self, ends: Iterable[int]) -> int:
        """Returns the number of elements of the largest tensor on any path from the input to these steps."""
        return max((math.prod(step.shape) for step in self.path(ends)), default=0)

    def path(self, ends: Iterable[int]) -> list[Step]:
        """Returns the steps on all paths from the input to these steps, in order."""
        return [self.steps[step] for step in sorted(self.ancestors(ends))]

    def ancestors(self, ends: Iterable[int]) -> set[int]:
        """Returns the numbers of these steps and of all steps that they were computed from."""
        reached, stack = set[int](), [*ends]
        while stack:
            step = stack.pop()
            if step >= 0 and step not in reached:
                reached.add(step)
                stack += self.steps[step].parents
        return reached

    @property
    def nbytes(self) -> int:
        """Bytes of the coefficients. Shared storage is counted once."""
        frozen = (t for s in self.steps if s.form is not None for t in coefficients(s.form))
        storages = {address(t): t.untyped_storage().nbytes() for t in frozen}
        return sum(storages.values())


def kind_of(form: Form) -> str:
    """Returns the kind of a form in one word, as the certificate counts it."""
    if isinstance(form, Secant):
        return "secant"
    return "gated" if gated(form) else type(form).__name__.lower()


def unaliased(form: Form, target: Tensor) -> Form:
    """Returns the same form with copies of those coefficients that share memory with `target`."""
    here = address(target)
    return map_coefficients(form, lambda t: t.clone() if address(t) == here else t)


def name_of(function: Any) -> str:
    """Returns a readable name of a torch function."""
    return (resolve_name(function) or getattr(function, "__name__", repr(function))).removesuffix(".__get__")


def canonical(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the same arguments with the first one by position and the operands of einsum unpacked."""
    if not args and "input" in kwargs:
        kwargs = dict(kwargs)
        args = (kwargs.pop("input"),)
    if function is torch.einsum and len(args) == 2 and isinstance(args[1], list | tuple):
        args = (args[0], *args[1])
    return args, kwargs


def without_leaves(tree: Any) -> Any:
    """Returns the same arguments with leaves of the graph, such as parameters, detached."""
    with asking_no_mode():
        leaves = {id(t) for t in tensors(tree) if t.requires_grad and t.is_leaf}
    return mapped(tree, lambda t: t.detach() if id(t) in leaves else t) if leaves else tree


@dataclass
class HeadUse:
    """One use of the head: a call of its module, or of another function that takes its weight.

    Attributes:
        given: The live tensor that the head is applied to, if any.
        made: The step that made this tensor, or -1.
        begin: The first step that belongs to the use.
        end: The first step after it.
        called: Whether the module was called.
    """

    given: Tensor | None
    made: int
    begin: int
    end: int
    called: bool


class HeadUses:
    """All uses of a head in one pass, in order. A model may compute logits more than once."""

    def __init__(self, module: nn.Module) -> None:
        self.uses: list[HeadUse] = []
        self._module, self._open = module, False

    def called(self, given: Any, mode: Record | WithoutParameters) -> None:
        """Note that a call of the head's module begins."""
        self._used(live(given), mode, 0, called=True)
        self._open = True

    def returned(self, step: int) -> None:
        """Note that the call of the head's module has ended, before this step."""
        self.uses[-1].end, self._open = step, False

    def observe(self, args: Any, mode: Record | WithoutParameters) -> None:
        """Note a function call as a use if it takes the head's whole weight and no call of the module is open."""
        if not self._open and self._is_here(args):
            self._used(live(args), mode, 1, called=False)

    def _used(self, moving: list[Tensor], mode: Record | WithoutParameters, steps: int, called: bool) -> None:
        given = moving[0] if moving else None
        mark = None if given is None else mode.mark(given)  # read it now: a later cast may return the same tensor
        self.uses.append(HeadUse(given, -1 if mark is None else mark.step, mode.count, mode.count + steps, called))

    def _is_here(self, args: Any) -> bool:
        weight: Any = self._module.weight
        with asking_no_mode():
            if not isinstance(weight, Tensor) or weight.is_meta or address(weight) <= 0:
                return False
            where, size = weight.data_ptr(), weight.numel()
            return any(t.numel() == size and address(t) > 0 and t.data_ptr() == where for t in tensors(args))


class WithoutParameters(TorchFunctionMode):
    """A mode that keeps parameters out of the autograd graph. `head` notes what the head is applied to."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.count = HeadUses(head), 0  # this mode counts no steps and marks no tensors

    def mark(self, tensor: Tensor) -> Mark | None:
        """Returns None: this mode marks no tensors."""
        return None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = canonical(func, args, kwargs or {})
        if func in METADATA:
            return func(*args, **kwargs)
        self.head.observe(args, self)
        if not live((args, kwargs)):
            return run_without_graph(func, args, kwargs)
        return func(*without_leaves(args), **without_leaves(kwargs))


def run_without_graph(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call on constants without a graph."""
    with asking_no_mode():
        graph = any(t.requires_grad for t in tensors((args, kwargs)))
    if graph:  # never for functions that set the grad mode
        with without_graph():
            return func(*args, **kwargs)
    return func(*args, **kwargs)


UNTRACED_LOGITS = (
    "The logits must be the output of the model's head, applied to hidden states that depend on the input",
    "logits that are not",
    "Report the model's type.",
)


class Mode(TorchFunctionMode):
    """The base of recording and replaying: tells live tensors from others, and steps from other calls.

    Unless it `keeps_leaves`, its steps are given leaves of the graph, such as parameters, detached.
    """

    keeps_leaves = False

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.known = WeakIdKeyDictionary()  # live tensors, and their marks
        self._origins = set[Any]()  # nodes of the graph that live tensors descend from

    def enter(self, x: Tensor) -> Tensor:
        """Returns a live copy of an input, on the graph from it. All tensors that descend from the copy are live."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().clone().requires_grad_()
            moving = leaf.clone()
        return self.entered(moving)

    def entered(self, moving: Tensor) -> Tensor:
        """Returns a tensor that has just been made. It is live, and so is all that descends from it."""
        if moving.grad_fn is not None:
            self._origins.add(moving.grad_fn)
        return moving

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = canonical(func, args, kwargs or {})
        if func in METADATA:
            return func(*args, **kwargs)
        stopping_point()
        into = args[0] if args and isinstance(args[0], Tensor) and writes(func, kwargs) else None
        if into is not None:
            self.tape.protect(into)
        given = tensors((args, kwargs))
        with asking_no_mode():
            graded = [t for t in given if t.requires_grad]
            foreign = [self._is_foreign(t) for t in graded if not t.is_leaf]
        if all(foreign):
            return self.run_constant(func, args, kwargs)
        if len(foreign) < len(graded) and not self.keeps_leaves:
            args, kwargs = without_leaves((args, kwargs))
        plain = None
        if any(foreign):
            plain = mapped((args, kwargs), lambda t: t if t.is_leaf or self._is_foreign(t) else t.detach())
            args, kwargs = mapped((args, kwargs), lambda t: t.detach() if self._is_foreign(t) else t)
        return self.step(func, args, kwargs, into, plain)

    def run_constant(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call without live arguments, and without a graph of other tensors that require grad."""
        return run_without_graph(func, args, kwargs)

    def _is_foreign(self, tensor: Tensor) -> bool:
        """Whether a tensor requires grad without descending from the input."""
        with asking_no_mode():
            if not tensor.requires_grad or tensor.is_leaf or tensor in self.known:
                return False
            nodes, seen = [tensor.grad_fn], set()
        while nodes:
            node = nodes.pop()
            if node in self._origins:
                return False
            if node is not None and node not in seen:
                seen.add(node)
                nodes.extend(parent for parent, _ in node.next_functions)
        return True

    @abstractmethod
    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one call with live arguments.

        Args:
            func: The torch function.
            args: Its positional arguments, with foreign tensors detached.
            kwargs: Its keyword arguments, likewise.
            into: The argument that the call writes in place, if it does.
            plain: The arguments as a plain pass has them, if they are different.
        """


class Record(Mode):
    """A mode that runs a model unaltered on a live input and records what each call freezes.

    After the model has run, `tape` has the steps, `values` the value of each wanted step, and `head` the uses of the
    unembedding.

    Args:
        model: The model, whose modules are named on the tape.
        head: Its unembedding.
        convention: Which exact affine map replaces each operation.
        precision: The lowest type that coefficients are computed in; float32 by default.
        wanted: The steps whose values are kept.
        copies: How many copies of the prompt run as one batch.

    Raises:
        NoRule: A function with a live argument has no row in the table of rules.
    """

    keeps_leaves = True

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module,
        convention: Convention = CONVENTIONS["gate"],
        precision: torch.dtype | None = None,
        wanted: Iterable[int] = (),
        copies: int = 1,
    ) -> None:
        super().__init__(Tape(copies=copies))
        self.values: dict[int, Any] = dict.fromkeys(wanted)
        self.convention, self.precision = convention, precision
        self.modules = {id(module): name or type(module).__name__ for name, module in model.named_modules()}
        self._roots = itertools.count()
        self.patterns = WeakIdKeyDictionary()  # attention patterns: softmaxes, also masked, scaled or moved
        self.head = HeadUses(head)

    @property
    def count(self) -> int:
        """How many steps have been recorded."""
        return len(self.tape.steps)

    def mark(self, tensor: Tensor) -> Mark | None:
        """Returns the mark of a tensor: None for a constant, a blank mark for a live tensor that no step made."""
        with asking_no_mode():
            if tensor.requires_grad and not tensor.is_leaf and tensor not in self.known:
                self.known[tensor] = Mark(-1, next(self._roots), source=tensor.grad_fn)
        return self.known.get(tensor)

    def maker(self, tensor: Tensor) -> int:
        """Returns the step that made a live tensor. Raises NoPoint if no step did."""
        mark = self.mark(tensor)
        if mark is None or mark.step < 0:
            raise NoPoint(*UNTRACED_LOGITS)
        return mark.step

    def head_use(self, logits: Tensor) -> int:
        """Returns the number of the last use of the head that these logits come from. Raises NoPoint without one."""
        ancestors = self.tape.ancestors([self.maker(logits)])
        for number, use in reversed([*enumerate(self.head.uses)]):
            inside = ancestors.intersection(range(use.begin, use.end))
            if use.made >= 0 and any(use.made in self.tape.steps[step].parents for step in inside):
                return number
        raise NoPoint(*UNTRACED_LOGITS)

    def step(self, func: Any, args: Any, kwargs: Any, into: Tensor | None, plain: Any) -> Any:
        """Run one call with live arguments, and record it."""
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
            form = Constant(call.value)  # a linear function with an integer output
        if form is not None and row is not None and row.secant is not None and row.follows(self.convention, form):
            form = opened(row.secant, call) or form
        self.head.observe(args, self)
        parents = self._parents(call, form)  # before a write makes its target live
        out: Any = form.value if isinstance(form, Constant) else own_output(call, form, func, args, kwargs, into)
        if into is not None and form is not None:
            form = unaliased(form, into)
            out = into.copy_(out)
        written = out if into is None else into
        with asking_no_mode():
            shape = tuple(written.shape) if isinstance(written, Tensor) else ()
        self.tape.append(Step(func, module, form, parents, shape, self._attends(row, call, form)))
        if (number := len(self.tape.steps) - 1) in self.values:
            self.values[number] = written.detach().clone()
        self._follow(row, written, args, kwargs)
        for made in tensors(written):
            self.known[made] = self._marked(row, call, form, made)
        return out

    def run_constant(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call without live arguments. An elementwise function of a marked constant shares its root."""
        self.head.observe(args, self)
        out = super().run_constant(func, args, kwargs)
        row = ROWS.get(func)
        self._follow(row, out, args, kwargs)
        if row is not None and row.elementwise and any(t in self.known for t in tensors((args, kwargs))):
            for made in tensors(out):
                self.known[made] = self._marked(row, Call(func, args, kwargs), None, made)
        return out

    def _parents(self, call: Call, form: Form | None) -> tuple[int, ...]:
        """The steps that made the arguments of the call's frozen function."""
        marks = (self.mark(t) for t in live_arguments(form, call))
        return tuple(-1 if mark is None else mark.step for mark in marks)

    def _attends(self, row: Row | None, call: Call, form: Form | None) -> bool:
        """Whether a call multiplies live tensors by an attention pattern."""
        mixes = row is not None and not (row.elementwise or row.view or row.moves) and not isinstance(form, Constant)
        return isinstance(form, Attended | OpenAttention) or (mixes and self._patterned(call.args, call.kwargs))

    def _patterned(self, *arguments: Any) -> bool:
        return any(t in self.patterns for t in tensors(arguments))

    def _follow(self, row: Row | None, out: Any, *arguments: Any) -> None:
        """Track attention patterns: a masked, scaled or rearranged pattern is still one."""
        keeps = row is not None and (row.elementwise or row.view or row.moves)
        if row is not None and (row.pattern or (keeps and self._patterned(*arguments))):
            self.patterns.update((made, True) for made in tensors(out))

    def _marked(self, row: Row | None, call: Call, form: Form | None, made: Tensor) -> Mark:
        """The mark of an output. If the inputs of an elementwise function share a root, the output shares it too."""
        step = len(self.tape.steps) - 1
        with asking_no_mode():
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
        """The path of the module whose forward is running."""
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
            "Add its name to a row of secant.linearize.rules.TABLE (docs/how-to/extend.md) or report the model's type.",
        )


def _floats(value: Any) -> bool:
    """Whether a value contains floating-point or complex elements, which could be live."""
    with asking_no_mode():
        return any(t.is_floating_point() or t.is_complex() for t in tensors(value))


def _shares(call: Call) -> bool:
    """Whether a call's value shares memory with an argument, or contains no tensor."""
    given = {address(t) for t in tensors((call.args, call.kwargs))}
    made = tensors(call.value)
    return not made or any(address(t) in given for t in made)


def own_output(call: Call, form: Form | None, func: Any, args: Any, kwargs: Any, into: Tensor | None) -> Any:
    """Returns what a call with live arguments computes itself, bit for bit as in a plain pass. It is live.

    Args:
        call: The call, out of place.
        form: Its frozen form; without one, it is run as it is if it writes in place or may share memory.
        func: The torch function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        into: The argument that it writes in place, if it does.
    """
    if form is None and (into is not None or func in VIEWS or _shares(call)):
        return func(*without_leaves(args), **without_leaves(kwargs))
    return Live.apply(call, *live((args, kwargs)))


def functional(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **about: Any) -> Call:
    """Returns a call. If the function writes in place, the call computes the same result out of place."""
    if kwargs.get("inplace"):
        return Call(func, args, {**kwargs, "inplace": False}, **about)
    return Call(out_of_place(func) if writes(func, kwargs) else func, args, kwargs, **about)
