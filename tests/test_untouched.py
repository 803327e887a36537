"""secant leaves a model as it was: state that passes keep, hooks, compiled calls, other threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import frozen, model_of, prompt
from test_tape import state_of
from torch import Tensor, nn

import secant as sc
from secant.errors import BadPrompt, ReplayMismatch
from secant.linearize.network import running
from secant.steering.generate import continued

HALF = [1.0, 2.0, 3.0, 4.0]
ROPES = {
    "longrope": {"rope_type": "longrope", "short_factor": HALF, "long_factor": HALF[::-1], "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 8.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8},
    "linear": {"rope_type": "linear", "factor": 8.0},
}


def stretched(kind: str, dtype: torch.dtype = torch.float64) -> sc.LM:
    """A Llama of 8 positions whose rotary positions are stretched to 64; longrope switches at 8."""
    rope = {"rope_theta": 1e4, **ROPES[kind]}
    options = {"rope_parameters": rope, "max_position_embeddings": 64 if kind == "longrope" else 8}
    if kind == "longrope":
        options["rope_parameters"]["original_max_position_embeddings"] = 8
    return model_of("llama", "sdpa", dtype, **options)


def use(run: sc.Run) -> None:
    """All that goes back to the model after it was frozen."""
    sc.attribute(run, flow=True)
    sc.layers(run, k=2)
    sc.ablate(run, "layers.0.mlp")
    run.operator("layers.0", "layers.2.attn").dense()
    sc.reach(run, run.ids[::-1], steps=3)
    assert run.next().certificate.reconstruction < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROPES)
def test_positions_beyond_those_of_the_training(kind: str) -> None:
    """Exact on both sides of the switch, whatever was frozen before or between, and nothing of it stays."""
    lm = stretched(kind)
    before = state_of(lm.model)
    short, long = sc.freeze(lm, prompt()[:4]), sc.freeze(lm, prompt() * 3)
    for run in (short, long):
        with torch.no_grad():
            stock = lm.model(input_ids=torch.tensor([run.ids])).logits[0]
        assert (run.logits - stock).norm() < 1e-5 * stock.norm()  # the stock model computes positions in float32
        use(run)
        assert run.operator().reconstruction < 1e-13
    assert lm.context == 64
    assert state_of(stretched(kind).model).keys() == before.keys()
    with pytest.raises(BadPrompt, match="64"):
        sc.freeze(lm, prompt() * 6)


@pytest.mark.parametrize("used", [False, True])
def test_what_a_pass_writes_in_place_is_put_back(used: bool) -> None:
    lm = stretched("longrope", torch.float32)
    if used:
        lm.model(input_ids=torch.tensor([prompt() * 3]))
    buffer = lm.model.model.rotary_emb.inv_freq
    before, state = buffer.clone(), state_of(lm.model)
    sc.freeze(lm, prompt()[:4], precision="float64")
    sc.freeze(lm, prompt() * 3)
    assert lm.model.model.rotary_emb.inv_freq is buffer
    assert torch.equal(buffer, before)
    assert {k: v for k, v in state_of(lm.model).items() if "version" not in k} == {
        k: v for k, v in state.items() if "version" not in k
    }


@pytest.mark.parametrize("shared", [Tensor.numpy, np.asarray, np.from_dlpack, lambda t: t.detach().numpy()])
def test_what_a_pass_writes_through_numpy_is_put_back(
    shared: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model_of("llama", "sdpa")
    mlp = lm.model.model.layers[0].mlp
    mlp.register_buffer("calls", torch.zeros(1, dtype=torch.float64))
    plain = type(mlp).forward

    def counting(self: nn.Module, x: Tensor) -> Tensor:
        if hasattr(self, "calls"):
            shared(self.calls)[0] += 1
        return plain(self, x)

    monkeypatch.setattr(type(mlp), "forward", counting)
    use(sc.freeze(lm, prompt()))
    assert mlp.calls.item() == 0
    lm.model(input_ids=torch.tensor([prompt()]))
    assert mlp.calls.item() == 1  # the model's own passes count


def test_a_weight_that_a_pass_reads_through_numpy_is_one_that_must_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model_of("llama", "sdpa")
    weight = lm.model.model.layers[0].mlp.up_proj.weight
    plain = type(lm.model.model.layers[0].mlp).forward

    def reading(self: nn.Module, x: Tensor) -> Tensor:
        weight.detach().numpy().sum()
        return plain(self, x)

    monkeypatch.setattr(type(lm.model.model.layers[0].mlp), "forward", reading)
    run = sc.freeze(lm, prompt())
    with torch.no_grad():
        weight.mul_(1.5)
    with pytest.raises(ReplayMismatch, match="changed"):
        run.unchanged()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_continuation_leaves_no_state_behind(kind: str) -> None:
    """Longer passes than any before it, steered and not."""
    lm = stretched(kind, torch.float32)
    rotary, row = lm.model.model.rotary_emb, prompt()[:6]
    before, buffer = rotary.inv_freq.clone(), rotary.inv_freq
    first = continued(lm, [row], 10)
    assert rotary.inv_freq is buffer
    assert torch.equal(buffer, before)
    with sc.steer(lm, concept=sc.freeze(lm, prompt()), layer=1, strength=0.0):
        assert continued(lm, [row], 10) == first
    assert rotary.inv_freq is buffer
    assert torch.equal(buffer, before)


def test_weights_that_somebody_else_writes_are_noticed_all_the_same() -> None:
    run = sc.freeze(stretched("longrope"), prompt())
    with torch.no_grad():
        run.lm.model.model.layers[0].mlp.up_proj.weight.add_(1)
    with pytest.raises(ReplayMismatch, match="up_proj"):
        sc.attribute(run)


# ------------------------------------------------------------------------------------------- hooks and compilation


def on_a_part(model: nn.Module, hook: Callable[..., None]) -> object:
    return model.model.layers[1].mlp.register_full_backward_hook(hook)


def before_a_layer(model: nn.Module, hook: Callable[..., None]) -> object:
    return model.model.layers[1].register_full_backward_pre_hook(hook)


def on_the_embedding(model: nn.Module, hook: Callable[..., None]) -> object:
    return model.model.embed_tokens.register_full_backward_hook(hook)


def on_the_model(model: nn.Module, hook: Callable[..., None]) -> object:
    return model.register_full_backward_hook(hook)


def of_the_old_kind(model: nn.Module, hook: Callable[..., None]) -> object:
    return model.model.layers[1].mlp.register_backward_hook(hook)


def on_all_modules(model: nn.Module, hook: Callable[..., None]) -> object:
    return nn.modules.module.register_module_full_backward_hook(hook)


HOOKED = [on_a_part, before_a_layer, on_the_embedding, on_the_model, of_the_old_kind, on_all_modules]


@pytest.mark.slow
@pytest.mark.parametrize("hooked", HOOKED)
def test_backward_hooks_are_of_trainings_not_of_products(hooked: Callable[..., object]) -> None:
    """They do not see our backward passes, and see all others, before and after."""
    lm, seen = model_of("llama", "sdpa"), []

    def trained() -> int:
        seen.clear()
        lm.model(input_ids=torch.tensor([prompt()])).logits.sum().backward()
        return len(seen)

    J = sc.freeze(lm, prompt()).operator().dense()
    handle = hooked(lm.model, lambda *given: seen.append(1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about hooks of the old kind
            times = trained()
            assert times or hooked is on_the_model  # torch has no such hooks of what gives a dictionary
            seen.clear()
            run = sc.freeze(lm, prompt(), ordinary=True)
            assert torch.equal(run.operator().dense(), J)
            use(run)
            assert not seen
            assert trained() == times
    finally:
        handle.remove()
    assert not trained()


def test_backward_hooks_stay_in_force_in_other_threads() -> None:
    lm, seen = model_of("llama", "sdpa"), []
    lm.model.model.layers[0].register_full_backward_hook(lambda *given: seen.append(1))

    def train() -> None:
        lm.model(inputs_embeds=lm.embed(prompt()).requires_grad_()[None]).logits.sum().backward()

    with running(lm, lm.dtype):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join(60)
    assert seen == [1]


def whole(model: nn.Module) -> None:
    model.compile(backend="eager")


def inside(model: nn.Module) -> None:
    model.model.compile(backend="eager")


def layer_by_layer(model: nn.Module) -> None:
    for layer in model.model.layers:
        layer.compile(backend="eager")


def forward_of_the_whole(model: nn.Module) -> None:
    model.forward = torch.compile(model.forward, backend="eager")


def forward_of_a_part(model: nn.Module) -> None:
    model.model.layers[1].mlp.forward = torch.compile(model.model.layers[1].mlp.forward, backend="eager")


@pytest.mark.parametrize("compile_", [forward_of_the_whole, forward_of_a_part])
def test_a_compiled_forward_is_run_as_plain_torch(compile_: Callable[[nn.Module], None]) -> None:
    lm = model_of("llama", "sdpa")
    J = sc.freeze(lm, prompt()).operator().dense()
    compile_(lm.model)
    forwards = [vars(module).get("forward") for module in lm.model.modules()]
    run = sc.freeze(lm, prompt())
    assert torch.equal(run.operator().dense(), J)
    use(run)
    assert [vars(module).get("forward") for module in lm.model.modules()] == forwards
    assert any(forward is not None for forward in forwards)


@pytest.mark.slow
@pytest.mark.parametrize("compile_", [whole, inside, layer_by_layer])
def test_a_model_that_was_compiled_in_place_is_run_as_plain_torch(compile_: Callable[[nn.Module], None]) -> None:
    lm = model_of("llama", "sdpa")
    J = sc.freeze(lm, prompt()).operator().dense()
    compile_(lm.model)
    calls = [module._compiled_call_impl for module in lm.model.modules()]
    run = sc.freeze(lm, prompt())
    assert torch.equal(run.operator().dense(), J)
    use(run)
    assert [module._compiled_call_impl for module in lm.model.modules()] == calls
    assert any(call is not None for call in calls)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mamba"])
def test_a_model_that_was_made_in_inference_mode(family: str) -> None:
    J = frozen(family, "eager").operator().dense()
    with torch.inference_mode():
        lm = model_of(family, "eager")
    assert next(lm.model.parameters()).is_inference()
    run = sc.freeze(lm, prompt(), ordinary=True)
    assert (run.operator().dense() - J).norm() < 1e-14 * J.norm()
    sc.attribute(run)
    sc.layers(run, k=2)
    with torch.no_grad(), sc.steer(lm, concept=run, layer=1, strength=0.5):
        lm.model(input_ids=torch.tensor([prompt()]))
    assert next(lm.model.parameters()).is_inference()


# ------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_what_another_thread_assigns_meanwhile_stays(kind: str) -> None:
    lm = model_of("llama", "sdpa")
    layer, other = lm.model.model.layers[0].mlp.up_proj, lm.model.model.rotary_emb
    weight, frequencies = nn.Parameter(torch.ones_like(layer.weight)), torch.ones_like(other.inv_freq)

    def assign() -> None:
        if kind == "parameter":
            layer.weight = weight
        else:
            other.inv_freq = frequencies

    with running(lm, lm.dtype):
        thread = threading.Thread(target=assign)
        thread.start()
        thread.join(60)
    assert (layer.weight if kind == "parameter" else other.inv_freq) is (weight if kind == "parameter" else frequencies)


def test_what_this_thread_assigns_is_put_back() -> None:
    lm = model_of("llama", "sdpa")
    layer = lm.model.model.layers[0].mlp.up_proj
    weight = layer.weight
    with running(lm, lm.dtype):
        layer.weight = nn.Parameter(torch.ones_like(weight))
    assert layer.weight is weight


@pytest.mark.slow
def test_passes_through_a_model_that_keeps_state_go_one_after_the_other() -> None:
    """Prompts on both sides of the switch, from several threads, each as if it were alone."""
    lm = stretched("longrope")
    prompts = [prompt()[:4], prompt() * 3]
    expected = [sc.freeze(lm, ids).logits for ids in prompts]
    wrong: list[int] = []

    def freeze(which: int) -> None:
        for _ in range(4):
            same = torch.equal(sc.freeze(lm, prompts[which]).logits, expected[which])
            wrong.extend([] if same else [which])

    threads = [threading.Thread(target=freeze, args=(n % 2,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong


def test_a_write_is_told_from_one_beside_it_in_the_same_memory() -> None:
    """Two buffers in one storage, of which a pass writes one."""
    lm = model_of("llama", "sdpa")
    both = torch.zeros(8, dtype=torch.float64)
    mlp = lm.model.model.layers[0].mlp
    mlp.register_buffer("one", both[:4])
    mlp.register_buffer("two", both[4:])
    own = mlp.forward

    def forward(x: Tensor) -> Tensor:
        mlp.two.fill_(1.0)
        return own(x) * mlp.two[0]

    mlp.forward = forward
    with running(lm, lm.dtype) as written:
        lm.logits(prompt())
    assert set(written) == {"model.layers.0.mlp.two"}
    assert not both.any()
    run = sc.freeze(lm, prompt())
    use(run)
