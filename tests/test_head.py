"""The hidden state is the one from which the returned logits were computed, however often a model uses its head.

Every model here is checked against its own last hidden state, which transformers returns.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import model_of, prompt
from torch import Tensor, nn

import secant as sc
from secant.errors import NoPoint, NotExact
from secant.linearize.run import ordinary_output
from secant.linearize.tape import Mode, WithoutParameters


def softly(model: nn.Module, x: Tensor) -> Tensor:
    """The mean embedding of the next token, as a model that looks at its own logits has it."""
    return torch.softmax(model.lm_head(x), -1) @ model.model.embed_tokens.weight


def looks_at_its_logits(model: nn.Module) -> None:
    mlp = model.model.layers[0].mlp
    own = mlp.forward
    mlp.forward = lambda x: own(x) + softly(model, x)


def looks_at_them_before_every_layer(model: nn.Module) -> None:
    for layer in model.model.layers:
        layer.input_layernorm.register_forward_hook(lambda norm, args, out: out + softly(model, out))


def has_an_auxiliary_head_before(model: nn.Module) -> None:
    """Called on the stream of the last layer, before the norm, and thrown away."""
    model.model.layers[-1].register_forward_hook(lambda layer, args, out: (model.lm_head(out), None)[1])


def has_an_auxiliary_head_after(model: nn.Module) -> None:
    model.lm_head.register_forward_hook(lambda head, args, out: (torch.tanh(args[0]) @ head.weight.T, None)[1])


def uses_the_weight_in_a_layer(model: nn.Module) -> None:
    mlp = model.model.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda x: own(x) + x @ model.lm_head.weight.T @ model.lm_head.weight / 100


def has_no_module_for_its_head(model: nn.Module) -> None:
    """A head by its weight alone, in the last place and in a layer."""
    uses_the_weight_in_a_layer(model)
    weight = model.lm_head.weight
    model.lm_head.forward = lambda x: x @ weight.T


ODD: list[Callable[[nn.Module], None]] = [
    looks_at_its_logits,
    looks_at_them_before_every_layer,
    has_an_auxiliary_head_before,
    has_an_auxiliary_head_after,
    uses_the_weight_in_a_layer,
    has_no_module_for_its_head,
]


def odd(change: Callable[[nn.Module], None], **options: object) -> sc.LM:
    lm = model_of("llama", "sdpa", **options)
    change(lm.model)
    return lm


@pytest.mark.parametrize("change", ODD)
def test_the_hidden_state_is_what_the_logits_are_made_of(change: Callable[[nn.Module], None]) -> None:
    lm = odd(change)
    run = sc.freeze(lm, prompt(), ordinary=True)
    with torch.no_grad():
        true = lm.model.model(input_ids=torch.tensor([prompt()])).last_hidden_state[0]
    assert (run.hidden - true).norm() < 1e-6 * true.norm()  # the stock norm casts to float32
    op, c = run.operator(), run.certificate
    assert torch.equal(op.output, run.hidden[-1])
    assert op.reconstruction < 1e-13
    assert max(c.reconstruction, c.affinity, c.readout) < 1e-13
    logits = lm.unembedding @ (op.dense().flatten(1) @ op.input.flatten() + op.bias)
    assert (logits - run.logits[-1]).norm() < 1e-12 * logits.norm()


@pytest.mark.slow
@pytest.mark.parametrize("change", ODD)
def test_what_goes_on_from_it(change: Callable[[nn.Module], None]) -> None:
    """Layers, readouts at every depth, the sums of a logit, and the ordinary Jacobian, by central differences."""
    lm = odd(change)
    run = sc.freeze(lm, prompt())
    assert sc.layers(run, 2).depths
    last = f"layers.{lm.model.config.num_hidden_layers - 1}"
    through = run.operator("embed", last, readout="norm")
    assert (through.output - run.hidden[-1]).norm() < 1e-12 * through.output.norm()
    attribution = sc.attribute(run, baseline="none")
    assert abs(attribution.total - run.logits[-1].max().item()) < 1e-11
    ordinary, x, step = ordinary_output(lm, run.network.recording, run.input), run.input, 1e-4
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            moved = x * (1 + sign * step)
            sides.append(lm.model.model(inputs_embeds=moved[None]).last_hidden_state[0, -1])
    difference = (sides[0] - sides[1]) / (2 * step)
    assert (ordinary - difference).norm() < 1e-2 * max(ordinary.norm(), difference.norm())


def test_logits_of_two_hidden_states_are_refused() -> None:
    """Half of the head's logits are of the stream of another layer: no single hidden state makes them."""
    lm = model_of("llama", "sdpa")
    kept = []
    lm.model.model.layers[0].register_forward_hook(lambda layer, args, out: kept.append(out) or None)
    lm.model.lm_head.register_forward_hook(lambda head, args, out: out + kept[-1] @ head.weight.T / 2)
    with pytest.raises((NotExact, NoPoint), match="logits"):
        sc.freeze(lm, prompt())


