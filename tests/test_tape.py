"""Recording and replaying: frozen values stay frozen, the model is unchanged, and hidden nonlinearities are refused."""

from __future__ import annotations

import math
import shutil
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import LENGTH, frozen, model_of, prompt
from helpers import recorded, replayed
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils import cpp_extension
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

import secant as sc
from secant.errors import BadArgument, ModelRefused, NoPoint, NoRule, NotExact, ReplayMismatch, TrainingMode
from secant.linearize.forms import Constant
from secant.linearize.precision import Precision
from secant.linearize.tape import Tape
from secant.model.lm import LM

A = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------- scoped


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything about a model that a careless tool would leave changed."""
    return {
        "classes": [type(m) for m in model.modules()],
        "forwards": [(m.forward.__func__, vars(type(m)).get("forward"), "forward" in vars(m)) for m in model.modules()],
        "hooks": [len(v) for m in model.modules() for v in vars(m).values() if isinstance(v, OrderedDict)],
        "own": [sorted(vars(m)) for m in model.modules()],
        "ids": [id(p) for p in model.parameters()],
        "grad": [(p.requires_grad, p.grad) for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "modes": len(_get_current_function_mode_stack()),
        "functions": (F.silu, torch.rsqrt, F.scaled_dot_product_attention, torch.matmul, Tensor.pow),
        "enabled": torch.is_grad_enabled(),
        "buffers": [(n, id(b), b.dtype, b.double().sum().item()) for n, b in model.named_buffers()],
        "tensors": [(k, id(v)) for m in model.modules() for k, v in vars(m).items() if isinstance(v, Tensor)],
    }


def behaviour(model: nn.Module, ids: list[int]) -> tuple[Tensor, list[Tensor]]:
    out = model(input_ids=torch.tensor([ids])).logits
    grads = torch.autograd.grad(out.square().sum(), list(model.parameters()))
    return out.detach(), list(grads)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_afterwards_the_model_is_as_before(family: str) -> None:
    lm = model_of(family, "sdpa", torch.float32)
    before, acts = state_of(lm.model), behaviour(lm.model, prompt())
    run = sc.freeze(lm, prompt(), ordinary=True)
    run.operator().dense()
    assert state_of(lm.model) == before
    after = behaviour(lm.model, prompt())
    assert torch.equal(acts[0], after[0])
    assert all(map(torch.equal, acts[1], after[1]))


def test_afterwards_also_of_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model_of("llama", "sdpa", torch.float32)
    before, acts = state_of(lm.model), behaviour(lm.model, prompt())
    with monkeypatch.context() as patch:
        patch.setattr(LlamaMLP, "forward", lambda self, x: torch.special.bessel_j0(x))
        with pytest.raises(NoRule, match=r"bessel_j0 in model\.layers\.0\.mlp;? ?.*"):
            sc.freeze(lm, prompt())
    assert state_of(lm.model) == before
    after = behaviour(lm.model, prompt())
    assert torch.equal(acts[0], after[0])
    assert all(map(torch.equal, acts[1], after[1]))


def test_two_families_in_one_process_do_not_disturb_each_other() -> None:
    alone = {f: frozen(f, "sdpa").operator().dense() for f in ("llama", "gemma3_text")}
    llama, gemma = (model_of(f, "sdpa") for f in ("llama", "gemma3_text"))
    one, two = sc.freeze(llama, prompt()), sc.freeze(gemma, prompt())
    assert torch.equal(two.operator().dense(), alone["gemma3_text"])
    assert torch.equal(one.operator().dense(), alone["llama"])
    assert one.certificate.forward_equal


@pytest.mark.slow
def test_threads_do_not_disturb_each_other() -> None:
    """Two freeze different families while a third runs one of the models as it is, many times over."""
    lms = {f: model_of(f, "sdpa") for f in ("llama", "gpt2")}
    expected = {f: sc.freeze(lm, prompt()).operator().dense() for f, lm in lms.items()}
    plain = lms["llama"].model(input_ids=torch.tensor([prompt()])).logits
    right: dict[str, list[bool]] = {"llama": [], "gpt2": [], "plain": []}

    def freezing(family: str) -> None:
        for _ in range(4):
            J = sc.freeze(lms[family], prompt()).operator().dense()
            right[family].append(torch.equal(J, expected[family]))

    def running() -> None:
        for _ in range(30):
            logits = lms["llama"].model(input_ids=torch.tensor([prompt()])).logits
            right["plain"].append(torch.equal(logits, plain))

    threads = [threading.Thread(target=freezing, args=(f,)) for f in lms] + [threading.Thread(target=running)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [len(r) for r in right.values()] == [4, 4, 30]
    assert all(map(all, right.values()))
    assert not any(thread.is_alive() for thread in threads)


# ------------------------------------------------------------------------------------------- replay


def test_a_replay_that_meets_another_function_stops() -> None:
    course = {"silu": True}

    def function(x: Tensor) -> Tensor:
        y = x * 2
        return F.silu(y) if course["silu"] else F.gelu(y)

    _, tape = recorded(function, A)
    course["silu"] = False
    with pytest.raises(
        ReplayMismatch, match=r"step 1 was torch.nn.functional.silu in .*; got torch.nn.functional.gelu"
    ):
        replayed(function, tape, A)


@pytest.mark.parametrize(("recorded_steps", "replayed_steps"), [(2, 3), (3, 2)])
def test_a_replay_of_another_length_stops(recorded_steps: int, replayed_steps: int) -> None:
    steps = {"n": recorded_steps}

    def function(x: Tensor) -> Tensor:
        for _ in range(steps["n"]):
            x = x * 2
        return x

    _, tape = recorded(function, A)
    steps["n"] = replayed_steps
    with pytest.raises(ReplayMismatch, match="the end"):
        replayed(function, tape, A)


def test_courses_that_depend_on_the_input_are_held() -> None:
    def function(x: Tensor) -> Tensor:
        best = int(x.sum(1).argmax())
        y = x[best] if bool(x.sum() > -1e9) else x[0]
        return y * float(x.mean())

    _, tape = recorded(function, A)
    v = A.flip(0) * 3
    row = int(A.sum(1).argmax())
    assert torch.equal(replayed(function, tape, v).detach(), v[row] * float(A.mean()))


@pytest.mark.parametrize("made", [Tape.copy, lambda tape: tape.with_share(1)], ids=["copy", "share"])
def test_tapes_made_of_one_another_keep_their_coefficients(made: Callable[[Tape], Tape]) -> None:
    """Though the model writes into those of the tape that it is replayed with, as routers write into their weights."""

    def function(x: Tensor) -> Tensor:
        weights = x.topk(2).values
        weights *= 3
        return x * weights.sum()

    expected, tape = recorded(function, A)
    others = [made(tape), made(tape)]
    for each in (tape, *others, tape):
        assert torch.equal(replayed(function, each, A), expected)


def test_what_is_held_survives_being_written_over() -> None:
    def function(x: Tensor) -> Tensor:
        pattern = torch.softmax(x, -1)
        y = pattern * x
        pattern.zero_()
        pattern += 1
        gate = torch.sigmoid(x)
        z = y * gate
        gate.mul_(0)
        return z

    out, tape = recorded(function, A)
    expected = A * torch.softmax(A, -1) * torch.sigmoid(A)
    assert torch.equal(out.detach(), expected)
    for _ in range(2):  # neither the first pass nor a replay may spoil the tape
        v = torch.ones_like(A)
        torch.testing.assert_close(replayed(function, tape, v).detach(), torch.softmax(A, -1) * torch.sigmoid(A))


def test_what_a_model_does_without_gradients_is_held() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean(-1, keepdim=True) * 2
        return x * scale

    _, tape = recorded(function, A)
    v = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(replayed(function, tape, v).detach(), v * A.abs().mean(-1, keepdim=True) * 2)
    assert any(isinstance(step.form, Constant) for step in tape.steps)


def test_writing_into_a_live_tensor_without_gradients_is_refused() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        with torch.no_grad():
            y.mul_(3)
        return y

    with pytest.raises(NoRule):
        recorded(function, A)


class Raw(nn.Module):
    """A linear layer whose weight is no parameter and requires grad: a merged adapter, say."""

    def __init__(self, layer: nn.Linear, leaf: bool) -> None:
        super().__init__()
        weight = layer.weight.detach().clone().requires_grad_()
        self.weight = weight if leaf else weight * 1
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@pytest.mark.parametrize("leaf", [True, False])
def test_what_requires_grad_for_its_own_reasons_is_not_live(leaf: bool) -> None:
    J = frozen("mistral", "sdpa").operator().dense()
    lm = model_of("mistral", "sdpa")
    for layer in lm.model.model.layers:
        layer.mlp.down_proj = Raw(layer.mlp.down_proj, leaf)
        layer.self_attn.v_proj = Raw(layer.self_attn.v_proj, leaf)
    op = sc.freeze(lm, prompt()).operator()
    torch.testing.assert_close(op.dense(), J, rtol=0, atol=1e-13)
    assert op.bias.abs().max() == 0


def test_values_are_those_of_a_plain_pass_whatever_requires_grad() -> None:
    """torch.matmul chooses its kernel by what requires grad; the recorded value must not depend on it."""
    weight = nn.Parameter(torch.randn(24, 24, dtype=torch.float64))
    x = torch.randn(3, 5, 24, dtype=torch.float64)
    for call in (
        lambda x: x @ weight,
        lambda x: weight @ x.mT,
        lambda x: x.mT.mT @ weight.T,
        lambda x: x @ (weight * 2).T,
    ):
        with torch.no_grad():
            plain = call(x)  # where a view of a parameter requires grad, and a product with one does not
        assert torch.equal(recorded(call, x)[0].detach(), plain)


def test_parameters_stay_out_of_the_graph() -> None:
    layer = nn.Linear(6, 3).double()
    out, tape = recorded(lambda x: layer(x) @ layer.weight, A)
    assert out.requires_grad
    assert layer.weight.requires_grad
    graph, seen = [out.grad_fn], set()
    while graph:
        node = graph.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        graph.extend(n for n, _ in node.next_functions)
    leaves = [n.variable for n in seen if hasattr(n, "variable")]
    assert all(leaf is not layer.weight and leaf is not layer.bias for leaf in leaves)
    assert tape.nbytes == 0


# ------------------------------------------------------------------------------------------- precision


def test_precision_writes_through_views_of_what_is_there() -> None:
    low = torch.zeros(2, 3)
    with Precision(torch.float64):
        low[0].fill_(7)
        low.view(-1)[3:].add_(1)
    assert low.tolist() == [[7, 7, 7], [1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "scale"), [("rms_norm", 1e-3), ("rms_norm", 300.0), ("layer_norm", 900.0)])
def test_norms_in_16_bits(dtype: torch.dtype, name: str, scale: float) -> None:
    """torch takes their statistics, and the eps that is not given, in float32."""
    x = torch.tensor([[1.0, -0.3, 0.2, 0.6]], dtype=dtype) * scale

    def call(x: Tensor) -> Tensor:
        return getattr(F, name)(x, (4,))

    plain, (out, tape) = call(x), recorded(call, x)
    assert torch.equal(out, plain)
    torch.testing.assert_close(replayed(call, tape, x).detach(), plain, rtol=0.01, atol=0.01)


def test_precision_keeps_casts_from_happening() -> None:
    norm = LlamaRMSNorm(6).double()
    exact = A / (A.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    assert (norm(A) - exact).abs().max() > 1e-9
    low = torch.zeros(4, 6)
    with Precision(torch.float64):
        assert (norm(A) - exact).abs().max() < 1e-15
        assert F.softmax(A, -1, dtype=torch.float32).dtype == torch.float64
        assert torch.arange(3, dtype=torch.float32).dtype == torch.float64
        assert torch.arange(3)[:, None].float().dtype == torch.float64
        assert A.to(torch.bfloat16).dtype == torch.float64
        assert torch.zeros(2).dtype == torch.float64
        assert low.add_(A) is low
        assert low.dtype == torch.float32
    assert A.float().dtype == torch.float32


# ------------------------------------------------------------------------------------------- what hides


class Hidden(torch.autograd.Function):
    """A nonlinearity that no torch function mode sees."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return g * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


