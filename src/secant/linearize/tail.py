"""What comes after the last layer: the final norm and the head, held at a stream of one's own.

The paper reads every depth through the final norm (J. Golden, TMLR 2025, arXiv 2505.24293, section 4.3): at a point
inside, the norm's statistics are those of the point itself, not those of the last layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secant.linearize.network import Network, as_far_as_the_head, noting_head, running, streams
from secant.linearize.replay import Replay, of_tokens
from secant.linearize.sites import Layer
from secant.linearize.tape import Record
from secant.model.hooks import answering
from secant.numeric import mapped, tensors
from secant.operators.operator import Columns, Graph, Operator


@dataclass(frozen=True, eq=False)
class Tail:
    """The affine map from streams after the last layer to the norm and the logits, row by row of P * T tokens."""

    input: Float[Tensor, "rows n"] = field(repr=False)
    points: dict[str, Tensor] = field(repr=False)
    biases: dict[str, Tensor] = field(repr=False)
    values: dict[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, network: Network, last: Layer, h: Float[Tensor, "P T n"], head: bool) -> Tail:
        """Record and replay it at P streams together; with `head`, on to the logits. Raises NoPoint."""
        lm, recording, precision = network.lm, network.recording, network.precision
        batch, tokens = h.shape[:2]
        x = network.input.detach()
        shape = recording.tape.steps[last.site.step].shape

        def through(mode: Record | Replay, rows: Tensor) -> Tensor | None:
            stream = _raw(mode.enter(rows), shape, last.site.axis, batch)
            logits = None
            ending = nullcontext() if head else as_far_as_the_head(lm, recording.readout.call)
            with _replacing(lm.model.get_submodule(last.call.module), last.call.nth, shape, stream), ending, mode:
                logits = lm.forward(recording.ids, x.to(rows))
            return logits

        upcast = precision != lm.dtype
        mode = Record(lm.model, lm.head, recording.convention, precision if upcast else None)
        rows = h.detach().flatten(0, 1)
        with running(lm, lm.dtype, state=recording.state), noting_head(lm, mode):
            logits = through(mode, rows.to(lm.dtype))
        use = mode.head.uses[recording.readout.use]
        assert use.given is not None, "it is made of the stream"
        steps = {"norm": use.made} | ({} if logits is None else {"logits": mode.made(logits)})

        def named(raw: dict[str, Tensor]) -> dict[str, Tensor]:
            with torch.inference_mode(False), torch.enable_grad():
                norm = {"norm": streams(raw["norm"], batch * tokens)[recording.readout.stream]}
                return norm | ({"logits": raw["logits"].flatten(0, 1)} if "logits" in raw else {})

        def replayed(leaf: Tensor) -> dict[str, Tensor]:
            replay = Replay(mode.tape, steps.values(), precision if upcast else None)
            with running(lm, precision, upcast, recording.state):
                through(replay, leaf)
            return named({name: replay.points[step] for name, step in steps.items()})

        with torch.inference_mode(False):
            leaf = rows.to(precision, copy=True).requires_grad_()
        made = {"norm": use.given} | ({} if logits is None else {"logits": logits})
        values = {name: v.detach().to(precision) for name, v in named(made).items()}
        biases = {name: b.detach() for name, b in replayed(torch.zeros_like(leaf)).items()}
        return cls(leaf, replayed(leaf), biases, values)

    def operator(self, name: str, rows: Sequence[int], ids: Sequence[int] | None = None) -> tuple[Operator, list[int]]:
        """To some rows of the norm or of the logits, from those rows of the stream that matter to them, and which."""
        chosen = slice(None) if ids is None else list(ids)

        def at(values: dict[str, Tensor]) -> Tensor:
            return values[name][list(rows)][:, chosen].flatten()

        with torch.inference_mode(False), torch.enable_grad():
            graph = Graph(self.input, at(self.points))
        weights = torch.randn(len(graph.y), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        slopes = graph.adjoint(weights.to(graph.y)).view(self.input.shape)
        needed = sorted({*slopes.abs().sum(1).nonzero().flatten().tolist(), *rows})
        places = torch.arange(self.input.numel(), device=self.input.device).view(self.input.shape)[needed].flatten()
        products = Columns(graph, places, self.input.numel())
        return Operator(products, self.input.detach()[needed], at(self.values), at(self.biases)), needed


def together(shape: Sequence[int], axis: int) -> bool:
    """Whether streams of this shape can go through the model as one batch."""
    return axis == 1 and shape[0] == 1


def _raw(rows: Tensor, shape: Sequence[int], axis: int, batch: int) -> Tensor:
    """A stream as the model has it, from a row for each token; several as a batch."""
    if batch > 1:
        return rows.view(batch, -1, *shape[2:])
    return of_tokens(rows, shape, axis)


@contextmanager
def _replacing(module: nn.Module, nth: int, shape: Sequence[int], stream: Tensor) -> Iterator[None]:
    """Let a module's nth call give this stream in place of its own."""
    calls = 0

    def answer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != nth:
            return None
        first = next(t for t in tensors(out) if t.shape == tuple(shape))
        given = stream.clone()  # a step, even where nothing follows
        return mapped(out, lambda t: given if t is first else t)

    with answering([module], answer):
        yield
