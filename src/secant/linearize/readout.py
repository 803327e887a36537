"""The readout: the final norm and the head, frozen at any residual stream.

The paper reads out every depth through the final norm (J. Golden, TMLR 2025, arXiv 2505.24293, section 4.3). The norm's
statistics are frozen at the activation that is read out, not at the last layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secant.linearize.conventions import convention_named
from secant.linearize.network import Network, noting_head, running, stopping_at_head, streams
from secant.linearize.replay import Replay, of_tokens
from secant.linearize.residual_stream import Layer
from secant.linearize.tape import Record
from secant.model.hooks import replacing_outputs
from secant.numeric import mapped, tensors
from secant.operators.operator import ColumnSlice, Graph, Operator


@dataclass(frozen=True, eq=False)
class Readout:
    """The affine map from P residual streams, in place after the last layer, to `norm` and `logits`.

    Attributes:
        input: The streams, with P * T rows.
        values: `norm`, and `logits` if requested, as the model computes them; one row for each row of `input`.
        replayed: Replays the map at other streams.
    """

    input: Float[Tensor, "rows n"] = field(repr=False)
    values: dict[str, Tensor] = field(repr=False)
    replayed: Callable[[Tensor], dict[str, Tensor]] = field(repr=False)

    @cached_property
    def points(self) -> dict[str, Tensor]:
        """The values on the graph from `input`."""
        return self.replayed(self.input)

    @cached_property
    def biases(self) -> dict[str, Tensor]:
        """The same activations at zero."""
        return {name: b.detach() for name, b in self.replayed(torch.zeros_like(self.input)).items()}

    @classmethod
    def of(cls, network: Network, last: Layer, h: Float[Tensor, "P T n"], head: bool) -> Readout:
        """Record the readout at P streams in one batch.

        Args:
            network: The frozen network.
            last: Its last layer, whose output the streams replace.
            h: The streams.
            head: Whether the logits are computed too.

        Raises:
            NoPoint: The logits do not come from the head.
        """
        lm, recording, precision = network.lm, network.recording, network.precision
        batch, tokens = h.shape[:2]
        x = network.input.detach()
        shape = recording.tape.steps[last.output.step].shape

        def through(mode: Record | Replay, rows: Tensor) -> Tensor | None:
            stream = _as_activation(mode.enter(rows), shape, last.output.axis, batch)
            logits = None
            ending = nullcontext() if head else stopping_at_head(lm, recording.unembedding.call)
            module = lm.model.get_submodule(last.call.module)
            with _replacing_output(module, last.call.nth, shape, stream), ending, mode:
                logits = lm.forward(recording.ids, x.to(rows))
            return logits

        upcast = precision != lm.dtype
        mode = Record(lm.model, lm.head, convention_named(recording.convention).frozen, precision if upcast else None)
        rows = h.detach().flatten(0, 1)
        with running(lm, lm.dtype, state=recording.state), noting_head(lm, mode):
            logits = through(mode, rows.to(lm.dtype))
        use = mode.head.uses[recording.unembedding.use]
        assert use.given is not None, "it is computed from the stream"
        steps = {"norm": use.made} | ({} if logits is None else {"logits": mode.maker(logits)})

        def named(raw: dict[str, Tensor]) -> dict[str, Tensor]:
            with torch.inference_mode(False), torch.enable_grad():
                norm = {"norm": streams(raw["norm"], batch * tokens)[recording.unembedding.stream]}
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
        return cls(leaf, values, replayed)

    def operator(self, name: str, rows: Sequence[int], ids: Sequence[int] | None = None) -> tuple[Operator, list[int]]:
        """Returns the map to some rows of a point, and the rows of the stream that it takes.

        Args:
            name: `norm` or `logits`.
            rows: The rows of the point, which are concatenated in the output.
            ids: The columns of each row; by default all.

        Returns:
            The operator from those rows of the stream that the output depends on, and the numbers of these rows.
        """
        chosen = slice(None) if ids is None else list(ids)

        def at(values: dict[str, Tensor]) -> Tensor:
            return values[name][list(rows)][:, chosen].flatten()

        with torch.inference_mode(False), torch.enable_grad():
            graph = Graph(self.input, at(self.points))
        weights = torch.randn(len(graph.y), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        slopes = graph.adjoint(weights.to(graph.y)).view(self.input.shape)
        needed = sorted({*slopes.abs().sum(1).nonzero().flatten().tolist(), *rows})
        places = torch.arange(self.input.numel(), device=self.input.device).view(self.input.shape)[needed].flatten()
        products = ColumnSlice(graph, places, self.input.numel())
        return Operator(products, self.input.detach()[needed], at(self.values), at(self.biases)), needed


def batchable(shape: Sequence[int], axis: int) -> bool:
    """Returns whether streams of this shape, whose dimension `axis` counts tokens, can be run as one batch."""
    return axis == 1 and shape[0] == 1


def _as_activation(rows: Tensor, shape: Sequence[int], axis: int, batch: int) -> Tensor:
    """Streams given as one row for each token, in the model's own shape; several form a batch."""
    if batch > 1:
        return rows.view(batch, -1, *shape[2:])
    return of_tokens(rows, shape, axis)


@contextmanager
def _replacing_output(module: nn.Module, nth: int, shape: Sequence[int], stream: Tensor) -> Iterator[None]:
    """Replace the stream that a module's nth call returns."""
    calls = 0

    def answer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != nth:
            return None
        first = next(t for t in tensors(out) if t.shape == tuple(shape))
        given = stream.clone()  # recorded as a step, even if nothing follows
        return mapped(out, lambda t: given if t is first else t)

    with replacing_outputs([module], answer):
        yield
