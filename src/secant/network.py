"""The held network: a model's recorded pass at a prompt, which can be replayed on any input.

Two replays give the affine map to every point: one at the prompt's own embeddings, whose autograd graph holds J, and
one at zero, whose value is b. b is what biases, learned positions and other constants of the model contribute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from secant.model import LM
from secant.operator import Graph, Operator
from secant.precision import Precision
from secant.tape import Record, Replay, Tape


def throughout(dtype: torch.dtype, upcast: bool = False) -> AbstractContextManager[Any]:
    """Keep a float64 model, or one that is evaluated above its own type, from casting down."""
    return Precision(dtype) if upcast or dtype == torch.float64 else nullcontext()


@contextmanager
def running(lm: LM, dtype: torch.dtype, upcast: bool = False) -> Iterator[None]:
    """Run the model with gradients, whatever the caller's mode, in one type throughout, and leave it as it was."""
    with torch.inference_mode(False), torch.enable_grad(), lm.untouched(), throughout(dtype, upcast):
        yield


@dataclass(frozen=True, eq=False)
class Recording:
    """A model's own pass: its tape, its values at each point, `[T, n]`, and the steps that made them."""

    tape: Tape
    values: dict[str, Tensor] = field(repr=False)
    steps: dict[str, int]


def record(lm: LM, x: Float[Tensor, "T d"], convention: str, precision: torch.dtype) -> Recording:
    """Run the model on embeddings as it is, and note what a convention holds. Raises NoRule, NoPoint, TrainingMode."""
    mode = Record(lm.model, lm.unembedding, convention, precision if precision != lm.dtype else None)
    moving = mode.enter(x)
    with running(lm, lm.dtype), mode:
        logits = lm.forward(moving)
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
        with torch.inference_mode(False):
            leaf = x.detach().to(precision, copy=True).requires_grad_()
        points = _replay(lm, recording, leaf, precision)
        biases = {name: b.detach() for name, b in _replay(lm, recording, torch.zeros_like(x), precision).items()}
        return cls(lm, recording, precision, leaf, points, biases)

    def replay(self, v: Float[Tensor, "T d"]) -> dict[str, Tensor]:
        """The held network's value at each point, `[T, n]`, for other embeddings. Raises ReplayMismatch."""
        points = _replay(self.lm, self.recording, v.detach().to(self.input), self.precision)
        return {name: point.detach() for name, point in points.items()}

    def operator(self, target: str, position: int, about: dict[str, Any] | None = None) -> Operator:
        """The map from the embeddings to a point at one position; its output is the model's own value there."""
        output = self.recording.values[target][position].to(self.precision)
        with torch.inference_mode(False), torch.enable_grad():
            graph = Graph(self.input, self.points[target][position])
        return Operator(graph, self.input.detach(), output, self.biases[target][position], about or {})


def _replay(lm: LM, recording: Recording, x: Tensor, precision: torch.dtype) -> dict[str, Tensor]:
    """Run the model with what the tape holds; the tensors at the recorded points, on the graph from x if it has one."""
    upcast = precision != lm.dtype
    mode = Replay(recording.tape, recording.steps.values(), precision if upcast else None)
    moving = mode.enter(x.to(precision))
    with running(lm, precision, upcast), mode:
        lm.forward(moving)
    with torch.inference_mode(False), torch.enable_grad():
        return {name: mode.points[step][0] for name, step in recording.steps.items()}
