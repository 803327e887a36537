"""Find the residual stream on a tape: the layers, and the parts that each layer adds to the stream.

A layer is a call of a member of the module list that carries the residual stream. Inside the layer, the stream is a
*skeleton* of sums. It leads from the layer's output back to its input through additions, and through steps that
rearrange, cast, scale or norm the whole stream. What an addition adds to the skeleton is a part of the layer: `attn` if
an attention pattern mixes tokens in it, `mixer` if tokens mix in another way, `mlp` if they do not mix. Of the module
names, only the numbers of the layers are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from secant.linearize.rules import (
    ADDITIONS,
    ROWS,
    converted,
    divided,
    dropout,
    layer_norm,
    linear,
    multiplied,
    rms_norm,
)
from secant.linearize.tape import LayerCall, Step


@dataclass(frozen=True)
class HookPoint:
    """An activation of the pass: the step that makes it, and which of its dimensions counts tokens."""

    step: int
    axis: int


@dataclass(frozen=True)
class Part:
    """What one addition adds to the residual stream.

    Attributes:
        output: What is added.
        attends: Whether an attention pattern mixes tokens in it.
        bases: The steps of the stream that it is computed from: of this layer, of earlier ones, or -1 for the input.
        heads: The concatenated outputs of the attention heads, if the part is computed only from these.
    """

    output: HookPoint
    attends: bool
    bases: tuple[int, ...]
    heads: HookPoint | None


@dataclass(frozen=True)
class Layer:
    """One layer of the residual stream.

    Attributes:
        call: The call of the layer's module.
        output: The stream after the layer.
        parts: What the layer adds to the stream, in order.
        start: The step whose output is the stream before the layer, -1 for the input; None if it is not one step.
        plain: Whether the stream after the layer is the stream before it plus the parts, as in pre-norm networks.
    """

    call: LayerCall
    output: HookPoint
    parts: tuple[Part, ...]
    start: int | None
    plain: bool


def layers(steps: Sequence[Step], calls: Iterable[LayerCall], tokens: int) -> list[Layer]:
    """Returns the layers of a recorded pass, or none if no module list carries a residual stream of all tokens.

    Args:
        steps: The steps of the tape.
        calls: The calls of members of module lists.
        tokens: The number of tokens in the prompt.
    """
    lists: dict[str, list[LayerCall]] = {}
    for call in calls:
        lists.setdefault(call.module.rpartition(".")[0], []).append(call)
    outer = [own for own in lists.values() if not any(_inside(own[0].module, other) for other in lists.values())]
    found = [_as_layers(steps, own, list(lists), tokens) for own in outer]
    return max((each for each in found if each), key=lambda each: _rank(steps, each), default=[])


def token_axes(found: Sequence[Layer], steps: Sequence[Step], tokens: int) -> Iterator[tuple[int, int]]:
    """Yields the steps that layers and their parts need, and the dimension of each output that counts tokens.

    Args:
        found: The layers.
        steps: The steps of the tape.
        tokens: The number of tokens in the prompt.
    """
    for layer in found:
        starts = () if layer.start is None else (layer.start,)
        for step in (*starts, *(base for part in layer.parts for base in part.bases)):
            if step >= 0 and (axis := token_axis(steps[step].shape, tokens)) is not None:
                yield step, axis
        for point in (layer.output, *(part.output for part in layer.parts)):
            yield point.step, point.axis
        for part in layer.parts:
            if part.heads is not None:
                yield part.heads.step, part.heads.axis


def _inside(module: str, others: list[LayerCall]) -> bool:
    return any(module.startswith(f"{other.module}.") for other in others)


def _rank(steps: Sequence[Step], own: list[Layer]) -> tuple[bool, int, int]:
    """A key that ranks module lists: those with parts first, then by the number of steps, then the last list."""
    members = {layer.call.module for layer in own}
    within = sum(any(s.module == m or s.module.startswith(f"{m}.") for m in members) for s in steps)
    return any(layer.parts for layer in own), within, own[-1].call.last


def _as_layers(steps: Sequence[Step], calls: list[LayerCall], lists: list[str], tokens: int) -> list[Layer]:
    """Each call as a layer. The first layer begins at the first step of its own list or a sibling list."""
    above = calls[0].module.rpartition(".")[0].rpartition(".")[0]
    firsts = [f"{path}.0" for path in lists if path.rpartition(".")[0] == above]
    begins = (i for i, s in enumerate(steps) if any(s.module == m or s.module.startswith(f"{m}.") for m in firsts))
    start = next(begins, 0)
    found = []
    for call in calls:
        axis = token_axis(steps[call.out].shape, tokens) if call.out >= 0 else None
        if axis is None:
            return []
        found.append(LayerStream(steps, start, call, tokens).layer(HookPoint(call.out, axis)))
        start = call.last + 1
    return found


def token_axis(shape: Sequence[int], tokens: int) -> int | None:
    """Returns which dimension counts tokens: the one after a batch of 1, the one before the width, or the first."""
    if len(shape) >= 3 and shape[0] == 1 and shape[1] == tokens:
        return 1
    if len(shape) >= 2 and shape[-2] == tokens:
        return len(shape) - 2
    return 0 if len(shape) >= 3 and shape[:2] == (tokens, 1) else None


class LayerStream:
    """The residual stream through one layer, whose steps are those from `start` to the call's last."""

    def __init__(self, steps: Sequence[Step], start: int, call: LayerCall, tokens: int) -> None:
        self.steps, self.start, self.call, self.tokens = steps, start, call, tokens
        self._reaches: dict[int, bool] = {}

    def layer(self, output: HookPoint) -> Layer:
        """Returns the layer with its parts, in the order in which they are added."""
        if not self.reaches(output.step):
            return Layer(self.call, output, (), None, False)
        tops = [leaf for top in self._added for leaf in self._split(top)]
        parts = [self._part(top) for top in tops]
        known = [part for part in parts if part is not None]
        start = next(iter(self._outside)) if len(set(self._outside)) == 1 else None
        plain = self._preserved and len(self._outside) == 1 and len(known) == len(parts) > 0
        return Layer(self.call, output, tuple(known), start, plain)

    def reaches(self, step: int) -> bool:
        """Whether the stream before the layer reaches this step through sums, scales and norms only."""
        if step < self.start:
            return True
        if step not in self._reaches:
            node = self.steps[step]
            self._reaches[step] = (_adds(node) or _carries(node)) and any(map(self.reaches, node.parents))
        return self._reaches[step]

    @cached_property
    def _skeleton(self) -> list[int]:
        """The steps of the stream inside the layer, last first."""
        found, stack = [], [self.call.out]
        while stack:
            step = stack.pop()
            if step >= self.start and step not in found:
                found.append(step)
                stack += [parent for parent in self.steps[step].parents if self.reaches(parent)]
        return sorted(found, reverse=True)

    @cached_property
    def _added(self) -> list[int]:
        """The steps that are added to the stream, in order."""
        nodes = [self.steps[step] for step in reversed(self._skeleton)]
        return [parent for node in nodes if _adds(node) for parent in node.parents if not self.reaches(parent)]

    @cached_property
    def _outside(self) -> list[int]:
        """The steps before the layer that its stream comes from."""
        return [p for step in self._skeleton for p in self.steps[step].parents if p < self.start]

    @property
    def _preserved(self) -> bool:
        """Whether nothing scales or norms the stream inside the layer."""
        return all(_adds(self.steps[step]) or _preserves(self.steps[step]) for step in self._skeleton)

    def _split(self, top: int) -> list[int]:
        """The added step; or its terms, if it is itself a sum of an attention and something else."""
        node = self.steps[top]
        if _preserves(node) and len(node.parents) == 1 and node.parents[0] >= self.start:
            below = self._split(node.parents[0])
            return below if len(below) > 1 else [top]
        if _adds(node) and len({self._attends(parent) for parent in node.parents}) > 1:
            return [leaf for parent in node.parents for leaf in self._split(parent)]
        return [top]

    def _attends(self, top: int) -> bool:
        return any(self.steps[step].attends for step in self._branch(top)[0])

    def _branch(self, top: int, stop: frozenset[int] = frozenset()) -> tuple[set[int], set[int]]:
        """The steps of a part, and the steps of the stream or before the layer that it is computed from."""
        skeleton, inside, bases, stack = set(self._skeleton), set[int](), set[int](), [top]
        while stack:
            step = stack.pop()
            if step < self.start or step in skeleton:
                bases.add(step)
            elif step not in inside:
                inside.add(step)
                stack += () if step in stop else self.steps[step].parents
        return inside, bases

    def _part(self, top: int) -> Part | None:
        axis = token_axis(self.steps[top].shape, self.tokens)
        inside, bases = self._branch(top)
        if axis is None:
            return None
        attending = frozenset(step for step in inside if self.steps[step].attends)
        reached, around = self._branch(top, attending)
        sources = [step for step in reached if step in attending]
        heads = None
        if len(sources) == 1 and not around:
            heads = self._heads(sources[0])
        return Part(HookPoint(top, axis), bool(attending), tuple(sorted(bases)), heads)

    def _heads(self, step: int) -> HookPoint | None:
        """The outputs of all heads, if a dimension counts tokens: the one before the width, or, because an einsum may
        return any order, the only one that fits.
        """
        node = self.steps[step]
        places = [i for i, n in enumerate(node.shape[:-1]) if n == self.tokens]
        if len(node.shape) < 3 or not places:
            return None
        if node.function is torch.einsum:
            return HookPoint(step, places[0]) if len(places) == 1 else None
        return HookPoint(step, places[-1]) if places[-1] == len(node.shape) - 2 else None


def _adds(node: Step) -> bool:
    return node.function in ADDITIONS and len(node.parents) == 2


def _preserves(node: Step) -> bool:
    """Whether a step rearranges, copies or casts the whole of one tensor."""
    row = ROWS.get(node.function)
    if row is None or len(node.parents) != 1:
        return False
    copies = row.rule is linear and row.elementwise and not row.additive
    return row.view or copies or row.rule in (converted, dropout)


def _carries(node: Step) -> bool:
    """Whether a step preserves one tensor, scales or norms it, or adds a constant to it."""
    row = ROWS.get(node.function)
    changes = row is not None and row.rule in (multiplied, divided, layer_norm, rms_norm)
    return _preserves(node) or (len(node.parents) == 1 and (changes or node.function in ADDITIONS))
