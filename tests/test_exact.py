"""The paper's families: the frozen network is affine and reproduces the model in every dtype, attention and convention.

Three paths must agree: products from autograd, replays of the frozen network, and matrices written out by hand.
"""

from __future__ import annotations

import pytest
import torch
from families import GATED, LENGTH, PAPER, frozen, model_of, prompt, shared
from helpers import assert_matches, real
from stock64 import in_float64

import secant as sc
from secant.linearize.conventions import CONVENTIONS

ATTENTIONS = ("eager", "sdpa")
LOW = (torch.bfloat16, torch.float16)

each_family = pytest.mark.parametrize("family", PAPER)
each_attention = pytest.mark.parametrize("attention", ATTENTIONS)


@each_family
@pytest.mark.parametrize(
    ("attention", "convention", "length"),
    [(attention, "gate", length) for attention in ATTENTIONS for length in (1, 2, LENGTH)]
    + [("sdpa", convention, LENGTH) for convention in CONVENTIONS if convention != "gate"],
)
def test_float64(family: str, attention: str, convention: str, length: int) -> None:
    run = frozen(family, attention, convention=convention, length=length)
    c = run.certificate
    assert c.forward_equal
    assert c.reconstruction <= 1e-13
    assert c.affinity <= 1e-13
    assert (c.convention, c.dtype, c.attention) == (convention, "float64", attention)


@each_family
@each_attention
def test_float64_is_the_same_mathematics_in_float64_throughout(family: str, attention: str) -> None:
    run = frozen(family, attention)
    lm = run.lm
    with torch.no_grad():
        ours, twin = run.logits, in_float64(lm.model)(input_ids=torch.tensor([prompt()])).logits[0]
        stock = lm.model(input_ids=torch.tensor([prompt()])).logits[0]
    assert torch.equal(ours, twin) or (ours - twin).norm() <= 1e-15 * twin.norm()
    if family != "gpt2":  # which has no casts
        assert (ours - stock).norm() > 1e-10 * stock.norm(), "the stock casts are there to be kept out"


@each_family
@each_attention
@pytest.mark.parametrize("length", [1, LENGTH])
def test_float32(family: str, attention: str, length: int) -> None:
    run = frozen(family, attention, torch.float32, length=length)
    lm = run.lm
    with torch.no_grad():
        assert torch.equal(run.logits, lm.model(input_ids=torch.tensor([prompt(length)])).logits[0])
    assert run.certificate.forward_equal
    assert run.certificate.reconstruction <= 5e-6
    assert run.certificate.affinity <= 5e-6


@each_family
@pytest.mark.parametrize(
    ("attention", "dtype"),
    [
        pytest.param(attention, dtype, marks=pytest.mark.slow if (attention == "eager") == (dtype == LOW[0]) else [])
        for attention in ATTENTIONS
        for dtype in LOW
    ],
)
def test_low_precision(family: str, attention: str, dtype: torch.dtype) -> None:
    """The forward pass is the plain one; the system is evaluated in its dtype, or above it on request."""
    lm = shared(family, attention, dtype)
    own, wide = (frozen(family, attention, dtype, precision=p) for p in (None, "float32"))
    with torch.no_grad():
        plain = lm.model(input_ids=torch.tensor([prompt()])).logits[0]
    for run in (own, wide):
        assert torch.equal(run.logits, plain)
        assert run.certificate.reconstruction < 0.05
    assert own.operator().dense().dtype == dtype
    assert wide.operator().dense().dtype == torch.float32
    assert wide.certificate.affinity <= 5e-6, "in float32 the held network is affine to float32"
    assert lm.model.dtype == dtype


@each_family
def test_the_ordinary_jacobian_fails(family: str) -> None:
    run = sc.freeze(shared(family, "sdpa"), prompt(), ordinary=True)
    assert run.certificate.ordinary is not None
    assert run.certificate.ordinary > 0.5


def test_the_ordinary_jacobian_is_the_ordinary_jacobian() -> None:
    lm = model_of("llama", "eager")
    lm.model.requires_grad_(False)
    run = sc.freeze(lm, prompt(), ordinary=True)

    def last(x: torch.Tensor) -> torch.Tensor:
        return in_float64(lm.model).model(inputs_embeds=x[None]).last_hidden_state[0, -1]

    J = torch.autograd.functional.jacobian(last, run.input).flatten(1)
    y = run.hidden[-1]
    assert run.certificate.ordinary == pytest.approx(float((J @ run.input.flatten() - y).norm() / y.norm()), rel=1e-10)