@pytest.mark.parametrize(
    "head",
    [lambda x, own: torch.cat([own(x[:, :4]), own(x[:, 4:])], dim=1), lambda x, own: (own.weight @ x[0].T).T[None]],
    ids=["in pieces", "transposed"],
)
def test_a_head_that_is_not_applied_to_rows_of_the_prompt_is_refused(
    head: Callable[[Tensor, nn.Module], Tensor],
) -> None:
    lm = model_of("llama", "sdpa")
    body = lm.model.model

    def forward(input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **rest: object) -> Any:
        hidden = body(input_ids=input_ids, inputs_embeds=inputs_embeds).last_hidden_state
        return SimpleNamespace(logits=head(hidden, lm.head))

    lm.model.forward = forward
    with pytest.raises(NoPoint, match="a row for each token of the prompt; got shape"):
        sc.freeze(lm, prompt())


def test_affinity_is_of_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nonlinearity that torch functions do not show, at the first position of the last layer alone."""

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return torch.tanh(x)

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            return g

    lm = model_of("llama", "sdpa")
    lm.model.model.norm.register_forward_hook(
        lambda norm, args, out: torch.cat([Hidden.apply(out[:, :1]), out[:, 1:]], dim=1)
    )
    with pytest.raises(NotExact, match="affinity"):
        sc.freeze(lm, prompt())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tiny_embeddings_give_numbers(dtype: torch.dtype) -> None:
    """Their squares have no place in float32."""
    lm = model_of("llama", "sdpa", dtype, attention_bias=False, mlp_bias=False)
    with torch.no_grad():
        lm.model.model.embed_tokens.weight.mul_(1e-30)
    explanation = sc.explain(lm, prompt())
    run = explanation.run
    assert run.certificate.constants == 0
    for table in (explanation.to_pandas(), explanation.words(), sc.attribute(run).to_pandas()):
        names = ["contribution", "share", "norm", "sigma", "stable_rank", "score"]
        assert not table[[name for name in names if name in table]].isna().all(axis=0).any()
    assert explanation.to_pandas()["norm"].gt(0).all()
    for words, token in zip(sc.decode(lm, run.input.T, "input", 3, centered=False), run.ids, strict=True):
        assert words[0].id == token
        assert abs(words[0].score - 1) < 1e-6
    assert all(1 - 1e-6 <= f.stable_rank <= len(f.U) for f in explanation.svds)


def test_nothing_of_the_recorded_pass_is_kept_alive() -> None:
    """Without the garbage collector's help: a graph that waits for it is memory that a long prompt does not have."""
    lm = model_of("llama", "sdpa")
    gc.collect()
    gc.disable()
    try:
        run = sc.freeze(lm, prompt(), ordinary=True)
        sc.attribute(run)
        run.operator("embed", "layers.1", readout="norm")
        assert not [o for o in gc.get_objects() if issubclass(type(o), Mode | WithoutParameters)]
    finally:
        gc.enable()
