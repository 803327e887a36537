"""Operators as steering: what one prompt's operator makes of another text, put into the model's own stream.

J is the operator of a concept, from its embeddings to the stream after a layer at its last position: [d, T, n]. Of
another text with embeddings x it makes a_i = Σ_{k<=i} J[:, k mod T] x_k at position i, and the stream h_i after that
layer becomes, with a strength s:

1. mixture: (1 - s) h_i + s a_i (J. Golden, TMLR 2025, arXiv 2505.24293, equation 16, whose λ is 1 - s);
2. additive: h_i + s ‖h_i‖ / (2 ‖a_i‖) a_i (what the paper's code computes), at the layer that J maps to;
3. activation: h_i + s ‖h_i‖ / (2 ‖c‖) c, with the concept's own stream c there: activation addition, a baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsFloat, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secant.errors import BadArgument, NoPoint, checked, integer, number, one_of
from secant.linearize.readout import batchable
from secant.linearize.run import Run, freeze
from secant.model.hooks import answering
from secant.model.lm import LM, Prompt
from secant.numeric import mapped, tensors
from secant.results.schema import Column
from secant.steering.kv_cache import following


def mixed(h: Float[Tensor, "*rows d"], a: Float[Tensor, "*#rows d"], strength: float) -> Float[Tensor, "*rows d"]:
    """The mean (1 - s) h + s a."""
    return (1 - strength) * h + strength * a


def added(h: Float[Tensor, "*rows d"], a: Float[Tensor, "*#rows d"], strength: float) -> Float[Tensor, "*rows d"]:
    """The sum h + s ‖h‖ / (2 ‖a‖) a; h itself where a is 0."""
    length = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    there = length > 0
    scale = strength * torch.linalg.vector_norm(h, dim=-1, keepdim=True) / (2 * length.masked_fill(~there, 1))
    return torch.where(there, h + scale * a, h)


@dataclass(frozen=True)
class Form:
    """A way to steer: how the stream and a direction are combined, whether the direction is the operator's a (or the
    concept's own stream), the bounds of its strength, and strengths to try.
    """

    combined: Callable[[Tensor, Tensor, float], Tensor]
    of_operator: bool
    least: float
    most: float
    grid: tuple[float, ...]


FORMS = {
    "mixture": Form(mixed, True, 0.0, 1.0, (0.2, 0.4, 0.5, 0.6, 0.7, 0.8)),
    "additive": Form(added, True, -math.inf, math.inf, (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)),
    "activation": Form(added, False, -math.inf, math.inf, (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)),
}
"""Each form by its name."""

PLAIN = "unsteered"
"""The form of what was generated without steering."""

FORM = Column("form", str, f"how it was steered: {', '.join(FORMS)}; or {PLAIN}")
LAYER = Column("layer", int, "the layer that was steered, from 0; missing where none was", missing=True)
STRENGTH = Column("strength", float, "strength of steering; 0 leaves the model as it is")


@dataclass(frozen=True, eq=False)
class Aim:
    """A concept at a layer: what steers the stream after it."""

    run: Run
    layer: int

    @cached_property
    def blocks(self) -> Float[Tensor, "T d n"]:
        """J_t for each token of the concept, to its last position. Raises NotExact."""
        return self.run.operator("embed", f"layers.{self.layer}").dense().movedim(1, 0).contiguous()

    @property
    def stream(self) -> Float[Tensor, " d"]:
        """The concept's own stream after the layer at its last position."""
        return self.run.inside.values[f"layers.{self.layer}"][-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the stream as the model has it, behind batch and tokens."""
        return tuple(self.run.tape.steps[self.run.inside.layers[self.layer].output.step].shape[2:])


_STEERED: ContextVar[tuple[nn.Module, ...]] = ContextVar("models that are being steered", default=())


@checked
def steer(
    lm: LM, concept: Prompt | Run, *, layer: SupportsIndex, strength: SupportsFloat, form: str = "mixture"
) -> AbstractContextManager[None]:
    """Steer a model towards a concept while the block runs, in this thread: its calls, and its `generate`.

    `concept`: a prompt or its Run. `layer`: from 0; the stream after it is replaced. `form`: mixture (a strength from 0
    to 1), additive or activation (any strength). At strength 0 the model is as it was, bit for bit, and after the block
    too. Caches, batches padded on the left and beam search are followed; a pass that goes on from a cache that was
    filled otherwise, or cut since as assisted decoding does, is refused. Blocks may be nested: each takes the stream
    that the outer ones have left.

    Raises BadArgument, NoPoint where the model has no layers, and what `freeze` raises.
    """
    strength = strength_of(form, strength)
    return steered(lm, aimed(concept_of(lm, concept), layer), form, strength)


def strength_of(form: str, strength: SupportsFloat) -> float:
    """A strength that a form takes. Raises BadArgument."""
    of = FORMS[one_of(form, list(FORMS), "A form")]
    bounds = "a finite number" if math.isinf(of.most) else f"from {of.least:g} to {of.most:g}"
    return number(strength, of.least, of.most, f"The strength of a {form} is {bounds}", todo="Choose another.")


def concept_of(lm: LM, concept: Prompt | Run) -> Run:
    """The run of a concept. Raises BadArgument where it is another model's."""
    lm.ready()
    if isinstance(concept, Run):
        if concept.lm.model is not lm.model:
            raise BadArgument("A concept is a run of the model that it steers", concept.lm.name, "Freeze it with this.")
        return concept
    if any(model is lm.model for model in _STEERED.get()):
        raise BadArgument(
            "A concept is frozen in the model as it is", "a prompt, while the model is steered",
            "Freeze it before, with sc.freeze(lm, prompt), and give the run.",
        )  # fmt: skip
    return freeze(lm, concept)


def aimed(run: Run, layer: SupportsIndex) -> Aim:
    """A concept at a layer. Raises NoPoint, BadArgument."""
    found = run.inside.layers
    if not found:
        raise NoPoint("A network's layers are members of a module list that carries the stream", "none", "Use points.")
    last = len(found) - 1
    aim = Aim(run, integer(layer, 0, last, f"The layers of this model are 0 to {last}", "layer = "))
    site = found[aim.layer].output
    shape = run.tape.steps[site.step].shape
    if not batchable(shape, site.axis):
        raise NoPoint(
            "A stream that is steered has a row for each text, then one for each token", f"shape {tuple(shape)}",
            "Another model has.",
        )  # fmt: skip
    return aim


@contextmanager
def steered(lm: LM, aim: Aim, form: str, strength: float) -> Iterator[None]:
    """Steer with arguments that are as they should be."""
    if strength == 0:
        yield
        return
    of, call = FORMS[form], aim.run.inside.layers[aim.layer].call
    module, embedding = lm.model.get_submodule(call.module), lm.model.get_input_embeddings()
    token = _STEERED.set((*_STEERED.get(), lm.model))
    try:
        with following(_whole(lm.model, module), embedding, aim.blocks if of.of_operator else None) as passes:

            def answer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
                if not passes.reached(call.nth):
                    return None
                h = _stream(out, aim.shape)
                rows = h.flatten(2)
                a = passes.sums(rows.shape) if of.of_operator else aim.stream
                wide = torch.promote_types(torch.promote_types(h.dtype, a.dtype), torch.float32)
                given = of.combined(rows.to(wide), a.to(rows.device, wide), strength).to(h.dtype).view(h.shape)
                return mapped(out, lambda t: given if t is h else t)

            with answering([module], answer):
                yield
    finally:
        _STEERED.reset(token)


def _stream(out: Any, shape: tuple[int, ...]) -> Tensor:
    """The stream among what a layer gives, as it was found among what it gave at the concept."""
    for tensor in tensors(out):
        if tensor.is_floating_point() and tensor.ndim == 2 + len(shape) and tensor.shape[2:] == shape:
            return tensor
    raise BadArgument("A layer gives a stream of the same shape for every text", "another", "Report the model's type.")


def _whole(model: nn.Module, layer: nn.Module) -> nn.Module:
    """The innermost module around the layer that generates: what every call goes through, whatever is around it."""
    around = [
        module
        for module in model.modules()
        if hasattr(module, "prepare_inputs_for_generation") and any(part is layer for part in module.modules())
    ]
    return around[-1] if around else model
