"""The held network: a model's recorded pass at a prompt, which can be replayed on any input.

Two replays give the affine map to every point: one at the prompt's own embeddings, whose autograd graph holds J, and
one at zero, whose value is b. b is what biases, learned positions and other constants of the model contribute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secant.errors import ModelRefused, NoPoint
from secant.foreign import explained
from secant.linearize.forms import live
from secant.linearize.precision import Precision
from secant.linearize.replay import Altered, Constants, Injected, Replay
from secant.linearize.rules import whole
from secant.linearize.sites import LayerCall
from secant.linearize.tape import Record, Tape, WithoutParameters
from secant.linearize.untouched import State, untouched
from secant.model.hooks import answering, before, seen_whole
from secant.model.lm import LM
from secant.operators.operator import Graph, Operator


def throughout(dtype: torch.dtype, upcast: bool = False) -> AbstractContextManager[Any]:
    """Keep a float64 model, or one that is evaluated above its own type, from casting down."""
    return Precision(dtype) if upcast or dtype == torch.float64 else nullcontext()


@contextmanager
def running(
    lm: LM, dtype: torch.dtype, upcast: bool = False, state: State | None = None
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Run the model from a state, with gradients, whatever the caller's mode, in one type throughout, and leave it as
    it is: see `untouched`, which says what is yielded.
    """
    grads, own = (torch.inference_mode(False), torch.enable_grad()), untouched(lm.model, state)
    with grads[0], grads[1], own as written, seen_whole(whole(lm.model)), throughout(dtype, upcast):
        yield written


class _Reached(Exception):
    """The head has been reached, and nothing after it is wanted."""


