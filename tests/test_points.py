"""Named points have the stock model's values, operators between them are exact, and their identities hold."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch
from families import LENGTH, frozen, model_of, prompt, shared
from helpers import assert_matches, real
from torch import Tensor, nn

import secant as sc
from secant.errors import BadArgument, BadPrompt, NoPoint, NotExact, integer, quoted
from secant.linearize.network import replayed

FAMILIES = (
    "llama", "gpt2", "gemma2", "gemma4_text", "falcon", "gpt_neox", "mixtral", "deepseek_v3", "gpt_oss", "bloom",
    "mamba", "falcon_h1", "qwen3_next", "nemotron_h", "rwkv", "olmo2", "bert", "xlm", "xlnet", "granite", "cohere",
    "trocr", "hrm_text",
)  # fmt: skip


def some(run: sc.Run) -> list[str]:
    """Every point of the first two layers, and the ends."""
    return [p for p in run.points[1:] if not p.startswith("layers.") or int(p.split(".")[1]) < 2]


def close(one: Tensor, other: Tensor, scale: Tensor | None = None, tolerance: float = 1e-12) -> None:
    size = float(torch.linalg.vector_norm(other if scale is None else scale))
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * size)


# ------------------------------------------------------------------------------------------- where they are


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "deepseek_v3", "bloom", "falcon_h1",
    "qwen3_next", "bert", "gpt_neox", "cohere", "gemma4_text", "granite"])  # fmt: skip
def test_layers_are_where_the_stock_model_has_them(family: str) -> None:
    """The index, too: labels that are off by one or two are an old mistake in this field."""
    run = frozen(family, dtype=torch.float32)
    with torch.no_grad():
        out = run.lm.model(input_ids=torch.tensor([prompt()]), output_hidden_states=True, use_cache=False)
    states = out.hidden_states
    layers = [p for p in run.points if p.count(".") == 1]
    assert len(layers) >= 2
    for i, name in enumerate(layers[:-1]):  # the last state is after the norm in most models
        torch.testing.assert_close(run.inside.values[name], states[i + 1][0], rtol=0, atol=0)


ADDED = {  # family: what its attention and its MLP add to the stream, as paths of modules of layer 1
    "llama": ("model.layers.1.self_attn", "model.layers.1.mlp"),
    "gpt2": ("transformer.h.1.attn", "transformer.h.1.mlp"),
    "gemma2": ("model.layers.1.post_attention_layernorm", "model.layers.1.post_feedforward_layernorm"),
    "olmo2": ("model.layers.1.post_attention_layernorm", "model.layers.1.post_feedforward_layernorm"),
    "gpt_neox": ("gpt_neox.layers.1.attention", "gpt_neox.layers.1.mlp"),
    "falcon": ("transformer.h.1.self_attention", "transformer.h.1.mlp"),
    "mixtral": ("model.layers.1.self_attn", "model.layers.1.mlp"),
    "gpt_oss": ("model.layers.1.self_attn", "model.layers.1.mlp"),
    "mamba": ("backbone.layers.1.mixer", None),
}


@pytest.mark.parametrize("family", ADDED)
def test_parts_are_what_the_stock_modules_add(family: str) -> None:
    run = frozen(family, dtype=torch.float32)
    paths, seen = ADDED[family], {}
    modules = dict(run.lm.model.named_modules())
    keep = {
        modules[path]: lambda m, a, out, path=path: seen.update(
            {path: (out[0] if isinstance(out, tuple) else out).clone()}
        )
        for path in paths
        if path
    }
    with contextlib.ExitStack() as hooks:
        for module, note in keep.items():
            hooks.callback(module.register_forward_hook(note).remove)
        run.lm.logits(prompt())
    names = ("layers.1.mixer", None) if family == "mamba" else ("layers.1.attn", "layers.1.mlp")
    for name, path in zip(names, paths, strict=True):
        if name is not None:
            assert torch.equal(run.inside.values[name], seen[path][0])


def test_multipliers_belong_to_the_part() -> None:
    """Granite scales what a block adds."""
    run = sc.freeze(model_of("granite", residual_multiplier=0.25), prompt())
    seen: dict[str, Tensor] = {}
    hook = run.lm.model.model.layers[1].mlp.register_forward_hook(lambda m, a, out: seen.update(mlp=out))
    run.lm.logits(prompt())
    hook.remove()
    torch.testing.assert_close(run.inside.values["layers.1.mlp"], seen["mlp"][0] * 0.25, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("llama", ["attn", "mlp"]),
        ("mamba", ["mixer"]),
        ("bert", ["attn", "mlp"]),
        ("falcon_h1", ["attn", "mixer", "mlp"]),
        ("nemotron_h", ["mixer"]),
        ("gpt_oss", ["attn", "mlp"]),
    ],
)
@pytest.mark.parametrize("length", [LENGTH, 1])
def test_which_parts_a_layer_has(family: str, parts: list[str], length: int) -> None:
    """A router's softmax mixes no tokens; with one token, nothing seems to mix."""
    assert frozen(family, length=length).inside.parts(0) == parts


