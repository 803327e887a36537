"""The frozen network: a model's recorded pass at a prompt, which can be replayed on any input.

Two replays give the affine map to every point: one at the prompt's own embeddings, whose autograd graph contains J, and
one at zero, whose value is b. b is what biases, learned positions and other constants of the model contribute.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secant.errors import ModelRefused, NoPoint, SecantError
from secant.foreign import explained
from secant.linearize.conventions import ZERO, Convention, convention_named
from secant.linearize.forms import live
from secant.linearize.precision import Precision
from secant.linearize.replay import InjectedConstant, Replay, ReplayWithConstants, Rerun, Visit, by_token, of_tokens
from secant.linearize.residual_stream import HookPoint, Layer, layers, token_axes, token_axis
from secant.linearize.rules import whole
from secant.linearize.secants import Open
from secant.linearize.tape import LayerCall, Record, Tape, WithoutParameters
from secant.linearize.untouched import State, untouched
from secant.model.hooks import observing_inputs, replacing_outputs, seen_whole
from secant.model.lm import LM
from secant.numeric import relative
from secant.operators.operator import Graph, Operator


def without_downcasts(dtype: torch.dtype, upcast: bool = False) -> AbstractContextManager[Any]:
    """Returns a mode that prevents downcasts, if the model is in float64 or evaluated in a wider type than its own."""
    return Precision(dtype) if upcast or dtype == torch.float64 else nullcontext()


@contextmanager
def running(
    lm: LM, dtype: torch.dtype, upcast: bool = False, state: State | None = None
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Run the model with gradients, in one type throughout, whatever the caller's grad mode, and leave it as it is.

    Args:
        lm: The model.
        dtype: The type.
        upcast: Whether that type is wider than the model's own.
        state: The state that the model starts from.

    Yields:
        What `untouched` yields.
    """
    grads, own = (torch.inference_mode(False), torch.enable_grad()), untouched(lm.model, state)
    with grads[0], grads[1], own as written, seen_whole(whole(lm.model)), without_downcasts(dtype, upcast):
        yield written


class _HeadReached(Exception):
    """Ends a pass at the head."""