class HiddenRelu(torch.autograd.Function):
    """One that is homogeneous, so that reconstruction alone can't see it."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return g * (ctx.saved_tensors[0] > 0)


class WrongBackward(torch.autograd.Function):
    """A linear one whose derivative is wrong."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return g * 1.5


@pytest.mark.parametrize("hidden", [Hidden, HiddenRelu, WrongBackward])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_hidden_nonlinearity_is_refused(hidden: type, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: hidden.apply(original(self, x)))
    with pytest.raises(NotExact, match=r"got (reconstruction|affinity) \d"):
        sc.freeze(model_of("llama", "sdpa", dtype), prompt())


PLANTED = """
#include <ATen/core/Tensor.h>
#include <ATen/ops/tanh.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
at::Tensor f(at::Tensor x) { return at::tanh(x); }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) { module.def("f", &f); }
"""
"""With few headers: all of torch's take half a minute."""


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> object:
    """A C++ extension's tanh, built where no lock of an interrupted build can be left."""
    if shutil.which("g++") is None or not cpp_extension.is_ninja_available():
        pytest.skip("no C++ compiler and ninja here")
    folder = str(tmp_path_factory.mktemp("extension"))
    how: dict[str, Any] = {"build_directory": folder, "no_implicit_headers": True, "extra_cflags": ["-O0"]}
    return cpp_extension.load_inline("secant_planted", PLANTED, **how).f


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_nonlinearity_in_an_extension_is_refused(
    extension: object, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: extension(original(self, x)))
    with pytest.raises(NotExact, match=r"got (reconstruction|affinity) \d"):
        sc.freeze(model_of("llama", "sdpa", dtype), prompt())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_nonlinearity_in_a_script_is_refused(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hidden = torch.jit.trace(torch.tanh, torch.ones(1, LENGTH, 32, dtype=dtype))
    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: hidden(original(self, x)))
    with pytest.raises(NotExact, match=r"got (reconstruction|affinity) \d"):
        sc.freeze(model_of("llama", "sdpa", dtype), prompt())