def test_chunks_and_as_many_tokens_as_heads() -> None:
    """The last token of a prompt may be alone in its chunk; heads and tokens may be as many."""
    assert sc.freeze(model_of("llama4_text"), prompt()[:5]).inside.parts(0) == ["attn", "mlp"]
    run = sc.freeze(model_of("xlnet"), prompt()[:4])
    assert not any(".heads" in name for name in run.points)
    assert run.inside.parts(0) == ["attn", "mlp"]
    assert "layers.0.attn.heads.3" in sc.freeze(shared("llama"), prompt()[:4]).points


# ------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_is_exact(family: str) -> None:
    """Against replays, at the prompt and at another input, which autograd has no part in."""
    run = frozen(family)
    inside, network = run.inside, run.network
    v = torch.randn(run.input.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    named, by_step = replayed(network.lm, network.recording, v, network.precision, inside.token_axes)
    for name in some(run):
        op = run.operator(target=name)
        assert op.reconstruction <= 1e-12, name
        point = inside.points[name]
        if point.columns is None:
            r = named[name] if name in named else sum(by_step[s] for s in point.steps)
            close(op @ v + op.bias, r[-1].detach(), op.output)
        u = torch.randn(len(op.bias), dtype=torch.float64)
        torch.testing.assert_close(u @ (op @ v), (op.T @ u) @ v.flatten(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon_h1", "bert", "gpt_neox"])
def test_between_points_inside(family: str) -> None:
    """Another stream in the middle of the held network, whatever else goes on: J s + b."""
    run = frozen(family)
    inside, network = run.inside, run.network
    sources = ["layers.0", *(f"layers.0.{part}" for part in inside.parts(0) if part != "mlp")]
    for source in sources:
        (step,) = inside.points[source].steps
        own = inside.graph[source].detach()
        s = torch.randn(own.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        _, by_step = replayed(
            network.lm, network.recording, network.input, network.precision, inside.token_axes, {step: own - s}
        )
        for target in ("layers.0", "layers.1", f"layers.1.{inside.parts(1)[0]}", "norm"):
            if target == source:
                continue
            op = run.operator(source, target, position=[2, -1])
            assert op.reconstruction <= 1e-12
            if target != "norm":
                r = sum(by_step[step] for step in inside.points[target].steps)[[2, -1]]
                close(op @ s + op.bias, r.detach().flatten(), op.output)


def test_a_head_in_closed_form() -> None:
    """From a layer's own input: the pattern times W_o W_v of that head, behind a held norm."""
    lm = model_of("llama", attention_bias=False)
    run = sc.freeze(lm, prompt())
    with torch.no_grad():
        out = lm.model(input_ids=torch.tensor([prompt()]), output_attentions=True, use_cache=False)
    layer, pattern = lm.model.model.layers[1], out.attentions[1][0].double()
    x, d = run.inside.values["layers.0"], 8
    scale = (x.square().mean(1) + lm.model.config.rms_norm_eps).rsqrt()
    for h in range(4):
        Wo = layer.self_attn.o_proj.weight[:, h * d : (h + 1) * d]
        Wv = layer.self_attn.v_proj.weight.view(2, d, -1)[h // 2]
        J = torch.einsum("t,od,di,i,t->oti", pattern[h, -1], Wo, Wv, layer.input_layernorm.weight, scale)
        op = run.operator("layers.0", f"layers.1.attn.heads.{h}")
        assert_matches(op, J.detach().flatten(1), 1e-7)  # the stock patterns are float32
        assert not op.bias.any()


def test_a_readout_is_the_norm_at_the_points_own_statistics() -> None:
    lm = model_of("llama")
    run = sc.freeze(lm, prompt())
    norm = lm.model.model.norm
    for name in ("layers.0", "layers.1.attn", "layers.1.mlp"):
        op, raw = run.operator(target=name, position=4, readout="norm"), run.operator(target=name, position=4)
        h = raw.output
        held = norm.weight.detach() * (h.square().mean() + lm.model.config.rms_norm_eps).rsqrt()
        close(op.output, held * h)
        assert op.reconstruction <= 1e-12
        assert_matches(op, held[:, None] * raw.dense().flatten(1))
        close(op.bias, held * raw.bias, op.output)
        logits = run.operator(target=name, position=4, readout="logits", tokens=[5, 9])
        close(logits.output, lm.unembedding[[5, 9]].double() @ op.output)
        assert logits.reconstruction <= 1e-12


def test_a_readout_of_the_last_layer_is_the_whole() -> None:
    for family in ("llama", "gpt2", "bert", "xlnet", "trocr"):
        run = frozen(family)
        last = [p for p in run.points if p.count(".") == 1][-1]
        for readout in ("norm", "logits"):
            whole, op = run.operator(target=readout), run.operator(target=last, readout=readout)
            close(op.dense(), whole.dense())
            close(op.bias, whole.bias, whole.output)


# ------------------------------------------------------------------------------------------- algebra


PLAIN = [f for f in FAMILIES if f not in ("bert", "xlm", "xlnet", "gemma4_text", "rwkv", "trocr", "hrm_text")]


@pytest.mark.parametrize("family", PLAIN)
def test_the_stream_is_the_source_and_every_part(family: str) -> None:
    run = frozen(family)
    inside = run.inside
    count = len(inside.layers)
    assert all(inside.plain(i) for i in range(count))
    positions = [3, -1]
    parts: list[sc.Operator] = []
    added = torch.zeros(())
    for i in range(count):
        whole = run.operator(target=f"layers.{i}", position=positions)
        parts += [run.operator(target=f"layers.{i}.{part}", position=positions) for part in inside.parts(i)]
        scale = whole.dense()
        added = added + sum(op.dense() for op in parts[-len(inside.parts(i)) :])
        stem = scale - added  # what is left comes in by the embeddings alone, at its own position
        if i == 1:
            rest = whole
            for op in parts:
                rest = rest - op
            close(rest.dense(), stem, scale)
        own = stem[:, positions].view(2, -1, 2, inside.graph["embed"].shape[1])
        close(own[0, :, 1], torch.zeros_like(own[0, :, 1]), scale)
        eye = torch.eye(own.shape[1], own.shape[3], dtype=torch.float64)
        factor = own[0, 0, 0, 0]
        if family != "bloom":  # which norms its embeddings
            close(own[0, :, 0], factor * eye, scale)
            close(own[1, :, 1], factor * eye, scale)


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gemma2", "falcon", "bloom", "gpt_oss", "deepseek_v3", "bert", "xlnet"]
)
def test_an_attention_is_the_sum_of_its_heads_and_a_constant(family: str) -> None:
    run = frozen(family)
    for i in (0, 1):
        heads = [p for p in run.points if p.startswith(f"layers.{i}.attn.heads.")]
        assert len(heads) == 4
        attn = run.operator(target=f"layers.{i}.attn", position=[2, -1])
        total = run.operator(target=heads[0], position=[2, -1])
        for name in heads[1:]:
            total = total + run.operator(target=name, position=[2, -1])
        close(total.dense(), attn.dense())
        constant = run.operator(f"layers.{i}.attn.heads", f"layers.{i}.attn", position=[2, -1]).bias
        close(total.bias + constant, attn.bias, attn.output)
        close(total.output + constant, attn.output)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "mamba", "bert", "falcon_h1"])
def test_to_the_end_after_cumulative_is_the_whole(family: str) -> None:
    run = frozen(family)
    first, then = run.operator(target="layers.1", position=None), run.operator("layers.1", "norm")
    whole, both = run.operator(), then @ first
    close(both.dense(), whole.dense())
    close(both.bias, whole.bias, whole.output)
    close(both.output, whole.output)


def test_a_head_as_a_source() -> None:
    """Without the head, the rest of the network gives b."""
    run = frozen("llama")
    op = run.operator("layers.1.attn.heads.2", "norm")
    assert op.reconstruction <= 1e-12
    close(op.input, run.inside.value("layers.1.attn.heads.2"))
    all_of_it = run.operator("layers.1.attn", "norm")
    close(op.dense(), all_of_it.dense())
    close(op.bias, all_of_it.bias + all_of_it @ (all_of_it.input - op.input), op.output)


def test_several_positions_are_each_one_after_the_other() -> None:
    run = frozen("gpt2")
    several = run.operator(target="layers.1.mlp", position=[0, 7, -1])
    alone = [run.operator(target="layers.1.mlp", position=p).dense() for p in (0, 7, LENGTH - 1)]
    close(several.dense(), torch.cat(alone))
    assert several.about["position"] == [0, 7, LENGTH - 1]
    every = run.operator(target="norm", position=None)
    assert every.shape == (LENGTH * 32, LENGTH * 32)
    assert not every.dense().view(LENGTH, 32, LENGTH, 32)[2, :, 3:].any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon_h1", "gpt_neox", "bert"])
def test_from_the_norm_on(family: str) -> None:
    """The final norm is a source too: what comes after it is the head, position by position."""
    run = frozen(family)
    head, T = run.lm.head.weight.detach(), LENGTH
    op = run.operator("norm", "logits", position=3)
    scale = getattr(run.lm.model.config, "lm_head_multiplier", 1.0)
    if family != "bert":  # whose head comes after a dense layer and a norm
        close(op.dense()[:, 3], head * scale)
    assert not op.dense()[:, torch.arange(T) != 3].any()
    assert op.reconstruction <= 1e-14
    whole = op @ run.operator(target="norm", position=None)
    direct = run.operator(target="logits", position=3)
    close(whole.dense(), direct.dense())
    close(whole.bias, direct.bias, direct.output)


def test_chosen_logits() -> None:
    run = frozen("gpt2")
    chosen = run.operator(target="logits", position=[1, -1], tokens=[7, 3])
    every = run.operator(target="logits", position=[1, -1])
    close(chosen.dense(), every.dense().view(2, -1, LENGTH, 32)[:, [7, 3]].flatten(0, 1))
    assert chosen.about["logits"] == [7, 3]


@pytest.mark.parametrize(("dtype", "precision"), [("float32", None), ("bfloat16", "float32")])
def test_other_types(dtype: str, precision: str | None) -> None:
    run = sc.freeze(model_of("qwen3", "sdpa", getattr(torch, dtype)), prompt(), precision=precision)
    for name in ("layers.1", "layers.1.attn", "layers.1.attn.heads.3", "layers.1.mlp"):
        op = run.operator(target=name)
        assert op.reconstruction <= (1e-5 if dtype == "float32" else 0.1)
        read = run.operator("layers.0", name, readout="norm")
        assert str(read.bias.dtype) == "torch.float32"
    assert torch.equal(run.logits, run.lm.logits(prompt())[:])


@pytest.mark.parametrize("name", ["craftgpt", "stories260K", "tiny-sql-gpt"])
def test_on_trained_models(name: str) -> None:
    lm = sc.load(str(real(name)), dtype="float64")
    run = sc.freeze(lm, {"craftgpt": "do you like music", "stories260K": "Once upon a time"}.get(name, [3, 4, 5, 6]))
    for point in some(run):
        assert run.operator(target=point).reconstruction <= 1e-12
    assert run.inside.plain(1)


# ------------------------------------------------------------------------------------------- refused


def test_points_that_do_not_exist() -> None:
    run = frozen("mamba")
    with pytest.raises(
        NoPoint, match=r"embed, layers\.i\.mixer, layers\.i, norm, logits; i = 0 to 2; got 'layers\.0\.attn'"
    ):
        run.operator(target="layers.0.attn")
    with pytest.raises(NoPoint, match=r"layers\.i\.mlp \(i = 1, 3\)"):
        frozen("nemotron_h").operator(target="layers.0.mlp")
    with pytest.raises(NoPoint, match=r"got 'layers\.3'"):
        run.operator("layers.3", "norm")
    with pytest.raises(NoPoint, match=r"got 'layers\.0\.attn\.heads\.4'"):
        frozen("llama").operator(target="layers.0.attn.heads.4")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("layers.1", "layers.0"),
        ("norm", "layers.2"),
        ("layers.1.attn.heads.0", "layers.1.attn.heads.1"),
        ("layers.0.mlp", "layers.0.attn"),
        ("logits", "norm"),
    ],
)
def test_a_source_comes_first(source: str, target: str) -> None:
    with pytest.raises(NoPoint, match=f"target must be computed from its source; got {source} to {target}"):
        frozen("llama").operator(source, target)