@contextmanager
def noting_head(lm: LM, mode: Record | WithoutParameters) -> Iterator[None]:
    """Tell a mode when calls of the head's module begin and end."""

    def called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mode.head.called(args[0] if args else next(iter(kwargs.values())), mode)

    def returned(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        mode.head.returned(mode.count)

    with observing_inputs([lm.head], called), replacing_outputs([lm.head], returned, always=True):
        yield


@contextmanager
def stopping_at_head(lm: LM, nth: int) -> Iterator[None]:
    """End a pass when the head's module is called for the nth time, counted from 1."""
    calls = 0

    def count(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise _HeadReached

    with suppress(_HeadReached), observing_inputs([lm.head], count):
        yield


@contextmanager
def noting_layer_calls(lm: LM, mode: Record) -> Iterator[list[LayerCall]]:
    """Note every call of a member of a module list that returns a live tensor."""
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

    with replacing_outputs(members, note):
        yield found


@dataclass(frozen=True, eq=False)
class Unembedding:
    """The use of the head that the logits come from.

    Attributes:
        use: Its index among the uses of the head in the pass.
        call: Which call of the head's module it is, counted from 1; 0 if the module is not called.
        hidden: The hidden states that the head is applied to: (streams, T, d), or (copies, T, d) if the prompt has
            several copies.
        stream: The index of the stream that the logits are computed from; None if the prompt has several copies.
    """

    use: int
    call: int
    hidden: Tensor = field(repr=False)
    stream: int | None

    def rows(self, hidden: Float[Tensor, "streams T d"]) -> Float[Tensor, "T n"]:
        """Returns the hidden states that the logits are computed from, one row for each token."""
        return by_token(hidden, 1, len(hidden)) if self.stream is None else hidden[self.stream]


@dataclass(frozen=True, eq=False)
class Recording:
    """A model's own pass, recorded.

    Attributes:
        ids: The tokens.
        tape: The recorded calls.
        values: `norm` (the output of the final norm) and `logits`, `[T, n]`.
        steps: The steps that made them.
        unembedding: The use of the head that the logits come from.
        convention: The label of the convention.
        layer_calls: The calls of members of module lists.
        captured: The outputs of the steps that were requested.
        state: The state in which the model started; every replay starts in it too.
        seeds: The seed of the random reference of each copy of the prompt.
        single: If the prompt has several copies, the recording of one copy, which has the same steps.
    """

    ids: list[int]
    tape: Tape
    values: dict[str, Tensor] = field(repr=False)
    steps: dict[str, int]
    unembedding: Unembedding
    convention: str = "gate"
    layer_calls: list[LayerCall] = field(default_factory=list, repr=False)
    captured: dict[int, Tensor] = field(default_factory=dict, repr=False)
    state: State | None = field(default=None, repr=False)
    seeds: tuple[int, ...] = (0,)
    single: Recording | None = field(default=None, repr=False)

    @property
    def copies(self) -> int:
        """How many copies of the prompt ran as one batch."""
        return self.tape.copies

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers of the model, or none if no module list carries a residual stream of all tokens."""
        return self.single.layers if self.single else layers(self.tape.steps, self.layer_calls, len(self.ids))

    @cached_property
    def norm_output(self) -> list[HookPoint]:
        """Where the output of the final norm is, if it has one row for each token."""
        if self.single:
            return self.single.norm_output
        step, T = self.steps["norm"], len(self.ids)
        shape = self.tape.steps[step].shape
        axis = token_axis(shape, T)
        return [HookPoint(step, axis)] if axis is not None and math.prod(shape[:-1]) == T else []

    @cached_property
    def token_axes(self) -> dict[int, int]:
        """For each step that a named activation consists of, the dimension of its output that counts tokens."""
        if self.single:
            return self.single.token_axes
        found = {point.step: point.axis for point in self.norm_output}
        return found | dict(token_axes(self.layers, self.tape.steps, len(self.ids)))


def record(
    lm: LM,
    ids: Sequence[int],
    x: Float[Tensor, "T d"],
    convention: str,
    precision: torch.dtype,
    wanted: Iterable[int] = (),
    state: State | None = None,
    seeds: Sequence[int] = (0,),
    secants: bool = True,
) -> Recording:
    """Run the model unaltered, and record what a convention freezes.

    Several copies of the prompt, each with its own reference, are recorded as one larger network. Embeddings and
    activations have one row for each token, in which the copies of each element are next to each other.

    Secants are collected while the model itself runs at the convention's reference. Routing and other choices stay as
    they were at the prompt.

    Args:
        lm: The model.
        ids: The tokens.
        x: Their embeddings.
        convention: The label of the convention.
        precision: The type in which the network will be evaluated.
        wanted: Steps whose outputs are captured.
        state: The state in which the model starts.
        seeds: The seed of a random reference, for each copy of the prompt.
        secants: Whether secants are collected; without them, only the recorded values can be used.

    Raises:
        NoRule: A torch function has no rule.
        NoPoint: The logits do not come from the head.
        TrainingMode: The model is in training mode.
        ModelRefused: The model fails when it runs with gradients.
    """
    chosen, copies = convention_named(convention), len(seeds)
    mode = Record(lm.model, lm.head, chosen, precision if precision != lm.dtype else None, wanted, copies)
    moving = mode.enter(x.repeat_interleave(copies, 1))
    odd = explained(ModelRefused, "A model must run with gradients as it does without", "Report its type.")
    with running(lm, lm.dtype, state=state), noting_head(lm, mode), noting_layer_calls(lm, mode) as calls, mode, odd:
        logits = lm.forward(ids, moving, copies)
    if logits.shape[1] != len(ids):
        raise NoPoint(
            "A model must give logits for exactly the prompt's tokens",
            f"{logits.shape[1]} positions for {len(ids)} tokens",
            "Use a model without virtual tokens, such as those of prompt tuning.",
        )  # fmt: skip
    unembedding, made = _unembedding(lm, mode, logits, len(ids))
    steps = {"norm": made, "logits": mode.maker(logits)}
    values = {"norm": unembedding.rows(unembedding.hidden), "logits": _rows(logits.detach())}
    kept = {step: v for step, v in mode.values.items() if v is not None}  # None if the pass diverged before that step
    how = (unembedding, convention, calls, kept, state, tuple(seeds))
    recording = Recording(list(ids), mode.tape, values, steps, *how)
    if secants and chosen.secants:
        _collect(lm, recording, reference(lm, x, chosen, state, seeds))
    return recording


TOGETHER = 256
"""The largest number of tokens in a batch of copies of a prompt."""


def references(
    lm: LM,
    own: Recording,
    x: Float[Tensor, "T d"],
    convention: str,
    precision: torch.dtype,
    seeds: Sequence[int],
    together: bool = True,
) -> Iterator[Recording]:
    """Yields recordings with secants at random references.

    Each recording has as many references as fit into a batch, and takes one pass for all of them. If the model computes
    something different for a batch than for a single prompt, each recording has one reference.

    Args:
        lm: The model.
        own: A recording of the prompt under any convention.
        x: The prompt's embeddings.
        convention: The label of the convention.
        precision: The type in which the network will be evaluated.
        seeds: The seed of each reference.
        together: Whether a recording may have several references.
    """
    chosen, size, given = convention_named(convention), 1, own
    if own.convention != convention:  # other calls have live arguments
        own = record(lm, own.ids, x, convention, precision, state=own.state, seeds=seeds[:1], secants=False)
    if together and _batchable(own):
        size = max(1, min(len(seeds), TOGETHER // len(own.ids)))

    @cache
    def opened(copies: int) -> Recording | None:
        """The recorded pass of copies of the prompt, still without secants; None if it does not repeat that of one."""
        how = (convention, precision, own.token_axes, own.state, range(copies))
        try:
            found = record(lm, own.ids, x, *how, secants=False)
        except SecantError:
            if copies == 1:
                raise
            return None
        return found if copies == 1 or _repeats(own, found) else None

    if opened(size) is None:
        size = 1
    for start in range(0, len(seeds), size):
        some = tuple(seeds[start : start + size])
        if own is given and some == own.seeds:
            yield own
            continue
        found = opened(len(some))
        assert found is not None, "a smaller batch repeats it too"
        if found.copies == 1:
            own.captured.update(found.captured)
        recording = replace(found, tape=found.tape.copy(), seeds=some, single=own if found.copies > 1 else None)
        _collect(lm, recording, reference(lm, x, chosen, own.state, some))
        yield recording


def _batchable(own: Recording) -> bool:
    """Whether the first dimension of each named activation is a batch, so that copies of the prompt stay separate."""
    shapes = ((own.tape.steps[step].shape, axis) for step, axis in own.token_axes.items())
    return len(own.ids) > 1 and len(own.unembedding.hidden) == 1 and all(a and s[0] == 1 for s, a in shapes)


def _repeats(own: Recording, opened: Recording) -> bool:
    """Whether a pass of several copies computed for each copy what the pass of one computed."""
    before, after, copies = own.tape.steps, opened.tape.steps, opened.copies
    if [step.function for step in before] != [step.function for step in after]:
        return False
    if any(after[step].shape != (copies, *before[step].shape[1:]) for step in own.token_axes):
        return False
    logits = own.values["logits"].repeat_interleave(copies, 1)
    return relative(opened.values["logits"], logits) <= 64 * torch.finfo(logits.dtype).eps


def _collect(lm: LM, recording: Recording, x: Float[Tensor, "T d"]) -> None:
    """Run the model at a reference, up to the last operation that has a secant, and close the tape's open forms."""
    beyond = any(isinstance(step.form, Open) for step in recording.tape.steps[recording.steps["norm"] + 1 :])
    mode = Visit(recording.tape)
    moving = mode.enter(x)
    call = 0 if beyond else recording.unembedding.call
    with running(lm, lm.dtype, state=recording.state), stopping_at_head(lm, call), mode:
        lm.forward(recording.ids, moving, recording.copies)
    with torch.inference_mode(False), torch.no_grad():
        recording.tape.close()


def reference(
    lm: LM, x: Float[Tensor, "T d"], convention: Convention, state: State | None, seeds: Sequence[int]
) -> Float[Tensor, "T n"]:
    """Returns the embeddings of a convention's reference: zeros, or random tokens after the prompt's own first one.

    Args:
        lm: The model.
        x: The prompt's embeddings.
        convention: The convention.
        state: The state in which the model starts.
        seeds: The seed of the random tokens, for each copy of the prompt.
    """
    if convention.reference == ZERO:
        return torch.zeros_like(x).repeat_interleave(len(seeds), 1)
    found = []
    for seed in seeds:
        ids = torch.randint(lm.size, (len(x),), generator=torch.Generator().manual_seed(seed)).tolist()
        with running(lm, lm.dtype, state=state):
            found.append(lm.embed(ids).to(x).clone())
        found[-1][0] = x[0]
    return by_token(torch.stack(found), 1, len(found))


def _unembedding(lm: LM, mode: Record, logits: Tensor, length: int) -> tuple[Unembedding, int]:
    """The use of the head that these logits come from, and the step that made its input. Raises NoPoint."""
    use = mode.head_use(logits)
    uses = mode.head.uses[: use + 1]
    given = uses[-1].given
    assert given is not None, "the logits are computed from it"
    if given.numel() % (length * given.shape[-1]):
        raise NoPoint(
            "The head must be applied to a row for each token of the prompt",
            f"shape {tuple(given.shape)} for {length} tokens", "Report the model's type.",
        )  # fmt: skip
    hidden = streams(given.detach(), length)
    call = sum(each.called for each in uses) if uses[-1].called else 0
    stream = _stream_of(lm, hidden, logits[0]) if len(logits) == 1 else None
    return Unembedding(use, call, hidden, stream), uses[-1].made


def _stream_of(lm: LM, hidden: Tensor, logits: Tensor) -> int:
    """The index of the stream of hidden states that the logits are computed from."""
    if len(hidden) == 1:
        return 0
    with torch.no_grad():
        return min(range(len(hidden)), key=lambda i: torch.linalg.vector_norm(lm.head(hidden[i]) - logits).item())


def _rows(logits: Float[Tensor, "copies T vocabulary"]) -> Float[Tensor, "T n"]:
    """The logits, one row for each token."""
    return logits[0] if len(logits) == 1 else by_token(logits, 1, len(logits))


def streams(hidden: Tensor, length: int) -> Tensor:
    """Returns the hidden states at the head as (streams, T, d); most models have one stream."""
    return hidden.reshape(-1, length, hidden.shape[-1])


@dataclass(frozen=True, eq=False)
class Network:
    """The affine network of a recording.

    Attributes:
        lm: The model.
        recording: The recording.
        precision: The type in which the network is evaluated.
        input: The embeddings of all copies of the prompt.
    """

    lm: LM
    recording: Recording
    precision: torch.dtype
    input: Float[Tensor, "T n"] = field(repr=False)

    @classmethod
    def of(cls, lm: LM, recording: Recording, x: Float[Tensor, "T d"], precision: torch.dtype) -> Network:
        """Returns the network of a recording at the prompt's embeddings x."""
        with torch.inference_mode(False):
            leaf = x.detach().repeat_interleave(recording.copies, 1)
            return cls(lm, recording, precision, leaf.to(precision, copy=True).requires_grad_())

    @cached_property
    def points(self) -> dict[str, Tensor]:
        """`norm` and `logits`, on the autograd graph from `input`. Raises ReplayMismatch."""
        if "with_constants" in vars(self):
            return self.with_constants[0]
        return replayed(self.lm, self.recording, self.input, self.precision)[0]

    @cached_property
    def biases(self) -> dict[str, Tensor]:
        """`norm` and `logits` at zero embeddings. Raises ReplayMismatch."""
        zero, _ = replayed(self.lm, self.recording, torch.zeros_like(self.input), self.precision)
        return {name: b.detach() for name, b in zero.items()}

    def graph(self, x: Tensor, y: Tensor, target: str = "logits") -> Graph:
        """Returns products with the derivative of y with respect to x, two tensors of the graph.

        The result knows the cost of a pass.

        Args:
            x: The input.
            y: The output.
            target: `norm` or `logits`, which y is or precedes.
        """
        return Graph(x, y, self.recording.tape.largest([self.recording.steps[target]]), self._weights)

    @cached_property
    def _weights(self) -> int:
        """The number of weights that a pass multiplies by."""
        embedding = self.lm.model.get_input_embeddings().weight.numel()
        return sum(p.numel() for p in self.lm.model.parameters()) - embedding

    @cached_property
    def with_constants(self) -> tuple[dict[str, Tensor], dict[int, Tensor], list[InjectedConstant]]:
        """`norm` and `logits`, and the outputs of the steps of named activations, on a graph from `input`; and the
        constants that the steps add.
        """
        axes = self.recording.token_axes
        return replayed_with_constants(self.lm, self.recording, self.input, self.precision, axes)

    def replay(self, v: Float[Tensor, "T d"], norm: Float[Tensor, "T n"] | None = None) -> dict[str, Tensor]:
        """Returns `norm` and `logits` of the frozen network, `[T, n]`, at different embeddings.

        Args:
            v: The embeddings.
            norm: Hidden states that the head is applied to instead of those computed from v.

        Raises:
            ReplayMismatch: The model was changed after the recording.
        """
        recording, continued_with = self.recording, None
        if norm is not None:
            unembedding, step = recording.unembedding, recording.steps["norm"]
            with torch.inference_mode(False):
                every = unembedding.hidden.to(self.input, copy=True)
                if unembedding.stream is None:
                    every = of_tokens(norm.to(every), every.shape, 1, recording.copies)
                else:
                    every[unembedding.stream] = norm.to(every)
                continued_with = {step: every.view(recording.tape.steps[step].shape)}
        v = v.detach().to(self.input)
        points, _ = replayed(self.lm, recording, v, self.precision, continued_with=continued_with)
        return {name: point.detach() for name, point in points.items()}

    def operator(
        self, target: str, rows: Sequence[int], ids: Sequence[int] | None = None, about: dict[str, Any] | None = None
    ) -> Operator:
        """Returns the map from the embeddings to some rows of a point. Its output is that of the model's own pass.

        Args:
            target: `norm` or `logits`.
            rows: The rows, which are concatenated in the output.
            ids: The columns of each row; by default all.
            about: Metadata that the operator keeps.
        """
        chosen = slice(None) if ids is None else list(ids)

        def at(values: dict[str, Tensor]) -> Tensor:
            return values[target][list(rows)][:, chosen].flatten()

        with torch.inference_mode(False), torch.enable_grad():
            graph = self.graph(self.input, at(self.points), target)
        output = at(self.recording.values).to(self.precision)
        return Operator(graph, self.input.detach(), output, at(self.biases), about or {})


def replayed(
    lm: LM,
    recording: Recording,
    x: Float[Tensor, "T d"],
    precision: torch.dtype,
    token_axes: Mapping[int, int] | None = None,
    subtracted: Mapping[int, Tensor] | None = None,
    patches: Mapping[int, Tensor] | None = None,
    continued_with: Mapping[int, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """Replay a recording at embeddings x. The other arguments are those of `Replay`.

    Returns:
        `norm` and `logits` by name, and the points of `token_axes` by step, all `[T, n]` and on the graph from x.

    Raises:
        ReplayMismatch: The model diverged from its recorded pass.
    """
    how = (token_axes, subtracted, patches, continued_with)
    mode = Replay(recording.tape, recording.steps.values(), _cast(lm, precision), *how)
    return _through(mode, lm, recording, x, precision), {step: mode.points[step] for step in token_axes or ()}


def patched_logits(
    lm: LM, recording: Recording, token_axes: Mapping[int, int], patches: Mapping[int, Tensor]
) -> Tensor:
    """Returns the logits of the model itself, `[T, vocabulary]`, with patches as in `Rerun`. Raises ReplayMismatch."""
    mode = Rerun(recording.tape, (), token_axes, patches)
    with running(lm, lm.dtype, state=recording.state):
        moving = mode.enter(lm.embed(recording.ids))
        with mode:
            return lm.forward(recording.ids, moving)[0].detach()


def own_outputs(lm: LM, recording: Recording, x: Float[Tensor, "T n"], wanted: Iterable[int]) -> dict[int, Tensor]:
    """Returns what steps made in the model's own pass, which is run once more unless the recording has it.

    Args:
        lm: The model.
        recording: The recording.
        x: The embeddings of all copies of the prompt.
        wanted: The steps.

    Raises:
        ReplayMismatch: The model diverged from its recorded pass.
    """
    left = set(wanted) - recording.captured.keys()
    if not left:
        return recording.captured
    mode = Rerun(recording.tape, left)
    moving = mode.enter(x.detach().to(lm.dtype))
    with running(lm, lm.dtype, state=recording.state), mode:
        lm.forward(recording.ids, moving, recording.copies)
    return recording.captured | mode.outputs


def replayed_with_constants(
    lm: LM,
    recording: Recording,
    x: Float[Tensor, "T d"],
    precision: torch.dtype,
    token_axes: Mapping[int, int] | None = None,
    patches: Mapping[int, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[int, Tensor], list[InjectedConstant]]:
    """Returns what `replayed` does, and the constants that the steps add."""
    wanted, cast = recording.steps.values(), _cast(lm, precision)
    mode = ReplayWithConstants(recording.tape, wanted, cast, token_axes, patches=patches)
    points = _through(mode, lm, recording, x, precision)
    return points, {step: mode.points[step] for step in token_axes or ()}, mode.constants


def _cast(lm: LM, precision: torch.dtype) -> torch.dtype | None:
    """The type that coefficients are cast to, or None for the model's own."""
    return precision if precision != lm.dtype else None


def _through(
    mode: Replay, lm: LM, recording: Recording, x: Float[Tensor, "T d"], precision: torch.dtype
) -> dict[str, Tensor]:
    """`norm` and `logits` of a replay."""
    moving = mode.enter(x.to(precision))
    with running(lm, precision, precision != lm.dtype, recording.state), mode:
        lm.forward(recording.ids, moving, recording.copies)
    with torch.inference_mode(False), torch.enable_grad():
        norm, logits = (mode.points[recording.steps[name]] for name in ("norm", "logits"))
        hidden = streams(norm, len(recording.ids))
        return {"norm": recording.unembedding.rows(hidden), "logits": _rows(logits)}