def test_a_custom_operator_has_no_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.library.custom_op("secant_tests::planted", mutates_args=())
    def hidden(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)

    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: hidden(original(self, x)))
    with pytest.raises(NoRule, match="planted"):
        sc.freeze(model_of("llama", "sdpa"), prompt())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_region_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original, hidden = LlamaMLP.forward, torch.compile(lambda x: torch.tanh(x), backend=backend)
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: hidden(original(self, x)))
    with pytest.raises((ModelRefused, NotExact)):  # compiling traces the recorder too, and stops there
        sc.freeze(model_of("llama", "sdpa"), prompt())


def test_a_hidden_nonlinearity_is_refused_in_16_bits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that 16 bits drown, where the system is evaluated in float32."""
    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: (y := original(self, x)) + 0.01 * HiddenRelu.apply(y))
    lm = model_of("llama", "sdpa", torch.bfloat16)
    assert sc.freeze(lm, prompt()).certificate.affinity < 0.1
    with pytest.raises(NotExact, match="1e-04 in float32; got affinity"):
        sc.freeze(lm, prompt(), precision="float32")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rms_norm_eps": math.nan}, "NaN at position 0, with rms_norm_eps = NaN in its configuration. Correct"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": math.nan}}, "with rope_theta = NaN"),
    ],
)
def test_a_setting_that_is_nan_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelRefused, match=f"must compute finite numbers; got .*{said}"):
        sc.freeze(model_of("llama", "sdpa", **options), prompt())


def test_a_pass_that_is_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: original(self, x) * math.nan)
    for dtype, todo in ((torch.float16, "Load it in bfloat16 or float32"), (torch.float64, "Report its type")):
        with pytest.raises(ModelRefused, match=f"got NaN at position 0, in {dtype}. {todo}"):
            sc.freeze(model_of("llama", "sdpa", dtype), prompt())


def test_a_forward_pass_that_does_not_repeat_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: original(self, x) + torch.rand(()).to(x) * 0.1)
    with pytest.raises(NotExact, match="bit for bit"):
        sc.freeze(model_of("llama", "sdpa"), prompt())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_does_not_matter(mode: type) -> None:
    lm = model_of("gpt2", "sdpa")
    outside = sc.freeze(lm, prompt())
    J = outside.operator().dense()
    with mode():
        inside = sc.freeze(lm, prompt(), ordinary=True)
        op = inside.operator()
        v = torch.randn(op.shape[1], dtype=torch.float64)
        assert torch.equal(op.dense(), J)
        product = op @ v
        assert sc.attribute(inside).total == pytest.approx(sc.attribute(outside).total)
    torch.testing.assert_close(product, J.flatten(1) @ v.clone(), rtol=0, atol=1e-12)
    assert outside.certificate.affinity == inside.certificate.affinity


def test_autocast_and_compiled_modules_are_refused() -> None:
    lm = model_of("gpt2", "sdpa", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(BadArgument, match="autocast"):
        sc.freeze(lm, prompt())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lm.model.transformer.h[0].mlp = torch.compile(lm.model.transformer.h[0].mlp)
    with pytest.raises(ModelRefused, match="compiled"):
        LM(lm.model, None)


def test_what_a_forward_pass_keeps_for_later_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is made once, where there was None; and a full that is called by keyword."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.full(size=(1,), fill_value=2.0).to(x)
        return original(self, x) * self.kept

    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "kept", None, raising=False)
    monkeypatch.setattr(LlamaMLP, "forward", forward)
    lm = model_of("llama", "sdpa")
    for layer in lm.model.model.layers:
        layer.mlp.kept = None
    sc.freeze(lm, prompt())
    assert all(vars(layer.mlp)["kept"] is None for layer in lm.model.model.layers)
    sc.freeze(lm, prompt())


@pytest.mark.parametrize("used", [False, True])
def test_tensors_that_a_forward_pass_assigns_are_put_back(used: bool) -> None:
    """longrope keeps its frequencies from pass to pass; in a wider type they would stay."""
    half = [1.0] * 4
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": half, "long_factor": half}
    options = {"rope_parameters": rope, "original_max_position_embeddings": 4}
    lm = model_of("phi3", "sdpa", torch.float32, **options)
    if used:
        lm.model(input_ids=torch.tensor([prompt()]))
    before = state_of(lm.model)
    sc.freeze(lm, prompt(), precision="float64")
    assert state_of(lm.model) == before


def test_training_mode_is_refused() -> None:
    lm = model_of("gpt2", "sdpa")
    lm.model.transformer.h[1].train()
    with pytest.raises(TrainingMode, match="eval"):
        sc.freeze(lm, prompt())


def test_a_head_that_is_not_applied_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model_of("llama", "sdpa")
    other = nn.Linear(32, 97, bias=False).double()
    monkeypatch.setattr(type(lm.model), "get_output_embeddings", lambda self: other)
    with pytest.raises(NoPoint):
        sc.freeze(LM(lm.model, None, "odd"), prompt())