@pytest.mark.parametrize("point", ["embed", "layers.1", "norm", "layers.0.attn"])
def test_from_a_point_to_itself_is_the_identity(point: str) -> None:
    op = frozen("llama").operator(point, point, position=3)
    close(op.dense(), torch.eye(LENGTH * 32, dtype=torch.float64).view(LENGTH, 32, LENGTH, 32)[3])
    assert not op.bias.any()
    assert op.reconstruction == 0


def test_the_stream_is_a_sum_of_operators() -> None:
    """Written as a researcher would: the identity, then every part; sum() works."""
    run = frozen("llama")
    parts = [run.operator(target=f"layers.{i}.{part}", position=5) for i in range(3) for part in ("attn", "mlp")]
    total, whole = sum([run.operator("embed", "embed", 5), *parts]), run.operator(target="layers.2", position=5)
    close(total.dense(), whole.dense())
    close(total.bias, whole.bias, whole.output)
    close(total.output, whole.output)
    assert total.reconstruction <= 1e-14


def test_multiples() -> None:
    op = frozen("llama").operator(target="layers.1")
    assert_matches(2 * op - op * 0.5, 1.5 * op.dense().flatten(1))
    assert_matches(-op, -op.dense().flatten(1))
    assert (2 * op - op * 0.5).reconstruction <= 1e-14
    zero = op - op
    assert not zero.dense().any()


