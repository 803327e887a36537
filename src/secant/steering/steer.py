"""Steering with operators: the operator of one prompt is applied to a different text, and changes its residual stream.

J, [d, T, n], is the operator of a concept, from its embeddings to the residual stream after a layer at its last
position. For a text with embeddings x, it gives a_i = Σ_{k<=i} J[:, k mod T] x_k at position i. With a strength s, the
residual stream h_i after that layer becomes

1. mixture: (1 - s) h_i + s a_i (J. Golden, TMLR 2025, arXiv 2505.24293, equation 16, whose λ is 1 - s);
2. additive: h_i + s ‖h_i‖ / (2 ‖a_i‖) a_i (what the paper's code computes), at the layer that J maps to;
3. activation: h_i + s ‖h_i‖ / (2 ‖c‖) c, with the concept's own activation c there: activation addition, a baseline.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsFloat, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secant.errors import BadArgument, NoPoint, checked, integer
from secant.linearize.readout import batchable
from secant.linearize.run import Run, freeze
from secant.model.hooks import replacing_outputs
from secant.model.lm import LM, Prompt
from secant.numeric import mapped, tensors
from secant.results.schema import Column
from secant.steering.forms import FORMS, strength_of
from secant.steering.kv_cache import following

PLAIN = "unsteered"
"""The form of what was generated without steering."""

FORM = Column("form", str, f"how it was steered: {', '.join(FORMS)}; or {PLAIN}")
LAYER = Column("layer", int, "the layer that was steered, from 0; missing where none was", missing=True)
STRENGTH = Column("strength", float, "strength of steering; 0 leaves the model as it is")


@dataclass(frozen=True, eq=False)
class Aim:
    """A concept at a layer, whose residual stream it steers.

    Attributes:
        run: The run of the concept.
        layer: The layer, from 0.

    """

    run: Run
    layer: int

    @cached_property
    def blocks(self) -> Float[Tensor, "T d n"]:
        """J_t for each token of the concept, to its last position. Raises NotExact."""
        return self.run.operator("embed", f"layers.{self.layer}").dense().movedim(1, 0).contiguous()

    @property
    def stream(self) -> Float[Tensor, " d"]:
        """The concept's own residual stream after the layer, at its last position."""
        return self.run.inside.values[f"layers.{self.layer}"][-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the model's residual stream after the batch and token axes."""
        return tuple(self.run.tape.steps[self.run.inside.layers[self.layer].output.step].shape[2:])


_STEERED: ContextVar[tuple[nn.Module, ...]] = ContextVar("models that are being steered", default=())


@checked
def steer(
    lm: LM, concept: Prompt | Run, *, layer: SupportsIndex, strength: SupportsFloat, form: str = "mixture"
) -> AbstractContextManager[None]:
    """Steer a model towards a concept while the block runs, in this thread: its calls and its `generate`.

    At strength 0, and after the block, the model is unchanged bit for bit. Caches, left-padded batches and beam search
    work. A pass is refused if it resumes from a cache that an unsteered pass filled, or that was cropped since, as in
    assisted decoding. Blocks may be nested: each steers what the outer ones return.

    Args:
        lm: The model.
        concept: A prompt, or its Run.
        layer: The layer, from 0, whose residual stream is replaced.
        strength: How strongly: from 0 to 1 for mixture, any number for the other forms.
        form: mixture, additive or activation.

    Raises:
        BadArgument: An argument is not valid.
        NoPoint: The model's layers were not found.
        SecantError: What `freeze` raises, if the concept is a prompt.

    """
    strength = strength_of(form, strength)
    return steered(lm, aimed(concept_of(lm, concept), layer), form, strength)


def concept_of(lm: LM, concept: Prompt | Run) -> Run:
    """The run of a concept. Raises BadArgument if it belongs to a different model."""
    lm.ready()
    if isinstance(concept, Run):
        if concept.lm.model is not lm.model:
            raise BadArgument(
                "A concept must be a run of the model that it steers", f"one of {concept.lm.name}",
                "Freeze it with this model.",
            )  # fmt: skip
        return concept
    if any(model is lm.model for model in _STEERED.get()):
        raise BadArgument(
            "A concept must be frozen in the unsteered model", "a prompt, while the model is steered",
            "Freeze it beforehand with sc.freeze(lm, prompt), and give the run.",
        )  # fmt: skip
    return freeze(lm, concept)


def aimed(run: Run, layer: SupportsIndex) -> Aim:
    """A concept at a layer. Raises NoPoint, BadArgument."""
    found = run.found_layers("Use a different model.")
    last = len(found) - 1
    aim = Aim(run, integer(layer, 0, last, f"The layers of this model are 0 to {last}", "layer = "))
    site = found[aim.layer].output
    shape = run.tape.steps[site.step].shape
    if not batchable(shape, site.axis):
        raise NoPoint(
            "The axes of a steered residual stream must begin with texts and tokens", f"shape {tuple(shape)}",
            "Use a different model.",
        )  # fmt: skip
    return aim


@contextmanager
def steered(lm: LM, aim: Aim, form: str, strength: float) -> Iterator[None]:
    """Steer with arguments that have been checked."""
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

            with replacing_outputs([module], answer):
                yield
    finally:
        _STEERED.reset(token)


def _stream(out: Any, shape: tuple[int, ...]) -> Tensor:
    """The residual stream among a layer's outputs, recognised by its shape at the concept."""
    for tensor in tensors(out):
        if tensor.is_floating_point() and tensor.ndim == 2 + len(shape) and tensor.shape[2:] == shape:
            return tensor
    raise BadArgument(
        "A layer must return a residual stream of the same shape for every text", "a different one",
        "Report the model's type.",
    )  # fmt: skip


def _whole(model: nn.Module, layer: nn.Module) -> nn.Module:
    """The innermost module around the layer that can generate. Every call goes through it, whatever wraps it."""
    around = [
        module
        for module in model.modules()
        if hasattr(module, "prepare_inputs_for_generation") and any(part is layer for part in module.modules())
    ]
    return around[-1] if around else model
