"""Steering: a_i by a double loop, each form at the layer, all kinds of generation, and an unchanged model after it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from families import model_of, prompt
from torch import Tensor, nn
from transformers import CompileConfig

import secant as sc
from secant.errors import BadArgument, NoPoint, SecantError
from secant.model.lm import LM
from secant.steering.forms import FORMS
from secant.steering.kv_cache import accumulated, real_positions

LAYER = 1
STRENGTHS = {"mixture": 0.6, "additive": 1.5, "activation": -2.0}
FAMILIES = ("llama", "gpt2")
_RUNS: dict[tuple[str, str], sc.Run] = {}


def run_of(family: str, dtype: str = "float64") -> sc.Run:
    if (family, dtype) not in _RUNS:
        lm = model_of(family, "sdpa" if family == "llama" else "eager", getattr(torch, dtype))
        _RUNS[family, dtype] = sc.freeze(lm, prompt(4, seed=5))
    return _RUNS[family, dtype]


def ids_of(*lengths: int) -> list[list[int]]:
    return [prompt(length, seed=20 + i) for i, length in enumerate(lengths)]


def generated(lm: LM, *rows: list[int], tokens: int = 9, **how: object) -> list[list[int]]:
    """What is generated after rows that are padded on the left; 0 is the padding."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    how = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": None, "pad_token_id": 0, **how}
    return lm.model.generate(ids, attention_mask=mask, **how)[:, longest:].tolist()


@contextmanager
def seen(run: sc.Run, layer: int = LAYER) -> Iterator[list[Tensor]]:
    """The streams that a layer gives from now on, after whatever steers it."""
    module = run.lm.model.get_submodule(run.inside.layers[layer].call.module)
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, a, out: found.append(out[0] if isinstance(out, tuple) else out))
    yield found
    handle.remove()


def stream(run: sc.Run, ids: list[int], layer: int = LAYER) -> Tensor:
    with seen(run, layer) as found, torch.no_grad():
        run.lm.model(input_ids=torch.tensor([ids]))
    return found[0][0]


def sums(run: sc.Run, ids: list[int], layer: int = LAYER) -> Tensor:
    """a_i by its definition."""
    J, x = run.operator(target=f"layers.{layer}").dense(), run.lm.embed(ids)
    a = torch.zeros(len(ids), len(J), dtype=J.dtype)
    for i in range(len(ids)):
        for k in range(i + 1):
            a[i] += J[:, k % J.shape[1]] @ x[k]
    return a


def expected(run: sc.Run, ids: list[int], form: str, strength: float, h: Tensor) -> Tensor:
    """The steered stream, row by row, from the plain one."""
    a, c = sums(run, ids), run.operator(target=f"layers.{LAYER}").output
    torch.testing.assert_close(c, stream(run, run.ids)[-1], rtol=0, atol=1e-5)  # which casts to float32
    rows = []
    for i, row in enumerate(h):
        along = c if form == "activation" else a[i]
        if form == "mixture":
            rows.append((1 - strength) * row + strength * along)
        else:
            rows.append(row + strength * row.norm() / (2 * along.norm()) * along)
    return torch.stack(rows)


# ------------------------------------------------------------------------------------------- the formulas


def test_sums_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    J, x = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((3, 5, 4), (2, 8, 4)))
    real = torch.tensor([[True] * 8, [False, False, True, True, False, True, True, True]])
    a, count = accumulated(J, x, real, torch.tensor([0, 2]))
    for row, first in ((0, 0), (1, 2)):
        total, k = torch.zeros(5, dtype=torch.float64), first
        for i in range(8):
            if real[row, i]:
                total, k = total + J[k % 3] @ x[row, i], k + 1
            torch.testing.assert_close(a[row, i], total, rtol=0, atol=1e-13)
        assert count[row] == k


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_after_the_layer_is_that_of_the_form(family: str, form: str) -> None:
    run, (ids,), strength = run_of(family), ids_of(11), STRENGTHS[form]
    h = stream(run, ids)
    with sc.steer(run.lm, run, layer=LAYER, strength=strength, form=form):
        steered = stream(run, ids)
    torch.testing.assert_close(steered, expected(run, ids, form, strength, h), rtol=0, atol=1e-12 * float(h.norm()))
    assert (steered - h).norm() > 0.1 * h.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_concept_on_its_own_text_gives_its_own_stream_but_for_the_constants(family: str) -> None:
    run = run_of(family)
    op = run.operator(target=f"layers.{LAYER}")
    with sc.steer(run.lm, run, layer=LAYER, strength=1):
        steered = stream(run, run.ids)[-1]
    torch.testing.assert_close(steered, op.output - op.bias, rtol=0, atol=1e-12 * float(op.output.norm()))