def test_operators_that_do_not_meet_are_refused() -> None:
    """Sizes alone do not say so: each of these would give a wrong answer."""
    run, between = frozen("llama"), frozen("llama").operator
    reversed_run = sc.freeze(run.lm, prompt()[::-1])
    then = between("layers.1", "norm")
    backwards = list(range(LENGTH))[::-1]
    for first in (
        between(target="layers.0", position=None),
        between(target="layers.1", position=None, readout="norm"),
        between(target="layers.1", position=backwards),
        reversed_run.operator(target="layers.1", position=None),
    ):
        with pytest.raises(BadArgument, match="begins where the first one ends"):
            then @ first
    for other in (between(), reversed_run.operator("layers.1", "norm")):
        with pytest.raises(BadArgument, match="same input to be added; got two different inputs"):
            then + other
        with pytest.raises(BadArgument, match="same input to be added; got two different inputs"):
            then - other


@pytest.mark.parametrize("given", [1.0, "last", True, torch.tensor([0, 2]), None, slice(3)])
def test_a_position_is_a_whole_number(given: object) -> None:
    with pytest.raises(BadArgument, match=rf"A rule; got n = {re.escape(quoted(given))}(, a .*)?\. Use -11 to 10"):
        integer(given, -11, 10, "A rule", "n = ")