@each_family
@each_attention
def test_products_dense_and_replay_agree(family: str, attention: str) -> None:
    run = frozen(family, attention)
    identity = torch.eye(run.input.numel(), dtype=torch.float64).reshape(-1, *run.input.shape)[::29]
    zeros, *replays = (run.network.replay(v)["norm"] for v in (torch.zeros_like(run.input), *identity))
    for position in (-1, 3):
        op = run.operator(position=position)
        zero = zeros[position]
        assert torch.equal(zero, op.bias)
        columns = [replay[position] - zero for replay in replays]
        J = op.dense().flatten(1)
        torch.testing.assert_close(torch.stack(columns, 1), J[:, ::29], rtol=0, atol=1e-12 * float(J.norm()))
        assert_matches(op, J)
        torch.testing.assert_close(J @ op.input.flatten() + op.bias, op.output, rtol=0, atol=1e-12)
    later = run.operator(position=3).dense()[:, 4:]
    assert later.abs().max() == 0, "a causal model does not read what comes after"


def one_layer(family: str) -> dict[str, object]:
    """The settings of a model of one layer."""
    types = {"layer_types": ["sliding_attention"]} if family in ("gemma3_text", "ministral") else {}
    return {"num_hidden_layers": 1, **types}


@pytest.mark.parametrize("family", [*GATED[:2], pytest.param("qwen3", marks=pytest.mark.slow), *GATED[3:]])
def test_half_is_the_mean_of_one_gated_product_and_of_no_more(family: str) -> None:
    """J and b of a network with one gated product are affine in what is frozen of it; several make a product."""
    lm = model_of(family, "sdpa", **one_layer(family))
    gate, up, half = (sc.freeze(lm, prompt(), convention=c).operator() for c in ("gate", "up", "half"))
    mean, norm = (gate.dense() + up.dense()) / 2, float(gate.dense().norm())
    assert (gate.dense() - up.dense()).norm() > 0.1 * norm
    torch.testing.assert_close(half.dense(), mean, rtol=0, atol=1e-12 * norm)
    torch.testing.assert_close(half.bias, (gate.bias + up.bias) / 2, rtol=0, atol=1e-12)
    gate, up, half = (frozen(family, "sdpa", convention=c).operator() for c in ("gate", "up", "half"))
    assert (half.dense() - (gate.dense() + up.dense()) / 2).norm() > 1e-3 * half.dense().norm()


@pytest.mark.parametrize("family", ["gemma3_text", "mistral", "ministral"])
def test_the_sliding_window_is_seen(family: str) -> None:
    """With one layer, a token further back than the window plays no part (trap 7 of the reference code)."""
    options = one_layer(family)
    for attention in ATTENTIONS:
        run = sc.freeze(model_of(family, attention, **options), prompt())
        norms = run.operator().dense().norm(dim=(0, 2))
        assert norms[: LENGTH - 4].max() == 0
        assert norms[LENGTH - 4 :].min() > 0


def test_a_bias_is_the_held_network_at_zero_and_is_not_small() -> None:
    for family in ("gpt2", "qwen2", "llama"):
        op = frozen(family).operator()
        assert op.bias.norm() > 1e-2 * op.output.norm()
    for family in ("mistral", "gemma3_text", "qwen3", "phi3", "olmo2"):
        assert frozen(family).operator().bias.abs().max() == 0


@pytest.mark.parametrize("name", ["stories260K", "craftgpt", "tiny-sql-gpt", "tiny-sql-gpt-nano"])
@pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
def test_real_models(name: str, attention: str) -> None:
    text = {"stories260K": "Once upon a time there was", "craftgpt": "[inst] do you like music? [/inst]"}
    said = text.get(name, "SELECT region , SUM ( price ) FROM sales GROUP BY")
    folder = str(real(name))
    for dtype, tolerance in (("float64", 1e-13), ("float32", 5e-6)):
        run = sc.freeze(sc.load(folder, dtype=dtype, attention=attention), said)
        assert run.certificate.forward_equal
        assert run.certificate.reconstruction <= tolerance
        if name == "tiny-sql-gpt":
            assert run.prediction[0].token == "region"
