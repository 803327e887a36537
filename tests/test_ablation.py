"""Ablations: the frozen network's effect equals the operators', and the model's effect equals that of forward hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from families import LENGTH, frozen, model_of, prompt

import secant as sc
from secant.errors import BadArgument, NoPoint, ReplayMismatch
from secant.linearize.network import running

KINDS = ("llama", "gpt2", "gemma3_text", "mixtral", "bert", "mamba", "gpt_oss", "deepseek_v3", "bloom")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def run(request: pytest.FixtureRequest) -> sc.Run:
    return frozen(request.param, "sdpa")


def hooked(run: sc.Run, module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor], before: bool) -> Any:
    """The model's logits at the last position with what a module takes in, or gives, changed."""

    def on_input(module: Any, args: tuple[Any, ...]) -> Any:
        return (change(args[0]), *args[1:])

    def on_output(module: Any, args: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    handle = module.register_forward_pre_hook(on_input) if before else module.register_forward_hook(on_output)
    try:
        with running(run.lm, run.lm.dtype):  # without casts to float32
            return run.lm.model(input_ids=torch.tensor([run.ids]), use_cache=False).logits[0, -1].detach()
    finally:
        handle.remove()


def blocks(run: sc.Run, i: int) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """A layer's attention, its output projection, and its MLP."""
    if run.lm.name == "llama":
        layer = run.lm.model.model.layers[i]
        return layer.self_attn, layer.self_attn.o_proj, layer.mlp
    layer = run.lm.model.transformer.h[i]
    return layer.attn, layer.attn.c_proj, layer.mlp


def zeroed(x: torch.Tensor, columns: slice = slice(None), rows: Any = slice(None)) -> torch.Tensor:
    x = x.clone()
    x[:, rows, columns] = 0
    return x


def test_the_model_itself_without_a_part(run: sc.Run) -> None:
    attention, projection, mlp = blocks(run, 1)
    d = run.lm.model.config.hidden_size // run.lm.model.config.num_attention_heads
    expected = {
        "layers.1.attn": hooked(run, attention, zeroed, False),
        "layers.1.mlp": hooked(run, mlp, zeroed, False),
        "layers.1.attn.heads.1": hooked(run, projection, lambda x: zeroed(x, slice(d, 2 * d)), True),
    }
    for name, logits in expected.items():
        torch.testing.assert_close(sc.ablate(run, name).real, logits, rtol=0, atol=1e-12)
    here = hooked(run, mlp, lambda x: zeroed(x, rows=[2, -1]), False)
    torch.testing.assert_close(sc.ablate(run, "layers.1.mlp", position=[2, -1]).real, here, rtol=0, atol=1e-12)
    mean = hooked(run, mlp, lambda x: x.mean(1, keepdim=True).expand_as(x), False)
    torch.testing.assert_close(sc.ablate(run, "layers.1.mlp", "mean").real, mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", KINDS)
def test_the_frozen_network_without_a_part(family: str) -> None:
    """y + J Δ, by the operators; the model's own pass with nothing changed is itself."""
    run = frozen(family)
    inside, before = run.inside, run.logits[-1]
    others = (".heads", ".heads.0", ".heads.2")  # the second head and the last stand for them
    names = [name for name in run.points if name.startswith("layers.1.") and not name.endswith(others)]
    assert names
    for name in names:
        op = run.operator(name, "logits")
        value = inside.value(name)
        out = sc.ablate(run, name)
        torch.testing.assert_close(out.frozen, before - op @ value, rtol=0, atol=1e-11)
        assert not torch.allclose(out.frozen, before)
        point, average = inside[name], value.mean(0).expand_as(value)
        if point.columns:  # a norm after the heads may weigh each position otherwise
            heads = inside.values[f"{point.stem}.attn.heads"]
            average = inside._projected(point, heads.mean(0).expand_as(heads))
        mean = sc.ablate(run, name, "mean").frozen
        torch.testing.assert_close(mean, before + op @ (average - value), rtol=0, atol=1e-11)
        some = torch.zeros_like(value)
        some[2] = value[2]
        torch.testing.assert_close(sc.ablate(run, name, position=2).frozen, before - op @ some, rtol=0, atol=1e-11)
    last = f"layers.{len(inside.layers) - 1}.mlp"
    if last in run.points and family != "bert":
        torch.testing.assert_close(sc.ablate(run, last, position=0).real, before, rtol=0, atol=1e-12)


def test_a_token(run: sc.Run) -> None:
    x, op = run.input, run.operator(target="logits")
    for by, row in (("zero", torch.zeros_like(x[0])), ("mean", x.mean(0)), (17, run.lm.embedding[17].detach())):
        out = sc.ablate(run, 3, by)
        v = x.clone()
        v[3] = row
        torch.testing.assert_close(out.frozen, op @ v + op.bias, rtol=0, atol=1e-12)
        with running(run.lm, run.lm.dtype):
            real = run.lm.model(inputs_embeds=v[None], use_cache=False).logits[0, -1].detach()
        torch.testing.assert_close(out.real, real, rtol=0, atol=1e-12)
    other = sc.freeze(run.lm, [*prompt()[:3], 17, *prompt()[4:]])
    torch.testing.assert_close(sc.ablate(run, -LENGTH + 3, 17).real, other.logits[-1], rtol=0, atol=1e-12)
    assert sc.ablate(run, 3, 17).by == "17"


def test_means_of_other_prompts(run: sc.Run) -> None:
    others = [sc.freeze(run.lm, [5, 6, 7]), sc.freeze(run.lm, [9, 8])]
    rows = torch.cat([r.inside.values["layers.0.mlp"] for r in others])
    value = run.inside.value("layers.0.mlp")
    expected = run.logits[-1] + run.operator("layers.0.mlp", "logits") @ (rows.mean(0) - value)
    torch.testing.assert_close(
        sc.ablate(run, "layers.0.mlp", "mean", reference=others).frozen, expected, rtol=0, atol=1e-11
    )


def test_all_of_them_side_by_side(run: sc.Run) -> None:
    found = sc.ablations(run, target=11)
    assert (found.target, found.by) == (run.lm.text(11), "zero")
    table = found.to_pandas()
    heads = run.lm.model.config.num_attention_heads
    layers = len(run.inside.layers)
    assert table["kind"].value_counts().to_dict() == {"token": LENGTH, "layer": 2 * layers, "head": heads * layers}
    a = sc.attribute(run, 11, baseline="none")
    tokens = table[table["kind"] == "token"]
    assert tokens["frozen"].tolist() == pytest.approx((-a.of("token")["contribution"]).tolist(), abs=1e-11)
    parts = table[table["kind"] == "layer"]
    assert parts["frozen"].tolist() == pytest.approx((-a.of("layer")["all_paths"]).tolist(), abs=1e-11)
    shown = sc.ablate(run, "layers.0.mlp").to_pandas(3)
    assert shown["before"].max() == pytest.approx(float(run.logits[-1].max()))
    assert {"frozen", "real", "real_probability"} <= set(shown.columns)


def test_refusals(run: sc.Run) -> None:
    with pytest.raises(NoPoint, match="points of this model"):
        sc.ablate(run, "layers.9.mlp")
    for name in ("norm", "layers.1", "layers.1.attn.heads"):
        with pytest.raises(NoPoint, match="An ablation takes"):
            sc.ablate(run, name)
    with pytest.raises(BadArgument, match="zero or mean"):
        sc.ablate(run, "layers.1.mlp", "median")
    with pytest.raises(BadArgument, match="by its position in the prompt"):
        sc.ablate(run, LENGTH)
    with pytest.raises(BadArgument, match="Kinds"):
        sc.ablations(run, kinds=["neuron"])


def test_the_callers_mode_does_not_matter() -> None:
    run = frozen("llama", "sdpa")
    how = {"kinds": ["layer"]}
    expected = sc.ablations(run, **how).table
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            pd.testing.assert_frame_equal(sc.ablations(run, **how).table, expected)


def test_a_model_that_was_changed_since_is_refused() -> None:
    run = sc.freeze(model_of("llama"), prompt())
    del run.lm.model.model.layers[0]
    with pytest.raises(ReplayMismatch, match="frozen with"):
        sc.ablate(run, "layers.1.mlp")


def test_in_a_wider_precision_nothing_taken_out_is_nothing() -> None:
    """The frozen network's own numbers are the base, not the 16-bit model's."""
    lm = model_of("gpt2", dtype=torch.bfloat16)
    run = sc.freeze(lm, prompt(), precision="float32")
    assert sc.ablate(run, 3, run.ids[3]).change(11) == pytest.approx((0, 0), abs=1e-6)
    a = sc.attribute(run, 11, convention="gate", baseline="none")
    table = sc.ablations(run, kinds=["layer"], target=11).table
    assert table["frozen"].tolist() == pytest.approx((-a.of("layer")["all_paths"]).tolist(), abs=1e-4)


def test_weights_written_since_are_refused() -> None:
    own = sc.freeze(model_of("gpt2"), prompt())
    with torch.no_grad():
        own.lm.model.transformer.h[2].mlp.c_proj.bias.add_(1)
    for call in (
        lambda: sc.ablate(own, 3),
        lambda: sc.attribute(own),
        lambda: sc.faithfulness(own),
        lambda: own.inside,
    ):
        with pytest.raises(ReplayMismatch, match=r"h\.2\.mlp\.c_proj\.bias, which has changed since"):
            call()


def test_arguments_that_mean_nothing(run: sc.Run) -> None:
    other = sc.freeze(model_of("llama", seed=3), prompt())
    with pytest.raises(BadArgument, match="same model"):
        sc.ablate(run, "layers.1.mlp", "mean", reference=other)
    with pytest.raises(BadArgument, match="not to a token"):
        sc.ablate(run, 1, position=3)
    one = sc.ablate(run, "layers.1.mlp", "mean", reference=run).frozen
    assert torch.equal(one, sc.ablate(run, "layers.1.mlp", "mean").frozen)
