"""Where the named points of a network are, read off the held pass itself: layers, and what blocks add to the stream.

A layer is a call of a member of the module list that carries the residual stream. Inside it the stream is a *skeleton*
of sums: from the layer's output back to its input through additions, and through what moves, casts, scales or norms all
of it. What an addition adds to the skeleton is a part of the layer: `attn` where a pattern mixes tokens in it, `mixer`
where tokens mix otherwise, `mlp` where they do not. No names of modules are used but the numbers of the layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from secant.linearize.tape import Step


@dataclass(frozen=True)
class LayerCall:
    """One call of a member of a module list: its path, the step that made its output, the last step in it, and which
    call of that module it was, from 1.
    """

    module: str
    out: int
    last: int
    nth: int = 1


@dataclass(frozen=True)
class Site:
    """A tensor of the pass: the step that makes it, and which of its dimensions counts tokens."""

    step: int
    axis: int


@dataclass(frozen=True)
class Part:
    """What one addition adds to the stream. `bases`: the steps of the stream that it is computed from, -1 or earlier
    layers among them. `heads`: what its heads make of the values, if all of it comes from there.
    """

    site: Site
    attends: bool
    bases: tuple[int, ...]
    heads: Site | None


@dataclass(frozen=True)
class Layer:
    """A layer: the stream at its end, its parts in order, and the step that it starts from.

    `plain`: the stream at its end is what it started from plus its parts, as in networks that norm before a block.
    `middle`: in a plain layer, the stream before its last addition.
    """

    call: LayerCall
    site: Site
    parts: tuple[Part, ...]
    start: int | None
    plain: bool


def layers(steps: Sequence[Step], calls: Iterable[LayerCall], tokens: int) -> list[Layer]:
    """The layers of a recorded pass; none where no module list carries a stream of all tokens."""
    lists: dict[str, list[LayerCall]] = {}
    for call in calls:
        lists.setdefault(call.module.rpartition(".")[0], []).append(call)
    outer = [own for own in lists.values() if not any(_inside(own[0].module, other) for other in lists.values())]
    found = [_read(steps, own, list(lists), tokens) for own in outer]
    return max((each for each in found if each), key=lambda each: _merit(steps, each), default=[])


def _inside(module: str, others: list[LayerCall]) -> bool:
    return any(module.startswith(f"{other.module}.") for other in others)


def _merit(steps: Sequence[Step], own: list[Layer]) -> tuple[bool, int, int]:
    """A stream comes first, then the list in which most happens, then the last one."""
    members = {layer.call.module for layer in own}
    within = sum(any(s.module == m or s.module.startswith(f"{m}.") for m in members) for s in steps)
    return any(layer.parts for layer in own), within, own[-1].call.last


def _read(steps: Sequence[Step], calls: list[LayerCall], lists: list[str], tokens: int) -> list[Layer]:
    """Each call as a layer; the first begins where anything of its own or of a sister list does."""
    above = calls[0].module.rpartition(".")[0].rpartition(".")[0]
    firsts = [f"{path}.0" for path in lists if path.rpartition(".")[0] == above]
    begins = (i for i, s in enumerate(steps) if any(s.module == m or s.module.startswith(f"{m}.") for m in firsts))
    start = next(begins, 0)
    found = []
    for call in calls:
        axis = token_axis(steps[call.out].shape, tokens) if call.out >= 0 else None
        if axis is None:
            return []
        found.append(Stream(steps, start, call, tokens).layer(Site(call.out, axis)))
        start = call.last + 1
    return found


def token_axis(shape: Sequence[int], tokens: int) -> int | None:
    """Which dimension counts the tokens: after a batch of one, before the width, or first."""
    if len(shape) >= 3 and shape[0] == 1 and shape[1] == tokens:
        return 1
    if len(shape) >= 2 and shape[-2] == tokens:
        return len(shape) - 2
    return 0 if len(shape) >= 3 and shape[:2] == (tokens, 1) else None


class Stream:
    """The residual stream through one layer, whose steps are those from `start` to the call's last."""

    def __init__(self, steps: Sequence[Step], start: int, call: LayerCall, tokens: int) -> None:
        self.steps, self.start, self.call, self.tokens = steps, start, call, tokens
        self._reaches: dict[int, bool] = {}

    def layer(self, site: Site) -> Layer:
        """The layer's parts, in the order in which they are added."""
        if not self.reaches(site.step):
            return Layer(self.call, site, (), None, False)
        tops = [leaf for top in self._added for leaf in self._split(top)]
        parts = [self._part(top) for top in tops]
        known = [part for part in parts if part is not None]
        start = next(iter(self._outside)) if len(set(self._outside)) == 1 else None
        plain = self._preserved and len(self._outside) == 1 and len(known) == len(parts) > 0
        return Layer(self.call, site, tuple(known), start, plain)

    def reaches(self, step: int) -> bool:
        """Whether the stream that enters the layer comes through to this step by sums, scales and norms alone."""
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
        """What is added to the stream, in order."""
        nodes = [self.steps[step] for step in reversed(self._skeleton)]
        return [parent for node in nodes if _adds(node) for parent in node.parents if not self.reaches(parent)]

    @cached_property
    def _outside(self) -> list[int]:
        """The steps before the layer that its stream comes from."""
        return [p for step in self._skeleton for p in self.steps[step].parents if p < self.start]

    @property
    def _preserved(self) -> bool:
        """Whether nothing scales or norms the stream on its way."""
        return all(_adds(self.steps[step]) or _preserves(self.steps[step]) for step in self._skeleton)

    def _split(self, top: int) -> list[int]:
        """What is added, or, where that is itself a sum of an attention and something else, its terms."""
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
        """The steps that a part consists of, and those of the stream, or of before, that it begins from."""
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
        return Part(Site(top, axis), bool(attending), tuple(sorted(bases)), heads)

    def _heads(self, step: int) -> Site | None:
        """Where what all heads make of the values has its tokens: before the width, but of an einsum, which may give
        any order, the one dimension that fits.
        """
        node = self.steps[step]
        places = [i for i, n in enumerate(node.shape[:-1]) if n == self.tokens]
        if len(node.shape) < 3 or not places:
            return None
        if node.function is torch.einsum:
            return Site(step, places[0]) if len(places) == 1 else None
        return Site(step, places[-1]) if places[-1] == len(node.shape) - 2 else None


def _adds(node: Step) -> bool:
    return node.function in ADDITIONS and len(node.parents) == 2


def _preserves(node: Step) -> bool:
    """Whether a step moves, copies or casts the whole of one tensor."""
    row = ROWS.get(node.function)
    if row is None or len(node.parents) != 1:
        return False
    copies = row.rule is linear and row.elementwise and not row.additive
    return row.view or copies or row.rule in (converted, dropout)


def _carries(node: Step) -> bool:
    """Whether a step preserves one tensor, or scales or norms it, or adds a constant."""
    row = ROWS.get(node.function)
    changes = row is not None and row.rule in (multiplied, divided, layer_norm, rms_norm)
    return _preserves(node) or (len(node.parents) == 1 and (changes or node.function in ADDITIONS))
