"""The held network: a model's recorded pass at a prompt, which can be replayed on any input.

Two replays give the affine map to every point: one at the prompt's own embeddings, whose autograd graph holds J, and
one at zero, whose value is b. b is what biases, learned positions and other constants of the model contribute.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secant.model import LM
from secant.operator import Graph, Operator
from secant.tape import Precision, Record, Replay, Tape


def throughout(dtype: torch.dtype, upcast: bool = False) -> AbstractContextManager[Any]:
    """Keep a float64 model, or one that is evaluated above its own type, from casting down."""
    return Precision(dtype) if upcast or dtype == torch.float64 else nullcontext()


@dataclass(frozen=True, eq=False)
class Recording:
    """A model's own pass: its tape, its values at each point, `[T, n]`, and the steps that made them."""

    tape: Tape
    values: dict[str, Tensor] = field(repr=False)
    steps: dict[str, int]


def record(lm: LM, x: Float[Tensor, "T d"], convention: str, precision: torch.dtype) -> Recording:
    """Run the model on embeddings as it is, and note what a convention holds. Raises NoRule, NoPoint, TrainingMode."""
    mode = Record(lm.model, lm.unembedding, convention, precision if precision != lm.dtype else None)
    with torch.enable_grad(), throughout(lm.dtype), mode:
        logits = lm.forward(x.clone().requires_grad_().clone())
    points = {"norm": mode.before_head, "logits": logits}
    steps = {name: mode.made(point) for name, point in points.items()}
    return Recording(mode.tape, {n: p.detach()[0] for n, p in points.items() if p is not None}, steps)


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
        leaf = x.detach().to(precision).requires_grad_()
        points = _replay(lm, recording, leaf, precision)
        zero = torch.zeros_like(leaf, requires_grad=True)
        biases = {name: b.detach() for name, b in _replay(lm, recording, zero, precision).items()}
        return cls(lm, recording, precision, leaf, points, biases)

    def replay(self, v: Float[Tensor, "T d"]) -> dict[str, Tensor]:
        """The held network's value at each point, `[T, n]`, for other embeddings. Raises ReplayMismatch."""
        leaf = v.detach().to(self.input).requires_grad_()
        return {name: p.detach() for name, p in _replay(self.lm, self.recording, leaf, self.precision).items()}

    def operator(self, target: str, position: int, about: dict[str, Any] | None = None) -> Operator:
        """The map from the embeddings to a point at one position; its output is the model's own value there."""
        output = self.recording.values[target][position].to(self.precision)
        graph = Graph(self.input, self.points[target][position])
        return Operator(graph, self.input.detach(), output, self.biases[target][position], about or {})


def _replay(lm: LM, recording: Recording, leaf: Tensor, precision: torch.dtype) -> dict[str, Tensor]:
    """Run the model with what the tape holds; the tensors at the recorded points, on the graph from `leaf`."""
    upcast = precision != lm.dtype
    mode = Replay(recording.tape, recording.steps.values(), precision if upcast else None)
    with torch.enable_grad(), throughout(precision, upcast), mode:
        lm.forward(leaf.clone())
    return {name: mode.points[step][0] for name, step in recording.steps.items()}
