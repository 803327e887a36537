"""Secants are exact at the prompt and, with a single reference, at the reference, for operations and whole models."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families import LENGTH, frozen, model_of, prompt
from helpers import assert_matches, recorded, replayed, visited
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import secant as sc
from secant.errors import BadArgument
from secant.linearize import forms, secants
from secant.linearize.conventions import CONVENTIONS, NAMES, Convention, convention_named
from secant.linearize.forms import Secant
from secant.linearize.network import reference, running
from secant.linearize.secants import logarithmic_mean

SECANT = CONVENTIONS["secant"]
GENERATOR = torch.Generator().manual_seed(5)
X, R, V = (torch.randn(4, 6, generator=GENERATOR, dtype=torch.float64) for _ in range(3))
W = torch.randn(6, 6, generator=GENERATOR, dtype=torch.float64)
MASK = torch.rand(4, 6, generator=GENERATOR) > 0.3
CAUSAL = torch.full((4, 4), -torch.inf, dtype=torch.float64).triu(1)


def heads(x: Tensor, n: int = 2) -> Tensor:
    """(1, n, T, d) of (T, n * d)."""
    return x.reshape(1, len(x), n, -1).transpose(1, 2)


def attended(x: Tensor, **how: object) -> Tensor:
    return F.scaled_dot_product_attention(heads(x @ W), heads(x.tanh()), heads(x), **how)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "exp": torch.exp,
    "square": torch.square,
    "in place": lambda x: (x + 0).exp_().mul_(2),
    "cube": lambda x: x**3,
    "abs": torch.abs,
    "rsqrt": lambda x: torch.rsqrt(x * x + 1),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "gate by hand": lambda x: x * torch.sigmoid(x),
    "gate": lambda x: F.silu(x) * (x @ W),
    "broadcast": lambda x: x * x.sum(-1, keepdim=True),
    "matmul": lambda x: x @ x.mT,
    "einsum": lambda x: torch.einsum("id,jd->ij", x, x.tanh()),
    "quotient": lambda x: x / (1 + x.exp()).sum(-1, keepdim=True),
    "reciprocal": lambda x: 1 / (2 + x.tanh()),
    "larger": lambda x: torch.maximum(x, x @ W),
    "softmax": lambda x: torch.softmax(x, -1),
    "masked softmax": lambda x: torch.softmax(x.masked_fill(~MASK, -torch.inf), -1),
    "pattern": lambda x: torch.softmax(x @ x.mT / 2 + CAUSAL, -1) @ x,
    "softmax over rows": lambda x: F.softmax(x, dim=0),
    "rms norm": lambda x: F.rms_norm(x, (6,), W[0], 1e-6),
    "rms norm by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "layer norm": lambda x: F.layer_norm(x, (6,), W[0], W[1]),
    "attention": attended,
    "causal attention": lambda x: attended(x, is_causal=True),
    "masked attention": lambda x: attended(x, attn_mask=MASK[:, :4] | torch.eye(4).bool()),
    "biased attention": lambda x: attended(x, attn_mask=CAUSAL + X[:, :4], scale=0.3),
    "grouped attention": lambda x: F.scaled_dot_product_attention(
        heads(x @ W), heads(x[:, :3], 1), heads(x[:, 3:].tanh(), 1), is_causal=True, enable_gqa=True
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_is_exact_at_both_ends_and_affine(name: str) -> None:
    function = FUNCTIONS[name]
    out, tape = recorded(function, X, SECANT)
    assert torch.equal(out, function(X))
    visited(function, tape, R)
    tape.close()
    assert any(isinstance(step.form, Secant) for step in tape.steps)
    assert not any(isinstance(step.form, secants.Open) for step in tape.steps)
    at_x, at_r, between = (replayed(function, tape, v).detach() for v in (X, R, 0.3 * X + 0.7 * R))
    torch.testing.assert_close(at_x, function(X), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at_r, function(R), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(between, 0.3 * at_x + 0.7 * at_r, rtol=1e-12, atol=1e-12)
    one, two = (replayed(function, tape, v).detach() for v in (V, X + R - V))
    torch.testing.assert_close(one + two, at_x + at_r, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"relu", "abs", "clamp", "larger", "in place"}))
def test_where_reference_and_prompt_coincide_the_secant_is_the_derivative(name: str) -> None:
    function = FUNCTIONS[name]
    _, tape = recorded(function, X, SECANT)
    visited(function, tape, X)
    tape.close()
    zero = torch.zeros_like(X)
    moved = replayed(function, tape, V).detach() - replayed(function, tape, zero).detach()
    with sdpa_kernel(SDPBackend.MATH):
        _, tangent = torch.autograd.functional.jvp(function, X, V)
    torch.testing.assert_close(moved, tangent, rtol=1e-9, atol=1e-9)


def test_the_logarithmic_mean() -> None:
    """It is the integral of a^t b^(1-t) over t from 0 to 1."""
    a, b = torch.tensor([[0.5, 0.1], [0.2, 0.2], [0.3, 0.2999], [0.0, 0.4], [0.0, 0.0]], dtype=torch.float64).T
    found = logarithmic_mean(a, b)
    assert torch.equal(found, logarithmic_mean(b, a))
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    integral = torch.trapezoid(a[:3, None] ** t * b[:3, None] ** (1 - t), t)
    torch.testing.assert_close(found[:3], integral, rtol=1e-8, atol=0)
    assert found[3:].tolist() == [0, 0]
    least = torch.tensor(1e-200, dtype=torch.float64)
    assert logarithmic_mean(torch.ones_like(least), least).item() == pytest.approx(1 / (200 * math.log(10)), rel=1e-14)
    nearly = torch.tensor(0.3, dtype=torch.float64)
    series, logs = (logarithmic_mean(nearly, nearly * (1 + d)).item() for d in (0.0199, 0.0203))
    assert series == pytest.approx(0.3 * 0.0199 / math.log1p(0.0199), rel=1e-14)
    assert logs == pytest.approx(0.3 * 0.0203 / math.log1p(0.0203), rel=1e-13)


# ------------------------------------------------------------------------------------------- models

DENSE = ("llama", "gpt2", "gemma3_text", "qwen3")
"""Quick model types without choices: their own pass at a reference is a check."""


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", DENSE)
def test_a_model_is_exact_at_its_reference_too(family: str, attention: str) -> None:
    """J r + b is what the model itself makes of the reference, which no other convention promises."""
    lm = model_of(family, attention)
    run = sc.freeze(lm, prompt(), convention="secant")
    r = reference(lm, run.input, SECANT, None, [run.seed])
    seen: list[Tensor] = []
    hook = lm.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    with running(lm, lm.dtype):
        lm.forward(run.ids, r)
    hook.remove()
    op, own = run.operator(), seen[-1][0, -1]
    assert (own - op.output).norm() > 0.1 * own.norm()
    rebuilt = op @ r.flatten() + op.bias
    torch.testing.assert_close(rebuilt, own, rtol=0, atol=1e-12 * float(own.norm() + op.bias.norm()))


@pytest.mark.parametrize(
    ("family", "convention"),
    [("llama", c) for c in ("halves", "secant", "0.3+secant", "half+frozen+secant+random")]
    + [("gpt2", "secant"), ("gemma3_text", "secant"), ("qwen3", "halves")],
)
def test_both_implementations_of_attention_have_one_operator(family: str, convention: str) -> None:
    one, two = (frozen(family, attention, convention=convention).operator() for attention in ("sdpa", "eager"))
    J = one.dense()
    torch.testing.assert_close(two.dense(), J, rtol=0, atol=1e-11 * float(J.norm()))
    assert_matches(one, J.flatten(1), 1e-11)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_rows_of_patterns_in_blocks_give_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model_of(family, "sdpa")
    whole = sc.freeze(lm, prompt(), convention="secant").operator()
    monkeypatch.setattr(forms, "PATTERN_ELEMENTS", 4 * LENGTH * 2)
    run = sc.freeze(lm, prompt(), convention="secant")
    attention = [step.form for step in run.tape.steps if isinstance(step.form, secants.LiveAttention)]
    assert attention
    assert all(form.kept is None and len(form.calls[0].blocks()) > 3 for form in attention)
    J = whole.dense()
    torch.testing.assert_close(run.operator().dense(), J, rtol=0, atol=1e-12 * float(J.norm()))
    assert_matches(run.operator(), J.flatten(1), 1e-11)


def test_halves_of_one_head_written_out() -> None:
    """½ (P + U) v + ½ S(s) v₀: the pattern's secant from the uniform one, and halves of each product."""
    q, k, v = (torch.randn(1, 1, 5, 3, generator=GENERATOR, dtype=torch.float64) for _ in range(3))

    def function(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x[:1], x[1:2], x[2:], is_causal=True)

    x = torch.cat([q, k, v])
    _, tape = recorded(function, x, CONVENTIONS["halves"])
    visited(function, tape, torch.zeros_like(x))
    tape.close()
    mask = torch.ones(5, 5).tril().bool()
    s = (q @ k.mT / 3**0.5)[0, 0]
    P = torch.softmax(s.masked_fill(~mask, -torch.inf), -1)
    U = mask / mask.sum(-1, keepdim=True).double()
    M = torch.where(mask & (P != U), (P - U) / (P.log() - U.log()), P * mask)
    w = torch.randn(x.shape, generator=GENERATOR, dtype=torch.float64)
    ds = (w[0, 0] @ k[0, 0].mT + q[0, 0] @ w[1, 0].mT) / 2 / 3**0.5
    dP = M * ds - M * (M * ds).sum(-1, keepdim=True) / M.sum(-1, keepdim=True)
    expected = (P + U) / 2 @ w[2, 0] + dP @ v[0, 0] / 2
    found = replayed(function, tape, w).detach() - replayed(function, tape, torch.zeros_like(x)).detach()
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-12, atol=1e-12)