@contextmanager
def noting_head(lm: LM, mode: Record | WithoutParameters) -> Iterator[None]:
    """Let a mode know of the calls of the head's module, whatever its weight meets inside."""

    def called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mode.head.called(args[0] if args else next(iter(kwargs.values())), mode)

    def returned(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        mode.head.returned(mode.count)

    with before([lm.head], called), answering([lm.head], returned, always=True):
        yield


@contextmanager
def as_far_as_the_head(lm: LM, nth: int) -> Iterator[None]:
    """End a pass where the head's module is called for the nth time, from 1."""
    calls = 0

    def count(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise _Reached

    with suppress(_Reached), before([lm.head], count):
        yield


@contextmanager
def noting_calls(lm: LM, mode: Record) -> Iterator[list[LayerCall]]:
    """Note every call of a member of a module list that gives something live."""
    found: list[LayerCall] = []
    lists = (module for module in lm.model.modules() if isinstance(module, nn.ModuleList))
    members = dict.fromkeys(member for each in lists for member in each)
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        calls[module] += 1
        if moving := live(out):
            mark = mode.mark(moving[0])
            assert mark is not None, "it is live"
            found.append(LayerCall(mode.modules[id(module)], mark.step, len(mode.tape.steps) - 1, calls[module]))

    with answering(members, note):
        yield found


@dataclass(frozen=True, eq=False)
class Readout:
    """Where the logits are read: which `use` of the head in the pass makes them, which `call` of its module that is
    (from 1; 0 if it is none), the `hidden` states that it is applied to, (streams, T, d), and which `stream` of them.
    """

    use: int
    call: int
    hidden: Tensor = field(repr=False)
    stream: int


@dataclass(frozen=True, eq=False)
class Recording:
    """A model's own pass: its tokens, its tape, its values at each point, `[T, n]`, and the steps that made them.

    `calls` are those of members of module lists; `made` the values of wanted steps, as they are; `state` is what the
    model kept from passes before: every other pass of this recording begins with it too.
    """

    ids: list[int]
    tape: Tape
    values: dict[str, Tensor] = field(repr=False)
    steps: dict[str, int]
    readout: Readout
    convention: str = "gate"
    calls: list[LayerCall] = field(default_factory=list, repr=False)
    made: dict[int, Tensor] = field(default_factory=dict, repr=False)
    state: State | None = field(default=None, repr=False)


def record(
    lm: LM,
    ids: Sequence[int],
    x: Float[Tensor, "T d"],
    convention: str,
    precision: torch.dtype,
    wanted: Iterable[int] = (),
    state: State | None = None,
) -> Recording:
    """Run the model on tokens as it is, and note what a convention holds. Raises NoRule, NoPoint, TrainingMode."""
    mode = Record(lm.model, lm.head, convention, precision if precision != lm.dtype else None, wanted)
    moving = mode.enter(x)
    odd = explained(ModelRefused, "A model must run with gradients as it does without", "Report its type.")
    with running(lm, lm.dtype, state=state), noting_head(lm, mode), noting_calls(lm, mode) as calls, mode, odd:
        logits = lm.forward(ids, moving)
    if logits.shape[1] != len(ids):
        raise NoPoint(
            "A model's logits are those of the prompt's tokens", f"{logits.shape[1]} positions for {len(ids)} tokens",
            "Give a model without virtual tokens, such as those of prompt tuning.",
        )  # fmt: skip
    readout, made = _read(lm, mode, logits, len(ids))
    steps = {"norm": made, "logits": mode.made(logits)}
    values = {"norm": readout.hidden[readout.stream], "logits": logits[0].detach()}
    kept = {step: v for step, v in mode.values.items() if v is not None}  # not so where the course is another
    return Recording(list(ids), mode.tape, values, steps, readout, convention, calls, kept, state)


def _read(lm: LM, mode: Record, logits: Tensor, length: int) -> tuple[Readout, int]:
    """Where these logits were read, and the step that made what the head was applied to. Raises NoPoint."""
    use = mode.read(logits)
    uses = mode.head.uses[: use + 1]
    given = uses[-1].given
    assert given is not None, "the logits are made of it"
    if given.numel() % (length * given.shape[-1]):
        raise NoPoint(
            "The head that the logits are read from is applied to a row for each token of the prompt",
            f"shape {tuple(given.shape)} for {length} tokens", "Report the model's type.",
        )  # fmt: skip
    hidden = streams(given.detach(), length)
    call = sum(each.called for each in uses) if uses[-1].called else 0
    return Readout(use, call, hidden, _leading(lm, hidden, logits[0])), uses[-1].made


def _leading(lm: LM, hidden: Tensor, logits: Tensor) -> int:
    """Which of several hidden states the logits are of."""
    if len(hidden) == 1:
        return 0
    with torch.no_grad():
        return min(range(len(hidden)), key=lambda i: torch.linalg.vector_norm(lm.head(hidden[i]) - logits).item())


def streams(hidden: Tensor, length: int) -> Tensor:
    """The hidden states at the head, a row each stream, (streams, T, d); most models have one."""
    return hidden.reshape(-1, length, hidden.shape[-1])


@dataclass(frozen=True, eq=False)
class Network:
    """The affine network that a recording holds. `points` are on the graph from `input`, `biases` their value at 0."""

    lm: LM
    recording: Recording
    precision: torch.dtype
    input: Float[Tensor, "T d"] = field(repr=False)
    points: dict[str, Tensor] = field(repr=False)
    biases: dict[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, lm: LM, recording: Recording, x: Float[Tensor, "T d"], precision: torch.dtype) -> Network:
        """Replay a recording at the prompt's embeddings and at zero. Raises ReplayMismatch."""
        with torch.inference_mode(False):
            leaf = x.detach().to(precision, copy=True).requires_grad_()
        points, _ = replayed(lm, recording, leaf, precision)
        biases, _ = replayed(lm, recording, torch.zeros_like(x), precision)
        return cls(lm, recording, precision, leaf, points, {name: b.detach() for name, b in biases.items()})

    def graph(self, x: Tensor, y: Tensor) -> Graph:
        """Products between two tensors of the graph, with what a pass through the network takes."""
        return Graph(x, y, *self._size)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Numbers in the largest tensor that a pass makes of each vector, and weights that it is multiplied with."""
        embedding = self.lm.model.get_input_embeddings().weight.numel()
        weights = sum(p.numel() for p in self.lm.model.parameters()) - embedding
        return self.recording.tape.largest(self.recording.steps.values()), weights

    @cached_property
    def at_zero(self) -> tuple[dict[str, Tensor], list[Injected]]:
        """The norm and the logits of the network at zero, on a graph, and the constants that its steps add to it."""
        x = torch.zeros_like(self.input.detach())
        return injected(self.lm, self.recording, x, self.precision)

    def replay(self, v: Float[Tensor, "T d"], norm: Float[Tensor, "T n"] | None = None) -> dict[str, Tensor]:
        """The held network's value at each point, `[T, n]`, for other embeddings. `norm`: hidden states that the head
        is applied to in place of those that it makes, and that the logits are then of. Raises ReplayMismatch.
        """
        recording, instead = self.recording, None
        if norm is not None:
            readout, step = recording.readout, recording.steps["norm"]
            with torch.inference_mode(False):
                every = readout.hidden.to(self.input, copy=True)
                every[readout.stream] = norm.to(every)
                instead = {step: every.view(recording.tape.steps[step].shape)}
        points, _ = replayed(self.lm, recording, v.detach().to(self.input), self.precision, instead=instead)
        return {name: point.detach() for name, point in points.items()}

    def operator(
        self, target: str, rows: Sequence[int], ids: Sequence[int] | None = None, about: dict[str, Any] | None = None
    ) -> Operator:
        """The map from the embeddings to some rows of a point, one after the other; its output is the model's own.

        `ids`: some columns of each row alone.
        """
        chosen = slice(None) if ids is None else list(ids)

        def at(values: dict[str, Tensor]) -> Tensor:
            return values[target][list(rows)][:, chosen].flatten()

        with torch.inference_mode(False), torch.enable_grad():
            graph = self.graph(self.input, at(self.points))
        output = at(self.recording.values).to(self.precision)
        return Operator(graph, self.input.detach(), output, at(self.biases), about or {})


def replayed(
    lm: LM,
    recording: Recording,
    x: Float[Tensor, "T d"],
    precision: torch.dtype,
    threads: Mapping[int, int] | None = None,
    less: Mapping[int, Tensor] | None = None,
    given: Mapping[int, Tensor] | None = None,
    instead: Mapping[int, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """Run the model with what the tape holds: its points by name and those of `threads` by step, `[T, n]`, on the graph
    from x if it has one. `threads`, `less`, `given` and `instead` are as in Replay.
    """
    mode = Replay(recording.tape, recording.steps.values(), _cast(lm, precision), threads, less, given, instead)
    return _through(mode, lm, recording, x, precision), {step: mode.points[step] for step in threads or ()}


def altered(lm: LM, recording: Recording, threads: Mapping[int, int], given: Mapping[int, Tensor]) -> Tensor:
    """The logits of the model itself, `[T, vocabulary]`, with the outputs of some steps replaced."""
    mode = Altered(recording.tape, threads, given)
    with running(lm, lm.dtype, state=recording.state):
        moving = mode.enter(lm.embed(recording.ids))
        with mode:
            return lm.forward(recording.ids, moving)[0].detach()


def injected(
    lm: LM,
    recording: Recording,
    x: Float[Tensor, "T d"],
    precision: torch.dtype,
    threads: Mapping[int, int] | None = None,
    given: Mapping[int, Tensor] | None = None,
) -> tuple[dict[str, Tensor], list[Injected]]:
    """What `replayed` makes, and the constants that its steps add."""
    mode = Constants(recording.tape, recording.steps.values(), _cast(lm, precision), threads, None, given)
    return _through(mode, lm, recording, x, precision), mode.injected


def _cast(lm: LM, precision: torch.dtype) -> torch.dtype | None:
    """The type that coefficients are cast to, if it is not the model's own."""
    return precision if precision != lm.dtype else None


def _through(
    mode: Replay, lm: LM, recording: Recording, x: Float[Tensor, "T d"], precision: torch.dtype
) -> dict[str, Tensor]:
    """The norm and the logits of a replay."""
    moving = mode.enter(x.to(precision))
    with running(lm, precision, precision != lm.dtype, recording.state), mode:
        lm.forward(recording.ids, moving)
    with torch.inference_mode(False), torch.enable_grad():
        norm, logits = (mode.points[recording.steps[name]] for name in ("norm", "logits"))
        return {"norm": streams(norm, len(recording.ids))[recording.readout.stream], "logits": logits[0]}