def test_where_there_is_no_direction_the_stream_stays() -> None:
    h = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for form in ("additive", "activation"):
        assert torch.equal(FORMS[form].combined(h, torch.zeros_like(h), 3.0), h)


def test_a_concept_may_be_a_prompt() -> None:
    run, (ids,) = run_of("llama"), ids_of(6)
    results = []
    for concept in (run, run.ids):
        with sc.steer(run.lm, concept, layer=LAYER, strength=0.5):
            results.append(run.lm.logits(ids))
    assert torch.equal(*results)


def test_nested_blocks_compose() -> None:
    run, other, (ids,) = run_of("llama"), sc.freeze(run_of("llama").lm, prompt(3, seed=9)), ids_of(7)
    once = expected(run, ids, "mixture", 0.3, stream(run, ids))
    twice = expected(other, ids, "additive", 0.8, once)
    with (
        sc.steer(run.lm, run, layer=LAYER, strength=0.3),
        sc.steer(run.lm, other, layer=LAYER, strength=0.8, form="additive"),
    ):
        torch.testing.assert_close(stream(run, ids), twice, rtol=0, atol=1e-11)
        cached, plain = generated(run.lm, ids, num_beams=2), generated(run.lm, ids, num_beams=2, use_cache=False)
        assert cached == plain
        with pytest.raises(BadArgument, match="while the model is steered"), sc.steer(run.lm, [5], layer=0, strength=1):
            pass


def test_bfloat16_is_steered_in_float32() -> None:
    run, (ids,) = run_of("llama", "bfloat16"), ids_of(6)
    h = stream(run, ids)
    with sc.steer(run.lm, run, layer=LAYER, strength=0.5):
        steered = stream(run, ids)
    assert steered.dtype == torch.bfloat16
    close = expected(run, ids, "mixture", 0.5, h).float()
    assert (steered.float() - close).norm() < 0.02 * close.norm()


# ------------------------------------------------------------------------------------------- the model's generation


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", [*FAMILIES, "mamba", "falcon_h1", "gemma3_text", "mixtral"])
def test_a_cache_changes_nothing(family: str, form: str) -> None:
    run, rows = run_of(family, "float32" if family == "mixtral" else "float64"), ids_of(6, 6)
    with sc.steer(run.lm, run, layer=LAYER, strength=STRENGTHS[form], form=form):
        cached = generated(run.lm, *rows)
        assert cached == generated(run.lm, *rows, use_cache=False)
    assert cached != generated(run.lm, *rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}])
def test_padding_changes_nothing(family: str, how: dict[str, object]) -> None:
    run, rows = run_of(family), ids_of(3, 8, 5)
    with sc.steer(run.lm, run, layer=LAYER, strength=0.6):
        together = generated(run.lm, *rows, **how)
        assert together == [generated(run.lm, row, **how)[0] for row in rows]
        assert together == generated(run.lm, *rows, **({"num_beams": 3} if "num_beams" in how else {}), use_cache=False)


@pytest.mark.parametrize("family", [*FAMILIES, "mamba"])
def test_beams_are_followed(family: str) -> None:
    """They are reordered: with the sums left in the old order the beams end elsewhere, on at least one prompt."""
    run, rows = run_of(family), ids_of(5, 5, 5, 5)
    with sc.steer(run.lm, run, layer=LAYER, strength=0.7):
        cached = generated(run.lm, *rows, tokens=14, num_beams=4)
        assert cached == generated(run.lm, *rows, tokens=14, num_beams=4, use_cache=False)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of peft