ROUND = ("halves", "secant", "half+secant+frozen+random", "secant+secant+frozen+random", "gate+frozen+secant+random")


@pytest.mark.parametrize(
    ("family", "convention"),
    [("llama", convention) for convention in ROUND]
    + [
        (family, "secant")
        for family in ("mixtral", "mamba", "mamba2", "gpt_oss", "bloom", "deepseek_v3", "mpt", "falcon")
    ],
)
def test_exact_in_every_convention(family: str, convention: str) -> None:
    c = frozen(family, "eager", convention=convention).certificate
    assert c.forward_equal
    assert max(c.reconstruction, c.affinity, c.readout) < 1e-12
    assert c.convention == convention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions(dtype: torch.dtype) -> None:
    run = sc.freeze(model_of("llama", "sdpa", dtype), prompt(), convention="secant", precision="float32")
    assert run.certificate.affinity < 1e-4
    assert run.certificate.reconstruction < (1e-4 if dtype == torch.float32 else 0.1)


def test_the_same_seed_gives_the_same_references_and_another_does_not() -> None:
    run = frozen("llama", "sdpa", convention="secant")
    assert run.seed == 0
    one, same, other = (
        each.operator().dense()
        for each in (run, *(sc.freeze(run.lm, prompt(), convention="secant", seed=seed) for seed in (0, 1)))
    )
    assert torch.equal(one, same)
    assert (one - other).norm() > 1e-3 * one.norm()