def test_positions_of_other_kinds() -> None:
    run = frozen("llama")
    assert run.operator(target="layers.1", position=torch.tensor(2)).about["position"] == 2
    assert run.operator(target="layers.1", position=slice(0, 3)).about["position"] == [0, 1, 2]
    assert run.operator(target="layers.1", position=(0, -1)).about["position"] == [0, 10]


def test_what_does_not_meet_is_refused() -> None:
    run = frozen("llama")
    with pytest.raises(NoPoint, match="A readout takes a layer or a part"):
        run.operator(target="norm", readout="norm")
    with pytest.raises(NoPoint, match="A readout takes a layer or a part"):
        run.operator(target="layers.1", readout="head")
    with pytest.raises(NoPoint, match="A readout takes a layer or a part"):
        run.operator(target="layers.1.attn.heads", readout="norm")
    with pytest.raises(BadArgument, match="one of the prompt's 11 tokens; got 11"):
        run.operator(target="layers.1", position=[0, 11])
    with pytest.raises(BadArgument, match="at least one position"):
        run.operator(target="layers.1", position=[])
    with pytest.raises(BadArgument, match="Only logits can be selected by tokens"):
        run.operator(target="norm", tokens=[3])
    with pytest.raises(BadPrompt, match="got 97"):
        run.operator(target="logits", tokens=[97])
    with pytest.raises(BadArgument, match="second operator of a composition takes"):
        run.operator() @ run.operator()
    with pytest.raises(BadArgument, match="the same shape"):
        run.operator() + run.operator(target="logits")


def test_a_point_that_is_not_reproduced_is_refused() -> None:
    run = sc.freeze(model_of("llama"), prompt())
    run.inside.values["layers.1"].mul_(1.001)
    with pytest.raises(NotExact, match=r"1e-11 in float64; got 1\.0e-03 from embed to layers\.1"):
        run.operator(target="layers.1")


def test_ends_are_checked_at_every_position_too() -> None:
    run = sc.freeze(model_of("llama"), prompt())
    run.hidden[3].mul_(1.001)
    with pytest.raises(NotExact, match="from embed to norm"):
        run.operator(position=3)
    assert run.operator(position=4).reconstruction <= 1e-12


def test_the_model_is_as_it_was() -> None:
    lm = model_of("gemma2")
    before, hooks = lm.logits(prompt()), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()]
    run = sc.freeze(lm, prompt())
    run.operator("layers.0", "layers.1.attn", readout="norm")
    assert torch.equal(lm.logits(prompt()), before)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()] == hooks
    assert all(p.grad is None for p in lm.model.parameters())
    assert isinstance(lm.model, nn.Module)