def test_an_adapted_model_is_followed() -> None:
    """Its generate calls the model inside the wrapper; what calls the wrapper calls that as well."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])
    lm, (ids,) = LM(peft.get_peft_model(model_of("llama").model, config).eval()), ids_of(6)
    run, logits = sc.freeze(lm, prompt(4)), lm.logits(ids)
    how = {"input_ids": torch.tensor([ids]), "max_new_tokens": 9, "do_sample": False, "num_beams": 2}
    with sc.steer(lm, run, layer=LAYER, strength=0.6):
        cached, uncached = (lm.model.generate(**how, use_cache=c, eos_token_id=None) for c in (True, False))
        assert not torch.equal(lm.logits(ids), logits)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, lm.model.generate(**how, eos_token_id=None))


def test_samples_are_the_same_with_a_cache_and_without() -> None:
    run, rows, results = run_of("llama"), ids_of(4, 7), []
    for cache in (True, False):
        torch.manual_seed(3)
        with sc.steer(run.lm, run, layer=LAYER, strength=0.4):
            how: dict[str, object] = {"do_sample": True, "num_return_sequences": 3, "use_cache": cache}
            results.append(generated(run.lm, *rows, **how))
    assert results[0] == results[1]
    assert len(set(map(tuple, results[0]))) > 3


def test_a_cache_that_goes_on_by_hand() -> None:
    """A model that makes its own cache, positional arguments, one token and several at once, rows repeated."""
    run, (ids,) = run_of("llama"), ids_of(9)
    model, tokens = run.lm.model, torch.tensor([ids])
    with torch.no_grad(), sc.steer(run.lm, run, layer=LAYER, strength=0.6):
        whole = model(tokens).logits[0]
        first = model(tokens[:, :4], use_cache=True)
        second = model(tokens[:, 4:5], None, None, first.past_key_values)
        second.past_key_values.batch_repeat_interleave(3)
        second.past_key_values.batch_select_indices(torch.tensor([0, 2]))
        rest = tokens[:, 5:].expand(2, -1)
        third = model(rest, past_key_values=second.past_key_values, return_dict=False)[0]
        embedded = model(inputs_embeds=model.get_input_embeddings()(tokens)).logits[0]
    for row in third:
        torch.testing.assert_close(torch.cat([first.logits[0], second.logits[0], row]), whole, rtol=0, atol=1e-5)
    assert torch.equal(embedded, whole)


def test_a_cache_that_was_not_followed_is_refused() -> None:
    run, (ids,) = run_of("llama"), ids_of(9)
    model, tokens = run.lm.model, torch.tensor([ids])
    with torch.no_grad():
        plain = model(tokens[:, :4], use_cache=True).past_key_values
        with sc.steer(run.lm, run, layer=LAYER, strength=0.6):
            for cache in (plain, copy.deepcopy(model(tokens[:, :4], use_cache=True).past_key_values)):
                with pytest.raises(BadArgument, match="a different one of 4 tokens"):
                    model(tokens[:, 4:], past_key_values=cache)
            cut = model(tokens[:, :4], use_cache=True).past_key_values
            cut.crop(-1)
            with pytest.raises(BadArgument, match="a different one of 3 tokens"):
                model(tokens[:, 3:], past_key_values=cut)
            with pytest.raises(BadArgument, match="without assisted decoding"):
                generated(run.lm, [5, 6, 7, 5, 6, 7, 5, 6], prompt_lookup_num_tokens=3)
            with pytest.raises(BadArgument, match="called as a whole"):
                model.model(tokens)
    mamba = run_of("mamba")
    with torch.no_grad():
        plain = mamba.lm.model(tokens, use_cache=True).cache_params
    with sc.steer(mamba.lm, mamba, layer=LAYER, strength=0.6), pytest.raises(BadArgument, match="got a different one"):
        mamba.lm.model(tokens[:, :1], cache_params=plain)


def test_states_that_can_not_be_followed_are_refused() -> None:
    run, (ids,) = run_of("rwkv"), ids_of(5)
    with sc.steer(run.lm, run, layer=LAYER, strength=0.5):
        with pytest.raises(BadArgument, match="use_cache=False"):
            generated(run.lm, ids)
        assert generated(run.lm, ids, use_cache=False)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
@pytest.mark.parametrize("form", ["mixture", "activation"])
def test_a_generation_that_compiles_itself_is_refused(form: str) -> None:
    """As it does on a GPU with a static cache."""
    run, (ids,) = sc.freeze(model_of("llama", dtype=torch.float32), prompt(4)), ids_of(5)
    how = CompileConfig(backend="eager", fullgraph=False)
    how._compile_all_devices = True
    with (
        sc.steer(run.lm, run, layer=LAYER, strength=0.5, form=form),
        pytest.raises(BadArgument, match="a compiled one"),
    ):
        generated(run.lm, ids, cache_implementation="static", compile_config=how)


def test_masks_that_say_nothing_of_padding_are_refused() -> None:
    with pytest.raises(BadArgument, match="Give one with two axes"):
        real_positions(torch.ones(1, 2, 3), 1, 3, 0)
    with pytest.raises(BadArgument, match="got dict"):
        real_positions({"sliding_attention": None}, 1, 3, 0)


def test_embeddings_that_are_not_seen_are_refused() -> None:
    run = run_of("llama")
    embedding = run.lm.model.get_input_embeddings()
    with sc.steer(run.lm, run, layer=LAYER, strength=0.5), pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(embedding), "__call__", lambda self, ids: nn.functional.embedding(ids, self.weight))
        with pytest.raises(BadArgument, match="an embedding for each token of the residual stream; got none"):
            run.lm.model(torch.tensor([[4, 5]]))


# ------------------------------------------------------------------------------------------- nothing is left


def traces(model: nn.Module) -> list[tuple[int, ...]]:
    return [(len(vars(m)), *(len(d) for name, d in vars(m).items() if "_hooks" in name)) for m in model.modules()]


@pytest.mark.parametrize("form", FORMS)
def test_strength_0_is_the_model_itself(form: str) -> None:
    run, rows = run_of("gpt2"), ids_of(5, 8)
    logits, tokens = run.lm.logits(rows[0]), generated(run.lm, *rows)
    with sc.steer(run.lm, run, layer=LAYER, strength=0, form=form):
        assert torch.equal(run.lm.logits(rows[0]), logits)
        assert generated(run.lm, *rows) == tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_after_the_block_and_after_an_error(family: str) -> None:
    run, (ids,) = run_of(family), ids_of(6)
    model, before, logits = run.lm.model, traces(run.lm.model), run.lm.logits(ids)
    caches = []

    class Stop(Exception):
        pass

    def failing() -> None:
        with torch.no_grad(), sc.steer(run.lm, run, layer=LAYER, strength=0.6):
            assert traces(model) != before
            assert not torch.equal(run.lm.logits(ids), logits)
            caches.append(model(torch.tensor([ids]), use_cache=True).past_key_values)
            assert "reorder_cache" in vars(caches[0])
            caches.append(copy.deepcopy(caches[0]))
            raise Stop

    with pytest.raises(Stop):
        failing()
    assert traces(model) == before
    assert torch.equal(run.lm.logits(ids), logits)
    assert not {"reorder_cache", "crop"} & set(vars(caches[0]))
    caches[1].batch_repeat_interleave(2)  # a copy that was made inside works on itself alone
    assert [len(cache.layers[0].keys) for cache in caches] == [1, 2]


def test_a_pass_that_fails_leaves_no_sums() -> None:
    run, (ids,) = run_of("llama"), ids_of(6)
    tokens, head = torch.tensor([ids]), run.lm.head
    with torch.no_grad(), sc.steer(run.lm, run, layer=LAYER, strength=0.6):
        plain = run.lm.model(tokens).logits
        cache = run.lm.model(tokens[:, :3], use_cache=True).past_key_values
        handle = head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.lm.model(tokens[:, 3:], past_key_values=cache)
        handle.remove()
        with pytest.raises(BadArgument, match="a different one of 6 tokens"):
            run.lm.model(tokens[:, :1], past_key_values=cache)
        assert torch.equal(run.lm.model(tokens).logits, plain)


def test_other_threads_are_not_steered() -> None:
    run, (ids,) = run_of("llama"), ids_of(6)
    plain, found = run.lm.logits(ids), []
    with sc.steer(run.lm, run, layer=LAYER, strength=0.6):
        thread = threading.Thread(target=lambda: found.append(run.lm.logits(ids)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], plain)


# ------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ({"strength": 1.5}, BadArgument, "strength of a mixture is from 0 to 1; got 1.5"),
        ({"strength": -0.1}, BadArgument, "from 0 to 1"),
        ({"strength": float("nan")}, BadArgument, "got nan"),
        ({"strength": float("inf"), "form": "additive"}, BadArgument, "a finite number; got inf"),
        ({"strength": True}, BadArgument, "got True"),
        ({"form": "sum"}, BadArgument, "mixture, additive, activation; got 'sum'"),
        ({"layer": 3}, BadArgument, "layers of this model are 0 to 2; got layer = 3"),
        ({"layer": -1}, BadArgument, "got layer = -1"),
    ],
)
def test_wrong_arguments(how: dict[str, object], kind: type[SecantError], said: str) -> None:
    run = run_of("llama")
    before = traces(run.lm.model)
    given: dict[str, object] = {"layer": 1, "strength": 0.5, **how}
    with pytest.raises(kind, match=said), sc.steer(run.lm, run, **given):
        pass
    assert traces(run.lm.model) == before


def test_wrong_models() -> None:
    run, other = run_of("llama"), run_of("gpt2")
    with (
        pytest.raises(BadArgument, match="a run of the model that it steers"),
        sc.steer(other.lm, run, layer=1, strength=0.5),
    ):
        pass
    xlnet = sc.freeze(model_of("xlnet"), prompt(4))
    with pytest.raises(NoPoint), sc.steer(xlnet.lm, xlnet, layer=1, strength=0.5):
        pass