def test_activations_inside_and_attributions_are_exact() -> None:
    run = frozen("llama", "sdpa", convention="secant")
    for target in ("layers.0.attn", "layers.1.mlp", "layers.2", "logits"):
        op = run.operator(target=target)
        torch.testing.assert_close(
            op @ op.input.flatten() + op.bias, op.output, rtol=0, atol=1e-11 * float(op.output.norm())
        )
    found = sc.attribute(run)
    assert found.total == pytest.approx(found.logit, rel=1e-11)


def test_a_share_lies_between_gate_and_up() -> None:
    one = {"num_hidden_layers": 1}
    gate, up, some = (
        sc.freeze(model_of("llama", "sdpa", **one), prompt(), convention=c).operator().dense()
        for c in ("gate", "up", "0.3")
    )
    torch.testing.assert_close(some, 0.3 * gate + 0.7 * up, rtol=0, atol=1e-12 * float(gate.norm()))


# ------------------------------------------------------------------------------------------- names


def test_names_of_conventions() -> None:
    assert convention_named("paper") == convention_named("gate") == Convention("gate", "frozen", "frozen", "zero")
    assert convention_named("relevance") == convention_named("0.5+frozen") or convention_named("relevance").share == 0.5
    assert convention_named("0.7+secant+frozen+random") == Convention(0.7, "secant", "frozen", "random")
    assert {"gate", "up", "half", "halves", "secant", "paper", "relevance"} <= set(NAMES)


@pytest.mark.parametrize(
    "wrong", ["", "gates", "1.1", "-0.1", "nan", "half+live", "half+secant+frozen+zero+more", "half+"]
)
def test_wrong_names_are_refused(wrong: str) -> None:
    with pytest.raises(BadArgument, match="A convention is one of"):
        convention_named(wrong)
