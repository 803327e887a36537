"""What tokens write at every depth, against single operators; what heads attend to, against transformers' output."""

from __future__ import annotations

import pytest
import torch
from families import model_of, prompt
from stock64 import in_float64

import secant as sc
from secant.analyses.sinks import patterns
from secant.analyses.writes import depth_terms, depth_words, head_terms, head_words
from secant.stream.decode import decode


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mamba"])
def test_terms_are_those_of_the_operators(family: str) -> None:
    """J_t (x_t - x₀_t) of each activation through the final norm, by other code: its dense operator."""
    run = sc.freeze(model_of(family), prompt(5))
    origin = torch.randn(run.input.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    some, found = [0, 3, 4], dict(depth_terms(run, [0, 3, 4]))
    moved = dict(depth_terms(run, some, origin))
    names = [[*(f"layers.{i}.{p}" for p in run.inside.parts(i)), f"layers.{i}"] for i in range(len(run.inside.layers))]
    assert list(found) == [name for own in names for name in own]
    for name, terms in found.items():
        op = run.operator("embed", name, readout="norm")
        J = op.dense()
        for x, own in ((run.input, terms), (run.input - origin, moved[name])):
            wanted = torch.stack([J[:, t] @ x[t] for t in some])
            torch.testing.assert_close(own, wanted, rtol=0, atol=1e-12 * float(wanted.norm()))
    every = dict(depth_terms(run, range(5)))
    last = f"layers.{len(run.inside.layers) - 1}"
    y = every[last].sum(0) + run.operator("embed", last, readout="norm").bias
    torch.testing.assert_close(y, run.hidden[-1], rtol=0, atol=1e-12 * float(y.norm()))


def test_words_of_both_signs(lm: sc.LM) -> None:
    run = sc.freeze(lm, "The bridge out of Marin is the")
    table = depth_words(run, [2, 5], 3, None)
    for (name, terms), t in zip([*depth_terms(run, [2, 5])][:4], [0, 1, 0, 1], strict=True):
        layer, part = run.inside[name].layer, name.split(".")[2] if name.count(".") == 2 else "residual"
        for sign, way in (("promoted", 1), ("suppressed", -1)):
            (wanted,) = decode(lm, way * terms[t], "output", 3)
            own = table[(table["layer"] == layer) & (table["part"] == part) & (table["sign"] == sign)]
            own = own[own["position"] == [2, 5][t]]
            assert own["id"].tolist() == [w.id for w in wanted]
            assert own["rank"].tolist() == [0, 1, 2]
            assert own["score"].tolist() == pytest.approx([w.score for w in wanted], abs=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_heads_write_what_their_operators_say(family: str) -> None:
    """Their own outputs through the final norm by its formula, with the statistics of the whole attention's output."""
    run = sc.freeze(model_of(family), prompt(5))
    norm = run.lm.model.get_submodule({"gpt2": "transformer.ln_f"}.get(family, "model.norm"))
    weight = norm.weight.detach() + (family == "gemma3_text")
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    found = dict(head_terms(run))
    assert list(found) == [f"layers.{i}.attn" for i in range(len(run.inside.layers))]
    for name, terms in found.items():
        assert len(terms) == run.lm.model.config.num_attention_heads
        whole = run.inside.values[name][-1]
        scale = weight / (whole.var(correction=0) + eps if family == "gpt2" else whole.square().mean() + eps).sqrt()
        for h, own in enumerate(terms):
            added = run.operator("embed", f"{name}.heads.{h}").output
            wanted = scale * (added - added.mean() if family == "gpt2" else added)
            torch.testing.assert_close(own, wanted, rtol=0, atol=1e-12 * float(wanted.norm()))


def test_words_of_heads(lm: sc.LM) -> None:
    run = sc.freeze(lm, "The bridge out of Marin is the")
    table = head_words(run, 3, None)
    (first, terms), *_ = head_terms(run)
    own = table[(table["layer"] == run.inside[first].layer) & (table["head"] == 1)]
    for sign, way in (("promoted", 1), ("suppressed", -1)):
        (wanted,) = decode(lm, way * terms[1], "output", 3)
        assert own.loc[own["sign"] == sign, "id"].tolist() == [w.id for w in wanted]
    heads = sum(len(terms) for _, terms in head_terms(run))
    assert len(table) == heads * 2 * 3
    assert head_words(sc.freeze(model_of("mamba"), prompt(5)), 3, None).empty


def test_a_model_without_layers_has_no_words(lm: sc.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sc.freeze(lm, "The bridge")
    monkeypatch.setitem(run.network.recording.__dict__, "layers", [])
    assert depth_words(run, [0], 3, None).empty


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_patterns_are_the_models_own(family: str, attention: str) -> None:
    """Grouped queries too, whichever attention computes them."""
    more = {"num_key_value_heads": 2} if family == "llama" else {}
    lm = model_of(family, attention, **more)
    run = sc.freeze(lm, prompt(6))
    found = patterns(run)
    lm.model.set_attn_implementation("eager")
    with torch.no_grad():
        every = in_float64(lm.model)(input_ids=torch.tensor([run.ids]), output_attentions=True).attentions
    assert found["layer"].nunique() == len(every)
    for layer, own in enumerate(every):
        rows = found[found["layer"] == layer].pivot_table("attention", "head", "position").to_numpy()
        torch.testing.assert_close(torch.tensor(rows), own[0, :, -1], rtol=0, atol=1e-12)
